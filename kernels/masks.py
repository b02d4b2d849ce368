"""Probability maps of windows and their masks, from counts of trials or from maps of single marks."""

from typing import NamedTuple

import numpy as np
import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.packed import Windows

# A TPM is a quotient of integers in float32; "reaches the level" must not depend on its last bit.
_ROUNDING = 1e-6


class WindowMaps(NamedTuple):
    """Maps of some windows, each a Tensor [pixels of all windows] on the device.

    Attributes
    ----------
    tpm : float32
        Target probability maps, 0..1.
    levels : int16
        tpm * `TPM_ONE`, rounded half to even: the bits of an unsigned number.
    masks : uint8
        1 where a window's TPM is above 0 and reaches the threshold's share of its maximum.
    """

    tpm: torch.Tensor
    levels: torch.Tensor
    masks: torch.Tensor


def window_maps(
    values: torch.Tensor,
    windows: Windows,
    threshold: float,
    *,
    divisors: torch.Tensor | None = None,
    votes: torch.Tensor | None = None,
    boxes: torch.Tensor | None = None,
    backend: str | None = None,
) -> WindowMaps:
    """Make the maps of some windows. Nothing waits for the device.

    Parameters
    ----------
    values : Tensor [pixels], float32 or int32
        Values of the windows' pixels, one window after another.
    windows : Windows
    threshold : float in 0..1
        Least TPM of a mask, relative to the greatest TPM of its window.
    divisors : Tensor [windows], int64, on the CPU, optional
        Number at which a value means probability 1; default: 1.
    votes : Tensor [windows], int64, on the CPU, optional
        Number of maps of a window, behind one another in `values`, whose mean is its TPM; default: 1.
    boxes : Tensor [windows, 4], int64, on the CPU, optional
        First and last row, first and last column of the window (the last ones exclusive) outside which the
        probability is 0.
    backend : {"triton", "cpu"}, optional
        Default: by the device of `values`.

    Raises
    ------
    ValueError
        Wrong dtypes, or another number of values than the windows need.

    Examples
    --------
    >>> windows = Windows.pack([(0, 0, 0, 1, 3, 0, 0, 0)])
    >>> counts = torch.tensor([0, 2, 4], dtype=torch.int32)
    >>> maps = window_maps(counts, windows, 0.7, divisors=torch.tensor([5]))
    >>> maps.masks.tolist(), maps.levels[1].item()
    ([0, 0, 1], 26214)
    """
    chosen = resolve(backend, values)
    sizes = windows.table[:, 3:5].prod(1).numpy()
    number = np.ones_like(sizes) if votes is None else votes.numpy()
    ends, last = np.cumsum(sizes), np.cumsum(sizes * number)
    pixels = int(ends[-1]) if len(ends) else 0
    needed = int(last[-1]) if len(last) else 0
    if values.dtype not in (torch.float32, torch.int32) or values.shape != (needed,):
        raise ValueError(
            f"values must be float32 or int32 [{needed}], got {values.dtype} {list(values.shape)}"
        )
    geometry = np.empty((len(sizes), 10), np.int64)
    geometry[:, 0], geometry[:, 1] = last - sizes * number, ends - sizes
    geometry[:, 2:4] = windows.table[:, 3:5]
    geometry[:, 4], geometry[:, 5] = number, 1 if divisors is None else divisors
    if boxes is None:
        geometry[:, 6:] = 0
        geometry[:, 7], geometry[:, 9] = geometry[:, 2], geometry[:, 3]
    else:
        geometry[:, 6:] = boxes
    dtypes = torch.float32, torch.int16, torch.uint8
    maps = WindowMaps(*(torch.empty(pixels, dtype=dtype, device=values.device) for dtype in dtypes))
    if pixels:
        if chosen == "triton":
            from mclc_gpu.kernels import masks_triton

            masks_triton.run(values, geometry, threshold - _ROUNDING, *maps)
        else:
            from mclc_gpu.kernels import masks_cpu

            masks_cpu.run(values, geometry, threshold - _ROUNDING, *maps)
    return maps
