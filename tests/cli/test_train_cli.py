"""`mclc-gpu train` on files: labels, training, report; resumption after a kill; what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import command, ended, kill, wait_for
from training_data import write_frames

from mclc_gpu.cli.main import main
from mclc_gpu.detect.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("tiny_network")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--network", "tiny", "--schedule", "paper", "--batch-size", "4", "--size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and masks/ of six frames."""
    root = tmp_path_factory.mktemp("data")
    write_frames(root)
    return root


def argv(data: Path, out: Path, *more: object, source: str = "--masks") -> list[str]:
    images = ["--images", data / "images", source, data / "masks"]
    return [str(word) for word in ("train", *images, "--out", out, *SMALL, "--epochs", 2, *more)]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_points_are_labeled_and_trained_on_in_one_go(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    held = ["--val-images", data / "images", "--val-masks", data / "masks"]
    more = ["--trials", "5", "--preset", "paper", *held]
    assert main(argv(data, run, *more, source="--points-from-masks")) == 0
    assert {path.name for path in run.iterdir()} == {
        "config.json", "metrics.csv", "best.pt", "last.pt", "events", "labels", "report",
    }  # fmt: skip
    labels = json.loads((run / "labels" / "label.json").read_text())
    assert (labels["images"], labels["trials"]) == (6, 30)
    config = json.loads((run / "config.json").read_text())
    assert config["sets"][0]["labels"]["settings"]["trials"] == 5
    assert len(rows(run)) == 2
    shown = capsys.readouterr().out
    assert "IoU" in shown
    assert str(run / "report" / "report.md") in shown
    assert (run / "report" / "curves.png").stat().st_size > 0
    best = load_checkpoint(run / "best.pt", "cpu")
    report = json.loads((run / "report" / "scores.json").read_text())
    assert report["iou"] == best.state["scores"]["iou"]
    # Again in the same folder: refused, resumed, replaced.
    assert main(argv(data, run, *more, source="--points-from-masks")) == 2
    assert "holds an earlier run" in error_of(capsys)
    before = (run / "metrics.csv").read_bytes()
    assert main(argv(data, run, *more, "--resume", source="--points-from-masks")) == 0
    assert (run / "metrics.csv").read_bytes() == before
    assert main(argv(data, run, *more, "--overwrite", source="--points-from-masks")) == 0
    assert (run / "metrics.csv").read_bytes() == before


def test_sets_are_paired_in_order(data: Path, tmp_path: Path) -> None:
    """A set with masks, then one with points whose names are the same, each with its own list."""
    other = tmp_path / "other"
    write_frames(other, count=3, seed=1)
    for name, content in (("a.txt", "frame0\nframe1\n"), ("b.txt", "frame2\n")):
        (tmp_path / name).write_text(content)
    points = tmp_path / "points.csv"
    y, x = np.argwhere(np.array(Image.open(other / "masks" / "frame2.png"))).mean(axis=0)
    points.write_text(f"image,x,y,category\nframe2,{x},{y},spot\n")
    lists = ["--list", tmp_path / "a.txt", "--list", tmp_path / "b.txt"]
    more = ["--images", other / "images", "--points", points, *lists]
    assert main(argv(data, tmp_path / "run", *more)) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["images"] == 3
    first, second = config["sets"]
    assert first["masks"] == str(data / "masks")
    assert second["labels"]["images"] == 1
    assert (tmp_path / "run" / "labels" / "2" / "masks" / "frame2.png").exists()


def test_an_interrupt_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown.txt"
    process = command(argv(data, tmp_path / "run", "--epochs", 5000), log=shown)
    try:
        wait_for(tmp_path / "run" / "last.pt", process)
        os.kill(process.pid, signal.SIGINT)
        assert ended(process) == 130
    finally:
        kill(process)
    assert shown.read_text().splitlines()[-1] == "mclc-gpu: interrupted; train goes on with --resume"
    assert load_checkpoint(tmp_path / "run" / "last.pt", "cpu").state["epoch"] >= 1


def test_skipped_inputs_are_counted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    write_frames(copy)
    (copy / "images" / "frame1.png").write_bytes(b"no image")
    (copy / "masks" / "frame2.png").unlink()
    assert main(argv(copy, tmp_path / "run", "--epochs", 1, "--strict")) == 1
    shown = capsys.readouterr().err
    assert "frame1.png: cannot be read" in shown or "frame1.png: not an image" in shown
    assert "frame2.png: there is no mask of this image" in shown
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [Path(item["file"]).name for item in config["skipped"] + config["unpaired"]] == [
        "frame1.png",
        "frame2.png",
    ]


def test_a_collapsed_network_is_reported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclc_gpu.detect.inference import Predictor

    monkeypatch.setattr(
        Predictor, "probabilities", lambda _, images: [np.zeros(i.shape[:2], np.float32) for i in images]
    )
    held = ["--val-images", data / "images", "--val-masks", data / "masks"]
    assert main(argv(data, tmp_path / "run", *held, "--epochs", 1)) == 0
    assert "marks no pixel as target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "1"], "batch_size 1: tiny trains on batches of 2 images or more"),
        (["--epochs", "0"], "epochs 0: use 1 or more"),
        (["--images", "elsewhere"], "2 --images but 1 of --points, --points-from-masks and --masks"),
        (["--list", "a.txt", "--list", "b.txt"], "2 --list but 1 --images"),
        (["--val-images", "elsewhere"], "1 --val-images but 0 --val-masks"),
        (["--val-list", "a.txt"], "1 --val-list but 0 --val-images"),
        (["--val-images", "elsewhere", "--val-masks", "x"], "elsewhere: cannot be read as a folder"),
        (["--device", "tpu"], "device must be auto"),
    ],
)
def test_bad_arguments_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(argv(data, tmp_path / "run", *more)) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_before_labeling(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(argv(data, run)) == 0
    capsys.readouterr()
    assert main(argv(data, run, "--resume", "--lr", "0.5", source="--points-from-masks")) == 2
    assert "was begun with lr 0.05, not 0.5" in error_of(capsys)
    assert not (run / "labels").exists()


@pytest.mark.slow
def test_two_processes_share_the_work(data: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mclc_gpu"]
    held = ["--val-images", data / "images", "--val-masks", data / "masks"]
    given = argv(data, tmp_path / "run", *held, "--network", "acm", source="--points-from-masks")
    started = [sys.executable, *launcher, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.md") == 1
    assert len(rows(tmp_path / "run")) == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["processes"], config["validation_images"]) == (2, 6)
    assert len(list((tmp_path / "run" / "labels" / "masks").glob("*.png"))) == 6


def test_a_run_never_writes_over_its_inputs_or_others_files(data: Path, tmp_path: Path) -> None:
    assert main([*argv(data, data / "images", source="--masks")]) == 2
    for name in ("config.json", "report/scores.json"):
        out = tmp_path / name.replace("/", "_")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("{}")
        assert main([*argv(data, out, "--overwrite", source="--masks")]) == 2
        assert (out / name).read_text() == "{}"


def test_options_without_effect_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--preset", "paper", "--polarity", "dark"]
    assert main([*argv(data, tmp_path / "run", *more, source="--points-from-masks")]) == 2
    for more in ("--shards 2", "--preset paper", "--crf-gaussian 1 2", "--jitter 1"):
        assert main([*argv(data, tmp_path / "masks", *more.split())]) == 2
        message = f"{more.split()[0]} has no effect with --masks (nothing is labeled); remove it"
        assert message in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
