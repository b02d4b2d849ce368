"""Flag likely label errors target by target, for manual review."""

import heapq
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from scipy import ndimage

from mclc_gpu.data.annotations import CATEGORIES, Point, category_of
from mclc_gpu.kernels.config import CATEGORY_AREAS
from mclc_gpu.labels.folder import LOW_CONFIDENCE, LabelRun, TargetRow
from mclc_gpu.labels.windows import Window, box_pixels, nearest_pixel
from mclc_gpu.score.matching import Components, components_of

# Signs of a label error and their weights: the sum over a target's flags decides what is shown first.
CLICK_FLAGS: dict[str, float] = {
    "no mask of its own": 6,
    "two clicks on one mask": 4,
    "click outside its mask": 3,
    "mask without a click": 3,
    "loose pieces beside its mask": 2.5,
    "area does not fit the category": 2,
    "mask touches the border of its window": 2,
    "click far from the center of its mask": 1.5,
    "low confidence": 1,
}
TRUTH_FLAGS: dict[str, float] = {"missed target": 6, "false alarm": 4}  # where no clicks are known
FLAGS = CLICK_FLAGS | TRUTH_FLAGS
BINS = 10  # of the TPM's reliability, over probabilities above 0
_AREAS: dict[str, tuple[int, float]] = dict(zip(CATEGORIES, CATEGORY_AREAS, strict=True))
_AREAS["extended"] = (_AREAS["extended"][0], math.inf)  # a mask may be larger than any window
_AREA_TOLERANCE = 2.0  # factor by which an area may miss its category's range: categories are judged by eye
_BESIDE = 1.5  # pixels: a click on a neighbor of the mask is within the accuracy of a hand
_HAND = 3.0  # pixels by which a hand may miss the middle of a small target
_LEAST_VIEW = 25  # pixels, side of the smallest image section

Item = TypeVar("Item")


class TopK(Generic[Item]):
    """Keep the items of highest keys; of equal keys the first ones added.

    Parameters
    ----------
    keep : int
        Number of items, k.

    Examples
    --------
    >>> from mclc_gpu.report.check import TopK
    >>> top = TopK[str](2)
    >>> for key, item in ((1, "a"), (3, "b"), (3, "c"), (3, "d")):
    ...     top.add((key,), item)
    >>> top.items()
    ['b', 'c']
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._numbers = itertools.count()
        self._heap: list[tuple[tuple[float, ...], int, Item]] = []  # its first entry is the next to go

    def admits(self, key: tuple[float, ...]) -> bool:
        """Return whether an item of this key would be kept."""
        return len(self._heap) < self._keep or key > self._heap[0][0]

    def add(self, key: tuple[float, ...], item: Item) -> None:
        """Keep an item if its key is among the highest so far."""
        if self.admits(key):
            heapq.heappush(self._heap, (key, -next(self._numbers), item))
            if len(self._heap) > self._keep:
                heapq.heappop(self._heap)

    def items(self) -> list[Item]:
        """Return the items, highest key first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass(frozen=True, slots=True)
class CheckedTarget:
    """One target, or one predicted component without a target.

    Attributes
    ----------
    stem : str
        Image.
    index : int or None
        Position among the image's points; None where no points are known.
    x, y : float
        Click, or else centroid: column and row in pixels.
    category : str or None
        Category that the label run used, or else that of the area.
    area : int
        Pixels of its mask: of the component at the click, or of all that meet the true target.
    confidence : float
        Expected IoU; NaN where it is not known.
    iou : float
        IoU of that mask and the true targets it meets; NaN where the truth is not known.
    flags : tuple of (str, str)
        Signs of an error, each a key of `FLAGS` and the finding.
    urgency : float
        Sum of the flags' weights; the higher, the earlier the target is shown.
    view : tuple of int
        (top, left, bottom, right) of the section of the image to show, inside the image.
    """

    stem: str
    index: int | None
    x: float
    y: float
    category: str | None
    area: int
    confidence: float
    iou: float
    flags: tuple[tuple[str, str], ...]
    urgency: float
    view: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """Image with the target's position among its points, as ``mclc-gpu show`` takes it."""
        return self.stem if self.index is None else f"{self.stem}:{self.index}"


