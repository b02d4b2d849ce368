"""Windows of pixels around targets, and the size categories on which the published windows depend."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import torch

from mclc_gpu.data.annotations import CATEGORIES, Point
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import MAX_WINDOW
from mclc_gpu.kernels.packed import Marks, Windows

# Inclusive ranges in pixels for (up, down, left, right), per target category, of the published procedure
# (Li et al., ICCV 2023); the fixed right side of points is part of it.
HALF_EXTENTS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "point": ((3, 5), (3, 5), (3, 5), (3, 3)),
    "spot": ((10, 11), (10, 11), (10, 11), (10, 11)),
    "extended": ((15, 25), (15, 25), (15, 25), (15, 25)),
}
BOX_MARGIN = 3  # pixels beside a box, the least extent of the published windows
_CODES = {name: code for code, name in enumerate(HALF_EXTENTS)}
_EXTENTS = np.array(list(HALF_EXTENTS.values()), np.int64)  # [categories, sides, least and greatest]
_LOWER = np.uint64(0xFFFFFFFF)
# Philox 4x64 (Salmon et al., SC 2011): factors of a round, and what it adds to the key.
_FACTORS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_WEYL = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)


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
    def row(self) -> tuple[int, int, int, int, int, int]:
        """Return all fields, in order."""
        return self.top, self.left, self.height, self.width, self.click_row, self.click_column

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


@dataclass(frozen=True, eq=False)
class Annotated:
    """Annotations of some targets, with all that their windows may depend on.

    Attributes
    ----------
    points : sequence of Point
        With their categories, if the label maker needs them.
    shapes : ndarray of int64, [targets, 2]
        Height and width of the targets' images in pixels.
    keys : ndarray of uint64, [targets]
        Keys of the images, see `name_key`.
    numbers : ndarray of int64, [targets]
        Number of each target in its image, from 0.
    """

    points: Sequence[Point]
    shapes: np.ndarray
    keys: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def take(self, chosen: np.ndarray) -> "Annotated":
        """Return some of the targets, by index."""
        points = [self.points[t] for t in chosen.tolist()]
        return Annotated(points, self.shapes[chosen], self.keys[chosen], self.numbers[chosen])

    @cached_property
    def clicked(self) -> np.ndarray:
        """Targets with a single click at a finite position in an image with pixels, bool [targets]."""
        single = np.array([not point.seeds and point.box is None for point in self.points], bool)
        return single & np.isfinite(self._positions).all(1) & (self.shapes >= 1).all(1)

    @cached_property
    def pixels(self) -> np.ndarray:
        """Row and column of each click, see `nearest_pixel`: int64 [targets, 2]; 0 if it is not finite."""
        finite = np.where(np.isfinite(self._positions), self._positions, 0.0)
        return np.clip(np.floor(finite + 0.5), 0, self.shapes - 1).astype(np.int64)

    @cached_property
    def _positions(self) -> np.ndarray:
        return np.array([(point.y, point.x) for point in self.points], np.float64).reshape(-1, 2)


def published_windows(targets: Annotated) -> np.ndarray:
    """Return the windows of `published_window`, int64 [targets, 6] as `Window` has its fields."""
    codes = np.array([_CODES.get(point.category or "", -1) for point in targets.points], np.int64)
    usual = targets.clicked & (codes >= 0)
    low, high = _EXTENTS[codes].transpose(2, 0, 1)
    number = (high - low + 1).astype(np.uint64)
    words, half = random_words(targets.keys, targets.numbers), np.uint64(32)
    # words * number / 2^64 in whole numbers
    scaled = ((words >> half) * number + ((words & _LOWER) * number >> half)) >> half
    up, down, left, right = (low + scaled.astype(np.int64)).T
    row, column = targets.pixels.T
    found = _clipped_all((row - up, row + down), (column - left, column + right), targets)
    for t in np.flatnonzero(~usual).tolist():
        place = (
            tuple(targets.shapes[t].tolist()),
            targets.points[t],
            int(targets.keys[t]),
            int(targets.numbers[t]),
        )
        found[t] = published_window(*place).row
    return found


def centered_windows(targets: Annotated, radius: int) -> np.ndarray:
    """Return the windows of `centered_window`, int64 [targets, 6] as `Window` has its fields."""
    row, column = targets.pixels.T
    sides = (row - radius, row + radius + 1), (column - radius, column + radius + 1)
    found = _clipped_all(*sides, targets)
    for t in np.flatnonzero(~targets.clicked).tolist():
        found[t] = centered_window(tuple(targets.shapes[t].tolist()), targets.points[t], radius).row
    return found


def other_clicks(owners: np.ndarray, pixels: np.ndarray, windows: np.ndarray) -> Marks:
    """Return the clicks on the other targets of each target's image that lie in its window.

    Parameters
    ----------
    owners : ndarray of int64, [targets]
        Index of each target's image.
    pixels : ndarray of int64, [targets, 2]
        Row and column of each click in its image.
    windows : ndarray of int64, [targets, 6]
        As `Window` has its fields.

    Returns
    -------
    Marks
        A second click on the pixel of the target's own is left out.
    """
    found: list[list[int]] = [[] for _ in range(len(owners))]
    images, counts = np.unique(owners, return_counts=True)
    for image in images[counts > 1].tolist():
        members = np.flatnonzero(owners == image)
        own, places = windows[members], pixels[members]
        inside = places[None] - own[:, None, :2]
        held = ((inside >= 0) & (inside < own[:, None, 2:4])).all(2)
        held &= (places[None] != places[:, None]).any(2)
        for t, rows, clicks, width in zip(members.tolist(), held, inside, own[:, 3].tolist(), strict=True):
            found[t] = (clicks[rows, 0] * width + clicks[rows, 1]).tolist()
    return Marks.pack(found)


def _clipped_all(
    rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray], targets: Annotated
) -> np.ndarray:
    """Return the windows of these rows and columns (ends exclusive), as far as they lie in the images."""
    first = np.maximum(np.stack([rows[0], columns[0]], 1), 0)
    end = np.minimum(np.stack([rows[1], columns[1]], 1), targets.shapes)
    return np.concatenate([first, end - first, targets.pixels - first], 1)


def random_words(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the first four words, uint64 [targets, 4], of Philox 4x64-10 with two words of key.

    They are those of ``numpy.random.Philox(key=key | number << 64).random_raw(4)``, where a generator for
    each target would take far longer.
    """
    counter = np.zeros((4, len(keys)), np.uint64)
    counter[0] = 1
    key = np.stack([keys, numbers.astype(np.uint64)])
    for _ in range(10):
        high, low = _product(counter[::2])
        counter = np.stack([high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]])
        key += _WEYL
    return counter.T


