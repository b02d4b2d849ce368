"""From target probability maps to masks, for a batch of windows on their device."""

import numpy as np
import torch

from mclc_gpu.kernels.crf import CrfConfig, dense_crf, in_pieces, window_colours
from mclc_gpu.kernels.trials import PackedImages

_ROUNDING = (
    1e-6  # a TPM is a quotient of integers in float32; "reaches the level" must not hang on its last bit
)


def _of_window(values: torch.Tensor, sizes: torch.Tensor, reduce: str) -> torch.Tensor:
    """For every pixel the extreme value of its window.

    Args:
        values: float32 [pixels of all windows].
        sizes: int64 [windows], pixels of each window, on the CPU.
        reduce: "amax" or "amin".
    """
    if values.device.type == "cpu":
        # In one thread: see `in_pieces`.
        extreme = np.maximum if reduce == "amax" else np.minimum
        found = extreme.reduceat(values.numpy(), (torch.cumsum(sizes, 0) - sizes).numpy())
        return torch.from_numpy(np.repeat(found, sizes.numpy()))
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(values.device)
    empty = torch.zeros(len(sizes), device=values.device)
    return empty.scatter_reduce(0, owner, values, reduce, include_self=False)[owner]


def _relative(tpm: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """TPM / max(TPM); zeros where the window has no count at all."""
    return tpm / top.clamp(min=torch.finfo(torch.float32).tiny)


def threshold_masks(tpm: torch.Tensor, sizes: torch.Tensor, level: float) -> torch.Tensor:
    """Pixels whose relative TPM is above 0 and reaches `level` in 0..1: bool [pixels of all windows]."""
    relative = _relative(tpm, _of_window(tpm, sizes, "amax"))
    return (relative > 0) & (relative >= level - _ROUNDING)


def crf_masks(
    tpm: torch.Tensor, images: PackedImages, windows: torch.Tensor, config: CrfConfig
) -> torch.Tensor:
    """Pixels that a dense CRF on the window's colours gives to the target: bool [pixels of all windows].

    The CRF starts from the relative TPM, as in the published code; its colours are gray levels 0..255, images
    other than uint8 scaled by their window's own range. A window without any count has an empty mask.

    Args:
        tpm: float32 [pixels of all windows], 0..1.
        images: The images the windows lie in.
        windows: int64 [windows, 5 or more], on the CPU: image, top, left, height, width.
        config: Settings of the CRF.
    """
    sizes = windows[:, 3] * windows[:, 4]
    colours = window_colours(images, windows)
    if colours.dtype != torch.uint8:
        colours = _stretched(colours, sizes)
    top = _of_window(tpm, sizes, "amax")
    relative = in_pieces(_relative, tpm, top)
    probability = dense_crf(relative, colours, windows[:, 3:5].contiguous(), config)
    return in_pieces(lambda p, t: (p > 0.5) & (t > 0), probability, top)


def _stretched(colours: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Colours [pixels, C] scaled to 0..255 by their window's own range over all channels."""
    low = _of_window(colours.amin(1), sizes, "amin")
    high = _of_window(colours.amax(1), sizes, "amax")
    span = torch.where(high > low, high - low, 1.0)
    return (colours - low[:, None]) * (255.0 / span)[:, None]
