"""SLIC in Triton: features, start centers, assignment per tile of pixels, update per cluster.

The distances are the float32 operations of the CPU backend in the same order and unfused, and coordinates are
summed as integers. Only the color sums run in another order: they may differ in the last bits, and near ties
with them.

Each image is cut into cells of one step, and every cell has a linked list of the living centers in it:
`heads` holds the first center of each list (-1: none), `following` the center after each. An iteration reads
one set of heads while the update fills the other. The order within a list does not matter, because ties are
decided by index.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching
from mclc_gpu.kernels.color_triton import lab_of_linear, linear_light

_TILE_Y, _TILE_X = 8, 32  # Rows of a warp's width: features and labels are read in whole sectors.
_ASSIGN_WARPS = 2  # Four pixels a thread share what a center costs.
_UPDATE_BLOCK = 512
_BLOCK = 512
_RANGE_BLOCKS = 16  # that a program looks at one after the other
_CENTERS = 128  # of a program
_UNSEEN = 2**31 - 1  # greater than the key of any value
# Rows of an iteration's flags: an image has a label that changed, a pixel out of reach, a center that moved.
_CHANGED, _UNREACHED, _MOVED, _FLAGS = (tl.constexpr(i) for i in range(4))


@triton.jit
def _key(value):
    """Return a float32's bits, changed so that they compare as signed integers like the numbers do."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["size", "parts"])
