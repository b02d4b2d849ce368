"""Roofline of the kernels: operations and bytes counted, peak rates measured."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import triton
import triton.language as tl

from mclc_gpu.bench.compare import Row, clocked
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.synthetic import scene
from mclc_gpu.kernels.clusters_cpu import allocate, assign, restart, update
from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import ComponentConfig, CrfConfig, TrialConfig
from mclc_gpu.kernels.crf import dense_crf, window_colors
from mclc_gpu.kernels.jit_cpu import compiled, float_bits
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.slic import grid_centers, slic, window_steps
from mclc_gpu.kernels.trials import run_trials, start_grids
from mclc_gpu.kernels.trials_cpu import palette, settings, trial_features
from mclc_gpu.labels.config import PRESETS
from mclc_gpu.labels.placing import place_targets

# Operations per pixel and center that reaches it (eq. 2, 3): five differences, their squares and sums, one
# weight; a comparison, two choices.
_ASSIGN = {False: 5 + 6 + 4 + 3, True: 5 + 6 + 3}  # fused or not
# Per pixel: ten rounds of Philox (two products of 64 bits, four exclusive ors); three thresholds, choices.
_NOISE = 10 * (4 + 4) + 3 * 3
# Per pixel and subset of replaced channels, once per window: three curves of the linear light, matrix,
# three cube roots, CIELAB.
_COLOR = 3 * 30 + 15 + 3 * 20 + 6 + 3
# Per pixel: pixels, rows, columns, three colors of its cluster (eq. 4).
_UPDATE = 6
# Per pixel: one visit in raster order; four neighbors, each compared, chosen and queued.
_FLOOD = 1 + 4 * 3
# Per pixel: compared with the click's label and counted.
_COUNT = 2
# Per pair of pixels: 2^-x as a polynomial on the CPU, one instruction on a GPU.
_POWER = {"cpu": 11, "cuda": 1}


class Work(NamedTuple):
    """Least operations and bytes of a kernel or stage."""

    operations: float
    bytes: float


class Steps(NamedTuple):
    """Steps of all trials together.

    Attributes
    ----------
    pixels : int
        Trials x pixels.
    pairs : int
        Pixels x centers that reach them, over all assignments.
    updated : int
        Pixels, over all updates.
    """

    pixels: int
    pairs: int
    updated: int


@compiled()
def _replay(
    data: Any, images: Any, windows: Any, keys: Any, grids: Any, centers: Any, settings: Any, trials: Any
) -> Any:
    pixels = pairs = updated = 0
    for t in range(windows.shape[0]):
        image, top, left, h, w, _, _, target = windows[t]
        offset, _, _, _, pitch, plane = images[image]
        first, number, reach_y, reach_x, interval = grids[t]
        p = palette(data, offset + top * pitch + left, pitch, plane, h, w, settings.noise)
        s = allocate(h, w, number)
        far_y = np.float32(reach_y) if settings.windowed else np.float32(np.inf)
        far_x = np.float32(reach_x) if settings.windowed else np.float32(np.inf)
        weight = np.float32(1.0 / (interval * interval))
        for trial in range(trials):
            trial_features(p, np.uint64(keys[t]), trial, target, settings.noise, s.pixels[2:5])
            restart(s, centers[first : first + number])
            pixels += h * w
            for i in range(settings.iterations):
                living = int(s.alive.sum())
                changed = assign(s, h, w, far_y, far_x, weight)
                for k in range(living):
                    # Rows and columns in halves; the last ones have a bit more in the upper half.
                    extent = float_bits(s.table[k, 6]) - (1 << 16) - float_bits(s.table[k, 5])
                    pairs += ((extent >> 16) + 1) * ((extent & 0xFFFF) + 1)
                if (i > 0 and not changed) or i + 1 == settings.iterations:
                    break
                updated += h * w
                if update(s, h * w) < settings.tolerance * settings.tolerance:
                    break
    return pixels, pairs, updated


def trial_steps(
    images: PackedImages, windows: Windows, keys: torch.Tensor, config: TrialConfig, trials: int
) -> Steps:
    """Count the steps of the first trials of every target; see `mclc_gpu.kernels.trials.run_trials`."""
    grids = start_grids(windows, config.clusters)
    byte = images.data.dtype == torch.uint8
    return Steps(
        *_replay(
            images.data.cpu().numpy(), images.table.numpy(), windows.table.numpy(), keys.numpy(),
            grids.table.numpy(), grids.centers.numpy(), settings(config, byte), trials,
        )
    )  # fmt: skip


def trial_work(steps: Steps, images: PackedImages, windows: Windows, fused: bool) -> dict[str, Work]:
    """Return the work of the Monte Carlo pass by stage; windows are read and counts written once."""
    sizes = windows.sizes
    channels = images.table[windows.image, 3]
    read = int((sizes * channels).sum()) * images.data.element_size()
    colors = 8 * _COLOR * int(sizes.sum())
    return {
        "noise and colors": Work(_NOISE * steps.pixels + colors, read),
        "assignment": Work(_ASSIGN[fused] * steps.pairs, 0),
        "update": Work(_UPDATE * steps.updated, 0),
        "connectivity, counts": Work((_FLOOD + _COUNT) * steps.pixels, 4 * int(sizes.sum())),
    }


def crf_work(windows: torch.Tensor, features: int, config: CrfConfig, device: torch.device) -> Work:
    """Return the work of the dense CRF with two classes on windows [windows, 2] of height and width.

    A weight is computed once for both directions of its pair (`features` are the position's two and one or
    three colors), and is added to two sums in the normalization and in every iteration; the smoothness kernel
    is separable. Probabilities and colors are read, probabilities written.
    """
    sizes = windows.prod(1).double()
    pairs = float((sizes * (sizes + 1) / 2).sum())
    weight = 2 * features + _POWER[device.type]
    along = np.minimum(windows.numpy(), 2 * np.ceil(7.45 * config.gaussian_sxy) + 1).sum(1)
    smooth = float((sizes.numpy() * along).sum()) * config.iterations
    total = float(sizes.sum())
    return Work(pairs * (weight + 2 + 2 * config.iterations) + smooth, total * (4 + 4 + features - 2))


def slic_work(height: int, width: int, segments: int, iterations: int, channels: int, fused: bool) -> Work:
    """Return the work of SLIC on one image: all iterations in the start grid's windows, no connectivity."""
    ys, xs, _, _ = grid_centers(height, width, segments)
    step_y, step_x = window_steps(height, width, len(ys))
    rows = np.minimum(ys + 2 * step_y + 1, height) - np.maximum(ys - 2 * step_y, 0)
    columns = np.minimum(xs + 2 * step_x + 1, width) - np.maximum(xs - 2 * step_x, 0)
    pairs = float((rows * columns).sum())
    assign = _ASSIGN[fused] - (3 - channels) * (2 if fused else 3)
    pixels = height * width
    update = (3 + channels) * pixels * (iterations - 1)
    return Work(iterations * pairs * assign + update, pixels * (4 * channels + 4))


