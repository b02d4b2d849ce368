"""sRGB to CIELAB, and the gray scale of the component vote."""

import numpy as np
import torch

from mclc_gpu.kernels.backend import resolve


def rgb_to_lab(image: torch.Tensor, backend: str | None = None) -> torch.Tensor:
    """Convert sRGB to CIELAB.

    Parameters
    ----------
    image : Tensor [B, 3, H, W], float32
        sRGB in 0..1.
    backend : {"triton", "cpu"}, optional
        Default: by the tensor's device.

    Returns
    -------
    Tensor [B, 3, H, W], float32
        L in 0..100, a and b roughly in -128..127. Relative error of the power and the cube root below 1e-6.

    Raises
    ------
    ValueError
        Wrong shape or dtype.

    References
    ----------
    IEC 61966-2-1:1999 (sRGB); CIE 15:2004 (L*a*b*).

    Examples
    --------
    >>> white = torch.ones(1, 3, 1, 1)
    >>> [round(abs(value)) for value in rgb_to_lab(white).flatten().tolist()]
    [100, 0, 0]
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.dtype != torch.float32:
        raise ValueError(f"image must be float32 [B, 3, H, W], got {image.dtype} {list(image.shape)}")
    image = image.contiguous()
    if image.numel() == 0:
        return torch.empty_like(image)
    if resolve(backend, image) == "triton":
        from mclc_gpu.kernels import color_triton

        out = torch.empty_like(image)
        color_triton.launch(image, out)
        return out
    from mclc_gpu.kernels import color_cpu

    zeros = np.zeros(len(image), np.float32)
    return torch.from_numpy(color_cpu.features(image.numpy(), zeros, zeros + 1, 1.0, True))
