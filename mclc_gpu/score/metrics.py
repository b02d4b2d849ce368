"""Score predicted masks against true masks, by pixel and by target (IoU, nIoU, Pd, Fa, F1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from mclc_gpu.data.annotations import CATEGORIES, category_of
from mclc_gpu.errors import InputError
from mclc_gpu.registry import Registry
from mclc_gpu.score.config import CANONICAL, Convention
from mclc_gpu.score.matching import Components, components_of, false_alarm_pixels, match


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts from which scores are computed, of an image, a set of images or a category of targets.

    Counts are added with ``+``.

    Attributes
    ----------
    pixels : int
        Pixels of the images; 0 for a category.
    intersection, predicted, true : int
        Pixels that are true in both masks, in the prediction, in the truth.
    targets, detected : int
        True components, and those with a predicted component matched to them.
    false_alarm_pixels : int
        Pixels of the predicted components that are false alarms; 0 for a category.
    """

    pixels: int = 0
    intersection: int = 0
    predicted: int = 0
    true: int = 0
    targets: int = 0
    detected: int = 0
    false_alarm_pixels: int = 0

    @property
    def union(self) -> int:
        """Number of pixels that are true in either mask."""
        return self.predicted + self.true - self.intersection

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in _COUNTED))


_COUNTED = tuple(one.name for one in fields(Counts))


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN when `whole` is 0.

    Examples
    --------
    >>> from mclc_gpu.score.metrics import ratio
    >>> ratio(1, 4), ratio(0, 0)
    (0.25, nan)
    """
    return part / whole if whole else math.nan


@dataclass(frozen=True, slots=True)
class Score:
    """Metric: formula, and presentation in tables and figures.

    Parameters
    ----------
    label : str
        Name in tables and figures.
    compute : Callable[[Counts], float]
        Formula; NaN where the score is not defined (see `ratio`). It sees the sums over all images, and over
        thresholds the sums at each one.
    image_mean : bool
        Make the score of a set the mean of its images' own scores, over those in which it is defined. It is
        then absent from curves over thresholds.
    by_category : bool
        Give the score per category of target too.
    unit : str
        Shown after the label, such as "x1e-6".
    factor : float
        Multiplied into the values that are shown; JSON and CSV files hold the plain value.
    digits : int
        Decimals shown.
    higher_is_better : bool
    panel : str
        Title of the panel that draws the score in a training run's figure; by default one of its own.

    Examples
    --------
    Add a metric at run time; every table, JSON file and figure then has it.

    >>> from mclc_gpu.score.metrics import SCORES, Score, ratio
    >>> SCORES["dice"] = Score("Dice", lambda c: ratio(2 * c.intersection, c.predicted + c.true))
    >>> del SCORES["dice"]
    """

    label: str
    compute: Callable[[Counts], float]
    image_mean: bool = False
    by_category: bool = False
    unit: str = ""
    factor: float = 1.0
    digits: int = 4
    higher_is_better: bool = True
    panel: str = ""

    @property
    def heading(self) -> str:
        """Label with the unit, the heading of a column."""
        return f"{self.label} {self.unit}".rstrip()

    def text(self, value: float) -> str:
        """Format a value for a table, "n/a" where it is not defined."""
        return "n/a" if math.isnan(value) else f"{value * self.factor:.{self.digits}f}"

    def of_set(self, images: Sequence[Counts], total: Counts) -> float:
        """Compute the score of a set from its images and their sum."""
        if not self.image_mean:
            return self.compute(total)
        values = [value for value in map(self.compute, images) if not math.isnan(value)]
        # An exact sum does not depend on the order in which processes are merged.
        return ratio(math.fsum(values), len(values))


_BY_PIXEL = "precision, recall, F1"
SCORES: Registry[Score] = Registry(
    "score",
    {
        "iou": Score("IoU", lambda c: ratio(c.intersection, c.union), by_category=True),
        "niou": Score("nIoU", lambda c: ratio(c.intersection, c.union), image_mean=True, panel="IoU"),
        "pd": Score("Pd", lambda c: ratio(c.detected, c.targets), by_category=True),
        "fa": Score(
            "Fa",
            lambda c: ratio(c.false_alarm_pixels, c.pixels),
            unit="x1e-6",
            factor=1e6,
            digits=2,
            higher_is_better=False,
        ),
        "precision": Score("precision", lambda c: ratio(c.intersection, c.predicted), panel=_BY_PIXEL),
        "recall": Score("recall", lambda c: ratio(c.intersection, c.true), panel=_BY_PIXEL),
        "f1": Score("F1", lambda c: ratio(2 * c.intersection, c.predicted + c.true), panel=_BY_PIXEL),
    },
)


@dataclass(frozen=True, slots=True)
class ImageScore(Counts):
    """Counts of one image at its own size.

    Attributes
    ----------
    name : str or None
        Name of the image, None when it was given without one.
    categories : dict of str to Counts
        Counts per category of target (point, spot, extended), for those that occur; see `Scores`.
    """

    name: str | None = None
    categories: dict[str, Counts] = field(default_factory=dict)

    @property
    def iou(self) -> float:
        """Intersection over union; NaN when both masks are empty."""
        return SCORES["iou"].compute(self)


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """Scores of the targets of one category; see `Scores` for the pixels that count for a target.

    Attributes
    ----------
    values : dict of str to float
        The scores that are given per category, by name; also read as attributes (``result.iou``).
    targets, detected : int
        Numbers of targets.
    """

    values: dict[str, float]
    targets: int
    detected: int

    def __getattr__(self, name: str) -> float:
        return _value(self, name)

    def as_dict(self) -> dict[str, object]:
        """Return scores and counts for JSON, with None instead of NaN."""
        return {**_for_json(self.values), "targets": self.targets, "detected": self.detected}


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of a set of images.

    Attributes
    ----------
    values : dict of str to float
        Every score of `SCORES` by name; also read as attributes (``result.iou``). NaN where a score is not
        defined. With the metrics that the project brings, each 0 to 1:

        iou
            Total intersection over total union.
        niou
            Mean of the images' own IoU, over the images whose masks are not both empty.
        pd
            Probability of detection: detected targets over targets.
        fa
            False-alarm rate: pixels of false alarms over all pixels.
        precision, recall, f1
            Intersection over predicted pixels, over true pixels, and the harmonic mean of the two.
    intersection, union, pixels, false_alarm_pixels : int
        Numbers of pixels.
    targets, detected : int
        Numbers of true components.
    images : int
        Number of images.
    categories : dict of str to CategoryResult
        Scores per category of target, for the categories that occur, smallest targets first.
    convention : str
        Name of the definition of detections and false alarms.
    """

    values: dict[str, float]
    intersection: int
    union: int
    pixels: int
    targets: int
    detected: int
    false_alarm_pixels: int
    images: int
    categories: dict[str, CategoryResult]
    convention: str = CANONICAL.name

    def __getattr__(self, name: str) -> float:
        return _value(self, name)

    def as_dict(self) -> dict[str, object]:
        """Return all scores as numbers and nested dicts for JSON, with None instead of NaN."""
        counts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "values"}
        categories = {name: one.as_dict() for name, one in self.categories.items()}
        return {**_for_json(self.values), **counts, "categories": categories}

    def summary(self) -> str:
        """Return the counts of images, targets and false alarms in one line."""
        return (
            f"{self.images} images, {self.detected} of {self.targets} targets detected, "
            f"{self.false_alarm_pixels} false-alarm pixels"
        )

    def __str__(self) -> str:
        """Return a table of a few lines to print; a score that is not defined reads n/a."""
        cells = [(SCORES[name].heading, SCORES[name].text(value)) for name, value in self.values.items()]
        widths = [max(9, *map(len, column)) for column in cells]
        lines = [
            "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            for row in zip(*cells, strict=True)
        ]
        convention = "" if self.convention == CANONICAL.name else f" (convention {self.convention})"
        lines.append(f"{self.summary()}{convention}")
        for category, one in self.categories.items():
            scores = [f"{SCORES[name].heading} {SCORES[name].text(v)}" for name, v in one.values.items()]
            counts = f"({one.detected} of {one.targets} detected)"
            lines.append("  ".join([f"  {category:<8}", *scores, counts]))
        return "\n".join(lines)


