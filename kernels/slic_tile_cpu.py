"""Pixels of a tile against cluster centers, and the centers that can be nearest to them (eq. 2, 3).

The compiler vectorizes loops over a whole tile. It keeps the pixels' distances and labels in registers while
the centers pass by, because they lie in arrays on the stack, into which nothing else can point. Additions and
multiplications are IEEE and unfused, in scikit-image's order: the width of the vectors does not change a bit.
`near_centers` and `add_rows` are the plain twins of the loops in `slic_simd_cpu`.
"""

import numpy as np
from numba import float32, int32

from mclc_gpu.kernels.jit_cpu import bits_float, compiled, float_bits, stack_array

F = np.float32
U = np.uintp  # Signed indices would be checked for wrap-around.
TILE_Y, TILE_X = 8, 16
OWNERS = 16  # more centers of a tile are not kept track of
# Rows of a table of centers, one column per center: row, column, first and last row and column in reach,
# index, colors.
PLACE, FIRST_Y, LAST_Y, FIRST_X, LAST_X, INDEX, COLORS = 0, 2, 3, 4, 5, 6, 7
_PIXELS = U(TILE_Y * TILE_X)
_ROWS, _COLUMNS = (values.astype(F).ravel() for values in np.mgrid[:TILE_Y, :TILE_X])
_GROUP = 32  # centers whose distances to a box are computed together; tables are padded to multiples
_INFINITY = F(np.inf)
_distances, _sums, _staged = (stack_array(float32, int(_PIXELS)) for _ in range(3))
_three_channels, _places = stack_array(float32, 3 * int(_PIXELS)), stack_array(float32, 4 * int(_PIXELS))
_nearest, _before = stack_array(int32, int(_PIXELS)), stack_array(int32, int(_PIXELS))
_bounds, _squares = stack_array(float32, _GROUP), stack_array(float32, _GROUP)


