"""Contests of training against the field's usual loop, with the same network, loss and optimiser.

The peer reads every image from its file each epoch in the workers of a DataLoader, crops and flips it there
with numpy and hands batches to the device; its loop asks for the loss after every step. It trains in float32
and in channels-first layout, as published loops do. Both are also timed without the network: data alone.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DataLoader

from mclc_gpu.bench.contest import Contest, Contestant, clocked
from mclc_gpu.bench.ground import Ground
from mclc_gpu.bench.plain_crops import PlainCrops
from mclc_gpu.data.crops import plan_epoch
from mclc_gpu.data.training_set import Sample, TrainingSet, open_training_set
from mclc_gpu.distributed import Ranks
from mclc_gpu.losses import detector_loss
from mclc_gpu.networks.zoo import build
from mclc_gpu.training import OPTIMIZERS, TrainConfig, Trainer

Batch = tuple[torch.Tensor, torch.Tensor]
PEER = "DataLoader loop"


def peer_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Batches of the peer, on the device, without end."""
    files = [(sample.image, sample.mask) for sample in data.samples]
    loader = DataLoader(
        PlainCrops(files, data.mean, data.std, config.size, config.batch_size),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=min(os.cpu_count() or 1, 8),
        persistent_workers=True,
        # Forked from a process with threads, as this one is, workers may hang when they are to end.
        multiprocessing_context="spawn",
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


def _steps(step: Callable[[Batch], object], batches: Iterator[Batch], count: int) -> None:
    for batch in islice(batches, count):
        step(batch)


def _own_step(trainer: Trainer, batch: Batch) -> torch.Tensor:
    return trainer.step(*batch)


def _nothing(batch: Batch) -> None:
    del batch


def data_alone(ground: Ground) -> Contest:
    """Batches without the network."""
    data, config = _opened(ground)
    # Many of them, so that what workers had ready before the clock hardly counts.
    steps = ground.of(30, 4)
    contestants = []
    both = (("mclc-gpu", own_batches(data, config)), (PEER, _started(peer_batches(data, config))))
    for name, batches in both:
        run = clocked(partial(_steps, _nothing, batches, steps), ground.device)
        contestants.append(Contestant(name, run, steps, own=name != PEER))
    return Contest(f"data alone, {_batch_of(config)}", "steps", contestants, ground.time(6))


def training(ground: Ground) -> Contest:
    """Whole steps: batch, network forward and backward, optimiser.

    What the workers of the peer read ahead they read in this package's turn, which favours the peer a little.
    """
    data, config = _opened(ground)
    steps = ground.of(20 if ground.device.type == "cuda" else 1, 1)
    configs = {"mclc-gpu": config}
    if ground.device.type == "cuda":
        configs["mclc-gpu, bfloat16"] = replace(config, amp=True)
    contestants = []
    for name, own in configs.items():
        trainer = Trainer(own, data, Ranks(data.device))
        work = partial(_steps, partial(_own_step, trainer), own_batches(data, own), steps)
        contestants.append(Contestant(name, clocked(work, ground.device), steps, own=True))
    peer = partial(_steps, peer_step(data, config), _started(peer_batches(data, config)), steps)
    contestants.append(Contestant(PEER, clocked(peer, ground.device), steps))
    return Contest(f"training {config.network}, {_batch_of(config)}", "steps", contestants, ground.time(12))


CONTESTS: dict[str, Callable[[Ground], Contest]] = {"data": data_alone, "training": training}


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches after the first, which starts the workers."""
    next(batches)
    return batches


def _opened(ground: Ground) -> tuple[TrainingSet, TrainConfig]:
    samples = [Sample(name, image, mask) for name, (image, mask) in ground.pairs.items()]
    config = TrainConfig("acm", size=ground.of(256, 32), batch_size=ground.of(16, 2))
    return open_training_set(samples, config.channels, ground.device), config


def _batch_of(config: TrainConfig) -> str:
    return f"{config.batch_size} crops of {config.size}x{config.size}"
