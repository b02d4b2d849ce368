"""Vote of gray-level components in Triton: one target after another in each program.

A program walks over a window in blocks of pixels, so windows of all sizes share one compiled kernel with one
number of warps, and what is computed for a target depends on nothing else in the batch.
"""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching, processors, upload
from mclc_gpu.kernels.candidates_triton import (
    BINS,
    BLACK,
    BRIGHTEST,
    CLICK_COLUMN,
    CLICK_ROW,
    DATA,
    DIVIDEND,
    FIRST_OTHER,
    GEOMETRY,
    GRAIN,
    HEIGHT,
    INNER,
    LAST_OTHER,
    LEAST,
    LOW_BITS,
    LOW_MASK,
    MOST,
    NEVER,
    NUMBER_BITS,
    NUMBER_MASK,
    OUTER,
    PAIRS,
    PITCH,
    PIXEL_OFFSET,
    PIXELS,
    PLANE,
    PLANES,
    R_LEFT,
    R_TOP,
    REGION,
    SCALE,
    SIDE,
    STEP,
    SUMS,
    TARGET,
    WHOLE,
    WIDTH,
    bit_of,
    bright_rows,
    candidates,
    clear_rows,
    falls,
    find_region,
    grow,
    join_levels,
    lanes,
    outlines,
    part_others,
    region_pixels,
    region_size,
    ring_levels,
    ring_medians,
    window_pixels,
    window_size,
)
from mclc_gpu.kernels.color_triton import luma
from mclc_gpu.kernels.config import MAX_WINDOW, STEPS, ComponentConfig
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows

_WARPS = 4
_BLOCK = 512  # pixels of a window that are handled at a time
_PART = 128  # pixels of a region
_PROGRAMS_PER_PROCESSOR = 8
_BYTES = tl.constexpr(256)  # values of a byte


@triton.jit
def read_window(p_values, p_data, g, inverted, BLOCK: tl.constexpr):
    """Load the window's gray levels, in steps, into scratch; -1 behind them, up to a whole block."""
    p_data += tl.load(g + DATA)
    black = tl.load(g + BLACK).to(tl.float64, bitcast=True)
    scale = tl.load(g + SCALE).to(tl.float64, bitcast=True)
    for start in range(0, window_size(g), BLOCK):
        at, y, x, inside = window_pixels(g, start, BLOCK)
        p_pixel = p_data + y * tl.load(g + PITCH) + x
        if tl.load(g + GRAIN) == STEP:
            v = tl.load(p_pixel, inside, 0).to(tl.int32) * STEP
        else:
            v = ((luma(p_pixel, tl.load(g + PLANE), inside) - black) * scale + 0.5).to(tl.int32)
        v = tl.where(inverted > 0, BRIGHTEST - v, v)
        tl.store(p_values + at, tl.where(inside, v, -1))


@triton.jit
def digit_of(p_bins, g, rank):
    """Return the bin that holds a rank, and the rank within it."""
    bin = lanes(g, _BYTES)
    until = tl.cumsum(tl.load(p_bins + bin), 0)
    # The number until the last bin below the rank and, in the low bits, the bin after it.
    below = tl.max(tl.where(until <= rank, until * (2 * _BYTES) + bin + 1, 0), 0)
    return below % (2 * _BYTES), rank - below // (2 * _BYTES)


@triton.jit
def background(p_bins, p_values, g, BLOCK: tl.constexpr):
    """Return the 5th percentile of the window, and how far the median lies above it.

    Both are found byte by byte from the highest, in 32 times the gray level, which has three.
    """
    lowest = tl.where(tl.load(g + GRAIN) == STEP, 16, 0)
    low_rank = (window_size(g) - 1) // 20
    median_rank = (window_size(g) - 1) // 2
    low = 0
    median = 0
    place = 16
    while place >= lowest:
        bin = lanes(g, 2 * _BYTES)
        tl.store(p_bins + bin, tl.zeros([2 * _BYTES], tl.int32))
        tl.debug_barrier()
        for start in range(0, window_size(g), BLOCK):
            v = tl.load(p_values + start + lanes(g, BLOCK)) * 32
            one = tl.full([BLOCK], 1, tl.int32)
            p_bin = p_bins + ((v >> place) & (_BYTES - 1))
            begin = v >> (place + 8)
            tl.atomic_add(p_bin, one, begin == low, sem="relaxed")
            tl.atomic_add(p_bin + _BYTES, one, begin == median, sem="relaxed")
        tl.debug_barrier()
        digit, low_rank = digit_of(p_bins, g, low_rank)
        low = low * _BYTES + digit
        digit, median_rank = digit_of(p_bins + _BYTES, g, median_rank)
        median = median * _BYTES + digit
        place -= 8
    low = (low << lowest) >> 5
    return low, ((median << lowest) >> 5) - low


