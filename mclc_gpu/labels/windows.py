"""Place each target: its category and the window of pixels that is clustered around it."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mclc_gpu.data.annotations import Point, category_of
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import MAX_WINDOW, ComponentConfig
from mclc_gpu.kernels.packed import MAX_MARKS, PackedImages
from mclc_gpu.labels.config import LabelConfig

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


def estimate_areas(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[int]:
    """Area in pixels of the target under each click (index of its image, point), by the vote of components.

    On the 270 targets of NUAA-SIRST's train split, clicked at their centres, the category of this area is the
    true one for 96 %. Where nothing stands out it is that of the 3 x 3 pixels around the click.
    """
    areas = [0] * len(clicks)
    for byte in (True, False):
        members = [n for n, (image, _) in enumerate(clicks) if (images[image].dtype == np.uint8) == byte]
        if not members:
            continue
        used = sorted({clicks[n][0] for n in members})
        index = {image: n for n, image in enumerate(used)}
        packed = PackedImages.pack([images[i] for i in used], device)
        pixels = [
            (index[i], *nearest_pixel(point.x, point.y, *images[i].shape[:2]))
            for i, point in (clicks[n] for n in members)
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
    """ "point", "spot" or "extended": the category of `estimate_areas` at each click."""
    return [category_of(area) for area in estimate_areas(images, clicks, device)]


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
            window = window_of((height, width), point, config, seed, name, usable)
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


def window_of(
    shape: tuple[int, int], point: Point, config: LabelConfig, seed: int, name: str, target: int
) -> Window:
    """Return the window in which a target is labeled.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image in pixels.
    point : Point
        With its category, where the label maker needs one.
    config : LabelConfig
    seed, name, target
        Random seed, name of the image without folder and suffix, and index of the target among the image's
        usable points: the random numbers of a published window depend on them.

    Raises
    ------
    InputError
        See `place_window`.
    """
    if config.maker == "components":
        return around(*shape, point, config.components.radius)
    return place_window(*shape, point, seed, name, target)


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
    chosen = point.seeds[:: -(-len(point.seeds) // MAX_MARKS) or 1]
    pixels = (nearest_pixel(x, y, *shape) for x, y in chosen)
    return tuple((row - window.top) * window.width + column - window.left for row, column in pixels)
