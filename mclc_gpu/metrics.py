"""Scores of predicted masks against true ones, by pixel and by target."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mclc_gpu.conventions import CANONICAL, Convention
from mclc_gpu.data.points import CATEGORIES
from mclc_gpu.data.simulate import category_of
from mclc_gpu.errors import InputError
from mclc_gpu.matching import false_alarm_pixels, match

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
    `mclc_gpu.conventions.Convention`. In the canonical one each target takes the nearest free component whose
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
