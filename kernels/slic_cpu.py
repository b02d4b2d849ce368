"""SLIC in numba: the float32 operations of scikit-image's loop in the same order, so the same bits.

Some eighteen centers reach a pixel, most of them far from it in color. The image is therefore cut into tiles,
and a tile meets only the centers that can be nearest to one of its pixels: those whose distance to the box
around the tile's positions and colors is within an upper bound of its pixels' distances to their nearest
centers (`_bound`). A block of tiles shares one list of the centers in reach.

Many images are spread over the threads; of a few, each thread takes strips of rows when it labels pixels, and
a range of clusters when it sums them up.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numba import get_num_threads

from mclc_gpu.kernels import slic_simd_cpu, slic_tile_cpu
from mclc_gpu.kernels.jit_cpu import SIMD, bits_float, compiled, spread
from mclc_gpu.kernels.slic_tile_cpu import (
    COLORS,
    FIRST_X,
    FIRST_Y,
    INDEX,
    LAST_X,
    LAST_Y,
    OWNERS,
    PLACE,
    TILE_X,
    TILE_Y,
    new_table,
)

F = np.float32
U = np.uintp
_loops = slic_simd_cpu if SIMD else slic_tile_cpu
add_rows, near_centers = _loops.add_rows, _loops.near_centers
assign_tile, assign_tile_of_channels = _loops.assign_tile, _loops.assign_tile_of_channels
_BLOCK_Y, _BLOCK_X = 32, 128  # A block's tiles share a list of centers.
# Bounds on distances are rounded up by more than rounding can move them.
SLACK = F(1.0001)


class Settings(NamedTuple):
    """Settings of a run."""

    step_y: int
    step_x: int
    weight: np.float32  # of a squared pixel against a squared color
    limit: np.float32  # pixels of less distance are in reach of a center's window, whatever their color
    iterations: int
    moves: int  # iterations after which the centers are moved
    tolerance: np.float32
    zero: np.float32 | np.float64  # the type of the sums


class State(NamedTuple):
    """State of one image between iterations; N centers, C channels."""

    centers: np.ndarray  # float32 [N, 2 + C]
    counts: np.ndarray  # int64 [N]: pixels; 0: the cluster takes no further part
    sums: np.ndarray  # float32 or float64 [N, 2 + C]
    shifts: np.ndarray  # float32 [N]: distance (eq. 3) moved by the last update
    windows: np.ndarray  # float32 [N, 4]: first and last row and column in reach
    boxes: np.ndarray  # float32 [tiles y, x, 2, 2 + C]: least and largest row, column and colors
    bounds: np.ndarray  # float32 [tiles y, x]: upper bound of the pixels' distances to their centers
    owned: np.ndarray  # uint8 [tiles y, x]: number of owners; OWNERS: they are not known
    owners: np.ndarray  # int32 [tiles y, x, OWNERS + 1]: centers that pixels have, and perhaps others
    extremes: np.ndarray  # int32 [blocks y, x, 2]: lowest and highest label


@compiled()
def _allocate(features, centers, zero):
    channels, height, width = features.shape
    down, across = (height + TILE_Y - 1) // TILE_Y, (width + TILE_X - 1) // TILE_X
    strips, blocks = (height + _BLOCK_Y - 1) // _BLOCK_Y, (width + _BLOCK_X - 1) // _BLOCK_X
    number = centers.shape[0]
    return State(
        centers,
        np.ones(number, np.int64),
        np.full((number, 2 + channels), zero),
        np.zeros(number, F),
        np.empty((number, 4), F),
        np.empty((down, across, 2, 2 + channels), F),
        np.full((down, across), F(np.inf)),
        np.full((down, across), OWNERS, np.uint8),
        np.empty((down, across, OWNERS + 1), np.int32),
        np.zeros((strips, blocks, 2), np.int32),
    )


@compiled()
def _reach(s, settings):
    """Compute first and last row and column in the window of 2 steps around each center, unclipped."""
    step_y, step_x = settings.step_y, settings.step_x
    for k in range(s.centers.shape[0]):
        cy, cx = s.centers[k, 0], s.centers[k, 1]
        s.windows[k, 0] = np.int64(max(cy - F(2 * step_y), F(0)))
        s.windows[k, 1] = np.int64(cy + F(2 * step_y) + F(1)) - 1
        s.windows[k, 2] = np.int64(max(cx - F(2 * step_x), F(0)))
        s.windows[k, 3] = np.int64(cx + F(2 * step_x) + F(1)) - 1


@compiled(inline="always")
def _bound(s, ty, tx, limit):
    """Return an upper bound of the distances of a tile's pixels to their nearest center; infinite: unknown.

    By the triangle inequality a pixel is no farther from the center it had than before plus that center's
    shift, and up to `limit` the center's window still reaches it.
    """
    owned = s.owned[ty, tx]
    shift = F(0) if owned < OWNERS else F(np.inf)
    for i in range(owned % OWNERS):
        shift = max(shift, s.shifts[U(s.owners[ty, tx, i])])
    root = np.sqrt(s.bounds[ty, tx]) + shift
    bound = root * root * SLACK
    return bound if bound < limit else F(np.inf)


@compiled(inline="always")
def _slack(s, ty, tx):
    """Return how far rounding can move a tile's distances where all centers have the same color.

    They are then compared by position alone, but the colors' part, the same for all, takes away last bits.
    """
    total = F(0)
    for c in range(2, s.centers.shape[1]):
        low, high = s.boxes[ty, tx, 0, c] - s.centers[0, c], s.boxes[ty, tx, 1, c] - s.centers[0, c]
        total += max(low * low, high * high)
    return total * F(1e-5)


@compiled()
def _list_centers(s, rows, number, top, left, right, table):
    """Put the living centers, of those numbered in `rows`, whose windows reach the columns into the table."""
    living = 0
    for i in range(number):
        k = rows[i]
        if s.windows[k, 2] >= right or s.windows[k, 3] < left:
            continue
        table[PLACE, living], table[PLACE + 1, living] = s.centers[k, 0], s.centers[k, 1]
        table[FIRST_Y, living], table[LAST_Y, living] = s.windows[k, 0], s.windows[k, 1]
        table[FIRST_X, living], table[LAST_X, living] = s.windows[k, 2], s.windows[k, 3]
        table[INDEX, living] = bits_float(np.int32(k))
        for c in range(2, s.centers.shape[1]):
            table[COLORS + c - 2, living] = s.centers[k, c]
        living += 1
    return living


@compiled()
def _assign_block(s, features, labels, settings, table, living, colors, kept, scratch, top, left):
    """Label the pixels of a block with the nearest of the table's centers. Returns if a label changed."""
    channels, height, width = features.shape
    boxes, owners, bounds = s.boxes, s.owners, s.bounds
    changed = False
    lowest, highest = np.int32(2**31 - 1), np.int32(0)
    for y in range(top, min(top + _BLOCK_Y, height), TILE_Y):
        for x in range(left, min(left + _BLOCK_X, width), TILE_X):
            ty, tx = U(y // TILE_Y), U(x // TILE_X)
            found = near_centers(
                table, living, boxes, ty, tx, colors, _bound(s, ty, tx, settings.limit), settings.weight,
                _slack(s, ty, tx) if colors == 0 else F(0), kept,
            )  # fmt: skip
            # The last tiles overlap those before them.
            tile_y, tile_x = U(min(y, height - TILE_Y)), U(min(x, width - TILE_X))
            if channels == 3:
                owned, bounds[ty, tx], differs, low, high = assign_tile(
                    features, labels, tile_y, tile_x, table, kept, found, settings.weight, owners, ty, tx
                )
            else:
                owned, bounds[ty, tx], differs, low, high = assign_tile_of_channels(
                    features,
                    labels,
                    tile_y,
                    tile_x,
                    table,
                    kept,
                    found,
                    settings.weight,
                    owners,
                    ty,
                    tx,
                    scratch,
                )
            s.owned[ty, tx] = owned
            changed |= differs
            lowest, highest = min(lowest, low), max(highest, high)
    extremes = s.extremes[top // _BLOCK_Y, left // _BLOCK_X]
    extremes[0], extremes[1] = lowest, highest
    return changed


@compiled()
def _one_color(colors):
    """Check if all centers have the same color, as at the start."""
    for k in range(colors.shape[0]):
        for c in range(colors.shape[1]):
            if colors[k, c] != colors[0, c]:
                return False
    return True


@compiled()
def _assign(s, features, labels, settings, first, last):
    """Label the pixels of the strips first..last. Returns if a label changed."""
    channels, height, width = features.shape
    number = s.centers.shape[0]
    rows = np.empty(number + 1, np.int64)
    table = new_table(number, channels)
    kept, scratch = np.empty(number + 1, np.int32), np.empty((channels, TILE_Y * TILE_X), F)
    colors = 0 if _one_color(s.centers[:, 2:]) else channels
    changed = False
    for strip in range(first, last):
        top = strip * _BLOCK_Y
        above, below = min(top, height - TILE_Y), min(top + _BLOCK_Y, height)
        reaching = 0
        for k in range(number):
            rows[reaching] = k
            reaching += (s.counts[k] > 0) & (s.windows[k, 0] < below) & (s.windows[k, 1] >= above)
        for left in range(0, width, _BLOCK_X):
            living = _list_centers(
                s, rows, reaching, top, min(left, width - TILE_X), min(left + _BLOCK_X, width), table
            )
            changed |= _assign_block(
                s, features, labels, settings, table, living, colors, kept, scratch, top, left
            )
    return changed


@compiled()
def _sum(s, features, labels, settings, first, last):
    """Count and sum the pixels of the clusters first..last, each cluster's in raster order."""
    channels, height = features.shape[0], labels.shape[0]
    top, bottom = height, height
    for strip in range(s.extremes.shape[0]):
        if s.extremes[strip, :, 0].min() < last and s.extremes[strip, :, 1].max() >= first:
            top, bottom = min(top, strip * _BLOCK_Y), min((strip + 1) * _BLOCK_Y, height)
    # Where every pixel is in reach of its center, a window is the widest that a cluster can be.
    widest = 4 * settings.step_x + 2 if s.bounds.max() < np.inf else labels.shape[1]
    for c in range(0, channels, 3):
        sums, counts = np.full((last - first + 1, 5), settings.zero), np.zeros(last - first + 1, np.int64)
        add_rows(features, c, labels, top, bottom, first, last, widest, sums, counts)
        for k in range(first, last):
            s.counts[k] = counts[k - first]
            s.sums[k, 0], s.sums[k, 1] = sums[k - first, 0], sums[k - first, 1]
            for i in range(min(3, channels - c)):
                s.sums[k, 2 + c + i] = sums[k - first, 2 + i]


@compiled()
def _move(s, settings):
    """Set the centers to their clusters' means (eq. 4). Returns if one moved by `tolerance` or more."""
    moved = False
    for k in range(s.centers.shape[0]):
        if s.counts[k] == 0:
            continue
        y, x = s.centers[k, 0], s.centers[k, 1]
        colors = 0.0
        for i in range(s.centers.shape[1]):
            before = s.centers[k, i]
            s.centers[k, i] = s.sums[k, i] / F(s.counts[k])
            if i > 1:
                colors += (np.float64(s.centers[k, i]) - before) ** 2
        dy, dx = s.centers[k, 0] - y, s.centers[k, 1] - x
        moved |= dy * dy + dx * dx >= settings.tolerance * settings.tolerance
        s.shifts[k] = np.sqrt(np.float64(dy * dy + dx * dx) * settings.weight + colors) * SLACK
    return moved


@compiled()
def _boxes(s, features, first, last):
    """Compute the boxes of the rows first..last of tiles: first of each column, then of each tile."""
    channels, height, width = features.shape
    low, high = np.empty(width, F), np.empty(width, F)
    for ty in range(first, last):
        top = min(ty * TILE_Y, height - TILE_Y)
        for c in range(channels):
            low[:], high[:] = np.inf, -np.inf
            for y in range(top, top + TILE_Y):
                for x in range(U(width)):
                    value = features[U(c), U(y), x]
                    low[x] = value if value < low[x] else low[x]
                    high[x] = value if value > high[x] else high[x]
            for tx in range(s.boxes.shape[1]):
                left = min(tx * TILE_X, width - TILE_X)
                least, greatest = low[left], high[left]
                for x in range(U(left), U(left + TILE_X)):
                    least, greatest = min(least, low[x]), max(greatest, high[x])
                s.boxes[ty, tx, 0, 2 + c], s.boxes[ty, tx, 1, 2 + c] = least, greatest
        for tx in range(s.boxes.shape[1]):
            left = min(tx * TILE_X, width - TILE_X)
            box = s.boxes[ty, tx]
            box[0, 0], box[1, 0], box[0, 1], box[1, 1] = top, top + TILE_Y - 1, left, left + TILE_X - 1


@compiled()
def _cluster_images(features, centers, settings, labels, first, last):
    """Do all iterations of the images first..last, one after the other."""
    for b in range(first, last):
        s = _allocate(features[b], centers[b], settings.zero)
        _boxes(s, features[b], 0, s.boxes.shape[0])
        for i in range(settings.iterations):
            _reach(s, settings)
            changed = _assign(s, features[b], labels[b], settings, 0, s.extremes.shape[0])
            if not changed or i == settings.moves:
                break
            _sum(s, features[b], labels[b], settings, 0, centers.shape[1])
            if not _move(s, settings):
                break


def _cluster_image(features: np.ndarray, centers: np.ndarray, settings: Settings, labels: np.ndarray) -> None:
    """Do all iterations of one image: a thread labels strips of rows, and sums up a range of clusters."""
    s = _allocate(features, centers, settings.zero)
    spread(partial(_boxes, s, features), len(s.boxes), labels.size)
    for i in range(settings.iterations):
        _reach(s, settings)
        changed = any(spread(partial(_assign, s, features, labels, settings), len(s.extremes), labels.size))
        if not changed or i == settings.moves:
            return
        spread(partial(_sum, s, features, labels, settings), len(centers), labels.size)
        if not _move(s, settings):
            return


def cluster(
    features: np.ndarray,
    centers: np.ndarray,
    step_y: int,
    step_x: int,
    weight: np.float32,
    iterations: int,
    tolerance: float,
    labels: np.ndarray,
    double_sums: bool = False,
    move_last: bool = True,
) -> None:
    """Cluster features around centers.

    Parameters
    ----------
    features : float32 [B, C, H, W], contiguous
    centers : float32 [B, N, 2 + C], contiguous
        Row, column and colors. Moved in place.
    step_y, step_x : int
        A center's window reaches two steps to each side.
    weight : float32
        Weight of a squared pixel against a squared color.
    iterations : int
        Assignments at most.
    tolerance : float
        An image is done when all its centers moved by fewer pixels.
    labels : int32 [B, H, W], contiguous
        Read and written.
    double_sums : bool
        Sum over clusters in double precision, which those of more than some 10,000 pixels need; else in
        single, as scikit-image does.
    move_last : bool
        Move the centers after the last assignment too.
    """
    batch, channels, height, width = features.shape
    if height < TILE_Y or width < TILE_X:
        # Around the image come pixels that no center reaches, of a cluster that is none.
        size = max(height, TILE_Y), max(width, TILE_X)
        wide = np.full((batch, channels, *size), np.inf, F)
        out = np.full((batch, *size), centers.shape[1], np.int32)
        wide[:, :, :height, :width], out[:, :height, :width] = features, labels
        cluster(wide, centers, step_y, step_x, weight, iterations, tolerance, out, double_sums, move_last)
        labels[:] = out[:, :height, :width]
        return
    kind = np.float64 if double_sums else F
    settings = Settings(
        step_y, step_x, weight, F((2 * min(step_y, step_x)) ** 2 * float(weight) / SLACK), iterations,
        iterations - (not move_last), F(tolerance), kind(0),
    )  # fmt: skip
    if batch >= get_num_threads():
        spread(partial(_cluster_images, features, centers, settings, labels), batch, labels.size, shares=8)
        return
    for image, start, out in zip(features, centers, labels, strict=True):
        _cluster_image(image, start, settings, out)
