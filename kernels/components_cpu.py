"""Vote of components in numba: one target per item, in scratch of its own.

A window's gray levels and join levels are kept with `PAD` pixels of nothing around them, so that neighbors
and boxes need no checks for lying inside. The join level of a pixel is the first level whose candidate holds
it: one byte per pixel describes all candidates.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import torch

from mclc_gpu.kernels.color_cpu import luma, ranked
from mclc_gpu.kernels.config import STEPS, WHITE, ComponentConfig
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.packed import PackedImages, Windows

U = np.uintp  # Signed indices would be checked for wrap-around.
PAD = 6  # the ring's outer reach
_UNSEEN = np.uint8(255)
# Columns of the table of candidates; sums, of gray levels too, are of integers and so exact.
AREA, ROWS, COLUMNS, PEAK, BORDER, INNER, INNER_SUM, OUTER, OUTER_SUM, RING = range(10)


class Settings(NamedTuple):
    """Settings of the compiled functions; see `ComponentConfig`."""

    near: int
    levels: int
    max_area: int
    category_weight: float
    weights: tuple[float, ...]


def _settings(config: ComponentConfig) -> Settings:
    weights = config.score_weights()
    return Settings(config.near, config.levels, config.max_area, config.category_weight, weights)


class Batch(NamedTuple):
    """Arrays that the items of a run share, besides gray levels; `packed` describes the tables."""

    images: np.ndarray
    windows: np.ndarray
    offsets: np.ndarray
    areas: np.ndarray
    tpm: np.ndarray
    area: np.ndarray
    score: np.ndarray
    confidence: np.ndarray
    dark: np.ndarray
    flat: np.ndarray


@compiled()
def _read_window(data, images, scales, windows, t, inverted):
    """Return the window's gray levels in steps, int32, with padding that holds anything.

    `scales` [images, 2] holds the value of black, and the gray steps for each unit above it.
    """
    image, top, left, h, w, _, _, _ = windows[t]
    offset, _, _, _, pitch, plane = images[image]
    black, scale = scales[image]
    values = np.empty((h + 2 * PAD) * (w + 2 * PAD), np.int32)
    for y in range(h):
        start, to = U(offset + (top + y) * pitch + left), U((y + PAD) * (w + 2 * PAD) + PAD)
        for x in range(U(w)):
            gray = np.int32((luma(data, start + x, U(plane)) - black) * scale + 0.5)
            values[to + x] = WHITE - gray if inverted else gray
    return values


@compiled()
def _background(values, h, w, buffer):
    """Return the 5th percentile of the window, and how far the median lies above it."""
    for y in range(h):
        start = U((y + PAD) * (w + 2 * PAD) + PAD)
        for x in range(U(w)):
            buffer[U(y * w) + x] = values[start + x]
    low = ranked(buffer, h * w, (h * w - 1) // 20)
    return low, ranked(buffer, h * w, (h * w - 1) // 2) - low


@compiled()
def _brightest_pixel(values, h, w, click_y, click_x, near, low):
    """Return the target's brightest pixel, and the background: `low` or the least near the click."""
    stride = w + 2 * PAD
    top, bottom = max(click_y - near, 0), min(click_y + near + 1, h)
    left, right = max(click_x - near, 0), min(click_x + near + 1, w)
    for y in range(top, bottom):
        for x in range(left, right):
            if (y - click_y) ** 2 + (x - click_x) ** 2 <= near * near:
                low = min(low, values[(y + PAD) * stride + x + PAD])
    best, brightest = np.float32(-1), 0
    for y in range(top, bottom):
        for x in range(left, right):
            square = (y - click_y) ** 2 + (x - click_x) ** 2
            p = (y + PAD) * stride + x + PAD
            if square <= near * near:
                # Both integers are exact in float32, and a division is the same everywhere.
                nearby = np.float32(values[p] - low) / np.float32(32 + square)
                if nearby > best:
                    best, brightest = nearby, p
    for _ in range(8):
        top = brightest
        for y in range(-1, 2):
            for x in range(-1, 2):
                p = brightest + y * stride + x
                inside = PAD <= p % stride < stride - PAD and PAD <= p // stride < h + PAD
                if inside and values[p] > values[top]:
                    top = p
        if top == brightest:
            break
        brightest = top
    return brightest, low


