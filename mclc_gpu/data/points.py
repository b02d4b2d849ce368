"""Read and write targets marked by an annotator (clicks, scribbles, boxes), in every registered format."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from mclc_gpu.data import formats_json, formats_tools
from mclc_gpu.data.annotations import (
    CATEGORIES,
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
    COUNTED_FROM_ONE,
    IMAGE_EDGE,
    PIXEL_CENTERS,
    TABLE_SUFFIXES,
    Entries,
    Entry,
    LabelFile,
    PointFormat,
    begins_like_xml,
    is_table,
    parse_lines,
    parse_mask,
    parse_table,
    parse_xml,
)
from mclc_gpu.data.images import image_size
from mclc_gpu.data.names import IMAGE_SUFFIXES, FileNames, stem_of
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.registry import Registry

_TEXT_SUFFIX = ".txt"
_CLASSES = "classes"  # stem of the list of class names beside YOLO's labels
_PIXEL_GRIDS = (PIXEL_CENTERS, IMAGE_EDGE, COUNTED_FROM_ONE)

# A file is offered to the formats from the last registered to the first: general ones come first.
FORMATS: Registry[PointFormat] = Registry(
    "point format",
    {
        "text lines": PointFormat(
            parse_lines, (_TEXT_SUFFIX,), lambda file: file.path.suffix.lower() == _TEXT_SUFFIX
        ),
        "marked pixels": PointFormat(parse_mask, IMAGE_SUFFIXES),
        "VOC XML": PointFormat(parse_xml, (".xml",), begins_like_xml),
        "JSON by image": formats_json.BY_IMAGE,
        "JSON records": formats_json.RECORDS,
        "Label Studio": formats_json.LABEL_STUDIO,
        "COCO": formats_json.COCO,
        "LabelMe": formats_json.LABELME,
        "CSV": PointFormat(parse_table, (*TABLE_SUFFIXES, _TEXT_SUFFIX), is_table),
        "CVAT": formats_tools.CVAT,
        "VIA": formats_tools.VIA,
        "VIA table": formats_tools.VIA_TABLE,
        "MakeSense": formats_tools.MAKE_SENSE,
        "napari": formats_tools.NAPARI,
        "ImageJ": formats_tools.IMAGE_J,
    },
)


def read_points(
    source: Path | str, images: Mapping[str, Path], supervision: str = "point"
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Read the targets that annotators marked, from label files of any registered format.

    Parameters
    ----------
    source : Path or str
        A file or a folder of files, recognized by suffix, then content (see `FORMATS`). In a folder, files of
        other kinds beside the labels (the images, a README) are passed over.
    images : mapping of str to Path
        Image files by stem (see `mclc_gpu.data.names.find_files`). Give all that the labels may name and
        select from the result: points of images that are missing here are reported.
    supervision : {"point", "multi-point", "scribble", "box"}
        What to take from files that hold several kinds of marks. "point" and "multi-point" take clicks, which
        the latter groups into targets (a table's column target, LabelMe's group_id, the annotation in COCO,
        the value in an image). "scribble" takes lines, a table's pixels and an image's strokes; positions
        count as the pixel they lie in. "box" takes boxes; each side goes to the nearest border of two pixels.

    Returns
    -------
    points : dict of str to list of Point
        Targets by image stem, in the order of the source. An image that the source lists without targets
        has an empty list.
    skipped : list of Skipped
        What was left out: marks on an unknown or unreadable image, or of another kind than `supervision`;
        clicks outside their image (valid: -0.5 <= x < W - 0.5, -0.5 <= y < H - 0.5); scribbles and boxes not
        wholly inside; boxes without area; marks made on an image of another size, or given twice (the first
        is kept); numbers that are not finite; unknown categories. In formats whose labels are free text
        (COCO, LabelMe, Label Studio, XML) a label that is no category means None instead.

    Raises
    ------
    InputError
        Unknown supervision, missing or empty source, unknown format, table without the needed columns.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from PIL import Image
    >>> from mclc_gpu.data.points import read_points
    >>> with TemporaryDirectory() as folder:
    ...     image, table = Path(folder) / "a.png", Path(folder) / "points.csv"
    ...     Image.fromarray(np.zeros((30, 40), np.uint8)).save(image)
    ...     _ = table.write_text("image,x,y,category\\na,12,7,spot\\na,99,7,\\n")
    ...     points, skipped = read_points(table, {"a": image})
    >>> points["a"]
    [Point(x=12.0, y=7.0, category='spot', seeds=(), box=None)]
    >>> skipped[0].why
    "line 3: (99, 7) lies outside the 40x30 image 'a'"
    """
    check_supervision(supervision)
    source = Path(source)
    collector = _Collector(images, supervision)
    if source.is_dir():
        for path in _label_files(source, images):
            try:
                collector.take(LabelFile(path, supervision))
            except InputError as error:
                collector.skipped.append(Skipped.because(path, error))
    else:
        file = LabelFile(source, supervision)
        if source.suffix.lower() == _TEXT_SUFFIX:
            file.text()  # raises if empty: in a folder that means no target, alone it is a mistake
        collector.take(file)
    collector.check(source)
    if not collector.points and not collector.skipped:
        raise InputError(f"{source}: holds no points; it must name at least one image")
    return collector.points, collector.skipped


