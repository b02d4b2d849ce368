"""The Monte Carlo pass in numba: one (target, block of trials) per parallel iteration, in its own scratch."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from mclc_gpu.kernels.color_cpu import bits_float, lab_of_linear, linear_light
from mclc_gpu.kernels.connectivity_cpu import relabel, scratch_size
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.noise import KINDS, threshold
from mclc_gpu.kernels.noise_cpu import GAUSSIAN, PEPPER, disturb, philox
from mclc_gpu.kernels.vector_cpu import CENTRE_COLUMNS, LANES, assign_vectors

if TYPE_CHECKING:
    from mclc_gpu.kernels.trials import TrialConfig

F = np.float32
U = np.uint64
_LOW = U(0xFFFFFFFF)
_FAR = F(np.inf)
ENFORCE, COMPONENT, CLUSTER = range(3)


class Settings(NamedTuple):
    """What every trial of a run shares: `scale` is 1 / compactness, `bound` salt's and pepper's threshold."""

    kind: int
    bound: int
    intensity: np.float32
    shared: bool
    own_range: bool
    scale: np.float32
    iterations: int
    tolerance: np.float32
    connectivity: int
    windowed: bool
    min_size_factor: float
    max_size_factor: float


class Scratch(NamedTuple):
    """Working arrays of one target's trials; `stride` is h * w rounded up to whole vectors, N the centres."""

    words: np.ndarray  # uint32 [3, h * w], random words of the trial
    linear: np.ndarray  # float32 [3, h * w], linear light of the window without noise
    light: np.ndarray  # float32 [3, h * w], the same of the trial
    pixels: np.ndarray  # float32 [5, stride]: row, column, three colours
    positions: np.ndarray  # int64 [h * w]: 1, row and column packed in one integer
    labels: np.ndarray  # int32 [stride]
    flood: np.ndarray  # int32
    places: np.ndarray  # int64 [N], sums of positions
    colours: np.ndarray  # float32 [N, 3], sums
    centres: np.ndarray  # float32 [N, 5]: row, column, three colours
    alive: np.ndarray  # bool [N]
    table: np.ndarray  # float32 [N, 10], the living centres as `assign_vectors` wants them
    weights: np.ndarray  # int32 [h * w or N, the larger, + 1]: marks in each segment


def settings(config: "TrialConfig", byte: bool) -> Settings:
    """What the compiled code needs of a config; `byte` images have the fixed range 0..255."""
    return Settings(
        KINDS.index(config.noise),
        threshold(config.intensity) if config.noise in ("salt", "pepper") else 0,
        F(config.intensity),
        config.shared_noise,
        not byte,
        F(1.0 / config.compactness),
        config.max_iterations,
        F(config.tolerance),
        ("enforce", "component", "cluster").index(config.connectivity),
        config.method == "slic",
        config.min_size_factor,
        config.max_size_factor,
    )


@compiled()
def _gather(image, height, width, channels, top, left, h, w, window):
    """Copy a window of one planar image into window [3, h * w]; a gray image fills all three channels."""
    for c in range(3):
        plane = (c if channels == 3 else 0) * height * width
        for y in range(h):
            row = plane + (top + y) * width + left
            for x in range(w):
                window[c, y * w + x] = F(image[row + x])


@compiled()
def _allocate(h, w, number):
    stride = (h * w + LANES - 1) // LANES * LANES
    pixels = np.zeros((5, stride), np.float32)
    pixels[0, h * w :] = -1  # no window reaches the padding
    positions = np.empty(h * w, np.int64)
    for y in range(h):
        for x in range(w):
            pixels[0, y * w + x] = y
            pixels[1, y * w + x] = x
            positions[y * w + x] = (1 << 44) | (y << 22) | x
    return Scratch(
        np.empty((3, h * w), np.uint32),
        np.empty((3, h * w), np.float32),
        np.empty((3, h * w), np.float32),
        pixels,
        positions,
        np.empty(stride, np.int32),
        np.empty(scratch_size(h, w), np.int32),
        np.empty(number, np.int64),
        np.empty((number, 3), np.float32),
        np.empty((number, 5), np.float32),
        np.empty(number, np.bool_),
        np.empty((number, CENTRE_COLUMNS), np.float32),
        np.empty(max(h * w, number) + 1, np.int32),
    )