def component_work(pixels: int, targets: int, levels: int, data_bytes: int) -> Work:
    """Return the work of the component vote.

    Each pixel compares four neighbors for the level at which it joins the target (a minimum and a maximum
    each) and is added to six sums of its level; each level is scored (some forty operations). Windows are
    read, TPMs written.
    """
    return Work(pixels * (4 * 2 + 6) + targets * levels * 40, data_bytes + 4 * pixels)


_REPEATS = 15


@dataclass(frozen=True)
class Scale:
    """Amounts of work that the roofline measures.

    Attributes
    ----------
    scenes, trials : int
        Synthetic images, and trials of each of their targets.
    side, segments : int
        Side of the image that SLIC segments, in pixels, and its segments.
    matrix : int
        Side of the matrices whose product measures operations per second.
    copied : int
        Bytes that a copy moves, past the caches, for each thread; on CUDA devices for each of eight.
    """

    scenes: int = 100
    trials: int = 50
    side: int = 512
    segments: int = 1000
    matrix: int = 2048
    copied: int = 1 << 25


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Return the least wall-clock time of some work on a device, after one call to warm up.

    The least, because peak and work are compared: other processes only ever add to either.
    """
    run = clocked(work, device)
    return min([run() for _ in range(repeats + 1)][1:])


def operations_peak(device: torch.device, side: int) -> float:
    """Measure 32-bit operations per second by the product of two matrices.

    A fused multiply-add counts as one operation: an addition or a product alone takes as long.
    """
    a, b = torch.ones(2, side, side, device=device)
    return side**3 / seconds_of(lambda: a @ b, device)


def bytes_peak(device: torch.device, count: int) -> float:
    """Measure bytes per second of a copy, read and written ones together."""
    threads = 8 if device.type == "cuda" else torch.get_num_threads()
    source = torch.zeros(count * threads, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), device)


@triton.jit
def fma_kernel(p_out, rounds, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """Run eight independent chains of multiply-adds in every thread."""
    x = tl.arange(0, BLOCK).to(tl.float32) * 1e-9 + 0.999
    a, b, c, d = x, x + 1, x + 2, x + 3
    e, f, g, h = x + 4, x + 5, x + 6, x + 7
    for _ in range(rounds):
        a = a * x + 1e-3
        b = b * x + 1e-3
        c = c * x + 1e-3
        d = d * x + 1e-3
        e = e * x + 1e-3
        f = f * x + 1e-3
        g = g * x + 1e-3
        h = h * x + 1e-3
    tl.store(p_out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), a + b + c + d + e + f + g + h)


@dataclass(frozen=True)
class Captured:
    """A launch of a kernel with copies of its tensors as they were before it."""

    kernel: Any
    grid: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel without "_kernel"."""
        return self.kernel.fn.__name__.removesuffix("_kernel")

    def milliseconds(self, device: torch.device, repeats: int = 10) -> float:
        """Return the median time on the device, with cold caches and its tensors as they were each time."""
        now = [value.clone() if isinstance(value, torch.Tensor) else value for value in self.arguments]
        flushed = torch.empty(64 << 20, dtype=torch.int32, device=device)
        times = []
        for _ in range(repeats + 2):
            for value, before in zip(now, self.arguments, strict=True):
                if isinstance(value, torch.Tensor):
                    value.copy_(before)
            flushed.zero_()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            self.kernel[self.grid](*now, **self.options)
            last.record()
            torch.cuda.synchronize(device)
            times.append(first.elapsed_time(last))
        return statistics.median(times[2:])


