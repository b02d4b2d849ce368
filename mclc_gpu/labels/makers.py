"""Label makers: how the target probability map (TPM) of a target is made from its window."""

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from scipy import ndimage

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.images import network_levels
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.components import vote_components
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials, run_until_stable
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.windows import (
    Annotated,
    PlacedTarget,
    PlacedTargets,
    Window,
    centered_window,
    centered_windows,
    name_key,
    published_window,
    published_windows,
)

_SPANS = 1e-30, 1e30  # of a window's values: its colors are scaled by them in float32
_ITERATIONS = 5  # of GrabCut
_NEAR = 8  # the share of the window's shorter side, 1 / _NEAR, within which a pixel is probably the target's


@dataclass(frozen=True)
class Batch:
    """Targets to be labeled together, whose images are all uint8, or all of other dtypes.

    Attributes
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
        Images by `PlacedTarget.image`.
    targets : PlacedTargets
        A sequence of `PlacedTarget`.
    packed : PackedImages
        What the windows need of the images, on the device.
    windows : Windows
        One of each target, in the packed images.
    """

    images: Sequence[np.ndarray]
    targets: PlacedTargets
    packed: PackedImages
    windows: Windows

    @property
    def device(self) -> torch.device:
        """Device on which to compute."""
        return self.packed.data.device

    @property
    def keys(self) -> torch.Tensor:
        """Keys of the random numbers, int64 [targets]."""
        return torch.from_numpy(self.targets.keys)

    @property
    def marks(self) -> Marks:
        """Marked pixels of each target beside its click."""
        return self.targets.marks

    def box(self, target: PlacedTarget) -> np.ndarray | None:
        """Return the pixels of a target's window in its box, bool [h, w]; None if it is marked otherwise."""
        if target.point.box is None:
            return None
        height, width = self.images[target.image].shape[:2]
        return target.inside((height, width))


@dataclass(frozen=True)
class Maps:
    """Output of a label maker for the windows of a batch.

    Attributes
    ----------
    tpm : Tensor [pixels of all windows], float32, 0..1, or int32 with `divisors`
        Target probability maps, window after window in row-major order, on the batch's device.
    trials : Tensor [targets], int64, on the CPU, or None
        Trials behind each TPM; None: `LabelConfig.trials` of each.
    confidence : Tensor [targets], float32, 0..1, or None
        Expected IoU of the masks; None from makers that do not know it.
    area : Tensor [targets], int32, or None
        Pixels of the targets, for makers that need no category: there it follows from the area.
    divisors : Tensor [targets], int64, on the CPU, or None
        Value of `tpm` that means probability 1; None: 1.
    votes : Tensor [targets], int64, on the CPU, or None
        Number of maps that a target has behind one another in `tpm`, each with a confidence and an area: the
        result has the mean of the maps and confidences, and the largest area. None: one map each.
    """

    tpm: torch.Tensor
    trials: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    area: torch.Tensor | None = None
    divisors: torch.Tensor | None = None
    votes: torch.Tensor | None = None


class Maker(Protocol):
    """Label maker: the window of each target, and the probability maps of a batch of targets.

    Subclasses have to define `maps` only, and `window` and `check` for windows of their own. `windows` and
    `checks` do the same for many targets at once; they need defining only where the time that Python takes
    for each target matters. A maker is registered with its traits in `mclc_gpu.labels.config.MAKERS`.
    """

    def window(
        self, shape: tuple[int, int], point: Point, config: LabelConfig, key: int, index: int
    ) -> Window:
        """Return the window in which a target is labeled; by default the published one.

        Parameters
        ----------
        shape : (int, int)
            Height and width of the image in pixels.
        point : Point
            With its category, if the maker needs one.
        config : LabelConfig
        key, index : int
            All that random numbers may depend on: key of the image, and number of the target in it.
        """
        return published_window(shape, point, key, index)

    def windows(self, targets: Annotated, config: LabelConfig) -> np.ndarray:
        """Return the windows of many targets at once: int64 [targets, 6] as `Window` has its fields."""
        if type(self).window is Maker.window:
            return published_windows(targets)
        shapes = [(height, width) for height, width in targets.shapes.tolist()]
        rows = zip(shapes, targets.points, targets.keys.tolist(), targets.numbers.tolist(), strict=True)
        found = [self.window(shape, point, config, key, n).row for shape, point, key, n in rows]
        return np.array(found, np.int64).reshape(-1, 6)

    def check(self, image: np.ndarray, window: Window, config: LabelConfig) -> str:
        """Return why a target in this window cannot be labeled, and what to do; "" if it can."""
        return ""

    def checks(
        self, images: Sequence[np.ndarray], owners: np.ndarray, windows: np.ndarray, config: LabelConfig
    ) -> dict[int, str]:
        """Return why some of many targets cannot be labeled, by index; see `check`.

        `owners` int64 [targets] are indices of the images, `windows` int64 [targets, 6] as `Window` has its
        fields.
        """
        if type(self).check is Maker.check:
            return {}
        places = zip(owners.tolist(), windows.tolist(), strict=True)
        found = [self.check(images[image], Window(*window), config) for image, window in places]
        return {t: why for t, why in enumerate(found) if why}

    @abstractmethod
    def maps(self, batch: Batch, config: LabelConfig) -> Maps:
        """Return the TPMs of a batch.

        A target's TPM must not depend on the other targets of the batch or on the device.
        """
        ...


