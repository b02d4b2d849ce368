"""Label makers: how a target's probability map is made from its window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from mclc_gpu.data.annotations import CATEGORIES, category_of
from mclc_gpu.data.images import gray_levels
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.components import ComponentVotes, vote_components
from mclc_gpu.kernels.packed import PackedImages, Seeds
from mclc_gpu.kernels.scoring import add_shares, score_masks
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.windows import PlacedTarget, Window, keyed_window

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
    colours = np.rint(gray_levels(pixels, 3)).astype(np.uint8).transpose(1, 2, 0)
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


_TRIALS = 64  # judged at once; always as many, so that sums do not depend on what is labelled together
_MASK_BYTES = 256 << 20


def vote(
    packed: PackedImages, windows: torch.Tensor, placed: Sequence[PlacedTarget], config: LabelConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """TPMs of all windows by the vote of components and `config.trials` trials; confidences; areas.

    Each trial of a target gives one more candidate: its segment with the click, from the published window of
    the target's category, as far as that lies in the window of the components. Without a category that of the
    components' area counts. With S the score of a candidate, whatever it came from, and m its pixels,

        TPM = sum(w m) / sum(w), where w = exp(S) for components and exp(S) / K for trials.

    All K trials together so weigh as one candidate, and with more of them the TPM settles. Were each to weigh
    as much as a component, their number alone would outvote the components: trials of one target are much the
    same candidate over and over.

    A target with several marks has the mean of what each of them gives, as with the Monte Carlo maker. Where
    nothing stands out, there is nothing to judge trials by, and they do not count.

    Args:
        packed: The images.
        windows: int64 [targets, 8], see `mclc_gpu.kernels.packed.WINDOW_COLUMNS`, on the CPU.
        placed: The targets.
        config: With the maker "components".

    Returns:
        TPM float32 [pixels of all windows]. Confidence float32 [targets]: with trials, the mass of the TPM in
        the mask (pixels of at least half the TPM's maximum) over the mask's area and the mass outside; that
        is the expected IoU but for taking the mean of a quotient's two terms. Area int32 [targets]: pixels of
        the components' mask, of the largest for several marks.
    """
    seeds = Seeds.pack([target.seeds for target in placed])
    marks = 1 + seeds.offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(placed)), marks)
    clicked = windows[owner]
    extra = torch.ones(len(owner), dtype=torch.bool)
    extra[torch.cumsum(marks, 0) - marks] = False
    clicked[extra, 5] = seeds.pixels // clicked[extra, 4]
    clicked[extra, 6] = seeds.pixels % clicked[extra, 4]
    numbers = [CATEGORIES.index(p.point.category) if p.point.category else -1 for p in placed]
    categories = torch.tensor(numbers)[owner]
    votes = vote_components(packed, clicked, categories, config.components)
    area = torch.zeros(len(placed), dtype=votes.area.dtype, device=votes.area.device)
    area = area.scatter_reduce(0, owner.to(area.device), votes.area, "amax")
    if config.trials:
        parts = trial_windows(packed, windows, placed, area.tolist())[owner]
        # A mark's place in the target's window is one in the part of it.
        parts[:, 5:7] = clicked[:, 1:3] + clicked[:, 5:7] - parts[:, 1:3]
        keys = torch.tensor([target.key for target in placed], dtype=torch.int64)[owner]
        votes = _with_trials(packed, clicked, parts, keys, categories, votes, config)
    if len(owner) == len(placed):
        return votes.tpm, votes.confidence, area
    sizes = windows[:, 3] * windows[:, 4]
    starts = torch.cumsum(sizes, 0) - sizes
    place = torch.arange(len(votes.tpm)) + torch.repeat_interleave(
        starts[owner] - votes.offsets[:-1], votes.offsets.diff()
    )
    device = votes.tpm.device
    owner, share = owner.to(device), (1.0 / marks.float()).to(device)
    weights = torch.repeat_interleave(share[owner], votes.offsets.diff().to(device))
    tpm = torch.zeros(int(sizes.sum()), device=device).index_add_(0, place.to(device), votes.tpm * weights)
    confidence = torch.zeros(len(placed), device=device).index_add_(0, owner, votes.confidence * share[owner])
    return tpm, confidence, area


def trial_windows(
    packed: PackedImages, windows: torch.Tensor, placed: Sequence[PlacedTarget], areas: Sequence[int]
) -> torch.Tensor:
    """Where trials of each target run: its published window within `windows`, int64 [targets, 8].

    Args:
        packed, windows, placed: See `vote`.
        areas: Pixels of each target, from which the category follows where it is not known.
    """
    shapes = packed.table[:, 1:3].tolist()
    rows = []
    for target, area, row in zip(placed, areas, windows.tolist(), strict=True):
        point = target.point
        if point.category is None:
            point = replace(point, category=category_of(area))
        height, width = shapes[row[0]]
        drawn = keyed_window(height, width, point, target.key % 2**64, target.target)
        part = _common(drawn, target.window)
        click = target.window.top + target.window.click_row, target.window.left + target.window.click_column
        inside = click[0] - part[0], click[1] - part[1]
        rows.append((row[0], *part, *inside, row[7]))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, windows.shape[1])


def _common(a: Window, b: Window) -> tuple[int, int, int, int]:
    """Top, left, height and width of what two windows share."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    return top, left, min(a.bottom, b.bottom) - top, min(a.right, b.right) - left


def _with_trials(
    packed: PackedImages,
    windows: torch.Tensor,
    parts: torch.Tensor,
    keys: torch.Tensor,
    categories: torch.Tensor,
    votes: ComponentVotes,
    config: LabelConfig,
) -> ComponentVotes:
    """The votes with trials as further candidates, in groups of targets of bounded memory."""
    tpm, confidence = torch.empty_like(votes.tpm), torch.empty_like(votes.confidence)
    for own in _groups(parts[:, 3] * parts[:, 4]):
        pixels = slice(int(votes.offsets[own.start]), int(votes.offsets[own.stop]))
        components = _Components(
            votes.tpm[pixels], votes.confidence[own], votes.evidence[own], votes.dark[own]
        )
        tpm[pixels], confidence[own] = _joined(
            packed, windows[own], parts[own], keys[own], categories[own], components, config
        )
    return replace(votes, tpm=tpm, confidence=confidence)


def _groups(sizes: torch.Tensor) -> list[slice]:
    """Targets whose masks of `_TRIALS` trials fit `_MASK_BYTES` together."""
    groups, first, held = [], 0, 0
    for t, size in enumerate(sizes.tolist()):
        if t > first and (held + size) * _TRIALS > _MASK_BYTES:
            groups.append(slice(first, t))
            first, held = t, 0
        held += size
    return [*groups, slice(first, len(sizes))]


@dataclass(frozen=True)
class _Components:
    """What some targets' components gave: see `ComponentVotes`."""

    tpm: torch.Tensor
    confidence: torch.Tensor
    evidence: torch.Tensor
    dark: torch.Tensor


def _joined(
    packed: PackedImages,
    windows: torch.Tensor,
    parts: torch.Tensor,
    keys: torch.Tensor,
    categories: torch.Tensor,
    components: _Components,
    config: LabelConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """TPMs and confidences of some targets, whose trials' masks are held in memory together."""
    device = components.tpm.device
    sizes = parts[:, 3] * parts[:, 4]
    owner = _owner(sizes, device)
    sums = torch.zeros(len(owner), dtype=torch.float64, device=device)
    totals = torch.zeros(len(parts), dtype=torch.float64, device=device)
    flat = components.evidence == -torch.inf
    # Shares are relative to exp(top), the greatest so far.
    top = torch.where(flat, 0.0, components.evidence.double())
    own = torch.ones_like(top)
    for first in range(0, config.trials, _TRIALS):
        number = min(_TRIALS, config.trials - first)
        masks = run_trials(
            packed, parts, keys, config.trial, number, first_trial=first, keep_masks=True
        ).masks
        assert masks is not None
        scores = score_masks(packed, windows, parts, masks, categories, components.dark, config.components)
        judged = torch.where(flat, -torch.inf, scores.double() - math.log(config.trials))
        higher = torch.maximum(top, judged.amax(0))
        fall = torch.exp(top - higher)
        own, totals, sums, top = own * fall, totals * fall, sums * fall[owner], higher
        add_shares(masks, parts, torch.exp(judged - top), sums, totals)
    whole = windows[:, 3] * windows[:, 4]
    wide = _owner(whole, device)
    tpm = components.tpm * (own / (own + totals))[wide]
    tpm[_places(windows, parts, owner)] += sums / (own + totals)[owner]
    tpm = tpm.float()
    return tpm, torch.where(flat, components.confidence, _expected_iou(tpm, wide, whole))


def _owner(sizes: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The target of every pixel, given how many each has."""
    targets = torch.arange(len(sizes), device=device)
    return torch.repeat_interleave(targets, sizes.to(device), output_size=int(sizes.sum()))


def _places(windows: torch.Tensor, parts: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Where the pixels of the parts lie among those of the windows."""
    sizes, whole = parts[:, 3] * parts[:, 4], windows[:, 3] * windows[:, 4]
    starts, begins = torch.cumsum(sizes, 0) - sizes, torch.cumsum(whole, 0) - whole
    corner = (parts[:, 1] - windows[:, 1]) * windows[:, 4] + parts[:, 2] - windows[:, 2]
    columns = torch.stack([starts, parts[:, 4], windows[:, 4], begins + corner]).to(owner.device)
    start, width, stride, first = columns[:, owner]
    within = torch.arange(len(owner), device=owner.device) - start
    return first + within // width * stride + within % width


def _expected_iou(tpm: torch.Tensor, owner: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """See `vote`: of the pixels of at least half their target's maximum, float32 [targets]."""
    tpm, lengths = tpm.double(), sizes.to(tpm.device)
    inside = tpm >= 0.5 * torch.segment_reduce(tpm, "max", lengths=lengths)[owner]
    held = torch.segment_reduce(torch.where(inside, tpm, 0.0), "sum", lengths=lengths)
    area = torch.segment_reduce(inside.double(), "sum", lengths=lengths)
    outside = torch.segment_reduce(torch.where(inside, 0.0, tpm), "sum", lengths=lengths)
    return (held / (area + outside)).float()
