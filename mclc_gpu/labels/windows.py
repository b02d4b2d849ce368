"""Windows of pixels around targets, and the size categories on which the published windows depend."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mclc_gpu.data.annotations import Point, category_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import MAX_WINDOW, ComponentConfig
from mclc_gpu.kernels.packed import PackedImages

# Inclusive ranges in pixels for (up, down, left, right), per target category, of the published procedure
# (Li et al., ICCV 2023); the fixed right side of points is part of it.
HALF_EXTENTS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "point": ((3, 5), (3, 5), (3, 5), (3, 3)),
    "spot": ((10, 11), (10, 11), (10, 11), (10, 11)),
    "extended": ((15, 25), (15, 25), (15, 25), (15, 25)),
}
BOX_MARGIN = 3  # pixels beside a box, the least extent of the published windows


@dataclass(frozen=True, slots=True)
class Window:
    """Rectangle inside an image, and the clicked pixel inside that rectangle; all values in whole pixels.

    Attributes
    ----------
    top, left : int
        First row and column in the image.
    height, width : int
        Size, at least 1.
    click_row, click_column : int
        Clicked pixel relative to (top, left): 0 <= click_row < height, 0 <= click_column < width.
    """

    top: int
    left: int
    height: int
    width: int
    click_row: int
    click_column: int

    @property
    def bottom(self) -> int:
        """First image row below the window."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First image column to the right of the window."""
        return self.left + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def area(self) -> tuple[slice, slice]:
        """Index of the window in its image."""
        return np.s_[self.top : self.bottom, self.left : self.right]

    def overlaps(self, other: "Window") -> bool:
        """Return whether two windows of one image share a pixel."""
        rows = max(self.top, other.top) < min(self.bottom, other.bottom)
        return rows and max(self.left, other.left) < min(self.right, other.right)

    def holds(self, row: int, column: int) -> bool:
        """Return whether a pixel of the image lies in the window."""
        return self.top <= row < self.bottom and self.left <= column < self.right


def name_key(seed: int, image_name: str) -> int:
    """Return a 64-bit key, 0 <= key < 2**64, for everything random about one image.

    Parameters
    ----------
    seed : int
        Any integer.
    image_name : str
        Without folder and suffix, so that the same image in another file format keeps its key.

    Returns
    -------
    int
        The same on every machine and in every version.
    """
    text = f"{seed}/{image_name}".encode(errors="surrogateescape")  # file names need not be valid text
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw_window(
    height: int, width: int, x: float, y: float, category: str, seed: int, image_name: str, target_index: int
) -> Window:
    """Draw the window of one click by the published rule (Li et al., ICCV 2023).

    With (row, column) the click rounded half up and clipped into the image, the window is rows
    [row - up, row + down) and columns [column - left, column + right), clipped to the image; the four
    extents are uniform in `HALF_EXTENTS`.

    Parameters
    ----------
    height, width : int
        Size of the image in pixels.
    x, y : float
        Column and row of the click, pixel centers at integers.
    category : {"point", "spot", "extended"}
    seed, image_name, target_index : int, str, int
        Determine the random numbers, see `name_key`; `target_index` counts the image's targets from 0.

    Returns
    -------
    Window
        Contains the (clipped) click.

    Raises
    ------
    InputError
        Unknown category, a click that is not finite, or an image without pixels.

    Examples
    --------
    >>> from mclc_gpu.labels.windows import draw_window
    >>> draw_window(256, 256, 100.5, 50.2, "extended", 0, "Misc_1", 0)
    Window(top=26, left=85, height=39, width=38, click_row=24, click_column=16)
    """
    try:
        return published_window(
            (height, width), Point(x, y, category), name_key(seed, image_name), target_index
        )
    except InputError as error:
        raise InputError(f"{image_name}: target {target_index}: {error}") from error


def published_window(shape: tuple[int, int], point: Point, key: int, index: int) -> Window:
    """Return the published window of a target, however it is marked.

    A click has that of `draw_window`. Several clicks or a scribble have the one around their mean, grown
    until it holds them all. A box has a window of three times its size around it, as the published windows
    are about three targets wide, but with at least `BOX_MARGIN` pixels on either side and not beyond the
    largest window that can be clustered. All are clipped to the image.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image in pixels.
    point : Point
        With its category, unless it has a box.
    key : int
        See `name_key`.
    index : int
        Number of the target in its image, from 0.

    Raises
    ------
    InputError
        See `draw_window`.
    """
    marks = point.marks
    if not all(math.isfinite(value) for mark in marks for value in mark):
        raise InputError(f"click ({point.x}, {point.y}) is not a position: give x and y in pixels")
    if min(shape) < 1:
        raise InputError(f"the image has no pixels ({shape[0]} x {shape[1]}): remove it from the list")
    if point.box is not None:
        left, top, right, bottom = box_pixels(point.box, *shape)
        beside_y, beside_x = _beside(bottom - top), _beside(right - left)
        rows, columns = (top - beside_y, bottom + beside_y), (left - beside_x, right + beside_x)
        return _clipped(rows, columns, nearest_pixel(point.x, point.y, *shape), shape)
    if point.category not in HALF_EXTENTS:
        raise InputError(f"unknown category {point.category!r}: use one of {', '.join(HALF_EXTENTS)}")
    x, y = (sum(values) / len(marks) for values in zip(*marks, strict=True))
    row, column = nearest_pixel(x, y, *shape)
    # Raw words, unlike Generator.integers, are promised to stay the same in future numpy versions; the
    # scaling's bias is of order 2**-60. The key is one integer: numpy turns a list of two into floats first.
    words = np.random.Philox(key=key | index << 64).random_raw(4)
    up, down, left, right = (
        low + (int(word) * (high - low + 1) >> 64)
        for word, (low, high) in zip(words, HALF_EXTENTS[point.category], strict=True)
    )
    pixels = [nearest_pixel(*mark, *shape) for mark in marks]
    rows = min(row - up, *(r for r, _ in pixels)), max(row + down, *(r + 1 for r, _ in pixels))
    columns = min(column - left, *(c for _, c in pixels)), max(column + right, *(c + 1 for _, c in pixels))
    return _clipped(rows, columns, pixels[0], shape)


