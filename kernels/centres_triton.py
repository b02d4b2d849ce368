"""Clusters of one trial in Triton: pixels in registers, the few centres in memory."""

import triton
import triton.language as tl

# Columns of a centre: row, column, three colours.
CENTRE = tl.constexpr(5)


@triton.jit
def assign(p_centres, number, y, x, f0, f1, f2, label, reach_y, reach_x, weight):
    """The nearest centre whose window reaches a pixel (eq. 2, 3); lowest index on exact ties."""
    best = tl.full(y.shape, float("inf"), tl.float32)
    for k in range(number):
        p_centre = p_centres + k * CENTRE
        dy = tl.load(p_centre) - y
        dx = tl.load(p_centre + 1) - x
        d0 = f0 - tl.load(p_centre + 2)
        d1 = f1 - tl.load(p_centre + 3)
        d2 = f2 - tl.load(p_centre + 4)
        colour = tl.fma(d2, d2, tl.fma(d1, d1, d0 * d0))
        distance = tl.fma(tl.fma(dy, dy, dx * dx), weight, colour)
        # -reach <= d < reach + 1 is scikit-image's truncated window, for pixels at integers.
        nearer = (
            (distance < best) & (dy >= -reach_y) & (dy < reach_y + 1) & (dx >= -reach_x) & (dx < reach_x + 1)
        )
        best = tl.where(nearer, distance, best)
        label = tl.where(nearer, k, label)
    return label


@triton.jit
def _add(n, y, x, c0, c1, c2, other_n, other_y, other_x, other_c0, other_c1, other_c2):
    return n + other_n, y + other_y, x + other_x, c0 + other_c0, c1 + other_c1, c2 + other_c2


@triton.jit
def quotient(total, count, inverse):
    """total / count rounded once, from the rounded inverse of a whole number below 2^24 (Markstein)."""
    nearly = total * inverse
    return tl.fma(tl.fma(-nearly, count, total), inverse, nearly)


@triton.jit
def update(p_centres, number, y, x, f0, f1, f2, label):
    """Move every centre to the mean of its pixels (eq. 4); an empty cluster moves out of every pixel's reach.

    Pixels outside the window hold label -1. Returns the largest squared move in pixels.
    """
    moved = 0.0
    # Each thread of a warp collects the sums of one centre, and divides: divisions are dear.
    for first in range(0, number, 32):
        own = first + tl.arange(0, 32)
        count = tl.zeros([32], tl.float32)
        cy = tl.zeros([32], tl.float32)
        cx = tl.zeros([32], tl.float32)
        c0 = tl.zeros([32], tl.float32)
        c1 = tl.zeros([32], tl.float32)
        c2 = tl.zeros([32], tl.float32)
        for k in range(first, tl.minimum(first + 32, number)):
            member = label == k
            # All sums in one pass over the pixels, so that no thread keeps which of its pixels are members.
            sums = tl.reduce(
                (
                    member.to(tl.float32), tl.where(member, y, 0.0), tl.where(member, x, 0.0),
                    tl.where(member, f0, 0.0), tl.where(member, f1, 0.0), tl.where(member, f2, 0.0),
                ), 0, _add,
            )  # fmt: skip
            count = tl.where(own == k, sums[0], count)
            cy = tl.where(own == k, sums[1], cy)
            cx = tl.where(own == k, sums[2], cx)
            c0 = tl.where(own == k, sums[3], c0)
            c1 = tl.where(own == k, sums[4], c1)
            c2 = tl.where(own == k, sums[5], c2)
        p_centre = p_centres + own * CENTRE
        some = tl.maximum(count, 1.0)
        inverse = tl.div_rn(some * 0.0 + 1.0, some)
        cy = quotient(cy, some, inverse)
        cx = quotient(cx, some, inverse)
        dy = cy - tl.load(p_centre, own < number, 0.0)
        dx = cx - tl.load(p_centre + 1, own < number, 0.0)
        moved = tl.maximum(moved, tl.max(tl.where(count > 0.0, dy * dy + dx * dx, 0.0), 0))
        tl.debug_barrier()
        tl.store(p_centre, tl.where(count > 0.0, cy, float("inf")), own < number)
        tl.store(p_centre + 1, cx, own < number)
        tl.store(p_centre + 2, quotient(c0, some, inverse), own < number)
        tl.store(p_centre + 3, quotient(c1, some, inverse), own < number)
        tl.store(p_centre + 4, quotient(c2, some, inverse), own < number)
    return moved
