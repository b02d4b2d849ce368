"""Scores of any masks in numba: one target per item, a window's row of a mask in the bits of one word."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np

from mclc_gpu.kernels.color_cpu import image_scales, ranked
from mclc_gpu.kernels.components_cpu import (
    AREA,
    BORDER,
    COLUMNS,
    INNER,
    INNER_SUM,
    OUTER,
    OUTER_SUM,
    PAD,
    PEAK,
    RING,
    ROWS,
    background,
    read_window,
    score_of,
    settings_of,
    target_seed,
)
from mclc_gpu.kernels.config import ComponentConfig
from mclc_gpu.kernels.jit_cpu import compiled

_ONE, _WORD = np.uint64(1), np.uint64(64)
_NEAR = 3  # the ring's inner reach; its outer one is PAD


class Batch(NamedTuple):
    """What the items of a run share beside gray levels; see `mclc_gpu.kernels.scoring`."""

    images: np.ndarray
    windows: np.ndarray
    mask_windows: np.ndarray
    offsets: np.ndarray
    areas: np.ndarray
    masks: np.ndarray
    scores: np.ndarray


@compiled()
def _bit(word, x):
    return (word >> np.uint64(x)) & _ONE != np.uint64(0)


@compiled()
def _spread(rows, reach, out):
    """Rows with every pixel `reach` further to the left and right."""
    for y in range(rows.shape[0]):
        word = rows[y]
        for _ in range(reach):
            word |= (word << _ONE) | (word >> _ONE)
        out[y] = word


@compiled()
def _load(mask, part, batch, t, settings, rows, found):
    """The mask's pixels into `rows`, counts of them into `found`; whether the mask can have a score."""
    image, window_top, window_left, _, _, _, _, _ = batch.windows[t]
    _, height, width, _ = batch.images[image]
    top, left, h, w = part
    north, south = window_top + top == 0, window_top + top + h == height
    west, east = window_left + left == 0, window_left + left + w == width
    rows[:] = np.uint64(0)
    found[:] = 0
    for y in range(h):
        word = np.uint64(0)
        at_row = (y == 0 and north) or (y == h - 1 and south)
        leaves_row = (y == 0 and not north) or (y == h - 1 and not south)
        for x in range(w):
            if mask[y * w + x]:
                if leaves_row or (x == 0 and not west) or (x == w - 1 and not east):
                    return False
                word |= _ONE << np.uint64(x + left)
                found[AREA] += 1
                found[ROWS] += y + top
                found[COLUMNS] += x + left
                found[BORDER] += at_row or (x == 0 and west) or (x == w - 1 and east)
        rows[y + top + PAD] = word
    return 0 < found[AREA] <= settings.max_area


@compiled()
def _outline(rows, values, h, w, part, buffer, low, found):
    """What lies on both sides of a mask's outline and in its ring, into `found`."""
    top, left, part_h, part_w = part
    stride = w + 2 * PAD
    full = ~np.uint64(0) >> (_WORD - np.uint64(w))
    near, far = np.empty_like(rows), np.empty_like(rows)
    _spread(rows, _NEAR, near)
    _spread(near, PAD - _NEAR, far)
    ring_size, peak = 0, -1
    for y in range(max(top - PAD, 0), min(top + part_h + PAD, h)):
        r = y + PAD
        within, beyond = np.uint64(0), np.uint64(0)
        for i in range(r - PAD, r + PAD + 1):
            beyond |= far[i]
            if abs(i - r) <= _NEAR:
                within |= near[i]
        member, others = rows[r], full & ~rows[r]
        touched = (member << _ONE) | (member >> _ONE) | rows[r - 1] | rows[r + 1]
        open_ = (others << _ONE) | (others >> _ONE)
        open_ |= (full & ~rows[r - 1]) if y > 0 else np.uint64(0)
        open_ |= (full & ~rows[r + 1]) if y < h - 1 else np.uint64(0)
        inner, outer, ring = member & open_, others & touched, others & beyond & ~within
        for x in range(max(left - PAD, 0), min(left + part_w + PAD, w)):
            value = values[r * stride + x + PAD]
            if _bit(ring, x):
                buffer[ring_size] = value
                ring_size += 1
            elif _bit(member, x):
                peak = max(peak, value)
                if _bit(inner, x):
                    found[INNER] += 1
                    found[INNER_SUM] += value
            elif _bit(outer, x):
                found[OUTER] += 1
                found[OUTER_SUM] += value
    found[PEAK] = peak
    found[RING] = ranked(buffer, ring_size, (ring_size - 1) // 2) if ring_size else low


@compiled()
def _item(values, batch, t, settings):
    """The scores of all masks of one target."""
    _, window_top, window_left, h, w, click_y, click_x, _ = batch.windows[t]
    _, top, left, part_h, part_w, _, _, _ = batch.mask_windows[t]
    part = (top - window_top, left - window_left, part_h, part_w)
    buffer = np.empty(h * w + 1, np.int32)
    low, spread = background(values, h, w, buffer)
    _, low = target_seed(values, h, w, click_y, click_x, settings.near, low)
    rows = np.empty(h + 2 * PAD, np.uint64)
    table = np.empty((1, RING + 1), np.int64)
    least, most = batch.areas[t]
    for k in range(batch.masks.shape[0]):
        mask = batch.masks[k, batch.offsets[t] : batch.offsets[t + 1]]
        batch.scores[k, t] = -np.inf
        if _load(mask, part, batch, t, settings, rows, table[0]):
            _outline(rows, values, h, w, part, buffer, low, table[0])
            batch.scores[k, t] = score_of(table, 0, spread, click_y, click_x, least, most, settings)


def score(
    data: np.ndarray,
    images: np.ndarray,
    windows: np.ndarray,
    mask_windows: np.ndarray,
    offsets: np.ndarray,
    areas: np.ndarray,
    masks: np.ndarray,
    dark: np.ndarray,
    config: "ComponentConfig",
    scores: np.ndarray,
) -> None:
    """Fill scores float32 [K, targets]."""
    settings = settings_of(config)
    batch = Batch(images, windows, mask_windows, offsets, areas, masks, scores)

    def work(t: int) -> None:
        # Two calls, so that only the first is compiled once more for images of another type.
        _item(read_window(data, images, scales, windows, t, dark[t]), batch, t, settings)

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        scales = image_scales(data, images, pool)
        deque(pool.map(work, range(len(windows))), maxlen=0)


@compiled()
def _add(masks, offsets, shares, sums, totals, t):
    for k in range(shares.shape[0]):
        share = shares[k, t]
        if share > 0.0:
            totals[t] += share
            for p in range(offsets[t], offsets[t + 1]):
                if masks[k, p]:
                    sums[p] += share


def add(
    masks: np.ndarray, offsets: np.ndarray, shares: np.ndarray, sums: np.ndarray, totals: np.ndarray
) -> None:
    """Add shares to sums and totals; see `mclc_gpu.kernels.scoring.add_shares`."""
    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        deque(pool.map(lambda t: _add(masks, offsets, shares, sums, totals, t), range(len(totals))), maxlen=0)