class WindowMaker(Maker, Protocol):
    """Label maker that works on the pixels of one window at a time, on the CPU by threads."""

    def maps(self, batch: Batch, config: LabelConfig) -> Maps:
        """Return the TPMs of a batch, see `Maker.maps`."""

        def of_target(target: PlacedTarget) -> np.ndarray:
            window = target.window
            marks = [window.click_row * window.width + window.click_column, *target.marks]
            pixels = batch.images[target.image][window.area]
            return self.tpm(pixels, marks, batch.box(target), config).ravel()

        with ThreadPoolExecutor() as pool:
            found = np.concatenate(list(pool.map(of_target, batch.targets)))
        return Maps(torch.from_numpy(found.astype(np.float32)).to(batch.device))

    @abstractmethod
    def tpm(
        self, pixels: np.ndarray, marks: Sequence[int], box: np.ndarray | None, config: LabelConfig
    ) -> np.ndarray:
        """Return the TPM of one window: [h, w], 0..1 or bool.

        Parameters
        ----------
        pixels : ndarray, [h, w] or [h, w, 3]
            The image's own dtype.
        marks : sequence of int
            row * width + column of each marked pixel, the click first.
        box : ndarray of bool, [h, w], or None
            Pixels inside the box, if the target is marked by one.
        config : LabelConfig
        """
        ...


def maker_of(config: LabelConfig) -> Maker:
    """Return the label maker of a config."""
    return cast(Maker, config.entry.maker)


def window_of(
    shape: tuple[int, int], point: Point, config: LabelConfig, seed: int, name: str, index: int
) -> Window:
    """Return the window in which a target is labeled.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image in pixels.
    point : Point
        With its category, if the label maker needs one.
    config : LabelConfig
    seed : int
        Random seed of the run.
    name : str
        Name of the image without folder and suffix.
    index : int
        Number of the target among the image's usable points, from 0.

    Raises
    ------
    InputError
        The label maker needs a category and there is none, or the position is not finite.
    """
    try:
        return maker_of(config).window(shape, point, config, name_key(seed, name), index)
    except InputError as error:
        raise InputError(f"{name}: target {index}: {error}") from error


class MonteCarlo(Maker):
    """Trials of noise and clustering (Li et al., ICCV 2023, arXiv:2304.04442, eq. 1-9)."""

    def check(self, image: np.ndarray, window: Window, config: LabelConfig) -> str:
        """Refuse windows of fewer pixels than clusters, and those whose values cannot be scaled."""
        pixels, clusters = image[window.area], config.trial.clusters
        span = float(pixels.max()) - float(pixels.min())
        if window.height * window.width < clusters:
            return (
                f"its window has {window.height} x {window.width} pixels, fewer than the {clusters} "
                "clusters; use fewer clusters or a larger image"
            )
        if span == 0:
            return "its window is constant, there is nothing to cluster"
        if not _SPANS[0] <= span <= _SPANS[1]:
            return f"its window's values span {span:g}; scale the image to a range near 1"
        return ""

    def checks(
        self, images: Sequence[np.ndarray], owners: np.ndarray, windows: np.ndarray, config: LabelConfig
    ) -> dict[int, str]:
        """Return why some of many targets cannot be labeled, by index; see `check`."""
        if type(self).check is not MonteCarlo.check:
            return super().checks(images, owners, windows, config)
        found = {}
        for t, (i, window) in enumerate(zip(owners.tolist(), windows.tolist(), strict=True)):
            top, left, height, width, row, column = window
            image = images[i]
            # Two levels of 8 bits that differ are enough; most windows need no second look.
            if image.dtype == np.uint8 and height * width >= config.trial.clusters:
                levels = image if image.ndim == 2 else image[:, :, 0]
                click = levels[top + row, left + column]
                if click != levels[top, left] or click != levels[top + height - 1, left + width - 1]:
                    continue
            if why := self.check(image, Window(*window), config):
                found[t] = why
        return found

    def maps(self, batch: Batch, config: LabelConfig) -> Maps:
        """Return the share of trials that clustered each pixel with the click (eq. 9).

        Of a target with several marks it is the mean of the TPMs that each mark alone would give. The union
        of the marks' segments would hold background wherever a mark near the edge falls into a background
        segment.
        """
        arguments = batch.packed, batch.windows, batch.keys, config.trial, config.trials
        if config.stop_change > 0:
            counts, _, trials = run_until_stable(*arguments, config.stop_change, marks=batch.marks)
        else:
            counts = run_trials(*arguments, marks=batch.marks).counts
            trials = torch.full((len(batch.targets),), config.trials)
        return Maps(counts, trials, divisors=trials * (1 + batch.marks.numbers))


