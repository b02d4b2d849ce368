"""Dense-CRF mean field in numba: windows in parallel, each with its weights in the cache.

The smoothness kernel is separable: two passes of a one-dimensional sum. The weights of the appearance kernel
are made once per pair of pixels and kept for the iterations if they fit the cache. An image too large to be
one thread's work is shared between the threads, which then make every weight anew.
"""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import torch

from mclc_gpu.kernels.config import NORMALIZATIONS, CrfConfig
from mclc_gpu.kernels.crf_simd_cpu import LANES, QUERIES, colour_rows, gray_rows, kept_rows
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.mean_field import differences, in_pieces
from mclc_gpu.kernels.packed import PackedImages, Windows

F = np.float32
_SYMMETRIC, _BEFORE, _AFTER, _NONE = range(len(NORMALIZATIONS))
_MAKE, _KEEP, _READ = range(3)
# Rows of the scratch after the features (five at most): values and their weighted sums; the factors on both,
# of the appearance kernel and of the smoothness kernel; two rows for the smoothness kernel's passes.
_VALUES, _SUMS, _PRE, _POST, _SMOOTH_PRE, _SMOOTH_POST, _LINES, _CROSSED, _PLANES = range(5, 14)
# Weights kept per thread at most: 8 MiB. Reading more from memory takes as long as making them.
KEPT_WEIGHTS = 1 << 21
# Windows of more pixels are shared between threads.
SHARED_PIXELS = 4096
# Vectors of keys whose features stay in the first-level cache.
_TILE = 256
_BLOCK = LANES * QUERIES
# Weights of the smoothness kernel below it are lost in a float32 sum of weights up to 1.
_NEGLIGIBLE = 2.0**-40
# Distance of the padding from every pixel; its square is finite.
_FAR = F(1e9)


class Settings(NamedTuple):
    """What all windows share: `position` and `colour` scale features to exponents of 2."""

    position: np.float32
    colour: np.float32
    gaussian_compat: np.float32
    bilateral_compat: np.float32
    mode: int
    iterations: int


class Field(NamedTuple):
    """All that the windows of a run read and write; classes but the first, relative to it."""

    energy: np.ndarray  # float32 [classes - 1, pixels]
    difference: np.ndarray  # float32 [classes - 1, pixels], of probabilities
    logits: np.ndarray  # float32 [classes - 1, pixels]
    colours: np.ndarray  # float32 [pixels, 1 or 3]
    windows: np.ndarray  # int64 [windows, 2]
    offsets: np.ndarray  # int64 [windows + 1]
    taps: np.ndarray  # float32 [reach + 1], smoothness kernel along one axis


class Scratch(NamedTuple):
    """Working arrays of one window."""

    planes: np.ndarray  # float32 [13, at least the pixels in whole vectors]; the names above tell the rows
    kept: np.ndarray  # float32, weights


