"""Choose the threshold of a detector on a few images that were held out of its training."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mclc_gpu.score.roc import Roc

RANGE = (0.05, 0.95)  # of the thresholds to choose from
LEVEL = 0.03  # share of the best IoU by which thresholds of the plateau may miss it
FAR = 0.1  # and by which the chosen threshold may
PRIOR_TARGETS = 30  # targets whose plateau counts as much as half of the highest F1


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Threshold that was chosen on a set of images, with its scores there.

    Attributes
    ----------
    threshold : float, 0..1
    low, high : float, 0..1
        Ends of the plateau of IoU around its maximum.
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
    """Choose a threshold between the middle of the plateau of IoU and half of the highest F1.

    Over the threshold, IoU rises steeply at 0, is nearly level in between, and falls steeply at 1. On few
    images its maximum is where some target happens to gain a pixel. So the middle m of the thresholds whose
    IoU is within 3 % of the highest counts, and with n targets it is moved to (n m + 30 p) / (n + 30), as far
    as IoU stays within 10 %. Half of the highest F1, p, is the best threshold of probabilities that are right
    (Lipton, Elkan & Naryanaswamy, ECML PKDD 2014, doi:10.1007/978-3-662-44851-9_15); the threshold with the
    highest F1 is that with the highest IoU.

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
    (0.5, 1.0)
    """
    inside = np.flatnonzero((curve.thresholds >= RANGE[0]) & (curve.thresholds <= RANGE[1]))
    thresholds, iou = curve.thresholds[inside], np.nan_to_num(curve.iou[inside])
    if iou.max() <= 0:
        return None
    low, high = _plateau(iou, LEVEL)
    middle = (thresholds[low] + thresholds[high]) / 2
    mixed = (curve.targets * middle + PRIOR_TARGETS * np.nanmax(curve.f1[inside]) / 2) / (
        curve.targets + PRIOR_TARGETS
    )
    least, most = _plateau(iou, FAR)
    chosen = int(inside[np.abs(thresholds - np.clip(mixed, thresholds[least], thresholds[most])).argmin()])
    return Calibration(
        threshold=float(curve.thresholds[chosen]),
        low=float(thresholds[low]),
        high=float(thresholds[high]),
        iou=float(curve.iou[chosen]),
        pd=float(curve.pd[chosen]),
        fa=float(curve.fa[chosen]),
        images=curve.images,
        targets=curve.targets,
        curve=curve,
    )


def _plateau(iou: np.ndarray, missing: float) -> tuple[int, int]:
    """Return the ends of the places around the maximum that miss it by no more than a share."""
    best = int(iou.argmax())
    below = np.flatnonzero(iou < (1 - missing) * iou[best])
    place = int(np.searchsorted(below, best))
    low = int(below[place - 1]) + 1 if place > 0 else 0
    high = int(below[place]) - 1 if place < len(below) else len(iou) - 1
    return low, high
