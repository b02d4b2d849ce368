"""Score probability maps at every threshold: the Pd-Fa curve and its companions."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mclc_gpu.score.config import CANONICAL, Convention
from mclc_gpu.score.matching import (
    DETECTED,
    FALSE_ALARM_PIXELS,
    INTERSECTION,
    PREDICTED,
    components_of,
    sweep,
)
from mclc_gpu.score.metrics import SCORES, Counts, check_pair

# Every 256th, and ever finer steps to 0 and 1, where the output of a trained network gathers. All are exact
# in float32.
_ENDS = 0.5 ** np.arange(9, 17)
THRESHOLDS = np.unique(np.concatenate([np.arange(257) / 256, _ENDS, 1 - _ENDS])).astype(np.float32)
_FA_LIMITS = (1e-6, 1e-5, 1e-4, 1e-3)
_PRINTED = ("pd", "fa", "iou", "f1")


class RocCounts(NamedTuple):
    """Counts of one image or of a set of images at every threshold.

    Attributes
    ----------
    at : ndarray of int64, [len(THRESHOLDS), 4]
        Detected targets, false-alarm pixels, intersection, predicted pixels.
    targets, true, pixels, images : int
        True components, true pixels, all pixels, and images.
    """

    at: np.ndarray
    targets: int
    true: int
    pixels: int
    images: int


def roc_counts(
    probability: np.ndarray, truth: np.ndarray, name: str | None = None, convention: Convention = CANONICAL
) -> RocCounts:
    """Count one image at every threshold; the prediction is probability > threshold.

    Each count equals that of `score_image` for the prediction at that threshold. The function releases
    Python's lock for most of its time, so that threads can score several images at once.

    Parameters
    ----------
    probability : ndarray of float32, [H, W]
        0 to 1.
    truth : ndarray of bool, [H, W]
    name : str, optional
        Name of the image, for messages.
    convention : Convention
        Rules for detections and false alarms.

    Raises
    ------
    InputError
        Arrays of different sizes, or not as above.
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
    """Scores of a set at every threshold.

    Attributes
    ----------
    thresholds : ndarray of float64, [N]
        Ascending, 0 to 1; the prediction is probability > threshold.
    values : dict of str to ndarray of float64, [N]
        Every score of `SCORES` that is computed from sums, by name; also read as attributes (``roc.pd``). NaN
        where a score is not defined.
    images, targets : int
        Numbers of images and of true components.
    convention : str
        Name of the definition of detections and false alarms.
    """

    thresholds: np.ndarray
    values: dict[str, np.ndarray]
    images: int
    targets: int
    convention: str

    def __getattr__(self, name: str) -> np.ndarray:
        values = object.__getattribute__(self, "values")  # an object that is being unpickled has none yet
        if name not in values:
            raise AttributeError(f"Roc has no score {name!r}")
        return values[name]

    def within(self, fa: float) -> int | None:
        """Return the index of the threshold of highest Pd among those of at most this Fa.

        Of equal thresholds it is the one of least Fa; None when every threshold has a higher Fa, or when
        there is no target.
        """
        allowed = [k for k in range(len(self.thresholds)) if self.fa[k] <= fa and self.pd[k] >= 0]
        return max(allowed, key=lambda k: (self.pd[k], -self.fa[k], k), default=None)

    def best_f1(self) -> int | None:
        """Return the index of the lowest threshold of highest F1; None when F1 is not defined."""
        return None if np.isnan(self.f1).all() else int(np.nanargmax(self.f1))

    def as_dict(self) -> dict[str, Any]:
        """Return lists over the thresholds for JSON, with None instead of NaN."""
        columns = {"thresholds": self.thresholds, **self.values}
        return {
            name: [None if math.isnan(v) else v for v in column.tolist()] for name, column in columns.items()
        }

    def __str__(self) -> str:
        """Return a table of the highest Pd within limits of Fa, and of the threshold of the highest F1."""
        rows = [(f"Fa <= {limit:.0e}", self.within(limit)) for limit in _FA_LIMITS]
        rows.append(("highest F1", self.best_f1()))
        columns = {name: SCORES[name] for name in _PRINTED}
        widths = {name: max(6, len(score.heading) + 1) for name, score in columns.items()}
        headings = [f"{score.heading:>{widths[name]}}" for name, score in columns.items()]
        lines = ["  ".join([f"{'':<12}  threshold", *headings])]
        for condition, k in rows:
            if k is not None:
                cells = [f"{s.text(self.values[name][k]):>{widths[name]}}" for name, s in columns.items()]
                lines.append("  ".join([f"{condition:<12}  {self.thresholds[k]:>9.6g}", *cells]))
        return "\n".join(lines)


class RocScores:
    """Collect images and compute the curve of the set; memory does not grow with the number of images.

    Parameters
    ----------
    convention : Convention
        Rules for detections and false alarms.

    Attributes
    ----------
    total : RocCounts
        Sum over the images so far.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.score.roc import RocScores
    >>> truth = np.zeros((8, 8), bool)
    >>> truth[2:4, 2:4] = True
    >>> scores = RocScores()
    >>> scores.update(np.where(truth, np.float32(0.75), np.float32(0)), truth)
    >>> curve = scores.compute()
    >>> curve.pd[[0, -1]].tolist(), float(curve.f1.max())
    ([1.0, 0.0], 1.0)
    """

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
        """Score all images so far at every threshold."""
        total = self.total
        at = [
            Counts(
                pixels=total.pixels,
                intersection=row[INTERSECTION],
                predicted=row[PREDICTED],
                true=total.true,
                targets=total.targets,
                detected=row[DETECTED],
                false_alarm_pixels=row[FALSE_ALARM_PIXELS],
            )
            for row in total.at.tolist()
        ]
        summed = {name: score for name, score in SCORES.items() if not score.image_mean}
        return Roc(
            thresholds=THRESHOLDS.astype(np.float64),
            values={
                name: np.array([score.compute(counts) for counts in at]) for name, score in summed.items()
            },
            images=total.images,
            targets=total.targets,
            convention=self.convention.name,
        )
