"""Damaged files of runs: commands work as before, or exit with 2 and one line."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from fuzzing import changed, damaged, limited, only_input_errors, rngs
from training_data import Tiny, write_frames

from mclc_gpu.cli.main import main
from mclc_gpu.data.files import write_archive
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.labels import run as labelrun
from mclc_gpu.networks.zoo import NETWORKS

PRESETS = "default", "paper"


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield


def command(name, data, out, *more):
    argv = [name, "--images", data / "images", "--out", out, "--device", "cpu", *more]
    if name != "predict":
        argv += ["--points-from-masks", data / "masks"]
    if name == "train":
        argv += ["--network", "tiny", "--schedule", "paper", "--epochs", 2, "--batch-size", 2, "--size", 32]
    return [str(word) for word in argv]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Frames, and runs on them: labels by two presets, one of which was interrupted as well; a detector."""
    root = tmp_path_factory.mktemp("runs")
    write_frames(root, 3, 32)
    for preset, trials in (("paper", 3), ("default", 0)):
        assert main(command("label", root, root / preset, "--preset", preset, "--trials", trials)) == 0
    assert main(command("train", root, root / "train")) == 0
    with pytest.MonkeyPatch.context() as patch:
        append = labelrun.Journal.append

        def stop(self, record):
            append(self, record)
            if record.get("image") == "frame1":
                raise KeyboardInterrupt

        patch.setattr(labelrun.Journal, "append", stop)
        assert main(command("label", root, root / "part", "--preset", "paper", "--trials", 3)) == 130
    return root


def ends_well(argv):
    """Run a command; return True if it did its work, after checking that an error is one line."""
    log = io.StringIO()
    with limited(), redirect_stderr(log), redirect_stdout(io.StringIO()):
        code = main(list(map(str, argv)))
    if code == 2:
        *skipped, error = log.getvalue().splitlines()
        assert error.startswith("mclc-gpu: error: ")
        assert all(line.startswith("skipped ") for line in skipped)
    else:
        assert code == 0
    return code == 0


def cases(path, few):
    """Damaged contents of a file, as bytes, and one more each of a JSON file with other values."""
    whole = path.read_bytes()
    for rng in rngs(few):
        yield damaged(whole, rng, whole)
        if path.suffix == ".json":
            yield json.dumps(changed(json.loads(whole), rng)).encode()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "name", ["label.json", "points.csv", "targets.csv", "masks/frame1.png", "tpm/frame1.png"]
)
def test_damaged_label_runs(root, tmp_path, preset, name):
    run, images = tmp_path / "run", ["--images", root / "images"]
    shutil.copytree(root / preset, run)
    score = ["score", "--pred", run / "masks", "--truth", root / "masks", "--report", tmp_path / "x.html"]
    show = ["show", "--labels", run, "--out", tmp_path / "x.png"]
    config = ["label", "--config", run / "label.json", "--points", run / "points.csv", "--out"]
    done = 0
    for content in cases(root / preset / name, 6):
        (run / name).write_bytes(content)
        done += ends_well([*show, *images])
        done += ends_well([*score, *images])
        few_trials = name == "points.csv" or b'"trials": 3,' in content or b'"trials": 0,' in content
        if few_trials and name in ("label.json", "points.csv"):
            done += ends_well([*config, tmp_path / "again", *images, "--overwrite"])
    assert done > 0 or name in ("label.json", "targets.csv")  # in which most damage shows


def content_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*/*.png"))}


@pytest.mark.parametrize("name", ["label.json", "label.partial.jsonl"])
def test_damaged_runs_are_resumed_to_the_same_or_refused(root, tmp_path, name):
    start = root / ("part" if "partial" in name else "paper")
    whole = content_of(root / "paper")
    done = 0
    for content in cases(start / name, 12):
        run = tmp_path / "run"
        shutil.copytree(start, run)
        (run / name).write_bytes(content)
        argv = command("label", root, run, "--preset", "paper", "--trials", 3, "--resume")
        if ends_well(argv):
            done += 1
            assert content_of(run) == whole
            assert (run / "points.csv").read_bytes() == (root / "paper" / "points.csv").read_bytes()
        shutil.rmtree(run)
    assert done > 0 or name in ("label.json", "targets.csv")  # in which most damage shows


@pytest.mark.parametrize("name", ["config.json", "last.pt", "metrics.csv", "labels/label.json"])
def test_damaged_training_runs(root, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(root / "train", run)
    done = 0
    for content in cases(root / "train" / name, 2):
        (run / name).write_bytes(content)
        done += ends_well(command("train", root, run, "--resume"))
        (run / "config.json").write_bytes((root / "train" / "config.json").read_bytes())
    (run / name).write_bytes((root / "train" / name).read_bytes())
    assert ends_well(command("train", root, run, "--resume"))


def test_damaged_checkpoints(root, tmp_path):
    """Damage checkpoints as bytes, and by other values in whole ones."""
    path = tmp_path / "best.pt"
    whole = root / "train" / "best.pt"
    content = torch.load(whole, weights_only=True)
    predict = command("predict", root, tmp_path / "out", "--checkpoint", path, "--overwrite")
    done = 0
    for rng in rngs(25):
        path.write_bytes(damaged(whole.read_bytes(), rng, whole.read_bytes()))
        done += loads(path)
        torch.save(changed(content, rng), path)
        done += loads(path) and ends_well(predict)
    assert done > 0


def loads(path):
    return only_input_errors(lambda: load_checkpoint(path, "cpu"))


def test_the_last_checkpoint_is_not_the_best_one(root, tmp_path, capsys):
    shutil.copytree(root / "train", tmp_path / "run")
    shutil.copy(tmp_path / "run" / "best.pt", tmp_path / "run" / "last.pt")
    assert main(command("train", root, tmp_path / "run", "--resume")) == 2
    assert "last.pt: not of this run" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_what_is_damaged_in_an_archive_is_left_out(root, tmp_path):
    files = [(path.name, path.read_bytes()) for path in sorted((root / "images").iterdir())]
    labeled = set()
    for rng in rngs(5):
        name, content = files[1]
        write_archive(tmp_path / "a.tar", [files[0], (name, damaged(content, rng, content)), files[2]])
        argv = ["label", "--images", tmp_path, "--points-from-masks", root / "masks", "--overwrite"]
        assert ends_well([*argv, "--out", tmp_path / "out", "--no-report"])
        labeled.add(len(list((tmp_path / "out" / "masks").iterdir())))
    assert 2 in labeled
