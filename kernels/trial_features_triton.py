"""Features of noisy trials in Triton: windows in tiles, their palettes, and what a trial makes of them.

A window's pixels are in *tiles* of two by two, numbered in raster order; 32 tiles are a *block*. Tensors of
some blocks are [BLOCKS, 2, 2, 32]: block, row and column in the tile, tile, so that each thread of a warp has
whole tiles. In memory a window is its blocks behind one another, each of some *planes* of numbers.

Where the noise replaces values by an end of the range, a pixel has one of eight colors, by the channels that
are replaced: its *palette*, which `prepare_kernel` computes once. A trial picks from it unless its range of
values is another one, as in trials_cpu.
"""

import triton
import triton.language as tl

from mclc_gpu.kernels.color_triton import lab_of_linear, linear_light
from mclc_gpu.kernels.noise_triton import draw

BLOCK = tl.constexpr(128)  # pixels
# Planes of a prepared window: three channels of values, the labels of the first assignment, and with a
# palette three of colors for each subset of replaced channels.
LABELS, VALUES, PALETTE = tl.constexpr(3), tl.constexpr(4), tl.constexpr(4 + 3 * 8)
# What is known of a window beside its pixels: the range of what noise may give, that of the values behind the
# palette, and its mean color without noise.
LOW, HIGH, DARKEST, BRIGHTEST, MEAN, FACTS = (tl.constexpr(column) for column in (0, 1, 2, 3, 4, 8))
# The end of the range that replaces values.
NO_END, LOW_END, HIGH_END = (tl.constexpr(end) for end in range(3))
# Columns of the geometry table of the targets, int64.
(
    DATA, PITCH, PLANE, HEIGHT, WIDTH, CLICK, TARGET, KEY, PIXEL_OFFSET, FIRST_CENTER, CENTERS, REACH_Y,
    REACH_X, INTERVAL, MIN_SIZE, MAX_SIZE, FIRST_MARK, MARKS, FIRST_BLOCK, UNIT, GEOMETRY,
) = (tl.constexpr(column) for column in range(21))  # fmt: skip


@triton.jit
def number_of(g, column):
    """Load a column of a target's geometry that fits 32 bits."""
    return tl.load(g + column).to(tl.int32)


@triton.jit
def numbers(g, NUMBER: tl.constexpr):
    """Return 0 .. NUMBER - 1 so that the compiler cannot know that they are consecutive.

    It would give neighboring elements of memory to one thread, in wider loads, and pay for that with
    exchanges between threads. The processor sees the neighbors anyway.
    """
    return tl.arange(0, NUMBER) ^ (number_of(g, WIDTH) >> 16)


@triton.jit
def tiles_of(g):
    """Return the number of a window's tiles down and across."""
    return (number_of(g, HEIGHT) + 1) // 2, (number_of(g, WIDTH) + 1) // 2


@triton.jit
def blocks_of(down, across):
    """Return the number of a window's blocks, which is even."""
    return tl.cdiv(down * across, 64) * 2


@triton.jit
def tile_places(first, down, across, BLOCKS: tl.constexpr):
    """Return row and column of each of the tiles of some blocks, int32 [BLOCKS, 1, 1, 32].

    Tiles behind the last one are in row `down`.
    """
    tile = (first + tl.arange(0, BLOCKS)[:, None]) * 32 + tl.arange(0, 32)[None, :]
    # Exact: the quotient is at least 1 / 64 away from an integer.
    inverse = tl.div_rn(1.0, across.to(tl.float32))
    row = tl.floor((tile.to(tl.float32) + 0.5) * inverse).to(tl.int32)
    column = tile - row * across
    return tl.minimum(row, down)[:, None, None, :], column[:, None, None, :]


@triton.jit
def pixels(g, first, down, across, BLOCKS: tl.constexpr):
    """Return the pixels of some blocks: rows [.., 2, 1, 32], columns [.., 1, 2, 32], which are inside."""
    row, column = tile_places(first, down, across, BLOCKS)
    of_two = numbers(g, 2)
    y = 2 * row + of_two[None, :, None, None]
    x = 2 * column + of_two[None, None, :, None]
    return y, x, (y < number_of(g, HEIGHT)) & (x < number_of(g, WIDTH))


