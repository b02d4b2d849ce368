"""Runs of the fast schedule on a tiny set: resuming, held-out images, budgets, first weights."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_data import Tiny, write_frames

from mclc_gpu.data.datasets import Sample
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import PooledBatchNorm2d
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.score.metrics import SCORES, Result
from mclc_gpu.train import fit as fitting
from mclc_gpu.train.config import FastConfig, TrainConfig
from mclc_gpu.train.data import open_training_set
from mclc_gpu.train.fit import fit
from mclc_gpu.train.heldout import hold_out
from mclc_gpu.train.trainer import MovingAverage, Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return write_frames(tmp_path_factory.mktemp("frames"), 20, side=60)


FAST = FastConfig(stages="32:.5,48:.5", step_pixels=5000, rounds=4)


def settings(**changes: Any) -> TrainConfig:
    return replace(TrainConfig("tiny", mpixels=0.2, fast=FAST), **changes)


@pytest.fixture(scope="module")
def undisturbed(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("run")
    fit(samples, settings(), out, device="cpu")
    return out


def recorded(out: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


def interrupt(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Stop the run that follows before round `last`."""
    original = Trainer.run_epoch

    def interrupted(self: Trainer, epoch: int) -> tuple[float, float, int]:
        if epoch == last:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)


@pytest.mark.parametrize("last", [1, 3])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    undisturbed: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """With false alarms, pasted targets, jitter and a moving average."""
    with monkeypatch.context() as patch:
        interrupt(patch, last)
        with pytest.raises(KeyboardInterrupt):
            fit(samples, settings(), tmp_path, device="cpu")
    fit(samples, settings(), tmp_path, device="cpu", resume=True)
    assert (tmp_path / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    for name in ("best.pt", "last.pt"):
        one, other = (torch.load(run / name, weights_only=True) for run in (tmp_path, undisturbed))
        assert_equal(one, other)


def assert_equal(one: Any, other: Any) -> None:
    """Compare the content of two checkpoints bit by bit; their pickled bytes may differ."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    else:
        assert one == other


def test_held_out_images_calibrate_the_threshold(undisturbed: Path) -> None:
    config = recorded(undisturbed)
    assert (config["images"], config["validation_images"], len(config["held_out"])) == (18, 2, 2)
    best, last = (load_checkpoint(undisturbed / name, "cpu") for name in ("best.pt", "last.pt"))
    assert best.threshold is not None
    assert best.threshold == last.threshold
    assert best.state["epoch"] == 4, "without a choice, the last"
    assert best.state["scores"]["iou"] > 0


def test_a_finished_run_goes_on_with_a_larger_budget(
    undisturbed: Path, samples: list[Sample], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit(samples, settings(), out, device="cpu")
    fitted = fit(samples, settings(mpixels=0.3), out, device="cpu", resume=True)
    assert len(fitted.rows) == 6
    assert fitted.rows[-1]["mpixels"] == pytest.approx(0.3, abs=0.01)
    assert fitted.rows[4]["lr"] > fitted.rows[3]["lr"], "along the curve of the larger budget"
    assert (recorded(out)["settings"]["pixels"], recorded(out)["settings"]["rounds"]) == (300_000, 6)
    with pytest.raises(InputError, match=r"was begun with mpixels 0\.3, not 0\.2"):
        fit(samples, settings(), out, device="cpu", resume=True)


def test_minutes_are_measured_once_and_recorded(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(mpixels=None, minutes=0.005)
    with monkeypatch.context() as patch:
        interrupt(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            fit(samples, config, tmp_path, device="cpu")
    pixels = recorded(tmp_path)["settings"]["pixels"]
    assert pixels > 0
    fitted = fit(samples, config, tmp_path, device="cpu", resume=True)
    assert recorded(tmp_path)["settings"]["pixels"] == pixels
    assert fitted.rows[-1]["mpixels"] * 1e6 == pytest.approx(pixels, abs=10_000)
    assert recorded(tmp_path)["settings"]["minutes"] == 0.005


def test_training_starts_from_the_weights_of_a_checkpoint(
    undisturbed: Path, samples: list[Sample], tmp_path: Path
) -> None:
    first = undisturbed / "best.pt"
    config = settings(mpixels=0.02)
    cold = fit(samples, config, tmp_path / "cold", device="cpu")
    warm = fit(samples, config, tmp_path / "warm", init=first, device="cpu")
    assert warm.rows[0]["loss"] < 0.7 * cold.rows[0]["loss"]
    assert len(recorded(tmp_path / "warm")["settings"]["init"]) == 32
    with pytest.raises(InputError, match="holds tiny with 1 channels, not acm with 1"):
        fit(samples, replace(config, network="acm"), tmp_path / "other", init=first, device="cpu")
    with pytest.raises(InputError, match="was begun with init None"):
        fit(samples, config, tmp_path / "cold", init=first, device="cpu", resume=True)


def test_every_part_can_be_switched_off(samples: list[Sample], tmp_path: Path) -> None:
    off = FastConfig(
        stages="32:1", step_pixels=5000, rounds=2, target_share=0, margin=0, hard_share=0, average=0, prior=0,
        warmup=0, weight_decay=0, freeze=1, paste_share=0, scale_jitter=0, gain_jitter=0,
    )  # fmt: skip
    fitted = fit(samples, settings(fast=off, mpixels=0.05, hold_out=0.0), tmp_path, device="cpu")
    assert (len(fitted.rows), fitted.threshold, fitted.held_out) == (2, None, False)
    state = load_checkpoint(fitted.last, "cpu").state
    assert not state.keys() & {"weights", "updates", "hard"}


def test_given_validation_images_choose_the_epoch_and_overlap_is_told(
    samples: list[Sample], tmp_path: Path
) -> None:
    config = settings(validate_every=1)
    fitted = fit(samples, config, tmp_path, validation=samples[:2], device="cpu")
    scores = [row["iou"] for row in fitted.rows]
    assert fitted.best_epoch == 1 + scores.index(max(scores))
    assert fitted.in_both == recorded(tmp_path)["in_both"] == ["frame0", "frame1"]
    assert load_checkpoint(fitted.best, "cpu").threshold is not None


def test_the_threshold_of_a_run_is_that_of_its_best_epoch(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = itertools.count(1)

    def worse_and_worse(*_: Any) -> tuple[Any, int]:
        number = next(validations)
        return Result(dict.fromkeys(SCORES, math.nan) | {"iou": 1 / number}, 0, 0, 0, 0, 0, 0, 0, {}), number

    monkeypatch.setattr(fitting, "validate", worse_and_worse)
    monkeypatch.setattr(fitting, "choose_threshold", lambda number: SimpleNamespace(threshold=number / 100))
    config = settings(validate_every=1, mpixels=0.05)
    first = fit(samples, config, tmp_path, validation=samples[:2], device="cpu")
    again = fit(samples, config, tmp_path, validation=samples[:2], device="cpu", resume=True)
    for fitted in (first, again):
        assert (fitted.best_epoch, fitted.threshold) == (1, 0.01)
    assert load_checkpoint(first.best, "cpu").threshold == 0.01
    assert load_checkpoint(first.last, "cpu").threshold == len(first.rows) / 100


def test_held_out_images_that_cannot_be_read_stop_no_run(tmp_path: Path) -> None:
    frames = write_frames(tmp_path, 20, side=60)
    for held in hold_out(frames, 0.1)[1]:
        held.image.write_bytes(b"damaged")
    fitted = fit(frames, settings(mpixels=0.01), tmp_path / "run", device="cpu")
    assert (fitted.validation, fitted.held_out, fitted.threshold) == ([], False, None)
    assert len(fitted.skipped) == 2
    given = hold_out(frames, 0.1)[1]
    with pytest.raises(InputError, match="nothing to validate on"):
        fit(frames, settings(mpixels=0.01), tmp_path / "other", validation=given, device="cpu")


def test_a_network_that_marks_everything_is_reported(samples: list[Sample], tmp_path: Path) -> None:
    config = settings(mpixels=0.006, lr=1e-9, fast=replace(FAST, prior=10.0))
    fitted = fit(samples, config, tmp_path, device="cpu")
    assert fitted.flooded
    assert not fitted.collapsed


def test_the_average_follows_the_weights() -> None:
    network = torch.nn.Linear(1, 1)
    average = MovingAverage(network, 0.15)
    expected = network.weight.item()
    for update in range(4):
        with torch.no_grad():
            network.weight.fill_(float(update))
        average.update()
        decay = min(0.15, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        assert average.network.weight.item() == pytest.approx(expected)


class Pooling(Tiny):
    """A detector with a batch norm behind a global pooling."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.pooled = PooledBatchNorm2d(8)
        self.body.append(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), self.pooled, torch.nn.Flatten(2)))
        self.body[-1].register_forward_hook(lambda _, given, out: given[0] + out[..., None])


def test_pooled_norms_keep_their_statistics_in_the_second_half(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "pooling", Pooling)
    trainer = Trainer(settings(network="pooling"), open_training_set(samples, 1, CPU), Ranks(CPU))
    (pooled,) = trainer.pooled
    means = []
    for number in range(4):
        trainer.run_epoch(number)
        means.append(pooled.running_mean.clone())
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[2], means[3])
    assert pooled.weight.grad is not None, "its gain and bias still learn"
