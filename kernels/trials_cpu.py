"""Monte Carlo trials on the CPU, compiled with numba.

Where the noise replaces values by an end of the range, a pixel has one of eight colors, by the channels that
are replaced: they are computed once for a window, its palette, and a trial picks from them. This holds for
nearly all trials, which have one range of values; others, and other noise, compute their colors anew.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import torch

from mclc_gpu.kernels.clusters_cpu import allocate, assign, restart, update
from mclc_gpu.kernels.color_cpu import lab_of_linear, linear_light
from mclc_gpu.kernels.config import CONNECTIVITY, NOISES, TrialConfig
from mclc_gpu.kernels.connectivity_cpu import relabel
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.noise import threshold
from mclc_gpu.kernels.noise_cpu import disturb_channel, draw, noise_pass
from mclc_gpu.kernels.packed import Marks, PackedImages, StartGrids, Windows

F = np.float32
U = np.uint64
NONE, LOW, HIGH = range(3)  # the end of the range that replaces values
ENFORCE, COMPONENT, CLUSTER = range(len(CONNECTIVITY))
_SUBSETS = 8  # of the three channels
_WORDS = 8  # words in a vector of the generator
_FAR = F(np.inf)
_LEAST = 8  # trials in a block: each block makes its window's palette, which takes as long as five trials


class NoiseSettings(NamedTuple):
    """Noise and features of every trial; see `mclc_gpu.kernels.config.Noise`."""

    address: int  # of the kind's pass over a channel
    end: int  # NONE, LOW or HIGH
    bound: np.uint32
    intensity: np.float32
    shared: bool
    own_range: bool
    scale: np.float32  # 1 / compactness


class Settings(NamedTuple):
    """Settings that all trials of a run share; see `TrialConfig`."""

    noise: NoiseSettings
    iterations: int
    tolerance: np.float32
    connectivity: int
    windowed: bool
    min_size_factor: float
    max_size_factor: float


class Palette(NamedTuple):
    """One window, what its trials have in common, and their working arrays."""

    window: np.ndarray  # float32 [3, pixels], without noise
    words: np.ndarray  # uint32 [3, pixels in whole vectors], random words of the trial
    light: np.ndarray  # float32 [3, pixels], linear light of the trial
    colors: np.ndarray  # float32 [8, 3, pixels], features by subset of replaced channels; else [0, 3, pixels]
    subsets: np.ndarray  # uint8 [pixels], of the trial
    replaced: np.ndarray  # int32 [pixels + 1], pixels whose subset is not empty
    ends: np.ndarray  # int64 [3 * pixels], words of the values at the end of the range that noise may remove
    number: int  # of these
    low: np.float32  # range of values; noise stays within
    high: np.float32


def settings(config: TrialConfig, byte: bool) -> Settings:
    """Return what the compiled code needs of a config; `byte` images have the fixed range 0..255."""
    kind = NOISES[config.noise]
    noise = NoiseSettings(
        noise_pass(kind.function("cpu")).address,
        {None: NONE, "low": LOW, "high": HIGH}[kind.replaced_by],
        np.uint32(threshold(config.intensity)),
        F(config.intensity),
        config.shared_noise,
        not byte,
        F(1.0 / config.compactness),
    )
    return Settings(
        noise,
        config.max_iterations,
        F(config.tolerance),
        CONNECTIVITY.index(config.connectivity),
        config.method == "slic",
        config.min_size_factor,
        config.max_size_factor,
    )


@compiled()
def _gather(data, corner, pitch, plane, h, w, window):
    """Copy a window into window [3, h * w]; a gray image, whose `plane` is 0, fills all three channels."""
    for c in range(3):
        for y in range(h):
            row = U(corner + c * plane + y * pitch)
            for x in range(U(w)):
                window[c, U(y * w) + x] = F(data[row + x])


@compiled(fastmath={"nnan"})
def _range(values, words, bound, low, high):
    """Widen low..high by the values whose word is not below the bound. Returns too if any word is below."""
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
def _colors(light, scale, f0, f1, f2):
    r, g, b = light
    for p in range(r.shape[0]):
        lightness, green_red, blue_yellow = lab_of_linear(r[p], g[p], b[p])
        f0[p] = lightness * scale
        f1[p] = green_red * scale
        f2[p] = blue_yellow * scale


@compiled()
def _span(least, greatest):
    return greatest - least if greatest > least else F(1)


@compiled()
def palette(data, corner, pitch, plane, h, w, noise):
    """Return the palette of one window of packed images; `corner` is the place of its first pixel."""
    pixels = h * w
    window = np.empty((3, pixels), np.float32)
    _gather(data, corner, pitch, plane, h, w, window)
    words = np.empty((3, (pixels + _WORDS - 1) // _WORDS * _WORDS), np.uint32)
    linear = np.empty((3, pixels), np.float32)
    light = np.empty((3, pixels), np.float32)
    least, greatest = F(np.inf), F(-np.inf)
    for c in range(3):
        least, greatest, _ = _range(window[c], words[c], np.uint32(0), least, greatest)
    low = least if noise.own_range else F(0)
    high = greatest if noise.own_range else F(255)
    replaces = noise.end != NONE
    colors = np.empty((_SUBSETS if replaces else 0, 3, pixels), np.float32)
    ends = np.empty(3 * pixels if replaces else 0, np.int64)
    number = 0
    if replaces:
        # The palette's range: from the replacing end to the window's other end, of which a value must stay.
        end = greatest if noise.end == LOW else least
        for c in range(3):
            for p in range(pixels):
                ends[number] = c * words.shape[1] + p
                number += window[c, p] == end
        darkest = low if noise.end == LOW else least
        span = _span(darkest, greatest if noise.end == LOW else high)
        replacement = linear_light(((low if noise.end == LOW else high) - darkest) / span)
        for c in range(3):
            _linear(window[c], darkest, span, linear[c])
        for subset in range(_SUBSETS):
            for c in range(3):
                if subset >> c & 1:
                    light[c] = replacement
                else:
                    light[c] = linear[c]
            _colors(light, noise.scale, colors[subset, 0], colors[subset, 1], colors[subset, 2])
    subsets, replaced = np.empty(pixels, np.uint8), np.empty(pixels + 1, np.int32)
    return Palette(window, words, light, colors, subsets, replaced, ends, number, low, high)


@compiled()
def _pick(p, bound, features):
    """Pick the features of a trial from the palette. Returns False if it has another range."""
    w0, w1, w2 = p.words
    subsets = p.subsets
    every = np.uint8(0)
    for i in range(subsets.shape[0]):
        subset = np.uint8((w0[i] >> np.uint32(8)) < bound)
        subset |= np.uint8((w1[i] >> np.uint32(8)) < bound) << np.uint8(1)
        subset |= np.uint8((w2[i] >> np.uint32(8)) < bound) << np.uint8(2)
        subsets[i] = subset
        every |= subset
    if every == 0:
        return False
    flat = p.words.reshape(-1)
    kept = False
    for i in range(p.number):
        if (flat[p.ends[i]] >> np.uint32(8)) >= bound:
            kept = True
            break
    if not kept:
        return False
    replaced = p.replaced
    number = 0
    for i in range(subsets.shape[0]):
        replaced[number] = i
        number += subsets[i] != 0
    for c in range(3):
        features[c, : subsets.shape[0]] = p.colors[0, c]
    for j in range(number):
        i = replaced[j]
        for c in range(3):
            features[c, i] = p.colors[subsets[i], c, i]
    return True


@compiled()
def _make(p, noise, features):
    """Make the features of any trial, from its own range."""
    least, greatest = F(np.inf), F(-np.inf)
    if noise.end == NONE:
        for c in range(3):
            noisy = p.light[c]
            disturb_channel(
                noise.address, p.window[c], p.words[c], noise.intensity, noise.bound, p.low, p.high, noisy
            )
            least, greatest, _ = _range(noisy, p.words[c], np.uint32(0), least, greatest)
        span = _span(least, greatest)
        for c in range(3):
            _linear(p.light[c], least, span, p.light[c])
    else:
        replacement = p.low if noise.end == LOW else p.high
        for c in range(3):
            least, greatest, replaced = _range(p.window[c], p.words[c], noise.bound, least, greatest)
            if replaced:
                least, greatest = min(least, replacement), max(greatest, replacement)
        span = _span(least, greatest)
        linear = linear_light((replacement - least) / span)
        for c in range(3):
            _linear(p.window[c], least, span, p.light[c])
            _blend(p.light[c], p.words[c], noise.bound, linear, p.light[c])
    pixels = p.subsets.shape[0]
    _colors(p.light, noise.scale, features[0, :pixels], features[1, :pixels], features[2, :pixels])


@compiled()
def trial_features(p, key, trial, target, noise, features):
    """Fill features, float32 [3, pixels or more], of one noisy trial of the window with palette `p`.

    They are CIELAB of the window, rescaled to its range, divided by the compactness (eq. 1, 7).
    """
    draw(p.words, trial, target, key, noise.shared)
    if not (p.colors.shape[0] and _pick(p, noise.bound, features)):
        _make(p, noise, features)


@compiled()
def _cluster(s, h, w, start, reach_y, reach_x, weight, iterations, tolerance):
    """Run all iterations of one trial. Labels that did not change are a fixed point: stopping is exact."""
    restart(s, start)
    for i in range(iterations):
        changed = assign(s, h, w, reach_y, reach_x, weight)
        if i > 0 and not changed:
            return
        if i + 1 < iterations and update(s, h * w) < tolerance * tolerance:
            return


@compiled()
def _count(labels, wanted, counts):
    for p in range(counts.shape[0]):
        counts[p] += labels[p] == wanted


@compiled()
def _count_marked(labels, click, marks, weights, counts):
    """Add to every pixel's count the number of marks, the click included, in its segment."""
    if marks.shape[0] == 0:
        _count(labels, labels[click], counts)
        return
    for k in range(weights.shape[0]):
        weights[k] = 0
    weights[labels[click]] = 1
    for j in range(marks.shape[0]):
        weights[labels[marks[j]]] += 1
    for p in range(counts.shape[0]):
        counts[p] += weights[labels[p]]


