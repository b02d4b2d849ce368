"""Scores of predicted masks against true masks, by pixel and by target (IoU, nIoU, Pd, Fa, F1)."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mclc_gpu.data.annotations import CATEGORIES, category_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.jit_cpu import compiled


@dataclass(frozen=True, slots=True)
class Convention:
    """How predicted components are given to targets, and what is left over.

    In either convention components are 8-connected and numbered in the order in which rows, read from the
    top, first meet them. Targets choose in that order, each among the components that no earlier target has
    taken and whose centroid lies less than 3 px (strictly) from the target's. Pd is the share of targets that
    found one.

    Attributes:
        name: As it is written on the command line and in JSON.
        nearest: A target takes the nearest of those components, of equally near ones the first; else it
            takes the first, however far.
        alarms_by_area: A component that no target took is a false alarm unless its area in pixels equals that
            of a component that one took in the same image; else it always is one.
    """

    name: str
    nearest: bool
    alarms_by_area: bool


CANONICAL = Convention("canonical", nearest=True, alarms_by_area=False)

# Many papers on infrared small targets report the Pd and Fa of the metric published with DNANet (Li et al.,
# IEEE TIP 2023, doi:10.1109/TIP.2022.3199107), or of a copy of it. It compares areas where it means
# components: its false alarms are all predicted areas but for the values that occur among the areas of the
# matched components. So a match of 4 px hides every false alarm of 4 px in that image. Three habits of that
# code around the metric are left out: it resizes images to 256x256 and divides by that size, where here the
# image's own pixels count (the same at that size); it thresholds logits at 0, which is probability > 0.5; and
# only 255 is true in its masks (see `mclc_gpu.data.images.read_mask` for ours).
DNANET = Convention("dnanet", nearest=False, alarms_by_area=True)

CONVENTIONS = {convention.name: convention for convention in (CANONICAL, DNANET)}


def convention_of(name: str) -> Convention:
    """The convention of a name. Raises InputError for an unknown one."""
    if name not in CONVENTIONS:
        raise InputError(f"unknown convention {name!r}: choose one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


MATCH_DISTANCE = 3.0  # pixels between centroids, exclusive
DETECTED, FALSE_ALARM_PIXELS, INTERSECTION, PREDICTED = range(4)  # columns of what `sweep` returns


@compiled()
def match(true: np.ndarray, predicted: np.ndarray, first: np.ndarray, nearest: bool) -> np.ndarray:
    """The predicted component that each target takes, -1 for none; see `mclc_gpu.score.metrics.Convention`.

    Args:
        true: float64 [targets, 2], centroids (row, column), in the order in which the targets choose.
        predicted: float64 [components, 2], centroids, in any order.
        first: int64 [components], numbers in the order of the components' first pixels.
        nearest: Whether targets take the nearest component, or the first.

    Returns:
        int64 [targets], indices into `predicted`.
    """
    matched = np.full(len(true), -1, np.int64)
    free = np.ones(len(predicted), np.bool_)
    for target in range(len(true)):
        best, least = -1, MATCH_DISTANCE
        for p in range(len(predicted)):
            dy, dx = predicted[p, 0] - true[target, 0], predicted[p, 1] - true[target, 1]
            if not free[p] or abs(dy) > MATCH_DISTANCE or abs(dx) > MATCH_DISTANCE:
                continue
            # Centroids are rounded fractions: 3 px and equal distances must not depend on their last bits.
            distance = np.rint(math.hypot(dy, dx) * 1e9) / 1e9
            if distance >= MATCH_DISTANCE:
                continue
            closer = nearest and distance < least
            even = not nearest or distance == least
            if best < 0 or closer or (even and first[p] < first[best]):
                best, least = p, distance
        if best >= 0:
            matched[target] = best
            free[best] = False
    return matched


@compiled()
def false_alarm_pixels(area: np.ndarray, matched: np.ndarray, by_area: bool) -> int:
    """Pixels of the predicted components that are false alarms; see `mclc_gpu.score.metrics.Convention`.

    `area`: int64 [components]. `matched`: what `match` returned. `by_area`: the convention's.
    """
    alarm = np.ones(len(area), np.bool_)
    for taken in matched:
        if taken < 0:
            continue
        alarm[taken] = False
        if by_area:
            for p in range(len(area)):
                alarm[p] &= area[p] != area[taken]
    return area[alarm].sum()


@compiled()
def sweep(
    probability: np.ndarray,
    truth: np.ndarray,
    true: np.ndarray,
    thresholds: np.ndarray,
    nearest: bool,
    by_area: bool,
) -> np.ndarray:
    """Counts of one image at every threshold; at each one the prediction is probability > threshold.

    From the highest threshold down, pixels join a forest of components (union-find), which so is labelled
    once for all thresholds.

    Args:
        probability: float32 [H, W].
        truth: bool [H, W].
        true: float64 [targets, 2], the targets' centroids (row, column), in order of their first pixels.
        thresholds: float32 [N], ascending.
        nearest, by_area: The convention's.

    Returns:
        int64 [N, 4]: detected targets, false-alarm pixels, intersection, predicted pixels.
    """
    height, width = probability.shape
    counts = np.zeros((len(thresholds), 4), np.int64)
    pixels, starts = _by_level(probability, thresholds)
    parent = np.full(height * width, -1, np.int32)
    area = np.empty(height * width, np.int64)
    rows = np.empty(height * width, np.int64)
    columns = np.empty(height * width, np.int64)
    first = np.empty(height * width, np.int64)
    roots = np.empty(len(pixels), np.int32)
    place = np.empty(height * width, np.int32)  # of a root in `roots`
    components = 0
    for k in range(len(thresholds) - 1, -1, -1):
        if k + 1 < len(thresholds):
            counts[k] = counts[k + 1]
        # Level k + 1 holds the pixels above threshold k, but not above the next.
        joining = pixels[starts[k + 1] : starts[k + 2]]
        if not len(joining):
            continue
        for pixel in joining:
            row, column = pixel // width, pixel % width
            counts[k, INTERSECTION] += truth[row, column]
            parent[pixel], place[pixel] = pixel, components
            area[pixel], rows[pixel], columns[pixel], first[pixel] = 1, row, column, pixel
            roots[components] = pixel
            components += 1
            root = pixel
            for y in range(max(row - 1, 0), min(row + 2, height)):
                for x in range(max(column - 1, 0), min(column + 2, width)):
                    if parent[y * width + x] < 0:
                        continue
                    other = _root(parent, y * width + x)
                    if other == root:
                        continue
                    if area[other] > area[root]:
                        root, other = other, root
                    parent[other] = root
                    area[root] += area[other]
                    rows[root] += rows[other]
                    columns[root] += columns[other]
                    first[root] = min(first[root], first[other])
                    components -= 1
                    last = roots[components]
                    roots[place[other]], place[last] = last, place[other]
        counts[k, PREDICTED] += len(joining)
        present = roots[:components]
        areas = area[present]
        centroids = np.empty((components, 2), np.float64)
        centroids[:, 0] = rows[present] / areas
        centroids[:, 1] = columns[present] / areas
        matched = match(true, centroids, first[present], nearest)
        counts[k, DETECTED] = (matched >= 0).sum()
        counts[k, FALSE_ALARM_PIXELS] = false_alarm_pixels(areas, matched, by_area)
    return counts


@compiled()
def _by_level(probability: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels sorted by how many thresholds they exceed; those of level n are pixels[starts[n]:starts[n + 1]].

    Pixels that exceed none are left out.
    """
    flat = probability.ravel()
    level = np.zeros(len(flat), np.int32)
    starts = np.zeros(len(thresholds) + 2, np.int64)
    for pixel in range(len(flat)):
        if flat[pixel] > thresholds[0]:
            level[pixel] = np.searchsorted(thresholds, flat[pixel])
            starts[level[pixel] + 1] += 1
    starts = starts.cumsum()
    pixels = np.empty(starts[-1], np.int32)
    ends = starts.copy()
    for pixel in range(len(flat)):
        if level[pixel]:
            pixels[ends[level[pixel]]] = pixel
            ends[level[pixel]] += 1
    return pixels, starts


