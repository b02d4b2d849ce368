"""The commands predict and evaluate with a detector that needs no training."""

import csv
import json

import numpy as np
import pytest
from bright import write_scene
from PIL import Image

from mclc_gpu import runs as journal
from mclc_gpu.classical.config import MethodOptions
from mclc_gpu.cli.main import main
from mclc_gpu.data.images import read_mask, read_probability
from mclc_gpu.data.names import find_files

TARGET = (20, 30, 3, 3)


@pytest.fixture
def data(tmp_path):
    """a and b: a target; c: constant; d: color, of another size; deep: 16 bit."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a", "b"):
        write_scene(images, name, {TARGET: 200, (5, 5, 1, 1): 60})
        write_scene(masks, name, {TARGET: 255})
    write_scene(images, "c", {})
    Image.fromarray(np.repeat(np.asarray(Image.open(images / "a.png"))[:30, :, None], 3, 2)).save(
        images / "d.png"
    )
    Image.fromarray(np.asarray(Image.open(images / "a.png")).astype(np.uint16) * 100).save(
        images / "deep.png"
    )
    for name in ("c", "d", "deep"):
        found = np.asarray(Image.open(images / f"{name}.png").convert("L")) * 0
        if name != "c":
            found[20:23, 30:33] = 255
        Image.fromarray(found).save(masks / f"{name}.png")
    return tmp_path


def run(data, command: str, *more: object) -> int:
    where = ["--out", data / "out"] if command == "predict" else ["--masks", data / "masks"]
    return main([str(word) for word in [command, "--images", data / "images", *where, *more]])


def table(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("method", ["tophat", "mpcm", "wslcm"])
def test_targets_are_found_without_training(data, method, capsys):
    assert run(data, "predict", "--method", method) == 0
    out = data / "out"
    detections = table(out / "detections.csv")[1:]
    assert [row[0] for row in detections] == ["a", "b", "d", "deep"]
    for row in detections:
        assert abs(float(row[1]) - 31) <= 1
        assert abs(float(row[2]) - 21) <= 1
    thresholds = dict(table(out / "thresholds.csv")[1:])
    assert set(thresholds) == set(find_files(data / "images"))
    for name, path in find_files(out / "probability").items():
        probability = read_probability(path)
        mask = read_mask(out / "masks" / f"{name}.png") if name != "c" else np.zeros((40, 50), bool)
        np.testing.assert_array_equal(mask, probability > np.float32(thresholds[name]))
    summary = json.loads((out / "predict.json").read_text())
    assert summary["method"]["name"] == method
    assert summary["settings"] == {"map_scale": "image", "rule": "k-sigma", "k": MethodOptions().sigmas}
    assert "by the rule k-sigma" in capsys.readouterr().out


def test_evaluate_states_rule_and_thresholds(data, capsys):
    numbers, report = data / "scores.json", data / "report"
    rule = ["--threshold-rule", "adaptive"]
    more = [*rule, "--json", numbers, "--out", report, "--roc", data / "roc.png"]
    assert run(data, "evaluate", "--method", "tophat", "--parameter", "radius=4", *more) == 0
    content = json.loads(numbers.read_text())
    assert (content["pd"], content["fa"], content["iou"]) == (1, 0, 1)
    assert content["thresholds"] == {"a": 0.7, "b": 0.7, "c": 0, "d": 0.7, "deep": 0.7}
    assert content["method"]["parameters"]["radius"] == 4
    assert content["rule"] == "adaptive"
    assert "rule adaptive, thresholds 0 to 0.7" in capsys.readouterr().out
    text = (report / "report.md").read_text()
    assert "| rule | adaptive |" in text
    assert "| parameters.radius | 4 |" in text


def test_rules_and_scales(data):
    common = ["--method", "tophat", "--overwrite"]
    assert run(data, "predict", *common, "--threshold-rule", "top-n", "--top", "10") == 0
    mask = read_mask(data / "out" / "masks" / "a.png")
    assert np.count_nonzero(mask) == 10
    assert run(data, "predict", *common, "--threshold-rule", "k-sigma", "--sigmas", "400") == 0
    assert table(data / "out" / "detections.csv")[1:] == []
    fixed = ["--threshold-rule", "fixed", "--threshold", "0.1", "--map-scale", "gray"]
    assert run(data, "predict", *common, *fixed) == 0
    assert len(table(data / "out" / "detections.csv")[1:]) == 4 + 4
    settings = json.loads((data / "out" / "predict.json").read_text())["settings"]
    assert settings == {"map_scale": "gray", "rule": "fixed", "threshold": 0.1}


def test_a_run_resumes_to_the_same_bytes(data, monkeypatch, capsys):
    def files() -> dict[str, bytes]:
        out = data / "out"
        return {
            str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.*")) if p.suffix != ".json"
        }

    (data / "images" / "bad.png").write_bytes(b"no image")
    assert run(data, "predict", "--method", "wslcm", "--strict") == 1
    assert "bad.png" in capsys.readouterr().err
    whole = files()
    append = journal.Journal.append

    def stop_after_three(self, record):
        append(self, record)
        if self.path.read_text().count("\n") > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", stop_after_three)
        assert run(data, "predict", "--method", "wslcm", "--overwrite") == 130
    capsys.readouterr()
    for more in (["--parameter", "median=1"], ["--threshold-rule", "top-n"]):
        assert run(data, "predict", "--method", "wslcm", "--resume", *more) == 2
        assert "other settings" in capsys.readouterr().err
    assert run(data, "predict", "--method", "wslcm", "--resume") == 0
    assert files() == whole


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([], ["--checkpoint", "--method"]),
        (["--method", "tophat", "--checkpoint", "c.pt"], ["--checkpoint", "--method"]),
        (["--method", "hat"], ["--method", "hat", "tophat"]),
        (["--method", "tophat", "--parameter", "size=3"], ["size=3", "radius=5"]),
        (["--method", "tophat", "--parameter", "radius=65"], ["radius=65", "1..64"]),
        (["--method", "tophat", "--threshold", "0.3"], ["--threshold", "fixed"]),
        (["--method", "tophat", "--threshold-rule", "adaptive", "--sigmas", "3"], ["--sigmas", "k-sigma"]),
        (["--method", "tophat", "--threshold-rule", "k-sigma", "--sigmas", "-1"], ["--sigmas -1"]),
        (["--method", "tophat", "--threshold-rule", "top-n", "--top", "0"], ["--top 0"]),
        (["--method", "tophat", "--tile", "512"], ["--tile", "--checkpoint"]),
        (["--method", "wslcm", "--map-scale", "gray"], ["--map-scale gray"]),
        (["--checkpoint", "c.pt", "--top", "3"], ["--top", "--method"]),
    ],
)
def test_bad_arguments_end_with_two_and_one_line(data, capsys, more, parts):
    try:
        code = run(data, "predict", *more)
    except SystemExit as stopped:  # argparse, for options that exclude each other
        code = stopped.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts)
    assert not (data / "out").exists()