class Batch(NamedTuple):
    """Arrays that the items of a run read and write; see `mclc_gpu.kernels.packed` for the tables.

    An item is a block of trials of one target.
    """

    data: np.ndarray
    images: np.ndarray
    windows: np.ndarray
    keys: np.ndarray
    grids: np.ndarray
    centers: np.ndarray
    offsets: np.ndarray
    mark_offsets: np.ndarray
    marks: np.ndarray
    items: np.ndarray  # int64 [items, 3]: target, first trial, last trial (exclusive)
    partial_offsets: np.ndarray  # int64 [items + 1]: start of each item's counts
    partial: np.ndarray  # int32, every item's counts
    masks: np.ndarray


@compiled()
def _item(batch, i, first_trial, settings):
    """Run all trials of an item: counts into `batch.partial`, masks into `batch.masks` if that has rows."""
    t, first, last = batch.items[i]
    image, top, left, h, w, click_y, click_x, target = batch.windows[t]
    offset, _, _, _, pitch, plane = batch.images[image]
    center, number, reach_y, reach_x, interval = batch.grids[t]
    p = palette(batch.data, offset + top * pitch + left, pitch, plane, h, w, settings.noise)
    counts = batch.partial[batch.partial_offsets[i] : batch.partial_offsets[i + 1]]
    start = batch.centers[center : center + number]
    s = allocate(h, w, number)
    far_y = F(reach_y) if settings.windowed else _FAR
    far_x = F(reach_x) if settings.windowed else _FAR
    weight = F(1.0 / (interval * interval))
    enforce = settings.connectivity == ENFORCE
    min_size = int(settings.min_size_factor * (h * w / number)) if enforce else 0
    max_size = int(settings.max_size_factor * (h * w / number)) if enforce else h * w
    click = click_y * w + click_x
    marks = batch.marks[batch.mark_offsets[t] : batch.mark_offsets[t + 1]]
    for trial in range(first, last):
        trial_features(p, U(batch.keys[t]), trial, target, settings.noise, s.pixels[2:5])
        _cluster(s, h, w, start, far_y, far_x, weight, settings.iterations, settings.tolerance)
        if settings.connectivity != CLUSTER:
            relabel(s.labels, h, w, min_size, max_size, s.labels, s.flood)
        _count_marked(s.labels, click, marks, s.weights, counts)
        if batch.masks.shape[0]:
            kept = batch.masks[trial - first_trial, batch.offsets[t] : batch.offsets[t] + h * w]
            _count_marked(s.labels, click, marks, s.weights, kept)


