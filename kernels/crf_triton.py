"""Dense-CRF mean field in Triton: sums over Gaussian kernels whose weights are made in registers and dropped.

A program adds up what a block of one window's pixels receives from all pixels of the window, a block of these
at a time: attention without a running maximum, because no weight exceeds 1. Memory holds nothing of size
pixels x pixels.
"""

import math

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.config import CrfConfig
from mclc_gpu.kernels.mean_field import MAX_PIXELS, differences

_QUERIES = 32
_KEYS = 32
_WARPS = 4
# Columns of the window table: first pixel, pixels, width, pixels of all windows; of the item table: window,
# block of queries.
_WINDOW = tl.constexpr(4)
_ITEM = tl.constexpr(2)
# Weights of the smoothness kernel below 2^-40 are lost in a float32 sum of weights up to 1.
_NEGLIGIBLE_BITS = 40


@triton.jit
def _color_squares(p_colors, q, k, in_window, in_keys, squares, pixels, CHANNELS: tl.constexpr):
    """Add the squared distances [QUERIES, KEYS] of the colors to squares."""
    for c in tl.static_range(CHANNELS):
        mine = tl.load(p_colors + c * pixels + q, in_window, 0.0)
        other = tl.load(p_colors + c * pixels + k, in_keys, 0.0)
        d = mine[:, None] - other[None, :]
        squares = tl.fma(d, d, squares)
    return squares


@triton.jit
def _place(pixel, width, per_row, unit):
    """Return row and column of pixels below 2^22, in units of the bilateral kernel's exponent."""
    # Exact for these numbers: rounding moves the quotient by less than half a pixel.
    row = ((pixel.to(tl.float32) + 0.5) * per_row).to(tl.int32)
    return row.to(tl.float32) * unit, (pixel - row * width).to(tl.float32) * unit


