"""Probability maps of windows and their masks in numba."""

from functools import partial

import numpy as np
import torch

from mclc_gpu.kernels.config import TPM_ONE
from mclc_gpu.kernels.jit_cpu import compiled, spread

F = np.float32
U = np.uintp  # Signed indices would be checked for wrap-around.
_LEAST = F(np.finfo(np.float32).tiny)


@compiled()
def _windows(values, geometry, level, tpm, levels, masks, first, last):
    """Make the maps of the windows first..last; see `masks.window_maps` for the geometry table."""
    for t in range(first, last):
        source, start, height, width, votes, divisor, top, bottom, left, right = geometry[t]
        size = U(height * width)
        own = tpm[start : start + height * width]
        one = F(divisor)
        for p in range(size):
            own[p] = F(values[U(source) + p]) / one
        if votes > 1:
            share = F(1) / F(votes)
            for p in range(size):
                own[p] *= share
            for j in range(1, votes):
                for p in range(size):
                    own[p] += F(values[U(source) + U(j) * size + p]) / one * share
        if bottom - top < height or right - left < width:
            for y in range(height):
                for x in range(width):
                    if not (top <= y < bottom and left <= x < right):
                        own[y * width + x] = F(0)
        greatest = _LEAST
        for p in range(size):
            greatest = max(greatest, own[p])
        for p in range(size):
            relative = own[p] / greatest
            masks[U(start) + p] = relative > F(0) and relative >= level
            levels[U(start) + p] = np.int16(np.int32(np.rint(own[p] * F(TPM_ONE))))


def run(
    values: torch.Tensor,
    geometry: np.ndarray,
    level: float,
    tpm: torch.Tensor,
    levels: torch.Tensor,
    masks: torch.Tensor,
) -> None:
    """Fill tpm, levels and masks, each [pixels]."""
    outputs = tpm.numpy(), levels.numpy(), masks.numpy()
    work = partial(_windows, values.numpy(), geometry, F(level), *outputs)
    spread(work, len(geometry), len(values))