def write_points(path: Path | str, points: Mapping[str, Iterable[Point]]) -> None:
    """Write a table `image,x,y,category` atomically that `read_points` reads back to the same numbers.

    Where some target has marks beyond (x, y), a column `target` numbers the targets of each image and each
    mark has a row; where some has a box, the columns left, top, right and bottom follow. The round trip is
    exact for targets that `read_points` and `simulate_points` give: boxes and scribbles of whole pixels. An
    image with an empty list becomes a row without coordinates.

    Parameters
    ----------
    path : Path or str
    points : mapping of str to iterable of Point
        Targets by image stem.

    Raises
    ------
    OSError
        The file cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mclc_gpu.data.annotations import Point
    >>> from mclc_gpu.data.points import write_points
    >>> with TemporaryDirectory() as folder:
    ...     write_points(Path(folder) / "points.csv", {"a": [Point(12, 7.5, "spot")], "b": []})
    ...     print((Path(folder) / "points.csv").read_text(), end="")
    image,x,y,category
    a,12.0,7.5,spot
    b,,,
    """
    points = {stem: list(targets) for stem, targets in points.items()}
    everyone = [target for targets in points.values() for target in targets]
    with_marks, with_boxes = any(t.seeds for t in everyone), any(t.box for t in everyone)
    extra = ["target"] * with_marks + [*BOX_COLUMNS] * with_boxes

    def rows() -> Iterator[list[object]]:
        for stem, targets in points.items():
            for number, target in enumerate(targets, 1):
                box = map(float, target.box) if target.box else [None] * 4
                more = [number] * with_marks + [*box] * with_boxes
                for x, y in target.marks:
                    yield [stem, float(x), float(y), target.category, *more]
            if not targets:
                yield [stem, *([None] * (3 + len(extra)))]

    write_csv(path, ["image", "x", "y", "category", *extra], rows())


def load_points(path: Path | str) -> dict[str, list[Point]]:
    """Read a file that `write_points` wrote, exactly and without checks against the images.

    Raises
    ------
    InputError
        The file is missing, or a row is not as `write_points` writes it.
    """
    path = Path(path)
    targets: dict[str, dict[str, list[Entry]]] = {}
    for entry in parse_table(LabelFile(path)):
        if isinstance(entry, Skipped):
            raise InputError(f"{path}: {entry.why}; write the file again")
        own = targets.setdefault(entry.names[0], {})
        if entry.clicks:
            own.setdefault(entry.target or entry.where, []).append(entry)
    try:
        return {stem: [_written(parts) for parts in own.values()] for stem, own in targets.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}; write the file again") from error


