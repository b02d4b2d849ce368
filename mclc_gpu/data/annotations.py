"""Annotations of one target: a click, several clicks, a scribble or a box, and its size category."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage.draw import line
from skimage.measure import label

from mclc_gpu.errors import InputError

CATEGORIES = ("point", "spot", "extended")
SUPERVISIONS = ("point", "multi-point", "scribble", "box")  # what an annotator gives for each target

POINT_AREA = 9  # largest area in pixels of the category "point"
SPOT_AREA = 81  # and of "spot"; the published code's limits


def category_of(area: int) -> str:
    """The category of a target of `area` pixels: point (<= 9), spot (<= 81) or extended."""
    if area <= POINT_AREA:
        return "point"
    return "spot" if area <= SPOT_AREA else "extended"


@dataclass(frozen=True, slots=True)
class Point:
    """What an annotator gave for one target: x = column, y = row, in pixels, with pixel centres at integers.

    (`x`, `y`): the click; the first of several clicks; the middle pixel of a scribble; the centre of a box.
    `category`: "point" (<= 9 px), "spot" (10 to 81 px), "extended" (more), or None where nobody said.
    `seeds`: further positions (x, y) on the same target: the other clicks, or the other pixels of a scribble.
    `box`: (left, top, right, bottom), the centres of the target's outermost pixels, so both ends are inside.
    Lists in place of the tuples, as JSON gives them, are converted.
    """

    x: float
    y: float
    category: str | None = None
    seeds: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple((x, y) for x, y in self.seeds))
        if self.box is not None:
            left, top, right, bottom = self.box
            object.__setattr__(self, "box", (left, top, right, bottom))


def check_supervision(supervision: str) -> None:
    """Raise InputError for what is none of `SUPERVISIONS`."""
    if supervision not in SUPERVISIONS:
        raise InputError(f"supervision {supervision!r} is unknown; give one of {', '.join(SUPERVISIONS)}")


def scribble(rows: np.ndarray, columns: np.ndarray, category: str | None = None) -> Point:
    """The scribble of given pixels: int [n], n >= 1, in any order; repeated pixels count once.

    (x, y) is the pixel nearest to the mean of all, of equally near ones the first in raster order; `seeds`
    are the others in raster order. So equal sets of pixels give equal scribbles, however drawn or stored.
    """
    pixels = np.unique(np.stack([rows, columns], axis=1).astype(np.int64), axis=0)
    # In whole numbers, n times the distance: ties are exact.
    offsets = len(pixels) * pixels - pixels.sum(axis=0)
    middle = int(np.argmin((offsets**2).sum(axis=1)))
    places = [(float(x), float(y)) for y, x in pixels.tolist()]
    x, y = places.pop(middle)
    return Point(x, y, category, seeds=tuple(places))


def box_target(left: int, top: int, right: int, bottom: int, category: str | None = None) -> Point:
    """The box whose outermost pixels are given, both ends inside; (x, y) is its centre, perhaps at a half."""
    box = (float(left), float(top), float(right), float(bottom))
    return Point((left + right) / 2, (top + bottom) / 2, category, box=box)


def line_pixels(corners: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (int [n]) of the pixels of a line through `corners` (row, column), by Bresenham.

    One corner gives one pixel; a pixel that is passed twice is given twice.
    """
    corners = [corners[0], *corners]
    parts = [line(*start, *end) for start, end in pairwise(corners)]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([columns for _, columns in parts])


def nearest_pixel(position: float) -> int:
    """The pixel that a position lies in along one axis; on the border of two, the later."""
    return math.floor(position + 0.5)


def components(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns (int [n], in raster order) of each 8-connected component of a mask, bool [H, W].

    In order of the components' first pixels, row by row.
    """
    labels, count = label(mask, connectivity=2, return_num=True)
    rows, columns = np.nonzero(labels)
    owners = labels[rows, columns] - 1
    # Stable: the pixels of a component stay in raster order.
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=count))
    for of_component in np.split(order, ends[:-1]) if count else []:
        yield rows[of_component], columns[of_component]
