"""Dense-CRF mean field in numba: windows in parallel, each with its weights in the cache.

The smoothness kernel is separable: two passes of a one-dimensional sum. The weights of the appearance kernel
are computed once per pair of pixels and kept for the iterations if they fit the cache. An image too large for
one thread is shared between the threads, which then compute every weight anew.
"""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
import torch

from mclc_gpu.kernels.config import NORMALIZATIONS, CrfConfig
from mclc_gpu.kernels.crf_simd_cpu import LANES, QUERIES, SUMS, VALUES, receive_plain, receive_simd
from mclc_gpu.kernels.jit_cpu import SIMD, bits_float, compiled, float_bits, fma
from mclc_gpu.kernels.mean_field import differences, in_pieces
from mclc_gpu.kernels.packed import PackedImages, Windows

F = np.float32
U = np.uintp  # Signed indices would be checked for wrap-around.
_SYMMETRIC, _BEFORE, _AFTER, _NONE = range(len(NORMALIZATIONS))
_MAKE, _KEEP, _READ = range(3)
# Rows of the scratch after the features (five at most), VALUES and their weighted SUMS: the factors on both,
# of the appearance kernel and of the smoothness kernel; two rows for the smoothness kernel's passes.
_PRE, _POST, _SMOOTH_PRE, _SMOOTH_POST, _LINES, _CROSSED, _PLANES = range(SUMS + 1, SUMS + 8)
_receive = receive_simd if SIMD else receive_plain
# Adding this float32 rounds a small number to an integer, which is then found in the lowest bits.
_ROUND = F(12582912)
# 2^x on -0.5..0.5 as 1 + x * (...): the least relative error of that degree, 1e-7.
_POWER = tuple(F(x) for x in (0.69314697760, 0.24022242085, 0.05550733743, 0.00967151264, 0.00132647272))
# Weights kept per thread at most: 8 MiB. Reading more from memory takes as long as computing them.
KEPT_WEIGHTS = 1 << 21
# Windows of more pixels are shared between threads.
SHARED_PIXELS = 4096
# Pixels whose features and weights stay near the processor.
_TILE = 2048
# Weights of the smoothness kernel below it are lost in a float32 sum of weights up to 1.
_NEGLIGIBLE = 2.0**-40
# Distance of the padding from every pixel; its square is finite.
_FAR = F(1e9)


class Settings(NamedTuple):
    """Settings that all windows share: `position` and `color` scale features to exponents of 2."""

    position: np.float32
    color: np.float32
    gaussian_compat: np.float32
    bilateral_compat: np.float32
    mode: int
    iterations: int


class Field(NamedTuple):
    """Arrays that the windows of a run read and write; classes but the first, relative to it."""

    energy: np.ndarray  # float32 [classes - 1, pixels]
    difference: np.ndarray  # float32 [classes - 1, pixels], of probabilities
    logits: np.ndarray  # float32 [classes - 1, pixels]
    colors: np.ndarray  # float32 [pixels, 1 or 3]
    windows: np.ndarray  # int64 [windows, 2]
    offsets: np.ndarray  # int64 [windows + 1]
    taps: np.ndarray  # float32 [reach + 1], smoothness kernel along one axis


class Scratch(NamedTuple):
    """Working arrays of one window."""

    planes: np.ndarray  # float32 [13, padded pixels or more]; the rows are named above
    weights: np.ndarray  # float32, of all pairs of the window, or of four pixels with all others


def _planes(pixels: int) -> np.ndarray:
    # Two vectors more: planes a power of two apart would share the sets of the cache.
    return np.empty((_PLANES, _padded(pixels) + 2 * LANES), F)


def _scratch(sizes: np.ndarray, kept_weights: int) -> Scratch:
    """Return scratch for windows of these numbers of pixels."""
    pairs = _pairs(_padded(sizes))
    weights = pairs[pairs <= kept_weights].max(initial=QUERIES * _padded(sizes.max()))
    return Scratch(_planes(sizes.max()), np.empty(weights, F))


