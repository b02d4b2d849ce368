"""SLIC superpixels and K-means on batches of images, and the connectivity of segments (paper, eq. 1-4).

Both cluster an image's pixels by color and position around centers that start on a grid; they differ in how
far a center reaches. `slic` and `kmeans` come first, then `enforce_connectivity`, then their common steps.
"""

import numpy as np
import torch
from torch.nn import functional

from mclc_gpu.kernels.backend import resolve

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
        Number of clusters N; the start grid may hold fewer or more.
    compactness : float
        Weight of distance in space against distance in color (mu_c / mu_s of eq. 3); colors are divided by
        it.
    max_iterations : int
        Assignments at most. An image whose labels no longer change is done earlier, with the same result.
    tolerance : float
        T in pixels: an image is done when all its centers moved by less (L2, eq. 4). 0 turns it off.
    start : {"grid", "gradient"}
        Centers on a regular grid with color 0, so that the first assignment asks for space alone; or moved
        to the lowest gradient of their 3 x 3 neighborhood (`lowest_gradient`), with the color found there.
    lab : bool, optional
        Convert RGB to CIELAB first. Default: for three channels.
    enforce_connectivity : bool
        Join pieces smaller than ``min_size_factor`` mean segments to a neighbor and cut floods at
        ``max_size_factor`` mean segments (`enforce_connectivity`).
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
        Wrong shape, dtype or setting; NaN or infinite values. The check of the values waits for
        the device.

    Notes
    -----
    D^2 = |color difference|^2 / compactness^2 + |position difference|^2 / S^2 with S the larger interval
    of the grid; a pixel takes the center of least D among those whose window of +-2 intervals reaches it,
    of several the one with the lowest index, and keeps its label if no window reaches it. A cluster without
    pixels takes no further part. The CPU backend repeats scikit-image's float32 operations bit for bit from
    the features on; the Triton backend sums the clusters' means in another order, so that near ties may
    fall differently.

    References
    ----------
    Achanta et al., TPAMI 2012, doi:10.1109/TPAMI.2012.120.

    Examples
    --------
    A dark and a bright half:

    >>> image = torch.zeros(1, 1, 16, 32)
    >>> image[..., 16:] = 1
    >>> slic(image, n_segments=2, compactness=0.1)[0, 8, ::4].tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    if n_segments < 1:
        raise ValueError(f"n_segments must be above 0, got {n_segments}")
    chosen = resolve(backend, images)
    labels, centers, finite = _cluster(
        images, n_segments, compactness, max_iterations, tolerance, start, lab, True, chosen
    )
    if enforce_connectivity and labels.numel():
        size = labels[0].numel() / centers
        labels = _relabel(labels, int(min_size_factor * size), int(max_size_factor * size), chosen)
    _refuse_infinite(finite)
    return labels


