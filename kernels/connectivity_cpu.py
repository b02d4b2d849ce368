"""Connectivity enforcement on the CPU: one image at a time, compiled by numba.

Pieces are flooded breadth first from their first pixels in raster order, as scikit-image does: where a flood
is cut, and which neighbor it meets last, depend on that order. A step is a handful of instructions, so that
tests of bounds and branches that cannot be predicted would take most of the time. The layout of the state and
the way the queue is filled avoid them.

An image is worked on in place in a *padded state*: one border row above and below, one border column at the
right (which is the left border of the next row), so that a flood never asks whether a neighbor lies inside.
A pixel holds `-(label + 1)` until it is reached and its final label afterwards; the border holds `OUTSIDE`,
which equals neither.
"""

from functools import partial

import numpy as np
from numba import get_num_threads

from mclc_gpu.kernels.jit_cpu import compiled, spread

U = np.uintp  # Signed indices would be checked for wrap-around, at half as many instructions again.
OUTSIDE = np.int32(-(2**31))


@compiled(inline="always")
def scratch_size(height: int, width: int) -> int:
    """Return the elements of `relabel`'s int32 scratch: padded state, then the queue and one spare slot."""
    return (height + 2) * (width + 1) + height * width + 1


@compiled()
def _last_neighbor(state, queue, popped, skipped, stride, current):
    """Return the final label of the last labeled foreign pixel met by the flood; `current` if it met none.

    Labels of other pieces do not change during a flood, so walking the queue backwards afterwards finds the
    same pixel as watching every neighbor during the flood does, and only small pieces pay for it.
    """
    first = skipped
    while popped > U(0):
        popped -= U(1)
        p = U(queue[popped])
        for direction in range(first, 4):
            if direction == 0:
                label = state[p - stride]
            elif direction == 1:
                label = state[p + stride]
            elif direction == 2:
                label = state[p - U(1)]
            else:
                label = state[p + U(1)]
            if label >= 0 and label != current:
                return label
        first = 0
    return current


@compiled(inline="always")
def _take(state, queue, q, tail, code, current):
    """Append neighbor q to the piece if it belongs to it, without a branch, which could not be predicted.

    The slot after the queue's end is written in any case, and counts if the neighbor belongs to the piece.
    """
    value = state[q]
    joins = value == code
    queue[tail] = q
    state[q] = current if joins else value
    return tail + U(joins)


@compiled()
def _flood(state, queue, stride, current, max_size):
    """Grow the piece seeded at queue[0].

    Far from its largest size the piece grows by all four neighbors of a pixel at once; near it the size is
    compared after every neighbor. Returns the size, the number of pixels popped, and in how many directions
    the last of those did not look.
    """
    code = state[queue[0]]
    state[queue[0]] = current
    head, tail, limit = U(0), U(1), U(max_size)
    while head < tail and tail + U(4) <= limit:
        p = U(queue[head])
        head += U(1)
        tail = _take(state, queue, p + U(1), tail, code, current)
        tail = _take(state, queue, p - U(1), tail, code, current)
        tail = _take(state, queue, p + stride, tail, code, current)
        tail = _take(state, queue, p - stride, tail, code, current)
    while head < tail and tail < limit:
        p = U(queue[head])
        head += U(1)
        tail = _take(state, queue, p + U(1), tail, code, current)
        if tail >= limit:
            return tail, head, 3
        tail = _take(state, queue, p - U(1), tail, code, current)
        if tail >= limit:
            return tail, head, 2
        tail = _take(state, queue, p + stride, tail, code, current)
        if tail >= limit:
            return tail, head, 1
        tail = _take(state, queue, p - stride, tail, code, current)
    return tail, head, 0


