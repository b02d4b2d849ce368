"""Structure tensor of images, by which patch-tensor methods tell corners from edges."""

from math import exp

import torch
import torch.nn.functional as F


def structure_tensor(
    images: torch.Tensor, smoothing: float, window: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the eigenvalues of the structure tensor at every pixel.

    Images and the products of their gradients are smoothed with 3 x 3 Gaussian kernels; the image is
    continued by its mirror image. Gradients are central differences, one-sided at the border, and 0 across a
    single pixel.

    Parameters
    ----------
    images : Tensor [B, H, W], float64
    smoothing, window : float > 0, pixels
        Standard deviations of the two kernels.

    Returns
    -------
    larger, smaller : Tensor [B, H, W]
        Squared gray levels per pixel squared.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.classical.structure import structure_tensor
    >>> ramp = torch.arange(5, dtype=torch.float64).expand(1, 5, 5)
    >>> larger, smaller = structure_tensor(ramp, 1.0, 1.0)
    >>> round(larger[0, 2, 2].item(), 6), round(smaller[0, 2, 2].item(), 6)
    (0.860066, 0.0)
    """
    smooth = _smoothed(images, smoothing)
    down, across = _gradient(smooth, 1), _gradient(smooth, 2)
    xx, xy, yy = (_smoothed(product, window) for product in (across * across, across * down, down * down))
    spread = ((xx - yy).square() + 4 * xy.square()).sqrt()
    return 0.5 * (xx + yy + spread), 0.5 * (xx + yy - spread)


def _smoothed(images: torch.Tensor, sigma: float) -> torch.Tensor:
    side = exp(-0.5 / sigma**2)
    line = torch.tensor([side, 1.0, side], dtype=images.dtype, device=images.device) / (1 + 2 * side)
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")  # one pixel of the mirror image
    return F.conv2d(padded, torch.outer(line, line)[None, None])[:, 0]


def _gradient(images: torch.Tensor, axis: int) -> torch.Tensor:
    if images.shape[axis] == 1:
        return torch.zeros_like(images)
    return torch.gradient(images, dim=axis)[0]