class ImageCheck(NamedTuple):
    """Findings in one image.

    Attributes
    ----------
    targets : list of CheckedTarget
    reliability : ndarray of float64, [3, BINS], or None
        Pixels, true pixels and sum of the TPM, by bins of the TPM; None where TPM or truth are not known.
    """

    targets: list[CheckedTarget]
    reliability: np.ndarray | None


def check_image(
    stem: str,
    mask: np.ndarray,
    truth: np.ndarray | None = None,
    tpm: np.ndarray | None = None,
    labels: LabelRun | None = None,
) -> ImageCheck:
    """Check the targets of one image; threads may call it at once.

    Where the label run knows the image its points are the targets. Otherwise the true components are, and
    predicted components that meet none of them are false alarms.

    Parameters
    ----------
    stem : str
        Name of the image.
    mask, truth : ndarray of bool, [H, W]
    tpm : ndarray of float, [H, W], 0..1
    labels : LabelRun, optional
        Label run that made the mask.
    """
    found = _Regions.of(mask)
    true = None if truth is None else _Regions.of(truth)
    if labels is not None and stem in labels.rows:
        targets = _check_clicks(stem, labels, found, true)
    else:
        targets = [] if true is None else _check_truth(stem, found, true)
    reliability = None
    if tpm is not None and truth is not None:
        shown = tpm > 0
        values = tpm[shown].astype(np.float64)
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        weights = (None, truth[shown].astype(np.float64), values)
        reliability = np.stack([np.bincount(bins, w, BINS).astype(np.float64) for w in weights])
    return ImageCheck(targets, reliability)


@dataclass(frozen=True)
class _Regions:
    """Components of a mask, and the bounding box of each."""

    parts: Components
    boxes: list[tuple[slice, slice]]

    @staticmethod
    def of(mask: np.ndarray) -> "_Regions":
        parts = components_of(mask)
        return _Regions(parts, ndimage.find_objects(parts.labels))

    def overlap(self, number: int, other: "_Regions") -> tuple[float, list[int]]:
        """Return the IoU of a component with all components of another mask that it meets, and these."""
        own = self.parts.labels[self.boxes[number]] == number + 1
        shared = other.parts.labels[self.boxes[number]][own]
        shared = shared[shared > 0]
        met = np.unique(shared) - 1
        union = self.parts.area[number] + other.parts.area[met].sum() - len(shared)
        return len(shared) / float(union), met.tolist()


def _check_clicks(stem: str, labels: LabelRun, found: _Regions, true: _Regions | None) -> list[CheckedTarget]:
    rows = labels.rows[stem]
    height, width = found.parts.labels.shape
    windows = labels.windows(stem, (height, width))
    under = [_under(found.parts.labels, row.point) for row in rows]
    owners = [
        (own, 0.0) if own >= 0 else _nearest(found.parts.labels, window, under)
        for own, window in zip(under, windows, strict=True)
    ]
    owned = Counter(number for number, _ in owners)
    pieces, checked = _loose(stem, found, true, set(owned), windows)
    for index, (row, window) in enumerate(zip(rows, windows, strict=True)):
        point, (number, beside) = row.point, owners[index]
        flags = []
        met: list[int] = []
        iou = math.nan if true is None else 0.0
        if number < 0:
            flags.append(("no mask of its own", "none in its window that no other click lies on"))
        else:
            flags = _flags_of_mask(row, window, found, number, beside, owned[number] > 1)
            if true is not None:
                iou, met = found.overlap(number, true)
        if pieces[index]:
            loose = int(found.parts.area[pieces[index]].sum())
            flags.append(("loose pieces beside its mask", f"{loose} px in {len(pieces[index])} of them"))
        if row.confidence < LOW_CONFIDENCE:
            flags.append(("low confidence", f"{row.confidence:.2f}"))
        if row.corrected:
            flags = []  # somebody has looked at it
        y, x = nearest_pixel(point.x, point.y, height, width)
        boxes = [np.s_[y : y + 1, x : x + 1], *([found.boxes[number]] if number >= 0 else [])]
        boxes += [found.boxes[piece] for piece in pieces[index]]
        boxes += [true.boxes[m] for m in met] if true is not None else []
        # The less confident of two targets with the same flags comes first.
        unsure = 0.5 if math.isnan(row.confidence) else 2 * (1 - row.confidence)
        urgency = sum(FLAGS[kind] for kind, _ in flags) + unsure
        area = int(found.parts.area[number]) if number >= 0 else 0
        view = _view(boxes, (height, width))
        about = point.x, point.y, point.category, area, row.confidence, iou
        checked.append(CheckedTarget(stem, index, *about, tuple(flags), urgency, view))
    return checked