def _scratch(sizes: np.ndarray, kept_weights: int = KEPT_WEIGHTS) -> Scratch:
    """Return scratch for windows of these numbers of pixels."""
    vectors = -(-sizes // LANES)
    weights = _BLOCK * vectors * (vectors + 1)
    kept = int(weights[weights <= kept_weights].max(initial=_BLOCK))
    # Two vectors more: planes a power of two apart would share the sets of the cache.
    return Scratch(np.empty((_PLANES, LANES * (int(vectors.max()) + 2)), F), np.empty(kept, F))


@compiled()
def _features(f, planes, b, settings):
    """Positions and colours of a window, plane by plane. Returns the number of planes."""
    height, width = f.windows[b]
    first, last = f.offsets[b], f.offsets[b + 1]
    channels = f.colours.shape[1]
    gray = True
    for p in range(first, last):
        for c in range(1, channels):
            gray &= f.colours[p, c] == f.colours[p, 0]
    features = 3 if gray else 5
    scale = settings.colour * F(math.sqrt(3)) if gray else settings.colour
    for y in range(height):
        for x in range(width):
            planes[0, y * width + x] = F(y) * settings.position
            planes[1, y * width + x] = F(x) * settings.position
    for plane in range(features):
        for p in range(first, last if plane > 1 else first):
            planes[plane, p - first] = f.colours[p, plane - 2] * scale
        for p in range(last - first, -(-(last - first) // LANES) * LANES):
            planes[plane, p] = _FAR
    return features


@compiled()
def _factors(sums, pixels, mode, pre, post):
    """Normalisation from the row sums of a kernel: factors on the values and on their sums."""
    total = 0.0
    for p in range(pixels):
        total += sums[p]
    mean = F(pixels / total)
    for p in range(pixels):
        one = F(1) / (F(math.sqrt(sums[p])) if mode == _SYMMETRIC else sums[p])
        pre[p] = one if mode in (_SYMMETRIC, _BEFORE) else F(1)
        post[p] = mean if mode == _NONE else (F(1) if mode == _BEFORE else one)


@compiled()
def _axis_sums(taps, length, out):
    """Row sums of the smoothness kernel along one axis."""
    for place in range(length):
        total = 0.0
        for i in range(max(0, place - taps.shape[0] + 1), min(length, place + taps.shape[0])):
            total += taps[abs(i - place)]
        out[place] = total


@compiled()
def _begin(f, s, b, settings):
    """Features, factors of the smoothness kernel, and values of one. Returns the number of features."""
    height, width = f.windows[b]
    planes, pixels = s.planes, height * width
    if settings.gaussian_compat > 0:
        by_row, by_column, both = planes[_SMOOTH_PRE], planes[_SMOOTH_POST], planes[_LINES]
        _axis_sums(f.taps, height, by_row)
        _axis_sums(f.taps, width, by_column)
        for y in range(height):
            for x in range(width):
                both[y * width + x] = by_row[y] * by_column[x]
        _factors(both, pixels, settings.mode, planes[_SMOOTH_PRE], planes[_SMOOTH_POST])
    if settings.bilateral_compat == 0:
        return 0
    for p in range(-(-pixels // LANES) * LANES):
        planes[_VALUES, p] = F(p < pixels)
        planes[_SUMS, p] = 0
    return _features(f, planes, b, settings)


@compiled()
def _rows(s, features, query, first, both, last, weights, step):
    """Sums of four pixels with `features` planes, or 0 for weights kept before."""
    stride = s.planes.shape[1]
    pixels = s.planes.ctypes.data
    values, sums = pixels + 4 * _VALUES * stride, pixels + 4 * _SUMS * stride
    if features == 0:
        kept_rows(pixels, stride, values, sums, weights, step, query, first, both, last)
    elif features == 3:
        gray_rows(pixels, stride, values, sums, weights, step, query, first, both, last)
    else:
        colour_rows(pixels, stride, values, sums, weights, step, query, first, both, last)


@compiled()
def _window_sums(s, features, vectors, source):
    """Add the weighted values of all pixels to each pixel's sum; each pair once for both directions."""
    weights = s.kept.ctypes.data
    step = 0 if source == _MAKE else _BLOCK
    made = 0 if source == _READ else features
    for vector in range(vectors):
        for query in range(vector * LANES, (vector + 1) * LANES, QUERIES):
            _rows(s, made, query, vector, vector + 1, vectors, weights, step)
            weights += 4 * step * (vectors - vector)


@compiled()
def _part_sums(s, features, vectors, begin, end):
    """The same for the pixels of vectors begin..end alone, in one direction."""
    weights = np.empty(_BLOCK, F)
    for tile in range(0, vectors, _TILE):
        last = min(tile + _TILE, vectors)
        for query in range(begin * LANES, end * LANES, QUERIES):
            _rows(s, features, query, tile, last, last, weights.ctypes.data, 0)


@compiled()
def _add_scaled(target, source, size, scale):
    for i in range(size):
        target[i] += scale * source[i]


@compiled()
def _down(source, target, height, width, taps):
    """Weighted sums along the columns: whole rows are added at a time."""
    for p in range(height * width):
        target[p] = taps[0] * source[p]
    for d in range(1, min(taps.shape[0], height)):
        shift, rest = d * width, (height - d) * width
        _add_scaled(target, source[shift:], rest, taps[d])
        _add_scaled(target[shift:], source, rest, taps[d])


@compiled()
def _cross(source, target, height, width):
    for y in range(height):
        for x in range(width):
            target[x * height + y] = source[y * width + x]


@compiled()
def _load(difference, planes):
    """Values of the appearance kernel for one class of a window."""
    for p in range(difference.shape[0]):
        planes[_VALUES, p] = planes[_PRE, p] * difference[p]
        planes[_SUMS, p] = 0
    for p in range(difference.shape[0], -(-difference.shape[0] // LANES) * LANES):
        planes[_VALUES, p] = 0


@compiled()
def _store(f, planes, b, label, settings):
    """Logits of one class: energy and the messages of both kernels."""
    height, width = f.windows[b]
    first, pixels = f.offsets[b], height * width
    lines, crossed = planes[_LINES], planes[_CROSSED]
    smooth, bilateral = settings.gaussian_compat, settings.bilateral_compat
    if smooth > 0:
        for p in range(pixels):
            lines[p] = planes[_SMOOTH_PRE, p] * f.difference[label, first + p]
        _down(lines, crossed, height, width, f.taps)
        _cross(crossed, lines, height, width)
        _down(lines, crossed, width, height, f.taps)
        _cross(crossed, lines, width, height)
    for p in range(pixels):
        logit = f.energy[label, first + p]
        if bilateral > 0:
            logit += bilateral * planes[_POST, p] * planes[_SUMS, p]
        if smooth > 0:
            logit += smooth * planes[_SMOOTH_POST, p] * lines[p]
        f.logits[label, first + p] = logit


@compiled()
def _renew(f, b):
    """Differences of the probabilities from the logits."""
    classes = f.logits.shape[0]
    for p in range(f.offsets[b], f.offsets[b + 1]):
        top = F(0)
        for k in range(classes):
            top = max(top, f.logits[k, p])
        first = F(math.exp(-top))
        total = first
        for k in range(classes):
            f.difference[k, p] = math.exp(f.logits[k, p] - top)
            total += f.difference[k, p]
        for k in range(classes):
            f.difference[k, p] = (f.difference[k, p] - first) / total


@compiled()
def _windows(f, s, begin, end, settings):
    """All iterations of windows begin..end."""
    for b in range(begin, end):
        features = _begin(f, s, b, settings)
        first, last = f.offsets[b], f.offsets[b + 1]
        vectors = -(-(last - first) // LANES)
        keep = _BLOCK * vectors * (vectors + 1) <= s.kept.shape[0]
        if features:
            _window_sums(s, features, vectors, _KEEP if keep else _MAKE)
            _factors(s.planes[_SUMS], last - first, settings.mode, s.planes[_PRE], s.planes[_POST])
        for i in range(settings.iterations):
            if i:
                _renew(f, b)
            for label in range(f.energy.shape[0]):
                if features:
                    _load(f.difference[label, first:last], s.planes)
                    _window_sums(s, features, vectors, _READ if keep else _MAKE)
                _store(f, s.planes, b, label, settings)


def _image(f: Field, b: int, settings: Settings, pool: ThreadPoolExecutor, threads: int) -> None:
    """All iterations of one large window, its pixels shared between the threads."""
    first, last = int(f.offsets[b]), int(f.offsets[b + 1])
    s = _scratch(np.array([last - first]))
    vectors = -(-(last - first) // LANES)
    bounds = np.linspace(0, vectors, 8 * threads + 1).astype(np.int64)

    def share() -> None:
        deque(pool.map(lambda i: _part_sums(s, features, vectors, *bounds[i : i + 2]), range(8 * threads)), 0)

    features = _begin(f, s, b, settings)
    if features:
        share()
        _factors(s.planes[_SUMS], last - first, settings.mode, s.planes[_PRE], s.planes[_POST])
    for i in range(settings.iterations):
        if i:
            _renew(f, b)
        for label in range(len(f.energy)):
            if features:
                _load(f.difference[label, first:last], s.planes)
                share()
            _store(f, s.planes, b, label, settings)


def _taps(width: float, longest: int) -> np.ndarray:
    """exp(-d^2 / 2 width^2) of d = 0, 1, ... as far as it matters, float32."""
    reach = min(longest, math.ceil(width * math.sqrt(-2 * math.log(_NEGLIGIBLE))))
    return np.exp(-0.5 * (np.arange(reach + 1) / width) ** 2).astype(F)


@compiled()
def _copy_colours(data, images, windows, out):
    place = 0
    channels = out.shape[1]
    for b in range(windows.shape[0]):
        image, top, left, height, width, _, _, _ = windows[b]
        offset, rows, pitch, own = images[image]
        plane = rows * pitch if own == 3 else 0
        for y in range(height):
            for x in range(width):
                at = offset + (top + y) * pitch + left + x
                for c in range(channels):
                    out[place, c] = data[at + c * plane]
                place += 1


def window_colours(images: PackedImages, windows: Windows, channels: int) -> torch.Tensor:
    """Colours [pixels, channels] of windows; see `crf.window_colours`."""
    out = torch.empty((int(windows.sizes.sum()), channels), dtype=images.data.dtype)
    _copy_colours(images.data.numpy(), images.table.numpy(), windows.table.numpy(), out.numpy())
    return out


def run(
    energy: torch.Tensor,
    colours: torch.Tensor,
    windows: torch.Tensor,
    config: "CrfConfig",
    *,
    kept_weights: int = KEPT_WEIGHTS,
    shared_pixels: int = SHARED_PIXELS,
) -> torch.Tensor:
    """Logits relative to the first class [classes - 1, pixels] after all iterations; see `crf.dense_crf`."""
    exponent = math.sqrt(0.5 * math.log2(math.e))
    settings = Settings(
        F(exponent / config.bilateral_sxy),
        F(exponent / config.bilateral_srgb),
        F(config.gaussian_compat),
        F(config.bilateral_compat),
        NORMALIZATIONS.index(config.normalization),
        config.iterations,
    )
    logits = torch.empty_like(energy)
    sizes = windows.prod(1).numpy()
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    f = Field(
        energy.numpy(), in_pieces(differences, energy).numpy(), logits.numpy(),
        np.ascontiguousarray(colours.numpy(), F), windows.numpy(), offsets,
        _taps(config.gaussian_sxy, int(windows.max())),
    )  # fmt: skip
    threads = numba.get_num_threads()
    # Runs of neighbouring windows of like work, none with a large one inside.
    work = np.cumsum(np.where(sizes > shared_pixels, 0, sizes.astype(np.float64) ** 2))
    parts = np.searchsorted(work, np.linspace(0, work[-1], 8 * threads + 1)[1:-1])
    large = np.flatnonzero(sizes > shared_pixels)
    bounds = np.unique(np.concatenate([[0, len(sizes)], parts, large, large + 1]))

    spare = deque(_scratch(np.minimum(sizes, shared_pixels), kept_weights) for _ in range(threads))

    def small(i: int) -> None:
        begin, end = int(bounds[i]), int(bounds[i + 1])
        if sizes[begin] <= shared_pixels:
            s = spare.pop()
            _windows(f, s, begin, end, settings)
            spare.append(s)

    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(small, range(len(bounds) - 1)), 0)
        for b in large.tolist():
            _image(f, b, settings, pool, threads)
    return logits
