"""Vote of gray-level components in Triton."""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import processors
from mclc_gpu.kernels.color_triton import luma, ranked, zero_of
from mclc_gpu.kernels.config import STEPS, WHITE, ComponentConfig
from mclc_gpu.kernels.packed import PackedImages, Windows

_STEPS = tl.constexpr(STEPS)


@triton.jit
def mean_level(sum, number, otherwise):
    """Return the mean gray level of some pixels, float64; `otherwise` where there are none."""
    mean = sum.to(tl.float64) / (tl.maximum(number, 1).to(tl.float64) * _STEPS)
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
    ring = ring.to(tl.float64) / _STEPS
    peak = peak.to(tl.float64) / _STEPS
    inside = mean_level(inner_sum, inner, peak)
    outside = mean_level(outer_sum, outer, ring)
    area = area.to(tl.float64)
    above = tl.maximum((inside + outside) / 2 - ring, 0.3)
    contrast = tl.maximum(peak - ring, 0.5)
    share = above / contrast
    log_level = tl.log(above)
    log_area = tl.log(area)
    log_contrast = tl.log(contrast) - tl.log(spread.to(tl.float64) / _STEPS + 1) / 2
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


# Columns of the geometry table, in the order of `_geometry`.
(
    DATA, PITCH, PLANE, IMAGE, HEIGHT, WIDTH, CLICK_ROW, CLICK_COLUMN, TOP, LEFT, IMAGE_HEIGHT,
    IMAGE_WIDTH, PIXEL_OFFSET, LEAST, MOST, GRAIN, GEOMETRY,
) = (tl.constexpr(column) for column in range(17))  # fmt: skip
# Rows of the table of candidates, each of LEVELS numbers.
(_AREA, _ROWS, _COLUMNS, _BORDER, _INNER, _INNER_SUM, _OUTER, _OUTER_SUM, _PEAK, _RING, _TABLE) = (
    tl.constexpr(row) for row in range(11)
)
_WHITE = tl.constexpr(WHITE)
PAD = tl.constexpr(6)  # pixels of nothing around the window's join levels: the ring's outer reach
PLANES = tl.constexpr(3)  # of scratch: join levels, and their least over a row's boxes of two sizes
_PIXELS_PER_THREAD = 8
_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def window_pixels(g, PIXELS: tl.constexpr):
    """Return index, row, column, inside or not, and place among the join levels of each window pixel.

    Registers are scarce: every stage of the kernel computes these numbers anew.
    """
    pixel = tl.arange(0, PIXELS) + zero_of(g + WIDTH)
    width = tl.load(g + WIDTH).to(tl.int32)
    y = pixel // width
    x = pixel - y * width
    inside = y < tl.load(g + HEIGHT).to(tl.int32)
    return pixel, y, x, inside, (y + PAD) * (width + 2 * PAD) + x + PAD


@triton.jit
def gray_levels(p_data, p_scales, g, inverted, PIXELS: tl.constexpr):
    """Load the gray steps, int32, of the window's pixels."""
    _, y, x, inside, _ = window_pixels(g, PIXELS)
    place = y * tl.load(g + PITCH).to(tl.int32) + x
    value = luma(p_data + tl.load(g + DATA) + place, tl.load(g + PLANE), inside)
    p_scale = p_scales + tl.load(g + IMAGE) * 2
    gray = ((value - tl.load(p_scale)) * tl.load(p_scale + 1) + 0.5).to(tl.int32)
    return tl.where(inverted > 0, _WHITE - gray, gray)


