"""The score of a mask from what is known of it (see `mclc_gpu.kernels.components`), in Triton."""

import triton
import triton.language as tl

from mclc_gpu.kernels.gray import STEPS

_STEPS = tl.constexpr(STEPS)


@triton.jit
def mean_level(sum, number, otherwise):
    """The mean gray level of some pixels, float64; `otherwise` where there are none."""
    mean = sum.to(tl.float64) / (tl.maximum(number, 1).to(tl.float64) * _STEPS)
    return tl.where(number > 0, mean, otherwise)


@triton.jit
def score_of(
    p_weights, area, rows, columns, peak, border, inner, inner_sum, outer, outer_sum, ring,
    spread, click_y, click_x, least, most,
):  # fmt: skip
    """Score, float64, of masks of `area` >= 1 pixels.

    `p_weights` holds those of `ScoreWeights` and the category's, float64; all others are integers: sums of
    the pixels' rows and columns, the brightest one's gray steps, the number on the image's border, number and
    sum of gray steps on both sides of the outline, the ring's median, how far the background
    spreads; the click and the category's limits.
    """
    ring = ring.to(tl.float64) / _STEPS
    peak = peak.to(tl.float64) / _STEPS
    inside = mean_level(inner_sum, inner, peak)
    outside = mean_level(outer_sum, outer, ring)
    area = area.to(tl.float64)
    above = tl.maximum((inside + outside) / 2 - ring, 0.3)
    contrast = tl.maximum(peak - ring, 0.5)
    share = above / contrast
    log_level = tl.log(above)
    log_area = tl.log(area)
    log_contrast = tl.log(contrast) - tl.log(spread.to(tl.float64) / _STEPS + 1) / 2
    root = tl.sqrt(area)
    both = tl.maximum(border + outer, 1).to(tl.float64)
    touching = tl.where(border + outer > 0, border.to(tl.float64) / both, 1.0)
    away_y = rows.to(tl.float64) / area - click_y
    away_x = columns.to(tl.float64) / area - click_x
    away = tl.sqrt(away_y * away_y + away_x * away_x)
    score = tl.load(p_weights) * log_level + tl.load(p_weights + 1) * log_level * log_level
    score += tl.load(p_weights + 2) * tl.log(tl.maximum(inside - outside, 0.3))
    score += tl.load(p_weights + 3) * log_area * log_contrast
    score += tl.load(p_weights + 4) * outer.to(tl.float64) / root + tl.load(p_weights + 5) * touching
    score += tl.load(p_weights + 6) * away / (root * 0.05 + 2) + tl.load(p_weights + 7) * share * share
    misses = tl.maximum(tl.log(least.to(tl.float64)) - log_area, 0.0)
    misses += tl.maximum(log_area - tl.log(most.to(tl.float64)), 0.0)
    return score - tl.load(p_weights + 8) * misses
