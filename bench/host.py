"""Cost of the label pipeline on the host of a GPU: time, launches, copies and waits, without a GPU."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from mclc_gpu.bench.compare import markdown, shown
from mclc_gpu.bench.dataset import Frames
from mclc_gpu.bench.ptx.launch import emulated
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
from mclc_gpu.labels.windows import PlacedTargets

PRESETS = ("default", "paper")
METHOD = (
    "Images and clicks in memory to masks and 16-bit maps of every image, on a recorded CUDA device: "
    "Triton binds and looks up every launch, but no kernel runs, and PyTorch's operations on the device "
    "run on the CPU. host_ms: processor time, least of several runs in one thread; marking_ms of it, "
    "estimated, are what marking tensors as on the device costs. copies, bytes, waits: of one run after "
    "the warm-up, hidden ones too, such as bool(tensor). variants: compiled kernels that chunks of random "
    "images need; unready: those of them that the warm-up did not compile. warp_instructions: of the PTX "
    "compiled for sm_90, counted in an emulator for a sample of the targets with all their trials, times "
    "all pixels over the sample's in each class of windows (powers of two of pixels); "
    "warp_instructions_error: standard error of that, from two halves of the sample."
)
_NOT_EMULATED: dict[str, Any] = {
    "warp_instructions": None,
    "warp_instructions_error": None,
    "instructions_by_kernel": {},
}


@dataclass(frozen=True)
class HostScale:
    """Amounts of work.

    Attributes
    ----------
    repeats : int
        Timed runs.
    chunks : int
        Chunks of random images whose variants are counted.
    sampled : int
        One of how many targets of a class of windows is emulated; at least two are. 0: none.
    """

    repeats: int = 9
    chunks: int = 30
    sampled: int = 12


@dataclass
class Clock:
    """Milliseconds of stages, in every run.

    Attributes
    ----------
    read : callable
        Clock in seconds; `time.process_time` counts the processor's time of all threads of this process.
    """

    read: Callable[[], float] = time.perf_counter
    stages: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage once more."""
        start = self.read()
        yield
        self.stages.setdefault(stage, []).append((self.read() - start) * 1e3)

    def least(self) -> dict[str, float]:
        """Return the least time of each stage: other processes only ever add to it."""
        return {stage: min(runs) for stage, runs in self.stages.items()}


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
        host_ms: dict of stage to milliseconds, and their "total". marking_ms, launches, copies, upload_bytes,
        download_bytes, waits, variants, unready, warp_instructions, warp_instructions_error: see `METHOD`.
        operations: int, PyTorch's on the device. by_kernel, variants_by_kernel, instructions_by_kernel: dict
        of kernel to number. by_wait: dict of what made the host wait to times.
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
            "marking_ms": record.calls * _marking_ms(),
        }
    return {
        "host_ms": _milliseconds(frames, config, scale.repeats),
        **counts,
        **_variants(frames, config, scale.chunks),
        **(_instructions(frames, config, scale.sampled) if scale.sampled else _NOT_EMULATED),
    }


def _marking_ms(calls: int = 2000) -> float:
    """Return the milliseconds by which a call of PyTorch takes longer while tensors are marked."""
    tensor = torch.zeros(4)
    times = []
    for recorder in (nullcontext, partial(recorded_device, counting=False)):
        with recorder():
            runs = []
            for _ in range(5):
                start = time.process_time()
                for _ in range(calls):
                    torch.add(tensor, tensor)
                runs.append(time.process_time() - start)
        times.append(min(runs))
    return max(times[1] - times[0], 0.0) / calls * 1e3


def _milliseconds(frames: Frames, config: LabelConfig, repeats: int) -> dict[str, float]:
    """Return the least time of each stage, and of the whole, in one thread of PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = Clock(time.process_time)
        with recorded_device(counting=False):
            for _ in range(repeats):
                with clock.timed("total"):
                    label(frames, config, DEVICE, clock)
    finally:
        torch.set_num_threads(threads)
    return clock.least()


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


def _instructions(frames: Frames, config: LabelConfig, sampled: int) -> dict[str, Any]:
    """Estimate the instructions that the warps of all kernels run for the targets of the frames."""
    images = frames.images
    placed, _ = place_targets(images, frames.points(0), frames.names, config, 0)
    sizes = placed.windows.sizes.numpy()
    classes = np.maximum(np.ceil(np.log2(sizes)), 5)
    total: Counter[str] = Counter()
    variance = 0.0
    for size in np.unique(classes):
        own = np.nonzero(classes == size)[0]
        own = own[np.argsort(sizes[own], kind="stable")]
        number = min(max(2, len(own) // sampled), len(own))
        spread = own[(2 * np.arange(number) + 1) * len(own) // (2 * number)]
        halves = [half for half in (spread[::2], spread[1::2]) if len(half)]
        sums = []
        for half in halves:
            factor = sizes[own].sum() / sizes[half].sum() / len(halves)
            counts = _emulated(images, placed.take(half), config)
            counted = {name: float(factor * count) for name, count in counts.items()}
            total.update(counted)
            sums.append(sum(counted.values()))
        variance += (sums[0] - sums[-1]) ** 2
    return {
        "warp_instructions": sum(total.values()),
        "warp_instructions_error": variance**0.5,
        "instructions_by_kernel": dict(total),
    }


def _emulated(images: Sequence[np.ndarray], placed: PlacedTargets, config: LabelConfig) -> dict[str, int]:
    """Label some targets by emulated kernels; return the instructions of each kernel."""
    with recorded_device(counting=False), emulated() as emulator:
        list(refine_targets(placed, cluster_targets(images, placed, config, DEVICE), config))
    counts: Counter[str] = Counter()
    for launch in emulator.launches:
        counts[launch.kernel.removesuffix("_kernel")] += launch.counts.total
    return counts


def host_suite(frames: Frames, scale: HostScale = HostScale()) -> dict[str, dict[str, Any]]:
    """Return `host_costs` of the presets by name."""
    return {name: host_costs(frames, preset(name), scale) for name in PRESETS}


_COUNTS = (
    *("launches", "operations", "copies", "upload_bytes", "download_bytes", "waits", "variants", "unready"),
    *("warp_instructions", "warp_instructions_error"),
)


def host_table(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Format what `host_suite` returns: a column for each preset."""
    columns = list(costs.values())
    rows = [
        [f"{stage}, ms", *(shown(column["host_ms"][stage], 1) for column in columns)]
        for stage in columns[0]["host_ms"]
    ]
    rows.append(["of that marking, ms", *(shown(column["marking_ms"], 1) for column in columns)])
    rows += [[name.replace("_", " "), *(shown(column[name], 0) for column in columns)] for name in _COUNTS]
    for name in ("by_wait", "variants_by_kernel", "instructions_by_kernel"):
        for part in dict.fromkeys(part for column in columns for part in column[name]):
            cells = [shown(column[name].get(part, 0), 0) for column in columns]
            rows.append([f"{name.split('_')[0].replace('by', 'waits')}: {part}", *cells])
    return markdown(["on the host", *costs], rows)