def _product(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return upper and lower 64 bits of the values of uint64 [2, targets] times Philox's two factors."""
    half = np.uint64(32)
    low, high = values & _LOWER, values >> half
    factor_low, factor_high = _FACTORS & _LOWER, _FACTORS >> half
    middle = high * factor_low + (low * factor_low >> half)
    other = low * factor_high + (middle & _LOWER)
    return high * factor_high + (middle >> half) + (other >> half), values * _FACTORS


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


@dataclass(frozen=True, eq=False)
class PlacedTargets(Sequence[PlacedTarget]):
    """Targets with their categories and windows; a `PlacedTarget` of each is made when it is asked for.

    Attributes
    ----------
    points : list of Point
    windows : Windows
        Their images are indices of the call's sequence.
    keys : ndarray of int64, [targets]
    estimated : ndarray of bool, [targets]
    marks : Marks
        Marked pixels beside the clicks.
    others : Marks
        Clicks on the other targets of the image, as far as they lie in the window.
    boxes : Tensor [targets, 4], int64, or None
        First and last row, first and last column of the window (the last ones exclusive) that belong to the
        target's box, or to the window if it has none; None if no target has one.
    """

    points: list[Point]
    windows: Windows
    keys: np.ndarray
    estimated: np.ndarray
    marks: Marks
    others: Marks
    boxes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[PlacedTarget]:
        offsets, pixels = self.marks.offsets.tolist(), self.marks.pixels.tolist()
        rows = zip(
            self.points, self.windows.table.tolist(), self.keys.tolist(), self.estimated.tolist(), strict=True
        )
        for t, (point, (image, *window, target), key, estimated) in enumerate(rows):
            marks = tuple(pixels[offsets[t] : offsets[t + 1]])
            yield PlacedTarget(image, target, point, Window(*window), key, estimated, marks)

    @overload
    def __getitem__(self, chosen: int) -> PlacedTarget: ...
    @overload
    def __getitem__(self, chosen: slice) -> list[PlacedTarget]: ...
    def __getitem__(self, chosen: int | slice) -> PlacedTarget | list[PlacedTarget]:
        return list(self)[chosen]

    def take(self, chosen: np.ndarray) -> "PlacedTargets":
        """Return some of the targets, by index."""
        at = torch.from_numpy(chosen)
        return PlacedTargets(
            [self.points[t] for t in chosen.tolist()],
            self.windows[at],
            self.keys[chosen],
            self.estimated[chosen],
            self.marks[at],
            self.others[at],
            None if self.boxes is None else self.boxes[at],
        )

    @property
    def categories(self) -> torch.Tensor:
        """Category of each target, an index of `CATEGORIES`, or -1 if it is unknown: int64 [targets]."""
        codes = {name: code for code, name in enumerate(CATEGORIES)}
        return torch.tensor([codes.get(point.category or "", -1) for point in self.points], dtype=torch.int64)
