"""Training steps per second beside the field's usual loop, with the same network, loss and optimiser.

    python -m mclc_gpu.bench.bench_train --images DIR --masks DIR [--list TXT] [--network acm] [--size 256]

The peer reads every image from its file each epoch in the workers of a DataLoader, crops and flips it there
with numpy and hands batches to the device; its loop asks for the loss after every step. It trains in float32
and in channels-first layout, as published loops do. Both are also timed without the network: data alone.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mclc_gpu.bench.tables import machine
from mclc_gpu.data.crops import plan_epoch
from mclc_gpu.data.datasets import read_list, select
from mclc_gpu.data.images import find_files
from mclc_gpu.data.training_set import Sample, TrainingSet, open_training_set, pair_samples
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device, synchronize
from mclc_gpu.losses import detector_loss
from mclc_gpu.networks.zoo import build
from mclc_gpu.training import OPTIMIZERS, TrainConfig, Trainer

Batch = tuple[torch.Tensor, torch.Tensor]


class PlainCrops(Dataset[Batch]):
    """Random crops and flips of files, one by one: what a detector's repository usually holds."""

    def __init__(self, data: TrainingSet, size: int) -> None:
        self.data, self.size = data, size

    def __len__(self) -> int:
        return len(self.data.samples)

    def __getitem__(self, index: int) -> Batch:
        sample, size = self.data.samples[index], self.size
        image = np.asarray(Image.open(sample.image).convert("L"), np.float32)
        mask = np.asarray(Image.open(sample.mask).convert("L"), np.float32) / 255
        planes = np.stack([(image - self.data.mean) / self.data.std, mask])
        missing = [(0, max(0, size - length)) for length in image.shape]
        planes = np.pad(planes, [(0, 0), *missing])
        top, left = (np.random.randint(length - size + 1) for length in planes.shape[1:])  # noqa: NPY002
        planes = planes[:, top : top + size, left : left + size]
        for axis in (1, 2):
            if np.random.random() < 0.5:  # noqa: NPY002
                planes = np.flip(planes, axis)
        if np.random.random() < 0.5:  # noqa: NPY002
            planes = planes.transpose(0, 2, 1)
        planes = np.ascontiguousarray(planes)
        return torch.from_numpy(planes[:1]), torch.from_numpy(planes[1:])


def peer_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Batches of the peer, on the device, without end."""
    loader = DataLoader(
        PlainCrops(data, config.size),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=min(os.cpu_count() or 1, 8),
        persistent_workers=True,
        pin_memory=data.device.type == "cuda",
    )
    while True:
        for images, truth in loader:
            yield images.to(data.device, non_blocking=True), truth.to(data.device, non_blocking=True)


def own_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Batches of this package, without end."""
    epoch = 0
    while True:
        plan = plan_epoch(len(data.samples), 8 * config.batch_size, config.seed, epoch)
        yield from data.batches(plan, config.batch_size, config.size)
        epoch += 1


def peer_step(data: TrainingSet, config: TrainConfig) -> Callable[[Batch], object]:
    """One step of the peer."""
    network = build(config.network).to(data.device)
    kind, lr = OPTIMIZERS[config.optimizer]
    optimizer = kind(network.parameters(), lr=lr)

    def step(batch: Batch) -> float:
        images, truth = batch
        loss = detector_loss(network(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def rate(
    step: Callable[[Batch], object], batches: Iterator[Batch], steps: int, device: torch.device
) -> float:
    """Steps per second."""
    synchronize(device)
    start = time.perf_counter()
    for batch in islice(batches, steps):
        step(batch)
    synchronize(device)
    return steps / (time.perf_counter() - start)


def measure(data: TrainingSet, config: TrainConfig, steps: int, rounds: int) -> dict[str, list[float]]:
    """Rates in steps per second, round by round, the four kinds in turn so that drift meets all alike."""
    trainer = Trainer(config, data, Ranks(data.device))
    own, peer = own_batches(data, config), peer_batches(data, config)

    def nothing(batch: Batch) -> None:
        del batch

    kinds: dict[str, tuple[Callable[[Batch], object], Iterator[Batch]]] = {
        "data alone, DataLoader": (nothing, peer),
        "data alone, mclc-gpu": (nothing, own),
        "training, DataLoader loop": (peer_step(data, config), peer),
        "training, mclc-gpu": (lambda batch: trainer.step(*batch), own),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, (step, batches) in kinds.items():
            # Without the network many more, so that what workers had ready before the clock hardly counts.
            measured = rate(step, batches, steps if step is not nothing else 20 * steps, data.device)
            if number:  # the first round warms up
                rates[name].append(measured)
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rates; returns the exit code."""
    parser = argparse.ArgumentParser(description="Training steps per second beside a plain DataLoader loop.")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--list", type=Path)
    parser.add_argument("--network", default="acm")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--amp", action="store_true", help="this package's training in bfloat16")
    parser.add_argument("--compile", help="mode of torch.compile for this package's training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    try:
        config = TrainConfig(
            arguments.network, size=arguments.size, amp=arguments.amp, compile=arguments.compile
        )
        data = open_training_set(_samples(arguments), 1, pick_device(arguments.device))
    except (InputError, ValueError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    rates = measure(data, config, arguments.steps, arguments.rounds)
    print(
        f"{config.network}, {config.batch_size} crops of {config.size}x{config.size}; {machine(data.device)}"
    )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:27}{medians[name]:10.2f} steps/s ({min(values):.2f} to {max(values):.2f})")
    for what, peer in (("data alone", "DataLoader"), ("training", "DataLoader loop")):
        print(f"ratio, {what:20}{medians[f'{what}, mclc-gpu'] / medians[f'{what}, {peer}']:10.2f}")
    return 0


def _samples(arguments: argparse.Namespace) -> list[Sample]:
    files = find_files(arguments.images)
    if arguments.list is not None:
        files, _ = select(files, read_list(arguments.list))
    samples, _ = pair_samples(files, find_files(arguments.masks))
    return samples


if __name__ == "__main__":
    sys.exit(main())