def _written(parts: Sequence[Entry]) -> Point:
    """Return the target that `write_points` spread over these rows."""
    first = parts[0]
    places = [(finite_number(x, "x"), finite_number(y, "y")) for part in parts for x, y in part.clicks]
    box = None
    if first.box is not None:
        left, top, right, bottom = (
            finite_number(value, role) for value, role in zip(first.box.values, BOX_COLUMNS, strict=True)
        )
        box = (left, top, right, bottom)
    return Point(*places[0], str(first.category) if first.category else None, tuple(places[1:]), box)


def _format_of(file: LabelFile) -> PointFormat:
    """Return the format of a file, by suffix or else by content."""
    formats = list(FORMATS.values())[::-1]
    by_suffix = [one for one in formats if file.path.suffix.lower() in one.suffixes]
    if len(by_suffix) == 1:
        return by_suffix[0]  # its parser says what is wrong with the file
    for one in by_suffix or formats:
        if one.recognizes(file):
            return one
    names = ", ".join([*FORMATS][::-1])
    raise InputError(f"{file.path}: not a known format of points; give one of {names}, or a folder of files")


def _label_files(folder: Path, images: Mapping[str, Path]) -> list[Path]:
    """Return the label files of a folder in order of name; all are of one kind.

    Suffixes that the same formats claim are one kind. Annotation tools write beside the images, so image
    files are labels only where nothing else is. A README.txt is everywhere, so text files are labels only
    where one is named like an image. Among several kinds the one whose files are named like images counts.
    """
    formats = [*FORMATS.values()]

    def kind_of(suffix: str) -> frozenset[int]:
        return frozenset(number for number, one in enumerate(formats) if suffix in one.suffixes)

    kinds: dict[frozenset[int], list[Path]] = {}
    images_found: list[Path] = []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or not kind_of(suffix) or not path.is_file():
            continue
        files = images_found if suffix in IMAGE_SUFFIXES else kinds.setdefault(kind_of(suffix), [])
        files.append(path)
    if _CLASSES not in images:
        for files in kinds.values():
            files[:] = [file for file in files if file.name != _CLASSES + _TEXT_SUFFIX]
    named = {
        kind: files for kind, files in kinds.items() if any(stem_of(file.stem) in images for file in files)
    }
    if kind_of(_TEXT_SUFFIX) not in named:
        kinds.pop(kind_of(_TEXT_SUFFIX), None)
    if len(kinds) > 1:
        kinds = named or kinds
    found = list(kinds.values()) or ([images_found] if images_found else [])
    if len(found) != 1:
        suffixes = ", ".join(sorted({file.suffix for files in found for file in files}))
        what = f"labels of several kinds ({suffixes})" if found else "no labels of these images"
        raise InputError(f"{folder}: the folder holds {what}; give a folder of one kind, or one file")
    return found[0]


# The field of an entry that each supervision reads, and the kind of an entry that has none but this field.
_FIELD = {"point": "clicks", "multi-point": "clicks", "scribble": "stroke", "box": "box"}
_KIND = {"clicks": "point", "stroke": "scribble", "box": "box"}
_BOX_NAMES = {
    "pixels": ("left", "top", "right", "bottom"),
    "corners": ("x", "y", "x", "y"),
    "size": ("x", "y", "width", "height"),
}


