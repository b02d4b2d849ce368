"""Choose the threshold of a detector on a few images that were held out of its training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mclc_gpu.data.datasets import Named
from mclc_gpu.detect.evaluate import Case, score_network
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.score.config import CANONICAL, Convention
from mclc_gpu.score.roc import Roc, RocScores

RANGE = (0.05, 0.95)  # of the thresholds to choose from
TOLERANCE = 0.01  # share of the best IoU by which thresholds of the plateau may miss it


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Threshold that was chosen on a set of images, with its scores there.

    Attributes
    ----------
    threshold : float, 0..1
    low, high : float, 0..1
        Ends of the plateau of IoU, in whose middle the threshold lies.
    iou, pd, fa : float
        Scores on these images; they flatter, since the threshold was chosen by them.
    images, targets : int
        Numbers of images and of true targets.
    curve : Roc
        Scores at all thresholds.
    """

    threshold: float
    low: float
    high: float
    iou: float
    pd: float
    fa: float
    images: int
    targets: int
    curve: Roc

    def as_dict(self) -> dict[str, Any]:
        """Return all but the curve, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "curve"}


def choose_threshold(curve: Roc) -> Calibration | None:
    """Choose the middle of the thresholds whose IoU is within 1 % of the highest.

    IoU rises steeply from threshold 0, is nearly level in between, and falls steeply to 1. On few images its
    very maximum is where some target happens to gain a pixel, often near an end; the middle of the level part
    moves little from one set of images to the next.

    Parameters
    ----------
    curve : Roc
        Of images that were not trained on; their masks may be pseudo masks.

    Returns
    -------
    Calibration or None
        None if no threshold from 0.05 to 0.95 finds a pixel of a target.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.detect.calibrate import choose_threshold
    >>> from mclc_gpu.score.roc import RocScores
    >>> truth = np.zeros((8, 8), bool)
    >>> truth[2:4, 2:4] = True
    >>> scores = RocScores()
    >>> scores.update(np.where(truth, np.float32(0.75), np.float32(0.25)), truth)
    >>> chosen = choose_threshold(scores.compute())
    >>> chosen.threshold, chosen.iou
    (0.498046875, 1.0)
    """
    inside = np.flatnonzero((curve.thresholds >= RANGE[0]) & (curve.thresholds <= RANGE[1]))
    iou = np.nan_to_num(curve.iou[inside])
    best = int(iou.argmax())
    if iou[best] <= 0:
        return None
    level = iou >= (1 - TOLERANCE) * iou[best]
    low = high = best
    while low > 0 and level[low - 1]:
        low -= 1
    while high < len(level) - 1 and level[high + 1]:
        high += 1
    middle = int(inside[(low + high) // 2])
    return Calibration(
        threshold=float(curve.thresholds[middle]),
        low=float(curve.thresholds[inside[low]]),
        high=float(curve.thresholds[inside[high]]),
        iou=float(curve.iou[middle]),
        pd=float(curve.pd[middle]),
        fa=float(curve.fa[middle]),
        images=curve.images,
        targets=curve.targets,
        curve=curve,
    )


def calibrated_threshold(
    predictor: Predictor,
    samples: Iterable[Named],
    *,
    convention: Convention = CANONICAL,
    callback: Callable[[Case], None] | None = None,
) -> Calibration | None:
    """Run a detector on images and choose its threshold by `choose_threshold`.

    Images are streamed and counted once; memory does not grow with their number.

    Parameters
    ----------
    predictor : Predictor
    samples : iterable of (str, ndarray, ndarray)
        Name, image and mask, bool [H, W], of each image.
    convention : Convention
        Definition of a detection and of a false alarm.
    callback : callable, optional
        Called with the `Case` of every image, in order.

    Returns
    -------
    Calibration or None
        None if there is nothing to choose by.

    Raises
    ------
    InputError
        As `mclc_gpu.detect.evaluate.score_network`.
    """
    counts = RocScores(convention)
    score_network(predictor, samples, convention=convention, roc=counts, callback=callback)
    return choose_threshold(counts.compute())