@compiled()
def relabel_state(state, queue, height, width, min_size, max_size):
    """Relabel one image in its padded state (see the module's text), in place.

    Parameters
    ----------
    state : int32 [(height + 2) * (width + 1)]
        Pixel (y, x) at (y + 1) * (width + 1) + x.
    queue : int32 [height * width + 1]
        Scratch.
    height, width : int
    min_size : int
        Pieces of fewer pixels join a neighbor.
    max_size : int
        A flood stops at this many pixels; below 1 it counts as 1.

    Returns
    -------
    int
        Number of final labels, which are 0 .. number - 1.
    """
    stride = U(width + 1)
    current = np.int32(0)
    # The pixel above is met only by a flood that pops its seed, which one of at most one pixel does not do.
    speck = 1 if max_size > 1 else min_size
    shared = 0  # 1 while a small piece without neighbor holds `current`, which the next piece will take too
    for y in range(height):
        start = U(y + 1) * stride
        for p in range(start, start + U(width)):
            if state[p] >= 0:
                continue
            above = state[p - stride]
            lone = state[p + U(1)] != state[p] and state[p + stride] != state[p]
            if lone and speck < min_size and above >= 0 and above != current:
                # A speck of one pixel, as salt noise leaves by the dozen: a flood meets `above` last.
                state[p] = above
                continue
            queue[0] = p
            size, popped, skipped = _flood(state, queue, stride, current, max_size)
            if size >= min_size:
                current += np.int32(1)
                shared = 0
                continue
            label = _last_neighbor(state, queue, popped, skipped, stride, current)
            if label == current:
                shared = 1
                continue
            for i in range(size):
                state[queue[i]] = label
    return current + shared


@compiled()
def _enter(labels, width, state, first, last):
    """Copy the rows first..last of flat labels into the padded state."""
    for y in range(first, last):
        row, source = U((y + 1) * (width + 1)), U(y * width)
        for x in range(U(width)):
            state[row + x] = ~labels[source + x]
        state[row + U(width)] = OUTSIDE


@compiled()
def _leave(state, width, out, first, last):
    """Copy the rows first..last out of the padded state."""
    for y in range(first, last):
        row, target = U((y + 1) * (width + 1)), U(y * width)
        for x in range(U(width)):
            out[target + x] = state[row + x]


@compiled()
def _close(state, width):
    """Set the border rows of the padded state."""
    state[: width + 1] = OUTSIDE
    state[state.shape[0] - width - 1 :] = OUTSIDE


@compiled()
def relabel(labels, height, width, min_size, max_size, out, scratch):
    """Enforce connectivity on one flat label image.

    Parameters
    ----------
    labels : int32 [height * width]
        Values >= 0.
    height, width : int
    min_size, max_size : int
        See `relabel_state`.
    out : int32 [height * width]
        Receives the final labels; may be `labels`.
    scratch : int32 [scratch_size(height, width)] or longer

    Returns
    -------
    int
        Number of final labels.
    """
    padded = (height + 2) * (width + 1)
    state, queue = scratch[:padded], scratch[padded:]
    _close(state, width)
    _enter(labels, width, state, 0, height)
    number = relabel_state(state, queue, height, width, min_size, max_size)
    _leave(state, width, out, 0, height)
    return number


@compiled()
def _relabel_images(labels, min_size, max_size, out, first, last):
    height, width = labels.shape[1:]
    scratch = np.empty(scratch_size(height, width), np.int32)
    for b in range(first, last):
        relabel(labels[b].reshape(-1), height, width, min_size, max_size, out[b].reshape(-1), scratch)


def relabel_batch(labels: np.ndarray, min_size: int, max_size: int, out: np.ndarray) -> None:
    """Enforce connectivity on int32 [B, H, W] labels into `out`, images spread over the threads.

    Of a few images one after the other is flooded, which is sequential; only the copies to and from its state
    are shared.
    """
    batch, height, width = labels.shape
    if batch >= get_num_threads():
        spread(partial(_relabel_images, labels, min_size, max_size, out), batch, labels.size, shares=8)
        return
    scratch = np.empty(scratch_size(height, width), np.int32)
    padded = (height + 2) * (width + 1)
    state, queue = scratch[:padded], scratch[padded:]
    for image, result in zip(labels.reshape(batch, -1), out.reshape(batch, -1), strict=True):
        _close(state, width)
        spread(partial(_enter, image, width, state), height, image.size)
        relabel_state(state, queue, height, width, min_size, max_size)
        spread(partial(_leave, state, width, result), height, image.size)
