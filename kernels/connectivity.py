"""Connectivity enforcement: pieces of a label that are too small join a neighbour (the last step of SLIC)."""

import torch

from mclc_gpu.kernels.backend import resolve


def enforce_connectivity(
    labels: torch.Tensor, min_size: int, max_size: int, backend: str | None = None
) -> torch.Tensor:
    """Number the connected pieces of each label, and hand pieces that are too small to a neighbour.

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
        Wrong shape or dtype, or negative labels (asking for them waits for the device).

    Notes
    -----
    Sequential inside an image, parallel over images: a GPU does thousands of windows in the time
    of one, and has no advantage on one large image.

    References
    ----------
    Achanta et al., TPAMI 2012, doi:10.1109/TPAMI.2012.120, section 4.
    """
    if labels.ndim != 3 or labels.dtype != torch.int32:
        raise ValueError(f"labels must be int32 [B, H, W], got {labels.dtype} {list(labels.shape)}")
    chosen = resolve(backend, labels)
    if labels.numel() == 0:
        return torch.empty_like(labels)
    if int(labels.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(labels.min())}")
    return relabel(labels, min_size, max_size, chosen)


def relabel(labels: torch.Tensor, min_size: int, max_size: int, backend: str) -> torch.Tensor:
    """`enforce_connectivity` on labels known to be good (some, >= 0) with the backend already resolved."""
    if backend == "triton":
        from mclc_gpu.kernels import connectivity_triton

        return connectivity_triton.launch(labels, min_size, max_size)
    from mclc_gpu.kernels import connectivity_cpu

    labels = labels.contiguous()
    out = torch.empty_like(labels)
    connectivity_cpu.relabel_batch(labels.numpy(), min_size, max_size, out.numpy())
    return out
