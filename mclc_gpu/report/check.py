"""What in a set of masks a person should look at: labels that are likely wrong, found target by target."""

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

from mclc_gpu.data.annotations import POINT_AREA, SPOT_AREA, Point, category_of
from mclc_gpu.labels.folder import LOW_CONFIDENCE, LabelFiles, Row
from mclc_gpu.labels.windows import Window, box_pixels, nearest_pixel
from mclc_gpu.score.matching import Components, components_of

# Each kind of doubt, and how urgent it is: the sum of a target's decides what is shown first.
CLICK_DOUBTS: dict[str, float] = {
    "no mask of its own": 6,
    "two clicks on one mask": 4,
    "click outside its mask": 3,
    "mask without a click": 3,
    "loose pieces beside its mask": 2.5,
    "area out of line with the category": 2,
    "mask touches its window's border": 2,
    "click far from the mask's centre": 1.5,
    "low confidence": 1,
}
TRUTH_DOUBTS: dict[str, float] = {"missed target": 6, "false alarm": 4}  # where no clicks are known
DOUBTS = CLICK_DOUBTS | TRUTH_DOUBTS
BINS = 10  # of the TPM's reliability, over probabilities above 0
_AREAS = {
    "point": (1, POINT_AREA),
    "spot": (POINT_AREA + 1, SPOT_AREA),
    "extended": (SPOT_AREA + 1, math.inf),
}
_SLACK = 2.0  # an area may miss its category's range by this factor: categories are judged by eye
_BESIDE = 1.5  # pixels: a click on a neighbour of the mask is a matter of the hand
_HAND = 3.0  # pixels by which a hand may miss the middle of a small target
_LEAST_VIEW = 25  # pixels, side of the smallest picture

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Checked:
    """One target, or one false alarm.

    Attributes:
        stem, index: Its image, and its place among the image's points; None where no points are known.
        x, y: The click, else the centroid: column and row in pixels.
        category: As it was used, else by area.
        area: Pixels of its mask: of the component at the click, or of all that meet the true target.
        confidence: Expected IoU; NaN where it is not known.
        iou: Of that mask and the true targets it meets; NaN where the truth is not known.
        doubts: Why to look at it, each a key of `DOUBTS` and what was found.
        urgency: Of the doubts together.
        view: (top, left, bottom, right), what a picture of it should show, inside the image.
    """

    stem: str
    index: int | None
    x: float
    y: float
    category: str | None
    area: int
    confidence: float
    iou: float
    doubts: tuple[tuple[str, str], ...]
    urgency: float
    view: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """The image, with the target's place among its points, as `mclc-gpu show` takes it."""
        return self.stem if self.index is None else f"{self.stem}:{self.index}"


class Looked(NamedTuple):
    """What `look` found in one image; reliability float64 [3, BINS]: pixels, true ones, sum of the TPM."""

    targets: list[Checked]
    reliability: np.ndarray | None


def look(
    stem: str,
    mask: np.ndarray,
    truth: np.ndarray | None = None,
    tpm: np.ndarray | None = None,
    labels: LabelFiles | None = None,
) -> Looked:
    """Check the targets of one image; for threads too.

    Where the label run knows the image its points are the targets. Elsewhere the true components are, and the
    predicted components that meet none of them are false alarms.

    Args:
        stem: Of the image.
        mask, truth: bool [H, W].
        tpm: float [H, W], 0..1.
        labels: The run.
    """
    found = _Regions.of(mask)
    true = None if truth is None else _Regions.of(truth)
    if labels is not None and stem in labels.points:
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
    return Looked(targets, reliability)


@dataclass(frozen=True)
class _Regions:
    """The components of a mask, and the box of each."""

    parts: Components
    boxes: list[tuple[slice, slice]]

    @staticmethod
    def of(mask: np.ndarray) -> "_Regions":
        parts = components_of(mask)
        return _Regions(parts, ndimage.find_objects(parts.labels))

    def overlap(self, number: int, other: "_Regions") -> tuple[float, list[int]]:
        """IoU of a component with all of the others that it meets, and which those are."""
        own = self.parts.labels[self.boxes[number]] == number + 1
        shared = other.parts.labels[self.boxes[number]][own]
        shared = shared[shared > 0]
        met = np.unique(shared) - 1
        union = self.parts.area[number] + other.parts.area[met].sum() - len(shared)
        return len(shared) / float(union), met.tolist()


