"""Point labels on disk as raw entries: tables, text lists and VOC-style XML.

A parser takes one file and yields what it says, image by image and target by target, without judging it;
whether the image exists and the target lies inside it is decided by `mclc_gpu.data.collect`. JSON formats:
`formats_json`; pictures: `formats_mask`.
"""

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    "target": ("target",),
    "left": ("left", "xmin"),
    "top": ("top", "ymin"),
    "right": ("right", "xmax"),
    "bottom": ("bottom", "ymax"),
}
BOX_COLUMNS = ("left", "top", "right", "bottom")


Positions = tuple[tuple[object, object], ...]
BoxForm = Literal["pixels", "corners", "size"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One annotated target, or a part of it, as its file says it; without shapes, an image without targets.

    One target may be said in several ways at once (a box and a click): the supervision asked for chooses.

    `clicks`: positions (x, y); their pixel position is (x * scale_x + shift, y * scale_y + shift).
    `stroke`: positions of a scribble, likewise; its pixels or, with `drawn`, the corners of its line.
    `box`, by `box_form`: "pixels" is (left, top, right, bottom), the outermost pixels, scaled and shifted as
    clicks are; "corners" is (x, y, x, y) of any two opposite corners and "size" is (left, top, width,
    height), both along the pixels' edges (0 is the image's edge), scaled but never shifted.
    """

    names: tuple[str, ...]  # what the image may be called; the first name that exists counts
    where: str  # place in the file, for messages
    clicks: Positions = ()
    category: object = None
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    size: tuple[object, object] | None = None  # (height, width) that the annotation says its image has
    stroke: Positions = ()
    drawn: bool = False
    box: tuple[object, object, object, object] | None = None
    box_form: BoxForm = "pixels"
    target: str | None = None  # entries of one file and image that share it are one target


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


def row_entry(names: tuple[str, ...], where: str, cells: Mapping[str, object]) -> Entry:
    """An entry from the values of one row or record by role (see `COLUMNS`).

    A position is a click or a pixel of a scribble, as the supervision has it. Without a box, x and y both
    None say that the image has no target, and a missing one is a bad number.
    """
    values = [cells.get(role) for role in BOX_COLUMNS]
    box = (values[0], values[1], values[2], values[3]) if any(map(_given, values)) else None
    x, y = cells.get("x", ""), cells.get("y", "")
    blank = not (_given(x) or _given(y)) if box else x is None and y is None
    at = () if blank else ((x, y),)
    target = str(cells["target"]).strip() if _given(cells.get("target")) else None
    return Entry(names, where, at, cells.get("category"), stroke=at, box=box, target=target)


def _given(value: object) -> bool:
    return value is not None and value != ""


def parse_csv(path: Path) -> Entries:
    """A table with a header: `image,x,y[,category]`, in any order, among other columns; x = column, y = row.

    Rows of an image with the same `target` are the clicks, or the pixels of the scribble, of one target.
    Boxes are `left,top,right,bottom` (or xmin, ymin, xmax, ymax), pixel centres, both ends inside; x and y
    may then be missing. Comma, semicolon or tab separate; with the latter two a decimal comma is understood.
    A row with all of these empty names an image without targets. Raises InputError when the header lacks a
    column or names one twice.
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
            names = (row[header["image"]], row[header["image"]].strip())
            cells: dict[str, object] = {role: row[index].strip() for role, index in header.items()}
            for role in ("x", "y", *BOX_COLUMNS):
                number = str(cells.get(role, ""))
                cells[role] = number.replace(",", ".") if delimiter != "," else number
            if not (cells["x"] or cells["y"]):
                cells["x"] = cells["y"] = None
            yield row_entry(names, where, cells)
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
    raise InputError(
        f"{path}: the header {first!r} lacks image, x or y; it must be image,x,y[,category][,target] "
        "or image,left,top,right,bottom[,category]"
    )


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
        known = roles.keys() >= {"image", "x", "y"} or roles.keys() >= {"image", *BOX_COLUMNS}
        yield (roles if known else None), delimiter


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
        category = cells[2] if len(cells) == 3 else None
        yield Entry((path.stem,), f"line {number}", ((cells[0], cells[1]),), category)
    if empty:
        yield Entry((path.stem,), "the whole file")


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type: it declares entities, by which a small file grows without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("a document type declaration is not accepted; remove the <!DOCTYPE ...> part")


def parse_xml(path: Path) -> Entries:
    """VOC-style XML, one file per image: <object> with <centroid><xc/><yc/></centroid> or <bndbox>.

    A <bndbox> holds xmin, ymin, xmax and ymax, both ends inside. All coordinates count from 1, as in MATLAB,
    and 1 is subtracted. For boxes VOC says so; as to centroids, the 533 of NUAA-SIRST's `centroids/` exceed
    those of their targets in the masks by 1.00 px in x and 1.01 px in y (medians; 90 % between 0.9 and 1.1).
    The image is the one named like the file, else the one of <filename>.
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
        centroid, bounds = item.find("centroid"), item.find("bndbox")
        if centroid is None and bounds is None:
            yield Skipped(str(path), f"object {number} has neither <centroid> nor <bndbox>")
            continue
        # "" for an absent coordinate: a bad number, to be reported as such.
        clicks = () if centroid is None else ((centroid.findtext("xc", ""), centroid.findtext("yc", "")),)
        box = None
        if bounds is not None:
            left, top = bounds.findtext("xmin", ""), bounds.findtext("ymin", "")
            box = (left, top, bounds.findtext("xmax", ""), bounds.findtext("ymax", ""))
        category = known_category(item.findtext("name"))
        yield Entry(names, f"object {number}", clicks, category, shift=-1.0, size=shape, box=box)