@triton.jit
def extreme_along(p_from, p_to, g, reach, DOWN: tl.constexpr, LEAST_ONE: tl.constexpr, BLOCK: tl.constexpr):
    """Take the least or the greatest of the window's pixels up to `reach` away, in a column or in a row."""
    height = tl.load(g + HEIGHT).to(tl.int32)
    width = tl.load(g + WIDTH).to(tl.int32)
    for start in range(0, window_size(g), BLOCK):
        at, y, x, inside = window_pixels(g, start, BLOCK)
        found = tl.load(p_from + at, inside, 0)
        for i in range(1, reach + 1):
            if DOWN:
                step = i * width
                before = inside & (y >= i)
                behind = inside & (y < height - i)
            else:
                step = i
                before = inside & (x >= i)
                behind = inside & (x < width - i)
            if LEAST_ONE:
                found = tl.minimum(found, tl.load(p_from + at - step, before, BRIGHTEST))
                found = tl.minimum(found, tl.load(p_from + at + step, behind, BRIGHTEST))
            else:
                found = tl.maximum(found, tl.load(p_from + at - step, before, 0))
                found = tl.maximum(found, tl.load(p_from + at + step, behind, 0))
        tl.store(p_to + at, found, inside)
    tl.debug_barrier()


@triton.jit
def take_relief(p_relief, p_spare, p_values, g, reach, BLOCK: tl.constexpr, PART: tl.constexpr):
    """Take the gray levels less their opening by a square; -1 behind them, up to a whole block."""
    extreme_along(p_values, p_relief, g, reach, False, True, PART)
    extreme_along(p_relief, p_spare, g, reach, True, True, PART)
    extreme_along(p_spare, p_relief, g, reach, False, False, PART)
    extreme_along(p_relief, p_spare, g, reach, True, False, PART)
    for start in range(0, window_size(g), BLOCK):
        at, _, _, inside = window_pixels(g, start, BLOCK)
        tl.store(
            p_relief + at, tl.where(inside, tl.load(p_values + at) - tl.load(p_spare + at, inside, 0), -1)
        )
    tl.debug_barrier()


@triton.jit
def from_click(g, y, x):
    """Return the squares of pixels' distances from the click."""
    dy = y - tl.load(g + CLICK_ROW).to(tl.int32)
    dx = x - tl.load(g + CLICK_COLUMN).to(tl.int32)
    return dy * dy + dx * dx


@triton.jit
def from_others(p_others, g, y, x):
    """Return the squares of pixels' distances from the nearest other click."""
    width = tl.load(g + WIDTH).to(tl.int32)
    least = tl.zeros_like(y) + 2 * PIXELS
    for i in range(tl.load(g + FIRST_OTHER).to(tl.int32), tl.load(g + LAST_OTHER).to(tl.int32)):
        other = tl.load(p_others + i).to(tl.int32)
        dy = y - other // width
        dx = x - other % width
        least = tl.minimum(least, dy * dy + dx * dx)
    return least


@triton.jit
def brightest_around(p_levels, p_others, g, pixel, ALL: tl.constexpr):
    """Return the first of the brightest pixels in the 3 x 3 around one, and its level.

    Without ALL, pixels that are nearer to another click are left out.
    """
    width = tl.load(g + WIDTH).to(tl.int32)
    i = lanes(g, 16)
    y = pixel // width + i // 3 - 1
    x = pixel % width + i % 3 - 1
    able = (i < 9) & (y >= 0) & (y < tl.load(g + HEIGHT)) & (x >= 0) & (x < width)
    if not ALL:
        able &= from_click(g, y, x) <= from_others(p_others, g, y, x)
    level = tl.load(p_levels + y * width + x, able, -1)
    top = tl.max(level, 0)
    return tl.min(tl.where(able & (level == top), y * width + x, PIXELS), 0), top


@triton.jit
def near_click(g, start, near, PART: tl.constexpr):
    """Return index, row, column, squared distance from the click, and near or not, of a block of pixels."""
    at, y, x, inside = window_pixels(g, start, PART)
    square = from_click(g, y, x)
    return at, y, x, square, inside & (square <= near * near)


