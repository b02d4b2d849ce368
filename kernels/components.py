"""Labels from the click alone: a vote of the connected components around a target's brightest pixel.

Every gray level below the brightest pixel near the click gives a candidate: the component of all pixels at
least that bright which holds that pixel. The candidates are nested. Each is scored by its likeness to an
outline that a person draws (contrast, steep edge, compact shape, click near the middle). The softmax of the
scores gives the weights of a vote: the probability of a pixel is the weight of the candidates that hold it.
"""

from dataclasses import dataclass

import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.config import CATEGORY_AREAS, MAX_WINDOW, ComponentConfig
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows

_ANY_AREA = (1, MAX_WINDOW**2)


@dataclass(frozen=True, eq=False)
class ComponentVotes:
    """Result of the vote of components, on the images' device except for the offsets.

    Attributes
    ----------
    tpm : Tensor [pixels of all windows], float32
        Probability 0..1 of each pixel; window t in row-major order at offsets[t] : offsets[t + 1]. The
        pixels of at least 0.5 are one of the candidates: 8-connected, without those of another target.
    offsets : Tensor [targets + 1], int64, on the CPU
    confidence : Tensor [targets], float32
        Expected IoU 0..1 of that mask with the candidates; 0 where flat.
    area : Tensor [targets], int32
        Pixels of that mask.
    score : Tensor [targets], float32
        Score of the best candidate; minus infinity where flat. It grows with contrast: no confidence.
    dark : Tensor [targets], bool
        True where the target was taken as darker than its surroundings.
    flat : Tensor [targets], bool
        True where nothing stands out at the click; the 3 x 3 pixels around it, as far as they lie in the
        window, then have probability 1.
    """

    tpm: torch.Tensor
    offsets: torch.Tensor
    confidence: torch.Tensor
    area: torch.Tensor
    score: torch.Tensor
    dark: torch.Tensor
    flat: torch.Tensor


def component_windows(
    images: PackedImages, clicks: torch.Tensor, radius: int = ComponentConfig.radius
) -> Windows:
    """Return the windows of `radius` pixels around some clicks, clipped to their images.

    Parameters
    ----------
    images : PackedImages
    clicks : Tensor [targets, 3], int64
        Image index, row and column of each click, in its image.
    radius : int, 1..31, pixels

    Returns
    -------
    Windows
        The target's index within its image is 0.

    Raises
    ------
    ValueError
        Wrong shape, dtype or radius, or a click outside its image.
    """
    if clicks.ndim != 2 or clicks.shape[1] != 3 or clicks.dtype != torch.int64:
        raise ValueError(f"clicks must be int64 [targets, 3], got {clicks.dtype} {list(clicks.shape)}")
    ComponentConfig(radius=radius)
    image, row, column = clicks.cpu().unbind(1)
    if bool(((image < 0) | (image >= len(images.table))).any()):
        raise ValueError(f"a click names an image outside 0..{len(images.table) - 1}")
    height, width = images.table[image, 1:3].unbind(1)
    outside = (row < 0) | (column < 0) | (row >= height) | (column >= width)
    if bool(outside.any()):
        first = int(torch.nonzero(outside)[0])
        raise ValueError(
            f"click {first} (image, row, column) {clicks[first].tolist()} must lie in its image of "
            f"{int(height[first])} x {int(width[first])} pixels"
        )
    top, left = (row - radius).clamp(min=0), (column - radius).clamp(min=0)
    size = torch.minimum(row + radius + 1, height) - top, torch.minimum(column + radius + 1, width) - left
    columns = image, top, left, *size, row - top, column - left, torch.zeros_like(row)
    return Windows(torch.stack(columns, 1))