def range_kernel(p_images, p_ranges, size, parts, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Take the least of an image's values, of their negatives, and 0 if one is not finite, as keys."""
    i_image = (tl.program_id(0) // parts).to(tl.int64)
    first = (tl.program_id(0) % parts).to(tl.int64) * (BLOCK * BLOCKS)
    p_images += i_image * size
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    odd = tl.zeros([BLOCK], tl.int32)
    for block in range(0, BLOCKS):
        index = first + block * BLOCK + tl.arange(0, BLOCK)
        inside = index < size
        value = tl.load(p_images + index, inside, 0).to(tl.float32)
        finite = tl.abs(value) < float("inf")
        low = tl.where(inside & finite, tl.minimum(low, value), low)
        high = tl.where(inside & finite, tl.maximum(high, value), high)
        odd |= (inside & ~finite).to(tl.int32)
    p_ranges += i_image * 3
    tl.atomic_min(p_ranges, _key(tl.min(low, 0)))
    tl.atomic_min(p_ranges + 1, _key(-tl.max(high, 0)))
    tl.atomic_min(p_ranges + 2, 0, tl.max(odd, 0) > 0)


@triton.jit(do_not_specialize=["plane", "blocks"])
def features_kernel(
    p_images, p_ranges, p_features, plane, blocks, scale, CHANNELS: tl.constexpr, LAB: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rescale an image to 0..1, convert it to CIELAB with LAB, and multiply it by `scale`."""
    i_image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < plane
    low = _value(tl.load(p_ranges + i_image * 3))
    span = -_value(tl.load(p_ranges + i_image * 3 + 1)) - low
    span = tl.zeros([BLOCK], tl.float32) + tl.where(span == 0, 1.0, span)
    start = i_image * CHANNELS * plane + pixel
    if LAB:
        second, third = start + plane, start + plane + plane
        r = tl.div_rn(tl.load(p_images + start, inside, 0).to(tl.float32) - low, span)
        g = tl.div_rn(tl.load(p_images + second, inside, 0).to(tl.float32) - low, span)
        b = tl.div_rn(tl.load(p_images + third, inside, 0).to(tl.float32) - low, span)
        lightness, a, b = lab_of_linear(linear_light(r), linear_light(g), linear_light(b))
        tl.store(p_features + start, lightness * scale, inside)
        tl.store(p_features + second, a * scale, inside)
        tl.store(p_features + third, b * scale, inside)
    else:
        for _ in range(0, CHANNELS):
            value = tl.load(p_images + start, inside, 0).to(tl.float32)
            tl.store(p_features + start, tl.div_rn(value - low, span) * scale, inside)
            start += plane


@triton.jit
def _gradient(p_features, y, x, height, width, CHANNELS: tl.constexpr):
    """Return the squared differences across some pixels, with the border pixels repeated outwards."""
    above, below = tl.maximum(y - 1, 0), tl.minimum(y + 1, height - 1)
    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, width - 1)
    total = tl.zeros_like(y).to(tl.float32)
    for _ in range(0, CHANNELS):
        along_x = tl.load(p_features + y * width + right) - tl.load(p_features + y * width + left)
        along_y = tl.load(p_features + below * width + x) - tl.load(p_features + above * width + x)
        total += along_x * along_x + along_y * along_y
        p_features += height.to(tl.int64) * width
    return total


@triton.jit(
    do_not_specialize=["height", "width", "n_centers", "columns", "first_y", "first_x", "step_y", "step_x"]
)
def centers_kernel(
    p_features, p_centers, height, width, n_centers, columns, first_y, first_x, step_y, step_x,
    CHANNELS: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put centers on the grid, of color 0; with GRADIENT do what `slic.lowest_gradient` does."""
    blocks = tl.cdiv(n_centers, BLOCK)
    i_image = (tl.program_id(0) // blocks).to(tl.int64)
    k = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = k < n_centers
    # A program's last centers stand for those that are not there, so that every pixel looked at exists.
    k = tl.minimum(k, n_centers - 1)
    y = first_y + k // columns * step_y
    x = first_x + k % columns * step_x
    p_features += i_image * CHANNELS * height * width
    if GRADIENT:
        best_y, best_x = y, x
        best = _gradient(p_features, y, x, height, width, CHANNELS)
        for near in tl.static_range(9):
            near_y = y + (near // 3 - 1)
            near_x = x + (near % 3 - 1)
            possible = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
            safe_y, safe_x = tl.where(possible, near_y, y), tl.where(possible, near_x, x)
            gradient = _gradient(p_features, safe_y, safe_x, height, width, CHANNELS)
            lower = possible & (gradient < best)
            best = tl.where(lower, gradient, best)
            best_y, best_x = tl.where(lower, near_y, best_y), tl.where(lower, near_x, best_x)
        y, x = best_y, best_x
    p_centers += (i_image * n_centers + k) * (2 + CHANNELS)
    tl.store(p_centers, y.to(tl.float32), inside)
    tl.store(p_centers + 1, x.to(tl.float32), inside)
    for c in tl.static_range(CHANNELS):
        if GRADIENT:
            color = tl.load(p_features + c * height.to(tl.int64) * width + y * width + x)
        else:
            color = tl.zeros([BLOCK], tl.float32)
        tl.store(p_centers + 2 + c, color, inside)


@triton.jit
def _push(p_heads, p_following, k, y, x, cell_y, cell_x, cells_x, inside):
    """Put centers (rows y, columns x) in front of their cells' lists."""
    cell = y.to(tl.int32) // cell_y * cells_x + x.to(tl.int32) // cell_x
    tl.store(p_following + k, tl.atomic_xchg(p_heads + cell, k, inside), inside)


@triton.jit(do_not_specialize=["n_centers", "cell_y", "cell_x", "cells_y", "cells_x"])
def bin_kernel(
    p_centers, p_counts, p_heads, p_following, p_active, n_centers, cell_y, cell_x, cells_y, cells_x,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Begin the first iteration: all images are active, and all centers alive and in a list."""
    blocks = tl.cdiv(n_centers, BLOCK)
    i_image = (tl.program_id(0) // blocks).to(tl.int64)
    k = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = k < n_centers
    tl.store(p_active + i_image, 1)
    tl.store(p_counts + i_image * n_centers + k, 1, inside)
    p_center = p_centers + (i_image * n_centers + k) * (2 + CHANNELS)
    y, x = tl.load(p_center, inside, 0.0), tl.load(p_center + 1, inside, 0.0)
    p_heads += i_image * cells_y * cells_x
    p_following += i_image * n_centers
    _push(p_heads, p_following, k, y, x, cell_y, cell_x, cells_x, inside)


@triton.jit
def reach(center, extent, size):
    """Return the half-open range of the rows (or columns) within `extent` of a center."""
    low = tl.maximum(center - extent, 0.0).to(tl.int32)
    high = tl.minimum(center + extent + 1.0, size.to(tl.float32)).to(tl.int32)
    return low, high


@triton.jit(
    do_not_specialize=["images", "height", "width", "n_centers", "cell_y", "cell_x", "cells_y", "cells_x"]
)
def assign_kernel(
    p_features, p_centers, p_heads, p_following, p_labels, p_active, p_flags, images, height, width,
    n_centers, cell_y, cell_x, cells_y, cells_x, weight, CHANNELS: tl.constexpr, TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):  # fmt: skip
    """Label a tile of pixels. `p_active` [images] is 1 for those that are not done, flags are [3, images]."""
    tiles_x = tl.cdiv(width, TILE_X)
    tiles = tl.cdiv(height, TILE_Y) * tiles_x
    i_image = (tl.program_id(0) // tiles).to(tl.int64)
    i_tile = tl.program_id(0) % tiles
    if tl.load(p_active + i_image) <= 0:
        return
    index = tl.arange(0, TILE_Y * TILE_X)
    top = i_tile // tiles_x * TILE_Y
    left = i_tile % tiles_x * TILE_X
    y = top + index // TILE_X
    x = left + index % TILE_X
    m_inside = (y < height) & (x < width)
    pixel = y * width + x
    b_features = ()
    for c in tl.static_range(CHANNELS):
        p_channel = p_features + (i_image * CHANNELS + c) * height * width
        # Triton knows no unpacking inside a tuple, and mypy no tuple that grows.
        b_features = b_features + (tl.load(p_channel + pixel, m_inside, 0.0),)  # type: ignore  # noqa: RUF005

    # Only centers at most two cells and a pixel away can reach the tile. They come in no order, so equal
    # distances have to be decided by index.
    row_first = tl.maximum(top - 2 * cell_y - 1, 0) // cell_y
    row_last = tl.minimum((top + TILE_Y + 2 * cell_y + 1) // cell_y, cells_y - 1)
    column_first = tl.maximum(left - 2 * cell_x - 1, 0) // cell_x
    column_last = tl.minimum((left + TILE_X + 2 * cell_x + 1) // cell_x, cells_x - 1)
    extent_y = (2 * cell_y).to(tl.float32)
    extent_x = (2 * cell_x).to(tl.float32)
    next_y = (y + 1).to(tl.float32)
    next_x = (x + 1).to(tl.float32)
    best = tl.full([TILE_Y * TILE_X], float("inf"), tl.float32)
    label = tl.full([TILE_Y * TILE_X], 0, tl.int32) + n_centers
    p_heads += i_image * cells_y * cells_x
    p_following += i_image * n_centers
    p_centers += i_image * n_centers * (2 + CHANNELS)
    for row in range(row_first, row_last + 1):
        for column in range(column_first, column_last + 1):
            k = tl.load(p_heads + row * cells_x + column)
            while k >= 0:
                p_center = p_centers + k.to(tl.int64) * (2 + CHANNELS)
                following = tl.load(p_following + k)
                cy = tl.load(p_center)
                cx = tl.load(p_center + 1)
                color = tl.zeros_like(best)
                for c in tl.static_range(CHANNELS):
                    t = b_features[c] - tl.load(p_center + 2 + c)
                    color += t * t
                dy = cy - y.to(tl.float32)
                dx = cx - x.to(tl.float32)
                distance = (dy * dy + dx * dx) * weight + color
                nearer = (distance < best) | ((distance == best) & (k < label))
                # The range of `reach` without its conversions, which a GPU does at an eighth of the rate:
                # y >= floor(low) is y + 1 > low, and y < floor(high) is y + 1 <= high.
                nearer = nearer & (next_y > cy - extent_y) & (next_y <= cy + extent_y + 1.0)
                nearer = nearer & (next_x > cx - extent_x) & (next_x <= cx + extent_x + 1.0)
                best = tl.where(nearer, distance, best)
                label = tl.where(nearer, k, label)
                k = following

    p_labels += i_image * height * width + pixel
    before = tl.load(p_labels, m_inside, 0)
    m_reached = label < n_centers
    after = tl.where(m_reached, label, before)
    tl.store(p_labels, after, m_inside)
    changed = tl.max(((after != before) & m_inside).to(tl.int32), 0)
    unreached = tl.max((~m_reached & m_inside).to(tl.int32), 0)
    tl.atomic_max(p_flags + _CHANGED * images + i_image, changed, changed > 0)
    tl.atomic_max(p_flags + _UNREACHED * images + i_image, unreached, unreached > 0)


@triton.jit(
    do_not_specialize=["images", "height", "width", "n_centers", "cell_y", "cell_x", "cells_y", "cells_x"]
)
def update_kernel(
    p_features, p_centers, p_counts, p_heads_done, p_heads, p_following, p_labels, p_flags, images, height,
    width, n_centers, cell_y, cell_x, cells_y, cells_x, tolerance, CHANNELS: tl.constexpr,
    CHANNELS_UP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move a center to the mean of its pixels (eq. 4) and into a list of `p_heads`; empty the others."""
    i_center = tl.program_id(0).to(tl.int64)
    i_image = i_center // n_centers
    k = (i_center % n_centers).to(tl.int32)
    # An image without a change is done. What is left of its lists nobody reads.
    if tl.load(p_flags + _CHANGED * images + i_image) <= 0:
        return
    p_heads_done += i_image * cells_y * cells_x
    for cell in range(k, cells_y * cells_x, n_centers):
        tl.store(p_heads_done + cell, -1)
    if tl.load(p_counts + i_center) == 0:
        return
    p_center = p_centers + i_center * (2 + CHANNELS)
    cy = tl.load(p_center)
    cx = tl.load(p_center + 1)
    y_min, y_max = reach(cy, (2 * cell_y).to(tl.float32), height)
    x_min, x_max = reach(cx, (2 * cell_x).to(tl.float32), width)
    # A pixel that no window reached has kept its label, and may lie anywhere.
    anywhere = tl.load(p_flags + _UNREACHED * images + i_image) > 0
    y_min = tl.where(anywhere, 0, y_min)
    x_min = tl.where(anywhere, 0, x_min)
    y_max = tl.where(anywhere, height, y_max)
    x_max = tl.where(anywhere, width, x_max)
    columns = x_max - x_min
    p_labels += i_image * height * width
    channel = tl.arange(0, CHANNELS_UP)
    p_features += (i_image * CHANNELS + channel[:, None]) * height * width
    count = tl.zeros([BLOCK], tl.int32)
    sum_y = tl.zeros([BLOCK], tl.int64)
    sum_x = tl.zeros([BLOCK], tl.int64)
    sums = tl.zeros([CHANNELS_UP, BLOCK], tl.float32)
    # The window's pixels in raster order, BLOCK at a time: one division for all of them.
    index = tl.arange(0, BLOCK)
    y = y_min + index // columns
    x = x_min + index % columns
    down = BLOCK // columns
    across = BLOCK % columns
    for _ in range(0, (y_max - y_min) * columns, BLOCK):
        pixel = y * width + x
        m_own = tl.load(p_labels + pixel, y < y_max, -1) == k
        count += m_own.to(tl.int32)
        sum_y += tl.where(m_own, y, 0)
        sum_x += tl.where(m_own, x, 0)
        sums += tl.load(p_features + pixel[None, :], m_own[None, :] & (channel[:, None] < CHANNELS), 0.0)
        x += across
        wrapped = x >= x_max
        x = tl.where(wrapped, x - columns, x)
        y += down + wrapped.to(tl.int32)
    n = tl.sum(count, 0)
    tl.store(p_counts + i_center, n)
    if n > 0:
        share = n.to(tl.float32)
        new_y = tl.div_rn(tl.sum(sum_y, 0).to(tl.float32), share)
        new_x = tl.div_rn(tl.sum(sum_x, 0).to(tl.float32), share)
        colors = tl.sum(sums, 1)
        tl.store(p_center, new_y)
        tl.store(p_center + 1, new_x)
        tl.store(p_center + 2 + channel, tl.div_rn(colors, tl.zeros_like(colors) + share), channel < CHANNELS)
        p_heads += i_image * cells_y * cells_x
        p_following += i_image * n_centers
        _push(p_heads, p_following, k, new_y, new_x, cell_y, cell_x, cells_x, n > 0)
        dy = new_y - cy
        dx = new_x - cx
        moved = (dy * dy + dx * dx >= tolerance * tolerance).to(tl.int32)
        tl.atomic_max(p_flags + _MOVED * images + i_image, moved, moved > 0)


def features_of(images: torch.Tensor, scale: float, lab: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rescale images, convert them to CIELAB if `lab`, and multiply them by `scale`.

    Returns the features, float32 [B, C, H, W], and int32 [B], 0 where a value is not finite.
    """
    batch, channels, height, width = images.shape
    images, plane = images.contiguous(), height * width
    ranges = torch.full((batch, 3), _UNSEEN, dtype=torch.int32, device=images.device)
    features = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    parts, blocks = triton.cdiv(channels * plane, _BLOCK * _RANGE_BLOCKS), triton.cdiv(plane, _BLOCK)
    with launching(images.device):
        range_kernel[(batch * parts,)](
            images, ranges, channels * plane, parts, BLOCK=_BLOCK, BLOCKS=_RANGE_BLOCKS, num_warps=4
        )
        # Without fused multiply-adds the numbers are those of the CPU backend, bit for bit.
        features_kernel[(batch * blocks,)](
            images, ranges, features, plane, blocks, scale, CHANNELS=channels, LAB=lab, BLOCK=_BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return features, ranges[:, 2]


def start_centers(
    features: torch.Tensor, number: int, first: tuple[int, int], step: tuple[int, int], gradient: bool
) -> torch.Tensor:
    """Return centers [y, x, colors...] before the first assignment, float32 [B, N, 2 + C].

    They are `number` positions in raster order, from `first` on in intervals of `step`, with `gradient` moved
    by `slic.lowest_gradient`.
    """
    batch, channels, height, width = features.shape
    centers = torch.empty(batch, number, 2 + channels, dtype=torch.float32, device=features.device)
    columns = triton.cdiv(width - first[1], step[1])
    with launching(features.device):
        centers_kernel[(batch * triton.cdiv(number, _CENTERS),)](
            features, centers, height, width, number, columns, *first, *step, CHANNELS=channels,
            GRADIENT=gradient, BLOCK=_CENTERS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return centers


def cluster(
    features: torch.Tensor,
    centers: torch.Tensor,
    step_y: int,
    step_x: int,
    weight: np.float32,
    iterations: int,
    tolerance: float,
    labels: torch.Tensor,
) -> None:
    """Cluster features around centers; parameters are those of `slic_cpu.cluster`.

    Nothing waits for the device: programs of an image that is done return at once.
    """
    batch, channels, height, width = features.shape
    n_centers = centers.shape[1]
    cells = (triton.cdiv(height, step_y), triton.cdiv(width, step_x))
    tiles = triton.cdiv(height, _TILE_Y) * triton.cdiv(width, _TILE_X)
    # Heads of two iterations, then the flags of all; rows of whole 16 bytes, as the compiler is told of them.
    lists, images = (-(-number // 4) * 4 for number in (batch * cells[0] * cells[1], batch))
    flags_from = 2 * lists
    states = labels.new_full((flags_from + (iterations + 1) * _FLAGS.value * images,), -1)
    heads = states[:lists], states[lists:flags_from]
    flags = states[flags_from:].view(iterations + 1, _FLAGS.value, images)
    following, counts = labels.new_empty(2, batch, triton.cdiv(n_centers, 4) * 4)
    geometry = (height, width, n_centers, step_y, step_x, *cells)
    with launching(features.device):
        bin_kernel[(batch * triton.cdiv(n_centers, _CENTERS),)](
            centers, counts, heads[0], following, flags[0, _MOVED.value], *geometry[2:], CHANNELS=channels,
            BLOCK=_CENTERS, num_warps=4,
        )  # fmt: skip
        for i in range(iterations):
            now, later = heads[i % 2], heads[(i + 1) % 2]
            assign_kernel[(batch * tiles,)](
                features, centers, now, following, labels, flags[i, _MOVED.value], flags[i + 1], images,
                *geometry, float(weight), CHANNELS=channels, TILE_Y=_TILE_Y, TILE_X=_TILE_X,
                num_warps=_ASSIGN_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
            if i < iterations - 1:
                update_kernel[(batch * n_centers,)](
                    features, centers, counts, now, later, following, labels, flags[i + 1], images, *geometry,
                    float(tolerance), CHANNELS=channels, CHANNELS_UP=triton.next_power_of_2(channels),
                    BLOCK=_UPDATE_BLOCK, num_warps=4, enable_fp_fusion=False,
                )  # fmt: skip
