"""Batched SLIC superpixels: the paper's linear clustering (eq. 1-4) of images of any size."""

import numpy as np
import torch

from mclc_gpu.kernels import connectivity
from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.color import rgb_to_lab
from mclc_gpu.kernels.grid import grid_centres, lowest_gradient, window_steps

STARTS = ("grid", "gradient")
_DTYPES = (torch.float32, torch.uint8, torch.uint16)


def slic(
    images: torch.Tensor,
    n_segments: int = 100,
    compactness: float = 10.0,
    max_iterations: int = 10,
    tolerance: float = 0.0,
    start: str = "grid",
    lab: bool | None = None,
    enforce_connectivity: bool = True,
    min_size_factor: float = 0.5,
    max_size_factor: float = 3.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Segment a batch of images of one size into superpixels.

    With the defaults the segments are those of scikit-image's ``slic`` on a float32 image with
    ``start_label=0``.

    Parameters
    ----------
    images : Tensor [B, C, H, W], float32, uint8 or uint16
        Any range: each image is rescaled to 0..1 over all its channels (a constant image to zeros).
    n_segments : int
        Clusters wanted, N; the start grid may hold fewer or more.
    compactness : float
        Weight of distance in space against distance in colour (mu_c / mu_s of eq. 3); colours are divided by
        it.
    max_iterations : int
        Assignments at most. An image whose labels no longer change is done earlier, with the same result.
    tolerance : float
        T in pixels: an image is done when all its centres moved by less (L2, eq. 4). 0 turns it off.
    start : {"grid", "gradient"}
        Centres on a regular grid with colour 0, so that the first assignment asks for space alone; or moved
        to the lowest gradient of their 3 x 3 neighbourhood (`grid.lowest_gradient`), with the colour found
        there.
    lab : bool, optional
        Convert RGB to CIELAB first. Default: for three channels.
    enforce_connectivity : bool
        Join pieces smaller than ``min_size_factor`` mean segments to a neighbour and cut floods at
        ``max_size_factor`` mean segments (`connectivity.enforce_connectivity`).
    backend : {"triton", "cpu"}, optional
        Default: by the tensor's device.

    Returns
    -------
    Tensor [B, H, W], int32
        Segment of each pixel, from 0. Without connectivity enforcement: the cluster's index, in raster order
        of the start grid.

    Raises
    ------
    ValueError
        Wrong shape, dtype or setting; NaN or infinite values (asking for them waits for the device).

    Notes
    -----
    D^2 = |colour difference|^2 / compactness^2 + |position difference|^2 / S^2 with S the larger interval
    of the grid; a pixel takes the centre of least D among those whose window of +-2 intervals reaches it,
    of several the one with the lowest index, and keeps its label if no window reaches it. A cluster without
    pixels takes no further part. The CPU backend repeats scikit-image's float32 operations bit for bit from
    the features on; the Triton backend sums the clusters' means in another order, so that near ties may
    fall differently.

    References
    ----------
    Achanta et al., TPAMI 2012, doi:10.1109/TPAMI.2012.120.
    """
    if n_segments < 1:
        raise ValueError(f"n_segments must be above 0, got {n_segments}")
    chosen = resolve(backend, images)
    labels, centres = cluster_images(
        images, n_segments, compactness, max_iterations, tolerance, start, lab, True, chosen
    )
    if not enforce_connectivity or labels.numel() == 0:
        return labels
    size = labels[0].numel() / centres
    return connectivity.relabel(labels, int(min_size_factor * size), int(max_size_factor * size), chosen)


def cluster_images(
    images: torch.Tensor,
    clusters: int,
    compactness: float,
    max_iterations: int,
    tolerance: float,
    start: str,
    lab: bool | None,
    windowed: bool,
    backend: str,
) -> tuple[torch.Tensor, int]:
    """The iterations of SLIC, or of K-means if not `windowed`, on a backend already resolved.

    Arguments are those of `slic`; without windows every centre reaches every pixel. Returns int32 labels
    [B, H, W] and the number of centres on the start grid (0 for images without pixels).
    """
    _check(images, compactness, max_iterations, tolerance, start, lab)
    batch, channels, height, width = images.shape
    labels = torch.zeros(batch, height, width, dtype=torch.int32, device=images.device)
    if images.numel() == 0:
        return labels, 0
    features = _features(images, compactness, channels == 3 if lab is None else lab, backend)
    ys, xs, step_y, step_x = grid_centres(height, width, clusters)
    centres = _start_centres(features, ys, xs, start)
    step = np.float32(max(step_y, step_x))
    # A window of two image sizes to each side holds the image, wherever its centre is.
    reach = window_steps(height, width, len(ys)) if windowed else (height, width)
    settings = (*reach, np.float32(1.0 / float(step * step)), max_iterations, tolerance)
    if backend == "triton":
        from mclc_gpu.kernels import slic_triton

        slic_triton.cluster(features, centres, *settings, labels)
    else:
        from mclc_gpu.kernels import slic_cpu

        slic_cpu.cluster(
            features.numpy(), centres.numpy(), *settings, labels.numpy(),
            double_sums=not windowed, move_last=False,
        )  # fmt: skip
    return labels, len(ys)


def _check(
    images: torch.Tensor,
    compactness: float,
    max_iterations: int,
    tolerance: float,
    start: str,
    lab: bool | None,
) -> None:
    if images.ndim != 4 or images.dtype not in _DTYPES:
        raise ValueError(
            f"images must be float32, uint8 or uint16 [B, C, H, W], got {images.dtype} {list(images.shape)}"
        )
    if lab and images.shape[1] != 3:
        raise ValueError(f"lab needs images of 3 channels, got {images.shape[1]}: pass lab=False")
    for name, value, valid in (
        ("compactness", compactness, 0 < compactness < float("inf")),
        ("max_iterations", max_iterations, max_iterations >= 1),
        ("tolerance", tolerance, tolerance >= 0),
    ):
        if not valid:
            raise ValueError(
                f"{name} must be {'at least' if name == 'tolerance' else 'above'} 0, got {value}"
            )
    if start not in STARTS:
        raise ValueError(f"start must be one of {STARTS}, got {start!r}")


def _features(images: torch.Tensor, compactness: float, lab: bool, backend: str) -> torch.Tensor:
    """Rescaled colours divided by the compactness, float32 [B, C, H, W]."""
    # Every floating-point step is scikit-image's: subtract, divide, convert, multiply by the reciprocal.
    if backend == "triton":
        low, high = images.to(torch.float32).flatten(1).aminmax(dim=1)
    else:
        flat = images.numpy().reshape(len(images), -1)
        low, high = (torch.from_numpy(values.astype(np.float32)) for values in (flat.min(1), flat.max(1)))
    if not bool(torch.isfinite(low + high).all()):
        raise ValueError("images must be finite, got NaN or infinite values: replace them first")
    span = torch.where(high == low, 1.0, high - low)
    scale = 1.0 / compactness
    if backend == "cpu":
        from mclc_gpu.kernels import color_cpu

        return torch.from_numpy(color_cpu.features(images.numpy(), low.numpy(), span.numpy(), scale, lab))
    features = (images.to(torch.float32) - low[:, None, None, None]) / span[:, None, None, None]
    if lab:
        features = rgb_to_lab(features, backend)
    return (features * scale).contiguous()


def _start_centres(features: torch.Tensor, ys: np.ndarray, xs: np.ndarray, start: str) -> torch.Tensor:
    """Centres [y, x, colours...] before the first assignment, float32 [B, N, 2 + C]."""
    y, x = torch.from_numpy(ys).to(features.device), torch.from_numpy(xs).to(features.device)
    if start == "gradient":
        return lowest_gradient(features, y.long(), x.long())
    centres = features.new_zeros(len(features), len(ys), 2 + features.shape[1])
    centres[:, :, 0], centres[:, :, 1] = y, x
    return centres
