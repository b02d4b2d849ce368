"""From marks to targets that can be labelled: the category and the window of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mclc_gpu.data.points import Point
from mclc_gpu.data.simulate import category_of
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.estimate import estimate_categories
from mclc_gpu.kernels.trials import MAX_SEEDS, MAX_WINDOW
from mclc_gpu.labelconfig import LabelConfig
from mclc_gpu.windows import Window, around, box_pixels, name_key, nearest_pixel, place_window

_SPANS = 1e-30, 1e30  # of a window's values: its colours are scaled by them in float32
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PlacedTarget:
    """A target ready to be clustered: what `place_targets` found out about it.

    Attributes:
        image, target, point, estimated: See `TargetMask`.
        window: Holds the click and the seeds, or the box.
        key: Of the image's noise.
        seeds: Further marked pixels beside the click: row * width + column in the window.
    """

    image: int
    target: int
    point: Point
    window: Window
    key: int
    estimated: bool
    seeds: tuple[int, ...] = ()

    def inside(self, shape: tuple[int, int]) -> np.ndarray:
        """bool [h, w]: where in the window the target can be, given an image of `shape`: in its box."""
        allowed = np.ones((self.window.height, self.window.width), bool)
        if self.point.box is not None:
            left, top, right, bottom = box_pixels(self.point.box, *shape)
            allowed[:] = False
            allowed[
                top - self.window.top : bottom - self.window.top,
                left - self.window.left : right - self.window.left,
            ] = True
        return allowed


def place_targets(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    names: Sequence[str],
    config: LabelConfig,
    seed: int,
    device: torch.device = _CPU,
) -> tuple[list[PlacedTarget], list[Skipped]]:
    """Category and window of every target, and the targets that cannot be labelled, with the reason.

    Where the category sets the window and nobody gave it, it is estimated, on `device`. The vote of
    components needs none: there it follows from the labels.
    """
    known = [list(clicks) for clicks in points]
    told = config.category == "given"
    estimated = {
        (i, j) for i, own in enumerate(known) for j, c in enumerate(own) if not (told and c.category)
    }
    for (i, j), category in _estimates(images, known, sorted(estimated), config, device):
        known[i][j] = replace(known[i][j], category=category)
    placed: list[PlacedTarget] = []
    skipped: list[Skipped] = []
    for i, (image, clicks_of_image, name) in enumerate(zip(images, known, names, strict=True)):
        height, width = image.shape[:2]
        key = name_key(seed, name)
        key -= (key >> 63) << 64  # the same bits as a signed integer
        usable = 0  # numbers the targets, so that the usable points alone give the same labels
        for j, point in enumerate(clicks_of_image):
            window = _window(height, width, point, config, seed, name, usable)
            if why := _obstacle(image, point, window, config):
                skipped.append(Skipped(name, f"target {j} at ({point.x:g}, {point.y:g}): {why}"))
                continue
            seeds = _seeds(point, window, (height, width))
            placed.append(PlacedTarget(i, usable, point, window, key, (i, j) in estimated, seeds))
            usable += 1
    return placed, skipped


def _estimates(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    unknown: Sequence[tuple[int, int]],
    config: LabelConfig,
    device: torch.device,
) -> list[tuple[tuple[int, int], str | None]]:
    """Category of each target (image, point) that nobody told: of its box, else of the blob at its click."""
    if config.maker == "components":
        return [(at, None) for at in unknown]
    clicks = [(i, points[i][j]) for i, j in unknown]
    without_box = [(i, point) for i, point in clicks if point.box is None]
    found = iter(estimate_categories(images, without_box, device))
    return [
        (at, next(found) if point.box is None else _category_of_box(point.box))
        for at, (_, point) in zip(unknown, clicks, strict=True)
    ]


def _category_of_box(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box
    return category_of(round((right - left + 1) * (bottom - top + 1)))


def _window(
    height: int, width: int, point: Point, config: LabelConfig, seed: int, name: str, target: int
) -> Window:
    if config.maker == "components":
        return around(height, width, point, config.components.radius)
    return place_window(height, width, point, seed, name, target)


def _obstacle(image: np.ndarray, point: Point, window: Window, config: LabelConfig) -> str:
    """Why a window cannot be labelled; empty when it can."""
    height, width = window.height, window.width
    if max(height, width) > MAX_WINDOW or not _holds(window, point, image.shape[:2]):
        return (
            f"its marks need a window larger than {MAX_WINDOW} x {MAX_WINDOW} pixels; "
            "mark a smaller target or scale the image down"
        )
    if config.maker != "mclc":
        return ""
    pixels = image[window.area]
    span = float(pixels.max()) - float(pixels.min())
    if height * width < config.trial.clusters:
        return (
            f"its window has {height} x {width} pixels, fewer than the {config.trial.clusters} clusters; "
            "use fewer clusters or a larger image"
        )
    if span == 0:
        return "its window is constant, there is nothing to cluster"
    if not _SPANS[0] <= span <= _SPANS[1]:
        return f"its window's values span {span:g}; scale the image to a range near 1"
    return ""


def _holds(window: Window, point: Point, shape: tuple[int, ...]) -> bool:
    """Whether all marks lie in the window."""
    corners = [] if point.box is None else [point.box[:2], point.box[2:]]
    pixels = [nearest_pixel(x, y, *shape[:2]) for x, y in ((point.x, point.y), *point.seeds, *corners)]
    return all(window.top <= y < window.bottom and window.left <= x < window.right for y, x in pixels)


def _seeds(point: Point, window: Window, shape: tuple[int, int]) -> tuple[int, ...]:
    # Of a scribble with more pixels than can be counted, pixels spread evenly over it stand for all.
    chosen = point.seeds[:: -(-len(point.seeds) // MAX_SEEDS) or 1]
    pixels = (nearest_pixel(x, y, *shape) for x, y in chosen)
    return tuple((row - window.top) * window.width + column - window.left for row, column in pixels)