def centered_window(shape: tuple[int, int], point: Point, radius: int) -> Window:
    """Return the window of `radius` pixels around a click, or around the middle of several marks or a box.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image in pixels; the window is clipped to it.
    point : Point
    radius : int >= 0
    """
    rows, columns = zip(*(nearest_pixel(*mark, *shape) for mark in point.marks), strict=True)
    row, column = (min(rows) + max(rows)) // 2, (min(columns) + max(columns)) // 2
    sides = (row - radius, row + radius + 1), (column - radius, column + radius + 1)
    return _clipped(*sides, (rows[0], columns[0]), shape)


def _clipped(
    rows: tuple[int, int], columns: tuple[int, int], click: tuple[int, int], shape: tuple[int, int]
) -> Window:
    """Return the window of these rows and columns (ends exclusive), as far as they lie in the image."""
    top, left = max(rows[0], 0), max(columns[0], 0)
    height, width = min(rows[1], shape[0]) - top, min(columns[1], shape[1]) - left
    return Window(top, left, height, width, click[0] - top, click[1] - left)


def _beside(side: int) -> int:
    """Return the pixels on either side of a box that is `side` pixels long."""
    return max(min(max(side, BOX_MARGIN), (MAX_WINDOW - side) // 2), 0)


def nearest_pixel(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    """Return (row, column) of a position, rounded half up and clipped into the image."""
    return (
        min(max(math.floor(y + 0.5), 0), height - 1),
        min(max(math.floor(x + 0.5), 0), width - 1),
    )


def box_pixels(box: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a box in whole pixels, clipped; the last two are exclusive."""
    top, left = nearest_pixel(box[0], box[1], height, width)
    bottom, right = nearest_pixel(box[2], box[3], height, width)
    return left, top, right + 1, bottom + 1


@dataclass(frozen=True)
class PlacedTarget:
    """A target with its category and window, ready to be clustered.

    Attributes
    ----------
    image : int
        Index of its image in the call's sequence.
    target : int
        Index of its point among the image's usable points.
    point : Point
        Annotation, with the category to be used.
    window : Window
        Holds the click and the other marks, or the box.
    key : int
        Signed 64-bit key of the image's noise, see `name_key`.
    estimated : bool
        The category was estimated rather than given.
    marks : tuple of int
        Marked pixels beside the click: row * width + column in the window.
    """

    image: int
    target: int
    point: Point
    window: Window
    key: int
    estimated: bool
    marks: tuple[int, ...] = ()

    def inside(self, shape: tuple[int, int]) -> np.ndarray:
        """Return where in the window the target may be: in its box; bool [h, w].

        `shape`: height and width of the image.
        """
        if self.point.box is None:
            return np.ones(self.window.shape, bool)
        left, top, right, bottom = box_pixels(self.point.box, *shape)
        allowed = np.zeros(self.window.shape, bool)
        allowed[
            top - self.window.top : bottom - self.window.top,
            left - self.window.left : right - self.window.left,
        ] = True
        return allowed


def pack_by_type(
    images: Sequence[np.ndarray], owners: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], list[int], PackedImages]]:
    """Pack the images in which items lie: those of uint8, and apart from them all others.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    owners : sequence of int
        Index of each item's image.
    device : torch.device

    Yields
    ------
    members : list of int
        Indices of the items in these images.
    places : list of int
        Index of each member's image among the packed ones.
    packed : PackedImages
    """
    for byte in (True, False):
        members = [n for n, image in enumerate(owners) if (images[image].dtype == np.uint8) == byte]
        if members:
            used = sorted({owners[n] for n in members})
            index = {image: place for place, image in enumerate(used)}
            places = [index[owners[n]] for n in members]
            yield members, places, PackedImages.pack([images[image] for image in used], device)


def estimate_areas(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[int]:
    """Estimate the area in pixels of the target under each click, by the vote of components.

    On the 270 targets of NUAA-SIRST's train split, clicked at their centers, the category of this area is the
    true one for 96 %. Where nothing stands out it is that of the 3 x 3 pixels around the click.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    clicks : sequence of (int, Point)
        Index of the image, and the click.
    device : torch.device
    """
    areas = [0] * len(clicks)
    for members, places, packed in pack_by_type(images, [image for image, _ in clicks], device):
        pixels = [
            (place, *nearest_pixel(point.x, point.y, *images[image].shape[:2]))
            for place, (image, point) in zip(places, (clicks[n] for n in members), strict=True)
        ]
        windows = component_windows(packed, torch.tensor(pixels, dtype=torch.int64))
        unknown = torch.full((len(members),), -1)
        found = vote_components(packed, windows, unknown, ComponentConfig()).area.tolist()
        for n, area in zip(members, found, strict=True):
            areas[n] = area
    return areas


def estimate_categories(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[str]:
    """Estimate the category of each target: of its box, else of the area at its click (`estimate_areas`)."""
    without_box = [(image, point) for image, point in clicks if point.box is None]
    areas = iter(estimate_areas(images, without_box, device))
    return [category_of(next(areas) if point.box is None else _box_area(point.box)) for _, point in clicks]


def _box_area(box: tuple[float, float, float, float]) -> int:
    left, top, right, bottom = box
    return round((right - left + 1) * (bottom - top + 1))
