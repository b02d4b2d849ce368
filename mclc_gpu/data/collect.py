"""Judges what label files say: entries become targets of known images, or reports of why not."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mclc_gpu.data.formats import CATEGORIES, Entries, Entry
from mclc_gpu.data.images import image_size, stem_of
from mclc_gpu.data.shapes import Point, box_target, line_pixels, nearest_pixel, scribble
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

# The field of an entry that each supervision reads, and what an entry is that has none but this field.
_FIELD = {"point": "clicks", "multi-point": "clicks", "scribble": "stroke", "box": "box"}
_KIND = {"clicks": "point", "stroke": "scribble", "box": "box"}
_NAMES = {
    "pixels": ("left", "top", "right", "bottom"),
    "corners": ("x", "y", "x", "y"),
    "size": ("x", "y", "width", "height"),
}


class Collector:
    """Gathers the targets of many files by image, for one supervision (see `points.read_points`)."""

    def __init__(self, images: Mapping[str, Path], supervision: str) -> None:
        self.points: dict[str, list[Point]] = {}
        self.skipped: list[Skipped] = []
        self._supervision = supervision
        self._images = images
        self._sizes: dict[str, tuple[int, int]] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._told: set[tuple[str, str]] = set()

    def take(self, path: Path, entries: Entries) -> None:
        """Add what one file holds. Entries that share image and target are judged together, as one target."""
        parted: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            if isinstance(entry, Skipped):
                self.skipped.append(entry)
            elif (stem := self._usable(path, entry)) is None:
                continue
            elif entry.target is None or self._supervision == "box":
                self._take_target(path, stem, [entry])
            else:
                parted.setdefault((stem, entry.target), []).append(entry)
        for (stem, _), entries_of_target in parted.items():
            self._take_target(path, stem, entries_of_target)

    def _usable(self, path: Path, entry: Entry) -> str | None:
        """The stem of the image of an entry that holds what is to be read; else None, having said why."""
        stem = self._known_stem(entry.names)
        if stem is None:
            name = entry.names[0] if entry.names else ""
            self._tell_once(path, name, f"{entry.where}: no image is named {name!r}; its points are left out")
            return None
        kinds = [kind for field, kind in _KIND.items() if getattr(entry, field)]
        if not kinds:
            self.points.setdefault(stem, [])
            return None
        if not getattr(entry, _FIELD[self._supervision]):
            why = f"{entry.where} is a {kinds[0]}; --supervision {kinds[0]} reads it"
            self.skipped.append(Skipped(str(path), why))
            return None
        return stem if self._fits(path, stem, entry) else None

    def _fits(self, path: Path, stem: str, entry: Entry) -> bool:
        """Whether the image can be opened and has the size that the entry says."""
        try:
            height, width = self._size(stem)
        except InputError as error:
            self._tell_once(self._images[stem], stem, str(error).removeprefix(f"{self._images[stem]}: "))
            return False
        if _other_size(entry.size, (height, width)):
            said = "x".join(str(side).strip() for side in reversed(entry.size or ()))
            self._tell_once(path, stem, f"{stem!r} was annotated at {said} but its image is {width}x{height}")
            return False
        return True

    def _take_target(self, path: Path, stem: str, parts: Sequence[Entry]) -> None:
        """Judge one target, or the points of their own that one entry holds."""
        try:
            category = _category_of(parts)
            if self._supervision == "point" and len(parts) > 1:
                raise InputError(
                    f"target {parts[0].target!r} in {stem!r} has {len(parts)} clicks; "
                    "--supervision multi-point reads them"
                )
            if self._supervision == "box":
                self._keep(stem, _box_of(parts[0], stem, self._size(stem), category))
            elif self._supervision == "scribble":
                self._keep(stem, _scribble_of(parts, stem, self._size(stem), category))
            else:
                self._take_clicks(path, stem, parts, category)
        except InputError as error:
            self.skipped.append(Skipped(str(path), f"{parts[0].where}: {error}"))

    def _take_clicks(self, path: Path, stem: str, parts: Sequence[Entry], category: str | None) -> None:
        """Each click is judged by itself: a bad one does not spoil the others of its target."""
        clicks: dict[tuple[float, float], None] = {}
        for part in parts:
            for click in part.clicks:
                try:
                    x, y = _pixel_position(part, click)
                    height, width = self._size(stem)
                    if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
                        raise InputError(f"({x:g}, {y:g}) lies outside the {width}x{height} image {stem!r}")
                    if self._supervision == "point":
                        self._keep(stem, Point(x, y, category))
                    elif (x, y) in clicks:
                        raise InputError(f"({x:g}, {y:g}) in {stem!r} was given before; kept once")
                    clicks[x, y] = None
                except InputError as error:
                    self.skipped.append(Skipped(str(path), f"{part.where}: {error}"))
        if self._supervision == "multi-point" and clicks:
            (x, y), *others = clicks
            self._keep(stem, Point(x, y, category, seeds=tuple(others)))

    def _keep(self, stem: str, point: Point) -> None:
        key = (stem, frozenset([(point.x, point.y), *point.seeds]), point.box)
        if key in self._seen:
            what = "the target at " if point.seeds or point.box else ""
            raise InputError(f"{what}({point.x:g}, {point.y:g}) in {stem!r} was given before; kept once")
        self._seen.add(key)
        self.points.setdefault(stem, []).append(point)

    def _known_stem(self, names: Iterable[str]) -> str | None:
        for name in names:
            if name in self._images:
                return name
            if (stem := stem_of(name)) in self._images:
                return stem
        return None

    def _size(self, stem: str) -> tuple[int, int]:
        if stem not in self._sizes:
            self._sizes[stem] = image_size(self._images[stem])
        return self._sizes[stem]

    def _tell_once(self, file: Path, key: str, why: str) -> None:
        """What is wrong with a whole image would otherwise be said for each of its points."""
        if (str(file), key) not in self._told:
            self._told.add((str(file), key))
            self.skipped.append(Skipped(str(file), why))


def _box_of(entry: Entry, stem: str, size: tuple[int, int], category: str | None) -> Point:
    """The box of an entry in whole pixels: each side goes to the nearest border of two pixels."""
    assert entry.box is not None
    names = _NAMES[entry.box_form]
    numbers = [finite_number(value, name) for value, name in zip(entry.box, names, strict=True)]
    said = "the box " + ", ".join(f"{name} {number:g}" for name, number in zip(names, numbers, strict=True))
    spans = []
    for low, high, scale in zip(numbers[:2], numbers[2:], entry.scale, strict=True):
        if entry.box_form == "size":
            high += low
        elif entry.box_form == "corners":
            low, high = min(low, high), max(low, high)
        if high < low or (high == low and entry.box_form != "pixels"):
            raise InputError(f"{said} has no area or its ends are exchanged; draw it again")
        if entry.box_form == "pixels":
            spans.append((low * scale + entry.shift, high * scale + entry.shift + 1))
        else:
            spans.append((low * scale, high * scale))
    height, width = size
    lengths = (width, height)
    if any(high <= 0 or low >= length for (low, high), length in zip(spans, lengths, strict=True)):
        raise InputError(f"{said} lies outside the {width}x{height} image {stem!r}")
    if any(low < -0.5 or high >= length + 0.5 for (low, high), length in zip(spans, lengths, strict=True)):
        raise InputError(f"{said} reaches out of the {width}x{height} image {stem!r}; clip it to the image")
    (left, right), (top, bottom) = _pixels_of(spans[0], width), _pixels_of(spans[1], height)
    return box_target(left, top, right, bottom, category)


def _pixels_of(span: tuple[float, float], length: int) -> tuple[int, int]:
    """First and last pixel between two positions along pixel borders; never none, whatever the rounding."""
    first, last = nearest_pixel(span[0]), nearest_pixel(span[1]) - 1
    middle = min(max(math.floor((span[0] + span[1]) / 2), 0), length - 1)
    return (first, last) if first <= last else (middle, middle)


def _scribble_of(parts: Sequence[Entry], stem: str, size: tuple[int, int], category: str | None) -> Point:
    height, width = size
    rows, columns = [], []
    for part in parts:
        pixels = []
        for position in part.stroke:
            x, y = _pixel_position(part, position)
            # Tools let a line be drawn up to the image's edge itself, so that border is inside here.
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise InputError(
                    f"a scribble leaves the {width}x{height} image {stem!r} at ({x:g}, {y:g}); draw it inside"
                )
            pixels.append((min(nearest_pixel(y), height - 1), min(nearest_pixel(x), width - 1)))
        ys, xs = line_pixels(pixels) if part.drawn else np.array(pixels).T
        rows.append(ys)
        columns.append(xs)
    return scribble(np.concatenate(rows), np.concatenate(columns), category)


def _pixel_position(entry: Entry, position: tuple[object, object]) -> tuple[float, float]:
    x, y = position
    return (
        finite_number(x, "x") * entry.scale[0] + entry.shift,
        finite_number(y, "y") * entry.scale[1] + entry.shift,
    )


def finite_number(value: object, axis: str) -> float:
    """The number that a file says, as a number or as text; InputError, which names `axis`, for any other."""
    number = math.nan
    # float() takes 1_0 for 10, and True for 1.
    if isinstance(value, str | int | float) and not isinstance(value, bool) and "_" not in str(value):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{axis} is {str(value)[:40]!r}, not a finite number")
    return number


def _category_of(parts: Sequence[Entry]) -> str | None:
    """The category that the parts of a target agree on; parts may leave it out."""
    said = dict.fromkeys(_category(part.category) for part in parts)
    said.pop(None, None)
    if len(said) > 1:
        raise InputError(f"target {parts[0].target!r} is said to be {' and '.join(map(str, said))}; keep one")
    return next(iter(said), None)


def _category(value: object) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and value.strip().lower() in CATEGORIES:
        return value.strip().lower()
    raise InputError(f"category is {str(value)[:40]!r}, not one of {', '.join(CATEGORIES)}")


def _other_size(said: tuple[object, object] | None, size: tuple[int, int]) -> bool:
    """Whether the size that an annotation names (0 or nothing: unknown) is not that of its image."""
    for length, true in zip(said or (), size, strict=False):
        with suppress(InputError):
            if finite_number(length, "length") not in (0, true):
                return True
    return False
