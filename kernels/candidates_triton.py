"""Candidates of the vote of components in Triton: grown, and measured against what lies around them.

A row of a window fits the bits of a 64-bit number, and the candidates grow in such rows, all at once. What
follows looks at the region alone: the box around the largest candidate, with its ring.
"""

import triton
import triton.language as tl

from mclc_gpu.kernels.config import MAX_LEVELS, MAX_WINDOW, STEPS, WHITE

STEP = tl.constexpr(STEPS)
BRIGHTEST = tl.constexpr(WHITE)
SIDE = tl.constexpr(MAX_WINDOW)
PIXELS = tl.constexpr(MAX_WINDOW**2)
PAD = tl.constexpr(6)  # pixels of nothing around the region: the ring's outer reach
NEVER = tl.constexpr(255)  # the join level of pixels outside all candidates
# Columns of the geometry table, in the order of `_geometry`.
(
    HEIGHT, WIDTH, RECIPROCAL, DATA, PITCH, PLANE, BLACK, SCALE, GRAIN, CLICK_ROW, CLICK_COLUMN, TOP, LEFT,
    IMAGE_HEIGHT, IMAGE_WIDTH, PIXEL_OFFSET, TARGET, FIRST_OTHER, LAST_OTHER, LEAST, MOST, GEOMETRY,
) = (tl.constexpr(column) for column in range(22))  # fmt: skip
# Numbers that describe the region.
R_TOP, R_LEFT, R_HEIGHT, R_WIDTH, R_RECIPROCAL = (tl.constexpr(number) for number in range(5))
REGION = tl.constexpr(8)
# Rows of the table of sums, each of LEVELS int64: several sums in one number, so that one addition does.
# From the lowest bits, those of whole candidates are the sum of the pixels' rows, their number and the sum of
# their columns; those of the inner and of the outer side of outlines and of the pairs of neighbors across
# them are their number and the sum of their gray levels, or of the falls.
WHOLE, INNER, OUTER, PAIRS, SUMS = (tl.constexpr(row) for row in range(5))
LOW_BITS = tl.constexpr((MAX_WINDOW**2 * (MAX_WINDOW - 1)).bit_length())
NUMBER_BITS = tl.constexpr((2 * MAX_WINDOW**2 - 1).bit_length())
NUMBER_MASK = tl.constexpr((1 << NUMBER_BITS.value) - 1)
LOW_MASK = tl.constexpr((1 << LOW_BITS.value) - 1)
_QUOTIENT = tl.constexpr(18)  # (i * ceil(2^18 / d)) >> 18 is i // d for all i < 2^12 and d <= 2^6
DIVIDEND = tl.constexpr(1 << _QUOTIENT.value)
# The medians of rings are found digit by digit: bits and values of a digit.
_DIGIT = tl.constexpr(4)
_DIGITS = tl.constexpr(1 << 4)
_NO_KEY = tl.constexpr(1 << 30)
_LEVEL_BITS = tl.constexpr(MAX_LEVELS.bit_length())
# Sizes of parts of a program's scratch.
BINS = tl.constexpr(4096)  # of histograms: at most 256 levels with 16 digits
PLANES = tl.constexpr(3 * (MAX_WINDOW + 2 * PAD.value) ** 2)


@triton.jit
def lanes(p_number, N: tl.constexpr):
    """Return 0 .. N - 1, which the compiler cannot know before it has read a number in 0 .. 2^31 - 1.

    It would otherwise keep what depends on nothing else in registers during the whole kernel.
    """
    zero = (tl.load(p_number, volatile=True) >> 31).to(tl.int32)
    return tl.arange(0, N) + tl.multiple_of(zero, 16)


@triton.jit
def window_size(g):
    """Return the number of the window's pixels."""
    return (tl.load(g + HEIGHT) * tl.load(g + WIDTH)).to(tl.int32)


