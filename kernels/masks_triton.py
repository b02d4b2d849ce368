"""Probability maps of windows and their masks in Triton: a program for each window."""

import numpy as np
import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching, upload
from mclc_gpu.kernels.config import TPM_ONE

# Columns of the geometry table: first value, first pixel, height, width, votes, divisor, box.
(_VALUE, _PIXEL, _HEIGHT, _WIDTH, _VOTES, _DIVISOR, _TOP, _BOTTOM, _LEFT, _RIGHT, _GEOMETRY) = (
    tl.constexpr(column) for column in range(11)
)
_ONE = tl.constexpr(float(TPM_ONE))
_WHOLE = tl.constexpr(float(1 << 23))  # numbers of float32 from here on are whole
_LEAST = tl.constexpr(float(np.finfo(np.float32).tiny))
_BLOCK = 1024


@triton.jit
def _probability(p_values, g, pixel, size, width):
    """Return the probability of some pixels of a window: the mean over its votes, 0 outside its box."""
    inside = pixel < size
    votes = tl.load(g + _VOTES).to(tl.int32)
    one = tl.zeros_like(pixel).to(tl.float32) + tl.load(g + _DIVISOR).to(tl.float32)
    share = tl.div_rn(1.0, votes.to(tl.float32))
    p_values += tl.load(g + _VALUE) + pixel
    mean = tl.zeros(pixel.shape, tl.float32)
    for _ in range(votes):
        mean += tl.div_rn(tl.load(p_values, inside, 0).to(tl.float32), one) * share
        p_values += size
    y = pixel // width
    x = pixel - y * width
    inside &= (y >= tl.load(g + _TOP)) & (y < tl.load(g + _BOTTOM))
    inside &= (x >= tl.load(g + _LEFT)) & (x < tl.load(g + _RIGHT))
    return tl.where(inside, mean, 0.0)


@triton.jit
def masks_kernel(p_values, p_geometry, p_tpm, p_levels, p_masks, level, BLOCK: tl.constexpr):
    """Make the maps of one window."""
    g = p_geometry + tl.program_id(0).to(tl.int64) * _GEOMETRY
    width = tl.load(g + _WIDTH).to(tl.int32)
    size = tl.load(g + _HEIGHT).to(tl.int32) * width
    start = tl.load(g + _PIXEL)
    greatest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, size, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        greatest = tl.maximum(greatest, _probability(p_values, g, pixel, size, width))
    top = tl.zeros([BLOCK], tl.float32) + tl.maximum(tl.max(greatest, 0), _LEAST)
    for first in range(0, size, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        inside = pixel < size
        probability = _probability(p_values, g, pixel, size, width)
        relative = tl.div_rn(probability, top)
        mask = (relative > 0) & (relative >= level)
        rounded = (probability * _ONE + _WHOLE) - _WHOLE  # half to even
        tl.store(p_tpm + start + pixel, probability, inside)
        tl.store(p_levels + start + pixel, rounded.to(tl.int32).to(tl.int16), inside)
        tl.store(p_masks + start + pixel, mask.to(tl.uint8), inside)


def run(
    values: torch.Tensor,
    geometry: np.ndarray,
    level: float,
    tpm: torch.Tensor,
    levels: torch.Tensor,
    masks: torch.Tensor,
) -> None:
    """Fill tpm, levels and masks, each [pixels]."""
    (table,) = upload(values.device, torch.from_numpy(geometry))
    with launching(values.device):
        # Without fused multiply-adds the maps are those of the CPU backend, bit for bit.
        masks_kernel[(len(geometry),)](
            values, table, tpm, levels, masks, level, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=False
        )