def _check_clicks(stem: str, labels: LabelFiles, found: _Regions, true: _Regions | None) -> list[Checked]:
    points = labels.points[stem]
    rows = labels.rows.get(stem) or [Row(labels.summary.get("estimated_categories") != 0, math.nan)] * len(
        points
    )
    height, width = found.parts.labels.shape
    windows = [labels.window(stem, index, (height, width)) for index in range(len(points))]
    under = [_under(found.parts.labels, point) for point in points]
    owners = [
        (own, 0.0) if own >= 0 else _nearest(found.parts.labels, window, under)
        for own, window in zip(under, windows, strict=True)
    ]
    owned = Counter(number for number, _ in owners)
    pieces, checked = _loose(stem, found, true, set(owned), windows)
    for index, (point, row, window) in enumerate(zip(points, rows, windows, strict=True)):
        number, beside = owners[index]
        doubts = []
        met: list[int] = []
        iou = math.nan if true is None else 0.0
        if number < 0:
            doubts.append(("no mask of its own", "none in its window that no other click lies on"))
        else:
            doubts = _doubts_of_mask(point, row, window, found, number, beside, owned[number] > 1)
            if true is not None:
                iou, met = found.overlap(number, true)
        if pieces[index]:
            loose = int(found.parts.area[pieces[index]].sum())
            doubts.append(("loose pieces beside its mask", f"{loose} px in {len(pieces[index])} of them"))
        if row.confidence < LOW_CONFIDENCE:
            doubts.append(("low confidence", f"{row.confidence:.2f}"))
        y, x = nearest_pixel(point.x, point.y, height, width)
        boxes = [np.s_[y : y + 1, x : x + 1], *([found.boxes[number]] if number >= 0 else [])]
        boxes += [found.boxes[piece] for piece in pieces[index]]
        boxes += [true.boxes[m] for m in met] if true is not None else []
        # The less confident of two targets with the same doubts comes first.
        unsure = 0.5 if math.isnan(row.confidence) else 2 * (1 - row.confidence)
        urgency = sum(DOUBTS[kind] for kind, _ in doubts) + unsure
        area = int(found.parts.area[number]) if number >= 0 else 0
        view = _view(boxes, (height, width))
        about = point.x, point.y, point.category, area, row.confidence, iou
        checked.append(Checked(stem, index, *about, tuple(doubts), urgency, view))
    return checked


def _loose(
    stem: str, found: _Regions, true: _Regions | None, owned: Collection[int], windows: Sequence[Window]
) -> tuple[list[list[int]], list[Checked]]:
    """Components without a click: those in each target's window (of several, the nearest's), and the rest."""
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
    """The component that most of a target's marks lie on, or its box holds most of; -1: none."""
    height, width = labels.shape
    if point.box is not None:
        left, top, right, bottom = box_pixels(point.box, height, width)
        marked = labels[top:bottom, left:right].ravel()
    else:
        pixels = [nearest_pixel(x, y, height, width) for x, y in ((point.x, point.y), *point.seeds)]
        marked = np.array([labels[pixel] for pixel in pixels])
    counts = np.bincount(marked)
    counts[0] = 0
    return int(counts.argmax()) - 1 if counts.any() else -1


def _nearest(labels: np.ndarray, window: Window, taken: Sequence[int]) -> tuple[int, float]:
    """The component nearest to the click in its window that no click lies on, and how far; -1: none."""
    part = labels[window.area]
    rows, columns = np.nonzero(part)
    distance = np.hypot(rows - window.click_row, columns - window.click_column)
    for at in np.argsort(distance, kind="stable").tolist():
        number = int(part[rows[at], columns[at]]) - 1
        if number not in taken:
            return number, float(distance[at])
    return -1, math.inf


def _doubts_of_mask(
    point: Point, row: Row, window: Window, found: _Regions, number: int, beside: float, shared: bool
) -> list[tuple[str, str]]:
    doubts = []
    area, centroid = int(found.parts.area[number]), found.parts.centroid[number]
    marks = [(point.x, point.y), *point.seeds]
    x, y = (sum(values) / len(marks) for values in zip(*marks, strict=True))
    away = math.hypot(y - centroid[0], x - centroid[1])
    if shared:
        # The mask is another target's too: neither its area nor its centre need fit.
        return [("two clicks on one mask", f"of {area} px")]
    if beside > _BESIDE:
        doubts.append(("click outside its mask", f"{beside:.1f} px from it"))
    elif away > _HAND + 0.5 * math.sqrt(area / math.pi):
        doubts.append(("click far from the mask's centre", f"{away:.1f} px"))
    low, high = _AREAS.get(str(point.category), (0, math.inf))
    if not row.estimated and not low / _SLACK <= area <= high * _SLACK:
        said = f"{area} px drawn, {category_of(area)} rather than {point.category}"
        doubts.append(("area out of line with the category", said))
    part = found.parts.labels[window.area] == number + 1
    height, width = found.parts.labels.shape
    sides = part[0], part[-1], part[:, 0], part[:, -1]
    inside = window.top > 0, window.bottom < height, window.left > 0, window.right < width
    if any(cut and bool(side.any()) for side, cut in zip(sides, inside, strict=True)):
        doubts.append(("mask touches its window's border", f"of {window.width} x {window.height} px"))
    return doubts