@triton.jit
def sums_kernel(
    p_colors, p_values, p_energy, p_after, p_out, p_windows, p_items, unit, sharper, reach,
    CHANNELS: tl.constexpr, NORM: tl.constexpr, BILATERAL: tl.constexpr, SMOOTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Compute row sums of both kernels [2, pixels] (NORM), or logits [classes - 1, pixels] from messages.

    Values are [2, classes - 1, pixels], factors on the sums [2, pixels]: bilateral, then smoothness.
    """
    window = tl.load(p_items + tl.program_id(0).to(tl.int64) * _ITEM)
    block = tl.load(p_items + tl.program_id(0).to(tl.int64) * _ITEM + 1).to(tl.int32)
    label = tl.program_id(1).to(tl.int64)
    first = tl.load(p_windows + window * _WINDOW)
    size = tl.load(p_windows + window * _WINDOW + 1).to(tl.int32)
    width = tl.load(p_windows + window * _WINDOW + 2).to(tl.int32)
    pixels = tl.load(p_windows + window * _WINDOW + 3)
    p_colors += first
    p_bilateral = p_values + label * pixels + first
    p_smooth = p_bilateral + tl.num_programs(1) * pixels
    q = block * QUERIES + tl.arange(0, QUERIES)
    in_window = q < size
    per_row = tl.div_rn(1.0, width.to(tl.float32))
    q_y, q_x = _place(q, width, per_row, unit)
    rows = tl.minimum(reach, size // width)
    near_first = (block * QUERIES // width - rows) * width
    near_last = (tl.minimum(block * QUERIES + QUERIES, size) // width + rows + 1) * width
    bilateral = tl.zeros([QUERIES, KEYS], tl.float32)
    smoothed = tl.zeros([QUERIES, KEYS], tl.float32)
    for start in range(0, size, KEYS):
        k = start + tl.arange(0, KEYS)
        in_keys = k < size
        k_y, k_x = _place(k, width, per_row, unit)
        # Padding lies infinitely far away: its weights are 0.
        k_y = tl.where(in_keys, k_y, float("inf"))
        dy = q_y[:, None] - k_y[None, :]
        dx = q_x[:, None] - k_x[None, :]
        places = tl.fma(dx, dx, dy * dy)
        if BILATERAL:
            squares = _color_squares(p_colors, q, k, in_window, in_keys, places, pixels, CHANNELS)
            weights = tl.exp2(-squares)
            if NORM:
                bilateral += weights
            else:
                bilateral = tl.fma(weights, tl.load(p_bilateral + k, in_keys, 0.0)[None, :], bilateral)
        if SMOOTH:
            near = (start < near_last) & (start + KEYS > near_first)
            if near:
                weights = tl.exp2(places * -sharper)
                if NORM:
                    smoothed += weights
                else:
                    smoothed = tl.fma(weights, tl.load(p_smooth + k, in_keys, 0.0)[None, :], smoothed)
    bilateral_sum = tl.sum(bilateral, 1)
    smooth_sum = tl.sum(smoothed, 1)
    if NORM:
        tl.store(p_out + first + q, bilateral_sum, in_window)
        tl.store(p_out + pixels + first + q, smooth_sum, in_window)
    else:
        logit = tl.load(p_energy + label * pixels + first + q, in_window)
        if BILATERAL:
            logit = tl.fma(tl.load(p_after + first + q, in_window), bilateral_sum, logit)
        if SMOOTH:
            logit = tl.fma(tl.load(p_after + pixels + first + q, in_window), smooth_sum, logit)
        tl.store(p_out + label * pixels + first + q, logit, in_window)


def _factors(
    sums: torch.Tensor, sizes: torch.Tensor, normalization: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return factors [2, pixels] on the sums and on the values (None: 1), from the kernels' row sums."""
    if normalization == "symmetric":
        after = sums.rsqrt()
        return after, after
    if normalization == "after":
        return sums.reciprocal(), None
    if normalization == "before":
        return torch.ones_like(sums), sums.reciprocal()
    sizes = sizes.to(sums.device)
    means = torch.stack(
        [torch.segment_reduce(row.double(), "mean", lengths=sizes, unsafe=True) for row in sums]
    )
    return torch.repeat_interleave(means.reciprocal().float(), sizes, dim=1), None


def run(
    energy: torch.Tensor, colors: torch.Tensor, windows: torch.Tensor, config: "CrfConfig"
) -> torch.Tensor:
    """Return logits relative to the first class after all iterations; see `crf_cpu.run`."""
    device, pixels = energy.device, energy.shape[1]
    sizes = windows.prod(1)
    blocks = (sizes + _QUERIES - 1) // _QUERIES
    # The largest windows first, so that their programs do not run last and alone.
    order = torch.argsort(sizes, descending=True, stable=True)
    counts = blocks[order]
    chosen = torch.repeat_interleave(order, counts)
    block = torch.arange(len(chosen)) - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    items = torch.stack([chosen, block], 1).to(device)
    columns = [torch.cumsum(sizes, 0) - sizes, sizes, windows[:, 1], torch.full_like(sizes, pixels)]
    table = torch.stack(columns, 1).to(device)
    exponent = math.sqrt(0.5 * math.log2(math.e))
    # One channel stands for three equal ones.
    color = exponent / config.bilateral_srgb * math.sqrt(3 / colors.shape[1])
    scaled = colors.t().float().mul(color).contiguous()
    numbers = (
        exponent / config.bilateral_sxy, (config.bilateral_sxy / config.gaussian_sxy) ** 2,
        math.ceil(min(config.gaussian_sxy * math.sqrt(2 * math.log(2) * _NEGLIGIBLE_BITS), MAX_PIXELS)),
    )  # fmt: skip
    flags = {
        "CHANNELS": len(scaled), "BILATERAL": config.bilateral_compat > 0,
        "SMOOTH": config.gaussian_compat > 0, "QUERIES": _QUERIES, "KEYS": _KEYS, "num_warps": _WARPS,
    }  # fmt: skip
    sums = torch.empty(2, pixels, dtype=torch.float32, device=device)
    grid = (len(items), 1)
    sums_kernel[grid](scaled, scaled, energy, scaled, sums, table, items, *numbers, NORM=True, **flags)
    after, before = _factors(sums, sizes, config.normalization)
    compat = torch.tensor([config.bilateral_compat, config.gaussian_compat], device=device)
    after = after * compat[:, None]
    logits = energy
    for _ in range(config.iterations):
        values = differences(logits).expand(2, -1, -1)
        values = (values if before is None else before[:, None] * values).contiguous()
        logits = torch.empty_like(energy)
        sums_kernel[(len(items), len(energy))](
            scaled, values, energy, after, logits, table, items, *numbers, NORM=False, **flags
        )
    return logits