@compiled()
def _grow(values, join, heads, following, brightest, low, batch, t, settings, table):
    """Find the join levels of the window's pixels, and fill the table's columns AREA to BORDER.

    Level by level, each pixel takes its neighbors along: to its own level, or to the neighbor's first.
    `heads` and `following` list the pixels to visit for each level. Returns the number of candidates.
    """
    image, window_top, window_left, h, w, _, _, _ = batch.windows[t]
    _, height, width, _, _, _ = batch.images[image]
    stride, levels = w + 2 * PAD, settings.levels
    high = values[brightest]
    span = high - low
    for k in range(levels):
        heads[k] = -1
    heads[0], following[brightest], join[brightest] = brightest, -1, 0
    area, rows, columns, peak, border = 0, 0, 0, high, 0
    for k in range(levels):
        while heads[k] >= 0:
            p = heads[k]
            heads[k] = following[p]
            y, x = p // stride - PAD, p % stride - PAD
            area, rows, columns, peak = area + 1, rows + y, columns + x, max(peak, values[p])
            north, south = window_top + y == 0, window_top + y == height - 1
            west, east = window_left + x == 0, window_left + x == width - 1
            border += north or south or west or east
            leaves = (y == 0 and not north) or (y == h - 1 and not south)
            leaves = leaves or (x == 0 and not west) or (x == w - 1 and not east)
            if leaves or area > settings.max_area:
                return k
            for i in range(9):
                q = p + (i // 3 - 1) * stride + i % 3 - 1
                if join[q] == _UNSEEN:
                    # How many of the levels' limits high - span k / levels are brighter than the pixel.
                    own = (levels * max(high - values[q], 0) + span - 1) // span
                    level = min(max(own, k), levels)
                    join[q] = level
                    if level < levels:
                        following[q] = heads[level]
                        heads[level] = q
        table[k, AREA], table[k, ROWS], table[k, COLUMNS] = area, rows, columns
        table[k, PEAK], table[k, BORDER] = peak, border
    return levels


@compiled()
def _outlines(values, join, h, w, kept, table):
    """Count and sum up the pixels on both sides of each candidate's outline, into the table."""
    stride = w + 2 * PAD
    for k in range(kept + 1):
        for column in range(INNER, OUTER_SUM + 1):
            table[k, column] = 0
    for y in range(h):
        start = U((y + PAD) * stride + PAD)
        for p in range(start, start + U(w)):
            own = join[p]
            north, south = join[p - U(stride)], join[p + U(stride)]
            west, east = join[p - U(1)], join[p + U(1)]
            first = min(min(north, south), min(west, east))
            if first < own:  # beside the candidates from `first` until it joins
                last = min(own, kept)
                table[first, OUTER] += 1
                table[first, OUTER_SUM] += values[p]
                table[last, OUTER] -= 1
                table[last, OUTER_SUM] -= values[p]
            # Beyond the window lies nothing: the padding must not count as a pixel that joins late.
            last = max(
                max(north if y > 0 else own, south if y < h - 1 else own),
                max(west if p > start else own, east if p < start + U(w - 1) else own),
            )
            if last > own:  # at the candidates' edge until its last neighbor joins
                last = min(last, kept)
                table[own, INNER] += 1
                table[own, INNER_SUM] += values[p]
                table[last, INNER] -= 1
                table[last, INNER_SUM] -= values[p]
    for k in range(1, kept):
        for column in range(INNER, OUTER_SUM + 1):
            table[k, column] += table[k - 1, column]


@compiled()
def _least(source, step, out):
    """Take the least of seven elements, `step` apart, around each."""
    first, last = U(3) * step, U(source.shape[0]) - U(3) * step
    one, two, three = step, U(2) * step, U(3) * step
    for p in range(first, last):
        least = min(min(source[p - three], source[p + three]), min(source[p - two], source[p + two]))
        out[p] = min(min(least, source[p]), min(source[p - one], source[p + one]))


@compiled()
def _widen(source, step, out):
    """Take the least of thirteen elements, from the least of seven."""
    three = U(3) * step
    for p in range(three, U(source.shape[0]) - three):
        out[p] = min(source[p - three], source[p + three])


@compiled()
def _rings(values, join, h, w, kept, low, buffer, table):
    """Find the median of each candidate's ring, the pixels 4..6 off (chessboard), into the table."""
    stride, never = w + 2 * PAD, join[0]
    across, wide, near, far = join.copy(), join.copy(), join.copy(), join.copy()
    for p in range(join.shape[0]):
        across[p] = wide[p] = near[p] = far[p] = never
    _least(join, U(1), across)
    _widen(across, U(1), wide)
    _least(across, U(stride), near)
    _least(wide, U(stride), across)
    _widen(across, U(stride), far)
    count = 0
    places = np.empty(h * w, np.int32)
    for y in range(h):
        start = U((y + PAD) * stride + PAD)
        for p in range(start, start + U(w)):
            if far[p] < kept:
                far[count], near[count], places[count] = far[p], near[p], values[p]
                count += 1
    for k in range(kept):
        if k > 0 and table[k, AREA] == table[k - 1, AREA]:
            continue
        size = 0
        for i in range(count):
            buffer[U(size)] = places[i]
            size += far[i] <= k < near[i]
        table[k, RING] = ranked(buffer, size, (size - 1) // 2) if size else low


@compiled()
def _score_of(table, k, spread, click_y, click_x, least, most, settings):
    """Return the score of candidate k; `spread` is that of the background."""
    level, level_square, edge, size, outline, border, distance, share = settings.weights
    area, outer = table[k, AREA], table[k, OUTER]
    ring, peak = table[k, RING] / STEPS, table[k, PEAK] / STEPS
    inside = table[k, INNER_SUM] / (table[k, INNER] * STEPS) if table[k, INNER] else peak
    outside = table[k, OUTER_SUM] / (outer * STEPS) if outer else ring
    above, contrast = max((inside + outside) / 2 - ring, 0.3), max(peak - ring, 0.5)
    log_level, log_contrast = np.log(above), np.log(contrast) - np.log(spread / STEPS + 1) / 2
    log_area, root = np.log(area), np.sqrt(area)
    touching = table[k, BORDER] / (table[k, BORDER] + outer) if table[k, BORDER] + outer else 1.0
    away_y, away_x = table[k, ROWS] / area - click_y, table[k, COLUMNS] / area - click_x
    away = np.sqrt(away_y * away_y + away_x * away_x)
    score = level * log_level + level_square * log_level * log_level
    score += edge * np.log(max(inside - outside, 0.3)) + size * log_area * log_contrast
    score += outline * outer / root + border * touching + distance * away / (2 + 0.05 * root)
    score += share * (above / contrast) ** 2
    misses = max(np.log(least) - log_area, 0.0) + max(log_area - np.log(most), 0.0)
    return score - settings.category_weight * misses


@compiled()
def _vote(table, kept, shares, scores):
    """Turn scores into the share of the vote that a pixel of each join level has.

    Returns the best score, the expected IoU of the mask and the mask's area.
    """
    best = -np.inf
    for k in range(kept):
        best = max(best, scores[k])
    total = 0.0
    for k in range(kept):
        scores[k] = np.exp(scores[k] - best)
        total += scores[k]
    behind, chosen = 0.0, -1
    for k in range(kept - 1, -1, -1):
        behind += scores[k]
        shares[k] = behind / total
        if chosen < 0 and shares[k] >= 0.5:
            chosen = k
    area, expected = table[chosen, AREA], 0.0
    for k in range(kept):
        other = table[k, AREA]
        expected += scores[k] / total * (min(area, other) / max(area, other))
    return best, expected, area


@compiled()
def _flat(h, w, click_y, click_x, tpm):
    """Draw the map of a click where nothing stands out. Returns its area."""
    area = 0
    for y in range(h):
        for x in range(w):
            inside = abs(y - click_y) <= 1 and abs(x - click_x) <= 1
            tpm[y * w + x] = inside
            area += inside
    return area


@compiled()
def _item(values, batch, t, dark, rival, settings):
    """Label one target in one polarity, unless its score is no better than the rival's. Returns the score."""
    _, _, _, h, w, click_y, click_x, _ = batch.windows[t]
    stride = w + 2 * PAD
    join, following = np.empty(values.shape[0], np.uint8), np.empty(values.shape[0], np.int32)
    buffer = np.empty(h * w + 1, np.int32)
    low, spread = _background(values, h, w, buffer)
    brightest, low = _brightest_pixel(values, h, w, click_y, click_x, settings.near, low)
    tpm = batch.tpm[batch.offsets[t] : batch.offsets[t + 1]]
    kept = 0
    table = np.empty((settings.levels + 1, RING + 1), np.int64)
    if values[brightest] > low:
        for p in range(join.shape[0]):
            join[p] = settings.levels
        for y in range(PAD, h + PAD):
            for x in range(PAD, w + PAD):
                join[y * stride + x] = _UNSEEN
        heads = np.empty(settings.levels, np.int32)
        kept = _grow(values, join, heads, following, brightest, low, batch, t, settings, table)
    if kept == 0:
        if rival != rival:
            batch.dark[t], batch.flat[t], batch.area[t] = dark, True, _flat(h, w, click_y, click_x, tpm)
            batch.score[t], batch.confidence[t] = -np.inf, 0.0
        return -np.inf
    for p in range(join.shape[0]):
        join[p] = join[p] if join[p] < kept else settings.levels
    _outlines(values, join, h, w, kept, table)
    _rings(values, join, h, w, kept, low, buffer, table)
    scores, shares = np.empty(kept), np.zeros(settings.levels + 1, np.float32)
    least, most = batch.areas[t]
    for k in range(kept):
        fresh = k == 0 or table[k, AREA] > table[k - 1, AREA]
        scores[k] = _score_of(table, k, spread, click_y, click_x, least, most, settings) if fresh else -np.inf
    best, expected, area = _vote(table, kept, shares, scores)
    if best <= rival:
        return best
    batch.dark[t], batch.flat[t], batch.area[t] = dark, False, area
    batch.score[t], batch.confidence[t] = best, expected
    for y in range(h):
        start = (y + PAD) * stride + PAD
        for x in range(w):
            tpm[y * w + x] = shares[join[start + x]]
    return best


def run(
    images: PackedImages,
    windows: Windows,
    areas: torch.Tensor,
    config: ComponentConfig,
    tpm: torch.Tensor,
    area: torch.Tensor,
    score: torch.Tensor,
    confidence: torch.Tensor,
    dark: torch.Tensor,
    flat: torch.Tensor,
) -> None:
    """Fill what `ComponentVotes` holds; `areas` [targets, 2] are the limits of the categories in pixels."""
    settings = _settings(config)
    tables = images.table.numpy(), windows.table.numpy(), windows.offsets.numpy(), areas.numpy()
    batch = Batch(*tables, *(out.numpy() for out in (tpm, area, score, confidence, dark, flat)))
    data, scales = images.data.numpy(), images.scales.numpy()
    polarities = {"bright": [False], "dark": [True], "auto": [False, True]}[config.polarity]

    def work(t: int) -> None:
        rival = np.nan
        for inverted in polarities:
            # Two calls, so that only the first is compiled once more for images of another type.
            values = _read_window(data, batch.images, scales, batch.windows, t, inverted)
            rival = _item(values, batch, t, inverted, rival, settings) + config.dark_margin

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        deque(pool.map(work, range(len(windows))), maxlen=0)