def kmeans(
    images: torch.Tensor,
    n_clusters: int,
    compactness: float = 20.0,
    max_iterations: int = 10,
    tolerance: float = 0.0,
    lab: bool | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Cluster the pixels of each image by color and position.

    SLIC's features, start grid, distance (eq. 3) and update (eq. 4), but every center reaches every pixel.

    Parameters
    ----------
    images : Tensor [B, C, H, W], float32, uint8 or uint16
        Any range: each image is rescaled to 0..1 over all its channels (a constant image to zeros).
    n_clusters : int
        Number of clusters; the start grid may hold fewer or more.
    compactness : float
        Weight of distance in space against distance in color, see `slic`.
    max_iterations : int
        Assignments at most. An image whose labels no longer change is done earlier, with the same result.
    tolerance : float
        T in pixels: an image is done when all its centers moved by less (L2, eq. 4). 0 turns it off.
    lab : bool, optional
        Convert RGB to CIELAB first. Default: for three channels.
    backend : {"triton", "cpu"}, optional
        Default: by the tensor's device.

    Returns
    -------
    Tensor [B, H, W], int32
        Cluster of each pixel: its index in raster order of the start grid. It may have lost all pixels.

    Raises
    ------
    ValueError
        Wrong shape, dtype or setting; NaN or infinite values. The check of the values waits for
        the device.

    Notes
    -----
    Work grows with pixels times clusters. For superpixels, whose number grows with the image, take `slic`.

    References
    ----------
    Lloyd, IEEE Transactions on Information Theory 28, 1982, doi:10.1109/TIT.1982.1056489.

    Examples
    --------
    >>> image = torch.zeros(1, 1, 16, 32)
    >>> image[..., 16:] = 1
    >>> kmeans(image, n_clusters=2, compactness=0.1)[0, 8, ::4].tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    if n_clusters < 1:
        raise ValueError(f"n_clusters must be above 0, got {n_clusters}")
    chosen = resolve(backend, images)
    labels, _, finite = _cluster(
        images, n_clusters, compactness, max_iterations, tolerance, "grid", lab, False, chosen
    )
    _refuse_infinite(finite)
    return labels


def enforce_connectivity(
    labels: torch.Tensor, min_size: int, max_size: int, backend: str | None = None
) -> torch.Tensor:
    """Number the connected pieces of each label, and hand pieces that are too small to a neighbor.

    The pixels are visited in raster order. A pixel without a final label seeds a piece: the 4-connected
    pixels of its label, taken breadth first (right, left, down, up) until there are `max_size` of them. A
    piece of `min_size` pixels or more takes the next free number. A smaller one takes the final label of the
    last pixel of another piece met on the way; if it met none, it keeps the next free number and shares it
    with the piece that comes after it.

    Parameters
    ----------
    labels : Tensor [B, H, W], int32
        Labels >= 0.
    min_size, max_size : int
        Pixels; `max_size` below 1 counts as 1.
    backend : {"triton", "cpu"}, optional
        Default: by the tensor's device. Both give the labels of scikit-image's SLIC with ``start_label=0``.

    Returns
    -------
    Tensor [B, H, W], int32
        Labels 0, 1, ... of each image, in raster order of the pieces' first pixels.

    Raises
    ------
    ValueError
        Wrong shape or dtype, or negative labels. The check of the labels waits for the device.

    Notes
    -----
    Sequential inside an image, parallel over images: a GPU does thousands of windows in the time
    of one, and has no advantage on one large image.

    References
    ----------
    Achanta et al., TPAMI 2012, doi:10.1109/TPAMI.2012.120, section 4.

    Examples
    --------
    The two pieces of label 0 get numbers of their own, and a single pixel joins a neighbor:

    >>> labels = torch.tensor([[[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 2]]], dtype=torch.int32)
    >>> enforce_connectivity(labels, min_size=2, max_size=6)[0].tolist()
    [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]]
    """
    if labels.ndim != 3 or labels.dtype != torch.int32:
        raise ValueError(f"labels must be int32 [B, H, W], got {labels.dtype} {list(labels.shape)}")
    chosen = resolve(backend, labels)
    if labels.numel() == 0:
        return torch.empty_like(labels)
    if int(labels.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(labels.min())}")
    return _relabel(labels, min_size, max_size, chosen)


def _relabel(labels: torch.Tensor, min_size: int, max_size: int, backend: str) -> torch.Tensor:
    """Do what `enforce_connectivity` does, on some labels >= 0 and with the backend resolved."""
    if backend == "triton":
        from mclc_gpu.kernels import connectivity_triton

        return connectivity_triton.launch(labels, min_size, max_size)
    from mclc_gpu.kernels import connectivity_cpu

    labels = labels.contiguous()
    out = torch.empty_like(labels)
    connectivity_cpu.relabel_batch(labels.numpy(), min_size, max_size, out.numpy())
    return out


def _cluster(
    images: torch.Tensor,
    clusters: int,
    compactness: float,
    max_iterations: int,
    tolerance: float,
    start: str,
    lab: bool | None,
    windowed: bool,
    backend: str,
) -> tuple[torch.Tensor, int, torch.Tensor | None]:
    """Cluster images by SLIC, or by K-means if not `windowed`, with the backend resolved.

    Arguments are those of `slic`; without windows every center reaches every pixel. Returns int32 labels
    [B, H, W], the number of centers on the start grid (0 for images without pixels), and what
    `_refuse_infinite` has to look at: a GPU goes on with values that are not finite, so that nothing waits.
    """
    _check(images, compactness, max_iterations, tolerance, start, lab)
    batch, channels, height, width = images.shape
    labels = torch.zeros(batch, height, width, dtype=torch.int32, device=images.device)
    if images.numel() == 0:
        return labels, 0, None
    lab = channels == 3 if lab is None else lab
    ys, xs, step_y, step_x = grid_centers(height, width, clusters)
    step = np.float32(max(step_y, step_x))
    # A window of two image sizes to each side holds the image, wherever its center is.
    reach = window_steps(height, width, len(ys)) if windowed else (height, width)
    settings = (*reach, np.float32(1.0 / float(step * step)), max_iterations, tolerance)
    if backend == "triton":
        from mclc_gpu.kernels import slic_triton

        features, finite = slic_triton.features_of(images, 1.0 / compactness, lab)
        grid = (int(ys[0]), int(xs[0])), (step_y, step_x)
        centers = slic_triton.start_centers(features, len(ys), *grid, start == "gradient")
        slic_triton.cluster(features, centers, *settings, labels)
    else:
        from mclc_gpu.kernels import slic_cpu

        features, finite = _features(images, compactness, lab), None
        centers = _start_centers(features, ys, xs, start)
        slic_cpu.cluster(
            features.numpy(), centers.numpy(), *settings, labels.numpy(),
            double_sums=not windowed, move_last=False,
        )  # fmt: skip
    return labels, len(ys), finite


def _refuse_infinite(finite: torch.Tensor | None) -> None:
    """Raise an error if an image has values that are not finite; `finite` [B] is waited for, and 0 for it."""
    if finite is not None and not bool(finite.cpu().all()):
        raise ValueError("images must be finite, got NaN or infinite values: replace them first")


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


def _features(images: torch.Tensor, compactness: float, lab: bool) -> torch.Tensor:
    """Return rescaled colors divided by the compactness, float32 [B, C, H, W], on the CPU."""
    from mclc_gpu.kernels import color_cpu

    # Every floating-point step is scikit-image's: subtract, divide, convert, multiply by the reciprocal.
    flat = images.numpy().reshape(len(images), -1)
    low, high = (values.astype(np.float32) for values in (flat.min(1), flat.max(1)))
    _refuse_infinite(torch.from_numpy(np.isfinite(low + high)))
    span = np.where(high == low, np.float32(1), high - low)
    return torch.from_numpy(color_cpu.features(images.numpy(), low, span, 1.0 / compactness, lab))


def _start_centers(features: torch.Tensor, ys: np.ndarray, xs: np.ndarray, start: str) -> torch.Tensor:
    """Return the centers [y, x, colors...] before the first assignment, float32 [B, N, 2 + C]."""
    y, x = torch.from_numpy(ys), torch.from_numpy(xs)
    if start == "gradient":
        return lowest_gradient(features, y.long(), x.long())
    centers = features.new_zeros(len(features), len(ys), 2 + features.shape[1])
    centers[:, :, 0], centers[:, :, 1] = y, x
    return centers


def lowest_gradient(features: torch.Tensor, ys: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    """Move centers to the lowest gradient of their 3 x 3 neighborhood, and give them the color found there.

    The gradient is Achanta's, G(y, x) = |I(y, x+1) - I(y, x-1)|^2 + |I(y+1, x) - I(y-1, x)|^2 over all
    channels, with the image's border pixels repeated outwards. A center stays where no neighbor is strictly
    lower; among equal neighbors the first in raster order wins.

    Parameters
    ----------
    features : Tensor [B, C, H, W], float32
    ys, xs : Tensor [N], int64
        Start positions, the same for all images.

    Returns
    -------
    Tensor [B, N, 2 + C], float32
        y, x (pixels) and color of each center.
    """
    height, width = features.shape[2:]
    padded = functional.pad(features, (1, 1, 1, 1), mode="replicate")
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    gradient = (along_x * along_x + along_y * along_y).sum(1)
    near_y = ys[:, None] + torch.tensor([0, -1, -1, -1, 0, 0, 1, 1, 1], device=features.device)  # [N, 9]
    near_x = xs[:, None] + torch.tensor([0, -1, 0, 1, -1, 1, -1, 0, 1], device=features.device)
    inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
    near_y, near_x = near_y.clamp(0, height - 1), near_x.clamp(0, width - 1)
    values = torch.where(inside, gradient[:, near_y, near_x], torch.inf)  # [B, N, 9]
    lowest = values.argmin(-1)  # the first of several
    index = torch.arange(len(ys), device=features.device)
    y, x = near_y[index, lowest], near_x[index, lowest]  # [B, N]
    image = torch.arange(len(features), device=features.device)[:, None]
    colors = features.permute(0, 2, 3, 1)[image, y, x]
    return torch.cat([y[..., None], x[..., None], colors], -1)


def grid_centers(height: int, width: int, n_segments: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return start positions of about `n_segments` clusters, on the grid of scikit-image's ``regular_grid``.

    Parameters
    ----------
    height, width : int
        Image size in pixels, >= 1.
    n_segments : int
        Number of clusters, >= 1; the grid may hold fewer or more.

    Returns
    -------
    ys, xs : float32 [N]
        Centers in raster order, in pixels.
    step_y, step_x : int
        Intervals of the grid in pixels.

    Notes
    -----
    S = sqrt(H W / N) of section 3.1 of the paper. Starts are the interval's half rounded down,
    steps are the interval rounded half to even.
    """
    spacing_y, spacing_x = _spacing(height, width, n_segments)
    step_y, step_x = round(spacing_y), round(spacing_x)
    ys, xs = np.meshgrid(
        np.arange(int(spacing_y // 2), height, step_y, dtype=np.float32),
        np.arange(int(spacing_x // 2), width, step_x, dtype=np.float32),
        indexing="ij",
    )
    return ys.ravel(), xs.ravel(), step_y, step_x


def window_steps(height: int, width: int, n_centers: int) -> tuple[int, int]:
    """Return the intervals in y and x, in pixels, of which a center's window reaches two to each side.

    They are those of a grid of as many centers as there are, not of as many as were requested. On a small
    image the two differ by a pixel or more, and the segments with them; scikit-image does the same.

    Parameters
    ----------
    height, width : int
        Image size in pixels, >= 1.
    n_centers : int
        Centers on the start grid, the length of what `grid_centers` returns.

    Returns
    -------
    step_y, step_x : int
    """
    spacing_y, spacing_x = _spacing(height, width, n_centers)
    return round(spacing_y), round(spacing_x)


def _spacing(height: int, width: int, n_segments: int) -> tuple[float, float]:
    """Return the interval before rounding: S = sqrt(H W / N) unless the short side has no room for it."""
    if height * width <= n_segments:
        return 1.0, 1.0
    interval = (height * width / n_segments) ** 0.5
    if min(height, width) >= interval:
        return interval, interval
    if height <= width:
        return float(height), width / n_segments
    return height / n_segments, float(width)
