"""Features of noisy trials in numba: noise, rescaling and CIELAB of one window (eq. 1, 7).

Salt and pepper replace a value by one and the same, and nearly always leave the window's range as it is:
then a pixel has one of eight colours, by which of its channels are replaced. They are made once for all
trials of a window, and a trial only picks.
"""

from typing import NamedTuple

import numpy as np

from mclc_gpu.kernels.color_cpu import lab_of_linear, linear_light
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.noise_cpu import GAUSSIAN, PEPPER, SALT, disturb
from mclc_gpu.kernels.vector_cpu import philox_vectors

F = np.float32
U = np.uint64
_SUBSETS = 8
_WORDS = 8  # pixels in a vector of the generator


class Noise(NamedTuple):
    """What every trial shares: `bound` is salt's and pepper's threshold, `scale` 1 / compactness."""

    kind: int
    bound: int
    intensity: np.float32
    shared: bool
    own_range: bool
    scale: np.float32


class Palette(NamedTuple):
    """One window, what its trials have in common, and working arrays; n pixels, in whole vectors."""

    window: np.ndarray  # float32 [3, pixels], without noise
    words: np.ndarray  # uint32 [3, n], random words of the trial
    light: np.ndarray  # float32 [3, pixels], linear light of the trial
    colours: np.ndarray  # float32 [8, 3, pixels], features by subset of replaced channels
    subsets: np.ndarray  # uint8 [pixels], of the trial
    replaced: np.ndarray  # int32 [pixels + 1], pixels whose subset is not empty
    ends: np.ndarray  # int64 [3 * pixels], where the window holds the end of its range that noise may remove
    number: int  # of these
    low: np.float32  # range of values; noise stays within
    high: np.float32


@compiled()
def _gather(image, height, width, channels, top, left, h, w, window):
    """Copy a window of one planar image into window [3, h * w]; a gray image fills all three channels."""
    for c in range(3):
        plane = (c if channels == 3 else 0) * height * width
        for y in range(h):
            row = plane + (top + y) * width + left
            for x in range(w):
                window[c, y * w + x] = F(image[row + x])


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
def _span(least, greatest):
    return greatest - least if greatest > least else F(1)


@compiled()
def palette(image, height, width, channels, top, left, h, w, noise):
    """What the trials of one window of a planar image have in common."""
    pixels = h * w
    window = np.empty((3, pixels), np.float32)
    _gather(image, height, width, channels, top, left, h, w, window)
    words = np.empty((3, (pixels + _WORDS - 1) // _WORDS * _WORDS), np.uint32)
    linear = np.empty((3, pixels), np.float32)
    light = np.empty((3, pixels), np.float32)
    least, greatest = F(np.inf), F(-np.inf)
    for c in range(3):
        least, greatest, _ = _range(window[c], words[c], np.uint32(0), least, greatest)
    low = least if noise.own_range else F(0)
    high = greatest if noise.own_range else F(255)
    replaces = noise.kind == SALT or noise.kind == PEPPER
    colours = np.empty((_SUBSETS if replaces else 0, 3, pixels), np.float32)
    ends = np.empty(3 * pixels if replaces else 0, np.int64)
    number = 0
    if replaces:
        end = greatest if noise.kind == PEPPER else least
        for c in range(3):
            for p in range(pixels):
                ends[number] = c * words.shape[1] + p
                number += window[c, p] == end
        darkest = low if noise.kind == PEPPER else least
        span = _span(darkest, greatest if noise.kind == PEPPER else high)
        bright = linear_light(((low if noise.kind == PEPPER else high) - darkest) / span)
        for c in range(3):
            _linear(window[c], darkest, span, linear[c])
        for subset in range(_SUBSETS):
            for c in range(3):
                if subset >> c & 1:
                    light[c] = bright
                else:
                    light[c] = linear[c]
            _colours(light, noise.scale, colours[subset, 0], colours[subset, 1], colours[subset, 2])
    subsets, replaced = np.empty(pixels, np.uint8), np.empty(pixels + 1, np.int32)
    return Palette(window, words, light, colours, subsets, replaced, ends, number, low, high)


@compiled()
def _draw(words, trial, target, key, shared):
    stride = np.int64(words.shape[1])
    philox_vectors(words.ctypes.data, stride, stride // _WORDS, np.int64(trial), np.int64(target), key)
    if shared:
        words[1] = words[0]
        words[2] = words[0]


@compiled()
def _pick(p, bound, features):
    """Features of a salted or peppered trial from the palette. Does the trial have the palette's range?"""
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
        features[c, : subsets.shape[0]] = p.colours[0, c]
    for j in range(number):
        i = replaced[j]
        for c in range(3):
            features[c, i] = p.colours[subsets[i], c, i]
    return True


@compiled()
def _make(p, bound, noise, features):
    """Features of any trial, from its own range."""
    least, greatest = F(np.inf), F(-np.inf)
    if noise.kind == GAUSSIAN:
        for c in range(3):
            _gaussian(p.window[c], p.words[c], noise.intensity * (p.high - p.low), p.low, p.high, p.light[c])
            least, greatest, _ = _range(p.light[c], p.words[c], np.uint32(0), least, greatest)
        span = _span(least, greatest)
        for c in range(3):
            _linear(p.light[c], least, span, p.light[c])
    else:
        replacement = p.low if noise.kind == PEPPER else p.high
        for c in range(3):
            least, greatest, replaced = _range(p.window[c], p.words[c], bound, least, greatest)
            if replaced:
                least, greatest = min(least, replacement), max(greatest, replacement)
        span = _span(least, greatest)
        bright = linear_light((replacement - least) / span)
        for c in range(3):
            _linear(p.window[c], least, span, p.light[c])
            _blend(p.light[c], p.words[c], bound, bright, p.light[c])
    pixels = p.subsets.shape[0]
    _colours(p.light, noise.scale, features[0, :pixels], features[1, :pixels], features[2, :pixels])


@compiled()
def trial_features(p, key, trial, target, noise, features):
    """Features float32 [3, pixels or more] of one noisy trial: CIELAB of the window, rescaled to its range,
    divided by the compactness."""
    _draw(p.words, trial, target, key, noise.shared)
    bound = np.uint32(noise.bound)
    if not (p.colours.shape[0] and _pick(p, bound, features)):
        _make(p, bound, noise, features)