@triton.jit
def background(v, g, grain):
    """Return the 5th percentile of the window, and how far the median lies above it."""
    _, _, _, inside, _ = window_pixels(g, v.shape[0])
    size = (tl.load(g + HEIGHT) * tl.load(g + WIDTH)).to(tl.int32)
    low = ranked(v, inside, (size - 1) // 20, grain)
    return low, ranked(v, inside, (size - 1) // 2, grain) - low


@triton.jit
def brightest_pixel(v, g, near, low):
    """Return the target's brightest pixel, and the background: `low` or the least near the click."""
    pixel, y, x, inside, _ = window_pixels(g, v.shape[0])
    dy = y - tl.load(g + CLICK_ROW).to(tl.int32)
    dx = x - tl.load(g + CLICK_COLUMN).to(tl.int32)
    square = dy * dy + dx * dx
    disk = inside & (square <= near * near)
    low = tl.minimum(low, tl.min(tl.where(disk, v, _WHITE), 0))
    # Both integers are exact in float32, and a division is the same everywhere.
    nearby = tl.where(disk, tl.div_rn((v - low).to(tl.float32), (32 + square).to(tl.float32)), -1.0)
    brightest = tl.min(tl.where(nearby == tl.max(nearby, 0), pixel, v.shape[0]), 0)
    width = tl.load(g + WIDTH).to(tl.int32)
    i = 0
    while i < 8:
        around = inside & (tl.abs(y - brightest // width) <= 1) & (tl.abs(x - brightest % width) <= 1)
        top = tl.max(tl.where(around, v, -1), 0)
        stays = tl.max(((pixel == brightest) & (v == top)).to(tl.int32), 0)
        uphill = tl.min(tl.where(around & (v == top), pixel, v.shape[0]), 0)
        brightest = tl.where(stays > 0, brightest, uphill)
        i = tl.where(stays > 0, 8, i + 1)
    return brightest, low


@triton.jit
def join_levels(p_join, g, own, brightest, levels):
    """Return the first level whose candidate holds each pixel; `own` is the level of a pixel by itself."""
    pixel, _, _, inside, place = window_pixels(g, own.shape[0])
    stride = tl.load(g + WIDTH).to(tl.int32) + 2 * PAD
    level = tl.where(pixel == brightest, 0, levels)
    tl.store(p_join + place, level.to(tl.uint8), pixel == brightest)
    tl.debug_barrier()
    changed = 1
    while changed > 0:
        least = level
        here = place + zero_of(g + WIDTH)
        for i in tl.static_range(9):
            p_other = p_join + here + (i // 3 - 1) * stride + (i % 3 - 1)
            least = tl.minimum(least, tl.load(p_other, inside, 255).to(tl.int32))
        least = tl.maximum(least, own)
        # Triton 3.3 and 3.4 crash where a loop does not use what it turns on.
        changed = tl.minimum(changed, tl.max((least < level).to(tl.int32), 0))
        tl.store(p_join + here, least.to(tl.uint8), inside & (least < level))
        level = least
        tl.debug_barrier()
    return level


@triton.jit
def tally(p_table, row, level, number, counted, LEVELS: tl.constexpr):
    """Add each counted pixel's number to its level in a row of the table."""
    tl.atomic_add(p_table + row * LEVELS + level, number, counted, sem="relaxed")


@triton.jit
def accumulate(p_table, k, first: tl.constexpr, last: tl.constexpr, LEVELS: tl.constexpr):
    """Sum some rows of the table up, from histograms to what the candidate of each level holds."""
    for row in tl.static_range(first, last + 1):
        total = tl.cumsum(tl.load(p_table + row * LEVELS + k), 0)
        tl.debug_barrier()
        tl.store(p_table + row * LEVELS + k, total)


@triton.jit
def candidates(p_table, g, k, level, levels, max_area, LEVELS: tl.constexpr):
    """Fill the table's rows about whole candidates. Returns the number of candidates."""
    _, y, x, inside, _ = window_pixels(g, level.shape[0])
    height = tl.load(g + HEIGHT).to(tl.int32)
    width = tl.load(g + WIDTH).to(tl.int32)
    for row in tl.static_range(_TABLE):
        tl.store(p_table + row * LEVELS + k, tl.zeros_like(k))
    tl.debug_barrier()
    joins = inside & (level < levels)
    tally(p_table, _AREA, level, tl.full(level.shape, 1, tl.int32), joins, LEVELS)
    tally(p_table, _ROWS, level, y, joins, LEVELS)
    tally(p_table, _COLUMNS, level, x, joins, LEVELS)
    row = y + tl.load(g + TOP).to(tl.int32)
    column = x + tl.load(g + LEFT).to(tl.int32)
    last_row = tl.load(g + IMAGE_HEIGHT).to(tl.int32) - 1
    last_column = tl.load(g + IMAGE_WIDTH).to(tl.int32) - 1
    at_border = (row == 0) | (row == last_row) | (column == 0) | (column == last_column)
    tally(p_table, _BORDER, level, tl.full(level.shape, 1, tl.int32), joins & at_border, LEVELS)
    leaves = ((y == 0) & (row > 0)) | ((y == height - 1) & (row < last_row))
    leaves |= ((x == 0) & (column > 0)) | ((x == width - 1) & (column < last_column))
    kept = tl.min(tl.where(joins & leaves, level, levels), 0)
    tl.debug_barrier()
    accumulate(p_table, k, _AREA, _BORDER, LEVELS)
    tl.debug_barrier()
    area = tl.load(p_table + _AREA * LEVELS + k)
    return tl.minimum(kept, tl.min(tl.where(area > max_area, k, levels), 0))


@triton.jit
def tally_span(p_table, row, first, last, v, counted, LEVELS: tl.constexpr):
    """Count pixels, and in the next row add their gray levels up, from one level until another."""
    one = tl.full(v.shape, 1, tl.int32)
    tally(p_table, row, first, one, counted, LEVELS)
    tally(p_table, row + 1, first, v, counted, LEVELS)
    tally(p_table, row, last, -one, counted, LEVELS)
    tally(p_table, row + 1, last, -v, counted, LEVELS)


@triton.jit
def outlines(p_table, p_join, g, k, v, level, kept, LEVELS: tl.constexpr):
    """Count and sum up the pixels on both sides of each candidate's outline, into the table."""
    stride = tl.load(g + WIDTH).to(tl.int32) + 2 * PAD
    _, _, _, inside, place = window_pixels(g, v.shape[0])
    first = tl.minimum(level, tl.load(p_join + place - stride, inside, 0).to(tl.int32))
    first = tl.minimum(first, tl.load(p_join + place + stride, inside, 0).to(tl.int32))
    first = tl.minimum(first, tl.load(p_join + place - 1, inside, 0).to(tl.int32))
    first = tl.minimum(first, tl.load(p_join + place + 1, inside, 0).to(tl.int32))
    # Beside the candidates from `first` until it joins.
    tally_span(p_table, _OUTER, first, tl.minimum(level, kept), v, inside & (first < level), LEVELS)
    # Beyond the window lies nothing: the padding must not count as a pixel that joins late.
    _, y, x, inside, place = window_pixels(g, v.shape[0])
    south = inside & (y < tl.load(g + HEIGHT).to(tl.int32) - 1)
    east = inside & (x < tl.load(g + WIDTH).to(tl.int32) - 1)
    last = tl.maximum(level, tl.load(p_join + place - stride, inside & (y > 0), 0).to(tl.int32))
    last = tl.maximum(last, tl.load(p_join + place + stride, south, 0).to(tl.int32))
    last = tl.maximum(last, tl.load(p_join + place - 1, inside & (x > 0), 0).to(tl.int32))
    last = tl.maximum(last, tl.load(p_join + place + 1, east, 0).to(tl.int32))
    # At the edge of the candidates until its last neighbor joins.
    tally_span(p_table, _INNER, level, tl.minimum(last, kept), v, inside & (last > level), LEVELS)
    tl.debug_barrier()
    accumulate(p_table, k, _INNER, _OUTER_SUM, LEVELS)


@triton.jit
def least_around(p_levels, g, least, step, first: tl.constexpr, last: tl.constexpr):
    """Return the least of `least` and of what lies `first` .. `last` steps away; 0 outside the window."""
    _, _, _, inside, place = window_pixels(g, least.shape[0])
    for i in range(first, last + 1):
        least = tl.minimum(least, tl.load(p_levels + (place - i * step), inside, 0).to(tl.int32))
        least = tl.minimum(least, tl.load(p_levels + (place + i * step), inside, 0).to(tl.int32))
    return least


@triton.jit
def box_levels(p_join, g, plane, level):
    """Return the least join level in the 7 x 7 and the 13 x 13 pixels around each; 0 outside the window."""
    stride = tl.load(g + WIDTH).to(tl.int32) + 2 * PAD
    near = least_around(p_join, g, level, 1, 1, 3)
    far = least_around(p_join, g, near, 1, 4, 6)
    _, _, _, inside, place = window_pixels(g, level.shape[0])
    tl.store(p_join + plane + place, near.to(tl.uint8), inside)
    tl.store(p_join + 2 * plane + place, far.to(tl.uint8), inside)
    tl.debug_barrier()
    near = least_around(p_join + plane, g, near, stride, 1, 3)
    return near, least_around(p_join + 2 * plane, g, far, stride, 1, 6)


@triton.jit
def rings(p_table, p_join, g, plane, v, level, kept, low, grain, LEVELS: tl.constexpr):
    """Find the median of each candidate's ring (pixels 4..6 off) and its brightest pixel, into the table."""
    near, far = box_levels(p_join, g, plane, level)
    before = 0
    for i in range(kept):
        area = tl.load(p_table + _AREA * LEVELS + i)
        if area > before:
            ring = (far <= i) & (near > i)
            size = tl.sum(ring.to(tl.int32), 0)
            median = low
            if size > 0:
                median = ranked(v, ring, (size - 1) // 2, grain)
            tl.store(p_table + _RING * LEVELS + i, median)
            tl.store(p_table + _PEAK * LEVELS + i, tl.max(tl.where(level <= i, v, -1), 0))
        before = area
    tl.debug_barrier()


@triton.jit
def scores(p_table, p_weights, g, k, kept, spread, LEVELS: tl.constexpr):
    """Return scores, float64 [LEVELS], minus infinity where there is no new candidate; and the areas."""
    area = tl.load(p_table + _AREA * LEVELS + k)
    before = tl.load(p_table + _AREA * LEVELS + k - 1, k > 0, 0)
    score = score_of(
        p_weights,
        tl.maximum(area, 1),
        tl.load(p_table + _ROWS * LEVELS + k),
        tl.load(p_table + _COLUMNS * LEVELS + k),
        tl.load(p_table + _PEAK * LEVELS + k),
        tl.load(p_table + _BORDER * LEVELS + k),
        tl.load(p_table + _INNER * LEVELS + k),
        tl.load(p_table + _INNER_SUM * LEVELS + k),
        tl.load(p_table + _OUTER * LEVELS + k),
        tl.load(p_table + _OUTER_SUM * LEVELS + k),
        tl.load(p_table + _RING * LEVELS + k),
        spread,
        tl.load(g + CLICK_ROW),
        tl.load(g + CLICK_COLUMN),
        tl.load(g + LEAST),
        tl.load(g + MOST),
    )
    return tl.where((k < kept) & (area > before), score, float("-inf")), area


@triton.jit
def vote(p_shares, p_numbers, p_area, score, area, k, kept):
    """Turn scores into the share of the vote that a pixel of each join level has, into scratch."""
    best = tl.max(score, 0)
    weight = tl.exp(score - best)
    behind = tl.cumsum(weight, 0, reverse=True)
    total = tl.sum(tl.where(k == 0, behind, 0.0), 0)
    share = (behind / total).to(tl.float32)
    chosen = tl.max(tl.where((share >= 0.5) & (k < kept), k, 0), 0)
    mask_area = tl.sum(tl.where(k == chosen, area, 0), 0)
    overlap = tl.minimum(area, mask_area).to(tl.float64) / tl.maximum(area, mask_area).to(tl.float64)
    tl.store(p_shares + k, tl.where(k < kept, share, 0.0))
    tl.store(p_numbers, best)
    tl.store(p_numbers + 1, tl.sum(weight / total * overlap, 0))
    tl.store(p_area, mask_area)
    tl.debug_barrier()


@triton.jit
def components_kernel(
    p_data, p_scales, p_geometry, p_weights, p_join, p_table, p_shares, p_tpm, p_area, p_numbers,
    targets, items, inversions, plane, map_pitch, near, levels, max_area,
    PIXELS: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Label the targets in each polarity, one (polarity, target) after another in a program."""
    program = tl.program_id(0)
    p_join += program.to(tl.int64) * plane * PLANES
    p_table += program.to(tl.int64) * _TABLE * LEVELS
    p_shares += program * LEVELS
    k = tl.arange(0, LEVELS)
    for item in range(program, items, tl.num_programs(0)):
        target = item % targets
        g = p_geometry + target * GEOMETRY
        v = gray_levels(p_data, p_scales, g, (inversions >> (item // targets)) & 1, PIXELS)
        pixel, _, _, inside, _ = window_pixels(g, PIXELS)
        grain = tl.load(g + GRAIN).to(tl.int32)
        low, spread = background(v, g, grain)
        brightest, low = brightest_pixel(v, g, near, low)
        high = tl.max(tl.where(pixel == brightest, v, 0), 0)
        span = high - low
        kept = 0
        level = tl.zeros([PIXELS], tl.int32)
        if span > 0:
            nothing = (tl.zeros([PIXELS], tl.int32) + levels).to(tl.uint8)
            for start in range(0, plane * PLANES, PIXELS):
                at = start + tl.arange(0, PIXELS)
                tl.store(p_join + at, nothing, at < plane * PLANES)
            tl.debug_barrier()
            # How many of the levels' limits high - span k / levels are brighter than the pixel.
            own = tl.minimum((levels * tl.maximum(high - v, 0) + span - 1) // span, levels)
            level = join_levels(p_join, g, own, brightest, levels)
            kept = candidates(p_table, g, k, level, levels, max_area, LEVELS)
        p_map = p_tpm + (item // targets) * map_pitch + tl.load(g + PIXEL_OFFSET)
        if kept > 0:
            level = tl.where(level < kept, level, levels)
            _, _, _, inside, place = window_pixels(g, PIXELS)
            tl.store(p_join + place, level.to(tl.uint8), inside)
            tl.debug_barrier()
            outlines(p_table, p_join, g, k, v, level, kept, LEVELS)
            rings(p_table, p_join, g, plane, v, level, kept, low, grain, LEVELS)
            score, area = scores(p_table, p_weights, g, k, kept, spread, LEVELS)
            vote(p_shares, p_numbers + item * 2, p_area + item, score, area, k, kept)
            pixel, _, _, inside, _ = window_pixels(g, PIXELS)
            tl.store(p_map + pixel, tl.load(p_shares + level, inside, 0.0), inside)
        else:
            pixel, y, x, inside, _ = window_pixels(g, PIXELS)
            dy = tl.abs(y - tl.load(g + CLICK_ROW).to(tl.int32))
            dx = tl.abs(x - tl.load(g + CLICK_COLUMN).to(tl.int32))
            around = inside & (dy <= 1) & (dx <= 1)
            tl.store(p_map + pixel, around.to(tl.float32), inside)
            tl.store(p_area + item, tl.sum(around.to(tl.int32), 0))
            tl.store(p_numbers + item * 2, float("-inf"))
            tl.store(p_numbers + item * 2 + 1, 0.0)
        # The next item's scratch goes where other threads may still be reading.
        tl.debug_barrier()


def _geometry(images: PackedImages, windows: Windows, areas: torch.Tensor) -> torch.Tensor:
    """Return the geometry table [targets, 16], int64, on the CPU."""
    offset, image_height, image_width, channels, pitch, plane = images.table[windows.image].unbind(1)
    first = offset + windows.top * pitch + windows.left
    columns = first, pitch, plane, windows.image, windows.height, windows.width
    clicks = windows.click_row, windows.click_column, windows.top, windows.left
    grain = torch.where((channels == 1) & (images.data.dtype == torch.uint8), STEPS, 1)
    sizes = image_height, image_width, windows.offsets[:-1]
    return torch.stack([*columns, *clicks, *sizes, *areas.unbind(1), grain], 1)


def block_shape(pixels: int, levels: int) -> tuple[int, int, int]:
    """Return (PIXELS, LEVELS, warps) for windows of up to `pixels` pixels: eight pixels to a thread."""
    block = max(32, triton.next_power_of_2(pixels))
    return block, triton.next_power_of_2(levels + 1), max(1, block // (32 * _PIXELS_PER_THREAD))


def run(
    images: "PackedImages",
    windows: Windows,
    areas: torch.Tensor,
    config: ComponentConfig,
    inversions: list[bool],
    tpm: torch.Tensor,
    area: torch.Tensor,
    numbers: torch.Tensor,
) -> None:
    """Fill tpm [polarities, pixels], area [polarities, T], numbers [polarities, T, 2].

    The numbers are score and confidence. `areas` [T, 2] are the limits of the targets' categories in pixels,
    `inversions` says of each polarity if dark targets are sought.
    """
    device = images.data.device
    weights = (*config.score_weights(), config.category_weight)
    pixels, levels, warps = block_shape(int(windows.sizes.max()), config.levels)
    plane = int(((windows.height + 2 * PAD.value) * (windows.width + 2 * PAD.value)).max())
    items = len(windows) * len(inversions)
    programs = min(items, processors(device) * _PROGRAMS_PER_PROCESSOR)
    geometry = _geometry(images, windows, areas).to(device)
    components_kernel[(programs,)](
        images.data, images.scales.to(device), geometry,
        torch.tensor(weights, dtype=torch.float64, device=device),
        torch.empty(programs * plane * PLANES.value, dtype=torch.uint8, device=device),
        torch.empty(programs * levels * _TABLE.value, dtype=torch.int32, device=device),
        torch.empty(programs * levels, dtype=torch.float32, device=device), tpm, area, numbers,
        len(windows), items, sum(inverted << row for row, inverted in enumerate(inversions)), plane,
        tpm.shape[1], config.near, config.levels, config.max_area,
        PIXELS=pixels, LEVELS=levels, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