@triton.jit
def brightest_pixel(p_levels, p_others, g, near, low, PART: tl.constexpr):
    """Return the target's brightest pixel and its level; and `low`, or the least near the click."""
    click_row = tl.load(g + CLICK_ROW).to(tl.int32)
    width = tl.load(g + WIDTH).to(tl.int32)
    first = tl.maximum(click_row - near, 0) * width
    last = tl.minimum(click_row + near + 1, tl.load(g + HEIGHT).to(tl.int32)) * width
    least = tl.zeros([PART], tl.int32) + low
    for start in range(first, last, PART):
        at, _, _, _, disk = near_click(g, start, near, PART)
        least = tl.minimum(least, tl.load(p_levels + at, disk, BRIGHTEST))
    low = tl.min(least, 0)
    # The greatest number, then the first pixel. Numbers of at least 0 have the order of their bits.
    best = tl.zeros([PART], tl.int64)
    for start in range(first, last, PART):
        at, y, x, square, disk = near_click(g, start, near, PART)
        disk &= square <= from_others(p_others, g, y, x)
        level = tl.load(p_levels + at, disk, low)
        # Both integers are exact in float32, and a division is the same everywhere.
        nearby = tl.div_rn((level - low).to(tl.float32), (16 + square).to(tl.float32))
        key = (nearby.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (PIXELS - at)
        best = tl.maximum(best, tl.where(disk, key, 0))
    brightest = PIXELS - (tl.max(best, 0) & 0xFFFFFFFF).to(tl.int32)
    high = low
    steps = 0
    while steps < 8:
        uphill, high = brightest_around(p_levels, p_others, g, brightest, False)
        stays = tl.load(p_levels + brightest) == high
        brightest = tl.where(stays, brightest, uphill)
        steps = tl.where(stays, 8, steps + 1)
    return brightest, high, low


@triton.jit
def hidden(p_values, p_relief, p_others, g, background):
    """Return 1 if the opening took most of what stands out at the click: a target too large for it."""
    click = (tl.load(g + CLICK_ROW) * tl.load(g + WIDTH) + tl.load(g + CLICK_COLUMN)).to(tl.int32)
    pixel, level = brightest_around(p_relief, p_others, g, click, True)
    return (tl.load(p_values + pixel) - level - background > 2 * level).to(tl.int32)


@triton.jit
def others_of(p_rows, p_line, p_nearer, p_levels, p_others, g, brightest, levels, BLOCK: tl.constexpr):
    """Return the pixels of the other targets, rows of bits; see `part_others`."""
    row = lanes(g, SIDE)
    tl.store(p_nearer + row, tl.zeros([SIDE], tl.int64))
    tl.debug_barrier()
    for start in range(0, window_size(g), BLOCK):
        _, y, x, inside = window_pixels(g, start, BLOCK)
        nearer = inside & (from_others(p_others, g, y, x) < from_click(g, y, x))
        bit = tl.full([BLOCK], 1, tl.int64) << x.to(tl.int64)
        tl.atomic_or(p_nearer + y, bit, nearer, sem="relaxed")
    markers = bit_of(g, 0)
    markers ^= markers
    for i in range(tl.load(g + FIRST_OTHER).to(tl.int32), tl.load(g + LAST_OTHER).to(tl.int32)):
        pixel, _ = brightest_around(p_levels, p_others, g, tl.load(p_others + i).to(tl.int32), True)
        bit = bit_of(g, pixel)
        markers |= tl.where(pixel != brightest, bit, bit ^ bit)
    tl.debug_barrier()
    nearer = tl.load(p_nearer + row).to(tl.uint64, bitcast=True)
    return part_others(p_rows, p_line, g, nearer, markers, brightest, levels)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def mean_level(sum, number, otherwise):
    """Return the mean gray level of some pixels, float64; `otherwise` where there are none."""
    mean = sum.to(tl.float64) / (tl.maximum(number, 1).to(tl.float64) * STEP)
    return tl.where(number > 0, mean, otherwise)


@triton.jit
def score_of(
    p_weights, area, rows, columns, peak, inner, inner_sum, outer, outer_sum, pairs, fall_sum, ring,
    spread, click_y, click_x, least, most,
):  # fmt: skip
    """Return the scores, float64, of candidates of `area` >= 1 pixels.

    `p_weights` holds those of `ScoreWeights` and the category's, float64; all others are integers: sums of
    the pixels' rows and columns, the brightest one's gray steps, number and sum of gray steps on both sides
    of the outline, number of neighbors across it and sum of their falls, the ring's median, the background's
    spread; the click and the category's limits.
    """
    ring = ring.to(tl.float64) / STEP
    peak = peak.to(tl.float64) / STEP
    inside = mean_level(inner_sum, inner, peak)
    outside = mean_level(outer_sum, outer, ring)
    area = area.to(tl.float64)
    above = tl.maximum((inside + outside) / 2 - ring, 0.3)
    contrast = tl.maximum(peak - ring, 0.5)
    log_level = tl.log(above)
    log_area = tl.log(area)
    log_contrast = tl.log(contrast) - tl.log(spread.to(tl.float64) / STEP + 1) / 2
    root = tl.sqrt(area)
    fall = mean_level(fall_sum, pairs, 0.0)
    away_y = rows.to(tl.float64) / area - click_y
    away_x = columns.to(tl.float64) / area - click_x
    away = tl.sqrt(away_y * away_y + away_x * away_x)
    score = tl.load(p_weights) * log_level + tl.load(p_weights + 1) * log_level * log_level
    score += tl.load(p_weights + 2) * tl.log(tl.maximum(inside - outside, 0.3))
    score += tl.load(p_weights + 3) * tl.log(fall + 0.3)
    score += tl.load(p_weights + 4) * log_area * log_contrast
    score += tl.load(p_weights + 5) * outer.to(tl.float64) / root
    score += tl.load(p_weights + 6) * away / (root * 0.05 + 2)
    score += tl.load(p_weights + 7) * tl.maximum(tl.log(area / 50), 0.0)
    misses = tl.maximum(tl.log(least.to(tl.float64)) - log_area, 0.0)
    misses += tl.maximum(log_area - tl.log(most.to(tl.float64)), 0.0)
    return score - tl.load(p_weights + 8) * misses


@triton.jit
def scores(p_sums, p_peaks, p_medians, p_weights, g, fresh, spread, LEVELS: tl.constexpr):
    """Return scores, float64 [LEVELS], minus infinity where there is no new candidate; and the areas."""
    k = lanes(g, LEVELS)
    ring = tl.load(p_medians + k)
    whole = tl.cumsum(tl.load(p_sums + WHOLE * LEVELS + k), 0)
    inner = tl.cumsum(tl.load(p_sums + INNER * LEVELS + k), 0)
    outer = tl.cumsum(tl.load(p_sums + OUTER * LEVELS + k), 0)
    pairs = tl.cumsum(tl.load(p_sums + PAIRS * LEVELS + k), 0)
    high = whole >> LOW_BITS
    area = (high & NUMBER_MASK).to(tl.int32)
    score = score_of(
        p_weights,
        area,
        whole & LOW_MASK,
        high >> NUMBER_BITS,
        tl.associative_scan(tl.load(p_peaks + k), 0, larger),
        inner & NUMBER_MASK,
        inner >> NUMBER_BITS,
        outer & NUMBER_MASK,
        outer >> NUMBER_BITS,
        pairs & NUMBER_MASK,
        pairs >> NUMBER_BITS,
        ring,
        spread,
        tl.load(g + CLICK_ROW),
        tl.load(g + CLICK_COLUMN),
        tl.load(g + LEAST),
        tl.load(g + MOST),
    )
    return tl.where(fresh, score, float("-inf")), area


@triton.jit
def vote(p_shares, g, score, area, kept, LEVELS: tl.constexpr):
    """Turn scores into the share of the vote that a pixel of each join level has, into scratch.

    Returns the best score, the expected IoU of the mask and the mask's area.
    """
    k = lanes(g, LEVELS)
    best = tl.max(score, 0)
    weight = tl.exp(score - best)
    behind = tl.cumsum(weight, 0, reverse=True)
    total = tl.sum(tl.where(k == 0, behind, 0.0), 0)
    share = (behind / total).to(tl.float32)
    chosen = tl.max(tl.where((share >= 0.5) & (k < kept), k, 0), 0)
    mask_area = tl.sum(tl.where(k == chosen, area, 0), 0)
    overlap = tl.minimum(area, mask_area).to(tl.float64) / tl.maximum(area, mask_area).to(tl.float64)
    tl.store(p_shares + k, share)
    return best, tl.sum(weight / total * overlap, 0), mask_area


@triton.jit
def draw_vote(p_map, p_shares, p_planes, g, r, BLOCK: tl.constexpr, PART: tl.constexpr):
    """Draw the share of each pixel's join level."""
    for start in range(0, window_size(g), BLOCK):
        pixel, _, _, inside = window_pixels(g, start, BLOCK)
        tl.store(p_map + pixel, tl.zeros([BLOCK], tl.float32), inside)
    tl.debug_barrier()
    p_map += tl.load(r + R_TOP) * tl.load(g + WIDTH) + tl.load(r + R_LEFT)
    for start in range(0, region_size(r), PART):
        _, y, x, inside, place = region_pixels(r, start, PART)
        level = tl.load(p_planes + place, inside, NEVER).to(tl.int32)
        share = tl.load(p_shares + level, level < NEVER, 0.0)
        tl.store(p_map + y * tl.load(g + WIDTH) + x, share, level < NEVER)


@triton.jit
def draw_click(p_map, g, BLOCK: tl.constexpr):
    """Draw the map of a click where nothing stands out. Returns its area."""
    area = tl.zeros([BLOCK], tl.int32)
    for start in range(0, window_size(g), BLOCK):
        pixel, y, x, inside = window_pixels(g, start, BLOCK)
        dy = tl.abs(y - tl.load(g + CLICK_ROW).to(tl.int32))
        dx = tl.abs(x - tl.load(g + CLICK_COLUMN).to(tl.int32))
        around = inside & (dy <= 1) & (dx <= 1)
        tl.store(p_map + pixel, around.to(tl.float32), inside)
        area += around.to(tl.int32)
    return tl.sum(area, 0)


_VARYING = ["targets", "polarities", "dark", "near", "opening", "levels", "max_area"]


@triton.jit(do_not_specialize=_VARYING)
def components_kernel(
    p_data, p_geometry, p_others, p_weights, p_rows, p_numbers, p_planes, p_shares,
    p_tpm, p_area, p_score, p_confidence, p_dark, p_flat,
    targets, polarities, dark, near, opening, levels, max_area,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Label targets, one after another in a program: as bright or `dark` ones, or the better of both."""
    program = tl.program_id(0).to(tl.int64)
    p_rows += program * ((LEVELS + 2) * SIDE + SUMS * LEVELS)
    p_line = p_rows + LEVELS * SIDE
    p_nearer = p_line + SIDE
    p_sums = p_nearer + SIDE
    p_values = p_numbers + program * (3 * PIXELS + BINS + 5 * LEVELS + REGION)
    p_relief = p_values + PIXELS
    p_spans = p_relief + PIXELS
    p_bins = p_spans + PIXELS
    p_peaks = p_bins + BINS
    p_medians = p_peaks + LEVELS
    p_keys = p_medians + LEVELS
    r = p_keys + 3 * LEVELS
    p_planes += program * PLANES
    p_shares += program * LEVELS
    for item in range(tl.program_id(0), targets, tl.num_programs(0)):
        g = p_geometry + item * GEOMETRY
        rival = tl.full((), float("-inf"), tl.float64)
        for turn in range(polarities):
            read_window(p_values, p_data, g, turn + dark, BLOCK)
            low, spread_of_low = background(p_bins, p_values, g, BLOCK)
            reliefs = 1
            if opening > 0:
                take_relief(p_relief, p_spans, p_values, g, opening // 2, BLOCK, PART)
                reliefs += hidden(p_values, p_relief, p_others, g, low)
            turn_best = tl.full((), float("-inf"), tl.float64)
            for attempt in range(reliefs):
                on_relief = (opening > 0) & (attempt == 0)
                p_levels = p_values + tl.where(on_relief, PIXELS, 0)
                least = tl.where(on_relief, BRIGHTEST, low)
                clear_rows(p_rows, g, levels, BLOCK)
                brightest, high, least = brightest_pixel(p_levels, p_others, g, near, least, PART)
                kept = 0
                if high > least:
                    bright_rows(p_rows, p_levels, g, high, least, levels, BLOCK)
                    closed = bit_of(g, 0)
                    closed ^= closed
                    if tl.load(g + LAST_OTHER) > tl.load(g + FIRST_OTHER):
                        closed = others_of(
                            p_rows, p_line, p_nearer, p_levels, p_others, g, brightest, levels, PART
                        )
                    kept = grow(p_rows, p_line, g, closed, brightest, levels, max_area)
                best = tl.full((), float("-inf"), tl.float64)
                confidence = tl.full((), 0.0, tl.float64)
                area = 0
                if kept > 0:
                    find_region(r, p_rows, g, kept)
                    join_levels(p_planes, p_rows, r, kept, LEVELS, PART)
                    candidates(p_sums, p_peaks, p_planes, p_values, g, r, LEVELS, PART)
                    outlines(p_sums, p_planes, p_values, g, r, kept, LEVELS, PART)
                    falls(p_sums, p_planes, p_values, g, r, kept, spread_of_low + STEP, LEVELS, PART)
                    ring_levels(p_spans, p_planes, r, PART)
                    k = lanes(g, LEVELS)
                    fresh = (k < kept) & (tl.load(p_sums + WHOLE * LEVELS + k) > 0)
                    ring_medians(p_medians, p_bins, p_keys, p_spans, p_values, g, r, fresh, low, LEVELS, PART)
                    score, areas = scores(
                        p_sums, p_peaks, p_medians, p_weights, g, fresh, spread_of_low, LEVELS
                    )
                    best, confidence, area = vote(p_shares, g, score, areas, kept, LEVELS)
                if (turn + attempt == 0) | (best > rival):
                    target = tl.load(g + TARGET)
                    p_map = p_tpm + tl.load(g + PIXEL_OFFSET)
                    if kept > 0:
                        draw_vote(p_map, p_shares, p_planes, g, r, BLOCK, PART)
                    else:
                        area = draw_click(p_map, g, BLOCK)
                    tl.store(p_area + target, area)
                    tl.store(p_score + target, best.to(tl.float32))
                    tl.store(p_confidence + target, confidence.to(tl.float32))
                    tl.store(p_dark + target, turn + dark)
                    tl.store(p_flat + target, kept == 0)
                turn_best = tl.maximum(turn_best, best)
                rival = tl.maximum(rival, best)
                # The next scratch goes where other threads may still be reading.
                tl.debug_barrier()
            rival = turn_best + tl.load(p_weights + 9)


def _geometry(images: PackedImages, windows: Windows, areas: torch.Tensor, others: Marks) -> torch.Tensor:
    """Return the geometry table [targets, 21], int64, on the CPU, the largest windows first."""
    offset, image_height, image_width, channels, pitch, plane = images.table[windows.image].unbind(1)
    first = offset + windows.top * pitch + windows.left
    reciprocal = (DIVIDEND.value + windows.width - 1) // windows.width
    scales = images.scales[windows.image].view(torch.int64).unbind(1)
    grain = torch.where((channels == 1) & (images.data.dtype == torch.uint8), STEPS, 1)
    clicks = windows.click_row, windows.click_column, windows.top, windows.left
    sizes = image_height, image_width, windows.offsets[:-1], torch.arange(len(windows))
    first_other, last_other = others.offsets[:-1], others.offsets[1:]
    columns = windows.height, windows.width, reciprocal, first, pitch, plane, *scales, grain
    table = torch.stack([*columns, *clicks, *sizes, first_other, last_other, *areas.unbind(1)], 1)
    return table[torch.argsort(windows.sizes, descending=True, stable=True)]


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

    `areas` [targets, 2], on the CPU, limit the categories' areas; `others` are the other targets' clicks.
    """
    device = images.data.device
    weights = torch.tensor(
        (*config.score_weights(), config.category_weight, config.dark_margin), dtype=torch.float64
    )
    clicks = torch.cat([others.pixels, torch.zeros(1, dtype=torch.int64)])  # not empty
    geometry, clicks, weights = upload(device, _geometry(images, windows, areas, others), clicks, weights)
    levels = triton.next_power_of_2(config.levels)
    programs = min(len(windows), processors(device) * _PROGRAMS_PER_PROCESSOR)
    rows = (levels + 2) * MAX_WINDOW + SUMS.value * levels
    numbers = 3 * PIXELS.value + BINS.value + 5 * levels + REGION.value
    with launching(device):
        components_kernel[(programs,)](
            images.data, geometry, clicks, weights,
            torch.empty(programs * rows, dtype=torch.int64, device=device),
            torch.empty(programs * numbers, dtype=torch.int32, device=device),
            torch.empty(programs * PLANES.value, dtype=torch.uint8, device=device),
            torch.empty(programs * levels, dtype=torch.float32, device=device),
            tpm, area, score, confidence, dark.view(torch.uint8), flat.view(torch.uint8),
            len(windows), 2 if config.polarity == "auto" else 1, int(config.polarity == "dark"),
            config.near, config.opening, config.levels, config.max_area,
            LEVELS=levels, BLOCK=_BLOCK, PART=_PART, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