@contextmanager
def captured() -> Iterator[list[Captured]]:
    """Collect the launches of kernels, which run as usual."""
    launches: list[Captured] = []
    run = triton.JITFunction.run

    def keep(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        copies = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments)
        launches.append(Captured(kernel, grid, copies, options))
        return run(kernel, *arguments, grid=grid, warmup=warmup, **options)

    with patch.object(triton.JITFunction, "run", keep):
        yield launches


class Targets(NamedTuple):
    """Packed images on a device, and the paper's windows around their targets."""

    images: PackedImages
    windows: Windows
    keys: torch.Tensor  # int64 [targets]
    clicks: torch.Tensor  # int64 [targets, 3]: image, row, column


def roofline(device: torch.device, scale: Scale = Scale()) -> list[Row]:
    """Compare the measured time of every kernel on synthetic targets with floors by operations and bytes.

    Parameters
    ----------
    device : torch.device
        Device of the kernels: the CPU backend or, on "cuda", Triton.
    scale : Scale, optional

    Returns
    -------
    list of Row, one for each kernel and each stage of the trials, all with these columns
        kernel, work (str): the stage and what it was run on.
        operations, bytes (float): least operations (32-bit) and least bytes moved.
        operations_s, bytes_s (float): their floors in seconds, at the peaks of the last two rows.
        seconds (float or None): least measured time, with the launch; None for stages of a kernel.
        share (float or None): the larger floor over the measured time, 0..1.
        bound (str): "operations" or "bytes", whichever floor is larger.
        The last two rows are the measured peaks: their operations or bytes are per second.
    """
    peaks = operations_peak(device, scale.matrix), bytes_peak(device, scale.copied)
    targets = _targets(device, scale.scenes)
    rows = [
        *_trial_rows(targets, device, peaks, scale.trials),
        _crf_row(targets, device, peaks),
        _slic_row(device, peaks, scale),
        _component_row(targets, device, peaks),
    ]
    empty = dict.fromkeys(list(rows[0])[2:])
    return [
        *rows,
        {"kernel": "peak operations", "work": "one second"} | empty | {"operations": peaks[0]},
        {"kernel": "peak bytes", "work": "one second"} | empty | {"bytes": peaks[1]},
    ]


