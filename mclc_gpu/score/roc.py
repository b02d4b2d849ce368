"""Scores of probability maps over all thresholds: the Pd-Fa curve and its companions."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mclc_gpu.score.metrics import (
    CANONICAL,
    DETECTED,
    FALSE_ALARM_PIXELS,
    INTERSECTION,
    PREDICTED,
    Convention,
    check_pair,
    components_of,
    sweep,
)

# Every 256th, and ever finer steps to 0 and 1, where the answers of a trained network gather. All are exact
# in float32.
_ENDS = 0.5 ** np.arange(9, 17)
THRESHOLDS = np.unique(np.concatenate([np.arange(257) / 256, _ENDS, 1 - _ENDS])).astype(np.float32)
_FA_LIMITS = (1e-6, 1e-5, 1e-4, 1e-3)


class RocCounts(NamedTuple):
    """Counts of one image or of a set of images.

    Attributes:
        at: int64 [len(THRESHOLDS), 4]: detected targets, false-alarm pixels, intersection, predicted pixels.
        targets, true, pixels, images: True components, true pixels, all pixels, and images.
    """

    at: np.ndarray
    targets: int
    true: int
    pixels: int
    images: int


def roc_counts(
    probability: np.ndarray, truth: np.ndarray, name: str | None = None, convention: Convention = CANONICAL
) -> RocCounts:
    """Counts of one image at every threshold; the prediction is probability > threshold.

    Each equals what `score_image` counts in that prediction. It holds no Python lock for most of its time,
    so that threads score several images at once.

    Args:
        probability: float32 [H, W] in 0..1.
        truth: bool [H, W].
        name: Name of the image, for messages.
        convention: What counts as a detection and as a false alarm.

    Raises:
        InputError: Arrays of different sizes, or not as above.
    """
    check_pair(probability, truth, name, "float32")
    true = components_of(truth)
    at = sweep(
        np.ascontiguousarray(probability),
        truth,
        true.centroid,
        THRESHOLDS,
        convention.nearest,
        convention.alarms_by_area,
    )
    return RocCounts(at, len(true.area), int(true.area.sum()), truth.size, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """Scores of a set at every threshold, ascending; float64 [thresholds] each. A ratio by 0 is NaN.

    Attributes:
        thresholds: The prediction is probability > threshold, 0 to 1.
        pd, fa, iou, precision, recall, f1: As in `mclc_gpu.score.metrics.Result`.
        images, targets: Numbers of images and of true components.
        convention: Name of the definition of detections and false alarms.
    """

    thresholds: np.ndarray
    pd: np.ndarray
    fa: np.ndarray
    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    images: int
    targets: int
    convention: str

    def within(self, fa: float) -> int | None:
        """Index of the threshold of highest Pd among those of at most this Fa; of equal ones of least Fa.

        None when every threshold has a higher Fa, or when there is no target.
        """
        allowed = [k for k in range(len(self.thresholds)) if self.fa[k] <= fa and self.pd[k] >= 0]
        return max(allowed, key=lambda k: (self.pd[k], -self.fa[k], k), default=None)

    def best_f1(self) -> int | None:
        """Index of the threshold of highest F1, the lowest of equal ones; None when F1 is not defined."""
        return None if np.isnan(self.f1).all() else int(np.nanargmax(self.f1))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: lists over the thresholds, with None instead of NaN."""
        names = ("thresholds", "pd", "fa", "iou", "precision", "recall", "f1")
        columns = {name: getattr(self, name).tolist() for name in names}
        return {name: [None if math.isnan(v) else v for v in column] for name, column in columns.items()}

    def __str__(self) -> str:
        """A few lines to print: the highest Pd within limits of Fa, and the threshold of the highest F1."""
        rows = [(f"Fa <= {limit:.0e}", self.within(limit)) for limit in _FA_LIMITS]
        rows.append(("highest F1", self.best_f1()))
        lines = [f"{'':<12}  threshold      Pd   Fa x1e-6     IoU      F1"]
        lines += [
            f"{what:<12}  {self.thresholds[k]:>9.6g}  {self.pd[k]:.4f}  {self.fa[k] * 1e6:>9.2f}  "
            f"{self.iou[k]:.4f}  {self.f1[k]:.4f}"
            for what, k in rows
            if k is not None
        ]
        return "\n".join(lines)


class RocScores:
    """Collects images and computes the curve of the set; its memory does not grow with the images."""

    def __init__(self, convention: Convention = CANONICAL) -> None:
        self.convention = convention
        self.total = RocCounts(np.zeros((len(THRESHOLDS), 4), np.int64), 0, 0, 0, 0)

    def update(self, probability: np.ndarray, truth: np.ndarray, name: str | None = None) -> None:
        """Count one image (see `roc_counts`) and add it."""
        self.add(roc_counts(probability, truth, name, self.convention))

    def add(self, counts: RocCounts) -> None:
        """Add an image, or the total of a set, that was counted by this convention."""
        total = self.total
        self.total = RocCounts(
            total.at + counts.at,
            total.targets + counts.targets,
            total.true + counts.true,
            total.pixels + counts.pixels,
            total.images + counts.images,
        )

    def compute(self) -> Roc:
        """The curve of all images so far."""
        at, targets, true, pixels, images = self.total
        intersection, predicted = at[:, INTERSECTION], at[:, PREDICTED]
        return Roc(
            thresholds=THRESHOLDS.astype(np.float64),
            pd=_ratio(at[:, DETECTED], targets),
            fa=_ratio(at[:, FALSE_ALARM_PIXELS], pixels),
            iou=_ratio(intersection, predicted + true - intersection),
            precision=_ratio(intersection, predicted),
            recall=_ratio(intersection, true),
            f1=_ratio(2 * intersection, predicted + true),
            images=images,
            targets=targets,
            convention=self.convention.name,
        )


def _ratio(part: np.ndarray, whole: np.ndarray | int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return part / np.asarray(whole, np.float64)