@compiled()
def _draw(words, trial, target, key, shared):
    w0, w1, w2 = words
    for p in range(w0.shape[0]):
        w0[p], w1[p], w2[p], _ = philox(U(p), U(trial), U(target), key & _LOW, key >> U(32))
    if shared:
        for p in range(w0.shape[0]):
            w1[p] = w0[p]
            w2[p] = w0[p]


@compiled(fastmath={"nnan"})
def _range(values, words, bound, low, high):
    """Least and greatest of low, high and the values whose word is not below the bound; is any word below?"""
    smallest = np.uint32(0xFFFFFFFF)
    for p in range(values.shape[0]):
        word = words[p] >> np.uint32(8)
        below = values[p] if word >= bound else low
        above = values[p] if word >= bound else high
        low = below if below < low else low
        high = above if above > high else high
        smallest = word if word < smallest else smallest
    return low, high, smallest < bound


@compiled()
def _linear(values, darkest, span, out):
    for p in range(out.shape[0]):
        out[p] = linear_light((values[p] - darkest) / span)


@compiled()
def _blend(values, words, bound, replacement, out):
    for p in range(out.shape[0]):
        out[p] = replacement if (words[p] >> np.uint32(8)) < bound else values[p]


@compiled()
def _gaussian(values, words, sigma, low, high, out):
    for p in range(out.shape[0]):
        out[p] = disturb(values[p], U(words[p]), GAUSSIAN, U(0), sigma, low, high)


@compiled()
def _colours(light, scale, f0, f1, f2):
    r, g, b = light
    for p in range(r.shape[0]):
        lightness, green_red, blue_yellow = lab_of_linear(r[p], g[p], b[p])
        f0[p] = lightness * scale
        f1[p] = green_red * scale
        f2[p] = blue_yellow * scale


@compiled()
def _features(window, s, key, trial, target, low, high, settings, darkest, span):
    """Features of one noisy trial (eq. 1, 7): CIELAB of the rescaled window, divided by the compactness.

    `s.linear` holds the undisturbed window's linear light for the rescaling (darkest, span); both are
    returned as this trial used them, because most trials share them.
    """
    _draw(s.words, trial, target, key, settings.shared)
    least, greatest = F(np.inf), F(-np.inf)
    if settings.kind == GAUSSIAN:
        for c in range(3):
            _gaussian(window[c], s.words[c], settings.intensity * (high - low), low, high, s.light[c])
            least, greatest, _ = _range(s.light[c], s.words[c], np.uint32(0), least, greatest)
        span = greatest - least if greatest > least else F(1)
        for c in range(3):
            _linear(s.light[c], least, span, s.light[c])
        darkest = F(np.nan)
    else:
        replacement = low if settings.kind == PEPPER else high
        bound = np.uint32(settings.bound)
        for c in range(3):
            least, greatest, replaced = _range(window[c], s.words[c], bound, least, greatest)
            if replaced:
                least, greatest = min(least, replacement), max(greatest, replacement)
        new_span = greatest - least if greatest > least else F(1)
        if least != darkest or new_span != span:
            darkest, span = least, new_span
            for c in range(3):
                _linear(window[c], darkest, span, s.linear[c])
        bright = linear_light((replacement - darkest) / span)
        for c in range(3):
            _blend(s.linear[c], s.words[c], bound, bright, s.light[c])
    pixels = s.positions.shape[0]
    _colours(s.light, settings.scale, s.pixels[2, :pixels], s.pixels[3, :pixels], s.pixels[4, :pixels])
    return darkest, span


