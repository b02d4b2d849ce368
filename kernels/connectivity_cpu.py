"""Connectivity enforcement on the CPU: one image at a time, compiled by numba.

An image is worked on in place in a *padded state*: one border row above and below, one border column at the right
(which is the left border of the next row), so that a flood never asks whether a neighbour lies inside. A pixel holds
`-(label + 1)` until it is reached and its final label afterwards; the border holds `OUTSIDE`, equal to neither.
"""

import numpy as np
from numba import njit, prange

OUTSIDE = np.int32(-(2**31))


@njit(cache=True, nogil=True, inline="always")
def scratch_size(height: int, width: int) -> int:
    """Elements of the int32 scratch that `relabel` needs: padded state, then the queue and one spare slot."""
    return (height + 2) * (width + 1) + height * width + 1


@njit(cache=True, nogil=True)
def _last_neighbour(state, queue, popped, skipped, stride, current):  # type: ignore[no-untyped-def]
    """Final label of the last labelled foreign pixel met by the flood; `current` when it met none.

    Labels of other pieces do not change during a flood, so walking the queue backwards afterwards finds the same pixel
    as watching every neighbour during the flood does, and only small pieces pay for it.
    """
    for i in range(popped - 1, -1, -1):
        p = queue[i]
        first = skipped if i == popped - 1 else 0
        for direction in range(first, 4):
            if direction == 0:
                label = state[p - stride]
            elif direction == 1:
                label = state[p + stride]
            elif direction == 2:
                label = state[p - 1]
            else:
                label = state[p + 1]
            if label >= 0 and label != current:
                return label
    return current


@njit(cache=True, nogil=True)
def _flood(state, queue, stride, current, max_size):  # type: ignore[no-untyped-def]
    """Grow the piece seeded at queue[0]. Returns (size, pixels popped, directions the last of them did not look at)."""
    code = state[queue[0]]
    state[queue[0]] = current
    head, tail = 0, 1
    # Far from max_size nothing can stop the flood, and a push without a branch is faster than one hard to predict:
    # the slot after the queue's end is always written, and counts when the neighbour belongs to the piece.
    while head < tail and tail <= max_size - 4:
        p = queue[head]
        head += 1
        for offset in (1, -1, stride, -stride):
            q = p + offset
            value = state[q]
            joins = value == code
            queue[tail] = q
            state[q] = current if joins else value
            tail += joins
    while head < tail and tail < max_size:
        p = queue[head]
        head += 1
        for direction, offset in enumerate((1, -1, stride, -stride)):
            q = p + offset
            if state[q] == code:
                state[q] = current
                queue[tail] = q
                tail += 1
                if tail >= max_size:
                    return tail, head, 3 - direction
    return tail, head, 0


@njit(cache=True, nogil=True)
def relabel_state(state, queue, height, width, min_size, max_size):  # type: ignore[no-untyped-def]
    """Relabel one image in its padded state (see the module's text), in place.

    Args:
        state: int32 [(height + 2) * (width + 1)]; pixel (y, x) at (y + 1) * (width + 1) + x.
        queue: int32 [height * width + 1] scratch.
        height, width: image size in pixels.
        min_size: pieces of fewer pixels join a neighbour.
        max_size: a flood stops at this many pixels (at least 1 is taken).

    Returns:
        Number of final labels; they are 0 .. number - 1.
    """
    stride = np.int32(width + 1)
    current = np.int32(0)
    shared = 0  # 1 while a small piece without neighbour holds `current`, which the next piece will take too
    for y in range(height):
        for p in range((y + 1) * stride, (y + 1) * stride + width):
            if state[p] >= 0:
                continue
            queue[0] = p
            size, popped, skipped = _flood(state, queue, stride, current, max_size)
            if size >= min_size:
                current += np.int32(1)
                shared = 0
                continue
            label = _last_neighbour(state, queue, popped, skipped, stride, current)
            if label == current:
                shared = 1
                continue
            for i in range(size):
                state[queue[i]] = label
    return current + shared


@njit(cache=True, nogil=True)
def relabel(labels, height, width, min_size, max_size, out, scratch):  # type: ignore[no-untyped-def]
    """Enforce connectivity on one flat label image; `out` may be `labels`.

    Args:
        labels: int32 [height * width], values >= 0.
        min_size, max_size: see `relabel_state`.
        out: int32 [height * width], receives the final labels.
        scratch: int32 [scratch_size(height, width)] or longer; contents are overwritten.

    Returns:
        Number of final labels.
    """
    stride = width + 1
    padded = (height + 2) * stride
    state = scratch[:padded]
    queue = scratch[padded:]
    state[:stride] = OUTSIDE
    state[padded - stride :] = OUTSIDE
    for y in range(height):
        row = state[(y + 1) * stride : (y + 2) * stride]
        row[:width] = ~labels[y * width : (y + 1) * width]
        row[width] = OUTSIDE
    number = relabel_state(state, queue, height, width, min_size, max_size)
    for y in range(height):
        out[y * width : (y + 1) * width] = state[(y + 1) * stride : (y + 2) * stride - 1]
    return number


@njit(cache=True, nogil=True, parallel=True)
def relabel_batch(labels, min_size, max_size, out):  # type: ignore[no-untyped-def]
    """Enforce connectivity on int32 [B, H, W] labels into `out`, images spread over the threads."""
    batch, height, width = labels.shape
    for b in prange(batch):
        scratch = np.empty(scratch_size(height, width), np.int32)
        relabel(labels[b].reshape(-1), height, width, min_size, max_size, out[b].reshape(-1), scratch)