@triton.jit
def places(PLANES: tl.constexpr, BLOCKS: tl.constexpr):
    """Return where the first plane of some blocks holds their pixels, int32 [BLOCKS, 2, 2, 32]."""
    above = tl.arange(0, BLOCKS)[:, None, None, None] * (PLANES * BLOCK // 64)
    above += tl.arange(0, 2)[None, :, None, None]
    return (above * 32 + tl.arange(0, 32)[None, None, None, :]) * 2 + tl.arange(0, 2)[None, None, :, None]


@triton.jit
def smallest(values):
    """Return the smallest value of some blocks."""
    return tl.min(tl.min(tl.min(tl.min(values, 0), 0), 0), 0)


@triton.jit
def greatest(values):
    """Return the greatest value of some blocks."""
    return tl.max(tl.max(tl.max(tl.max(values, 0), 0), 0), 0)


@triton.jit
def total(values):
    """Return the sum over some blocks."""
    return tl.sum(tl.sum(tl.sum(tl.sum(values, 0), 0), 0), 0)


@triton.jit
def window_values(p_data, g, y, x, inside):
    """Load three channels of the pixels of some blocks as float32; those of a gray image are its only one."""
    plane = tl.load(g + PLANE)
    p_first = p_data + tl.load(g + DATA) + y.to(tl.int64) * tl.load(g + PITCH) + x
    red = tl.load(p_first, inside, 0).to(tl.float32)
    green = tl.load(p_first + plane, inside, 0).to(tl.float32)
    blue = tl.load(p_first + 2 * plane, inside, 0).to(tl.float32)
    return red, green, blue


@triton.jit
def widen(least, most, r, g, b, inside):
    """Widen a range by the values of the pixels of some blocks."""
    below = smallest(tl.where(inside, tl.minimum(tl.minimum(r, g), b), float("inf")))
    above = greatest(tl.where(inside, tl.maximum(tl.maximum(r, g), b), float("-inf")))
    return tl.minimum(least, below), tl.maximum(most, above)


@triton.jit
def light(value, darkest, brightest):
    """Return the linear light of a value in a range of values."""
    span = tl.where(brightest > darkest, brightest - darkest, 1.0)
    return linear_light(tl.div_rn(value - darkest, value * 0.0 + span))


@triton.jit
def store_planes(p_planes, place, first, second, third):
    """Store three planes of some blocks."""
    tl.store(p_planes + place, first)
    tl.store(p_planes + BLOCK + place, second)
    tl.store(p_planes + 2 * BLOCK + place, third)


@triton.jit
def load_planes(p_planes, place):
    """Load three planes of some blocks."""
    return tl.load(p_planes + place), tl.load(p_planes + BLOCK + place), tl.load(p_planes + 2 * BLOCK + place)


@triton.jit
def colors(red, green, blue, scale):
    """Return CIELAB of linear light, times `scale`."""
    lightness, green_red, blue_yellow = lab_of_linear(red, green, blue)
    return lightness * scale, green_red * scale, blue_yellow * scale


@triton.jit
def nearest_start(p_grid, g, y, x, inside, WINDOWED: tl.constexpr):
    """Return the labels of the first assignment, which is spatial: centers start without color."""
    p_grid += tl.load(g + FIRST_CENTER) * 2
    y = y.to(tl.float32)
    x = x.to(tl.float32)
    best = tl.full(inside.shape, float("inf"), tl.float32)
    label = tl.where(inside, 0, -1)
    for k in range(number_of(g, CENTERS)):
        dy = tl.load(p_grid + 2 * k) - y
        dx = tl.load(p_grid + 2 * k + 1) - x
        nearer = inside & (dy * dy + dx * dx < best)
        if WINDOWED:
            reach_y = number_of(g, REACH_Y)
            reach_x = number_of(g, REACH_X)
            nearer &= (dy >= -reach_y) & (dy < reach_y + 1) & (dx >= -reach_x) & (dx < reach_x + 1)
        best = tl.where(nearer, dy * dy + dx * dx, best)
        label = tl.where(nearer, k, label)
    return label


@triton.jit(do_not_specialize=["most_blocks"])
def prepare_kernel(
    p_data, p_geometry, p_grid, p_prepared, p_facts, most_blocks, scale,
    END: tl.constexpr, OWN_RANGE: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    target = tl.program_id(0) // most_blocks
    i_block = tl.program_id(0) % most_blocks
    g = p_geometry + target * GEOMETRY
    down, across = tiles_of(g)
    blocks = blocks_of(down, across)
    if i_block < blocks:
        least = float("inf")
        most = float("-inf")
        for i in range(blocks):
            y, x, inside = pixels(g, i, down, across, 1)
            red, green, blue = window_values(p_data, g, y, x, inside)
            least, most = widen(least, most, red, green, blue, inside)
        low = least if OWN_RANGE else 0.0
        high = most if OWN_RANGE else 255.0
        darkest = low if END == LOW_END else least
        brightest = high if END == HIGH_END else most
        planes: tl.constexpr = VALUES if END == NO_END else PALETTE
        p_block = p_prepared + (tl.load(g + FIRST_BLOCK) + i_block) * (planes * BLOCK)
        place = places(1, 1)
        y, x, inside = pixels(g, i_block, down, across, 1)
        red, green, blue = window_values(p_data, g, y, x, inside)
        store_planes(p_block, place, red, green, blue)
        label = nearest_start(p_grid, g, y, x, inside, WINDOWED)
        tl.store(p_block + LABELS * BLOCK + place, label.to(tl.float32))
        if END != NO_END:
            end = low if END == LOW_END else high
            end = light(red * 0.0 + end, darkest, brightest)
            red = light(red, darkest, brightest)
            green = light(green, darkest, brightest)
            blue = light(blue, darkest, brightest)
            for subset in range(8):
                first, second, third = colors(
                    tl.where(subset & 1 != 0, end, red),
                    tl.where(subset & 2 != 0, end, green),
                    tl.where(subset & 4 != 0, end, blue),
                    scale,
                )
                store_planes(p_block + (VALUES + 3 * subset) * BLOCK, place, first, second, third)
        if i_block == 0:
            sum0 = 0.0
            sum1 = 0.0
            sum2 = 0.0
            for i in range(blocks):
                y, x, inside = pixels(g, i, down, across, 1)
                red, green, blue = window_values(p_data, g, y, x, inside)
                red = light(red, darkest, brightest)
                green = light(green, darkest, brightest)
                blue = light(blue, darkest, brightest)
                first, second, third = colors(red, green, blue, scale)
                sum0 += total(tl.where(inside, first, 0.0))
                sum1 += total(tl.where(inside, second, 0.0))
                sum2 += total(tl.where(inside, third, 0.0))
            number = (number_of(g, HEIGHT) * number_of(g, WIDTH)).to(tl.float32)
            p_fact = p_facts + target * FACTS
            tl.store(p_fact + LOW, low)
            tl.store(p_fact + HIGH, high)
            tl.store(p_fact + DARKEST, darkest)
            tl.store(p_fact + BRIGHTEST, brightest)
            tl.store(p_fact + MEAN, tl.div_rn(sum0, number))
            tl.store(p_fact + MEAN + 1, tl.div_rn(sum1, number))
            tl.store(p_fact + MEAN + 2, tl.div_rn(sum2, number))


@triton.jit
def trial_features(
    p_prepared, p_facts, p_features, p_subsets, g, blocks, down, across, trial, intensity, bound, scale,
    DISTURB: tl.constexpr, SHARED: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """Write the features of one noisy trial of a window (eq. 1, 7).

    They are CIELAB of the window, rescaled to its range, divided by the compactness, less the window's mean
    color; three planes a round at `p_features`. `p_subsets` is scratch, an int32 plane a round.
    """
    planes: tl.constexpr = VALUES if END == NO_END else PALETTE
    place = places(1, 1)
    low = tl.load(p_facts + LOW)
    high = tl.load(p_facts + HIGH)
    least = float("inf")
    most = float("-inf")
    for i in range(blocks):
        y, x, inside = pixels(g, i, down, across, 1)
        pixel = y * number_of(g, WIDTH) + x
        w0, w1, w2 = draw(tl.load(g + KEY), pixel, trial, number_of(g, TARGET))
        if SHARED:
            w1 = w0
            w2 = w0
        red, green, blue = load_planes(p_prepared + i * (planes * BLOCK), place)
        if END == NO_END:
            red = DISTURB(red, w0, intensity, bound, low, high)
            green = DISTURB(green, w1, intensity, bound, low, high)
            blue = DISTURB(blue, w2, intensity, bound, low, high)
            store_planes(p_features + i * (3 * BLOCK), place, red, green, blue)
        else:
            end = low if END == LOW_END else high
            first = (w0 >> 8).to(tl.int32) < bound
            second = (w1 >> 8).to(tl.int32) < bound
            third = (w2 >> 8).to(tl.int32) < bound
            subset = tl.where(first, 1, 0) + tl.where(second, 2, 0) + tl.where(third, 4, 0)
            tl.store(p_subsets + i * BLOCK + place, subset)
            red = tl.where(first, end, red)
            green = tl.where(second, end, green)
            blue = tl.where(third, end, blue)
        least, most = widen(least, most, red, green, blue, inside)
    mean0 = tl.load(p_facts + MEAN)
    mean1 = tl.load(p_facts + MEAN + 1)
    mean2 = tl.load(p_facts + MEAN + 2)
    picks = END != NO_END
    if END != NO_END:
        picks = (least == tl.load(p_facts + DARKEST)) & (most == tl.load(p_facts + BRIGHTEST))
    for i in range(blocks):
        p_block = p_features + i * (3 * BLOCK)
        p_window = p_prepared + i * (planes * BLOCK)
        if picks:
            subset = tl.load(p_subsets + i * BLOCK + place)
            first, second, third = load_planes(p_window + (VALUES + 3 * subset) * BLOCK, place)
        else:
            if END == NO_END:
                red, green, blue = load_planes(p_block, place)
            else:
                end = low if END == LOW_END else high
                subset = tl.load(p_subsets + i * BLOCK + place)
                red, green, blue = load_planes(p_window, place)
                red = tl.where(subset & 1 != 0, end, red)
                green = tl.where(subset & 2 != 0, end, green)
                blue = tl.where(subset & 4 != 0, end, blue)
            red = light(red, least, most)
            green = light(green, least, most)
            blue = light(blue, least, most)
            first, second, third = colors(red, green, blue, scale)
        store_planes(p_block, place, first - mean0, second - mean1, third - mean2)
