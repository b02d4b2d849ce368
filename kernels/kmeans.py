"""Batched K-means in colour and position: the paper's other linear clustering approach beside SLIC."""

import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.slic import cluster_images


def kmeans(
    images: torch.Tensor,
    n_clusters: int,
    compactness: float = 20.0,
    max_iterations: int = 10,
    tolerance: float = 0.0,
    lab: bool | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Cluster the pixels of each image by colour and position.

    SLIC's features, start grid, distance (eq. 3) and update (eq. 4), but every centre reaches every pixel.

    Parameters
    ----------
    images : Tensor [B, C, H, W], float32, uint8 or uint16
        Any range: each image is rescaled to 0..1 over all its channels (a constant image to zeros).
    n_clusters : int
        Clusters wanted; the start grid may hold fewer or more.
    compactness : float
        Weight of distance in space against distance in colour, see `mclc_gpu.kernels.slic.slic`.
    max_iterations : int
        Assignments at most. An image whose labels no longer change is done earlier, with the same result.
    tolerance : float
        T in pixels: an image is done when all its centres moved by less (L2, eq. 4). 0 turns it off.
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
        Wrong shape, dtype or setting; NaN or infinite values (asking for them waits for the device).

    Notes
    -----
    Work grows with pixels times clusters. For superpixels, whose number grows with the image, take `slic`.

    References
    ----------
    Lloyd, IEEE Transactions on Information Theory 28, 1982, doi:10.1109/TIT.1982.1056489.
    """
    if n_clusters < 1:
        raise ValueError(f"n_clusters must be above 0, got {n_clusters}")
    chosen = resolve(backend, images)
    labels, _ = cluster_images(
        images, n_clusters, compactness, max_iterations, tolerance, "grid", lab, False, chosen
    )
    return labels