class ComponentVote(Maker):
    """Vote of the connected components at the click over all gray levels, see `vote_components`."""

    def window(
        self, shape: tuple[int, int], point: Point, config: LabelConfig, key: int, index: int
    ) -> Window:
        """Return the window of `config.components.radius` pixels around the marks."""
        return centered_window(shape, point, config.components.radius)

    def windows(self, targets: Annotated, config: LabelConfig) -> np.ndarray:
        """Return the windows of many targets at once, see `Maker.windows`."""
        if type(self).window is not ComponentVote.window:
            return super().windows(targets, config)
        return centered_windows(targets, config.components.radius)

    def maps(self, batch: Batch, config: LabelConfig) -> Maps:
        """Return the TPMs of the vote, the confidences, and the areas of the masks.

        A target with several marks has the mean of the TPMs and confidences that each of them gives, and the
        largest of the areas.
        """
        windows, categories, votes = batch.windows, batch.targets.categories, None
        others = batch.targets.others
        if len(batch.marks.pixels):
            votes = 1 + batch.marks.numbers
            owner = torch.repeat_interleave(torch.arange(len(windows)), votes)
            windows, categories, others = windows[owner], categories[owner], others[owner]
            further = torch.ones(len(owner), dtype=torch.bool)
            further[torch.cumsum(votes, 0) - votes] = False
            row, column = windows.click_row.clone(), windows.click_column.clone()
            row[further] = batch.marks.pixels // windows.width[further]
            column[further] = batch.marks.pixels % windows.width[further]
            windows = windows.replace(click_row=row, click_column=column)
        found = vote_components(batch.packed, windows, categories, config.components, others=others)
        return Maps(found.tpm, confidence=found.confidence, area=found.area, votes=votes)


class GrabCut(WindowMaker):
    """GrabCut in the published window, see `grabcut_mask`."""

    def tpm(
        self, pixels: np.ndarray, marks: Sequence[int], box: np.ndarray | None, config: LabelConfig
    ) -> np.ndarray:
        """Return the mask of GrabCut."""
        return grabcut_mask(pixels, marks, box)


class MarkedPixels(WindowMaker):
    """The marked pixels, or the whole box, see `marked_mask`."""

    def tpm(
        self, pixels: np.ndarray, marks: Sequence[int], box: np.ndarray | None, config: LabelConfig
    ) -> np.ndarray:
        """Return the mask of the marks."""
        height, width = pixels.shape[:2]
        return marked_mask((height, width), marks, box)


def marked_mask(shape: tuple[int, int], marks: Sequence[int], box: np.ndarray | None) -> np.ndarray:
    """Return the mask of the marked pixels, or of the whole box.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the window in pixels.
    marks : sequence of int
        row * width + column of each marked pixel.
    box : ndarray of bool, [h, w], or None
        Pixels inside the box.

    Returns
    -------
    ndarray of bool, [h, w]
    """
    if box is not None:
        return box
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[list(marks)] = True
    return mask


def grabcut_mask(pixels: np.ndarray, marks: Sequence[int], box: np.ndarray | None) -> np.ndarray:
    """Segment a window by GrabCut (Rother et al., 2004, DOI 10.1145/1015706.1015720), by OpenCV.

    Marked pixels are the target and the window's outermost pixels are not; what lies within an eighth of the
    window's shorter side of a mark (at least 1 px, chessboard distance) begins as probably the target's, the
    rest as probably not. A box instead of marks: outside it is background, inside begins as probably target.
    Of the result the 8-connected parts that hold a mark are kept; with a box, all of it.

    Parameters
    ----------
    pixels : ndarray, [h, w] or [h, w, 3]
        Any real dtype; others than uint8 are scaled by their own range.
    marks : sequence of int
        row * width + column of each marked pixel, at least one.
    box : ndarray of bool, [h, w], or None
        Pixels inside the box.

    Returns
    -------
    ndarray of bool, [h, w]

    Raises
    ------
    InputError
        OpenCV is not installed.
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
    colors = np.rint(network_levels(pixels, 3, robust=False)).astype(np.uint8).transpose(1, 2, 0)
    cv2.setRNGSeed(0)  # of this thread: its k-means draws start centers
    cv2.grabCut(
        np.ascontiguousarray(colors),
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