def vote_components(
    images: PackedImages,
    windows: Windows,
    categories: torch.Tensor,
    config: ComponentConfig,
    *,
    others: Marks | None = None,
    backend: str | None = None,
) -> ComponentVotes:
    """Return probability maps of targets, from one click on each.

    uint8 gray levels are taken as they are, other images are stretched: their least value becomes 0, their
    greatest 255. Colors count by their luma. Candidates are made from the relief u, the gray levels less
    their opening by a square in the window. The background's u is the least near the click. The target's
    brightest pixel is the one near the click with the greatest (u - background) / (16 + d^2), where d is the
    distance from the click in pixels, and then the local maximum uphill of it; pixels nearer to another click
    are left out. The candidate of level k of K holds all pixels that an 8-connected path joins to it without
    falling below brightest - (brightest - background) k / K. Levels end where a candidate has more than
    `max_area` pixels or reaches the window's border inside the image. Where the opening less the window's 5th
    percentile is more than 2 u, at the pixel of greatest u in the 3 x 3 around the click, the vote is also
    held with the gray levels as u, whose background is at most that percentile; the better best score counts.

    Targets that touch are parted at the saddle between them, by a watershed whose markers are the brightest
    pixels in the 3 x 3 around the other clicks: no candidate holds a pixel that is joined to a marker at a
    higher level than to the target's brightest pixel, or at the same level and nearer to the marker's click.

    With e, s, f, A, c, r, N and d of the gray levels themselves as `ScoreWeights` says, and the median of the
    pixels 4..6 (chessboard) off as ring, candidates have

        S = level ln e + level_square (ln e)^2 + edge ln s + rim ln(0.3 + f) + size ln A ln(c / sqrt(r + 1))
            + outline N / sqrt A + distance d / (2 + 0.05 sqrt A) + large max(ln(A / 50), 0)

    less `category_weight` times |ln A / limit| for an area outside its category's limits, and w = softmax S.

    A target's map depends on its image, window, category, the other clicks and the config alone, not on the
    order of targets, the batch or the backend (except for the last bit).

    Parameters
    ----------
    images : PackedImages
    windows : Windows
        One for each target, see `component_windows`.
    categories : Tensor [targets], int64
        0 point, 1 spot, 2 extended, -1 unknown; `CATEGORY_AREAS` has their limits in pixels.
    config : ComponentConfig
    others : Marks, optional
        Clicks on the other targets of the image that lie in each target's window; default: none.
    backend : {"triton", "cpu"}, optional
        Default: by the device of `images`.

    Raises
    ------
    ValueError
        A window outside its image or larger than 64 pixels, a category outside -1..2, another click outside
        the window, wrong shapes or dtypes.
    RuntimeError
        The requested backend cannot run here.

    References
    ----------
    Matas et al., BMVC 2002, doi:10.5244/C.16.36 (nested components of all levels); Meyer and Beucher, 1990,
    doi:10.1016/1047-3203(90)90014-M (watershed from markers).

    Examples
    --------
    >>> import numpy as np, torch
    >>> from mclc_gpu.kernels.components import component_windows, vote_components
    >>> from mclc_gpu.kernels.config import ComponentConfig
    >>> from mclc_gpu.kernels.packed import PackedImages
    >>> image = np.random.default_rng(0).integers(38, 43, (40, 40)).astype(np.uint8)
    >>> image[18:21, 19:23] = 200
    >>> images = PackedImages.pack([image])
    >>> windows = component_windows(images, torch.tensor([[0, 19, 20]]))
    >>> votes = vote_components(images, windows, torch.tensor([-1]), ComponentConfig())
    >>> votes.area.tolist(), int((votes.tpm >= 0.5).sum())
    ([12], 12)
    """
    chosen = resolve(backend, images.data)
    categories = categories.cpu()
    windows.check(images)
    _check_categories(categories, len(windows))
    others = others or Marks.pack([[]] * len(windows))
    others.check(windows, most=MAX_WINDOW**2)
    areas = torch.tensor([*CATEGORY_AREAS, _ANY_AREA])[categories]  # -1: any
    device, offsets, targets = images.data.device, windows.offsets, len(windows)
    tpm = torch.empty(int(offsets[-1]), dtype=torch.float32, device=device)
    confidence, score = (torch.empty(targets, dtype=torch.float32, device=device) for _ in range(2))
    dark, flat = (torch.empty(targets, dtype=torch.bool, device=device) for _ in range(2))
    area = torch.empty(targets, dtype=torch.int32, device=device)
    outputs = tpm, area, score, confidence, dark, flat
    if targets:
        if chosen == "triton":
            from mclc_gpu.kernels import components_triton

            components_triton.run(images, windows, areas, others, config, *outputs)
        else:
            from mclc_gpu.kernels import components_cpu

            components_cpu.run(images, windows, areas, others, config, *outputs)
    return ComponentVotes(tpm, offsets, confidence, area, score, dark, flat)


def _check_categories(categories: torch.Tensor, targets: int) -> None:
    if categories.shape != (targets,) or categories.dtype != torch.int64:
        raise ValueError(
            f"categories must be int64 [{targets}], got {categories.dtype} {list(categories.shape)}"
        )
    wrong = (categories < -1) | (categories >= len(CATEGORY_AREAS))
    if bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        raise ValueError(
            f"category {first} must be in -1..{len(CATEGORY_AREAS) - 1}, got {categories[first]}"
        )
