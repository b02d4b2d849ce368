"""The score command on probability maps, and by the historical convention."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path):
    """a: a target at 0.75 and a false alarm of its area at 0.625; b: a target at 0.375, 8 bit."""
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
    truth = np.zeros((20, 20), np.uint8)
    truth[4:6, 4:6] = 255
    deep = np.where(truth > 0, 49151, 0).astype(np.uint16)
    deep[15:17, 15:17] = 40960
    Image.fromarray(deep).save(tmp_path / "pred" / "a.png")
    Image.fromarray(np.where(truth > 0, 96, 0).astype(np.uint8)).save(tmp_path / "pred" / "b.png")
    for name in "ab":
        Image.fromarray(truth).save(tmp_path / "truth" / f"{name}.png")
    return tmp_path


def score(folders, *more: object) -> tuple[int, dict]:
    report = folders / "score.json"
    argv = ["score", "--pred", folders / "pred", "--truth", folders / "truth", "--json", report, *more]
    code = main([str(word) for word in argv])
    return code, json.loads(report.read_text()) if code != 2 else {}


def test_probability_maps_at_a_threshold(folders):
    for threshold, detected, alarms in ((0.3, 2, 4), (0.5, 1, 4), (0.7, 1, 0), (0.8, 0, 0)):
        code, result = score(folders, "--threshold", threshold)
        assert (code, result["detected"], result["false_alarm_pixels"]) == (0, detected, alarms)
        assert "roc" not in result


def test_the_curve_and_its_plot(folders, capsys):
    code, result = score(folders, "--roc", folders / "curve" / "roc.png")
    assert (code, result["detected"], result["false_alarm_pixels"]) == (0, 1, 4)
    roc = result["roc"]
    at = {threshold: index for index, threshold in enumerate(roc["thresholds"])}
    assert [roc["pd"][at[t]] for t in (0.25, 0.5, 0.75)] == [1, 0.5, 0]
    assert [roc["fa"][at[t]] for t in (0.25, 0.5, 0.6875)] == [4 / 800, 4 / 800, 0]
    assert roc["iou"][at[0.6875]] == 4 / 8
    assert Image.open(folders / "curve" / "roc.png").size[0] > 500
    assert "highest F1" in capsys.readouterr().out


def test_the_historical_convention(folders, capsys):
    assert score(folders, "--threshold", 0.5, "--convention", "dnanet")[1]["false_alarm_pixels"] == 0
    assert "convention dnanet" in capsys.readouterr().out
    code, result = score(folders, "--roc", folders / "roc.png", "--convention", "dnanet")
    assert (code, result["convention"], max(result["roc"]["fa"])) == (0, "dnanet", 0)


def test_files_that_are_no_probability_maps_are_skipped(folders, capsys):
    Image.fromarray(np.full((20, 20, 3), [1, 2, 3], np.uint8)).save(folders / "pred" / "b.png")
    code, result = score(folders, "--threshold", 0.5, "--strict")
    assert (code, result["images"], result["skipped"]) == (1, 1, 1)
    assert "b.png" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--roc", "--json", "--report"])
@pytest.mark.parametrize("folder", ["pred", "truth"])
def test_what_is_written_never_replaces_an_input(folders, capsys, option, folder):
    path = folders / folder / "a.png"
    before = path.read_bytes()
    argv = ["score", "--pred", folders / "pred", "--truth", folders / "truth", option, path]
    assert main([str(word) for word in argv]) == 2
    assert path.read_bytes() == before
    error = capsys.readouterr().err
    assert (
        f"{folders / folder}: is an input, and {option} would write there; choose another {option}" in error
    )


@pytest.mark.parametrize("value", ["-1", "1.01", "nan"])
def test_a_threshold_is_a_probability(folders, capsys, value):
    assert score(folders, "--threshold", value)[0] == 2
    assert f"--threshold {value}" in capsys.readouterr().err


def test_scoring_masks_needs_neither_torch_nor_matplotlib(folders):
    argv = ["score", "--pred", folders / "truth", "--truth", folders / "truth"]
    code = (
        "import sys; from mclc_gpu.cli.main import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'matplotlib', 'triton') if m in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, argv)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "[]")