class _Collector:
    """Checks the entries of label files against the images and gathers the targets by image.

    Attributes
    ----------
    points, skipped
        See `read_points`.
    """

    def __init__(self, images: Mapping[str, Path], supervision: str) -> None:
        self.points: dict[str, list[Point]] = {}
        self.skipped: list[Skipped] = []
        self._supervision = supervision
        self._images = images
        self._names = FileNames(images)
        self._stems: dict[str, str] = {}  # of the images, by their names in the current file
        self._sizes: dict[str, tuple[int, int]] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._reported: set[tuple[str, str]] = set()
        self._within_one = self._whole = True  # all coordinates of pixels in 0..1; all whole or half

    def take(self, file: LabelFile) -> None:
        """Add the targets of one file."""
        self._take(file.path, list(self._watched(_format_of(file).parse(file))))

    def _watched(self, entries: Entries) -> Entries:
        """Pass entries on and note whether their coordinates look like shares of the image's size."""
        for entry in entries:
            if not self._within_one or isinstance(entry, Skipped):
                pass
            elif not entry.relative and entry.grid in _PIXEL_GRIDS:
                box = () if entry.box is None else entry.box.values
                for value in (*chain(*entry.clicks), *chain(*entry.stroke), *box):
                    with suppress(InputError):
                        number = finite_number(value, "")
                        self._whole &= (2 * number).is_integer()
                        self._within_one &= 0 <= number <= 1
            yield entry

    def check(self, source: Path) -> None:
        """Raise InputError where all coordinates of the source are shares of the image's size, not pixels."""
        if self._within_one and not self._whole:
            raise InputError(
                f"{source}: all coordinates lie in 0..1, as shares of the image's size do; multiply x by the "
                "image's width and y by its height"
            )

    def _take(self, path: Path, entries: Sequence[Entry | Skipped]) -> None:
        """Add targets; entries that share image and target are checked together, as one target."""
        named = (entry.names for entry in entries if isinstance(entry, Entry))
        self._stems = self._names.match(chain.from_iterable(named))
        parts: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            if isinstance(entry, Skipped):
                self.skipped.append(entry)
            elif (stem := self._usable(path, entry)) is None:
                continue
            else:
                entry = self._scaled(stem, entry)
                if entry.target is None or self._supervision == "box":
                    self._take_target(path, stem, [entry])
                else:
                    parts.setdefault((stem, entry.target), []).append(entry)
        for (stem, _), entries_of_target in parts.items():
            self._take_target(path, stem, entries_of_target)

    def _usable(self, path: Path, entry: Entry) -> str | None:
        """Return the image stem of an entry that holds the requested kind of marks; else report, and None."""
        stem = next((self._stems[name] for name in entry.names if name in self._stems), None)
        if stem is None:
            name = entry.names[0] if entry.names else ""
            why = f"{entry.where}: no image is named {name!r}; its points are left out"
            if not name.isascii():
                why += "; if the name looks wrong, save the file as UTF-8"
            self._report_once(path, name, why)
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

    def _scaled(self, stem: str, entry: Entry) -> Entry:
        """Give an entry in shares of the image's size the grid of its image."""
        if not entry.relative:
            return entry
        height, width = self._size(stem)
        return replace(entry, grid=IMAGE_EDGE._replace(scale_x=width, scale_y=height))

    def _fits(self, path: Path, stem: str, entry: Entry) -> bool:
        """Return whether the image can be opened and has the size that the entry states."""
        try:
            height, width = self._size(stem)
        except InputError as error:
            image = self._images[stem]
            self._report_once(image, stem, Skipped.because(image, error).why)
            return False
        if _other_size(entry.size, (height, width)):
            stated = "x".join(str(side).strip() for side in reversed(entry.size or ()))
            why = f"{stem!r} was annotated at {stated} but its image is {width}x{height}"
            self._report_once(path, stem, why)
            return False
        return True

    def _take_target(self, path: Path, stem: str, parts: Sequence[Entry]) -> None:
        """Check and add one target, or the clicks of one entry, each a target of its own."""
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
        """Check each click by itself: a bad one does not spoil the others of its target."""
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
        key = (stem, frozenset(point.marks), point.box)
        if key in self._seen:
            what = "the target at " if point.seeds or point.box else ""
            raise InputError(f"{what}({point.x:g}, {point.y:g}) in {stem!r} was given before; kept once")
        self._seen.add(key)
        self.points.setdefault(stem, []).append(point)

    def _size(self, stem: str) -> tuple[int, int]:
        if stem not in self._sizes:
            self._sizes[stem] = image_size(self._images[stem])
        return self._sizes[stem]

    def _report_once(self, file: Path, key: str, why: str) -> None:
        """Report what is wrong with a whole image once, not for each of its targets."""
        if (str(file), key) not in self._reported:
            self._reported.add((str(file), key))
            self.skipped.append(Skipped(str(file), why))


