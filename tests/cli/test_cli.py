"""The label, score and demo commands on files, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chunks import label_in_chunks
from PIL import Image

from mclc_gpu.cli.commands import COMMANDS
from mclc_gpu.cli.main import main
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import read_points
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.labels import run as labelrun

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 8, 5, size=(72, 80))
    return root


def label(data: Path, out: Path, *more: object) -> int:
    source = [] if "--points" in more else ["--points-from-masks", data / "masks"]
    few = "--preset", "paper", "--trials", "8"
    argv = ["label", "--images", data / "images", *source, "--out", out, *few, *more]
    return main([str(word) for word in argv])


def files_of(out: Path) -> dict[str, bytes]:
    """Return the files of a run by name, without the two that state its seconds."""
    timed = {"label.json", "report.html"}
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.*")) if p.name not in timed}


def error_of(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mclc-gpu: error: ")
    return line


def test_label_writes_what_it_promises(data, tmp_path):
    out = tmp_path / "out"
    assert label(data, out) == 0
    images = find_files(data / "images")
    assert set(find_files(out / "masks")) == set(find_files(out / "tpm")) == set(images)
    for stem, path in images.items():
        size = Image.open(path).size
        mask, tpm = Image.open(out / "masks" / f"{stem}.png"), Image.open(out / "tpm" / f"{stem}.png")
        assert mask.size == tpm.size == size
        mask, tpm = np.asarray(mask), np.asarray(tpm)
        assert mask.dtype == np.uint8
        assert tpm.dtype == np.uint16
        assert set(np.unique(mask)) <= {0, 255}
        assert (tpm[mask > 0] > 0).all()
    points, skipped = read_points(out / "points.csv", images)
    assert not skipped
    summary = json.loads((out / "label.json").read_text())
    targets = sum(len(own) for own in points.values())
    assert summary["images"] == 8
    assert summary["targets"] == targets > 0
    assert summary["trials"] == 8 * targets
    assert set(summary["seconds"]) == {"startup", "read", "cluster", "refine", "write", "total"}
    assert summary["trials_per_s"] == pytest.approx(summary["trials"] / summary["seconds"]["cluster"])
    assert summary["skipped"] == []
    assert Image.open(out / "overview.png").size[0] > 200
    assert not (out / "label.partial.jsonl").exists()


def test_points_file_gives_the_same_labels_as_the_simulation_it_came_from(data, tmp_path):
    assert label(data, tmp_path / "a") == 0
    assert label(data, tmp_path / "b", "--points", tmp_path / "a" / "points.csv") == 0
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    first.pop("overview.png"), second.pop("overview.png")  # only the simulation knows the truth to show
    assert first == second


def test_points_that_were_used_give_the_same_labels_alone(data, tmp_path):
    source = tmp_path / "data"
    write_dataset(source, 1, 5, size=(72, 80))
    path = source / "images" / "synthetic_00000.png"
    image = np.array(Image.open(path))
    image[:20, :20] = 7  # a click here has a constant window
    Image.fromarray(image).save(path)
    points = tmp_path / "points.csv"
    points.write_text("image,x,y,category\nsynthetic_00000,5,5,point\nsynthetic_00000,40,50,spot\n")
    paper = "--preset", "paper", "--strict", "--points"
    assert label(source, tmp_path / "a", *paper, points) == 1
    assert label(source, tmp_path / "b", *paper, tmp_path / "a" / "points.csv") == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_do_not_change_the_result(data, tmp_path, monkeypatch, chunk):
    assert label(data, tmp_path / "a") == 0
    monkeypatch.setitem(COMMANDS, "label", label_in_chunks(bytes=chunk * 72 * 80))
    assert label(data, tmp_path / "b") == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_stages_at_once_do_not_change_the_result(data, tmp_path, monkeypatch):
    assert label(data, tmp_path / "a") == 0
    monkeypatch.setitem(COMMANDS, "label", label_in_chunks(images=2, overlap=True))
    assert label(data, tmp_path / "b") == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_an_interrupted_run_resumes_to_the_same_bytes(data, tmp_path, monkeypatch):
    assert label(data, tmp_path / "whole") == 0
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(COMMANDS, "label", label_in_chunks(images=1))
        append = labelrun.Journal.append

        def stop_after_three(journal, record):
            append(journal, record)
            if journal.path.read_text().count("\n") > 3:
                raise KeyboardInterrupt

        patch.setattr(labelrun.Journal, "append", stop_after_three)
        assert label(data, out) == 130
    assert len(find_files(out / "masks")) >= 3
    (out / "masks" / "synthetic_00001.png").unlink()  # lost although the journal says done
    with (out / "label.partial.jsonl").open("a") as journal:
        journal.write('{"image": "synthetic_0')  # torn by the kill
    (out / "tpm" / ".0123456789abcdef.tmp.png").write_bytes(b"half a pict")
    assert label(data, out, "--resume") == 0
    assert json.loads((out / "label.json").read_text())["resumed_images"] == 2
    assert files_of(out) == files_of(tmp_path / "whole")


def test_resume_of_a_complete_run_does_nothing(data, tmp_path):
    out = tmp_path / "out"
    assert label(data, out) == 0
    before = (out / "label.json").read_bytes()
    assert label(data, out, "--resume") == 0
    assert (out / "label.json").read_bytes() == before


def test_another_runs_folder_is_not_touched_unasked(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert label(data, out) == 0
    before = files_of(out)
    assert label(data, out) == 2
    assert "--resume" in error_of(capsys)
    assert label(data, out, "--resume", "--seed", "1") == 2
    assert "other settings" in error_of(capsys)
    assert files_of(out) == before
    assert label(data, out, "--overwrite", "--seed", "1") == 0
    assert files_of(out) != before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_files_of_others_are_never_replaced(data, tmp_path, capsys, more):
    root = tmp_path / "data"
    write_dataset(root, 2, 5, size=(72, 80))
    before = files_of(root)
    masks = root / "masks"
    assert label(data, root, *more) == 2
    assert str(masks) in error_of(capsys)
    assert label(root, root, *more) == 2  # OUT/masks are the true masks
    assert str(masks) in error_of(capsys)
    assert label(root, root / "images", *more) == 2
    assert str(root / "images") in error_of(capsys)
    assert files_of(root) == before
    points = tmp_path / "points.csv"
    points.write_text("image,x,y\nsynthetic_00000,20,20\n")
    assert label(data, tmp_path, "--points", points, *more) == 2
    assert str(points) in error_of(capsys)


def test_names_that_the_output_cannot_show_are_escaped(data, tmp_path):
    out = os.fsencode(tmp_path) + b"/\xff"
    argv = ["label", "--images", data / "images", "--points-from-masks", data / "masks"]
    command = [sys.executable, "-m", "mclc_gpu", *map(str, argv), "--out", out]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "udcff" in result.stdout
    assert os.path.exists(out + b"/label.json")


def test_a_file_that_cannot_be_written_is_named(data, tmp_path, capsys):
    report = tmp_path / "report.json"
    report.mkdir()
    masks = str(data / "masks")
    assert main(["score", "--pred", masks, "--truth", masks, "--json", str(report)]) == 2
    assert f"{report}: " in error_of(capsys)


def test_one_bad_image_does_not_stop_the_rest(data, tmp_path, capsys):
    copy = tmp_path / "data"
    write_dataset(copy, 4, 5, size=(72, 80))
    (copy / "images" / "synthetic_00001.png").write_bytes(b"no image")
    Image.fromarray(np.full((72, 80), 9, np.uint8)).save(copy / "images" / "synthetic_00002.png")
    points = tmp_path / "points.csv"
    rows = ["image,x,y,category"]
    rows += [f"synthetic_0000{i},20,20,spot" for i in range(4)]
    rows += [
        "synthetic_00000,20,20,spot",
        "synthetic_00000,500,20,spot",
        "ghost,1,1,",
        "synthetic_00003,nan,4,",
    ]
    points.write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    assert label(copy, out, "--points", points, "--preset", "paper", "--strict") == 1
    shown = capsys.readouterr().err
    skipped = json.loads((out / "label.json").read_text())["skipped"]
    assert set(find_files(out / "masks")) == {"synthetic_00000", "synthetic_00003"}
    for word in ("synthetic_00001", "constant", "ghost", "500", "nan"):
        assert any(word in item["file"] + item["why"] for item in skipped)
        assert word in shown
    assert label(copy, out, "--points", points, "--overwrite") == 0


def test_mask_of_another_size_is_skipped(data, tmp_path):
    copy = tmp_path / "data"
    write_dataset(copy, 3, 5, size=(72, 80))
    Image.fromarray(np.zeros((50, 80), np.uint8)).save(copy / "masks" / "synthetic_00001.png")
    out = tmp_path / "out"
    assert label(copy, out) == 0
    (item,) = json.loads((out / "label.json").read_text())["skipped"]
    assert "50" in item["why"]
    assert "72" in item["why"]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--preset", "paper", "--trials", "0"], ["trials 0"]),
        (["--trials", "-1"], ["trials -1"]),
        (["--preset", "default", "--trials", "5"], ["trials 5: maker 'components' makes no trials"]),
        (["--preset", "default", "--trials", "0", "--stop-change", "0.3"], ["stop_change 0.3"]),
        (["--intensity", "2"], ["intensity", "2"]),
        (["--clusters", "0"], ["clusters", "0"]),
        (["--compactness", "-1"], ["compactness"]),
        (["--threshold", "7"], ["threshold 7"]),
        (
            ["--preset", "default", "--trials", "0", "--clusters", "5"],
            ["--clusters only applies to presets with trials"],
        ),
        (
            ["--preset", "point", "--trials", "1", "--noise", "salt"],
            ["--noise only applies to presets with trials"],
        ),
        (["--preset", "point", "--trials", "1", "--threshold", "0.5"], ["--threshold only applies"]),
        (["--preset", "grabcut", "--trials", "1", "--stop-change", "1"], ["stop_change 1.0"]),
        (
            ["--preset", "lca", "--trials", "1", "--crf-gaussian", "1", "2"],
            ["--crf-gaussian only applies with --refine crf"],
        ),
        (["--preset", "paper", "--threshold", "0.5"], ["--threshold only applies with --refine threshold"]),
        (["--crf-iterations", "-1"], ["iterations", "-1"]),
        (["--crf-gaussian", "0", "3"], ["gaussian_sxy", "0"]),
        (["--crf-bilateral", "32", "-13", "10"], ["bilateral_srgb", "-13"]),
        (["--jitter", "-1"], ["jitter"]),
        (["--device", "tpu"], ["device", "tpu"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--list", "missing.txt"], ["missing.txt"]),
        (["--points", "missing.csv"], ["missing.csv"]),
    ],
)
def test_bad_arguments_end_with_two_and_one_line(data, tmp_path, capsys, more, parts):
    assert label(data, tmp_path / "out", *more) == 2
    line = error_of(capsys)
    assert all(part in line for part in parts)


def test_folders_without_use_are_named(data, tmp_path, capsys):
    assert main(["label", "--images", "nowhere", "--points", "x.csv", "--out", str(tmp_path / "o")]) == 2
    assert "nowhere" in error_of(capsys)
    empty = tmp_path / "points.csv"
    empty.write_text("image,x,y\n")
    assert label(data, tmp_path / "o", "--points", empty) == 2
    assert "points.csv" in error_of(capsys)
    block = tmp_path / "file"
    block.write_text("")
    assert label(data, block) == 2
    assert str(block) in error_of(capsys)
    names = tmp_path / "names.txt"
    names.write_text("nobody\n")
    assert label(data, tmp_path / "o", "--list", names) == 2
    assert "names.txt" in error_of(capsys)


def test_unknown_argument_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["label", "--frobnicate"])
    assert stop.value.code == 2
    assert "--help" in error_of(capsys)


def test_resume_and_overwrite_exclude_each_other(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        label(data, tmp_path / "out", "--resume", "--overwrite")
    assert stop.value.code == 2
    assert "not allowed with" in error_of(capsys)


def test_score_of_the_truth_is_perfect(data, tmp_path, capsys):
    report = tmp_path / "score.json"
    masks = str(data / "masks")
    assert main(["score", "--pred", masks, "--truth", masks, "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert result["iou"] == result["pd"] == result["f1"] == 1
    assert result["fa"] == 0
    assert "1.0000" in capsys.readouterr().out


def test_score_reports_missing_and_unequal_masks(data, tmp_path, capsys):
    pred = tmp_path / "pred"
    pred.mkdir()
    for path in (data / "masks").glob("*.png"):
        Image.open(path).save(pred / path.name)
    Image.new("L", (5, 5)).save(pred / "stranger.png")
    Image.new("L", (5, 5)).save(pred / "synthetic_00000.png")
    assert main(["score", "--pred", str(pred), "--truth", str(data / "masks"), "--strict"]) == 1
    shown = capsys.readouterr().err
    assert "stranger" in shown
    assert "synthetic_00000: the prediction is 5x5 but the truth 80x72" in shown
    assert main(["score", "--pred", str(data / "masks"), "--truth", str(data / "masks"), "--strict"]) == 0
    (pred / "synthetic_00001.png").unlink()
    (pred / "stranger.png").unlink(), (pred / "synthetic_00000.png").unlink()
    capsys.readouterr()
    assert main(["score", "--pred", str(pred), "--truth", str(data / "masks")]) == 0
    assert "2 true masks" in capsys.readouterr().out
    assert main(["score", "--pred", str(pred), "--truth", str(data / "masks"), "--strict"]) == 1


def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--count", "8", "--epochs", "1"]) == 0
    assert json.loads((out / "labels.json").read_text())["iou"] > 0.5
    assert json.loads((out / "test.json").read_text())["images"] == 2
    assert (out / "run" / "labels" / "overview.png").exists()
    assert (out / "run" / "report" / "report.md").exists()
    assert (out / "test" / "best.png").exists()
    assert len(find_files(out / "predictions" / "overlays")) == 2
    assert main(["demo", "--out", str(out), "--count", "4", "--epochs", "1"]) == 0
    assert len(find_files(out / "run" / "labels" / "masks")) == 3
    capsys.readouterr()
    assert main(["demo", "--out", str(out), "--count", "3"]) == 2


def test_a_reader_that_has_seen_enough_is_no_error(data):
    masks = data / "masks"
    code = f"{sys.executable} -u -m mclc_gpu score --pred {masks} --truth {masks} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
