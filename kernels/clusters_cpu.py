"""Clustering of one small window on the CPU: assignment of its pixels and update of its centers (eq. 2-4).

Additions and multiplications are IEEE and unfused, in scikit-image's order: the width of the processor's
vectors does not change a bit.
"""

from typing import NamedTuple

import numpy as np
from numba import float32, int32

from mclc_gpu.kernels.config import MAX_WINDOW
from mclc_gpu.kernels.connectivity_cpu import scratch_size
from mclc_gpu.kernels.jit_cpu import bits_float, compiled, float_bits, stack_array

F = np.float32
U = np.uintp  # Signed indices would be checked for wrap-around.
_BLOCK = U(32)  # pixels whose nearest centers fit the registers
# Clusters that fit a vector are added up a lane each.
_SUMMED, _SUMS = 16, 6
_LANES = np.arange(_SUMMED, dtype=np.int32)
# The bit above each half of a place: differences of halves leave it set if they are not negative.
_GUARDS = np.uint32(0x80008000)
_NOWHERE = np.uint32(0xFFFFFFFF)
_distances = stack_array(float32, MAX_WINDOW**2)
_nearest = stack_array(int32, MAX_WINDOW**2)
_totals = stack_array(float32, _SUMS * _SUMMED)


class Scratch(NamedTuple):
    """Working arrays of one window's clusterings; N centers, `stride` pixels in whole blocks."""

    pixels: np.ndarray  # float32 [6, stride]: row, column, three colors; bits of row and column, see `_place`
    labels: np.ndarray  # int32 [stride]
    flood: np.ndarray  # int32
    sums: np.ndarray  # float32 [6, N in whole vectors]: pixels, rows, columns, three colors
    centers: np.ndarray  # float32 [N, 5]: row, column, three colors
    alive: np.ndarray  # bool [N]
    table: np.ndarray  # float32 [N, 8], the living centers: as above; bits of first and last place, and index
    weights: np.ndarray  # int32 [h * w or N, the larger, + 1]: marks in each segment


@compiled()
def _place(y, x):
    """Row and column in the halves of one integer."""
    return np.uint32(y << 16 | x)


@compiled()
def _number(bits):
    """Any 32 bits as a float32, to lie in an array of these."""
    return bits_float(np.int32(bits))