@compiled()
def _collect(partial, partial_offsets, targets, offsets, counts):
    """Add the items' counts up by target."""
    for i in range(targets.shape[0]):
        start = offsets[targets[i]]
        for p in range(partial_offsets[i + 1] - partial_offsets[i]):
            counts[start + p] += partial[partial_offsets[i] + p]


def run(
    images: PackedImages,
    windows: Windows,
    keys: torch.Tensor,
    grids: StartGrids,
    marks: Marks,
    config: TrialConfig,
    first_trial: int,
    trials: int,
    counts: torch.Tensor,
    masks: torch.Tensor,
) -> None:
    """Fill counts int32 [pixels of all windows], and masks uint8 [trials, same] unless it has no rows."""
    threads, targets = numba.get_num_threads(), len(windows)
    offsets, sizes = windows.offsets.numpy(), windows.sizes.numpy()
    blocks = max(1, min(trials // _LEAST, 8 * threads // targets))
    bounds = first_trial + np.arange(blocks + 1) * trials // blocks
    # The largest windows first: the threads then end together.
    order = np.repeat(np.argsort(-sizes, kind="stable"), blocks)
    items = np.stack([order, np.tile(bounds[:-1], targets), np.tile(bounds[1:], targets)], axis=1)
    partial_offsets = np.concatenate([[0], np.cumsum(sizes[order])])
    partial = np.zeros(partial_offsets[-1], np.int32)
    batch = Batch(
        images.data.numpy(), images.table.numpy(), windows.table.numpy(), keys.numpy(), grids.table.numpy(),
        grids.centers.numpy(), offsets, marks.offsets.numpy(), marks.pixels.numpy(), items, partial_offsets,
        partial, masks.numpy(),
    )  # fmt: skip
    shared = settings(config, images.data.dtype == torch.uint8)
    # Threads rather than a parallel loop of numba's, which takes longer to compile than all the rest.
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(lambda i: _item(batch, i, first_trial, shared), range(len(items))), maxlen=0)
    _collect(partial, partial_offsets, order, offsets, counts.numpy())
