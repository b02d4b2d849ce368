"""Dense-CRF mean field with exact Gaussian kernels, for batches of windows and for whole images."""

import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.config import CrfConfig
from mclc_gpu.kernels.mean_field import MAX_PIXELS, class_probabilities, in_pieces, of_window, relative_to
from mclc_gpu.kernels.packed import PackedImages, Windows


def dense_crf(
    potential: torch.Tensor,
    colors: torch.Tensor,
    windows: torch.Tensor,
    config: CrfConfig | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Refine class probabilities in a batch of windows of any sizes, each by itself.

    Mean field of the fully connected CRF with Potts compatibility: per iteration
    Q <- softmax(-unary + sum over both kernels of compat * K~ Q), from Q = softmax(-unary), all pixels at
    once. The kernels are exact: every pair of a window's pixels counts with its own weight. A window's
    result does not depend on the other windows.

    Parameters
    ----------
    potential : Tensor [pixels] or [classes, pixels], float32
        One dimension: probability of the second of two classes, in 0..1; the unary potentials are
        -log(max(p, floor)) of both classes. Two dimensions: the unary potentials of two classes or more. The
        windows' pixels follow one another, each window in row-major order.
    colors : Tensor [pixels, 1 or 3], uint8 or float32
        One channel counts as three equal ones.
    windows : Tensor [windows, 2], int64, on the CPU
        Height and width in pixels, at least 1; at most 2^22 pixels each. The time grows with their square.
    config : CrfConfig, optional
        Default: the published settings.
    backend : {"triton", "cpu"}, optional
        Default: by the tensors' device.

    Returns
    -------
    Tensor of the shape of `potential`, float32
        Probability of the second class, or of each class.

    Raises
    ------
    ValueError
        Shapes or dtypes that do not fit; values that are not finite or, as probabilities, not in 0..1. The
        check of the values waits for the device.
    RuntimeError
        The requested backend cannot run on the tensors' device.

    References
    ----------
    Kraehenbuehl and Koltun, NeurIPS 2011, arXiv:1210.5644.

    Examples
    --------
    A pixel that was missed, among others of its gray level:

    >>> probability = torch.full((25,), 0.9)
    >>> probability[12] = 0.1
    >>> gray = torch.full((25, 1), 100, dtype=torch.uint8)
    >>> bool(dense_crf(probability, gray, torch.tensor([[5, 5]])).gt(0.5).all())
    True
    """
    config = config or CrfConfig()
    chosen = resolve(backend, potential, colors)
    _check(potential, colors, windows)
    return _refined(potential, colors, windows.cpu().contiguous(), config, chosen)


def dense_crf_images(
    potential: torch.Tensor,
    images: torch.Tensor,
    config: CrfConfig | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Refine class probabilities of whole images of one size by `dense_crf`.

    Every pixel is connected with all others of its image.

    Parameters
    ----------
    potential : Tensor [B, H, W] or [B, classes, H, W], float32
        Probabilities of the second of two classes, or unary potentials.
    images : Tensor [B, C, H, W], uint8 or float32, C = 1 or 3
    config, backend
        See `dense_crf`.

    Returns
    -------
    Tensor of the shape of `potential`, float32

    Raises
    ------
    ValueError, RuntimeError
        See `dense_crf`.
    """
    if images.ndim != 4 or potential.ndim not in (3, 4):
        raise ValueError(
            f"images must be [B, C, H, W] and potential [B, H, W] or [B, classes, H, W], got "
            f"{list(images.shape)} and {list(potential.shape)}"
        )
    batch, channels, height, width = images.shape
    if (potential.shape[0], *potential.shape[-2:]) != (batch, height, width):
        raise ValueError(
            f"images and potential must agree in B, H and W, got {list(images.shape)} and "
            f"{list(potential.shape)}"
        )
    colors = images.permute(0, 2, 3, 1).reshape(-1, channels)
    windows = torch.tensor([[height, width]]).expand(batch if height * width else 0, 2)
    if potential.ndim == 3:
        flat = potential.reshape(-1)
        return dense_crf(flat, colors, windows, config, backend=backend).reshape(potential.shape)
    by_class = potential.transpose(0, 1)
    flat = by_class.reshape(potential.shape[1], -1)
    result = dense_crf(flat, colors, windows, config, backend=backend)
    return result.reshape(by_class.shape).transpose(0, 1).contiguous()


def window_colors(images: PackedImages, windows: Windows) -> torch.Tensor:
    """Return the colors of the pixels of windows of packed images, as `dense_crf` takes them.

    Parameters
    ----------
    images : PackedImages
    windows : Windows
        Each inside its image.

    Returns
    -------
    Tensor [pixels, 1 or 3] of the images' dtype, on their device
        One channel if all images have one; otherwise a one-channel image fills all three.
    """
    offset, _, _, channels, pitch, channel_pitch = images.table[windows.image].unbind(1)
    number = 3 if bool((channels == 3).any()) else 1
    if images.data.device.type == "cpu":
        from mclc_gpu.kernels import crf_cpu

        return crf_cpu.window_colors(images, windows, number)
    corner = offset + windows.top * pitch + windows.left
    columns = torch.stack([corner, pitch, windows.width, windows.offsets[:-1], channel_pitch])
    device = images.data.device
    counts = windows.sizes.to(device)
    start, pitch, width, first, channel_pitch = torch.repeat_interleave(columns.to(device), counts, dim=1)
    place = torch.arange(len(start), device=device) - first
    row = place // width
    address = start + row * pitch + place - row * width
    return torch.stack([images.data[address + c * channel_pitch] for c in range(number)], 1)


def crf_masks(
    tpm: torch.Tensor,
    images: PackedImages,
    windows: Windows,
    config: CrfConfig | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Select the pixels that a dense CRF on the windows' colors gives to the target.

    The CRF starts from TPM / max(TPM) of each window, as in the published code; its colors are gray levels
    0..255, images other than uint8 scaled by their window's own range. A window without any count has an
    empty mask. Nothing is checked, and nothing waits for the device.

    Parameters
    ----------
    tpm : Tensor [pixels of all windows], float32 or int32
        Probabilities, or counts of trials: numbers >= 0 of any unit.
    images : PackedImages
    windows : Windows
        Each inside its image.
    config : CrfConfig, optional
        Default: the published settings.
    backend : {"triton", "cpu"}, optional
        Default: by the tensors' device.

    Returns
    -------
    Tensor [pixels of all windows], bool

    Examples
    --------
    A pixel that was missed, among others of its gray level:

    >>> import numpy as np
    >>> images = PackedImages.pack([np.full((5, 5), 100, np.uint8)])
    >>> counts = torch.full((25,), 9, dtype=torch.int32)
    >>> counts[12] = 1
    >>> bool(crf_masks(counts, images, Windows.pack([(0, 0, 0, 5, 5, 2, 2, 0)])).all())
    True
    """
    config = config or CrfConfig()
    chosen = resolve(backend, tpm, images.data)
    if chosen == "triton" and config.iterations and tpm.numel():
        from mclc_gpu.kernels import crf_triton

        return crf_triton.masks(tpm, images, windows, config).view(torch.bool)
    sizes, colors, tpm = windows.sizes, window_colors(images, windows), tpm.to(torch.float32)
    if colors.dtype != torch.uint8:
        colors = _stretched(colors, sizes)
    top = of_window(tpm, sizes, "amax")
    probability = _refined(in_pieces(relative_to, tpm, top), colors, windows.shapes, config, chosen)
    return in_pieces(lambda p, t: (p > 0.5) & (t > 0), probability, top)


def _stretched(colors: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Scale colors [pixels, C] to 0..255 by their window's own range over all channels."""
    low = of_window(colors.amin(1), sizes, "amin")
    high = of_window(colors.amax(1), sizes, "amax")
    span = torch.where(high > low, high - low, 1.0)
    return (colors - low[:, None]) * (255.0 / span)[:, None]


def _refined(
    potential: torch.Tensor, colors: torch.Tensor, windows: torch.Tensor, config: CrfConfig, backend: str
) -> torch.Tensor:
    """Do what `dense_crf` does, with the input checked and the backend resolved."""
    two, iterates = potential.ndim == 1, config.iterations > 0 and potential.numel() > 0
    if two and iterates and backend == "triton":
        from mclc_gpu.kernels import crf_triton

        return crf_triton.run(potential, colors, windows, config)
    logits = energy = in_pieces(lambda piece: _energy(piece, config.floor), potential)
    if iterates and backend == "triton":
        from mclc_gpu.kernels import crf_triton

        logits = crf_triton.run(energy, colors, windows, config)
    elif iterates:
        from mclc_gpu.kernels import crf_cpu

        logits = crf_cpu.run(energy, colors, windows, config)
    probabilities = in_pieces(class_probabilities, logits)
    return probabilities[1] if two else probabilities


def _energy(potential: torch.Tensor, floor: float) -> torch.Tensor:
    """Return the first class's unary potential minus those of the others, [classes - 1, pixels]."""
    if potential.ndim == 1:
        potential = -torch.log(torch.stack([1 - potential, potential]).clamp(min=floor))
    return potential[:1] - potential[1:]


def _usable(potential: torch.Tensor) -> torch.Tensor:
    usable = torch.isfinite(potential)
    return usable if potential.ndim == 2 else usable & (potential >= 0) & (potential <= 1)


def _check(potential: torch.Tensor, colors: torch.Tensor, windows: torch.Tensor) -> None:
    if potential.ndim not in (1, 2) or potential.dtype != torch.float32:
        raise ValueError(
            f"potential must be float32 [pixels] or [classes, pixels], got {potential.dtype} "
            f"{list(potential.shape)}"
        )
    if potential.ndim == 2 and potential.shape[0] < 2:
        raise ValueError(f"potential must hold two classes or more, got {potential.shape[0]}")
    pixels = potential.shape[-1]
    if colors.dtype not in (torch.uint8, torch.float32) or colors.shape not in ((pixels, 1), (pixels, 3)):
        raise ValueError(
            f"colors must be uint8 or float32 [{pixels}, 1 or 3], got {colors.dtype} {list(colors.shape)}"
        )
    if windows.ndim != 2 or windows.shape[1] != 2 or windows.dtype != torch.int64:
        raise ValueError(f"windows must be int64 [windows, 2], got {windows.dtype} {list(windows.shape)}")
    if bool((windows < 1).any()) or int(windows.prod(1).sum()) != pixels:
        raise ValueError(
            f"windows must be at least 1 pixel high and wide and hold {pixels} pixels together, got "
            f"{int(windows.prod(1).sum())}"
        )
    if pixels and int(windows.prod(1).max()) > MAX_PIXELS:
        raise ValueError(f"a window holds at most {MAX_PIXELS} pixels, got {int(windows.prod(1).max())}")
    if not bool(in_pieces(lambda piece: _usable(piece).all()[None], potential).all()):
        raise ValueError(
            "potential must be finite" + (" probabilities in 0..1" if potential.ndim == 1 else "")
        )
    if colors.dtype == torch.float32 and not bool(torch.isfinite(colors).all()):
        raise ValueError("colors must be finite, got NaN or infinite values: replace them first")