@compiled(inline="always")
def _root(parent: np.ndarray, pixel: int) -> int:
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel


_EIGHT = np.ones((3, 3), dtype=bool)


class CategoryCounts(NamedTuple):
    """Counts of the targets of one category: numbers of targets, pixels by the rule in `Scores`."""

    targets: int
    detected: int
    intersection: int
    union: int


@dataclass(frozen=True, slots=True)
class ImageScore:
    """Counts of one image; the pixels are those of its own size.

    Attributes:
        name: Name of the image, None when it was given without one.
        pixels: Height times width.
        intersection: Pixels true in both masks.
        predicted, true: Pixels of each mask.
        targets: True components.
        detected: True components with a predicted component matched to them.
        false_alarm_pixels: Pixels of the predicted components that are false alarms by the convention.
        categories: Counts per category of target (point, spot, extended), for those that occur.
    """

    name: str | None
    pixels: int
    intersection: int
    predicted: int
    true: int
    targets: int
    detected: int
    false_alarm_pixels: int
    categories: dict[str, CategoryCounts]

    @property
    def union(self) -> int:
        """Pixels true in either mask."""
        return self.predicted + self.true - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; NaN when both masks are empty."""
        return _ratio(self.intersection, self.union)


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """Scores of the targets of one category; see `Scores` for how pixels are given to targets.

    Attributes:
        iou: Intersection over union, 0 to 1.
        pd: Detected targets over targets, 0 to 1.
        targets, detected: Numbers of targets.
    """

    iou: float
    pd: float
    targets: int
    detected: int


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of a set of images. A ratio whose divisor is 0 is NaN.

    Attributes:
        iou: Total intersection over total union, 0 to 1.
        niou: Mean of the images' own IoU over the images whose masks are not both empty, 0 to 1.
        pd: Probability of detection: detected targets over targets, 0 to 1.
        fa: False-alarm rate: pixels of false alarms over all pixels, 0 to 1. Print it times 1e6.
        precision: Intersection over predicted pixels, 0 to 1.
        recall: Intersection over true pixels, 0 to 1.
        f1: Harmonic mean of precision and recall, 0 to 1.
        intersection, union, pixels, false_alarm_pixels: Numbers of pixels.
        targets, detected: Numbers of true components.
        images: Number of images.
        categories: Scores per category of target, for the categories that occur, smallest targets first.
        convention: Name of the definition of detections and false alarms.
    """

    iou: float
    niou: float
    pd: float
    fa: float
    precision: float
    recall: float
    f1: float
    intersection: int
    union: int
    pixels: int
    targets: int
    detected: int
    false_alarm_pixels: int
    images: int
    categories: dict[str, CategoryResult]
    convention: str = CANONICAL.name

    def as_dict(self) -> dict[str, object]:
        """All scores as numbers and nested dicts for JSON, with None instead of NaN."""

        def plain(items: Iterable[tuple[str, object]]) -> dict[str, object]:
            # NaN alone differs from itself; JSON has no word for it.
            return {key: value if value == value else None for key, value in items}

        return asdict(self, dict_factory=plain)

    def __str__(self) -> str:
        """A table of a few lines to print; a score that is not defined reads n/a."""
        headings = ("IoU", "nIoU", "Pd", "Fa x1e-6", "precision", "recall", "F1")
        values = (self.iou, self.niou, self.pd, self.fa * 1e6, self.precision, self.recall, self.f1)
        digits = (4, 4, 4, 2, 4, 4, 4)
        lines = [
            "  ".join(f"{heading:>9}" for heading in headings),
            "  ".join(f"{_cell(value, after):>9}" for value, after in zip(values, digits, strict=True)),
            f"{self.images} images, {self.detected} of {self.targets} targets detected, "
            f"{self.false_alarm_pixels} false-alarm pixels"
            + (f" (convention {self.convention})" if self.convention != CANONICAL.name else ""),
        ]
        lines += [
            f"  {category:<8}  IoU {_cell(one.iou, 4)}  Pd {_cell(one.pd, 4)}  "
            f"({one.detected} of {one.targets} detected)"
            for category, one in self.categories.items()
        ]
        return "\n".join(lines)


