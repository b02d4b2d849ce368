"""Settings of training, and one epoch of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import Tiny, write_frames

from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.train.config import TrainConfig
from mclc_gpu.train.data import open_training_set, plan_epoch, vary_gain
from mclc_gpu.train.schedule import make_schedule
from mclc_gpu.train.trainer import Trainer, share_of_batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield


def settings(**changes: Any) -> TrainConfig:
    return replace(TrainConfig("tiny", "paper", epochs=4, batch_size=4, size=32), **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "unet"}, "network 'unet': use one of acm"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
        ({"loss": "dice"}, "loss 'dice': use one of soft-iou, soft-iou.bce, bce"),
        ({"channels": 2}, "channels 2: use one of 1, 3"),
        ({"compile": "fast"}, "compile 'fast': use one of default"),
        ({"epochs": 0}, "epochs 0: use 1 or more"),
        ({"size": 8}, "size 8: use 16 or more"),
        ({"lr": 0.0}, "lr 0.0: use a number above 0"),
        ({"lr": float("nan")}, "lr nan"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**change)


def rate(config: TrainConfig, epoch: int) -> float:
    (stretch,) = make_schedule(config.resolved(), images=10, least=2, world=1).stretches(epoch)
    assert len(set(stretch.rates)) == 1
    return stretch.rates[0]


def test_the_papers_learning_rate_falls_along_a_cosine() -> None:
    config = TrainConfig(schedule="paper", epochs=100)
    assert rate(config, 0) == 0.05
    assert rate(config, 50) == pytest.approx(0.025)
    assert rate(config, 25) == pytest.approx(0.05 * (1 + 0.5**0.5) / 2)
    assert 0 < rate(config, 99) < 1e-4
    assert rate(replace(config, optimizer="adamw"), 0) == 5e-4
    assert rate(replace(config, optimizer="adamw", lr=1e-3), 0) == 1e-3


def test_a_batch_is_shared_evenly_and_suffices_for_batch_norm() -> None:
    assert share_of_batch(settings(), Ranks(CPU, 0, 2)) == 2
    for world, message in (
        (3, "cannot share it evenly"),
        (4, "use 8 or more"),
        (8, "cannot share it evenly"),
    ):
        with pytest.raises(InputError, match=message):
            share_of_batch(settings(), Ranks(CPU, 0, world))
    assert share_of_batch(settings(network="resunet"), Ranks(CPU, 0, 4)) == 1


def test_an_epoch_counts_what_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_training_set(write_frames(tmp_path), 1, CPU)
    trainer = Trainer(settings(), data, Ranks(CPU))
    seen = []
    original = Trainer.step

    def step(self: Trainer, crops: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        sums = original(self, crops, truth)
        seen.append((crops.shape, sums))
        return sums

    monkeypatch.setattr(Trainer, "step", step)
    loss, crop_iou, marked = trainer.run_epoch(0)
    assert [tuple(shape) for shape, _ in seen] == 2 * [(4, 1, 32, 32)], "the last batch is full too"
    sums = torch.stack([own for _, own in seen]).mean(dim=0) * 2
    assert loss == pytest.approx(sums[0].item() / 2)
    assert crop_iou == pytest.approx((sums[1] / sums[2]).item())
    assert marked == sums[3].item()
    assert 0 < marked < 2 * 4 * 32 * 32


def test_compilation_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    data = open_training_set(write_frames(tmp_path, 1), 1, CPU)
    Trainer(settings(compile="reduce-overhead"), data, Ranks(CPU))
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: waiting for one cannot be seen")
def test_the_host_never_waits_for_the_device_between_steps(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    trainer = Trainer(settings(), open_training_set(write_frames(tmp_path), 1, device), Ranks(device))
    batches = trainer.data.batches(plan_epoch(6, 16, 0, 0), 4, 32)
    trainer.step(*next(batches))  # an epoch's plan is copied at its start
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            trainer.step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: waiting for one cannot be seen")
def test_the_host_never_waits_for_the_device_between_fast_steps(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    config = TrainConfig("acm", mpixels=1)
    trainer = Trainer(config, open_training_set(write_frames(tmp_path), 1, device), Ranks(device))
    hard = torch.tensor([[0, 5], [1, 70]])
    batches = trainer.data.batches(
        plan_epoch(6, 24, 0, 0, trainer.placing, hard), 6, 64, trainer.placing, [50, 64, 70, 80]
    )
    trainer.step(*next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for crops, truth in batches:
            trainer.step(vary_gain(crops, 1.0), truth)
    finally:
        torch.cuda.set_sync_debug_mode("default")