def _row(kernel: str, work: str, least: Work, peaks: tuple[float, float], seconds: float | None) -> Row:
    floors = least.operations / peaks[0], least.bytes / peaks[1]
    return {
        "kernel": kernel,
        "work": work,
        "operations": least.operations,
        "bytes": least.bytes,
        "operations_s": floors[0],
        "bytes_s": floors[1],
        "seconds": seconds,
        "share": None if seconds is None else max(floors) / seconds,
        "bound": "operations" if floors[0] >= floors[1] else "bytes",
    }


def _targets(device: torch.device, scenes: int) -> Targets:
    made = [scene(0, i) for i in range(scenes)]
    points = [[Point(t.x, t.y, t.category) for t in s.targets] for s in made]
    names = [str(i) for i in range(scenes)]
    images = [s.image for s in made]
    placed, _ = place_targets(images, points, names, PRESETS["paper"], 0)
    windows = Windows.pack((p.image, *astuple(p.window), p.target) for p in placed)
    rows, columns = windows.top + windows.click_row, windows.left + windows.click_column
    clicks = torch.stack([windows.image, rows, columns], 1)
    return Targets(PackedImages.pack(images, device), windows, torch.tensor([p.key for p in placed]), clicks)


def _trial_rows(targets: Targets, device: torch.device, peaks: tuple[float, float], trials: int) -> list[Row]:
    config = TrialConfig()
    images, windows, keys, _ = targets
    steps = trial_steps(images, windows, keys, config, trials)
    stages = trial_work(steps, images, windows, device.type == "cuda")
    seconds = seconds_of(lambda: run_trials(images, windows, keys, config, trials), device)
    whole = Work(sum(w.operations for w in stages.values()), sum(w.bytes for w in stages.values()))
    title = f"{len(windows)} targets, {trials} trials"
    return [
        _row("trials", title, whole, peaks, seconds),
        *(_row(f"trials: {stage}", title, least, peaks, None) for stage, least in stages.items()),
    ]


def _crf_row(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> Row:
    config = CrfConfig()
    windows = targets.windows.shapes
    colors = window_colors(targets.images, targets.windows)
    generator = torch.Generator().manual_seed(0)
    potential = torch.rand(len(colors), generator=generator).to(device)
    seconds = seconds_of(lambda: dense_crf(potential, colors, windows, config), device)
    least = crf_work(windows, 2 + colors.shape[1], config, device)
    return _row("crf", f"{len(windows)} windows", least, peaks, seconds)


def _slic_row(device: torch.device, peaks: tuple[float, float], scale: Scale) -> Row:
    side, wanted = scale.side, scale.segments
    image = torch.from_numpy(scene(0, 0, size=(side, side)).image)[None, None].to(device)
    image = image.expand(1, 3, side, side)

    def segments(iterations: int) -> torch.Tensor:
        return slic(image, wanted, max_iterations=iterations, enforce_connectivity=False)

    iterations = 10
    while iterations > 1 and torch.equal(segments(iterations - 1), segments(iterations)):
        iterations -= 1
    least = slic_work(side, side, wanted, iterations, 3, device.type == "cuda")
    title = f"{side}x{side}, {wanted} segments, {iterations} iterations"
    return _row("slic", title, least, peaks, seconds_of(lambda: segments(iterations), device))


def _component_row(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> Row:
    config = ComponentConfig()
    windows = component_windows(targets.images, targets.clicks, config.radius)
    categories = torch.full((len(windows),), -1)
    seconds = seconds_of(lambda: vote_components(targets.images, windows, categories, config), device)
    pixels = int(windows.sizes.sum())
    least = component_work(pixels, len(windows), config.levels, pixels)
    return _row("components", f"{len(windows)} targets, {config.levels} levels", least, peaks, seconds)