@compiled()
def _assign(s, height, width, reach_y, reach_x, weight):
    """Give every pixel the nearest centre whose window reaches it (eq. 2, 3). Did a label change?"""
    living = 0
    table = s.table
    for k in range(s.alive.shape[0]):
        if not s.alive[k]:
            continue
        for c in range(5):
            table[living, c] = s.centres[k, c]
        cy, cx = s.centres[k, 0], s.centres[k, 1]
        table[living, 5] = np.int64(max(cy - reach_y, F(0)))
        table[living, 6] = np.int64(min(cy + reach_y + F(1), F(height))) - 1
        table[living, 7] = np.int64(max(cx - reach_x, F(0)))
        table[living, 8] = np.int64(min(cx + reach_x + F(1), F(width))) - 1
        table[living, 9] = bits_float(np.int32(k))
        living += 1
    stride = s.pixels.shape[1]
    pixels, labels, centres = s.pixels.ctypes.data, s.labels.ctypes.data, table.ctypes.data
    return assign_vectors(
        pixels, np.int64(stride), labels, np.int64(stride // LANES), centres, np.int64(living), weight
    )


@compiled()
def _update(s):
    """Move every centre to the mean of its pixels (eq. 4). Returns the largest squared move in pixels."""
    places, colours, centres, labels, positions = s.places, s.colours, s.centres, s.labels, s.positions
    f0, f1, f2 = s.pixels[2], s.pixels[3], s.pixels[4]
    places[:] = 0
    colours[:] = 0
    for p in range(positions.shape[0]):
        k = labels[p]
        places[k] += positions[p]
        colours[k, 0] += f0[p]
        colours[k, 1] += f1[p]
        colours[k, 2] += f2[p]
    moved = F(0)
    for k in range(centres.shape[0]):
        count = F(places[k] >> 44)
        s.alive[k] = count > 0
        if not s.alive[k]:
            continue
        cy = F((places[k] >> 22) & 0x3FFFFF) / count
        cx = F(places[k] & 0x3FFFFF) / count
        moved = max(moved, (cy - centres[k, 0]) ** 2 + (cx - centres[k, 1]) ** 2)
        centres[k, 0] = cy
        centres[k, 1] = cx
        for c in range(3):
            centres[k, 2 + c] = colours[k, c] / count
    return moved


@compiled()
def _cluster(s, h, w, start, reach_y, reach_x, weight, iterations, tolerance):
    """All iterations of one trial. Labels that did not change are a fixed point: stopping there is exact."""
    for k in range(start.shape[0]):
        s.centres[k, 0] = start[k, 0]
        s.centres[k, 1] = start[k, 1]
        for c in range(2, 5):
            s.centres[k, c] = 0
    s.alive[:] = True
    s.labels[:] = 0
    for i in range(iterations):
        changed = _assign(s, h, w, reach_y, reach_x, weight)
        if i > 0 and not changed:
            return
        if i + 1 < iterations and _update(s) < tolerance * tolerance:
            return


@compiled()
def _count(labels, wanted, counts):
    for p in range(counts.shape[0]):
        counts[p] += labels[p] == wanted


@compiled()
def _count_marked(labels, click, seeds, weights, counts):
    """Add to every pixel the marks (click and seeds) in its segment."""
    if seeds.shape[0] == 0:
        _count(labels, labels[click], counts)
        return
    for k in range(weights.shape[0]):
        weights[k] = 0
    weights[labels[click]] = 1
    for j in range(seeds.shape[0]):
        weights[labels[seeds[j]]] += 1
    for p in range(counts.shape[0]):
        counts[p] += weights[labels[p]]


class Batch(NamedTuple):
    """All that the items of a run read and write; see `mclc_gpu.kernels.trials` for the tables."""

    data: np.ndarray
    images: np.ndarray
    windows: np.ndarray
    keys: np.ndarray
    grids: np.ndarray
    centres: np.ndarray
    offsets: np.ndarray
    seed_offsets: np.ndarray
    seeds: np.ndarray
    items: np.ndarray  # int64 [items, 3]: target, first trial, last trial (exclusive)
    partial_offsets: np.ndarray  # int64 [items + 1]: where an item's counts begin
    partial: np.ndarray  # int32, every item's counts
    masks: np.ndarray


@compiled()
def _item(batch, i, first_trial, settings):
    """All trials of one item: counts into `batch.partial`, masks into `batch.masks` if that has rows."""
    t, first, last = batch.items[i]
    image, top, left, h, w, click_y, click_x, target = batch.windows[t]
    offset, height, width, channels = batch.images[image]
    centre, number, reach_y, reach_x, interval = batch.grids[t]
    window = np.empty((3, h * w), np.float32)
    _gather(batch.data[offset:], height, width, channels, top, left, h, w, window)
    counts = batch.partial[batch.partial_offsets[i] : batch.partial_offsets[i + 1]]
    start = batch.centres[centre : centre + number]
    s = _allocate(h, w, number)
    low, high = F(0), F(255)
    if settings.own_range:
        low, high = F(np.inf), F(-np.inf)
        for c in range(3):
            low, high, _ = _range(window[c], s.words[c], np.uint32(0), low, high)
    far_y = F(reach_y) if settings.windowed else _FAR
    far_x = F(reach_x) if settings.windowed else _FAR
    weight = F(1.0 / (interval * interval))
    enforce = settings.connectivity == ENFORCE
    min_size = int(settings.min_size_factor * (h * w / number)) if enforce else 0
    max_size = int(settings.max_size_factor * (h * w / number)) if enforce else h * w
    click = click_y * w + click_x
    seeds = batch.seeds[batch.seed_offsets[t] : batch.seed_offsets[t + 1]]
    darkest = span = F(np.nan)
    for trial in range(first, last):
        darkest, span = _features(
            window, s, U(batch.keys[t]), trial, target, low, high, settings, darkest, span
        )
        _cluster(s, h, w, start, far_y, far_x, weight, settings.iterations, settings.tolerance)
        if settings.connectivity != CLUSTER:
            relabel(s.labels, h, w, min_size, max_size, s.labels, s.flood)
        _count_marked(s.labels, click, seeds, s.weights, counts)
        if batch.masks.shape[0]:
            kept = batch.masks[trial - first_trial, batch.offsets[t] : batch.offsets[t] + h * w]
            _count_marked(s.labels, click, seeds, s.weights, kept)


@compiled()
def _collect(partial, partial_offsets, targets, offsets, counts):
    """Add the blocks' counts up by target."""
    for i in range(targets.shape[0]):
        start = offsets[targets[i]]
        for p in range(partial_offsets[i + 1] - partial_offsets[i]):
            counts[start + p] += partial[partial_offsets[i] + p]


def run(
    data: np.ndarray,
    images: np.ndarray,
    windows: np.ndarray,
    keys: np.ndarray,
    grids: np.ndarray,
    centres: np.ndarray,
    offsets: np.ndarray,
    seed_offsets: np.ndarray,
    seeds: np.ndarray,
    counts: np.ndarray,
    masks: np.ndarray,
    settings: Settings,
    first_trial: int,
    trials: int,
) -> None:
    """Fill counts int32 [pixels of all windows] (and masks uint8 [trials, same] unless it has no rows)."""
    threads = numba.get_num_threads()
    blocks = min(trials, max(1, 8 * threads // len(windows)))
    bounds = first_trial + np.arange(blocks + 1) * trials // blocks
    sizes = windows[:, 3].astype(np.int64) * windows[:, 4]
    # The largest windows first: the threads then end together.
    order = np.repeat(np.argsort(-sizes, kind="stable"), blocks)
    items = np.stack([order, np.tile(bounds[:-1], len(windows)), np.tile(bounds[1:], len(windows))], axis=1)
    partial_offsets = np.concatenate([[0], np.cumsum(sizes[order])])
    partial = np.zeros(partial_offsets[-1], np.int32)
    batch = Batch(
        data, images, windows, keys, grids, centres, offsets, seed_offsets, seeds, items, partial_offsets,
        partial, masks,
    )  # fmt: skip
    # Threads rather than a parallel loop of numba's, which takes longer to compile than all the rest.
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(lambda i: _item(batch, i, first_trial, settings), range(len(items))), maxlen=0)
    _collect(partial, partial_offsets, items[:, 0].copy(), offsets, counts)