def _value(result: Result | CategoryResult, name: str) -> float:
    """Look up a score that is read as an attribute."""
    # While an object is unpickled it has no values yet.
    values = object.__getattribute__(result, "values")
    if name not in values:
        raise AttributeError(f"{type(result).__name__} has no score {name!r}")
    return values[name]


def _for_json(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


class Scores:
    """Collect images one by one and score the set.

    Parameters
    ----------
    convention : Convention
        Rules for detections and false alarms. In the canonical one each target takes the nearest free
        component whose centroid lies less than 3 px from its own, whether the two overlap or not; the
        components that are left are false alarms.

    Attributes
    ----------
    images : list of ImageScore
        Counts of the images so far.

    Notes
    -----
    An image without a true and without a predicted pixel has no IoU and is left out of the mean of nIoU; it
    counts in every other score.

    Scores per category: a target's category follows from its area. Its intersection is the part of it that is
    predicted. Its union is its area and, for each predicted component that belongs to it, that component's
    pixels outside every target. A predicted component belongs to the target with which it shares most pixels
    (of equals the lowest number), or, sharing none, to the one it is matched to, or else to no category. The
    intersections of all categories thus sum to the whole intersection, and the unions to the whole union less
    the components of no category.

    Instances can be pickled: gather those of several processes and `merge` them.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu import Scores
    >>> truth = np.zeros((8, 8), bool)
    >>> truth[2:4, 2:4] = True
    >>> prediction = truth.copy()
    >>> prediction[4, 2:4] = True
    >>> scores = Scores()
    >>> counts = scores.update(prediction, truth, "a.png")
    >>> result = scores.compute()
    >>> round(result.iou, 4), result.pd, result.fa
    (0.6667, 1.0, 0.0)
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
        """Add the images of another instance, which stays as it was.

        Named images that are present already are ignored, as samplers repeat images to give every process as
        many. Any order of merging gives the same result as one run over all images.

        Raises
        ------
        ValueError
            `other` was scored by another convention.
        """
        if other.convention != self.convention:
            raise ValueError(f"scores of {other.convention.name} cannot join {self.convention.name} ones")
        for score in other.images:
            if score.name not in self._names:
                self.add(score)

    def compute(self) -> Result:
        """Score all images so far; without images counts are 0 and ratios NaN."""
        total = sum(self.images, Counts())
        return Result(
            values={name: score.of_set(self.images, total) for name, score in SCORES.items()},
            intersection=total.intersection,
            union=total.union,
            pixels=total.pixels,
            targets=total.targets,
            detected=total.detected,
            false_alarm_pixels=total.false_alarm_pixels,
            images=len(self.images),
            categories=self._category_results(),
            convention=self.convention.name,
        )

    def _category_results(self) -> dict[str, CategoryResult]:
        results = {}
        for category in CATEGORIES:
            counts = [image.categories[category] for image in self.images if category in image.categories]
            if counts:
                total = sum(counts, Counts())
                shown = {name: score for name, score in SCORES.items() if score.by_category}
                values = {name: score.of_set(counts, total) for name, score in shown.items()}
                results[category] = CategoryResult(values, total.targets, total.detected)
        return results


def score_image(
    prediction: np.ndarray, truth: np.ndarray, name: str | None = None, convention: Convention = CANONICAL
) -> ImageScore:
    """Count the pixels and targets of one image.

    Parameters
    ----------
    prediction, truth : ndarray of bool, [H, W]
        True on targets, at the image's own size.
    name : str, optional
        Name of the image, for messages and to tell images apart in `Scores`.
    convention : Convention
        Rules for detections and false alarms.

    Raises
    ------
    InputError
        Masks of different sizes, not of two dimensions, without pixels or not bool.
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


def _category_counts(true: Components, predicted: Components, matched: np.ndarray) -> dict[str, Counts]:
    """Count per category of target, by the rule in `Scores`."""
    n_true, n_predicted = len(true.area), len(predicted.area)
    if not n_true:
        return {}
    both = np.flatnonzero((true.labels > 0) & (predicted.labels > 0))
    pairs = (true.labels.ravel()[both] - 1) * n_predicted + predicted.labels.ravel()[both] - 1
    shared = np.bincount(pairs, minlength=n_true * n_predicted).reshape(n_true, n_predicted)
    own = shared.sum(axis=1)  # predicted pixels that belong to each target
    intersection = own.copy()
    if n_predicted:
        covered = shared.sum(axis=0)
        owner = np.where(covered > 0, shared.argmax(axis=0), -1)
        targets = np.flatnonzero(matched >= 0)
        outside = targets[covered[matched[targets]] == 0]
        owner[matched[outside]] = outside
        owned = owner >= 0
        np.add.at(own, owner[owned], (predicted.area - covered)[owned])

    categories = np.array([category_of(int(area)) for area in true.area])
    found: dict[str, Counts] = {}
    for category in np.unique(categories):
        of = categories == category
        found[str(category)] = Counts(
            intersection=int(intersection[of].sum()),
            predicted=int(own[of].sum()),
            true=int(true.area[of].sum()),
            targets=int(np.count_nonzero(of)),
            detected=int(np.count_nonzero(matched[of] >= 0)),
        )
    return found


def mask_iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the intersection over union of two masks, NaN when both are empty.

    Parameters
    ----------
    prediction, truth : ndarray of bool
        Of one shape.
    """
    return ratio(int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction | truth)))


def check_pair(prediction: np.ndarray, truth: np.ndarray, name: str | None, kind: str = "bool") -> None:
    """Raise InputError unless `prediction` is of dtype `kind`, `truth` bool, and both of one size [H, W]."""
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
