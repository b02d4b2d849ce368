"""Annotations of one target: a click, several clicks, a scribble or a box, and its size category."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage.draw import line
from skimage.measure import label

from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import CATEGORY_AREAS

CATEGORIES = ("point", "spot", "extended")  # in the order of CATEGORY_AREAS
SUPERVISIONS = ("point", "multi-point", "scribble", "box")  # kinds of annotations


def category_of(area: int) -> str:
    """Return the category of a target of `area` pixels, by the limits of the paper's code.

    Examples
    --------
    >>> [category_of(area) for area in (9, 10, 81, 82)]
    ['point', 'spot', 'spot', 'extended']
    """
    ranges = zip(CATEGORIES, CATEGORY_AREAS, strict=True)
    return next((category for category, (_, most) in ranges if area <= most), CATEGORIES[-1])


@dataclass(frozen=True, slots=True)
class Point:
    """Annotation of one target; x = column, y = row, in pixels, with pixel centers at integers.

    Attributes
    ----------
    x, y : float
        The click; the first of several clicks; the middle pixel of a scribble; the center of a box.
    category : {"point", "spot", "extended"} or None
        Size category by area in pixels (1-9, 10-81, 82 and more); None if unknown.
    seeds : tuple of (x, y)
        Further marks on the same target: the other clicks, or the other pixels of a scribble.
    box : (left, top, right, bottom) or None
        Centers of the outermost pixels; both ends belong to the box.

    Lists, as JSON gives them, are converted to tuples.

    Examples
    --------
    >>> Point(12, 7.5, "spot", seeds=[[13, 8]])
    Point(x=12, y=7.5, category='spot', seeds=((13, 8),), box=None)
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

    @property
    def marks(self) -> tuple[tuple[float, float], ...]:
        """Return all marked positions (x, y): the first one, then `seeds`."""
        return ((self.x, self.y), *self.seeds)


def check_supervision(supervision: str) -> None:
    """Raise InputError unless `supervision` is in SUPERVISIONS."""
    if supervision not in SUPERVISIONS:
        raise InputError(f"supervision {supervision!r} is unknown; give one of {', '.join(SUPERVISIONS)}")


def scribble(rows: np.ndarray, columns: np.ndarray, category: str | None = None) -> Point:
    """Return the scribble of given pixels.

    Equal sets of pixels give equal scribbles, in whatever order they were drawn or stored.

    Parameters
    ----------
    rows, columns : ndarray [n], int
        n >= 1, in any order; repeated pixels count once.
    category : str, optional

    Returns
    -------
    Point
        (x, y) is the pixel nearest to the mean of all, of equally near ones the first in raster order;
        `seeds` are the others in raster order.
    """
    pixels = np.unique(np.stack([rows, columns], axis=1).astype(np.int64), axis=0)
    # In whole numbers, n times the distance: ties are exact.
    offsets = len(pixels) * pixels - pixels.sum(axis=0)
    middle = int(np.argmin((offsets**2).sum(axis=1)))
    places = [(float(x), float(y)) for y, x in pixels.tolist()]
    x, y = places.pop(middle)
    return Point(x, y, category, seeds=tuple(places))


def box_target(left: int, top: int, right: int, bottom: int, category: str | None = None) -> Point:
    """Return the box whose outermost pixels are given; (x, y) is its center, which may lie between pixels."""
    box = (float(left), float(top), float(right), float(bottom))
    return Point((left + right) / 2, (top + bottom) / 2, category, box=box)


def line_pixels(corners: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns (int [n]) of the pixels of a line through `corners` (row, column).

    Bresenham's algorithm. One corner gives one pixel; a pixel that is passed twice is given twice.
    """
    corners = [corners[0], *corners]
    parts = [line(*start, *end) for start, end in pairwise(corners)]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([columns for _, columns in parts])


def nearest_pixel(position: float) -> int:
    """Return the pixel in which a position lies along one axis; on the border of two, the latter."""
    return math.floor(position + 0.5)


def components(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows and columns (int [n], in raster order) of each 8-connected component of a mask.

    Parameters
    ----------
    mask : ndarray [H, W], bool

    Yields
    ------
    tuple of ndarray
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