class Scores:
    """Collects images one by one and scores the set.

    Which components are detections and which false alarms is up to the convention: see
    `Convention`. In the canonical one each target takes the nearest free component whose
    centroid lies less than 3 px from its own, whether the two overlap or not; the components that are left
    are false alarms.

    An image without a true and without a predicted pixel has no IoU and is left out of nIoU's mean; it counts
    in every other score.

    Scores per category: a target's category follows from its area. Its intersection is the part of it that is
    predicted. Its union is its area and, for each predicted component that belongs to it, that component's
    pixels outside every target. A predicted component belongs to the target with which it shares most pixels
    (of equals the lowest number), or, sharing none, to the one it is matched to, or else to no category. So
    the intersections of all categories sum to the whole intersection, and the unions to the whole union less
    the components of no category.

    Instances can be pickled: gather those of several processes and `merge` them.
    """

    def __init__(self, convention: Convention = CANONICAL) -> None:
        self.convention = convention
        self.images: list[ImageScore] = []
        self._names: set[str] = set()

    def update(self, prediction: np.ndarray, truth: np.ndarray, name: str | None = None) -> ImageScore:
        """Score one image (see `score_image`), add it to the set and return its counts."""
        score = score_image(prediction, truth, name, self.convention)
        self.add(score)
        return score

    def add(self, score: ImageScore) -> None:
        """Add an image that was scored by this convention. Raises InputError for a name scored before."""
        if score.name is not None and score.name in self._names:
            raise InputError(f"{score.name}: scored twice: name every image once")
        self.images.append(score)
        if score.name is not None:
            self._names.add(score.name)

    def merge(self, other: "Scores") -> None:
        """Add the images of `other`, which stays as it was.

        A named image that is here already is passed over, as samplers repeat images to give every process as
        many. Any order of merging gives the same result as one run over all images. Raises ValueError when
        `other` was scored by another convention.
        """
        if other.convention != self.convention:
            raise ValueError(f"scores of {other.convention.name} cannot join {self.convention.name} ones")
        for score in other.images:
            if score.name not in self._names:
                self.add(score)

    def compute(self) -> Result:
        """Scores of all images so far; of none, counts of 0 and ratios of NaN."""

        def total(count: str) -> int:
            return sum(getattr(image, count) for image in self.images)

        intersection, predicted, true = total("intersection"), total("predicted"), total("true")
        targets, detected, alarms = total("targets"), total("detected"), total("false_alarm_pixels")
        union = predicted + true - intersection
        ious = [image.iou for image in self.images if image.union]
        return Result(
            iou=_ratio(intersection, union),
            # An exact sum does not depend on the order in which processes are merged.
            niou=_ratio(math.fsum(ious), len(ious)),
            pd=_ratio(detected, targets),
            fa=_ratio(alarms, total("pixels")),
            precision=_ratio(intersection, predicted),
            recall=_ratio(intersection, true),
            f1=_ratio(2 * intersection, predicted + true),
            intersection=intersection,
            union=union,
            pixels=total("pixels"),
            targets=targets,
            detected=detected,
            false_alarm_pixels=alarms,
            images=len(self.images),
            categories=self._category_results(),
            convention=self.convention.name,
        )

    def _category_results(self) -> dict[str, CategoryResult]:
        results = {}
        for category in CATEGORIES:
            counts = [image.categories[category] for image in self.images if category in image.categories]
            if counts:
                total = CategoryCounts(*map(sum, zip(*counts, strict=True)))
                results[category] = CategoryResult(
                    iou=_ratio(total.intersection, total.union),
                    pd=_ratio(total.detected, total.targets),
                    targets=total.targets,
                    detected=total.detected,
                )
        return results