@compiled()
def allocate(h, w, number):
    """Return scratch for a window of h x w pixels and some centers."""
    stride = (h * w + np.int64(_BLOCK) - 1) // np.int64(_BLOCK) * np.int64(_BLOCK)
    pixels = np.zeros((6, stride), F)
    pixels[5] = _number(_NOWHERE)
    for y in range(h):
        for x in range(w):
            pixels[0, y * w + x] = y
            pixels[1, y * w + x] = x
            pixels[5, y * w + x] = _number(_place(y, x) | _GUARDS)
    return Scratch(
        pixels,
        np.empty(stride, np.int32),
        np.empty(scratch_size(h, w), np.int32),
        np.empty((_SUMS, (number + _SUMMED - 1) // _SUMMED * _SUMMED), F),
        np.empty((number, 5), F),
        np.empty(number, np.bool_),
        np.empty((number, 8), F),
        np.empty(max(h * w, number) + 1, np.int32),
    )


@compiled()
def restart(s, start):
    """Begin a clustering: centers at `start` [N, 2], without color; every pixel in the first cluster."""
    s.centers[:, :2] = start
    s.centers[:, 2:] = 0
    s.alive[:] = True
    s.labels[:] = 0


@compiled(inline="always")
def _list_living(s, height, width, reach_y, reach_x):
    """Fill in the table of the living centers. Returns their number."""
    living = 0
    for k in range(s.alive.shape[0]):
        if not s.alive[k]:
            continue
        for c in range(5):
            s.table[living, c] = s.centers[k, c]
        cy, cx = s.centers[k, 0], s.centers[k, 1]
        top, left = np.int64(max(cy - reach_y, F(0))), np.int64(max(cx - reach_x, F(0)))
        bottom = np.int64(min(cy + reach_y + F(1), F(height))) - 1
        right = np.int64(min(cx + reach_x + F(1), F(width))) - 1
        s.table[living, 5] = _number(_place(top, left))
        # Both guards: its own, and the one that a pixel's place brings.
        s.table[living, 6] = _number(np.uint32(_place(bottom, right) + 2 * np.int64(_GUARDS)))
        s.table[living, 7] = _number(k)
        living += 1
    return living


@compiled()
def assign(s, height, width, reach_y, reach_x, weight):
    """Give every pixel the nearest center whose window reaches it (eq. 2, 3).

    Of centers at the same distance the first one wins; a pixel that no window reaches keeps its label.

    Parameters
    ----------
    s : Scratch
    height, width : int
    reach_y, reach_x : float32
        Rows and columns that a center's window reaches to each side; infinite: it holds all pixels.
    weight : float32
        Weight of a squared pixel against a squared color.

    Returns
    -------
    bool
        True if a label changed.
    """
    living = _list_living(s, height, width, reach_y, reach_x)
    size = U(s.labels.shape[0])
    distances, nearest = _distances(), _nearest()
    for p in range(size):
        distances[p] = np.inf
        nearest[p] = s.labels[p]
    # A block's pixels, distances and nearest centers are in registers while the centers pass by: the compiler
    # puts them there because nothing else can point into arrays on the stack.
    for start in range(U(0), size, _BLOCK):
        for k in range(U(living)):
            cy, cx = s.table[k, U(0)], s.table[k, U(1)]
            c0, c1, c2 = s.table[k, U(2)], s.table[k, U(3)], s.table[k, U(4)]
            first, last = np.uint32(float_bits(s.table[k, U(5)])), np.uint32(float_bits(s.table[k, U(6)]))
            index = float_bits(s.table[k, U(7)])
            for i in range(_BLOCK):
                p = start + i
                dy, dx = cy - s.pixels[U(0), p], cx - s.pixels[U(1), p]
                d0, d1, d2 = c0 - s.pixels[U(2), p], c1 - s.pixels[U(3), p], c2 - s.pixels[U(4), p]
                distance = (dy * dy + dx * dx) * weight + ((d0 * d0 + d1 * d1) + d2 * d2)
                # Rows and columns at once: four comparisons of floats take longer than all of the distance.
                place = np.uint32(float_bits(s.pixels[U(5), p]))
                inside = np.uint32(np.uint32(place - first) & np.uint32(last - place) & _GUARDS) == _GUARDS
                best, label = distances[p], nearest[p]
                nearer = (distance < best) & inside
                distances[p] = distance if nearer else best
                nearest[p] = index if nearer else label
    changed = False
    for p in range(size):
        changed |= nearest[p] != s.labels[p]
        s.labels[p] = nearest[p]
    return changed


@compiled()
def _sum_few(s, size):
    """Sum the pixels of each cluster in raster order, all clusters in the lanes of one vector.

    A pixel is added under a mask: an addition to one of several sums in memory would wait for the last one
    to arrive there.
    """
    pixels, labels, sums = s.pixels, s.labels, s.sums
    totals = _totals()
    for k in range(U(_SUMS * _SUMMED)):
        totals[k] = 0
    for p in range(U(size)):
        label, y, x = labels[p], pixels[U(0), p], pixels[U(1), p]
        c0, c1, c2 = pixels[U(2), p], pixels[U(3), p], pixels[U(4), p]
        for k in range(U(_SUMMED)):
            member = label == _LANES[k]
            t0, t1, t2 = totals[k], totals[U(16) + k], totals[U(32) + k]
            t3, t4, t5 = totals[U(48) + k], totals[U(64) + k], totals[U(80) + k]
            totals[k] = t0 + F(1) if member else t0
            totals[U(16) + k] = t1 + y if member else t1
            totals[U(32) + k] = t2 + x if member else t2
            totals[U(48) + k] = t3 + c0 if member else t3
            totals[U(64) + k] = t4 + c1 if member else t4
            totals[U(80) + k] = t5 + c2 if member else t5
    for i in range(U(_SUMS)):
        for k in range(U(_SUMMED)):
            sums[i, k] = totals[i * U(_SUMMED) + k]


@compiled()
def _sum_many(s, size):
    """Do the same for any number of clusters."""
    s.sums[:] = 0
    for p in range(U(size)):
        k = U(s.labels[p])
        s.sums[U(0), k] += F(1)
        for i in range(U(5)):
            s.sums[i + U(1), k] += s.pixels[i, p]


@compiled()
def update(s, size):
    """Move every center to the mean of its pixels (eq. 4). Returns the largest squared move in pixels."""
    sums, centers = s.sums, s.centers
    # Rows and columns add up exactly: to less than 2^24.
    if sums.shape[1] == _SUMMED:
        _sum_few(s, size)
    else:
        _sum_many(s, size)
    moved = F(0)
    for k in range(centers.shape[0]):
        count = sums[0, k]
        s.alive[k] = count > 0
        if not s.alive[k]:
            continue
        cy, cx = sums[1, k] / count, sums[2, k] / count
        moved = max(moved, (cy - centers[k, 0]) ** 2 + (cx - centers[k, 1]) ** 2)
        centers[k, 0] = cy
        centers[k, 1] = cx
        for c in range(2, 5):
            centers[k, c] = sums[1 + c, k] / count
    return moved
