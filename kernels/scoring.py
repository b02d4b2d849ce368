"""Scores of any masks of targets, by the measure that the vote of components has for its own candidates."""

import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.components import check_categories, limits_of
from mclc_gpu.kernels.config import ComponentConfig
from mclc_gpu.kernels.packed import PackedImages, check_windows


def score_masks(
    images: PackedImages,
    windows: torch.Tensor,
    mask_windows: torch.Tensor,
    masks: torch.Tensor,
    categories: torch.Tensor,
    dark: torch.Tensor,
    config: ComponentConfig,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The score S of `mclc_gpu.kernels.components.vote_components` for masks that need not be components.

    A mask's outline is where its pixels and others of `windows` are 4-neighbours, and its ring the pixels of
    `windows` 4..6 (chessboard) off. A mask that is a candidate of the vote has the score it has there.

    Parameters
    ----------
    images : PackedImages
    windows : Tensor [targets, 8], int64
        As for `vote_components`; their clicks count.
    mask_windows : Tensor [targets, 8], int64
        Where the masks lie, with the same columns: a part of the target's window.
    masks : Tensor [K, pixels of all mask windows], uint8
        K masks of every target, not 0 where a pixel belongs: `mclc_gpu.kernels.trials.TrialCounts.masks`.
    categories : Tensor [targets], int64
        As for `vote_components`.
    dark : Tensor [targets], bool
        Whether the target is darker than its surroundings; see `ComponentVotes`.
    config : ComponentConfig
        `radius`, `levels` and `polarity` do not matter here.
    backend : {"triton", "cpu"}, optional
        Default: by the device of `images`.

    Returns
    -------
    Tensor [K, targets], float32, on the device of `images`
        Minus infinity for a mask that is empty, has more than `max_area` pixels, or reaches the border of its
        window where that is not the image's.

    Raises
    ------
    ValueError
        A window outside its image, larger than 64 pixels or outside the target's, wrong shapes or dtypes.
    RuntimeError
        The backend asked for cannot run here.
    """
    chosen = resolve(backend, images.data)
    windows, mask_windows = windows.cpu().contiguous(), mask_windows.cpu().contiguous()
    check_windows(images, windows)
    check_windows(images, mask_windows)
    _check_parts(windows, mask_windows)
    check_categories(categories, len(windows))
    offsets = _offsets(mask_windows)
    _check_masks(masks, int(offsets[-1]), images.data.device)
    if dark.shape != (len(windows),) or dark.dtype != torch.bool:
        raise ValueError(f"dark must be bool [{len(windows)}], got {dark.dtype} {list(dark.shape)}")
    areas, device = limits_of(categories), images.data.device
    scores = torch.empty((len(masks), len(windows)), dtype=torch.float32, device=device)
    if scores.numel() == 0:
        return scores
    if chosen == "triton":
        from mclc_gpu.kernels import scoring_triton as triton_backend

        triton_backend.score(images, windows, mask_windows, offsets, areas, masks, dark, config, scores)
    else:
        from mclc_gpu.kernels import scoring_cpu as cpu_backend

        cpu_backend.score(
            images.data.numpy(),
            images.table.numpy(),
            windows.numpy(),
            mask_windows.numpy(),
            offsets.numpy(),
            areas.numpy(),
            masks.numpy(),
            dark.numpy(),
            config,
            scores.numpy(),
        )
    return scores


def add_shares(
    masks: torch.Tensor,
    mask_windows: torch.Tensor,
    shares: torch.Tensor,
    sums: torch.Tensor,
    totals: torch.Tensor,
    *,
    backend: str | None = None,
) -> None:
    """Add to each pixel the shares of the masks that hold it, and to each target all its shares; in place.

    They are added one after another: what comes out for a target does not depend on the others.

    Parameters
    ----------
    masks, mask_windows
        See `score_masks`.
    shares : Tensor [K, targets], float64
    sums : Tensor [pixels of all mask windows], float64
    totals : Tensor [targets], float64
    backend : {"triton", "cpu"}, optional
        Default: by the device of `masks`.

    Raises
    ------
    ValueError
        Wrong shapes or dtypes.
    RuntimeError
        The backend asked for cannot run here.
    """
    chosen = resolve(backend, masks)
    offsets = _offsets(mask_windows.cpu())
    _check_masks(masks, int(offsets[-1]), masks.device)
    wanted = (
        ("shares", shares, [len(masks), len(mask_windows)]),
        ("sums", sums, [masks.shape[1]]),
        ("totals", totals, [len(mask_windows)]),
    )
    for name, values, shape in wanted:
        if list(values.shape) != shape or values.dtype != torch.float64 or not values.is_contiguous():
            raise ValueError(
                f"{name} must be float64 {shape}, contiguous; got {values.dtype} {list(values.shape)}"
            )
    if shares.numel() == 0:
        return
    if chosen == "triton":
        from mclc_gpu.kernels import scoring_triton as triton_backend

        triton_backend.add(masks, offsets, shares, sums, totals)
    else:
        from mclc_gpu.kernels import scoring_cpu as cpu_backend

        cpu_backend.add(masks.numpy(), offsets.numpy(), shares.numpy(), sums.numpy(), totals.numpy())


def _offsets(windows: torch.Tensor) -> torch.Tensor:
    """Where the pixels of each window begin among those of all."""
    sizes = windows[:, 3] * windows[:, 4]
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(sizes, 0)])


def _check_parts(windows: torch.Tensor, parts: torch.Tensor) -> None:
    if len(parts) != len(windows):
        raise ValueError(f"{len(windows)} windows, but {len(parts)} of masks")
    begin, end = parts[:, 1:3], parts[:, 1:3] + parts[:, 3:5]
    outside = (begin < windows[:, 1:3]) | (end > windows[:, 1:3] + windows[:, 3:5])
    wrong = outside.any(1) | (parts[:, 0] != windows[:, 0])
    if bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        raise ValueError(f"the window of masks {first} must be a part of the target's window")


def _check_masks(masks: torch.Tensor, pixels: int, device: torch.device) -> None:
    if masks.ndim != 2 or masks.shape[1] != pixels or masks.dtype != torch.uint8 or masks.device != device:
        raise ValueError(
            f"masks must be uint8 [K, {pixels}] on {device}, got {masks.dtype} {list(masks.shape)} "
            f"on {masks.device}"
        )
    if not masks.is_contiguous():
        raise ValueError("masks must be contiguous")
