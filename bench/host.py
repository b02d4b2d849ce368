"""Cost of the label pipeline on the host of a GPU: time, launches, copies and waits, without a GPU."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mclc_gpu.bench.compare import markdown, shown
from mclc_gpu.bench.dataset import Frames
from mclc_gpu.bench.recorder import DEVICE, recorded_device
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.pipeline import (
    by_image,
    cluster_targets,
    compose_levels,
    refine_targets,
    warm_up,
)
from mclc_gpu.labels.placing import place_targets

PRESETS = ("default", "paper")
METHOD = (
    "Images and clicks in memory to masks and 16-bit maps of every image, on a CUDA device that is recorded: "
    "Triton binds and looks up every launch, but no kernel runs, and PyTorch's operations on the device run "
    "on the CPU. host_ms: medians of runs in one thread, in which only launches are recorded; marking "
    "tensors costs some microseconds an operation, about what a launch does. copies, bytes, waits: of one "
    "run after the warm-up, hidden ones too, such as bool(tensor). variants: compiled kernels that chunks "
    "of random images need; unready: those of them that the warm-up did not compile."
)


@dataclass(frozen=True)
class HostScale:
    """Amounts of work: timed runs, and chunks of random images whose variants are counted."""

    repeats: int = 7
    chunks: int = 30


@dataclass
class Clock:
    """Milliseconds of stages, in every run."""

    stages: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage once more."""
        start = time.perf_counter()
        yield
        self.stages.setdefault(stage, []).append((time.perf_counter() - start) * 1e3)

    def medians(self, skipped: int) -> dict[str, float]:
        """Return the median of each stage without the first runs, which warm up."""
        return {stage: statistics.median(runs[skipped:]) for stage, runs in self.stages.items()}


def label(frames: Frames, config: LabelConfig, device: torch.device, clock: Clock | None = None) -> None:
    """Label the frames from their clicks stage by stage, up to the pixels of each image's files."""
    clock = clock or Clock()
    images, points = frames.images, frames.points(0)
    with clock.timed("place"):
        placed, _ = place_targets(images, points, frames.names, config, 0, device)
    with clock.timed("cluster"):
        groups = cluster_targets(images, placed, config, device)
    with clock.timed("refine"):
        targets = refine_targets(placed, groups, config)
    with clock.timed("compose"):
        for image, found in zip(images, by_image(targets, len(images)), strict=True):
            compose_levels(image.shape[:2], found)


def host_costs(frames: Frames, config: LabelConfig, scale: HostScale = HostScale()) -> dict[str, Any]:
    """Measure and count the work of the host for one configuration.

    Returns
    -------
    dict
        host_ms: dict of stage to milliseconds, and their "total". launches, copies, upload_bytes,
        download_bytes, waits, variants, unready: int, see `METHOD`. operations: int, PyTorch's on the device.
        by_kernel: dict of kernel to launches. by_wait: dict of what made the host wait to times.
    """
    frames.points(0)  # simulated from the true masks: no part of the pipeline
    with recorded_device() as record:
        warm_up(config, DEVICE)
        record.clear()
        label(frames, config, DEVICE)
        counts: dict[str, Any] = {
            "launches": len(record.launches),
            "copies": len(record.uploads) + len(record.downloads),
            "upload_bytes": sum(record.uploads),
            "download_bytes": sum(record.downloads),
            "waits": sum(record.waits.values()),
            "operations": sum(record.operations.values()),
            "by_kernel": dict(Counter(launch.kernel for launch in record.launches)),
            "by_wait": dict(record.waits),
        }
    return {
        "host_ms": _milliseconds(frames, config, scale.repeats),
        **counts,
        **_variants(frames, config, scale.chunks),
    }


def _milliseconds(frames: Frames, config: LabelConfig, repeats: int) -> dict[str, float]:
    """Return the median time of each stage, and of the whole, in one thread of PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = Clock()
        with recorded_device(counting=False):
            for _ in range(repeats + 2):
                with clock.timed("total"):
                    label(frames, config, DEVICE, clock)
    finally:
        torch.set_num_threads(threads)
    return clock.medians(skipped=2)


def _variants(frames: Frames, config: LabelConfig, chunks: int) -> dict[str, Any]:
    """Count the variants of kernels that chunks of random images need, and those that the warm-up lacks."""
    generator = np.random.default_rng(0)
    least = min(20, len(frames.images))
    with recorded_device(counting=False) as record:
        warm_up(config, DEVICE)
        ready = set(record.compiled)
        record.clear()
        for _ in range(chunks):
            number = int(generator.integers(least, len(frames.images) + 1))
            chosen = generator.permutation(len(frames.images))[:number].tolist()
            label(frames.chosen(chosen), config, DEVICE)
        needed = {(launch.kernel, launch.variant) for launch in record.launches}
    return {
        "variants": len(needed),
        "unready": len(needed - ready),
        "variants_by_kernel": dict(Counter(kernel for kernel, _ in needed)),
    }


def host_suite(frames: Frames, scale: HostScale = HostScale()) -> dict[str, dict[str, Any]]:
    """Return `host_costs` of the presets by name."""
    return {name: host_costs(frames, preset(name), scale) for name in PRESETS}


_COUNTS = (
    "launches",
    "operations",
    "copies",
    "upload_bytes",
    "download_bytes",
    "waits",
    "variants",
    "unready",
)


def host_table(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Format what `host_suite` returns: a column for each preset."""
    columns = list(costs.values())
    rows = [
        [f"{stage}, ms", *(shown(column["host_ms"][stage], 1) for column in columns)]
        for stage in columns[0]["host_ms"]
    ]
    rows += [[name.replace("_", " "), *(shown(column[name], 0) for column in columns)] for name in _COUNTS]
    for name in ("by_wait", "variants_by_kernel"):
        for part in dict.fromkeys(part for column in columns for part in column[name]):
            cells = [shown(column[name].get(part, 0), 0) for column in columns]
            rows.append([f"{name.split('_')[0].replace('by', 'waits')}: {part}", *cells])
    return markdown(["on the host", *costs], rows)
