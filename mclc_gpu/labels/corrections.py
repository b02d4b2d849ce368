"""Masks that annotators corrected by hand, in place of those that the pipeline made."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.masks import BoxedMask
from mclc_gpu.kernels.config import TPM_ONE
from mclc_gpu.labels.pipeline import TargetMask
from mclc_gpu.labels.windows import Window

Marks = tuple[tuple[tuple[float, float], ...], tuple[float, float, float, float] | None]
# By image, then by the marks of the target, which no other one of the image has.
Corrections = Mapping[str, Mapping[Marks, BoxedMask]]


def marks_of(point: Point) -> Marks:
    """Return the marks of a target without its category: what tells it from others of its image."""
    return point.marks, point.box


def corrected(label: TargetMask, mask: BoxedMask) -> TargetMask:
    """Return a label with a mask that was corrected by hand: its TPM is 1 in the mask, its confidence 1.

    The window grows where the mask lies outside of it.
    """
    old = label.window
    top, left = min(old.top, mask.top), min(old.left, mask.left)
    bottom, right = max(old.bottom, mask.top + mask.height), max(old.right, mask.left + mask.width)
    row, column = old.top + old.click_row - top, old.left + old.click_column - left
    drawn = np.zeros((bottom - top, right - left), bool)
    y, x = mask.top - top, mask.left - left
    drawn[y : y + mask.height, x : x + mask.width] = mask.pixels()
    return replace(
        label,
        window=Window(top, left, bottom - top, right - left, row, column),
        levels=drawn * np.uint16(TPM_ONE),
        mask=drawn,
        confidence=1.0,
        exact=drawn.astype(np.float32),
        corrected=True,
    )


def with_corrections(
    targets: Sequence[TargetMask], masks: Mapping[Marks, BoxedMask] | None
) -> list[TargetMask]:
    """Return the labels of an image's targets, those corrected by hand with their masks."""
    found = {} if masks is None else masks
    return [
        corrected(target, found[marks_of(target.point)]) if marks_of(target.point) in found else target
        for target in targets
    ]


def corrections_json(corrections: Corrections) -> list[Any]:
    """Return corrections as JSON has them, for a fingerprint."""
    return [
        [name, [[list(marks), mask.json()] for marks, mask in sorted(own.items(), key=str)]]
        for name, own in sorted(corrections.items())
    ]
