"""From target probability maps to masks, for a batch of windows on their device."""

import torch

from mclc_gpu.kernels.crf import CrfConfig, dense_crf, window_colours
from mclc_gpu.kernels.trials import PackedImages

_ROUNDING = (
    1e-6  # a TPM is a quotient of integers in float32; "reaches the level" must not hang on its last bit
)


def relative_tpm(tpm: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """TPM / max(TPM) of every window; zeros where a window has no count at all.

    Args:
        tpm: float32 [pixels of all windows], 0..1.
        sizes: int64 [windows], pixels of each window, on the CPU.
    """
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(tpm.device)
    top = torch.zeros(len(sizes), device=tpm.device).scatter_reduce(0, owner, tpm, "amax")
    return tpm / top.clamp(min=torch.finfo(torch.float32).tiny)[owner]


def threshold_masks(tpm: torch.Tensor, sizes: torch.Tensor, level: float) -> torch.Tensor:
    """Pixels whose relative TPM is above 0 and reaches `level` in 0..1: bool [pixels of all windows]."""
    relative = relative_tpm(tpm, sizes)
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
    relative = relative_tpm(tpm, sizes)
    return (dense_crf(relative, colours, windows[:, 3:5].contiguous(), config) > 0.5) & _counted(tpm, sizes)


def _counted(tpm: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Whether a pixel's window has any count."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(tpm.device)
    return (torch.zeros(len(sizes), device=tpm.device).scatter_reduce(0, owner, tpm, "amax") > 0)[owner]


def _stretched(colours: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Colours [pixels, C] scaled to 0..255 by their window's own range over all channels."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(colours.device)
    least, greatest = colours.amin(1), colours.amax(1)
    low = torch.zeros(len(sizes), device=colours.device).scatter_reduce(
        0, owner, least, "amin", include_self=False
    )
    high = torch.zeros(len(sizes), device=colours.device).scatter_reduce(
        0, owner, greatest, "amax", include_self=False
    )
    span = torch.where(high > low, high - low, 1.0)
    return (colours - low[owner, None]) * (255.0 / span)[owner, None]