def _loose(
    stem: str, found: _Regions, true: _Regions | None, owned: Collection[int], windows: Sequence[Window]
) -> tuple[list[list[int]], list[CheckedTarget]]:
    """Give the components without a click to the nearest target whose window they touch, if there is one.

    Returns the components of each target, and the rest as targets of their own.
    """
    of_target: list[list[int]] = [[] for _ in windows]
    rest = []
    for number, (rows, columns) in enumerate(found.boxes):
        if number in owned:
            continue
        y, x = found.parts.centroid[number].tolist()
        near = [
            (math.hypot(w.top + w.click_row - y, w.left + w.click_column - x), index)
            for index, w in enumerate(windows)
            if rows.start < w.bottom
            and rows.stop > w.top
            and columns.start < w.right
            and columns.stop > w.left
        ]
        if near:
            of_target[min(near)[1]].append(number)
        else:
            iou, met = (math.nan, []) if true is None else found.overlap(number, true)
            rest.append(_without_click(stem, "mask without a click", number, found, true, iou, met))
    return of_target, rest


def _under(labels: np.ndarray, point: Point) -> int:
    """Find the component that most of a target's marks lie on, or its box holds most of; -1: none."""
    height, width = labels.shape
    if point.box is not None:
        left, top, right, bottom = box_pixels(point.box, height, width)
        marked = labels[top:bottom, left:right].ravel()
    else:
        pixels = [nearest_pixel(x, y, height, width) for x, y in point.marks]
        marked = np.array([labels[pixel] for pixel in pixels])
    counts = np.bincount(marked)
    counts[0] = 0
    return int(counts.argmax()) - 1 if counts.any() else -1


def _nearest(labels: np.ndarray, window: Window, taken: Sequence[int]) -> tuple[int, float]:
    """Find the component in a window that no click lies on and is nearest to the window's click, -1: none.

    Returns its distance in pixels too.
    """
    part = labels[window.area]
    rows, columns = np.nonzero(part)
    distance = np.hypot(rows - window.click_row, columns - window.click_column)
    for at in np.argsort(distance, kind="stable").tolist():
        number = int(part[rows[at], columns[at]]) - 1
        if number not in taken:
            return number, float(distance[at])
    return -1, math.inf


def _flags_of_mask(
    row: TargetRow, window: Window, found: _Regions, number: int, beside: float, shared: bool
) -> list[tuple[str, str]]:
    """Compare the mask of a target with its click, category and window.

    `number`: its component. `beside`: pixels from the click to it. `shared`: it is another target's too.
    """
    flags = []
    point = row.point
    area, centroid = int(found.parts.area[number]), found.parts.centroid[number]
    marks = point.marks
    x, y = (sum(values) / len(marks) for values in zip(*marks, strict=True))
    away = math.hypot(y - centroid[0], x - centroid[1])
    if shared:
        # Neither area nor center of a shared mask need fit this target.
        return [("two clicks on one mask", f"of {area} px")]
    if beside > _BESIDE:
        flags.append(("click outside its mask", f"{beside:.1f} px from it"))
    elif away > _HAND + 0.5 * math.sqrt(area / math.pi):
        flags.append(("click far from the center of its mask", f"{away:.1f} px"))
    low, high = _AREAS.get(str(point.category), (0, math.inf))
    if not row.estimated and not low / _AREA_TOLERANCE <= area <= high * _AREA_TOLERANCE:
        finding = f"{area} px drawn, {category_of(area)} rather than {point.category}"
        flags.append(("area does not fit the category", finding))
    part = found.parts.labels[window.area] == number + 1
    height, width = found.parts.labels.shape
    sides = part[0], part[-1], part[:, 0], part[:, -1]
    inside = window.top > 0, window.bottom < height, window.left > 0, window.right < width
    if any(cut and bool(side.any()) for side, cut in zip(sides, inside, strict=True)):
        flags.append(("mask touches the border of its window", f"of {window.width} x {window.height} px"))
    return flags