class Components(NamedTuple):
    """The n components of a mask, numbered from 0; element 0 of the arrays is of component 0."""

    labels: np.ndarray  # int32 [H, W]: 0 on background, component + 1 elsewhere
    area: np.ndarray  # int64 [n], pixels
    centroid: np.ndarray  # float64 [n, 2], (row, column)


def components_of(mask: np.ndarray) -> Components:
    """The 8-connected components of a bool mask [H, W], in raster order of their first pixels."""
    labels, count = ndimage.label(mask, structure=_EIGHT)
    places = np.flatnonzero(mask)  # far quicker than places in two dimensions
    rows, columns = np.divmod(places, mask.shape[1])
    index = labels.ravel()[places] - 1
    area = np.bincount(index, minlength=count)
    sums = [np.bincount(index, weights=axis, minlength=count) for axis in (rows, columns)]
    return Components(labels, area, np.stack(sums, axis=1) / area[:, None])


def score_image(
    prediction: np.ndarray, truth: np.ndarray, name: str | None = None, convention: Convention = CANONICAL
) -> ImageScore:
    """Counts of one image.

    Args:
        prediction, truth: bool [H, W], true on targets, at the image's own size.
        name: Name of the image, for messages and to tell images apart in `Scores`.
        convention: What counts as a detection and as a false alarm.

    Raises:
        InputError: Masks of different sizes, not of two dimensions, without pixels or not bool.
    """
    check_pair(prediction, truth, name)
    true, predicted = components_of(truth), components_of(prediction)
    order = np.arange(len(predicted.area))
    matched = match(true.centroid, predicted.centroid, order, convention.nearest)
    return ImageScore(
        name=name,
        pixels=truth.size,
        intersection=int(np.count_nonzero(prediction & truth)),
        predicted=int(predicted.area.sum()),
        true=int(true.area.sum()),
        targets=len(true.area),
        detected=int(np.count_nonzero(matched >= 0)),
        false_alarm_pixels=int(false_alarm_pixels(predicted.area, matched, convention.alarms_by_area)),
        categories=_category_counts(true, predicted, matched),
    )