@triton.jit
def window_pixels(g, start, BLOCK: tl.constexpr):
    """Return index, row, column, and inside or not, of a block of the window's pixels."""
    pixel = start + lanes(g, BLOCK)
    y = (pixel * tl.load(g + RECIPROCAL).to(tl.int32)) >> _QUOTIENT
    x = pixel - y * tl.load(g + WIDTH).to(tl.int32)
    return pixel, y, x, pixel < window_size(g)


@triton.jit
def clear_rows(p_rows, g, levels, BLOCK: tl.constexpr):
    """Clear the bits of all levels."""
    rows = levels * SIDE
    for start in range(0, rows, BLOCK):
        at = start + lanes(g, BLOCK)
        tl.store(p_rows + at, tl.zeros([BLOCK], tl.int64), at < rows)
    tl.debug_barrier()


@triton.jit
def bright_rows(p_rows, p_values, g, high, low, levels, BLOCK: tl.constexpr):
    """Set the bits of the pixels that become bright at each level: one 64-bit number for each row."""
    span = high - low
    for start in range(0, window_size(g), BLOCK):
        at, y, x, _ = window_pixels(g, start, BLOCK)
        v = tl.load(p_values + at)
        # How many of the levels' limits high - span k / levels are brighter than the pixel.
        level = (levels * tl.maximum(high - v, 0) + span - 1) // span
        bit = tl.full([BLOCK], 1, tl.int64) << x.to(tl.int64)
        tl.atomic_or(p_rows + level * SIDE + y, bit, (v >= 0) & (level < levels), sem="relaxed")
    tl.debug_barrier()


@triton.jit
def leaving(g, row):
    """Return the bits of each row's pixels at the window's border inside the image."""
    height = tl.load(g + HEIGHT)
    width = tl.load(g + WIDTH)
    top = tl.load(g + TOP)
    left = tl.load(g + LEFT)
    inner = ((row == 0) & (top > 0)) | ((row == height - 1) & (top + height < tl.load(g + IMAGE_HEIGHT)))
    one = tl.full(row.shape, 1, tl.uint64)
    bits = tl.where(inner, ~(one ^ one), one ^ one)
    bits |= tl.where(left > 0, one, one ^ one)
    return bits | tl.where(
        left + width < tl.load(g + IMAGE_WIDTH), one << (width - 1).to(tl.uint64), one ^ one
    )


