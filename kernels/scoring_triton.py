"""Scores of any masks in Triton: one program measures a few masks of one target, one after another."""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import processors
from mclc_gpu.kernels.color_triton import gray_scales, ranked
from mclc_gpu.kernels.components_triton import (
    CLICK_COLUMN,
    CLICK_ROW,
    GEOMETRY,
    GRAIN,
    HEIGHT,
    IMAGE_HEIGHT,
    LEAST,
    LEFT,
    MOST,
    PAD,
    PITCH,
    PLANES,
    TOP,
    WIDTH,
    background,
    block_shape,
    box_levels,
    geometry_of,
    gray_levels,
    score_of,
    target_seed,
    window_pixels,
)
from mclc_gpu.kernels.config import ComponentConfig
from mclc_gpu.kernels.packed import PackedImages

# Columns of the table of parts, in the order of `_parts`: relative to the target's window.
_PART_TOP, _PART_LEFT, _PART_HEIGHT, _PART_WIDTH, _PART_OFFSET, _DARK, _PART = (
    tl.constexpr(column) for column in range(7)
)
_MASKS = tl.constexpr(16)  # that share a program's work of reading the window
_PROGRAMS_PER_PROCESSOR = 4
_BLOCK = tl.constexpr(256)


@triton.jit
def load_mask(p_mask, p_join, g, part, PIXELS: tl.constexpr):
    """The window's pixels that the mask holds, noted in `p_join`; and whether they can have a score."""
    _, y, x, inside, place = window_pixels(g, PIXELS)
    y -= tl.load(part + _PART_TOP).to(tl.int32)
    x -= tl.load(part + _PART_LEFT).to(tl.int32)
    height = tl.load(part + _PART_HEIGHT).to(tl.int32)
    width = tl.load(part + _PART_WIDTH).to(tl.int32)
    covered = inside & (y >= 0) & (x >= 0) & (y < height) & (x < width)
    member = covered & (tl.load(p_mask + (y * width + x), covered, 0) > 0)
    tl.store(p_join + place, 1 - member.to(tl.uint8), inside)
    _, row, column, _, _ = window_pixels(g, PIXELS)
    row += tl.load(g + TOP).to(tl.int32)
    column += tl.load(g + LEFT).to(tl.int32)
    cut = ((y == 0) & (row > 0)) | ((y == height - 1) & (row < tl.load(g + IMAGE_HEIGHT).to(tl.int32) - 1))
    cut |= ((x == 0) & (column > 0)) | ((x == width - 1) & (column < tl.load(g + PITCH).to(tl.int32) - 1))
    return member, tl.max((member & cut).to(tl.int32), 0) == 0


@triton.jit
def border_count(g, member, PIXELS: tl.constexpr):
    """How many pixels of a mask lie on the image's border."""
    _, y, x, _, _ = window_pixels(g, PIXELS)
    row = y + tl.load(g + TOP).to(tl.int32)
    column = x + tl.load(g + LEFT).to(tl.int32)
    at_border = (row == 0) | (row == tl.load(g + IMAGE_HEIGHT).to(tl.int32) - 1)
    at_border |= (column == 0) | (column == tl.load(g + PITCH).to(tl.int32) - 1)
    return tl.sum((member & at_border).to(tl.int32), 0)


@triton.jit
def outline(p_join, g, v, member, PIXELS: tl.constexpr):
    """Number and sum of gray levels of the pixels on both sides of the outline: inner, then outer ones."""
    stride = tl.load(g + WIDTH).to(tl.int32) + 2 * PAD
    _, y, x, inside, place = window_pixels(g, PIXELS)
    south = inside & (y < tl.load(g + HEIGHT).to(tl.int32) - 1)
    east = inside & (x < tl.load(g + WIDTH).to(tl.int32) - 1)
    # Beyond the window lies nothing, neither of the mask nor beside it.
    up = tl.load(p_join + place - stride, inside & (y > 0), 2).to(tl.int32)
    down = tl.load(p_join + place + stride, south, 2).to(tl.int32)
    left = tl.load(p_join + place - 1, inside & (x > 0), 2).to(tl.int32)
    right = tl.load(p_join + place + 1, east, 2).to(tl.int32)
    inner = member & ((up == 1) | (down == 1) | (left == 1) | (right == 1))
    outer = inside & (member == 0) & ((up == 0) | (down == 0) | (left == 0) | (right == 0))
    inner_sum = tl.sum(tl.where(inner, v, 0), 0)
    outer_sum = tl.sum(tl.where(outer, v, 0), 0)
    return tl.sum(inner.to(tl.int32), 0), inner_sum, tl.sum(outer.to(tl.int32), 0), outer_sum


