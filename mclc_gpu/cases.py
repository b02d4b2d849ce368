"""A detector's worst and best images, as windows to look at."""

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mclc_gpu.drawing import (
    CAPTION,
    FAINT,
    GAP,
    INK,
    MARGIN,
    PANEL,
    draw_headings,
    draw_panels,
    enlarged,
    heat,
    new_sheet,
    outlined,
    shortened,
    stretched,
)
from mclc_gpu.evaluation import Case
from mclc_gpu.metrics import components_of

_SIDE, _AROUND = 48, 8  # least side of a window, and least room around what it shows, pixels
_GUTTER = 30
_HEADINGS = ("image", "probability", "prediction and truth")
_WIDTH = 3 * PANEL + 2 * GAP


class Extremes:
    """Keeps the images of lowest and of highest IoU that it is shown; give it as `watch` to `score_network`.

    Images in which nothing is true and nothing predicted have no IoU and are passed over. Of equal IoU the
    one with more wrong pixels counts as worse, and the one with more true pixels as better. Only windows are
    kept, not whole images: of the worst around their largest error, of the best around their largest target.

    Attributes:
        keep: How many of either kind.
        threshold: The prediction is probability > threshold.
    """

    def __init__(self, keep: int = 12, threshold: float = 0.5) -> None:
        self.keep = keep
        self.threshold = threshold
        self._numbers = itertools.count()
        self._worst: list[tuple[tuple[float, int], int, Case]] = []
        self._best: list[tuple[tuple[float, int], int, Case]] = []

    def __call__(self, case: Case) -> None:
        """Look at one image."""
        score = case.score
        if math.isnan(score.iou):
            return
        # Heaps whose first element is the one to go next: of equal keys, the one that came last.
        number = -next(self._numbers)
        prediction = case.probability > np.float32(self.threshold)
        wrong = score.union - score.intersection
        error = prediction ^ case.truth if wrong else case.truth
        target = case.truth if score.true else prediction
        for heap, key, shown in (
            (self._worst, (-score.iou, wrong), error),
            (self._best, (score.iou, score.true), target),
        ):
            if len(heap) < self.keep or (key, number) > heap[0][:2]:
                heapq.heappush(heap, (key, number, _window(case, shown)))
            if len(heap) > self.keep:
                heapq.heappop(heap)

    def worst(self) -> list[Case]:
        """Windows of the images of lowest IoU, the worst first."""
        return [case for _, _, case in sorted(self._worst, key=lambda item: item[:2], reverse=True)]

    def best(self) -> list[Case]:
        """Windows of the images of highest IoU, the best first."""
        return [case for _, _, case in sorted(self._best, key=lambda item: item[:2], reverse=True)]


def _window(case: Case, shown: np.ndarray) -> Case:
    """The case cut to the largest component of a mask that is not empty."""
    components = components_of(shown)
    rows, columns = np.nonzero(components.labels == int(components.area.argmax()) + 1)
    height, width = case.truth.shape
    area = _side(rows, height), _side(columns, width)
    return Case(
        case.name,
        case.image[area].copy(),
        case.truth[area].copy(),
        case.probability[area].copy(),
        case.score,
    )


def _side(places: np.ndarray, length: int) -> slice:
    """A range around these places, inside 0..length."""
    first, last = int(places.min()), int(places.max())
    side = min(max(_SIDE, last - first + 1 + 2 * _AROUND), length)
    start = min(max((first + last + 1 - side) // 2, 0), length - side)
    return slice(start, start + side)


def case_sheet(cases: Sequence[Case], title: str, threshold: float = 0.5, columns: int = 2) -> Image.Image:
    """Draw cases row by row: image, probability, and the outlines of prediction and truth.

    A caption states the image's name and its scores, which are those of the whole image.
    """
    width = 2 * MARGIN + columns * _WIDTH + (columns - 1) * _GUTTER
    words = ("prediction", "probability")
    rows = -(-len(cases) // columns)
    sheet, top = new_sheet(width, rows, title, truth=True, click=False, words=words)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    if not cases:
        draw.text((MARGIN, top), "no image with a true or predicted pixel", FAINT, font)
    for index, case in enumerate(cases):
        row, column = divmod(index, columns)
        left, upper = MARGIN + column * (_WIDTH + _GUTTER), top + row * (PANEL + CAPTION)
        if row == 0:
            draw_headings(draw, left, top, _HEADINGS)
        window = enlarged(stretched(case.image))
        drawn = outlined(window, case.probability > np.float32(threshold), case.truth)
        panels = (window, enlarged(heat(case.probability)), drawn)
        draw_panels(sheet, left, upper, panels, case.truth.shape, None)
        facts = _facts(case)
        draw.text((left + _WIDTH, upper + PANEL + 4), facts, INK, font, anchor="ra")
        room = _WIDTH - font.getlength(facts) - 16
        draw.text((left, upper + PANEL + 4), shortened(case.name, font, room), INK, font)
    return sheet


def _facts(case: Case) -> str:
    score = case.score
    parts = [f"IoU {score.iou:.2f}", f"{score.detected} of {score.targets} found"]
    if score.false_alarm_pixels:
        parts.append(f"{score.false_alarm_pixels} px false")
    return ",  ".join(parts)
