"""Roofline of the kernels: operations and bytes counted, peak rates measured."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
import triton
import triton.language as tl
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.bench.compare import Row
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.synthetic import scene
from mclc_gpu.kernels.backend import processors
from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import ComponentConfig, CrfConfig, TrialConfig
from mclc_gpu.kernels.crf import dense_crf, window_colors
from mclc_gpu.kernels.ir_cpu import WIDEST, Vectors
from mclc_gpu.kernels.jit_cpu import compiled, float_bits
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.slic import grid_centres, slic, window_steps
from mclc_gpu.kernels.trials import run_trials, trial_grids
from mclc_gpu.kernels.trials_cpu import allocate, assign, palette, restart, settings, trial_features, update
from mclc_gpu.labels.config import PRESETS
from mclc_gpu.labels.windows import place_targets

# Of a pixel and a centre that reaches it (eq. 2, 3): five differences, their squares and sums, one weight;
# a comparison, two choices.
_ASSIGN = {False: 5 + 6 + 4 + 3, True: 5 + 6 + 3}  # fused or not
# Of a pixel: ten rounds of Philox (two products of 64 bits, four exclusive ors); three thresholds, choices.
_NOISE = 10 * (4 + 4) + 3 * 3
# Of a pixel and a subset of replaced channels, once per window: three curves of the linear light, matrix,
# three cube roots, CIELAB.
_COLOUR = 3 * 30 + 15 + 3 * 20 + 6 + 3
# Of a pixel: pixels, rows, columns, three colours of its cluster (eq. 4).
_UPDATE = 6
# Of a pixel: one look in raster order; four neighbours, each compared, chosen and taken into the queue.
_FLOOD = 1 + 4 * 3
# Of a pixel: compared with the click's label and counted.
_COUNT = 2
# Of a pair of pixels: 2^-x as a polynomial on the CPU, one instruction on a GPU.
_POWER = {"cpu": 11, "cuda": 1}


class Work(NamedTuple):
    """Of one kernel or stage."""

    operations: float
    bytes: float


class Steps(NamedTuple):
    """What all trials together go through.

    Attributes
    ----------
    pixels : int
        Trials x pixels.
    pairs : int
        Pixels x centres that reach them, over all assignments.
    updated : int
        Pixels, over all updates.
    """

    pixels: int
    pairs: int
    updated: int


@compiled()
def _replay(
    data: Any, images: Any, windows: Any, keys: Any, grids: Any, centres: Any, settings: Any, trials: Any
) -> Any:
    pixels = pairs = updated = 0
    for t in range(windows.shape[0]):
        image, top, left, h, w, _, _, target = windows[t]
        offset, height, width, channels = images[image]
        first, number, reach_y, reach_x, interval = grids[t]
        p = palette(data[offset:], height, width, channels, top, left, h, w, settings.noise)
        s = allocate(h, w, number)
        far_y = np.float32(reach_y) if settings.windowed else np.float32(np.inf)
        far_x = np.float32(reach_x) if settings.windowed else np.float32(np.inf)
        weight = np.float32(1.0 / (interval * interval))
        for trial in range(trials):
            trial_features(p, np.uint64(keys[t]), trial, target, settings.noise, s.pixels[2:5])
            restart(s, centres[first : first + number])
            pixels += h * w
            for i in range(settings.iterations):
                living = int(s.alive.sum())
                changed = assign(s, h, w, far_y, far_x, weight)
                for k in range(living):
                    extent = float_bits(s.table[k, 6])
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
    """Steps of the first trials of every target; arguments as of `mclc_gpu.kernels.trials.run_trials`."""
    centres, grids = trial_grids(windows, config.clusters)
    byte = images.data.dtype == torch.uint8
    return Steps(
        *_replay(
            images.data.cpu().numpy(), images.table.cpu().numpy(), windows.table.numpy(), keys.numpy(),
            grids.numpy(), centres.numpy(), settings(config, byte), trials,
        )
    )  # fmt: skip


def trial_work(steps: Steps, images: PackedImages, windows: Windows, fused: bool) -> dict[str, Work]:
    """Of the Monte Carlo pass by stage; windows are read and counts written once."""
    sizes = windows.sizes
    *_, channels = images.table.cpu()[windows.image].unbind(1)
    read = int((sizes * channels).sum()) * images.data.element_size()
    colours = 8 * _COLOUR * int(sizes.sum())
    return {
        "noise and colours": Work(_NOISE * steps.pixels + colours, read),
        "assignment": Work(_ASSIGN[fused] * steps.pairs, 0),
        "update": Work(_UPDATE * steps.updated, 0),
        "connectivity, counts": Work((_FLOOD + _COUNT) * steps.pixels, 4 * int(sizes.sum())),
    }


def crf_work(windows: torch.Tensor, features: int, config: CrfConfig, device: torch.device) -> Work:
    """Of the dense CRF with two classes on windows [windows, 2] of height and width.

    A weight is made once for both directions of its pair (`features` are the position's two and one or three
    colours), and is added to two sums in the normalisation and in every iteration; the smoothness kernel is
    separable. Probabilities and colours are read, probabilities written.
    """
    sizes = windows.prod(1).double()
    pairs = float((sizes * (sizes + 1) / 2).sum())
    weight = 2 * features + _POWER[device.type]
    along = np.minimum(windows.numpy(), 2 * np.ceil(7.45 * config.gaussian_sxy) + 1).sum(1)
    smooth = float((sizes.numpy() * along).sum()) * config.iterations
    total = float(sizes.sum())
    return Work(pairs * (weight + 2 + 2 * config.iterations) + smooth, total * (4 + 4 + features - 2))


def slic_work(height: int, width: int, segments: int, iterations: int, channels: int, fused: bool) -> Work:
    """Of SLIC on one image, all iterations with the windows of the start grid, without connectivity."""
    ys, xs, _, _ = grid_centres(height, width, segments)
    step_y, step_x = window_steps(height, width, len(ys))
    rows = np.minimum(ys + 2 * step_y + 1, height) - np.maximum(ys - 2 * step_y, 0)
    columns = np.minimum(xs + 2 * step_x + 1, width) - np.maximum(xs - 2 * step_x, 0)
    pairs = float((rows * columns).sum())
    assign = _ASSIGN[fused] - (3 - channels) * (2 if fused else 3)
    pixels = height * width
    update = (3 + channels) * pixels * (iterations - 1)
    return Work(iterations * pairs * assign + update, pixels * (4 * channels + 4))


def component_work(pixels: int, targets: int, levels: int, data_bytes: int) -> Work:
    """Of the vote of components: each pixel looks at four neighbours for the level at which it joins the
    target (a minimum and a maximum each) and is added to six sums of its level; each level is scored (some
    forty operations). Windows are read, TPMs written."""
    return Work(pixels * (4 * 2 + 6) + targets * levels * 40, data_bytes + 4 * pixels)


_CHAINS = 8  # of each kind: enough to hide the latency of an addition or a product
_ROUNDS = 1 << 18
_COPIED = 1 << 25  # bytes per thread: past the caches
_REPEATS = 15
_UNROLLED = tl.constexpr(16)
_BLOCK = 1024  # eight chains in each of 128 threads


@intrinsic
def _arithmetic(typingctx: Any, rounds: Any, factor: Any, addend: Any) -> Any:
    """Rounds of `_CHAINS` products and as many additions of whole vectors; something of the result."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(builder, WIDEST)
        factors, addends = v.splat(args[1]), v.splat(args[2])
        products = [cgutils.alloca_once_value(builder, v.constant(1.0 + i)) for i in range(_CHAINS)]
        sums = [cgutils.alloca_once_value(builder, v.constant(1.0 + i)) for i in range(_CHAINS)]
        with cgutils.for_range(builder, args[0]):
            for product, total in zip(products, sums, strict=True):
                builder.store(builder.fmul(builder.load(product), factors), product)
                builder.store(builder.fadd(builder.load(total), addends), total)
        result = v.constant(0.0)
        for value in (*products, *sums):
            result = builder.fadd(result, builder.load(value))
        return builder.extract_element(result, ir.Constant(v.integer, 0))

    return types.float32(types.int64, types.float32, types.float32), generate


