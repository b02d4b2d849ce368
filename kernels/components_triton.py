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
    GEOMETRY,
    GRAIN,
    HEIGHT,
    INNER,
    LEAST,
    LOW_BITS,
    LOW_MASK,
    MOST,
    NEVER,
    NUMBER_BITS,
    NUMBER_MASK,
    OUTER,
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
    bright_rows,
    candidates,
    clear_rows,
    find_region,
    grow,
    join_levels,
    lanes,
    outlines,
    region_pixels,
    region_size,
    ring_levels,
    ring_medians,
    window_pixels,
    window_size,
)
from mclc_gpu.kernels.color_triton import luma
from mclc_gpu.kernels.config import MAX_WINDOW, STEPS, ComponentConfig
from mclc_gpu.kernels.packed import PackedImages, Windows

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
def near_click(g, start, near, PART: tl.constexpr):
    """Return index, squared distance from the click, and near or not, of a block of the window's pixels."""
    at, y, x, inside = window_pixels(g, start, PART)
    dy = y - tl.load(g + CLICK_ROW).to(tl.int32)
    dx = x - tl.load(g + CLICK_COLUMN).to(tl.int32)
    square = dy * dy + dx * dx
    return at, square, inside & (square <= near * near)


@triton.jit
def brightest_pixel(p_values, g, near, low, PART: tl.constexpr):
    """Return the target's brightest pixel and its gray level; and `low`, or the least near the click."""
    click_row = tl.load(g + CLICK_ROW).to(tl.int32)
    height = tl.load(g + HEIGHT).to(tl.int32)
    width = tl.load(g + WIDTH).to(tl.int32)
    first = tl.maximum(click_row - near, 0) * width
    last = tl.minimum(click_row + near + 1, height) * width
    least = tl.zeros([PART], tl.int32) + low
    for start in range(first, last, PART):
        at, _, disk = near_click(g, start, near, PART)
        least = tl.minimum(least, tl.load(p_values + at, disk, BRIGHTEST))
    low = tl.min(least, 0)
    # The greatest number, then the first pixel. Numbers of at least 0 have the order of their bits.
    best = tl.zeros([PART], tl.int64)
    for start in range(first, last, PART):
        at, square, disk = near_click(g, start, near, PART)
        v = tl.load(p_values + at, disk, low)
        # Both integers are exact in float32, and a division is the same everywhere.
        nearby = tl.div_rn((v - low).to(tl.float32), (32 + square).to(tl.float32))
        key = (nearby.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (PIXELS - at)
        best = tl.maximum(best, tl.where(disk, key, 0))
    brightest = PIXELS - (tl.max(best, 0) & 0xFFFFFFFF).to(tl.int32)
    i = lanes(g, 16)
    high = low
    steps = 0
    while steps < 8:
        y = brightest // width + i // 3 - 1
        x = brightest % width + i % 3 - 1
        inside = (i < 9) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        v = tl.load(p_values + y * width + x, inside, -1)
        high = tl.max(v, 0)
        stays = tl.load(p_values + brightest) == high
        uphill = tl.min(tl.where(v == high, y * width + x, PIXELS), 0)
        brightest = tl.where(stays, brightest, uphill)
        steps = tl.where(stays, 8, steps + 1)
    return brightest, high, low


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
    p_weights, area, rows, columns, peak, border, inner, inner_sum, outer, outer_sum, ring,
    spread, click_y, click_x, least, most,
):  # fmt: skip
    """Return the scores, float64, of candidates of `area` >= 1 pixels.

    `p_weights` holds those of `ScoreWeights` and the category's, float64; all others are integers: sums of
    the pixels' rows and columns, the brightest one's gray steps, the number on the image's border, number and
    sum of gray steps on both sides of the outline, the ring's median, the background's spread; the click and
    the category's limits.
    """
    ring = ring.to(tl.float64) / STEP
    peak = peak.to(tl.float64) / STEP
    inside = mean_level(inner_sum, inner, peak)
    outside = mean_level(outer_sum, outer, ring)
    area = area.to(tl.float64)
    above = tl.maximum((inside + outside) / 2 - ring, 0.3)
    contrast = tl.maximum(peak - ring, 0.5)
    share = above / contrast
    log_level = tl.log(above)
    log_area = tl.log(area)
    log_contrast = tl.log(contrast) - tl.log(spread.to(tl.float64) / STEP + 1) / 2
    root = tl.sqrt(area)
    both = tl.maximum(border + outer, 1).to(tl.float64)
    touching = tl.where(border + outer > 0, border.to(tl.float64) / both, 1.0)
    away_y = rows.to(tl.float64) / area - click_y
    away_x = columns.to(tl.float64) / area - click_x
    away = tl.sqrt(away_y * away_y + away_x * away_x)
    score = tl.load(p_weights) * log_level + tl.load(p_weights + 1) * log_level * log_level
    score += tl.load(p_weights + 2) * tl.log(tl.maximum(inside - outside, 0.3))
    score += tl.load(p_weights + 3) * log_area * log_contrast
    score += tl.load(p_weights + 4) * outer.to(tl.float64) / root + tl.load(p_weights + 5) * touching
    score += tl.load(p_weights + 6) * away / (root * 0.05 + 2) + tl.load(p_weights + 7) * share * share
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
    low = whole & LOW_MASK
    high = whole >> LOW_BITS
    area = (high & NUMBER_MASK).to(tl.int32)
    score = score_of(
        p_weights,
        area,
        low >> NUMBER_BITS,
        high >> NUMBER_BITS,
        tl.associative_scan(tl.load(p_peaks + k), 0, larger),
        low & NUMBER_MASK,
        inner & NUMBER_MASK,
        inner >> NUMBER_BITS,
        outer & NUMBER_MASK,
        outer >> NUMBER_BITS,
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


_VARYING = ["targets", "polarities", "dark", "near", "levels", "max_area"]


@triton.jit(do_not_specialize=_VARYING)
def components_kernel(
    p_data, p_geometry, p_weights, p_rows, p_numbers, p_planes, p_shares,
    p_tpm, p_area, p_score, p_confidence, p_dark, p_flat,
    targets, polarities, dark, near, levels, max_area,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Label targets, one after another in a program: as bright or `dark` ones, or the better of both."""
    program = tl.program_id(0).to(tl.int64)
    p_rows += program * ((LEVELS + 1) * SIDE + SUMS * LEVELS)
    p_line = p_rows + LEVELS * SIDE
    p_sums = p_line + SIDE
    p_values = p_numbers + program * (2 * PIXELS + BINS + 5 * LEVELS + REGION)
    p_spans = p_values + PIXELS
    p_bins = p_spans + PIXELS
    p_peaks = p_bins + BINS
    p_medians = p_peaks + LEVELS
    p_keys = p_medians + LEVELS
    r = p_keys + 3 * LEVELS
    p_planes += program * PLANES
    p_shares += program * LEVELS
    for item in range(tl.program_id(0), targets, tl.num_programs(0)):
        g = p_geometry + item * GEOMETRY
        bright_score = tl.full((), float("-inf"), tl.float64)
        for turn in range(polarities):
            clear_rows(p_rows, g, levels, BLOCK)
            read_window(p_values, p_data, g, turn + dark, BLOCK)
            low, spread = background(p_bins, p_values, g, BLOCK)
            brightest, high, low = brightest_pixel(p_values, g, near, low, PART)
            kept = 0
            if high > low:
                bright_rows(p_rows, p_values, g, high, low, levels, BLOCK)
                kept = grow(p_rows, p_line, g, brightest, levels, max_area)
            best = tl.full((), float("-inf"), tl.float64)
            confidence = tl.full((), 0.0, tl.float64)
            area = 0
            if kept > 0:
                find_region(r, p_rows, g, kept)
                join_levels(p_planes, p_rows, r, kept, LEVELS, PART)
                candidates(p_sums, p_peaks, p_planes, p_values, g, r, LEVELS, PART)
                outlines(p_sums, p_planes, p_values, g, r, kept, LEVELS, PART)
                ring_levels(p_spans, p_planes, r, PART)
                k = lanes(g, LEVELS)
                fresh = (k < kept) & (tl.load(p_sums + WHOLE * LEVELS + k) > 0)
                ring_medians(p_medians, p_bins, p_keys, p_spans, p_values, g, r, fresh, low, LEVELS, PART)
                score, areas = scores(p_sums, p_peaks, p_medians, p_weights, g, fresh, spread, LEVELS)
                best, confidence, area = vote(p_shares, g, score, areas, kept, LEVELS)
            if (turn == 0) | (best > bright_score + tl.load(p_weights + 9)):
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
            bright_score = best
            # The next gray levels go where other threads may still be reading.
            tl.debug_barrier()


def _geometry(images: PackedImages, windows: Windows, areas: torch.Tensor) -> torch.Tensor:
    """Return the geometry table [targets, 19], int64, on the CPU, the largest windows first."""
    offset, image_height, image_width, channels, pitch, plane = images.table[windows.image].unbind(1)
    first = offset + windows.top * pitch + windows.left
    reciprocal = (DIVIDEND.value + windows.width - 1) // windows.width
    scales = images.scales[windows.image].view(torch.int64).unbind(1)
    grain = torch.where((channels == 1) & (images.data.dtype == torch.uint8), STEPS, 1)
    clicks = windows.click_row, windows.click_column, windows.top, windows.left
    sizes = image_height, image_width, windows.offsets[:-1], torch.arange(len(windows))
    columns = windows.height, windows.width, reciprocal, first, pitch, plane, *scales, grain
    table = torch.stack([*columns, *clicks, *sizes, *areas.unbind(1)], 1)
    return table[torch.argsort(windows.sizes, descending=True, stable=True)]


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
    """Fill what `ComponentVotes` holds; `areas` [targets, 2], on the CPU, limit the categories' areas."""
    device = images.data.device
    weights = torch.tensor(
        (*config.score_weights(), config.category_weight, config.dark_margin), dtype=torch.float64
    )
    geometry, weights = upload(device, _geometry(images, windows, areas), weights)
    levels = triton.next_power_of_2(config.levels)
    programs = min(len(windows), processors(device) * _PROGRAMS_PER_PROCESSOR)
    rows = (levels + 1) * MAX_WINDOW + SUMS.value * levels
    numbers = 2 * PIXELS.value + BINS.value + 5 * levels + REGION.value
    with launching(device):
        components_kernel[(programs,)](
            images.data, geometry, weights,
            torch.empty(programs * rows, dtype=torch.int64, device=device),
            torch.empty(programs * numbers, dtype=torch.int32, device=device),
            torch.empty(programs * PLANES.value, dtype=torch.uint8, device=device),
            torch.empty(programs * levels, dtype=torch.float32, device=device),
            tpm, area, score, confidence, dark.view(torch.uint8), flat.view(torch.uint8),
            len(windows), 2 if config.polarity == "auto" else 1, int(config.polarity == "dark"),
            config.near, config.levels, config.max_area,
            LEVELS=levels, BLOCK=_BLOCK, PART=_PART, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
