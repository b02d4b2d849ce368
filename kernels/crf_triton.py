"""Dense-CRF mean field in Triton: sums over Gaussian kernels whose weights are made in registers and dropped.

The first iteration takes three launches, each further one a single one. `start_kernel` reads colors and
probabilities, one program a window. `sums_kernel` adds up what a block of one window's pixels receives from
all pixels of the window, a block of these at a time: first without values, for the normalization, then with
them. That is attention without a running maximum, because no weight exceeds 1: memory holds nothing of size
pixels x pixels.
"""

import math

import numpy as np
import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching, upload
from mclc_gpu.kernels.config import NORMALIZATIONS, CrfConfig
from mclc_gpu.kernels.mean_field import MAX_PIXELS, differences
from mclc_gpu.kernels.packed import PackedImages, Windows

_QUERIES = 32
_KEYS = 32
_WARPS = 4
_START_BLOCK = 512
# Columns of the window table: first pixel; height and width; element of the data that holds the first color,
# elements from one row to the next and from one channel to the next (0: gray); pixels of all windows.
_COLUMNS = tl.constexpr(7)
# Weights of the smoothness kernel below 2^-40 are lost in a float32 sum of weights up to 1.
_NEGLIGIBLE_BITS = 40
_SYMMETRIC, _BEFORE, _AFTER, _NONE = (tl.constexpr(i) for i in range(len(NORMALIZATIONS)))
# Output of `sums_kernel`: normalization; logits; or what follows from the logits of two classes: difference
# of the probabilities, probability of the second class, its mask.
_NORM, _LOGIT, _BELIEF, _PROBABILITY, _MASK = (tl.constexpr(i) for i in range(5))
_OUTPUTS = {"logit": _LOGIT, "probability": _PROBABILITY, "mask": _MASK}


@triton.jit
def _belief(logit):
    """Return the probability of the second of two classes minus that of the first: tanh(logit / 2)."""
    power = tl.exp(-tl.abs(logit))
    half = tl.div_rn(1.0 - power, 1.0 + power)
    return tl.where(logit < 0, -half, half)


@triton.jit
def _color(p_color, inside, low, stretch, STRETCH: tl.constexpr):
    """Return colors as float32, with STRETCH scaled from a window's range to 0..255."""
    color = tl.load(p_color, inside, 0).to(tl.float32)
    return (color - low) * stretch if STRETCH else color


