"""Label makers: how a target's probability map is made from its window."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from mclc_gpu.data.annotations import CATEGORIES
from mclc_gpu.data.images import network_levels
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.components import vote_components
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.windows import PlacedTarget

_ITERATIONS = 5
_NEAR = 8  # the share of the window's shorter side, 1 / _NEAR, within which a pixel is probably the target's


def marked_mask(shape: tuple[int, int], marks: Sequence[int], box: np.ndarray | None) -> np.ndarray:
    """The marked pixels, or the whole box: bool [h, w].

    `marks`: row * width + column of each; `box`: bool [h, w], true inside it, or None.
    """
    if box is not None:
        return box
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[list(marks)] = True
    return mask


def grabcut_mask(pixels: np.ndarray, marks: Sequence[int], box: np.ndarray | None) -> np.ndarray:
    """GrabCut in a window (Rother et al., 2004, DOI 10.1145/1015706.1015720), by OpenCV: bool [h, w].

    Marked pixels are the target and the window's outermost pixels are not; what lies within an eighth of the
    window's shorter side of a mark (at least 1 px, chessboard distance) begins as probably the target's, the
    rest as probably not. A box instead of marks: outside it is background, inside begins as probably target.
    Of the result the 8-connected parts that hold a mark are kept; with a box, all of it.

    Args:
        pixels: [h, w] or [h, w, 3], any real dtype; others than uint8 are scaled by their own range.
        marks: row * width + column of each marked pixel, at least one.
        box: bool [h, w], true inside the box, or None.

    Raises:
        InputError: OpenCV is not installed.
    """
    cv2 = _opencv()
    height, width = pixels.shape[:2]
    marked = marked_mask((height, width), marks, None)
    if box is None:
        reach = max(1, min(height, width) // _NEAR)
        near = ndimage.maximum_filter(marked, 2 * reach + 1)
        trimap = np.where(near, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        trimap[[0, -1]] = trimap[:, [0, -1]] = cv2.GC_BGD
        trimap[marked] = cv2.GC_FGD
    else:
        trimap = np.where(box, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    background = (trimap == cv2.GC_BGD) | (trimap == cv2.GC_PR_BGD)
    if background.all() or not background.any():
        return ~background
    colours = np.rint(network_levels(pixels, 3)).astype(np.uint8).transpose(1, 2, 0)
    cv2.setRNGSeed(0)  # of this thread: its k-means draws start centres
    cv2.grabCut(
        np.ascontiguousarray(colours),
        trimap,
        None,
        np.empty(0),
        np.empty(0),
        _ITERATIONS,
        cv2.GC_INIT_WITH_MASK,
    )
    found = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    if box is not None:
        return found
    parts, _ = ndimage.label(found, np.ones((3, 3)))
    return np.isin(parts, np.unique(parts[marked]))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise InputError("GrabCut needs OpenCV: pip install 'mclc-gpu[grabcut]'") from error
    return cv2


def vote(
    packed: PackedImages, windows: Windows, placed: Sequence[PlacedTarget], config: LabelConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the TPMs of all windows by the vote of components, their confidences and the targets' areas.

    A target with several marks has the mean of what each of them gives, as with the Monte Carlo maker.

    Args:
        packed: The images.
        windows: Of the targets.
        placed: The targets.
        config: With the maker "components".

    Returns:
        TPM float32 [pixels of all windows]. Confidence float32 [targets]: expected IoU 0..1 of the mask, the
        mean over several marks. Area int32 [targets]: pixels of the mask, of the largest for several marks.
    """
    further = Marks.pack([target.seeds for target in placed])
    marks = 1 + further.numbers
    owner = torch.repeat_interleave(torch.arange(len(placed)), marks)
    clicked = windows[owner]
    extra = torch.ones(len(owner), dtype=torch.bool)
    extra[torch.cumsum(marks, 0) - marks] = False
    row, column = clicked.click_row.clone(), clicked.click_column.clone()
    row[extra] = further.pixels // clicked.width[extra]
    column[extra] = further.pixels % clicked.width[extra]
    clicked = clicked.replace(click_row=row, click_column=column)
    numbers = [CATEGORIES.index(p.point.category) if p.point.category else -1 for p in placed]
    categories = torch.tensor(numbers)[owner]
    votes = vote_components(packed, clicked, categories, config.components)
    area = torch.zeros(len(placed), dtype=votes.area.dtype, device=votes.area.device)
    area = area.scatter_reduce(0, owner.to(area.device), votes.area, "amax")
    if len(owner) == len(placed):
        return votes.tpm, votes.confidence, area
    place = torch.arange(len(votes.tpm)) + torch.repeat_interleave(
        windows.offsets[owner] - votes.offsets[:-1], votes.offsets.diff()
    )
    device = votes.tpm.device
    owner, share = owner.to(device), (1.0 / marks.float()).to(device)
    weights = torch.repeat_interleave(share[owner], votes.offsets.diff().to(device))
    tpm = torch.zeros(int(windows.offsets[-1]), device=device).index_add_(
        0, place.to(device), votes.tpm * weights
    )
    confidence = torch.zeros(len(placed), device=device).index_add_(0, owner, votes.confidence * share[owner])
    return tpm, confidence, area
