"""Thresholds of the maps of untrained detectors, one for each image."""

import numpy as np

from mclc_gpu.classical.config import MethodOptions

PEAK_SHARE, SIGMA_SHARE = 0.7, 0.5  # of the adaptive rule


def threshold_of(probability: np.ndarray, options: MethodOptions, fixed: float = 0.5) -> float:
    """Compute the threshold of one map; the mask is map > threshold.

    With the map's maximum M, mean m and standard deviation s over its pixels, the rules are

    - adaptive: max(0.7 M, m + 0.5 s), by which comparisons of trained with untrained detectors commonly score
      the latter (Li et al., "Dense nested attention network for infrared small target detection", IEEE TIP
      2023, doi:10.1109/TIP.2022.3199107). It marks something in every image that is not constant.
    - k-sigma: m + k s, which may lie above 1 and so leave an image empty.
    - top-n: the (n + 1)-th largest value, so that the n brightest pixels are marked, fewer where values tie.
    - fixed: the same for all images.

    Parameters
    ----------
    probability : ndarray [H, W], float32
        0 to 1.
    options : MethodOptions
    fixed : float, 0..1
        Threshold of the rule fixed.

    Returns
    -------
    float
        0 or more, rounded to 6 decimals except by top-n.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.classical.config import MethodOptions
    >>> from mclc_gpu.classical.rules import threshold_of
    >>> probability = np.array([[0, 0], [0.25, 1]], np.float32)
    >>> threshold_of(probability, MethodOptions(threshold_rule="top-n", top=1))
    0.25
    """
    values = probability.astype(np.float64)
    rule = options.threshold_rule
    if rule == "adaptive":
        threshold = max(PEAK_SHARE * values.max(), values.mean() + SIGMA_SHARE * values.std())
    elif rule == "k-sigma":
        threshold = values.mean() + options.sigmas * values.std()
    elif rule == "top-n":
        n = options.top
        # Not rounded: a threshold below the value that it is taken from would mark it.
        return float(np.partition(values, -n - 1, axis=None)[-n - 1]) if n < values.size else 0.0
    else:
        threshold = fixed
    return round(float(threshold), 6)