@triton.jit
def start_kernel(
    p_values, p_data, p_windows, p_energy, p_belief, p_colors, p_colored, color_scale, gray_scale, floor,
    TWO: tl.constexpr, RELATIVE: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Start a window: energies and differences of two classes (TWO), and scaled colors [3, pixels].

    Values [pixels] are probabilities, or with RELATIVE any numbers >= 0, of which the window's largest
    becomes 1. A window whose channels are all equal gets its first one alone, and `p_colored` 0.
    """
    window = tl.program_id(0).to(tl.int64)
    p_windows += window * _COLUMNS
    first = tl.load(p_windows)
    width = tl.load(p_windows + 2).to(tl.int32)
    size = tl.load(p_windows + 1).to(tl.int32) * width
    p_data += tl.load(p_windows + 3)
    pitch = tl.load(p_windows + 4)
    plane = tl.load(p_windows + 5)
    pixels = tl.load(p_windows + 6)
    top = tl.zeros([BLOCK], tl.float32)
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    differs = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        inside = pixel < size
        if TWO and RELATIVE:
            top = tl.maximum(top, tl.load(p_values + first + pixel, inside, 0).to(tl.float32))
        p_color = p_data + (pixel // width) * pitch + pixel % width
        color = tl.load(p_color, inside, 0)
        for c in tl.static_range(3):
            other = tl.load(p_color + c * plane, inside, 0)
            differs |= (other != color).to(tl.int32)
            if STRETCH:
                low = tl.minimum(low, tl.where(inside, other, float("inf")))
                high = tl.maximum(high, tl.where(inside, other, float("-inf")))
    colored = tl.max(differs, 0) != 0
    tl.store(p_colored + window, colored.to(tl.int32))
    scale = tl.where(colored, color_scale, gray_scale)
    # A window without any count has probabilities of 0.
    greatest = tl.maximum(tl.max(top, 0), 1.1754943508222875e-38)
    least = tl.min(low, 0)
    span = tl.max(high, 0) - least
    stretch = tl.div_rn(255.0, tl.where(span > 0, span, 1.0))
    for start in range(0, size, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        inside = pixel < size
        if TWO:
            p = tl.load(p_values + first + pixel, inside, 0).to(tl.float32)
            if RELATIVE:
                p = tl.div_rn(p, tl.zeros_like(p) + greatest)
            energy = tl.log(tl.maximum(p, floor)) - tl.log(tl.maximum(1.0 - p, floor))
            tl.store(p_energy + first + pixel, energy, inside)
            tl.store(p_belief + first + pixel, _belief(energy), inside)
        p_color = p_data + (pixel // width) * pitch + pixel % width
        tl.store(p_colors + first + pixel, _color(p_color, inside, least, stretch, STRETCH) * scale, inside)
        if colored:
            for c in tl.static_range(1, 3):
                color = _color(p_color + c * plane, inside, least, stretch, STRETCH)
                tl.store(p_colors + c * pixels + first + pixel, color * scale, inside)


@triton.jit
def _add_color_squares(p_colors, mine, k, in_keys, squares):
    """Add the squared distances [QUERIES, KEYS] of one channel's colors to squares."""
    d = mine[:, None] - tl.load(p_colors + k, in_keys, 0.0)[None, :]
    return tl.fma(d, d, squares)


@triton.jit
def _place(pixel, width, per_row, unit):
    """Return row and column of pixels below 2^22, in units of the bilateral kernel's exponent."""
    # Exact for these numbers: rounding moves the quotient by less than half a pixel.
    row = ((pixel.to(tl.float32) + 0.5) * per_row).to(tl.int32)
    return row.to(tl.float32) * unit, (pixel - row * width).to(tl.float32) * unit


@triton.jit
def _axis_sums(places, length, unit, sharper, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Return the row sums of the smoothness kernel along one axis, on which the queries have these places."""
    weights = tl.zeros([QUERIES, KEYS], tl.float32)
    for start in range(0, length, KEYS):
        k = start + tl.arange(0, KEYS)
        d = places[:, None] - tl.where(k < length, k.to(tl.float32) * unit, float("inf"))[None, :]
        weights += tl.exp2(d * d * -sharper)
    return tl.sum(weights, 1)


@triton.jit
def _factor(sums, NORMALIZATION: tl.constexpr):
    """Return what is kept of a kernel's row sums: a factor, or the sums where their mean counts."""
    if NORMALIZATION == _SYMMETRIC:
        return tl.div_rn(tl.zeros_like(sums) + 1.0, tl.sqrt_rn(sums))
    if NORMALIZATION == _NONE:
        return sums
    return tl.div_rn(tl.zeros_like(sums) + 1.0, sums)


@triton.jit
def _message(p_factors, q, size, in_window, sums, NORMALIZATION: tl.constexpr, KEYS: tl.constexpr):
    """Return weighted sums of values after the factor on sums; `p_factors` are those of a window."""
    if NORMALIZATION == _BEFORE:
        return sums
    if NORMALIZATION != _NONE:
        return tl.load(p_factors + q, in_window, 0.0) * sums
    total = tl.zeros([KEYS], tl.float64)
    for start in range(0, size, KEYS):
        k = start + tl.arange(0, KEYS)
        total += tl.load(p_factors + k, k < size, 0.0).to(tl.float64)
    return (size.to(tl.float64) / tl.sum(total, 0)).to(tl.float32) * sums


@triton.jit
def _values(p_factors, belief, k, in_keys, NORMALIZATION: tl.constexpr):
    """Return the values that keys send: their beliefs after the factor on values."""
    if NORMALIZATION != _AFTER and NORMALIZATION != _NONE:
        return tl.load(p_factors + k, in_keys, 0.0) * belief
    return belief


@triton.jit(do_not_specialize=["labels", "reach"])
def sums_kernel(
    p_colors, p_colored, p_belief, p_energy, p_factors, p_out, p_windows, p_items, labels, unit, sharper,
    reach, bilateral_compat, smooth_compat, NORMALIZATION: tl.constexpr, OUTPUT: tl.constexpr,
    BILATERAL: tl.constexpr, SMOOTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Compute the factors [2, pixels] of both kernels (OUTPUT: _NORM), or what follows from their messages.

    Beliefs, energies and the output are [classes - 1, pixels], factors bilateral, then smoothness.
    """
    item = tl.program_id(0) // labels
    label = (tl.program_id(0) % labels).to(tl.int64)
    window = tl.load(p_items + item.to(tl.int64) * 2).to(tl.int64)
    block = tl.load(p_items + item.to(tl.int64) * 2 + 1)
    p_windows += window * _COLUMNS
    first = tl.load(p_windows)
    width = tl.load(p_windows + 2).to(tl.int32)
    size = tl.load(p_windows + 1).to(tl.int32) * width
    pixels = tl.load(p_windows + 6)
    colored = tl.load(p_colored + window) != 0
    p_colors += first
    p_belief += label * pixels + first
    p_bilateral = p_factors + first
    p_smooth = p_bilateral + pixels
    q = block * QUERIES + tl.arange(0, QUERIES)
    in_window = q < size
    color0 = tl.load(p_colors + q, in_window, 0.0)
    in_color = q < tl.where(colored, size, 0)
    color1 = tl.load(p_colors + pixels + q, in_color, 0.0)
    color2 = tl.load(p_colors + 2 * pixels + q, in_color, 0.0)
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
        if OUTPUT != _NORM:
            belief = tl.load(p_belief + k, in_keys, 0.0)
        if BILATERAL:
            squares = _add_color_squares(p_colors, color0, k, in_keys, places)
            if colored:
                squares = _add_color_squares(p_colors + pixels, color1, k, in_keys, squares)
                squares = _add_color_squares(p_colors + 2 * pixels, color2, k, in_keys, squares)
            weights = tl.exp2(-squares)
            if OUTPUT == _NORM:
                bilateral += weights
            else:
                value = _values(p_bilateral, belief, k, in_keys, NORMALIZATION)
                bilateral = tl.fma(weights, value[None, :], bilateral)
        if SMOOTH and OUTPUT != _NORM:
            near = (start < near_last) & (start + KEYS > near_first)
            if near:
                weights = tl.exp2(places * -sharper)
                value = _values(p_smooth, belief, k, in_keys, NORMALIZATION)
                smoothed = tl.fma(weights, value[None, :], smoothed)
    bilateral_sum = tl.sum(bilateral, 1)
    smooth_sum = tl.sum(smoothed, 1)
    if OUTPUT == _NORM:
        if BILATERAL:
            bilateral_sum = tl.where(in_window, bilateral_sum, 1.0)
            tl.store(p_out + first + q, _factor(bilateral_sum, NORMALIZATION), in_window)
        if SMOOTH:
            # The sum over all pixels is a product: that over the rows times that over the columns.
            along_y = _axis_sums(q_y, size // width, unit, sharper, QUERIES, KEYS)
            smooth_sum = along_y * _axis_sums(q_x, width, unit, sharper, QUERIES, KEYS)
            smooth_sum = tl.where(in_window, smooth_sum, 1.0)
            tl.store(p_out + pixels + first + q, _factor(smooth_sum, NORMALIZATION), in_window)
    else:
        p_out += label * pixels + first + q
        logit = tl.load(p_energy + label * pixels + first + q, in_window, 0.0)
        if BILATERAL:
            message = _message(p_bilateral, q, size, in_window, bilateral_sum, NORMALIZATION, KEYS)
            logit = tl.fma(message, bilateral_compat, logit)
        if SMOOTH:
            message = _message(p_smooth, q, size, in_window, smooth_sum, NORMALIZATION, KEYS)
            logit = tl.fma(message, smooth_compat, logit)
        if OUTPUT == _LOGIT:
            tl.store(p_out, logit, in_window)
        elif OUTPUT == _BELIEF:
            tl.store(p_out, _belief(logit), in_window)
        else:
            power = tl.exp(-tl.abs(logit))
            probability = tl.div_rn(tl.where(logit < 0, power, 1.0), 1.0 + power)
            if OUTPUT == _PROBABILITY:
                tl.store(p_out, probability, in_window)
            else:
                tl.store(p_out, (probability > 0.5).to(tl.uint8), in_window)


def _items(sizes: np.ndarray) -> np.ndarray:
    """Return window and block of queries of each program, int32 [programs, 2].

    The largest windows come first, so that their programs do not run last and alone.
    """
    order = np.argsort(-sizes, kind="stable")
    blocks = -(-sizes[order] // _QUERIES)
    starts = np.repeat(np.cumsum(blocks) - blocks, blocks)
    return np.stack([np.repeat(order, blocks), np.arange(len(starts)) - starts], 1).astype(np.int32)


def _run(
    values: torch.Tensor | None,
    energy: torch.Tensor | None,
    data: torch.Tensor,
    places: np.ndarray,
    config: CrfConfig,
    output: str,
    relative: bool,
    stretch: bool,
) -> torch.Tensor:
    """Do all iterations, at least one.

    Parameters
    ----------
    values : Tensor [pixels], int32 or float32
        Of two classes; see `start_kernel`. None: `energy` [classes - 1, pixels] is given.
    data : Tensor, uint8 or float32
        Holds the colors.
    places : int64 [windows, 5]
        Height, width, first element of the data, elements from row to row and from channel to channel.
    output : {"logit", "probability", "mask"}
        The last two are those of the second of two classes.
    """
    device = data.device
    sizes = places[:, 0] * places[:, 1]
    ends = np.cumsum(sizes)
    pixels = int(ends[-1])
    geometry = np.column_stack([ends - sizes, places, np.full_like(sizes, pixels)])
    table, items = upload(device, torch.from_numpy(geometry), torch.from_numpy(_items(sizes)))
    programs = len(items)
    exponent = math.sqrt(0.5 * math.log2(math.e))
    color = exponent / config.bilateral_srgb
    shape = 1 if energy is None else len(energy), pixels
    two = energy is None
    if energy is None:
        energy = torch.empty(shape, dtype=torch.float32, device=device)
        belief = torch.empty_like(energy)
    else:
        belief = differences(energy)
    colors = torch.empty(3, pixels, dtype=torch.float32, device=device)
    colored = torch.empty(len(places), dtype=torch.int32, device=device)
    factors = torch.empty(2, pixels, dtype=torch.float32, device=device)
    numbers = (
        exponent / config.bilateral_sxy, (config.bilateral_sxy / config.gaussian_sxy) ** 2,
        math.ceil(min(config.gaussian_sxy * math.sqrt(2 * math.log(2) * _NEGLIGIBLE_BITS), MAX_PIXELS)),
        config.bilateral_compat, config.gaussian_compat,
    )  # fmt: skip
    flags = {
        "NORMALIZATION": NORMALIZATIONS.index(config.normalization),
        "BILATERAL": config.bilateral_compat > 0, "SMOOTH": config.gaussian_compat > 0,
        "QUERIES": _QUERIES, "KEYS": _KEYS, "num_warps": _WARPS,
    }  # fmt: skip

    def sums(out: torch.Tensor, labels: int, output: int) -> None:
        sums_kernel[(programs * labels,)](
            colors,
            colored,
            belief,
            energy,
            factors,
            out,
            table,
            items,
            labels,
            *numbers,
            OUTPUT=output,
            **flags,
        )

    with launching(device):
        start_kernel[(len(places),)](
            energy if values is None else values, data, table, energy, belief, colors, colored, color,
            color * math.sqrt(3), config.floor, TWO=two, RELATIVE=relative, STRETCH=stretch,
            BLOCK=_START_BLOCK, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        sums(factors, 1, _NORM.value)
        for _ in range(config.iterations - 1):
            following = torch.empty(shape, dtype=torch.float32, device=device)
            sums(following, shape[0], (_BELIEF if two else _LOGIT).value)
            belief = following if two else differences(following)
        out = torch.empty(shape, dtype=torch.uint8 if output == "mask" else torch.float32, device=device)
        sums(out, shape[0], _OUTPUTS[output].value)
    return out


def run(values: torch.Tensor, colors: torch.Tensor, windows: torch.Tensor, config: CrfConfig) -> torch.Tensor:
    """Return probabilities of the second of two classes, from those before the first iteration.

    Parameters
    ----------
    values : Tensor [pixels] or [classes - 1, pixels], float32
        One dimension: probabilities. Two dimensions: logits relative to the first class, which are also
        what is returned.
    colors, windows, config
        See `mclc_gpu.kernels.crf.dense_crf`; one iteration at least.
    """
    planes = colors.t().contiguous()
    height, width = windows.numpy().T
    first = np.cumsum(height * width) - height * width
    plane = planes.shape[1] if len(planes) == 3 else 0
    places = np.column_stack([height, width, first, width, np.full_like(width, plane)])
    if values.ndim == 1:
        return _run(values.contiguous(), None, planes, places, config, "probability", False, False)[0]
    return _run(None, values.contiguous(), planes, places, config, "logit", False, False)


def masks(values: torch.Tensor, images: PackedImages, windows: Windows, config: CrfConfig) -> torch.Tensor:
    """Return masks, uint8 [pixels]; see `mclc_gpu.kernels.crf.crf_masks`. One iteration at least."""
    offset, _, _, _, pitch, plane = images.table.numpy()[windows.image.numpy()].T
    table = windows.table.numpy()
    top, left, height, width = (table[:, column] for column in range(1, 5))
    places = np.column_stack([height, width, offset + top * pitch + left, pitch, plane])
    stretch = images.data.dtype != torch.uint8
    return _run(values, None, images.data, places, config, "mask", True, stretch)[0]
