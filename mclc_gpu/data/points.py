"""Read and write point labels, and stronger ones, of every supported format."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mclc_gpu.data.annotations import (
    CATEGORIES,
    SUPERVISIONS,
    Point,
    box_target,
    check_supervision,
    line_pixels,
    nearest_pixel,
    scribble,
)
from mclc_gpu.data.files import write_csv
from mclc_gpu.data.formats import (
    BOX_COLUMNS,
    MASK_PARSERS,
    Entries,
    Entry,
    has_table_header,
    parse_csv,
    parse_json,
    parse_txt,
    parse_xml,
    read_text,
)
from mclc_gpu.data.images import IMAGE_SUFFIXES, image_size, stem_of
from mclc_gpu.errors import InputError, Skipped

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


__all__ = ["CATEGORIES", "SUPERVISIONS", "Point", "load_points", "read_points", "write_points"]

Parser = Callable[[Path], Entries]

_PARSERS: dict[str, Parser] = {
    ".csv": parse_csv,
    ".tsv": parse_csv,
    ".json": parse_json,
    ".xml": parse_xml,
    ".txt": parse_txt,
}


def read_points(
    source: Path | str, images: Mapping[str, Path], supervision: str = "point"
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Read labels of any known format.

    `source`: a file (CSV, JSON, XML, txt, picture of marked pixels) or a folder of them, recognised by
    suffix, then content. In a folder, files of other kinds beside the labels (the images, a README) are
    passed over.
    `images`: image files by stem (see `mclc_gpu.data.images.find_files`); give all that the labels may name
    and select from the result, since a point of an image that is not there is reported.
    `supervision`: one of `SUPERVISIONS`; what to take from files that hold several kinds. "point" and
    "multi-point" take clicks, which the latter gathers into targets (a table's column target, LabelMe's
    group_id, the annotation in COCO, the value in a picture). "scribble" takes lines, a table's pixels and a
    picture's strokes, and gives whole pixels: positions count as the pixel they lie in. "box" takes boxes,
    in whole pixels too; each side goes to the nearest border of two pixels. `Point` says what x, y, seeds and
    box then are.

    Returns the targets by image stem, in the order of the source, and what was left out: those of an unknown
    or unreadable image, of another kind than `supervision`, clicks outside their image (valid: -0.5 <= x <
    W - 0.5, -0.5 <= y < H - 0.5), scribbles and boxes that are not wholly inside, boxes without area, what
    was annotated on an image of another size or said twice (the first is kept), numbers that are not finite,
    and unknown categories. An image that the source lists without targets has an empty list. In formats whose
    labels are free text (COCO, LabelMe, Label Studio, XML) a label that is no category means None.

    Raises InputError for an unknown supervision, a missing or empty source, an unknown format and a table
    without the needed columns.
    """
    check_supervision(supervision)
    source = Path(source)
    parsers = _PARSERS | dict.fromkeys(IMAGE_SUFFIXES, MASK_PARSERS[supervision])
    collector = Collector(images, supervision)
    if source.is_dir():
        for path, parse in _label_files(source, images, parsers):
            try:
                collector.take(path, parse(path))
            except InputError as error:
                collector.skipped.append(Skipped.because(path, error))
    else:
        collector.take(source, _parser_of(source, parsers)(source))
    if not collector.points and not collector.skipped:
        raise InputError(f"{source}: holds no points; it must name at least one image")
    return collector.points, collector.skipped