def _check_truth(stem: str, found: _Regions, true: _Regions) -> list[CheckedTarget]:
    checked = []
    for own, other, kind in ((true, found, "missed target"), (found, true, "false alarm")):
        for number in range(len(own.boxes)):
            iou, met = own.overlap(number, other)
            if own is true or not met:
                checked.append(_without_click(stem, "" if met else kind, number, own, other, iou, met))
    return checked


def _without_click(
    stem: str, kind: str, number: int, own: _Regions, other: _Regions | None, iou: float, met: Sequence[int]
) -> CheckedTarget:
    """Make a target of a component and of those of the other mask that it meets; `kind`: its flag, or ""."""
    area, (y, x) = int(own.parts.area[number]), own.parts.centroid[number].tolist()
    boxes = [own.boxes[number], *(other.boxes[m] for m in met)] if other is not None else [own.boxes[number]]
    drawn = area
    if kind in ("", "missed target") and other is not None:
        drawn = int(other.parts.area[list(met)].sum())
    flags = ((kind, f"{area} px"),) if kind else ()
    # Of equal flags the larger component matters more.
    urgency = sum(FLAGS[one] for one, _ in flags) + 1 - 1 / (1 + math.log1p(area))
    view = _view(boxes, (own.parts.labels.shape[0], own.parts.labels.shape[1]))
    about = x, y, category_of(area), drawn, math.nan, iou
    return CheckedTarget(stem, None, *about, flags, urgency, view)


def _view(boxes: Sequence[tuple[slice, slice]], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a square around boxes with a margin, moved and cut to fit into the image."""
    starts = [min(box[axis].start for box in boxes) for axis in (0, 1)]
    stops = [max(box[axis].stop for box in boxes) for axis in (0, 1)]
    longest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    side = max(longest + 2 * max(6, longest // 4), _LEAST_VIEW)
    first = [
        min(max((start + stop - side) // 2, 0), max(length - side, 0))
        for start, stop, length in zip(starts, stops, shape, strict=True)
    ]
    return first[0], first[1], min(first[0] + side, shape[0]), min(first[1] + side, shape[1])


@dataclass
class LabelCheck:
    """Collect the findings of image after image, in 16 bytes per target and bounded memory besides.

    Attributes
    ----------
    images, targets : int
        Numbers so far; false alarms count as targets.
    flagged : int
        Targets with a flag.
    flags : Counter of str
        Targets by flag.
    urgent : TopK of CheckedTarget
        Flagged targets of highest urgency.
    unsure : TopK of CheckedTarget
        Targets of lowest confidence without a flag.
    worst, best : TopK of CheckedTarget
        Targets of lowest and highest IoU; of equal ones the larger.
    areas : Counter of int
        Targets by the number of binary digits of their area.
    confidence, iou : array of float
        Values of every target, NaN where not known.
    reliability : ndarray of float64, [3, BINS]
        See `ImageCheck`.
    """

    images: int = 0
    targets: int = 0
    flagged: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    urgent: TopK[CheckedTarget] = field(default_factory=lambda: TopK(200))
    unsure: TopK[CheckedTarget] = field(default_factory=lambda: TopK(40))
    worst: TopK[CheckedTarget] = field(default_factory=lambda: TopK(40))
    best: TopK[CheckedTarget] = field(default_factory=lambda: TopK(40))
    areas: Counter[int] = field(default_factory=Counter)
    confidence: "array[float]" = field(default_factory=lambda: array("d"))
    iou: "array[float]" = field(default_factory=lambda: array("d"))
    reliability: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))

    def add(self, checked: ImageCheck) -> None:
        """Add one image."""
        self.images += 1
        if checked.reliability is not None:
            self.reliability += checked.reliability
        for target in checked.targets:
            self.targets += 1
            self.areas[target.area.bit_length()] += 1
            self.confidence.append(target.confidence)
            self.iou.append(target.iou)
            self.flags.update(kind for kind, _ in target.flags)
            if target.flags:
                self.flagged += 1
                self.urgent.add((target.urgency,), target)
            elif not math.isnan(target.confidence):
                self.unsure.add((-target.confidence,), target)
            if not math.isnan(target.iou):
                self.worst.add((-target.iou, target.area), target)
                self.best.add((target.iou, target.area), target)
