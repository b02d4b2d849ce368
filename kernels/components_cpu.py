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

from mclc_gpu.kernels.color_cpu import least_of_blocks, luma, ranked
from mclc_gpu.kernels.config import STEPS, WHITE, ComponentConfig
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows

U = np.uintp  # Signed indices would be checked for wrap-around.
PAD = 6  # the ring's outer reach
_UNSEEN = np.uint8(255)
# Columns of the table of candidates; sums, of gray levels too, are of integers and so exact.
AREA, ROWS, COLUMNS, PEAK, INNER, INNER_SUM, OUTER, OUTER_SUM, PAIRS, PAIR_SUM, RING = range(11)
_FAR = np.int32(1 << 30)  # beyond all gray steps and squares of distances


class Settings(NamedTuple):
    """Settings of the compiled functions; see `ComponentConfig`."""

    near: int
    opening: int
    levels: int
    max_area: int
    category_weight: float
    weights: tuple[float, ...]


def _settings(config: ComponentConfig) -> Settings:
    weights = config.score_weights()
    return Settings(
        config.near, config.opening, config.levels, config.max_area, config.category_weight, weights
    )


class Batch(NamedTuple):
    """Arrays that the items of a run share, besides gray levels; `packed` describes the tables."""

    images: np.ndarray
    windows: np.ndarray
    offsets: np.ndarray
    areas: np.ndarray
    others: np.ndarray
    first_other: np.ndarray
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
    middle = (h * w - 1) // 2
    median = ranked(buffer, h * w, middle)
    low = ranked(buffer, middle + 1, (h * w - 1) // 20)  # what lies before the median is not above it
    return low, median - low


@compiled()
def _relief(values, h, w, side):
    """Return gray levels less their opening by a square of the window's pixels, padded like `values`."""
    if side == 0:
        return values
    reach, stride, relief = side // 2, w + 2 * PAD, np.empty_like(values)
    wide = w + 2 * reach
    low, spare = np.full((h + 2 * reach) * wide, _FAR), np.empty((h + 2 * reach) * wide, np.int32)
    for y in range(h):
        start, to = U((y + PAD) * stride + PAD), U((y + reach) * wide + reach)
        for x in range(U(w)):
            low[to + x] = values[start + x]
    low, high = least_of_blocks(low, spare, side, wide), np.full((h + 2 * reach) * wide, _FAR)
    for y in range(h):
        start, to = U(y * wide), U((y + reach) * wide + reach)
        for x in range(U(w)):
            high[to + x] = -low[start + x]
    high = least_of_blocks(high, spare, side, wide)
    for y in range(h):
        start, to = U(y * wide), U((y + PAD) * stride + PAD)
        for x in range(U(w)):
            relief[to + x] = values[to + x] + high[start + x]
    return relief


@compiled()
def _nearest_other(y, x, others, w):
    """Return the square of a pixel's distance from the nearest other click."""
    least = _FAR
    for i in range(others.shape[0]):
        least = min(least, (y - others[i] // w) ** 2 + (x - others[i] % w) ** 2)
    return least


@compiled()
def _uphill(relief, p, h, w, click_y, click_x, others):
    """Return the first of the brightest pixels in the 3 x 3 around p; none that is nearer to the others."""
    stride, top = w + 2 * PAD, p
    for i in range(9):
        q = p + (i // 3 - 1) * stride + i % 3 - 1
        y, x = q // stride - PAD, q % stride - PAD
        higher = relief[q] > relief[top] or (relief[q] == relief[top] and q < top)
        if 0 <= y < h and 0 <= x < w and higher:
            square = (y - click_y) ** 2 + (x - click_x) ** 2
            top = q if square <= _nearest_other(y, x, others, w) else top
    return top


@compiled()
def _brightest_pixel(relief, h, w, click_y, click_x, near, others, low):
    """Return the target's brightest pixel, and the background: `low` or the least near the click."""
    stride = w + 2 * PAD
    top, bottom = max(click_y - near, 0), min(click_y + near + 1, h)
    left, right = max(click_x - near, 0), min(click_x + near + 1, w)
    for y in range(top, bottom):
        for x in range(left, right):
            if (y - click_y) ** 2 + (x - click_x) ** 2 <= near * near:
                low = min(low, relief[(y + PAD) * stride + x + PAD])
    best, brightest = np.float32(-1), 0
    for y in range(top, bottom):
        for x in range(left, right):
            square = (y - click_y) ** 2 + (x - click_x) ** 2
            p = (y + PAD) * stride + x + PAD
            if square <= near * near:
                # Both integers are exact in float32, and a division is the same everywhere.
                nearby = np.float32(relief[p] - low) / np.float32(16 + square)
                if nearby > best and square <= _nearest_other(y, x, others, w):
                    best, brightest = nearby, p
    for _ in range(8):
        top = _uphill(relief, brightest, h, w, click_y, click_x, others)
        if relief[top] == relief[brightest]:
            break
        brightest = top
    return brightest, low


@compiled()
def _own_levels(relief, high, span, levels, own):
    """Count how many of the levels' limits high - span k / levels are brighter than each pixel."""
    for p in range(U(relief.shape[0])):
        # A quotient of such integers, rounded to float64, is whole only if it is so exactly.
        level = np.ceil(np.float64(levels * max(high - relief[p], 0)) / span)
        own[p] = np.uint8(min(level, np.float64(levels)))


@compiled()
def _join(own, p, k, stride, levels, join, lists, count):
    """Take the neighbors of a pixel of level k along: to their own levels, or to k.

    The pixels that are reached for the first time are listed from `count` on. Returns the end of the list.
    """
    heads, following, reached = lists
    for i in range(9):
        q = p + (i // 3 - 1) * stride + i % 3 - 1
        if join[q] == _UNSEEN:
            level = max(np.int64(own[q]), k)
            join[q], reached[count], count = level, q, count + 1
            if level < levels:
                following[q] = heads[level]
                heads[level] = q
    return count


@compiled()
def _unseen(join, h, w, never):
    """Mark the window's pixels as not seen, and those around it as never joining."""
    for p in range(join.shape[0]):
        join[p] = never
    for y in range(PAD, h + PAD):
        start = U(y * (w + 2 * PAD) + PAD)
        for p in range(start, start + U(w)):
            join[p] = _UNSEEN


@compiled()
def _flood(own, h, w, levels, markers, join, lists):
    """Find the first level at which each pixel is joined to one of the markers."""
    heads, following, _ = lists
    _unseen(join, h, w, levels)
    for k in range(levels):
        heads[k] = -1
    for p in markers:
        if join[p] == _UNSEEN and own[p] < levels:
            following[p], join[p] = heads[own[p]], own[p]
            heads[own[p]] = p
    for k in range(levels):
        while heads[k] >= 0:
            p = heads[k]
            heads[k] = following[p]
            _join(own, p, k, w + 2 * PAD, levels, join, lists, 0)


@compiled()
def _close_others(own, h, w, brightest, markers, click_y, click_x, others, levels, join, lists):
    """Give the pixels of the other targets the level of the background, so that they never join.

    Touching targets are parted at the saddle between them, by a watershed from the brightest pixels at
    their clicks: a pixel is another's if it is joined to that one first, or to both at the same level and
    lies nearer to the other's click.
    """
    rivals = np.empty_like(join)
    _flood(own, h, w, levels, markers, rivals, lists)
    _flood(own, h, w, levels, np.full(1, brightest), join, lists)
    for y in range(h):
        for x in range(w):
            p = (y + PAD) * (w + 2 * PAD) + x + PAD
            square = (y - click_y) ** 2 + (x - click_x) ** 2
            if rivals[p] < join[p] or (
                rivals[p] == join[p] < levels and _nearest_other(y, x, others, w) < square
            ):
                own[p] = levels


@compiled()
def _grow(values, own, brightest, batch, t, settings, join, lists, table):
    """Find the join levels of the window's pixels, and fill the table's columns AREA to PEAK.

    Level by level, each pixel takes its neighbors along: to its own level, or to the neighbor's first. The
    lists are the first pixel to visit of each level, the next one behind each pixel, and the pixels that were
    reached: the candidates and those around them. Returns the numbers of candidates and of pixels reached.
    """
    heads, following, reached = lists
    image, window_top, window_left, h, w, _, _, _ = batch.windows[t]
    _, height, width, _, _, _ = batch.images[image]
    stride, levels = w + 2 * PAD, settings.levels
    _unseen(join, h, w, levels)
    for k in range(levels):
        heads[k] = -1
    heads[0], following[brightest], join[brightest] = brightest, -1, 0
    reached[0], count = brightest, 1
    area, rows, columns, peak = 0, 0, 0, values[brightest]
    for k in range(levels):
        while heads[k] >= 0:
            p = heads[k]
            heads[k] = following[p]
            y, x = p // stride - PAD, p % stride - PAD
            area, rows, columns, peak = area + 1, rows + y, columns + x, max(peak, values[p])
            leaves = (y == 0 and window_top > 0) or (y == h - 1 and window_top + h < height)
            leaves = leaves or (x == 0 and window_left > 0) or (x == w - 1 and window_left + w < width)
            if leaves or area > settings.max_area:
                return k, count
            count = _join(own, p, k, stride, levels, join, lists, count)
        table[k, AREA], table[k, ROWS], table[k, COLUMNS], table[k, PEAK] = area, rows, columns, peak
    return levels, count


@compiled()
def _candidates(values, relief, brightest, low, batch, t, settings, others, join, lists, table):
    """Find the join levels of the window's pixels, without those of the other targets, see `_grow`."""
    _, _, _, h, w, click_y, click_x, _ = batch.windows[t]
    levels, stride, anyone = settings.levels, w + 2 * PAD, np.empty(0, np.int64)
    own = np.empty(values.shape[0], np.uint8)
    _own_levels(relief, relief[brightest], relief[brightest] - low, levels, own)
    kept, count = _grow(values, own, brightest, batch, t, settings, join, lists, table)
    if others.shape[0] == 0:
        return kept, count
    markers = np.empty(others.shape[0], np.int64)
    for i in range(others.shape[0]):
        y, x = others[i] // w, others[i] % w
        markers[i] = _uphill(relief, (y + PAD) * stride + x + PAD, h, w, y, x, anyone)
    markers = markers[markers != brightest]
    apart = kept == levels  # then each pixel that could be another's is joined to a marker, too
    for p in markers:
        apart = apart and join[p] >= levels
    if apart:
        return kept, count
    _close_others(own, h, w, brightest, markers, click_y, click_x, others, levels, join, lists)
    return _grow(values, own, brightest, batch, t, settings, join, lists, table)


@compiled()
def _tally(table, column, first, last, value):
    """Count a pixel or pair, and add its value up in the next column, from one level until another."""
    table[first, column] += 1
    table[first, column + 1] += value
    table[last, column] -= 1
    table[last, column + 1] -= value


@compiled()
def _outlines(values, join, reached, h, w, kept, spread, table):
    """Count and sum up the pixels on both sides of each candidate's outline, and their falls, into the table.

    `reached` holds the pixels of the candidates and around them.
    """
    stride = w + 2 * PAD
    for k in range(kept + 1):
        for column in range(INNER, PAIR_SUM + 1):
            table[k, column] = 0
    for p in reached:
        own, first, last = join[p], join[p], join[p]
        y, x = p // stride - PAD, p % stride - PAD
        # Beyond the window lies nothing: the padding must not count as a pixel that joins late.
        inside = y > 0, y < h - 1, x > 0, x < w - 1
        for i in range(4):
            if inside[i]:
                q = p + (-stride, stride, -1, 1)[i]
                first, last = min(first, join[q]), max(last, join[q])
                if join[q] > own:
                    fall = min(max(values[p] - values[q], 0), spread + STEPS)
                    _tally(table, PAIRS, own, min(join[q], kept), fall)
        if first < own:  # beside the candidates from `first` until it joins
            _tally(table, OUTER, first, min(own, kept), values[p])
        if last > own:  # at the candidates' edge until its last neighbor joins
            _tally(table, INNER, own, min(last, kept), values[p])
    for k in range(1, kept):
        for column in range(INNER, PAIR_SUM + 1):
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
def _median(values, ring, size, guess, buffer):
    """Return the median of the values of some pixels, quickly if it is `guess` or near it."""
    less, equal, rank = 0, 0, (size - 1) // 2
    for i in range(U(size)):
        value = values[ring[i]]
        less += value < guess
        equal += value == guess
    if less <= rank < less + equal:
        return guess
    count, upper = 0, rank >= less
    for i in range(U(size)):
        value = values[ring[i]]
        buffer[count] = value
        count += (value > guess) if upper else (value < guess)
    return ranked(buffer, count, rank - less - equal if upper else rank)


@compiled()
def _rings(values, join, h, w, top, bottom, kept, low, buffer, table):
    """Find the median of each candidate's ring, the pixels 4..6 off (chessboard), into the table.

    The largest candidate lies in the rows `top` to `bottom`.
    """
    stride = w + 2 * PAD
    top, bottom = max(top - PAD, 0), min(bottom + PAD, h - 1)
    # From the padding of the first of these rows to that of the last.
    first, last = top * stride, (bottom + 1 + 2 * PAD) * stride
    values, join = values[first:last], join[first:last]
    across, wide, near, far = join.copy(), join.copy(), join.copy(), join.copy()
    for p in range(join.shape[0]):
        across[p] = wide[p] = near[p] = far[p] = kept
    _least(join, U(1), across)
    _widen(across, U(1), wide)
    _least(across, U(stride), near)
    _least(wide, U(stride), across)
    _widen(across, U(stride), far)
    heads, following = np.full(kept, -1, np.int32), np.empty(values.shape[0], np.int32)
    for y in range(bottom + 1 - top):
        start = U((y + PAD) * stride + PAD)
        for p in range(start, start + U(w)):
            if far[p] < kept:
                following[p], heads[far[p]] = heads[far[p]], p
    ring, size, median = np.empty(h * w, np.int32), 0, low
    for k in range(kept):
        p = heads[k]
        while p >= 0:
            ring[size], size, p = p, size + 1, following[p]
        if k > 0 and table[k, AREA] == table[k - 1, AREA]:
            continue
        left = 0
        for i in range(U(size)):
            ring[left] = ring[i]
            left += near[ring[i]] > k
        size = left
        median = _median(values, ring, size, median, buffer) if size else low
        table[k, RING] = median


@compiled()
def _score_of(table, k, spread, click_y, click_x, least, most, settings):
    """Return the score of candidate k; `spread` is that of the background."""
    level, level_square, edge, rim, size, outline, distance, large = settings.weights
    area, outer = table[k, AREA], table[k, OUTER]
    ring, peak = table[k, RING] / STEPS, table[k, PEAK] / STEPS
    inside = table[k, INNER_SUM] / (table[k, INNER] * STEPS) if table[k, INNER] else peak
    outside = table[k, OUTER_SUM] / (outer * STEPS) if outer else ring
    above, contrast = max((inside + outside) / 2 - ring, 0.3), max(peak - ring, 0.5)
    log_level, log_contrast = np.log(above), np.log(contrast) - np.log(spread / STEPS + 1) / 2
    log_area, root = np.log(area), np.sqrt(area)
    fall = table[k, PAIR_SUM] / (table[k, PAIRS] * STEPS) if table[k, PAIRS] else 0.0
    away_y, away_x = table[k, ROWS] / area - click_y, table[k, COLUMNS] / area - click_x
    away = np.sqrt(away_y * away_y + away_x * away_x)
    score = level * log_level + level_square * log_level * log_level
    score += edge * np.log(max(inside - outside, 0.3)) + rim * np.log(fall + 0.3)
    score += size * log_area * log_contrast + outline * outer / root
    score += distance * away / (2 + 0.05 * root) + large * max(np.log(area / 50), 0.0)
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
def _label(values, relief, background, low, spread, batch, t, dark, rival, settings):
    """Label one target by candidates from one relief, if its best score is above the rival's. Returns it.

    `background` is that of the gray levels, `low` the most that the relief's may be.
    """
    _, _, _, h, w, click_y, click_x, _ = batch.windows[t]
    stride, levels = w + 2 * PAD, settings.levels
    others = batch.others[batch.first_other[t] : batch.first_other[t + 1]]
    brightest, low = _brightest_pixel(relief, h, w, click_y, click_x, settings.near, others, low)
    if relief[brightest] <= low:
        return -np.inf
    pixels, table = values.shape[0], np.empty((levels + 1, RING + 1), np.int64)
    join = np.empty(pixels, np.uint8)
    lists = np.empty(levels, np.int32), np.empty(pixels, np.int32), np.empty(h * w, np.int32)
    kept, count = _candidates(values, relief, brightest, low, batch, t, settings, others, join, lists, table)
    if kept == 0:
        return -np.inf
    for p in range(pixels):
        join[p] = join[p] if join[p] < kept else levels
    reached, top, bottom = lists[2][:count], h, -1
    for p in reached:
        if join[p] < levels:
            top, bottom = min(top, p // stride - PAD), max(bottom, p // stride - PAD)
    _outlines(values, join, reached, h, w, kept, spread, table)
    _rings(values, join, h, w, top, bottom, kept, background, np.empty(h * w + 1, np.int32), table)
    scores, shares = np.empty(kept), np.zeros(levels + 1, np.float32)
    least, most = batch.areas[t]
    for k in range(kept):
        fresh = k == 0 or table[k, AREA] > table[k - 1, AREA]
        scores[k] = _score_of(table, k, spread, click_y, click_x, least, most, settings) if fresh else -np.inf
    best, expected, area = _vote(table, kept, shares, scores)
    if best > rival:
        batch.dark[t], batch.flat[t], batch.area[t] = dark, False, area
        batch.score[t], batch.confidence[t] = best, expected
        tpm = batch.tpm[batch.offsets[t] : batch.offsets[t + 1]]
        for y in range(h):
            start = (y + PAD) * stride + PAD
            for x in range(w):
                tpm[y * w + x] = shares[join[start + x]]
    return best


@compiled()
def _hidden(values, relief, background, h, w, click_y, click_x):
    """Return True if the opening took most of what stands out at the click: a target too large for it."""
    p = (click_y + PAD) * (w + 2 * PAD) + click_x + PAD
    p = _uphill(relief, p, h, w, click_y, click_x, np.empty(0, np.int64))
    return values[p] - relief[p] - background > 2 * relief[p]


@compiled()
def _item(values, batch, t, dark, rival, settings):
    """Label one target in one polarity, if its score is above the rival's. Returns the score."""
    _, _, _, h, w, click_y, click_x, _ = batch.windows[t]
    background, spread = _background(values, h, w, np.empty(h * w + 1, np.int32))
    relief = _relief(values, h, w, settings.opening)
    low = _FAR if settings.opening > 0 else background
    best = _label(values, relief, background, low, spread, batch, t, dark, rival, settings)
    if settings.opening > 0 and _hidden(values, relief, background, h, w, click_y, click_x):
        rival = max(rival, best)
        again = _label(values, values, background, background, spread, batch, t, dark, rival, settings)
        best = max(best, again)
    return best


@compiled()
def _start(batch, t, dark):
    """Fill the outputs of a target with what they are where nothing stands out at the click."""
    _, _, _, h, w, click_y, click_x, _ = batch.windows[t]
    tpm = batch.tpm[batch.offsets[t] : batch.offsets[t + 1]]
    batch.dark[t], batch.flat[t], batch.area[t] = dark, True, _flat(h, w, click_y, click_x, tpm)
    batch.score[t], batch.confidence[t] = -np.inf, 0.0


def run(
    images: PackedImages,
    windows: Windows,
    areas: torch.Tensor,
    others: Marks,
    config: ComponentConfig,
    tpm: torch.Tensor,
    area: torch.Tensor,
    score: torch.Tensor,
    confidence: torch.Tensor,
    dark: torch.Tensor,
    flat: torch.Tensor,
) -> None:
    """Fill what `ComponentVotes` holds.

    `areas` [targets, 2] are the limits of the categories in pixels, `others` the other targets' clicks.
    """
    settings = _settings(config)
    tables = images.table.numpy(), windows.table.numpy(), windows.offsets.numpy(), areas.numpy()
    clicks = others.pixels.numpy(), others.offsets.numpy()
    batch = Batch(*tables, *clicks, *(out.numpy() for out in (tpm, area, score, confidence, dark, flat)))
    data, scales = images.data.numpy(), images.scales.numpy()
    polarities = {"bright": [False], "dark": [True], "auto": [False, True]}[config.polarity]

    def work(t: int) -> None:
        rival = -np.inf
        _start(batch, t, polarities[0])
        for inverted in polarities:
            # Two calls, so that only the first is compiled once more for images of another type.
            values = _read_window(data, batch.images, scales, batch.windows, t, inverted)
            rival = _item(values, batch, t, inverted, rival, settings) + config.dark_margin

    threads = min(numba.get_num_threads(), len(windows))
    if threads == 1:  # a click of an annotator need not wait for a thread to start
        deque(map(work, range(len(windows))), maxlen=0)
        return
    with ThreadPoolExecutor(threads) as pool:
        deque(pool.map(work, range(len(windows))), maxlen=0)