def _box_of(entry: Entry, stem: str, size: tuple[int, int], category: str | None) -> Point:
    """Return the box of an entry in whole pixels: each side goes to the nearest border of two pixels."""
    assert entry.box is not None
    form, names = entry.box.form, _BOX_NAMES[entry.box.form]
    numbers = [finite_number(value, name) for value, name in zip(entry.box.values, names, strict=True)]
    given = "the box " + ", ".join(f"{name} {number:g}" for name, number in zip(names, numbers, strict=True))
    spans = []
    for low, high, scale in zip(numbers[:2], numbers[2:], entry.grid[:2], strict=True):
        if form == "size":
            high += low
        elif form == "corners":
            low, high = min(low, high), max(low, high)
        if high < low or (high == low and form != "pixels"):
            raise InputError(f"{given} has no area or its ends are exchanged; draw it again")
        if form == "pixels":
            spans.append((low * scale + entry.grid.shift, high * scale + entry.grid.shift + 1))
        else:
            spans.append((low * scale, high * scale))
    height, width = size
    lengths = (width, height)
    if any(high <= 0 or low >= length for (low, high), length in zip(spans, lengths, strict=True)):
        raise InputError(f"{given} lies outside the {width}x{height} image {stem!r}")
    if any(low < -0.5 or high >= length + 0.5 for (low, high), length in zip(spans, lengths, strict=True)):
        raise InputError(f"{given} reaches out of the {width}x{height} image {stem!r}; clip it to the image")
    (left, right), (top, bottom) = _pixels_of(spans[0], width), _pixels_of(spans[1], height)
    return box_target(left, top, right, bottom, category)


def _pixels_of(span: tuple[float, float], length: int) -> tuple[int, int]:
    """Return the first and last pixel between two positions along pixel borders, at least one pixel."""
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
        ys, xs = line_pixels(pixels) if part.polyline else np.array(pixels).T
        rows.append(ys)
        columns.append(xs)
    return scribble(np.concatenate(rows), np.concatenate(columns), category)


def _pixel_position(entry: Entry, position: tuple[object, object]) -> tuple[float, float]:
    (x, y), grid = position, entry.grid
    return (
        finite_number(x, "x") * grid.scale_x + grid.shift,
        finite_number(y, "y") * grid.scale_y + grid.shift,
    )


def finite_number(value: object, axis: str) -> float:
    """Return a number that a file holds as a number or as text; InputError names `axis` for anything else."""
    number = math.nan
    # float() takes 1_0 for 10, and True for 1.
    if isinstance(value, str | int | float) and not isinstance(value, bool) and "_" not in str(value):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{axis} is {str(value)[:40]!r}, not a finite number")
    return number


def _category_of(parts: Sequence[Entry]) -> str | None:
    """Return the category that the parts of a target agree on; parts may leave it out."""
    given = dict.fromkeys(_category(part.category) for part in parts)
    given.pop(None, None)
    if len(given) > 1:
        raise InputError(
            f"target {parts[0].target!r} has categories {' and '.join(map(str, given))}; keep one"
        )
    return next(iter(given), None)


def _category(value: object) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and value.strip().lower() in CATEGORIES:
        return value.strip().lower()
    raise InputError(f"category is {str(value)[:40]!r}, not one of {', '.join(CATEGORIES)}")


def _other_size(stated: tuple[object, object] | None, size: tuple[int, int]) -> bool:
    """Return whether a stated size (0 or nothing: unknown) differs from the image's."""
    for length, true in zip(stated or (), size, strict=False):
        with suppress(InputError):
            if finite_number(length, "length") not in (0, true):
                return True
    return False
