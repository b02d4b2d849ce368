"""Point labels and stronger ones, one target each, read from the formats that annotation tools write."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.collect import Collector, finite_number
from mclc_gpu.data.formats import (
    BOX_COLUMNS,
    CATEGORIES,
    SUPERVISIONS,
    Entries,
    Entry,
    has_table_header,
    parse_csv,
    parse_txt,
    parse_xml,
    read_text,
)
from mclc_gpu.data.formats_json import parse_json
from mclc_gpu.data.formats_mask import MASK_PARSERS
from mclc_gpu.data.images import IMAGE_SUFFIXES
from mclc_gpu.data.shapes import Point, check_supervision
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

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
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    extra = ["target"] * with_seeds + [*BOX_COLUMNS] * with_boxes
    rows.writerow(["image", "x", "y", "category", *extra])
    for stem, targets in points.items():
        for number, target in enumerate(targets, 1):
            box = map(_exact, target.box) if target.box else [""] * 4
            more = [str(number)] * with_seeds + [*box] * with_boxes
            for x, y in ((target.x, target.y), *target.seeds):
                rows.writerow([stem, _exact(x), _exact(y), target.category or "", *more])
        if not targets:
            rows.writerow([stem, "", "", "", *([""] * len(extra))])
    with atomic_path(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")


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


def _exact(number: float) -> str:
    return repr(float(number))


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