def write_points(path: Path | str, points: Mapping[str, Iterable[Point]]) -> None:
    """Write a table `image,x,y,category` that `read_points` reads back to the same numbers, bit for bit.

    Where some target has seeds, a column `target` numbers the targets of each image, and each seed has a row;
    where some has a box, the columns left, top, right and bottom follow. What reads back the same are the
    targets that `read_points` and `simulate_points` give: boxes and scribbles of whole pixels. An image with
    an empty list becomes a row without coordinates. The file appears whole or not at all.
    """
    points = {stem: list(targets) for stem, targets in points.items()}
    everyone = [target for targets in points.values() for target in targets]
    with_seeds, with_boxes = any(t.seeds for t in everyone), any(t.box for t in everyone)
    extra = ["target"] * with_seeds + [*BOX_COLUMNS] * with_boxes

    def rows() -> Iterator[list[object]]:
        for stem, targets in points.items():
            for number, target in enumerate(targets, 1):
                box = map(float, target.box) if target.box else [None] * 4
                more = [number] * with_seeds + [*box] * with_boxes
                for x, y in ((target.x, target.y), *target.seeds):
                    yield [stem, float(x), float(y), target.category, *more]
            if not targets:
                yield [stem, *([None] * (3 + len(extra)))]

    write_csv(path, ["image", "x", "y", "category", *extra], rows())


def load_points(path: Path | str) -> dict[str, list[Point]]:
    """What `write_points` wrote, exactly and without a look at the images: for files of one's own.

    Raises InputError when the file is missing or a row is not as `write_points` writes it.
    """
    path = Path(path)
    targets: dict[str, dict[str, list[Entry]]] = {}
    for entry in parse_csv(path):
        if isinstance(entry, Skipped):
            raise InputError(f"{path}: {entry.why}; write the file anew")
        own = targets.setdefault(entry.names[0], {})
        if entry.clicks:
            own.setdefault(entry.target or entry.where, []).append(entry)
    try:
        return {stem: [_written(parts) for parts in own.values()] for stem, own in targets.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}; write the file anew") from error


def _written(parts: Sequence[Entry]) -> Point:
    """The target that `write_points` spread over these rows."""
    first = parts[0]
    places = [(finite_number(x, "x"), finite_number(y, "y")) for part in parts for x, y in part.clicks]
    box = None
    if first.box is not None:
        left, top, right, bottom = (
            finite_number(value, role) for value, role in zip(first.box, BOX_COLUMNS, strict=True)
        )
        box = (left, top, right, bottom)
    return Point(*places[0], str(first.category) if first.category else None, tuple(places[1:]), box)


def _parser_of(path: Path, parsers: Mapping[str, Parser]) -> Parser:
    """The parser of a single file."""
    suffix = path.suffix.lower()
    if suffix in parsers and suffix != ".txt":
        return parsers[suffix]
    text = read_text(path)
    if has_table_header(text):
        return parse_csv
    if suffix == ".txt":
        return parse_txt
    if text.lstrip().startswith(("{", "[")):
        return parse_json
    if text.lstrip().startswith("<"):
        return parse_xml
    raise InputError(f"{path}: not a known format of points; give CSV, JSON, XML, txt or a folder of them")


def _label_files(
    folder: Path, images: Mapping[str, Path], parsers: Mapping[str, Parser]
) -> list[tuple[Path, Parser]]:
    """The label files of a folder, all of one kind, in order of name.

    Annotation tools write beside the images, so pictures are labels only where nothing else is. A
    README.txt is everywhere, so txt files are labels only where one is named like an image. Among several
    kinds the one whose files are named like images counts.
    """
    kinds: dict[Parser, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        parser = parsers.get(path.suffix.lower())
        if parser is not None and not path.name.startswith(".") and path.is_file():
            kinds.setdefault(parser, []).append(path)
    named = {kind: files for kind, files in kinds.items() if any(file.stem in images for file in files)}
    picture_parser = parsers[IMAGE_SUFFIXES[0]]
    pictures = kinds.pop(picture_parser, [])
    named.pop(picture_parser, None)
    if parse_txt not in named:
        kinds.pop(parse_txt, None)
    if len(kinds) > 1:
        kinds = named or kinds
    if not kinds and pictures:
        kinds = {picture_parser: pictures}
    if len(kinds) != 1:
        kind_names = ", ".join(sorted({file.suffix for files in kinds.values() for file in files}))
        found = f"labels of several kinds ({kind_names})" if kinds else "no labels of these images"
        raise InputError(f"{folder}: the folder holds {found}; give a folder of one kind, or one file")
    return [(path, parser) for parser, files in kinds.items() for path in files]
