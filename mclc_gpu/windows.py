"""The window of pixels that is clustered around each click."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from mclc_gpu.data.points import Point
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.trials import MAX_WINDOW

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
    """A rectangle inside an image and the clicked pixel inside that rectangle; all values in whole pixels.

    Attributes:
        top, left: First row and column in the image.
        height, width: Size, at least 1.
        click_row, click_column: The clicked pixel relative to (top, left): 0 <= click_row < height,
            0 <= click_column < width.
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
    def area(self) -> tuple[slice, slice]:
        """Index of the window in its image."""
        return np.s_[self.top : self.bottom, self.left : self.right]


def name_key(seed: int, image_name: str) -> int:
    """A 64-bit key, 0 <= key < 2**64, for everything random about one image.

    The same seed (any integer) and name give the same key on every machine and in every version. Give the
    name without folder and extension, so that the same image stored otherwise keeps its key.
    """
    text = f"{seed}/{image_name}".encode(errors="surrogateescape")  # file names need not be valid text
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw_window(
    height: int, width: int, x: float, y: float, category: str, seed: int, image_name: str, target_index: int
) -> Window:
    """Draw one target's window by the published rule.

    With (row, column) the click rounded half up and clipped into the image, the window is rows
    [row - up, row + down) and columns [column - left, column + right), clipped to the image; the four
    extents are uniform in `HALF_EXTENTS`.

    Args:
        height, width: Size of the image in pixels.
        x, y: The click: column and row, pixel centres at integers.
        category: "point", "spot" or "extended".
        seed, image_name, target_index: All that the random numbers depend on; target_index counts the image's
            targets from 0.

    Returns:
        The window; it always contains the (clipped) click.

    Raises:
        InputError: Unknown category, a click that is not finite, or an image without pixels.
    """
    where = f"{image_name}: target {target_index}"
    _check(height, width, x, y, where)
    _check_category(category, where)
    return _drawn(height, width, x, y, category, name_key(seed, image_name), target_index)


def _drawn(height: int, width: int, x: float, y: float, category: str, key: int, target_index: int) -> Window:
    row, column = nearest_pixel(x, y, height, width)
    # Raw words, unlike Generator.integers, are promised to stay the same in future numpy versions; the
    # scaling's bias is of order 2**-60. The key is one integer: numpy turns a list of two into floats first.
    words = np.random.Philox(key=key | target_index << 64).random_raw(4)
    up, down, left, right = (
        low + (int(word) * (high - low + 1) >> 64)
        for word, (low, high) in zip(words, HALF_EXTENTS[category], strict=True)
    )
    top, first = max(row - up, 0), max(column - left, 0)
    return Window(
        top=top,
        left=first,
        height=min(row + down, height) - top,
        width=min(column + right, width) - first,
        click_row=row - top,
        click_column=column - first,
    )


def place_window(
    height: int, width: int, point: Point, seed: int, image_name: str, target_index: int
) -> Window:
    """The window of a target, however it is marked.

    A click has the published window (`draw_window`). Several clicks or a scribble have the one around their
    mean, grown until it holds them all. A box has a window of three times its size around it, as the
    published windows are about three targets wide, but with at least `BOX_MARGIN` pixels on either side and
    not beyond the largest window that can be clustered. All are clipped to the image.

    Args:
        height, width: Size of the image in pixels.
        point: With its category, unless it has a box; inside the image.
        seed, image_name, target_index: See `draw_window`.

    Raises:
        InputError: See `draw_window`.
    """
    where = f"{image_name}: target {target_index}"
    _check(height, width, point.x, point.y, where)
    if point.box is None:
        _check_category(point.category, where)
    return keyed_window(height, width, point, name_key(seed, image_name), target_index)


def keyed_window(height: int, width: int, point: Point, key: int, target_index: int) -> Window:
    """`place_window` of a usable point, by its image's `name_key`."""
    if point.box is not None:
        left, top, right, bottom = box_pixels(point.box, height, width)
        beside_y, beside_x = _beside(bottom - top), _beside(right - left)
        row, column = nearest_pixel(point.x, point.y, height, width)
        rows = max(top - beside_y, 0), min(bottom + beside_y, height)
        columns = max(left - beside_x, 0), min(right + beside_x, width)
    else:
        marks = [(point.x, point.y), *point.seeds]
        x, y = (sum(values) / len(marks) for values in zip(*marks, strict=True))
        window = _drawn(height, width, x, y, str(point.category), key, target_index)
        pixels = [nearest_pixel(*mark, height, width) for mark in marks]
        row, column = pixels[0]
        rows = min(window.top, *(r for r, _ in pixels)), max(window.bottom, *(r + 1 for r, _ in pixels))
        columns = min(window.left, *(c for _, c in pixels)), max(window.right, *(c + 1 for _, c in pixels))
    return Window(
        rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0], row - rows[0], column - columns[0]
    )


def around(height: int, width: int, point: Point, radius: int) -> Window:
    """The window of `radius` pixels around a click, the middle of several marks or of a box, in the image."""
    marks = [(point.x, point.y), *point.seeds]
    rows, columns = zip(*(nearest_pixel(*mark, height, width) for mark in marks), strict=True)
    row, column = (min(rows) + max(rows)) // 2, (min(columns) + max(columns)) // 2
    top, left = max(row - radius, 0), max(column - radius, 0)
    bottom, right = min(row + radius + 1, height), min(column + radius + 1, width)
    return Window(top, left, bottom - top, right - left, rows[0] - top, columns[0] - left)


def _beside(side: int) -> int:
    """Pixels on either side of a box that is `side` pixels long."""
    return max(min(max(side, BOX_MARGIN), (MAX_WINDOW - side) // 2), 0)


def nearest_pixel(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    """(row, column) of a position, rounded half up and clipped into the image."""
    return (
        min(max(math.floor(y + 0.5), 0), height - 1),
        min(max(math.floor(x + 0.5), 0), width - 1),
    )


def box_pixels(box: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a box in whole pixels, the last two exclusive, clipped into the image."""
    top, left = nearest_pixel(box[0], box[1], height, width)
    bottom, right = nearest_pixel(box[2], box[3], height, width)
    return left, top, right + 1, bottom + 1


def _check(height: int, width: int, x: float, y: float, where: str) -> None:
    if not (math.isfinite(x) and math.isfinite(y)):
        raise InputError(f"{where}: click ({x}, {y}) is not a position: give x and y in pixels")
    if height < 1 or width < 1:
        raise InputError(f"{where}: the image has no pixels ({height} x {width}): remove it from the list")


def _check_category(category: str | None, where: str) -> None:
    if category not in HALF_EXTENTS:
        raise InputError(f"{where}: unknown category {category!r}: use one of {', '.join(HALF_EXTENTS)}")