def _check_truth(stem: str, found: _Regions, true: _Regions) -> list[Checked]:
    checked = []
    for own, other, kind in ((true, found, "missed target"), (found, true, "false alarm")):
        for number in range(len(own.boxes)):
            iou, met = own.overlap(number, other)
            if own is true or not met:
                checked.append(_without_click(stem, "" if met else kind, number, own, other, iou, met))
    return checked


def _without_click(
    stem: str, kind: str, number: int, own: _Regions, other: _Regions | None, iou: float, met: Sequence[int]
) -> Checked:
    """A component as a target, with those of the other mask that it meets; `kind` of doubt, or ""."""
    area, (y, x) = int(own.parts.area[number]), own.parts.centroid[number].tolist()
    boxes = [own.boxes[number], *(other.boxes[m] for m in met)] if other is not None else [own.boxes[number]]
    drawn = area
    if kind in ("", "missed target") and other is not None:
        drawn = int(other.parts.area[list(met)].sum())
    doubts = ((kind, f"{area} px"),) if kind else ()
    # Of equals the larger one matters more.
    urgency = sum(DOUBTS[one] for one, _ in doubts) + 1 - 1 / (1 + math.log1p(area))
    view = _view(boxes, (own.parts.labels.shape[0], own.parts.labels.shape[1]))
    about = x, y, category_of(area), drawn, math.nan, iou
    return Checked(stem, None, *about, doubts, urgency, view)


def _view(boxes: Sequence[tuple[slice, slice]], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square around all these boxes, with room, moved and cut to fit into the image."""
    starts = [min(box[axis].start for box in boxes) for axis in (0, 1)]
    stops = [max(box[axis].stop for box in boxes) for axis in (0, 1)]
    longest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    side = max(longest + 2 * max(6, longest // 4), _LEAST_VIEW)
    first = [
        min(max((start + stop - side) // 2, 0), max(length - side, 0))
        for start, stop, length in zip(starts, stops, shape, strict=True)
    ]
    return first[0], first[1], min(first[0] + side, shape[0]), min(first[1] + side, shape[1])


class Top(Generic[Item]):
    """The items of highest keys among all that it is given; of equal keys the first."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._numbers = itertools.count()
        self._heap: list[tuple[tuple[float, ...], int, Item]] = []

    def add(self, key: tuple[float, ...], item: Item) -> None:
        """Take an item into account."""
        entry = (key, -next(self._numbers), item)
        if len(self._heap) < self._keep:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[Item]:
        """The highest first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass
class LabelCheck:
    """Gathers what `look` finds in image after image, in memory of 16 bytes a target and a bounded rest.

    Attributes:
        images: How many were looked at.
        targets: Theirs, false alarms among them.
        doubtful: Targets with a doubt.
        doubts: Targets by kind of doubt.
        suspects: The most urgent ones.
        unsure: The least confident ones among the others.
        worst, best: By IoU; of equals the larger.
        areas: Targets by the number of binary digits of their area.
        confidence, iou: Of every target, NaN where not known.
        reliability: See `Looked`.
    """

    images: int = 0
    targets: int = 0
    doubtful: int = 0
    doubts: Counter[str] = field(default_factory=Counter)
    suspects: Top[Checked] = field(default_factory=lambda: Top(200))
    unsure: Top[Checked] = field(default_factory=lambda: Top(40))
    worst: Top[Checked] = field(default_factory=lambda: Top(40))
    best: Top[Checked] = field(default_factory=lambda: Top(40))
    areas: Counter[int] = field(default_factory=Counter)
    confidence: "array[float]" = field(default_factory=lambda: array("d"))
    iou: "array[float]" = field(default_factory=lambda: array("d"))
    reliability: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))

    def add(self, looked: Looked) -> None:
        """Add one image."""
        self.images += 1
        if looked.reliability is not None:
            self.reliability += looked.reliability
        for target in looked.targets:
            self.targets += 1
            self.areas[target.area.bit_length()] += 1
            self.confidence.append(target.confidence)
            self.iou.append(target.iou)
            self.doubts.update(kind for kind, _ in target.doubts)
            if target.doubts:
                self.doubtful += 1
                self.suspects.add((target.urgency,), target)
            elif not math.isnan(target.confidence):
                self.unsure.add((-target.confidence,), target)
            if not math.isnan(target.iou):
                self.worst.add((-target.iou, target.area), target)
                self.best.add((target.iou, target.area), target)
