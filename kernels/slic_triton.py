"""SLIC in Triton: assignment per tile of pixels, update per cluster, convergence kept on the device.

The distances are the float32 operations of the CPU backend in the same order and unfused, and coordinates are
summed as integers. Only the color sums run in another order: they may differ in the last bits, and near ties
with them.
"""

import numpy as np
import torch
import triton
import triton.language as tl

_TILE_Y, _TILE_X = 8, 32  # Rows of a warp's width: features and labels are read in whole sectors.
_ASSIGN_WARPS = 2  # Four pixels a thread share what a center costs.
_UPDATE_BLOCK = 512


@triton.jit
def reach(center, extent, size):
    """Return the half-open range of the rows (or columns) within `extent` of a center."""
    low = tl.maximum(center - extent, 0.0).to(tl.int32)
    high = tl.minimum(center + extent + 1.0, size.to(tl.float32)).to(tl.int32)
    return low, high


@triton.jit
def assign_kernel(
    p_features, p_centers, p_order, p_first, p_labels, p_active, p_changed, p_unreached, height, width,
    n_centers, cell_y, cell_x, cells_y, cells_x, weight, CHANNELS: tl.constexpr, TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):  # fmt: skip
    tiles_x = tl.cdiv(width, TILE_X)
    tiles = tl.cdiv(height, TILE_Y) * tiles_x
    i_image = (tl.program_id(0) // tiles).to(tl.int64)
    i_tile = tl.program_id(0) % tiles
    if tl.load(p_active + i_image) == 0:
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

    # Only centers at most two cells and a pixel away can reach the tile. They come cell by cell, not in
    # ascending order, so equal distances have to be decided by index.
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
    for row in range(row_first, row_last + 1):
        p_row = p_first + i_image * cells_y * cells_x + row * cells_x
        for i in range(tl.load(p_row + column_first), tl.load(p_row + column_last + 1)):
            k = tl.load(p_order + i)
            p_center = p_centers + (i_image * n_centers + k) * (2 + CHANNELS)
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

    p_labels += i_image * height * width + pixel
    before = tl.load(p_labels, m_inside, 0)
    m_reached = label < n_centers
    after = tl.where(m_reached, label, before)
    tl.store(p_labels, after, m_inside)
    changed = tl.max(((after != before) & m_inside).to(tl.int32), 0)
    unreached = tl.max((~m_reached & m_inside).to(tl.int32), 0)
    tl.atomic_max(p_changed + i_image, changed, changed > 0)
    tl.atomic_max(p_unreached + i_image, unreached, unreached > 0)


@triton.jit
def update_kernel(
    p_features, p_centers, p_counts, p_labels, p_active, p_unreached, p_moved, height, width, n_centers,
    cell_y, cell_x, tolerance, CHANNELS: tl.constexpr, CHANNELS_UP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_center = tl.program_id(0).to(tl.int64)
    i_image = i_center // n_centers
    k = (i_center % n_centers).to(tl.int32)
    if tl.load(p_active + i_image) == 0:
        return
    if tl.load(p_counts + i_center) == 0:
        return
    p_center = p_centers + i_center * (2 + CHANNELS)
    cy = tl.load(p_center)
    cx = tl.load(p_center + 1)
    y_min, y_max = reach(cy, (2 * cell_y).to(tl.float32), height)
    x_min, x_max = reach(cx, (2 * cell_x).to(tl.float32), width)
    # A pixel that no window reached has kept its label, and may lie anywhere.
    anywhere = tl.load(p_unreached + i_image) != 0
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
        dy = new_y - cy
        dx = new_x - cx
        moved = (dy * dy + dx * dx >= tolerance * tolerance).to(tl.int32)
        tl.atomic_max(p_moved + i_image, moved, moved > 0)


def _bin_centers(
    centers: torch.Tensor, counts: torch.Tensor, cell: tuple[int, int], cells: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort the centers by image and cell, dead ones last. Returns their order and where each cell begins."""
    image = torch.arange(len(centers), device=centers.device)[:, None]
    row = torch.div(centers[..., 0].long(), cell[0], rounding_mode="floor")
    column = torch.div(centers[..., 1].long(), cell[1], rounding_mode="floor")
    total = len(centers) * cells[0] * cells[1]
    key = torch.where(counts > 0, (image * cells[0] + row) * cells[1] + column, total).flatten()
    key, order = key.sort()
    first = torch.searchsorted(key, torch.arange(total + 1, device=centers.device))
    return (order % centers.shape[1]).int(), first


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
    active = torch.ones(batch, dtype=torch.int32, device=features.device)
    changed, unreached, moved = flags = active.new_zeros(3, batch)
    counts = active.new_ones(batch, n_centers)
    for iteration in range(iterations):
        order, first = _bin_centers(centers, counts, (step_y, step_x), cells)
        flags.zero_()
        assign_kernel[(batch * tiles,)](
            features, centers, order, first, labels, active, changed, unreached, height, width, n_centers,
            step_y, step_x, *cells, float(weight), CHANNELS=channels, TILE_Y=_TILE_Y, TILE_X=_TILE_X,
            num_warps=_ASSIGN_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        if iteration == iterations - 1:
            return
        active &= changed
        update_kernel[(batch * n_centers,)](
            features, centers, counts, labels, active, unreached, moved, height, width, n_centers,
            step_y, step_x, float(tolerance), CHANNELS=channels, CHANNELS_UP=triton.next_power_of_2(channels),
            BLOCK=_UPDATE_BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        active &= moved
