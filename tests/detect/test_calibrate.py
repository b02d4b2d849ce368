"""Thresholds chosen on few images, from checkpoints and from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from bright import Bright, bright_predictor, probability_of, write_scene
from PIL import Image

from mclc_gpu.cli.main import main
from mclc_gpu.data.images import read_mask
from mclc_gpu.detect.calibrate import choose_threshold
from mclc_gpu.detect.checkpoint import Normalization, save_checkpoint
from mclc_gpu.detect.evaluate import score_network
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.score.roc import RocScores


def curve_of(*pairs: tuple[np.ndarray, np.ndarray]):
    scores = RocScores()
    for probability, truth in pairs:
        scores.update(probability.astype(np.float32), truth)
    return scores.compute()


def targets(levels: list[float], background: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One target of 4 x 25 px whose pixels have these levels in turn."""
    truth = np.zeros((64, 64), bool)
    truth[10:14, 10:35] = True
    probability = np.full(truth.shape, background)
    probability[truth] = np.resize(levels, truth.sum())
    return probability, truth


def test_the_threshold_lies_between_the_middle_of_the_plateau_and_half_of_f1():
    # Background clears at 0.1; 4 % of the pixels of each target vanish at 0.3, the others at 0.8.
    pair = targets([0.3] * 4 + [0.8] * 96, background=0.1)
    for count, expected in ((1, 0.5 - 0.3 / 31), (30, 0.35), (270, 0.2 + 0.3 / 10)):
        chosen = choose_threshold(curve_of(*[pair] * count))
        assert chosen is not None
        assert (chosen.low, chosen.high) == (pytest.approx(0.1, abs=1 / 128), pytest.approx(0.3, abs=1 / 128))
        assert chosen.threshold == pytest.approx(expected, abs=1 / 128)
        assert chosen.iou == (1 if expected < 0.3 else pytest.approx(0.96))
        assert (chosen.pd, chosen.fa) == (1, 0)
        assert (chosen.images, chosen.targets) == (count, count)
    names = set(json.loads(json.dumps(chosen.as_dict())))
    assert names == {"threshold", "low", "high", "iou", "pd", "fa", "images", "targets"}


def test_a_narrow_maximum_at_the_end_is_not_followed():
    # Half a percent more target pixels below 0.1 do not outweigh the plateau up to 0.9.
    chosen = choose_threshold(curve_of(*[targets([0.9] * 199 + [0.1]) for _ in range(3)]))
    assert chosen is not None
    assert 0.4 < chosen.threshold < 0.6


@pytest.mark.parametrize(("level", "background"), [(0.3, 0.05), (0.95, 0.7)])
def test_half_of_f1_does_not_cost_the_targets(level, background):
    chosen = choose_threshold(curve_of(targets([level], background)))
    assert chosen is not None
    assert background <= chosen.threshold < level
    assert chosen.iou == 1


def test_nothing_to_choose_by():
    empty = np.zeros((8, 8))
    assert choose_threshold(curve_of((empty, empty > 0))) is None
    assert choose_threshold(curve_of((empty, empty == 0))) is None


def test_a_detector_is_calibrated(tmp_path):
    write_scene(tmp_path, "a", {(5, 6, 3, 3): 138, (30, 40, 2, 2): 125})
    truth = np.zeros((40, 50), bool)
    truth[5:8, 6:9] = True
    image = np.asarray(Image.open(tmp_path / "a.png"))
    counts = RocScores()
    score_network(bright_predictor(), [("a", image, truth)], roc=counts)
    chosen = choose_threshold(counts.compute())
    assert chosen is not None
    assert chosen.low == pytest.approx(probability_of(125), abs=1 / 128)
    assert chosen.high == pytest.approx(probability_of(138), abs=1 / 128)
    assert (chosen.iou, chosen.pd, chosen.fa) == (1, 1, 0)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A target of probability 0.73, another of 0.43, and checkpoints with threshold 0.4 and without one."""
    monkeypatch.setitem(NETWORKS, "bright", Bright)
    write_scene(tmp_path / "images", "a", {(5, 6, 3, 3): 138, (30, 40, 2, 2): 125})
    write_scene(tmp_path / "masks", "a", {(5, 6, 3, 3): 255})
    for name, threshold in (("plain", None), ("calibrated", 0.4)):
        save_checkpoint(
            tmp_path / f"{name}.pt",
            network=Bright(),
            name="bright",
            in_channels=1,
            normalization=Normalization(0.0, 1.0),
            settings={},
            state={},
            threshold=threshold,
        )
    return tmp_path


@pytest.mark.parametrize(
    ("checkpoint", "more", "value", "source", "found"),
    [
        ("plain", [], 0.5, "default", 1),
        ("calibrated", [], 0.4, "checkpoint", 2),
        ("calibrated", ["--threshold", "0.6"], 0.6, "given", 1),
        ("plain", ["--threshold", "0.4"], 0.4, "given", 2),
    ],
)
def test_given_before_calibrated_before_default(data, capsys, checkpoint, more, value, source, found):
    common = ["--checkpoint", data / f"{checkpoint}.pt", "--images", data / "images", *more]
    predict = ["predict", *common, "--out", data / "out"]
    evaluate = [
        "evaluate",
        *common,
        "--masks",
        data / "masks",
        "--json",
        data / "j.json",
        "--out",
        data / "r",
    ]
    assert main([str(word) for word in predict]) == 0
    assert f"{found} detections at threshold {value:g} (" in capsys.readouterr().out
    summary = json.loads((data / "out" / "predict.json").read_text())
    assert (summary["settings"]["threshold"], summary["threshold_from"]) == (value, source)
    assert summary["detections"] == found
    assert read_mask(data / "out" / "masks" / "a.png").sum() == {1: 9, 2: 13}[found]
    assert main([str(word) for word in evaluate]) == 0
    assert f"threshold {value:g} (" in capsys.readouterr().out
    scores = json.loads((data / "j.json").read_text())
    assert (scores["threshold"], scores["threshold_from"]) == (value, source)
    assert scores["fa"] == pytest.approx({1: 0, 2: 4 / 2000}[found])
    assert f"| threshold | {value:g} (" in (data / "r" / "report.md").read_text()


def test_a_run_resumes_only_with_the_threshold_that_it_used(data, capsys):
    common = ["predict", "--images", data / "images", "--out", data / "out"]

    def run(*more: object) -> int:
        return main([str(word) for word in [*common, *more]])

    assert run("--checkpoint", data / "calibrated.pt") == 0
    assert run("--checkpoint", data / "calibrated.pt", "--resume", "--threshold", "0.4") == 0
    for more in (["--threshold", "0.5"], ["--tta", "flips"]):
        assert run("--checkpoint", data / "calibrated.pt", "--resume", *more) == 2
        assert "other settings" in capsys.readouterr().err


def test_augmentation_is_stated(data, capsys):
    common = ["--checkpoint", data / "plain.pt", "--images", data / "images", "--tta", "flips"]
    assert main([str(word) for word in ["predict", *common, "--out", data / "out"]]) == 0
    assert json.loads((data / "out" / "predict.json").read_text())["settings"]["tta"] == "flips"
    argv = ["evaluate", *common, "--masks", data / "masks", "--json", data / "j.json", "--out", data / "r"]
    assert main([str(word) for word in argv]) == 0
    assert "threshold 0.5 (default), tta flips" in capsys.readouterr().out
    assert json.loads((data / "j.json").read_text())["tta"] == "flips"
    assert "| tta | flips |" in (data / "r" / "report.md").read_text()