@triton.jit
def ring_level(p_join, g, plane, v, member, low, grain, PIXELS: tl.constexpr):
    """The median of the pixels 4..6 off the mask; `low` where there are none."""
    near, far = box_levels(p_join, g, plane, tl.where(member, 0, 1))
    ring = (far == 0) & (near == 1)
    size = tl.sum(ring.to(tl.int32), 0)
    median = low
    if size > 0:
        median = ranked(v, ring, (size - 1) // 2, grain)
    return median


@triton.jit
def mask_score(p_weights, p_join, g, plane, v, member, area, low, spread, grain, PIXELS: tl.constexpr):
    """Score of a mask of `area` >= 1 pixels, float64."""
    _, y, x, _, _ = window_pixels(g, PIXELS)
    rows = tl.sum(tl.where(member, y, 0), 0)
    columns = tl.sum(tl.where(member, x, 0), 0)
    peak = tl.max(tl.where(member, v, -1), 0)
    border = border_count(g, member, PIXELS)
    inner, inner_sum, outer, outer_sum = outline(p_join, g, v, member, PIXELS)
    ring = ring_level(p_join, g, plane, v, member, low, grain, PIXELS)
    return score_of(
        p_weights, area, rows, columns, peak, border, inner, inner_sum, outer, outer_sum, ring, spread,
        tl.load(g + CLICK_ROW), tl.load(g + CLICK_COLUMN), tl.load(g + LEAST), tl.load(g + MOST),
    )  # fmt: skip


@triton.jit
def scoring_kernel(
    p_data, p_scales, p_geometry, p_parts, p_weights, p_masks, p_join, p_scores,
    targets, masks, mask_pitch, plane, near, max_area,
    PIXELS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    p_join += program.to(tl.int64) * plane * PLANES
    portions = (masks + _MASKS - 1) // _MASKS
    mask_pitch = tl.full([], 0, tl.int64) + mask_pitch
    for item in range(program, targets * portions, tl.num_programs(0)):
        target = item // portions
        g = p_geometry + target * GEOMETRY
        part = p_parts + target * _PART
        v = gray_levels(p_data, p_scales, g, tl.load(part + _DARK), PIXELS)
        grain = tl.load(g + GRAIN).to(tl.int32)
        low, spread = background(v, g, grain)
        _, low = target_seed(v, g, near, low)
        # What lies around the window belongs to no mask.
        for start in range(0, plane * PLANES, PIXELS):
            at = start + tl.arange(0, PIXELS)
            tl.store(p_join + at, tl.full([PIXELS], 1, tl.uint8), at < plane * PLANES)
        first = item % portions * _MASKS
        for k in range(first, tl.minimum(first + _MASKS, masks)):
            tl.debug_barrier()
            p_mask = p_masks + k * mask_pitch + tl.load(part + _PART_OFFSET)
            member, whole = load_mask(p_mask, p_join, g, part, PIXELS)
            area = tl.sum(member.to(tl.int32), 0)
            result = tl.full([], float("-inf"), tl.float64)
            tl.debug_barrier()
            if whole & (area > 0) & (area <= max_area):
                result = mask_score(p_weights, p_join, g, plane, v, member, area, low, spread, grain, PIXELS)
            tl.store(p_scores + k * targets + target, result.to(tl.float32))
        # The next item's scratch goes where other threads may still be reading.
        tl.debug_barrier()


@triton.jit
def shares_kernel(p_masks, p_offsets, p_shares, p_sums, p_totals, targets, masks, mask_pitch):
    target = tl.program_id(0).to(tl.int64)
    pixel = tl.load(p_offsets + target) + tl.program_id(1) * _BLOCK + tl.arange(0, _BLOCK)
    inside = pixel < tl.load(p_offsets + target + 1)
    mask_pitch = tl.full([], 0, tl.int64) + mask_pitch
    sums = tl.load(p_sums + pixel, inside, 0.0)
    total = tl.load(p_totals + target)
    for k in range(masks):
        share = tl.load(p_shares + k * targets + target)
        member = tl.load(p_masks + k * mask_pitch + pixel, inside, 0) > 0
        sums += tl.where(member, share, 0.0)
        total += share
    tl.store(p_sums + pixel, sums, inside)
    tl.debug_barrier()
    tl.store(p_totals + target, total, tl.program_id(1) == 0)


def _parts(windows: torch.Tensor, parts: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The table of parts but for its last column, int64 [targets, 5], on the CPU."""
    columns = parts[:, 1] - windows[:, 1], parts[:, 2] - windows[:, 2], parts[:, 3], parts[:, 4], offsets[:-1]
    return torch.stack(columns, 1)


def score(
    images: "PackedImages",
    windows: torch.Tensor,
    mask_windows: torch.Tensor,
    offsets: torch.Tensor,
    areas: torch.Tensor,
    masks: torch.Tensor,
    dark: torch.Tensor,
    config: "ComponentConfig",
    scores: torch.Tensor,
) -> None:
    """Fill scores float32 [K, targets]."""
    device = images.data.device
    weights = (*config.score_weights(), config.category_weight)
    pixels, _, warps = block_shape(int((windows[:, 3] * windows[:, 4]).max()), config.levels)
    plane = int(((windows[:, 3] + 2 * PAD.value) * (windows[:, 4] + 2 * PAD.value)).max())
    items = len(windows) * -(-len(masks) // _MASKS.value)
    programs = min(items, processors(device) * _PROGRAMS_PER_PROCESSOR)
    parts = _parts(windows, mask_windows, offsets).to(device)
    scoring_kernel[(programs,)](
        images.data, gray_scales(images.data, images.table),
        geometry_of(images, windows, offsets, areas).to(device),
        torch.cat([parts, dark.to(device).long()[:, None]], 1),
        torch.tensor(weights, dtype=torch.float64, device=device), masks,
        torch.empty(programs * plane * PLANES.value, dtype=torch.uint8, device=device), scores,
        len(windows), len(masks), masks.shape[1], plane, config.near, config.max_area,
        PIXELS=pixels, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip


def add(
    masks: torch.Tensor, offsets: torch.Tensor, shares: torch.Tensor, sums: torch.Tensor, totals: torch.Tensor
) -> None:
    """Add shares to sums and totals; see `mclc_gpu.kernels.scoring.add_shares`."""
    blocks = triton.cdiv(int(offsets.diff().max()), _BLOCK.value)
    sizes = len(totals), len(masks), masks.shape[1]
    shares_kernel[(len(totals), blocks)](
        masks, offsets.to(masks.device), shares, sums, totals, *sizes, num_warps=4, enable_fp_fusion=False
    )