@compiled()
def _padded(pixels):
    return -(-pixels // LANES) * LANES


@compiled()
def _pairs(padded):
    """Weights of a window: of each pixel with the pixels of its vector and of those that follow."""
    return padded * (padded + LANES) // 2


@compiled()
def _features(f, planes, b, settings):
    """Fill in the positions and colors of a window, plane by plane. Returns the number of planes."""
    height, width = f.windows[b]
    first, last = f.offsets[b], f.offsets[b + 1]
    channels = f.colors.shape[1]
    gray = True
    for p in range(first, last):
        for c in range(1, channels):
            gray &= f.colors[p, c] == f.colors[p, 0]
    features = 3 if gray else 5
    scale = settings.color * F(math.sqrt(3)) if gray else settings.color
    for y in range(height):
        for x in range(width):
            planes[0, y * width + x] = F(y) * settings.position
            planes[1, y * width + x] = F(x) * settings.position
    for plane in range(features):
        for p in range(first, last if plane > 1 else first):
            planes[plane, p - first] = f.colors[p, plane - 2] * scale
        for p in range(last - first, _padded(last - first)):
            planes[plane, p] = _FAR
    return features


@compiled()
def _factors(sums, pixels, mode, pre, post):
    """Compute the normalization from the row sums of a kernel: factors on the values and on their sums."""
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
    """Compute the row sums of the smoothness kernel along one axis."""
    for place in range(length):
        total = 0.0
        for i in range(max(0, place - taps.shape[0] + 1), min(length, place + taps.shape[0])):
            total += taps[abs(i - place)]
        out[place] = total


@compiled()
def _begin(f, s, b, settings):
    """Fill in features, factors of the smoothness kernel, and values of 1. Returns the number of features."""
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
    for p in range(_padded(pixels)):
        planes[VALUES, p] = F(p < pixels)
        planes[SUMS, p] = 0
    return _features(f, planes, b, settings)


@compiled(inline="always")
def _power(squares):
    """2^-x of squared distances; 2^-126 above 126."""
    x = squares if squares < F(126) else F(126)
    rounded = _ROUND - x
    rest = (_ROUND - rounded) - x
    value = fma(_POWER[4], rest, _POWER[3])
    value = fma(value, rest, _POWER[2])
    value = fma(value, rest, _POWER[1])
    value = fma(value, rest, _POWER[0])
    value = fma(value, rest, F(1))
    return bits_float(np.int32(float_bits(value) + np.int32(float_bits(rounded) << np.int32(23))))


@compiled()
def _gray_weights(planes, query, first, last, weights, at):
    """Compute 2^-(squared distance of 3 features) of pixel `query` and the pixels first..last."""
    q0, q1, q2 = planes[U(0), query], planes[U(1), query], planes[U(2), query]
    at -= first
    for p in range(first, last):
        d0, d1, d2 = planes[U(0), p] - q0, planes[U(1), p] - q1, planes[U(2), p] - q2
        weights[at + p] = _power(fma(d2, d2, fma(d1, d1, d0 * d0)))


@compiled()
def _color_weights(planes, query, first, last, weights, at):
    """Compute the same of 5 features."""
    q0, q1, q2 = planes[U(0), query], planes[U(1), query], planes[U(2), query]
    q3, q4 = planes[U(3), query], planes[U(4), query]
    at -= first
    for p in range(first, last):
        d0, d1, d2 = planes[U(0), p] - q0, planes[U(1), p] - q1, planes[U(2), p] - q2
        d3, d4 = planes[U(3), p] - q3, planes[U(4), p] - q4
        weights[at + p] = _power(fma(d4, d4, fma(d3, d3, fma(d2, d2, fma(d1, d1, d0 * d0)))))


@compiled()
def _send(planes, query, first, last, weights, at, size):
    """Add the weighted values of the pixels from `query` on to the sums of the pixels first..last.

    A weight of pixel p is at `at` + p, and `size` further for each of the pixels that send.
    """
    v0, v1 = planes[U(VALUES), query], planes[U(VALUES), query + U(1)]
    v2, v3 = planes[U(VALUES), query + U(2)], planes[U(VALUES), query + U(3)]
    for p in range(first, last):
        w0, w1, w2 = weights[at + p], weights[at + size + p], weights[at + U(2) * size + p]
        w3 = weights[at + U(3) * size + p]
        planes[U(SUMS), p] = fma(w3, v3, fma(w2, v2, fma(w1, v1, fma(w0, v0, planes[U(SUMS), p]))))


@compiled()
def _make_weights(planes, features, query, first, last, weights, at):
    """Compute weights [QUERIES, last - first] of the pixels from `query` on and the pixels first..last."""
    for i in range(U(QUERIES)):
        if features == 3:
            _gray_weights(planes, query + i, first, last, weights, at + i * (last - first))
        else:
            _color_weights(planes, query + i, first, last, weights, at + i * (last - first))


@compiled()
def _window_sums(s, features, pixels, source):
    """Add the weighted values of all pixels to each pixel's sum; each weight serves both directions."""
    at, last = U(0), U(_padded(pixels))
    for first in range(U(0), last, U(LANES)):
        after = first + U(LANES)
        for query in range(first, after, U(QUERIES)):
            if source != _READ:
                _make_weights(s.planes, features, query, first, last, s.weights, at)
            _receive(s.planes, query, first, last, s.weights, at)
            _send(s.planes, query, after, last, s.weights, at - first, last - first)
            if source != _MAKE:
                at += U(QUERIES) * (last - first)


@compiled()
def _part_sums(planes, features, pixels, begin, end):
    """Add the weighted values of all pixels to the sums of the pixels begin..end alone."""
    weights = np.empty(QUERIES * _TILE, F)
    for first in range(U(0), U(_padded(pixels)), U(_TILE)):
        last = min(first + U(_TILE), U(_padded(pixels)))
        for query in range(U(begin), U(end), U(QUERIES)):
            _make_weights(planes, features, query, first, last, weights, U(0))
            _receive(planes, query, first, last, weights, U(0))


@compiled()
def _add_scaled(target, source, size, scale):
    for i in range(size):
        target[i] += scale * source[i]


@compiled()
def _down(source, target, height, width, taps):
    """Compute weighted sums along the columns: whole rows are added at a time."""
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
    """Fill in the values of the appearance kernel for one class of a window."""
    for p in range(difference.shape[0]):
        planes[VALUES, p] = planes[_PRE, p] * difference[p]
        planes[SUMS, p] = 0
    for p in range(difference.shape[0], _padded(difference.shape[0])):
        planes[VALUES, p] = 0


@compiled()
def _store(f, planes, b, label, settings):
    """Compute the logits of one class: energy and the messages of both kernels."""
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
            logit += bilateral * planes[_POST, p] * planes[SUMS, p]
        if smooth > 0:
            logit += smooth * planes[_SMOOTH_POST, p] * lines[p]
        f.logits[label, first + p] = logit


@compiled()
def _renew(f, b):
    """Compute the differences of the probabilities from the logits."""
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
    """Do all iterations of windows begin..end."""
    for b in range(begin, end):
        features = _begin(f, s, b, settings)
        first, last = f.offsets[b], f.offsets[b + 1]
        pixels = last - first
        keep = _pairs(_padded(pixels)) <= s.weights.shape[0]
        if features:
            _window_sums(s, features, pixels, _KEEP if keep else _MAKE)
            _factors(s.planes[SUMS], pixels, settings.mode, s.planes[_PRE], s.planes[_POST])
        for i in range(settings.iterations):
            if i:
                _renew(f, b)
            for label in range(f.energy.shape[0]):
                if features:
                    _load(f.difference[label, first:last], s.planes)
                    _window_sums(s, features, pixels, _READ if keep else _MAKE)
                _store(f, s.planes, b, label, settings)


def _image(f: Field, b: int, settings: Settings, pool: ThreadPoolExecutor, threads: int) -> None:
    """Do all iterations of one large window, its pixels shared between the threads."""
    first, last = int(f.offsets[b]), int(f.offsets[b + 1])
    pixels = last - first
    s = Scratch(_planes(pixels), np.empty(0, F))
    bounds = LANES * np.linspace(0, _padded(pixels) // LANES, 8 * threads + 1).astype(np.int64)

    def share() -> None:
        deque(pool.map(lambda part: _part_sums(s.planes, features, pixels, *part), pairwise(bounds)), 0)

    features = _begin(f, s, b, settings)
    if features:
        share()
        _factors(s.planes[SUMS], pixels, settings.mode, s.planes[_PRE], s.planes[_POST])
    for i in range(settings.iterations):
        if i:
            _renew(f, b)
        for label in range(len(f.energy)):
            if features:
                _load(f.difference[label, first:last], s.planes)
                share()
            _store(f, s.planes, b, label, settings)


def _taps(width: float, longest: int) -> np.ndarray:
    """Return exp(-d^2 / 2 width^2) of d = 0, 1, ... as far as it matters, float32."""
    reach = min(longest, math.ceil(width * math.sqrt(-2 * math.log(_NEGLIGIBLE))))
    return np.exp(-0.5 * (np.arange(reach + 1) / width) ** 2).astype(F)


@compiled()
def _copy_colors(data, images, windows, out):
    place = 0
    channels = out.shape[1]
    for b in range(windows.shape[0]):
        image, top, left, height, width, _, _, _ = windows[b]
        offset, _, _, _, pitch, plane = images[image]
        for y in range(height):
            for x in range(width):
                at = offset + (top + y) * pitch + left + x
                for c in range(channels):
                    out[place, c] = data[at + c * plane]
                place += 1


def window_colors(images: PackedImages, windows: Windows, channels: int) -> torch.Tensor:
    """Return the colors [pixels, channels] of windows; see `crf.window_colors`."""
    out = torch.empty((int(windows.sizes.sum()), channels), dtype=images.data.dtype)
    _copy_colors(images.data.numpy(), images.table.numpy(), windows.table.numpy(), out.numpy())
    return out


def run(
    energy: torch.Tensor,
    colors: torch.Tensor,
    windows: torch.Tensor,
    config: "CrfConfig",
    *,
    kept_weights: int = KEPT_WEIGHTS,
    shared_pixels: int = SHARED_PIXELS,
) -> torch.Tensor:
    """Return logits relative to the first class after all iterations.

    Parameters
    ----------
    energy : Tensor [classes - 1, pixels], float32
        Logits before the first iteration.
    colors, windows, config
        See `crf.dense_crf`.
    kept_weights : int
        Weights that a thread keeps for the iterations at most; those of larger windows are computed anew.
    shared_pixels : int
        Windows of more pixels are shared between threads. They are summed in another order, hence not the
        same to the last bit.

    Returns
    -------
    Tensor [classes - 1, pixels], float32
    """
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
        np.ascontiguousarray(colors.numpy(), F), windows.numpy(), offsets,
        _taps(config.gaussian_sxy, int(windows.max())),
    )  # fmt: skip
    threads = numba.get_num_threads()
    # Runs of neighboring windows of like work, none with a large one inside.
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