@compiled()
def new_table(centers, channels):
    """Return an empty table of centers, float32 [COLORS + channels, centers or more]."""
    return np.zeros((COLORS + channels, (centers + _GROUP - 1) // _GROUP * _GROUP), F)


@compiled(inline="always")
def _begin(labels, top, left, places, distances, nearest, before):
    """Fill in what a tile's pixels have before they meet a center."""
    for y in range(U(TILE_Y)):
        for x in range(U(TILE_X)):
            before[y * U(TILE_X) + x] = labels[top + y, left + x]
    for i in range(_PIXELS):
        places[i] = _ROWS[i] + F(top)
        places[_PIXELS + i] = _COLUMNS[i] + F(left)
        distances[i] = _INFINITY
        nearest[i] = before[i]


@compiled(inline="always")
def _in_reach(table, first, column, places, at):
    """Return where a center finds the rows or columns: at `at`, or in a copy with the unreached infinite."""
    least, greatest = table[U(first), column], table[U(first + 1), column]
    if (least <= places[at]) & (greatest >= places[at + _PIXELS - U(1)]):
        return at
    copy = at + U(2) * _PIXELS
    for i in range(_PIXELS):
        place = places[at + i]
        places[copy + i] = place if (place >= least) & (place <= greatest) else _INFINITY
    return copy


@compiled(inline="always")
def _finish(labels, top, left, distances, nearest, before):
    """Write the labels. Returns the largest distance, whether a label changed, the extreme labels."""
    farthest, differs, lowest, highest = np.int32(0), np.int32(0), np.int32(2**31 - 1), np.int32(0)
    for i in range(_PIXELS):
        after = nearest[i]
        differs |= after ^ before[i]
        # Distances are not negative: their bits are in their order, and have a largest one in vectors too.
        farthest = max(farthest, float_bits(distances[i]))
        lowest, highest = min(lowest, after), max(highest, after)
    for y in range(U(TILE_Y)):
        for x in range(U(TILE_X)):
            labels[top + y, left + x] = nearest[y * U(TILE_X) + x]
    return bits_float(np.int32(farthest)), differs != 0, lowest, highest


@compiled(forceinline=True)
def assign_tile(features, labels, top, left, table, kept, found, weight, owners, ty, tx):
    """Label the pixels of a tile with the nearest of some centers (eq. 2, 3); the first of several.

    Parameters
    ----------
    features : float32 [3, H, W]
    labels : int32 [H, W]
        Read and written: a pixel that no window reaches keeps its label.
    top, left : uintp
        First row and column of the tile.
    table : float32 [COLORS + 3, ...]
    kept : int32 [found or more]
        Columns of the table, in ascending order of the centers.
    found : int
    weight : float32
        Weight of a squared pixel against a squared color.
    owners : int32 [OWNERS + 1]
        Receives the centers that pixels have, and perhaps others.

    Returns
    -------
    owned : int
        Number of owners; OWNERS: there may be more.
    farthest : float32
        Largest distance of a pixel to its nearest center; infinite if it has none.
    changed : bool
        True if a label changed.
    lowest, highest : int32
        Extreme labels.
    """
    distances, nearest, before, places = _distances(), _nearest(), _before(), _places()
    colors = _three_channels()
    # A tile side by side: in an image whose width is a power of two its rows share a few sets of the cache,
    # and would drive each other out for every center.
    for c in range(U(3)):
        for y in range(U(TILE_Y)):
            for x in range(U(TILE_X)):
                colors[c * _PIXELS + y * U(TILE_X) + x] = features[c, top + y, left + x]
    _begin(labels, top, left, places, distances, nearest, before)
    owned = 0
    for k in range(U(found)):
        column = U(kept[k])
        cy, cx = table[U(PLACE), column], table[U(PLACE + 1), column]
        c0, c1, c2 = table[U(COLORS), column], table[U(COLORS + 1), column], table[U(COLORS + 2), column]
        index = float_bits(table[U(INDEX), column])
        rows = _in_reach(table, FIRST_Y, column, places, U(0))
        columns = _in_reach(table, FIRST_X, column, places, _PIXELS)
        won = False
        for i in range(_PIXELS):
            dy, dx = cy - places[rows + i], cx - places[columns + i]
            d0, d1, d2 = c0 - colors[i], c1 - colors[_PIXELS + i], c2 - colors[U(2) * _PIXELS + i]
            distance = (dy * dy + dx * dx) * weight + ((d0 * d0 + d1 * d1) + d2 * d2)
            best, label = distances[i], nearest[i]
            nearer = distance < best
            won |= nearer
            distances[i] = distance if nearer else best
            nearest[i] = index if nearer else label
        owners[ty, tx, U(owned)] = index
        owned = min(owned + won, OWNERS)
    farthest, changed, lowest, highest = _finish(labels, top, left, distances, nearest, before)
    return owned, farthest, changed, lowest, highest


@compiled(forceinline=True)
def assign_tile_of_channels(features, labels, top, left, table, kept, found, weight, owners, ty, tx, scratch):
    """Do the same with features [C, H, W] of any number of channels; scratch is float32 [C, pixels]."""
    distances, nearest, before, places = _distances(), _nearest(), _before(), _places()
    sums, staged = _sums(), _staged()
    channels = U(features.shape[0])
    for c in range(channels):
        for y in range(U(TILE_Y)):
            for x in range(U(TILE_X)):
                staged[y * U(TILE_X) + x] = features[c, top + y, left + x]
        for i in range(_PIXELS):
            scratch[c, i] = staged[i]
    _begin(labels, top, left, places, distances, nearest, before)
    owned = 0
    for k in range(U(found)):
        column = U(kept[k])
        for i in range(_PIXELS):
            sums[i] = 0
        for c in range(channels):
            color = table[U(COLORS) + c, column]
            for i in range(_PIXELS):
                d = color - scratch[c, i]
                sums[i] += d * d
        cy, cx = table[U(PLACE), column], table[U(PLACE + 1), column]
        index = float_bits(table[U(INDEX), column])
        rows = _in_reach(table, FIRST_Y, column, places, U(0))
        columns = _in_reach(table, FIRST_X, column, places, _PIXELS)
        won = False
        for i in range(_PIXELS):
            dy, dx = cy - places[rows + i], cx - places[columns + i]
            distance = (dy * dy + dx * dx) * weight + sums[i]
            best, label = distances[i], nearest[i]
            nearer = distance < best
            won |= nearer
            distances[i] = distance if nearer else best
            nearest[i] = index if nearer else label
        owners[ty, tx, U(owned)] = index
        owned = min(owned + won, OWNERS)
    farthest, changed, lowest, highest = _finish(labels, top, left, distances, nearest, before)
    return owned, farthest, changed, lowest, highest


@compiled(inline="always")
def _square(center, low, high, far):
    """Squared distance of a number to the nearest or the farthest point of an interval."""
    below, above = low - center, center - high
    if far:
        d = below if below < above else above
        return d * d
    d = below if below > above else above
    d = d if d > F(0) else F(0)
    return d * d


@compiled(inline="always")
def _sides(boxes, ty, tx):
    top, bottom = boxes[ty, tx, U(0), U(0)], boxes[ty, tx, U(1), U(0)]
    return top, bottom, boxes[ty, tx, U(0), U(1)], boxes[ty, tx, U(1), U(1)]


@compiled(inline="always")
def _box_distances(table, first, boxes, ty, tx, colors, weight, far, squares, out):
    """Compute D^2 of a group of centers to the nearest or the farthest point of a box."""
    for i in range(U(_GROUP)):
        squares[i] = 0
    for c in range(U(2), U(2) + U(colors)):
        low, high = boxes[ty, tx, U(0), c], boxes[ty, tx, U(1), c]
        for i in range(U(_GROUP)):
            squares[i] += _square(table[U(COLORS - 2) + c, first + i], low, high, far)
    top, bottom, left, right = _sides(boxes, ty, tx)
    for i in range(U(_GROUP)):
        down = _square(table[U(PLACE), first + i], top, bottom, far)
        across = _square(table[U(PLACE + 1), first + i], left, right, far)
        out[i] = (down + across) * weight + squares[i]


@compiled(forceinline=True)
def near_centers(table, living, boxes, ty, tx, colors, bound, weight, slack, kept):
    """Find the centers of a table that may be nearest to a pixel of a box.

    Parameters
    ----------
    table : float32 [COLORS + C, ...]
    living : int
        Number of centers in the table.
    box : float32 [2, 2 + C]
        Least and largest row, column and colors.
    colors : int
        Number of colors to look at; 0 where all centers have the same.
    bound : float32
        Upper bound of the distances of the box's pixels to their nearest center. Infinite: one is found from
        the centers whose windows hold the whole box.
    weight : float32
        Weight of a squared pixel.
    slack : float32
        Slack of a bound that is found.
    kept : int32 [living or more]
        Receives columns of the table in ascending order.

    Returns
    -------
    int
        How many centers were found.
    """
    out, squares = _bounds(), _squares()
    if bound == _INFINITY:
        least = float_bits(_INFINITY)
        for first in range(U(0), U(living), U(_GROUP)):
            _box_distances(table, first, boxes, ty, tx, colors, weight, True, squares, out)
            top, bottom, left, right = _sides(boxes, ty, tx)
            for i in range(U(_GROUP)):
                k = first + i
                # NaN, as of infinite colors, is no bound.
                whole = (k < U(living)) & (out[i] < _INFINITY)
                whole &= (table[U(FIRST_Y), k] <= top) & (table[U(LAST_Y), k] >= bottom)
                whole &= (table[U(FIRST_X), k] <= left) & (table[U(LAST_X), k] >= right)
                upper = out[i]
                out[i] = upper if whole else _INFINITY
            for i in range(U(_GROUP)):
                least = min(least, float_bits(out[i]))
        # Rounding moves a distance by less than a millionth.
        bound = bits_float(np.int32(least)) * F(1.0001) + slack
    found = U(0)
    for first in range(U(0), U(living), U(_GROUP)):
        _box_distances(table, first, boxes, ty, tx, colors, weight, False, squares, out)
        for i in range(min(U(_GROUP), U(living) - first)):
            # Without a branch: the place after the last one found is written in any case.
            kept[found] = first + i
            found += U(not out[i] > bound)
    return found


@compiled()
def add_rows(features, c, labels, top, bottom, first, last, widest, sums, counts):
    """Add the pixels of the rows top..bottom to the sums of their clusters, in raster order.

    `sums` [last - first + 1, 5] are those of row, column and three channels from c on (where fewer are left,
    the last one again), `counts` those of ones; the last cluster takes pixels of clusters not in first..last.
    No cluster has more than `widest` columns, which only the vectors of `slic_simd_cpu` need to know.
    """
    c0, others = U(c), U(last - first)
    c1, c2 = U(min(c + 1, features.shape[0] - 1)), U(min(c + 2, features.shape[0] - 1))
    for y in range(U(top), U(bottom)):
        # A cluster's sums stay in registers until the label changes: in memory they would arrive late.
        k, start = others, U(0)
        s0, s1, s2, s3, s4 = sums[k, U(0)], sums[k, U(1)], sums[k, U(2)], sums[k, U(3)], sums[k, U(4)]
        row, column = F(y), F(0)
        for x in range(U(labels.shape[1])):
            # Below the first it wraps around to a large number.
            own = min(U(labels[y, x]) - U(first), others)
            if own != k:
                sums[k, U(0)], sums[k, U(1)], sums[k, U(2)], sums[k, U(3)], sums[k, U(4)] = s0, s1, s2, s3, s4
                counts[k] += np.int64(x - start)
                k, start = own, U(x)
                s0, s1, s2, s3, s4 = sums[k, U(0)], sums[k, U(1)], sums[k, U(2)], sums[k, U(3)], sums[k, U(4)]
            s0 += row
            s1 += column
            s2 += features[c0, y, x]
            s3 += features[c1, y, x]
            s4 += features[c2, y, x]
            column += F(1)
        sums[k, U(0)], sums[k, U(1)], sums[k, U(2)], sums[k, U(3)], sums[k, U(4)] = s0, s1, s2, s3, s4
        counts[k] += np.int64(U(labels.shape[1]) - start)
