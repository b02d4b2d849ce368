"""Point labels on disk as raw entries: tables, text lists, VOC-style XML and single-pixel masks.

A parser takes one file and yields what it says, image by image and point by point, without judging it;
whether the image exists and the point lies inside it is decided by `mclc_gpu.data.points`. JSON formats:
`formats_json`.
"""

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mclc_gpu.data.images import read_image
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

CATEGORIES = ("point", "spot", "extended")
SUPERVISIONS = ("point", "multi-point", "scribble", "box")  # what an annotator gives for each target

# Column names of a table by role; the first is the one that this project writes.
COLUMNS = {
    "image": ("image", "filename", "file_name", "image_name", "file", "img", "name"),
    "x": ("x", "xc", "cx", "col", "column"),
    "y": ("y", "yc", "cy", "row"),
    "category": ("category",),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One point as its file says it, or, with x and y both None, an image said to hold no target.

    The pixel position of the point is (x * scale_x + shift, y * scale_y + shift).
    """

    names: tuple[str, ...]  # what the image may be called; the first name that exists counts
    where: str  # place in the file, for messages
    x: object = None
    y: object = None
    category: object = None
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    size: tuple[object, object] | None = None  # (height, width) that the annotation says its image has


Entries = Iterator[Entry | Skipped]


def read_bytes(path: Path, *, may_be_empty: bool = False) -> bytes:
    """The content of a label file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not data.strip() and not may_be_empty:
        raise InputError(f"{path}: the file is empty; it must hold point labels")
    return data


def read_text(path: Path, *, may_be_empty: bool = False) -> str:
    """A text file as UTF-8 or, when it begins so, UTF-16; bytes that are neither survive as in file names."""
    data = read_bytes(path, may_be_empty=may_be_empty)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="surrogateescape")


def known_category(label: object) -> str | None:
    """The label that an annotation tool gave, when it happens to be a category; such labels are free text."""
    return label.lower() if isinstance(label, str) and label.lower() in CATEGORIES else None


def parse_csv(path: Path) -> Entries:
    """A table with a header: `image,x,y[,category]`, in any order, among other columns; x = column, y = row.

    Comma, semicolon or tab separate; with the latter two a decimal comma is understood. A row with x and y
    both empty names an image without targets. Raises InputError when the header lacks a column or names one
    twice.
    """
    text = read_text(path)
    header, delimiter = _header_of(text, path)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        width = len(next(rows))
        for row in rows:
            where = f"line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if any(cell.strip() for cell in row[width:]):
                yield Skipped(str(path), f"{where}: {len(row)} cells under a header of {width}")
                continue
            row += [""] * (width - len(row))
            cells = {role: row[index] for role, index in header.items()}
            if delimiter != ",":
                cells["x"], cells["y"] = cells["x"].replace(",", "."), cells["y"].replace(",", ".")
            x, y = cells["x"].strip(), cells["y"].strip()
            names = (cells["image"], cells["image"].strip())
            yield Entry(names, where, x, y, cells.get("category")) if x or y else Entry(names, where)
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num} is not CSV ({error}); export it again") from error


def has_table_header(text: str) -> bool:
    """Whether the first line names the columns of a points table."""
    return any(roles is not None for roles, _ in _readings(text))


def _header_of(text: str, path: Path) -> tuple[dict[str, int], str]:
    """Index of each role's column, and the delimiter."""
    for roles, delimiter in _readings(text):
        if roles is not None:
            doubled = [role for role, indices in roles.items() if len(indices) > 1]
            if doubled:
                raise InputError(f"{path}: the header names two columns for {doubled[0]}; keep one of them")
            return {role: indices[0] for role, indices in roles.items()}, delimiter
    first = text.partition("\n")[0][:80]
    raise InputError(f"{path}: the header {first!r} lacks image, x or y; it must be image,x,y[,category]")


def _readings(text: str) -> Iterator[tuple[dict[str, list[int]] | None, str]]:
    """The header split by each delimiter: the columns of each role, or None where a needed one is missing."""
    for delimiter in ",;\t":
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            cells = []
        names = [cell.strip().lower() for cell in cells]
        roles: dict[str, list[int]] = {}
        for role, aliases in COLUMNS.items():
            exact = [index for index, name in enumerate(names) if name == role]
            indices = exact or [index for index, name in enumerate(names) if name in aliases]
            if indices:
                roles[role] = indices
        yield (roles if roles.keys() >= {"image", "x", "y"} else None), delimiter


def parse_txt(path: Path) -> Entries:
    """DOTA-like list, one file per image of the same name: a line "x y" or "x y category" per point.

    Blanks or commas separate; DOTA's head lines (imagesource:, gsd:) are passed over; an image whose file
    holds no line has no target.
    """
    text = read_text(path, may_be_empty=True)
    empty = True
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.replace(",", " ").split()
        if not cells or line.lower().startswith(("imagesource:", "gsd:")):
            continue
        empty = False
        if len(cells) not in (2, 3):
            yield Skipped(str(path), f"line {number}: {len(cells)} values, not 'x y' or 'x y category'")
            continue
        yield Entry((path.stem,), f"line {number}", cells[0], cells[1], cells[2] if len(cells) == 3 else None)
    if empty:
        yield Entry((path.stem,), "the whole file")


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type: it declares entities, by which a small file grows without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("a document type declaration is not accepted; remove the <!DOCTYPE ...> part")


def parse_xml(path: Path) -> Entries:
    """VOC-style XML, one file per image: <object> with <centroid><xc/><yc/></centroid>.

    These coordinates count from 1, as in MATLAB, and 1 is subtracted: the 533 of NUAA-SIRST's `centroids/`
    exceed the centroids of their targets in the masks by 1.00 px in x and 1.01 px in y (medians; 90 %
    between 0.9 and 1.1). The image is the one named like the file, else the one of <filename>.
    """
    data = read_bytes(path)
    try:
        root = ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not well-formed XML ({error}); export it again") from error
    if root.tag != "annotation":
        raise InputError(f"{path}: the root is <{root.tag}>, not <annotation>; give VOC-style XML")
    names = (path.stem, (root.findtext("filename") or path.stem).strip())
    size = root.find("size")
    shape = None if size is None else (size.findtext("height"), size.findtext("width"))
    objects = list(root.iter("object"))
    if not objects:
        yield Entry(names, "the whole file", size=shape)
    for number, item in enumerate(objects, 1):
        centroid = item.find("centroid")
        if centroid is None:
            yield Skipped(str(path), f"object {number} has no <centroid>")
            continue
        # "" rather than None for an absent coordinate: two None would say that the image has no target.
        x, y = centroid.findtext("xc", ""), centroid.findtext("yc", "")
        category = known_category(item.findtext("name"))
        yield Entry(names, f"object {number}", x, y, category, shift=-1.0, size=shape)


def parse_point_mask(path: Path) -> Entries:
    """A mask of single pixels, one file per image: each nonzero pixel is a point, none means no target.

    Raises InputError when 2x2 nonzero pixels touch: then the file is a mask of whole targets, not of points.
    """
    pixels = read_image(path)
    marked = np.atleast_3d(pixels).max(axis=2) > 0
    if (marked[:-1, :-1] & marked[1:, :-1] & marked[:-1, 1:] & marked[1:, 1:]).any():
        raise InputError(f"{path}: nonzero pixels form areas, not points; give masks to --points-from-masks")
    size = marked.shape
    rows, columns = np.nonzero(marked)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        yield Entry((path.name,), f"pixel ({column}, {row})", column, row, size=size)
    if not len(rows):
        yield Entry((path.name,), "the whole file", size=size)
