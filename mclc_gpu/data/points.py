"""Point labels: one click per target, read from the formats that annotation tools write."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.formats import (
    CATEGORIES,
    SUPERVISIONS,
    Entries,
    Entry,
    has_table_header,
    parse_csv,
    parse_point_mask,
    parse_txt,
    parse_xml,
    read_text,
)
from mclc_gpu.data.formats_json import parse_json
from mclc_gpu.data.images import IMAGE_SUFFIXES, image_size, stem_of
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

__all__ = ["SUPERVISIONS", "Point", "read_points", "write_points"]

_PARSERS: dict[str, Callable[[Path], Entries]] = {
    ".csv": parse_csv,
    ".tsv": parse_csv,
    ".json": parse_json,
    ".xml": parse_xml,
    ".txt": parse_txt,
    **dict.fromkeys(IMAGE_SUFFIXES, parse_point_mask),
}


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


def read_points(
    source: Path | str, images: Mapping[str, Path]
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Read point labels of any known format.

    `source`: a file (CSV, JSON, XML, txt, single-pixel mask) or a folder of them, recognised by suffix, then
    content. In a folder, files of other kinds beside the labels (the images, a README) are passed over.
    `images`: image files by stem (see `mclc_gpu.data.images.find_files`); give all that the labels may name
    and select from the result, since a point of an image that is not there is reported.

    Returns the points by image stem, in the order of the source, and what was left out: points of an unknown
    or unreadable image, outside their image (valid: -0.5 <= x < W - 0.5, -0.5 <= y < H - 0.5), annotated on
    an image of another size, said twice (the first is kept), with coordinates that are not finite numbers, or
    of an unknown category. An image that the source lists without points has an empty list. In formats whose
    labels are free text (COCO, LabelMe, Label Studio, XML) a label that is no category means None.

    Raises InputError for a missing or empty source, an unknown format and a table without the needed columns.
    """
    source = Path(source)
    collector = _Collector(images)
    if source.is_dir():
        for path, parse in _label_files(source, images):
            try:
                collector.take(path, parse(path))
            except InputError as error:
                collector.skipped.append(Skipped.because(path, error))
    else:
        collector.take(source, _parser_of(source)(source))
    if not collector.points and not collector.skipped:
        raise InputError(f"{source}: holds no points; it must name at least one image")
    return collector.points, collector.skipped


def write_points(path: Path | str, points: Mapping[str, Iterable[Point]]) -> None:
    """Write a table `image,x,y,category` that `read_points` reads back to the same numbers, bit for bit.

    An image with an empty list becomes a row without coordinates. The file appears whole or not at all.
    """
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["image", "x", "y", "category"])
    for stem, clicks in points.items():
        lines = [[stem, repr(float(at.x)), repr(float(at.y)), at.category or ""] for at in clicks]
        rows.writerows(lines or [[stem, "", "", ""]])
    with atomic_path(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")


class _Collector:
    """Judges entries: turns them into points of known images, or into reports of why not."""

    def __init__(self, images: Mapping[str, Path]) -> None:
        self.points: dict[str, list[Point]] = {}
        self.skipped: list[Skipped] = []
        self._images = images
        self._sizes: dict[str, tuple[int, int]] = {}
        self._seen: set[tuple[str, float, float]] = set()
        self._told: set[tuple[str, str]] = set()

    def take(self, path: Path, entries: Entries) -> None:
        for entry in entries:
            if isinstance(entry, Skipped):
                self.skipped.append(entry)
                continue
            try:
                self._take_one(path, entry)
            except InputError as error:
                self.skipped.append(Skipped(str(path), f"{entry.where}: {error}"))

    def _take_one(self, path: Path, entry: Entry) -> None:
        name = entry.names[0] if entry.names else ""
        stem = self._known_stem(entry.names)
        if stem is None:
            self._tell_once(path, name, f"{entry.where}: no image is named {name!r}; its points are left out")
            return
        if entry.x is None and entry.y is None:
            self.points.setdefault(stem, [])
            return
        x = _number(entry.x, "x") * entry.scale[0] + entry.shift
        y = _number(entry.y, "y") * entry.scale[1] + entry.shift
        category = _category(entry.category)
        try:
            height, width = self._size(stem)
        except InputError as error:
            self._tell_once(self._images[stem], stem, str(error).removeprefix(f"{self._images[stem]}: "))
            return
        if _other_size(entry.size, (height, width)):
            said = f"{entry.size[1]}x{entry.size[0]}" if entry.size else ""
            self._tell_once(path, stem, f"{stem!r} was annotated at {said} but its image is {width}x{height}")
            return
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise InputError(f"({x:g}, {y:g}) lies outside the {width}x{height} image {stem!r}")
        if (stem, x, y) in self._seen:
            raise InputError(f"({x:g}, {y:g}) in {stem!r} was given before; kept once")
        self._seen.add((stem, x, y))
        self.points.setdefault(stem, []).append(Point(x, y, category))

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


def _number(value: object, axis: str) -> float:
    number = math.nan
    # float() takes 1_0 for 10, and True for 1.
    if isinstance(value, str | int | float) and not isinstance(value, bool) and "_" not in str(value):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{axis} is {str(value)[:40]!r}, not a finite number")
    return number


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
            if _number(length, "length") not in (0, true):
                return True
    return False


def _parser_of(path: Path) -> Callable[[Path], Entries]:
    """The parser of a single file."""
    suffix = path.suffix.lower()
    if suffix in _PARSERS and suffix != ".txt":
        return _PARSERS[suffix]
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


def _label_files(folder: Path, images: Mapping[str, Path]) -> list[tuple[Path, Callable[[Path], Entries]]]:
    """The label files of a folder, all of one kind, in order of name.

    Annotation tools write beside the images, so pictures are labels only where nothing else is. A
    README.txt is everywhere, so txt files are labels only where one is named like an image. Among several
    kinds the one whose files are named like images counts.
    """
    kinds: dict[Callable[[Path], Entries], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        parser = _PARSERS.get(path.suffix.lower())
        if parser is not None and not path.name.startswith(".") and path.is_file():
            kinds.setdefault(parser, []).append(path)
    named = {kind: files for kind, files in kinds.items() if any(file.stem in images for file in files)}
    pictures = kinds.pop(parse_point_mask, [])
    named.pop(parse_point_mask, None)
    if parse_txt not in named:
        kinds.pop(parse_txt, None)
    if len(kinds) > 1:
        kinds = named or kinds
    if not kinds and pictures:
        kinds = {parse_point_mask: pictures}
    if len(kinds) != 1:
        kind_names = ", ".join(sorted({file.suffix for files in kinds.values() for file in files}))
        found = f"labels of several kinds ({kind_names})" if kinds else "no labels of these images"
        raise InputError(f"{folder}: the folder holds {found}; give a folder of one kind, or one file")
    return [(path, parser) for parser, files in kinds.items() for path in files]