@compiled()
def _compute(rounds: Any, factor: Any, addend: Any) -> Any:
    return _arithmetic(rounds, factor, addend)


@triton.jit
def fma_kernel(p_out, rounds, factor, addend, UNROLLED: tl.constexpr, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """rounds x UNROLLED fused multiply-adds on each of BLOCK numbers, which begin as 0, 1, ..."""
    place = tl.arange(0, BLOCK)
    x = place.to(tl.float32)
    factors = x * 0.0 + factor
    addends = x * 0.0 + addend
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            x = tl.fma(x, factors, addends)
    tl.store(p_out + tl.program_id(0) * BLOCK + place, x)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Least wall-clock time of some work on a device, after one call to warm up.

    The least, because peak and work are compared: others on the machine only ever add to either.
    """
    taken = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def operations_peak(device: torch.device) -> float:
    """32-bit operations per second: on the CPU additions and products in vectors, over all threads; on CUDA
    fused multiply-adds, each counted once."""
    if device.type == "cuda":
        programs = 16 * processors(device)
        out = torch.empty(programs * _BLOCK, device=device)
        rounds = _ROUNDS >> 6

        def work() -> None:
            fma_kernel[(programs,)](out, rounds, 0.999, 0.5, UNROLLED=_UNROLLED, BLOCK=_BLOCK, num_warps=4)

        return programs * _BLOCK * rounds * _UNROLLED.value / seconds_of(work, device)
    threads = numba.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        numbers = np.int64(_ROUNDS), np.float32(0.999), np.float32(0.5)
        seconds = seconds_of(lambda: list(pool.map(lambda _: _compute(*numbers), range(threads))), device)
    return threads * _ROUNDS * 2 * _CHAINS * WIDEST / seconds


def bytes_peak(device: torch.device) -> float:
    """Bytes per second of a copy, read and written ones together, over all threads."""
    if device.type == "cuda":
        source = torch.zeros(_COPIED * 8, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return 2 * source.numel() / seconds_of(lambda: target.copy_(source), device)
    threads = numba.get_num_threads()
    pairs = [(np.zeros(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = seconds_of(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)), device)
    return 2 * threads * _COPIED / seconds


_SCENES = 100
_TRIALS = 50
_SIDE = 512
_SEGMENTS = 1000


class Targets(NamedTuple):
    """Packed images on a device, and the paper's windows around the targets in them."""

    images: PackedImages
    windows: Windows
    keys: torch.Tensor  # int64 [targets]
    clicks: torch.Tensor  # int64 [targets, 3]: image, row, column


def roofline(device: torch.device) -> list[Row]:
    """Operations, bytes, floors and measured time of every kernel on synthetic targets.

    Parameters
    ----------
    device : torch.device
        Where the kernels run: the CPU backend or, on "cuda", Triton.

    Returns
    -------
    list of Row, one for each kernel and each stage of the trials, all with these columns
        kernel, work (str): the stage and what it was run on.
        operations, bytes (float): least operations (32-bit, see `counts`) and least bytes moved.
        operations_s, bytes_s (float): their floors in seconds, at the peaks of the last two rows.
        seconds (float or None): least measured time, with the launch; None for stages of a kernel.
        share (float or None): the larger floor over the measured time, 0..1.
        bound (str): "operations" or "bytes", whichever floor is larger.
        The last two rows are the measured peaks: their operations or bytes are per second.
    """
    peaks = operations_peak(device), bytes_peak(device)
    targets = _targets(device)
    rows = [
        *_trial_rows(targets, device, peaks),
        _crf_row(targets, device, peaks),
        _slic_row(device, peaks),
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


def _targets(device: torch.device) -> Targets:
    made = [scene(0, i) for i in range(_SCENES)]
    points = [[Point(t.x, t.y, t.category) for t in s.targets] for s in made]
    names = [str(i) for i in range(_SCENES)]
    images = [s.image for s in made]
    placed, _ = place_targets(images, points, names, PRESETS["paper"], 0)
    windows = Windows.pack((p.image, *astuple(p.window), p.target) for p in placed)
    rows, columns = windows.top + windows.click_row, windows.left + windows.click_column
    clicks = torch.stack([windows.image, rows, columns], 1)
    return Targets(PackedImages.pack(images, device), windows, torch.tensor([p.key for p in placed]), clicks)


def _trial_rows(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> list[Row]:
    config = TrialConfig()
    images, windows, keys, _ = targets
    steps = trial_steps(images, windows, keys, config, _TRIALS)
    stages = trial_work(steps, images, windows, device.type == "cuda")
    seconds = seconds_of(lambda: run_trials(images, windows, keys, config, _TRIALS), device)
    whole = Work(sum(w.operations for w in stages.values()), sum(w.bytes for w in stages.values()))
    title = f"{len(windows)} targets, {_TRIALS} trials"
    return [
        _row("trials", title, whole, peaks, seconds),
        *(_row(f"trials: {stage}", title, least, peaks, None) for stage, least in stages.items()),
    ]


def _crf_row(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> Row:
    config = CrfConfig()
    windows = targets.windows.shapes
    colours = window_colors(targets.images, targets.windows)
    generator = torch.Generator().manual_seed(0)
    potential = torch.rand(len(colours), generator=generator).to(device)
    seconds = seconds_of(lambda: dense_crf(potential, colours, windows, config), device)
    least = crf_work(windows, 2 + colours.shape[1], config, device)
    return _row("crf", f"{len(windows)} windows", least, peaks, seconds)


def _slic_row(device: torch.device, peaks: tuple[float, float]) -> Row:
    image = torch.from_numpy(scene(0, 0, size=(_SIDE, _SIDE)).image)[None, None].to(device)
    image = image.expand(1, 3, _SIDE, _SIDE)

    def segments(iterations: int) -> torch.Tensor:
        return slic(image, _SEGMENTS, max_iterations=iterations, enforce_connectivity=False)

    iterations = 10
    while iterations > 1 and torch.equal(segments(iterations - 1), segments(iterations)):
        iterations -= 1
    least = slic_work(_SIDE, _SIDE, _SEGMENTS, iterations, 3, device.type == "cuda")
    title = f"{_SIDE}x{_SIDE}, {_SEGMENTS} segments, {iterations} iterations"
    return _row("slic", title, least, peaks, seconds_of(lambda: segments(iterations), device))


def _component_row(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> Row:
    config = ComponentConfig()
    windows = component_windows(targets.images, targets.clicks, config.radius)
    categories = torch.full((len(windows),), -1)
    seconds = seconds_of(lambda: vote_components(targets.images, windows, categories, config), device)
    pixels = int(windows.sizes.sum())
    least = component_work(pixels, len(windows), config.levels, pixels)
    return _row("components", f"{len(windows)} targets, {config.levels} levels", least, peaks, seconds)