def _category_counts(
    true: Components, predicted: Components, matched: np.ndarray
) -> dict[str, CategoryCounts]:
    """Counts per category of target, by the rule in `Scores`."""
    n_true, n_predicted = len(true.area), len(predicted.area)
    if not n_true:
        return {}
    both = np.flatnonzero((true.labels > 0) & (predicted.labels > 0))
    pairs = (true.labels.ravel()[both] - 1) * n_predicted + predicted.labels.ravel()[both] - 1
    shared = np.bincount(pairs, minlength=n_true * n_predicted).reshape(n_true, n_predicted)
    union = true.area.copy()
    if n_predicted:
        covered = shared.sum(axis=0)
        owner = np.where(covered > 0, shared.argmax(axis=0), -1)
        targets = np.flatnonzero(matched >= 0)
        outside = targets[covered[matched[targets]] == 0]
        owner[matched[outside]] = outside
        owned = owner >= 0
        np.add.at(union, owner[owned], (predicted.area - covered)[owned])

    categories = np.array([category_of(int(area)) for area in true.area])
    per_target = np.stack([np.ones(n_true, np.int64), matched >= 0, shared.sum(axis=1), union], axis=1)
    return {
        str(category): CategoryCounts(*per_target[categories == category].sum(axis=0).tolist())
        for category in np.unique(categories)
    }


def mask_iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two masks, bool of one shape; NaN when both are empty."""
    return _ratio(int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction | truth)))


def check_pair(prediction: np.ndarray, truth: np.ndarray, name: str | None, kind: str = "bool") -> None:
    """Raise InputError unless `prediction` is of type `kind`, `truth` bool, and both of one size [H, W]."""
    where = name or "image"
    for role, mask, wanted in (("prediction", prediction, kind), ("truth", truth, "bool")):
        if mask.dtype != wanted or mask.ndim != 2 or not mask.size:
            raise InputError(
                f"{where}: the {role} is {mask.dtype} of shape {mask.shape}: "
                f"give a {wanted} array [H, W] with pixels"
            )
    if prediction.shape != truth.shape:
        (height, width), (rows, columns) = prediction.shape, truth.shape
        raise InputError(
            f"{where}: the prediction is {width}x{height} but the truth {columns}x{rows} (width x height): "
            "score masks at the image's own size"
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _cell(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"