@triton.jit
def number_of_bits(bits):
    """Return the number of bits set in each of some 64-bit numbers."""
    bits -= (bits >> 1) & 0x5555555555555555
    bits = (bits & 0x3333333333333333) + ((bits >> 2) & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((bits * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def spread(p_line, g, held, bright):
    """Return what an 8-connected path of bright pixels joins to the held ones; rows of bits."""
    row = lanes(g, SIDE)
    growing = 1
    while growing > 0:
        tl.store(p_line + row, held.to(tl.int64, bitcast=True))
        tl.debug_barrier()
        wide = tl.load(p_line + tl.maximum(row - 1, 0)).to(tl.uint64, bitcast=True)
        wide |= tl.load(p_line + tl.minimum(row + 1, SIDE - 1)).to(tl.uint64, bitcast=True) | held
        wide = (wide | (wide << 1) | (wide >> 1)) & bright
        # Triton 3.3 and 3.4 crash where a loop does not use what it turns on.
        growing = tl.minimum(growing, tl.max((wide != held).to(tl.int32), 0))
        held = wide
        tl.debug_barrier()
    return held


@triton.jit
def bit_of(g, pixel):
    """Return rows of bits with that of one pixel set."""
    width = tl.load(g + WIDTH).to(tl.int32)
    bit = tl.full([SIDE], 1, tl.uint64) << (pixel % width).to(tl.uint64)
    return tl.where(lanes(g, SIDE) == pixel // width, bit, bit ^ bit)


@triton.jit
def part_others(p_rows, p_line, g, nearer, markers, brightest, levels):
    """Return the pixels of the other targets, rows of bits, by a watershed from the markers.

    A pixel is another's if it is joined to a marker at an earlier level than to the brightest pixel, or at
    the same and is `nearer` to another click.
    """
    row = lanes(g, SIDE)
    held = bit_of(g, brightest)
    bright = held ^ held
    rivals = bright
    closed = bright
    for k in range(levels):
        bright |= tl.load(p_rows + k * SIDE + row).to(tl.uint64, bitcast=True)
        own = spread(p_line, g, held, bright)
        theirs = spread(p_line, g, rivals | (markers & bright), bright)
        closed |= theirs & (~own | (~rivals & ~held & nearer))
        held = own
        rivals = theirs
    return closed


@triton.jit
def grow(p_rows, p_line, g, closed, brightest, levels, max_area):
    """Grow the candidate of each level, in place of the pixels that become bright at it.

    No candidate holds `closed` pixels, rows of bits. Levels end where a candidate leaves the window or is too
    large. Returns the number of candidates.
    """
    row = lanes(g, SIDE)
    ends = leaving(g, row)
    held = bit_of(g, brightest)
    bright = held ^ held
    kept = 0
    last = levels
    while kept < last:
        p_level = p_rows + kept * SIDE + row
        bright |= tl.load(p_level).to(tl.uint64, bitcast=True) & ~closed
        held = spread(p_line, g, held, bright)
        tl.store(p_level, held.to(tl.int64, bitcast=True))
        if tl.max(((held & ends) != 0).to(tl.int32), 0) > 0:
            last = kept
        else:
            kept += 1
    area = max_area + 1
    while (kept > 0) & (area > max_area):
        area = tl.sum(
            number_of_bits(tl.load(p_rows + (kept - 1) * SIDE + row).to(tl.uint64, bitcast=True)), 0
        )
        kept = tl.where(area > max_area, kept - 1, kept)
    return kept


@triton.jit
def find_region(r, p_rows, g, kept):
    """Store the box around the largest candidate, with the rings, clipped to the window."""
    row = lanes(g, SIDE)
    held = tl.load(p_rows + (kept - 1) * SIDE + row).to(tl.uint64, bitcast=True)
    below = (held & (~held + 1)) - 1  # the bits below the lowest one; all if there is none
    until = held
    for i in tl.static_range(6):
        until |= until >> (1 << i)
    top = tl.maximum(tl.min(tl.where(held != 0, row, SIDE), 0) - PAD, 0)
    left = tl.maximum(tl.min(number_of_bits(below), 0) - PAD, 0)
    end = tl.minimum(tl.max(tl.where(held != 0, row, 0), 0) + PAD + 1, tl.load(g + HEIGHT).to(tl.int32))
    right = tl.minimum(tl.max(number_of_bits(until), 0) + PAD, tl.load(g + WIDTH).to(tl.int32))
    width = right - left
    tl.store(r + R_TOP, top)
    tl.store(r + R_LEFT, left)
    tl.store(r + R_HEIGHT, end - top)
    tl.store(r + R_WIDTH, width)
    tl.store(r + R_RECIPROCAL, (width + (DIVIDEND - 1)) // width)
    tl.debug_barrier()


@triton.jit
def region_size(r):
    """Return the number of the region's pixels."""
    return tl.load(r + R_HEIGHT) * tl.load(r + R_WIDTH)


@triton.jit
def region_pixels(r, start, PART: tl.constexpr):
    """Return index, row, column, and inside or not, of a block of the region's pixels, and places in planes.

    The planes have PAD pixels of nothing around the region; what is not inside gets the first one's place.
    """
    pixel = start + lanes(r, PART)
    width = tl.load(r + R_WIDTH)
    y = (pixel * tl.load(r + R_RECIPROCAL)) >> _QUOTIENT
    x = pixel - y * width
    inside = pixel < region_size(r)
    place = tl.where(inside, y * (width + 2 * PAD) + x, 0) + PAD * (width + 2 * PAD + 1)
    return pixel, y, x, inside, place


@triton.jit
def plane_size(r):
    """Return the number of pixels of a plane of the region."""
    return (tl.load(r + R_HEIGHT) + 2 * PAD) * (tl.load(r + R_WIDTH) + 2 * PAD)


@triton.jit
def region_values(p_values, g, r, y, x, counted):
    """Load the gray levels of some of the region's pixels."""
    place = (y + tl.load(r + R_TOP)) * tl.load(g + WIDTH).to(tl.int32) + x + tl.load(r + R_LEFT)
    return tl.load(p_values + place, counted, 0)


@triton.jit
def join_levels(p_planes, p_rows, r, kept, LEVELS: tl.constexpr, PART: tl.constexpr):
    """Find the first level whose candidate holds each pixel of the region, into the first of three planes."""
    size = plane_size(r)
    for start in range(0, size * 3, PART):
        at = start + lanes(r, PART)
        tl.store(p_planes + at, tl.full([PART], NEVER, tl.uint8), at < size * 3)
    tl.debug_barrier()
    for start in range(0, region_size(r), PART):
        _, y, x, inside, place = region_pixels(r, start, PART)
        p_row = p_rows + y + tl.load(r + R_TOP)
        bit = (x + tl.load(r + R_LEFT)).to(tl.int64)
        # The number of candidates without the pixel: candidates hold all before them.
        level = tl.zeros([PART], tl.int32)
        for i in tl.static_range(_LEVEL_BITS + 1):
            if (LEVELS >> i) > 0:
                next = level + (LEVELS >> i)
                held = tl.load(p_row + (next - 1) * SIDE, inside & (next <= kept), -1)
                level = tl.where(((held >> bit) & 1) == 0, next, level)
        tl.store(p_planes + place, level.to(tl.uint8), inside & (level < kept))


@triton.jit
def candidates(p_sums, p_peaks, p_planes, p_values, g, r, LEVELS: tl.constexpr, PART: tl.constexpr):
    """Sum up what joins at each level, into the sums about whole candidates: see `whole`."""
    k = lanes(g, LEVELS)
    for i in tl.static_range(SUMS):
        tl.store(p_sums + i * LEVELS + k, tl.zeros([LEVELS], tl.int64))
    tl.store(p_peaks + k, tl.zeros([LEVELS], tl.int32))
    tl.debug_barrier()
    for start in range(0, region_size(r), PART):
        _, y, x, inside, place = region_pixels(r, start, PART)
        level = tl.load(p_planes + place, inside, NEVER).to(tl.int32)
        joins = level < NEVER
        v = region_values(p_values, g, r, y, x, joins)
        y += tl.load(r + R_TOP)
        x += tl.load(r + R_LEFT)
        number = (((x << NUMBER_BITS) + 1).to(tl.int64) << LOW_BITS) + y
        tl.atomic_add(p_sums + WHOLE * LEVELS + level, number, joins, sem="relaxed")
        tl.atomic_max(p_peaks + level, v, joins, sem="relaxed")


@triton.jit
def tally_span(p_sums, first, last, kept, v, counted):
    """Count pixels and add their gray levels up, from one level until another."""
    number = (v.to(tl.int64) << NUMBER_BITS) + 1
    tl.atomic_add(p_sums + first, number, counted, sem="relaxed")
    tl.atomic_add(p_sums + last, -number, counted & (last < kept), sem="relaxed")


@triton.jit
def outlines(p_sums, p_planes, p_values, g, r, kept, LEVELS: tl.constexpr, PART: tl.constexpr):
    """Count and sum up the pixels on both sides of each candidate's outline."""
    stride = tl.load(r + R_WIDTH) + 2 * PAD
    height = tl.load(g + HEIGHT).to(tl.int32)
    width = tl.load(g + WIDTH).to(tl.int32)
    for start in range(0, region_size(r), PART):
        _, y, x, inside, place = region_pixels(r, start, PART)
        v = region_values(p_values, g, r, y, x, inside)
        level = tl.load(p_planes + place, inside, NEVER).to(tl.int32)
        north = tl.load(p_planes + place - stride, inside, NEVER).to(tl.int32)
        south = tl.load(p_planes + place + stride, inside, NEVER).to(tl.int32)
        west = tl.load(p_planes + place - 1, inside, NEVER).to(tl.int32)
        east = tl.load(p_planes + place + 1, inside, NEVER).to(tl.int32)
        first = tl.minimum(tl.minimum(north, south), tl.minimum(west, east))
        # Beside the candidates from `first` until it joins.
        tally_span(p_sums + OUTER * LEVELS, first, level, kept, v, first < level)
        # Beyond the window lies nothing: the padding must not count as a pixel that joins late.
        y += tl.load(r + R_TOP)
        x += tl.load(r + R_LEFT)
        north = tl.where(inside & (y > 0), north, 0)
        south = tl.where(inside & (y < height - 1), south, 0)
        west = tl.where(inside & (x > 0), west, 0)
        east = tl.where(inside & (x < width - 1), east, 0)
        last = tl.maximum(tl.maximum(north, south), tl.maximum(west, east))
        # At the edge of the candidates until its last neighbor joins.
        tally_span(p_sums + INNER * LEVELS, level, last, kept, v, last > level)


@triton.jit
def falls(p_sums, p_planes, p_values, g, r, kept, most, LEVELS: tl.constexpr, PART: tl.constexpr):
    """Count the neighbors across each candidate's outline, and add the falls between them up.

    A fall counts between 0 and `most`.
    """
    stride = tl.load(r + R_WIDTH) + 2 * PAD
    width = tl.load(g + WIDTH).to(tl.int32)
    for start in range(0, region_size(r), PART):
        _, y, x, inside, place = region_pixels(r, start, PART)
        v = region_values(p_values, g, r, y, x, inside)
        level = tl.load(p_planes + place, inside, NEVER).to(tl.int32)
        y += tl.load(r + R_TOP)
        x += tl.load(r + R_LEFT)
        for i in range(4):
            step = (i & 1) * 2 - 1
            down = tl.where(i < 2, step, 0)
            right = step - down
            beside = inside & (y + down >= 0) & (y + down < tl.load(g + HEIGHT).to(tl.int32))
            beside &= (x + right >= 0) & (x + right < width)
            until = tl.load(p_planes + place + down * stride + right, beside, 0).to(tl.int32)
            other = tl.load(p_values + (y + down) * width + x + right, until > level, 0)
            fall = tl.minimum(tl.maximum(v - other, 0), most)
            tally_span(p_sums + PAIRS * LEVELS, level, until, kept, fall, until > level)


@triton.jit
def least_around(p_place, least, step, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Return the least of `least` and the join levels FIRST to LAST steps away on both sides."""
    for i in tl.static_range(FIRST, LAST + 1):
        least = tl.minimum(least, tl.load(p_place - i * step))
        least = tl.minimum(least, tl.load(p_place + i * step))
    return least


@triton.jit
def ring_levels(p_spans, p_planes, r, PART: tl.constexpr):
    """Find the levels whose rings hold each pixel of the region, into scratch: from, and 256 times until.

    They are the least join levels of the 13 x 13 and of the 7 x 7 pixels around it.
    """
    stride = tl.load(r + R_WIDTH) + 2 * PAD
    p_near = p_planes + plane_size(r)
    p_far = p_near + plane_size(r)
    for start in range(0, region_size(r), PART):
        _, _, _, inside, place = region_pixels(r, start, PART)
        near = least_around(p_planes + place, tl.load(p_planes + place), 1, 1, 3)
        tl.store(p_near + place, near, inside)
        tl.store(p_far + place, least_around(p_planes + place, near, 1, 4, 6), inside)
    tl.debug_barrier()
    for start in range(0, region_size(r), PART):
        pixel, _, _, inside, place = region_pixels(r, start, PART)
        near = least_around(p_near + place, tl.load(p_near + place), stride, 1, 3).to(tl.int32)
        far = least_around(p_far + place, tl.load(p_far + place), stride, 1, 6).to(tl.int32)
        tl.store(p_spans + pixel, tl.where(inside, far | (near << 8), 0))


@triton.jit
def first_from(p_keys, wanted, LEVELS: tl.constexpr):
    """Return the number of LEVELS ascending keys below what is wanted; as many that are not follow them."""
    number = tl.zeros_like(wanted)
    for i in tl.static_range(_LEVEL_BITS + 1):
        if (LEVELS >> i) > 0:
            key = tl.load(p_keys + number + ((LEVELS >> i) - 1))
            number += tl.where(key < wanted, LEVELS >> i, 0)
    return number


@triton.jit
def count_digits(p_bins, p_keys, p_spans, p_values, g, r, place, LEVELS: tl.constexpr, PART: tl.constexpr):
    """Count the gray levels in each candidate's ring that begin like its median, by their next digit.

    `place` is the lowest bit of the digit in twice the gray level. Returns the numbers up to each digit,
    int32 [LEVELS, digits], in the order of the keys.
    """
    bin = lanes(g, LEVELS)[:, None] * _DIGITS + lanes(g, _DIGITS)[None, :]
    tl.store(p_bins + bin, tl.zeros([LEVELS, _DIGITS], tl.int32))
    tl.debug_barrier()
    one = tl.full([PART], 1, tl.int32)
    for start in range(0, region_size(r), PART):
        pixel, y, x, inside, _ = region_pixels(r, start, PART)
        span = tl.load(p_spans + pixel)
        v = region_values(p_values, g, r, y, x, inside) * 2
        # The candidates whose medians begin like the gray level follow one another, and so do those of them
        # whose rings hold the pixel.
        begin = (v >> (place + _DIGIT)) << 8
        first = first_from(p_keys, begin + (span & 255), LEVELS)
        last = first_from(p_keys, begin + (span >> 8), LEVELS)
        p_digit = p_bins + ((v >> place) & (_DIGITS - 1))
        tl.atomic_add(p_digit + first * _DIGITS, one, first < last, sem="relaxed")
        tl.atomic_add(p_digit + last * _DIGITS, -one, (first < last) & (last < LEVELS), sem="relaxed")
    tl.debug_barrier()
    return tl.cumsum(tl.cumsum(tl.load(p_bins + bin), 0), 1)


@triton.jit
def ring_medians(
    p_medians, p_bins, p_keys, p_spans, p_values, g, r, fresh, low, LEVELS: tl.constexpr, PART: tl.constexpr
):
    """Find the median gray level of each fresh candidate's ring; it is `low` where that is empty.

    All medians are found together, digit by digit from the highest. A key holds a candidate's level and,
    above it, the digits of its median so far.
    """
    k = lanes(g, LEVELS)
    tl.store(p_medians + k, tl.zeros([LEVELS], tl.int32) + low)
    lowest = tl.where(tl.load(g + GRAIN) == STEP, 12, 0)
    key = tl.where(fresh, k, _NO_KEY)
    p_ranks = p_keys + 2 * LEVELS
    tl.store(p_keys + LEVELS + k, tl.full([LEVELS], _NO_KEY, tl.int32))
    tl.store(p_ranks + k, tl.full([LEVELS], -1, tl.int32))
    place = 16
    while place >= lowest:
        key = tl.sort(key)
        tl.store(p_keys + k, key)
        until = count_digits(p_bins, p_keys, p_spans, p_values, g, r, place, LEVELS, PART)
        key = tl.load(p_keys + k)
        level = key & 255
        size = tl.max(until, 1)
        sought = (key < _NO_KEY) & (size > 0)
        rank = tl.load(p_ranks + level, sought, 0)
        rank = tl.where(rank < 0, (size - 1) // 2, rank)
        # The number until the last digit below the rank and, in the low bits, the digit after it.
        after = until * (2 * _DIGITS) + lanes(g, _DIGITS)[None, :] + 1
        below = tl.max(tl.where(until <= rank[:, None], after, 0), 1)
        median = (key >> 8) * _DIGITS + below % (2 * _DIGITS)
        tl.store(p_ranks + level, rank - below // (2 * _DIGITS), sought)
        tl.store(p_medians + level, (median << place) >> 1, sought)
        key = tl.where(sought, (median << 8) | level, _NO_KEY)
        place -= _DIGIT
    tl.debug_barrier()
