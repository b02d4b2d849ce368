"""Label files as unchecked entries: the interface of a format, and the formats that are no JSON.

A parser reads one file and yields an `Entry` per target; `mclc_gpu.data.points` checks the entries against
the images and registers the formats. JSON formats are in `mclc_gpu.data.formats_json`.
"""

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mclc_gpu.data.annotations import CATEGORIES, components
from mclc_gpu.data.images import read_image
from mclc_gpu.data.names import IMAGE_SUFFIXES
from mclc_gpu.errors import InputError, Skipped

TABLE_SUFFIXES = (".csv", ".tsv")
Positions = tuple[tuple[object, object], ...]
_LOSSY = (".jpg", ".jpeg")
_NO_TARGET = ("background", "bg", "negative", "none")  # names of objects that stand for no target
_CLICKS_SIDE_BY_SIDE = 3  # pixels that touch and may still be clicks on as many targets


class Grid(NamedTuple):
    """Coordinates of a file: its (x, y) is the pixel position (x * scale_x + shift, y * scale_y + shift)."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    shift: float = 0.0


PIXEL_CENTERS = Grid()  # pixel centers at integers from 0, as in this project and in COCO's keypoints
IMAGE_EDGE = Grid(shift=-0.5)  # measured from the image's left and upper edge, as annotation tools do
COUNTED_FROM_ONE = Grid(shift=-1.0)  # pixel centers at integers from 1, as in MATLAB


class Box(NamedTuple):
    """Four unchecked numbers and what they are.

    "pixels": (left, top, right, bottom), positions of the outermost pixels, which belong to the box.
    "corners": (x, y, x, y) of any two opposite corners. "size": (left, top, width, height). Both of these run
    along the edges of pixels, counted from the image's edge: x to x + w is pixels x to x + w - 1. They are
    scaled by the entry's grid but never shifted.
    """

    values: tuple[object, object, object, object]
    form: Literal["pixels", "corners", "size"] = "pixels"


@dataclass(frozen=True, slots=True)
class Entry:
    """One annotated target, or a part of it, as written in its file; values are not checked yet.

    One entry may hold several shapes, such as a box and a click; the requested supervision chooses. An entry
    without shapes says that its image has no target. A parser passes numbers on as it finds them, as text
    too: bad ones are reported later, with `where`.

    Attributes
    ----------
    names : tuple of str
        Possible names of the image, with or without folder and suffix; the first that exists counts.
    where : str
        Place in the file for messages, such as "line 3".
    clicks : tuple of (x, y)
        Clicked positions. Each is a target of its own or, with multi-point supervision, all are one target's.
    stroke : tuple of (x, y)
        Positions of a scribble: its pixels or, with `polyline`, the corners of a line.
    polyline : bool
        See `stroke`.
    box : Box or None
    category : object
        "point", "spot", "extended", or None; other values are reported. For free text see `known_category`.
    target : str or None
        Entries of one file and image with the same name here are parts of one target.
    grid : Grid
        Coordinates of all shapes.
    size : (height, width) or None
        Size of the image that was annotated, if the file states it; 0 means unknown.
    relative : bool
        Coordinates are shares 0..1 of the image's width and height from its left and upper edge; `grid` is
        then that of the image.

    Examples
    --------
    >>> Entry(("frame_7.png",), "line 3", clicks=((12, "40.5"),))  # doctest: +ELLIPSIS
    Entry(names=('frame_7.png',), where='line 3', clicks=((12, '40.5'),), ...)
    """

    names: tuple[str, ...]
    where: str
    clicks: Positions = ()
    stroke: Positions = ()
    polyline: bool = False
    box: Box | None = None
    category: object = None
    target: str | None = None
    grid: Grid = PIXEL_CENTERS
    size: tuple[object, object] | None = None
    relative: bool = False


class LabelFile:
    """One file that may hold labels, read when first asked for.

    Parameters
    ----------
    path : Path
    supervision : str
        Requested supervision; only formats need it in which marks of all kinds look alike, such as masks.
    """

    def __init__(self, path: Path, supervision: str = "point") -> None:
        self.path = path
        self.supervision = supervision
        self._text: str | None = None
        self._json: tuple[Any] | None = None

    def content(self) -> bytes:
        """Return the bytes of the file. Raises InputError for a file that cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}); check the path") from error

    def text(self, *, may_be_empty: bool = False) -> str:
        """Return the content as UTF-8 or, after its byte order mark, UTF-16.

        Bytes that are neither survive as surrogates, as in file names. Raises InputError for a file that
        cannot be read, or is empty.
        """
        if self._text is None:
            data = self.content()
            if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                self._text = data.decode("utf-16", errors="replace")
            else:
                self._text = data.decode("utf-8-sig", errors="surrogateescape")
        if not may_be_empty and (not self._text or self._text.isspace()):
            raise InputError(f"{self.path}: the file is empty; it must hold point labels")
        return self._text

    def json(self) -> Any:
        """Return the root of a JSON file; None for a file that is neither named nor begins like JSON.

        Raises InputError for text that is not JSON, and as `text` does.
        """
        if self._json is None:
            text = self.text()
            if self.path.suffix.lower() != ".json" and not text.lstrip().startswith(("{", "[")):
                return None
            try:
                self._json = (json.loads(text),)
            # RecursionError: brackets nested by the thousand.
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.path}: not JSON ({error}); export it again") from error
            self._text = None  # large exports need not be held twice
        return self._json[0]


Entries = Iterator[Entry | Skipped]


@dataclass(frozen=True, slots=True)
class PointFormat:
    """A format of label files.

    Attributes
    ----------
    parse : callable
        Yields the entries of a `LabelFile`, and a `Skipped` for each part that it cannot read. Raises
        InputError for a file of which nothing can be read.
    suffixes : tuple of str
        Suffixes of its files, lower case.
    recognizes : callable
        Tells from the content whether a `LabelFile` has this format: asked of files whose suffix several
        formats claim, or none.

    Examples
    --------
    >>> def parse_spots(file):
    ...     for number, line in enumerate(file.text().splitlines(), 1):
    ...         image, x, y = line.split("|")
    ...         yield Entry((image,), f"line {number}", clicks=((x, y),))
    >>> spots = PointFormat(parse_spots, suffixes=(".spots",))

    ``FORMATS["spots"] = spots`` (`mclc_gpu.data.points.FORMATS`) registers it.
    """

    parse: Callable[[LabelFile], Entries]
    suffixes: tuple[str, ...] = ()
    recognizes: Callable[[LabelFile], bool] = lambda file: False


def bounds(corners: Positions) -> Box:
    """Return the box around the corners of a polygon; numbers that are none are left to be reported."""
    try:
        xs, ys = ([float(str(corner[axis])) for corner in corners] for axis in (0, 1))
    except ValueError:
        return Box((*corners[0], *corners[-1]), "corners")
    return Box((min(xs), min(ys), max(xs), max(ys)), "corners")


def known_category(label: object) -> str | None:
    """Return the category that a free-text label happens to name, else None."""
    return label.lower() if isinstance(label, str) and label.lower() in CATEGORIES else None


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


def row_entry(names: tuple[str, ...], where: str, cells: Mapping[str, object]) -> Entry:
    """Return the entry of one row or record.

    Parameters
    ----------
    names, where
        See `Entry`.
    cells : mapping
        Values by role, see `COLUMNS`. A position is both a click and a pixel of a scribble. Without a box,
        x and y both None say that the image has no target; a missing one is a bad number.
    """
    values = [cells.get(role) for role in BOX_COLUMNS]
    box = Box((values[0], values[1], values[2], values[3])) if any(map(_given, values)) else None
    x, y = cells.get("x", ""), cells.get("y", "")
    blank = not (_given(x) or _given(y)) if box else x is None and y is None
    at = () if blank else ((x, y),)
    target = str(cells["target"]).strip() if _given(cells.get("target")) else None
    return Entry(names, where, at, at, box=box, category=cells.get("category"), target=target)


def _given(value: object) -> bool:
    return value is not None and value != ""


def parse_table(file: LabelFile) -> Entries:
    """Parse a table with a header: `image,x,y[,category]`, in any order, among other columns.

    x = column, y = row. Rows of an image with the same `target` are the clicks, or the pixels of the
    scribble, of one target. Boxes are `left,top,right,bottom` (or xmin, ymin, xmax, ymax), pixel centers,
    both ends inside; x and y may then be missing. Comma, semicolon or tab separate; with the latter two a
    decimal comma is understood. A row with all of these empty names an image without targets. Raises
    InputError when the header lacks a column or names one twice.
    """
    text = file.text()
    header, delimiter = _header_of(text, file.path)
    # Blanks before names belong to them, unless what follows each blank is quoted.
    padded = f'{delimiter} "' in text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=padded)
    try:
        width = len(next(rows))
        for row in rows:
            where = f"line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if any(cell.strip() for cell in row[width:]):
                yield Skipped(str(file.path), f"{where}: {len(row)} cells under a header of {width}")
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
        raise InputError(
            f"{file.path}: line {rows.line_num} is not CSV ({error}); export it again"
        ) from error


def is_table(file: LabelFile) -> bool:
    """Return whether a file is named as a table, or its first line names the columns of a points table."""
    return file.path.suffix.lower() in TABLE_SUFFIXES or any(
        roles is not None for roles, _ in _readings(file.text(may_be_empty=True))
    )


def _header_of(text: str, path: Path) -> tuple[dict[str, int], str]:
    """Return the index of each role's column, and the delimiter."""
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
    """Split the header by each delimiter: the columns of each role, or None where a needed one is missing."""
    for delimiter in ",;\t":
        try:
            cells = next(
                csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True), []
            )
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


def parse_lines(file: LabelFile) -> Entries:
    """Parse a list of one file per image of the same name: "x y", "x y category", or YOLO's lines.

    Blanks or commas separate; DOTA's head lines (imagesource:, gsd:) are passed over; an image whose file
    holds no line has no target. A line of five numbers, the last four in 0..1, is YOLO's box
    (class, center x, center y, width, height as shares of the image's size); three more are its keypoint
    (x, y, visibility). YOLO's polygons (class and three or more corners) give their bounding boxes. One file
    for all images has lines "image x1,y1,x2,y2,class ...", a box for each group of numbers.
    """
    name, empty = (file.path.stem,), True
    for number, line in enumerate(file.text(may_be_empty=True).splitlines(), 1):
        cells = line.replace(",", " ").split()
        if not cells or line.lower().startswith(("imagesource:", "gsd:")):
            continue
        empty, where = False, f"line {number}"
        listed = line.split()
        if listed[0].lower().endswith(IMAGE_SUFFIXES):
            yield from _listed_boxes(listed, where, str(file.path))
            continue
        if len(cells) in (2, 3):
            category = cells[2] if len(cells) == 3 else None
            yield Entry(name, where, ((cells[0], cells[1]),), category=category)
        elif (shares := _shares(cells[1:])) and (entry := _yolo_entry(name, where, shares)):
            yield entry
        else:
            yield Skipped(
                str(file.path),
                f"{where}: {len(cells)} values, not 'x y', 'x y category' or YOLO's class, center, width and "
                "height as shares 0..1 of the image's size",
            )
    if empty:
        yield Entry(name, "the whole file")


def _listed_boxes(cells: Sequence[str], where: str, path: str) -> Entries:
    """Yield the boxes of a line "image x1,y1,x2,y2,class ..."."""
    names = (cells[0],)
    if len(cells) == 1:
        yield Entry(names, where)
    for cell in cells[1:]:
        numbers = cell.split(",")
        if len(numbers) in (4, 5):
            box = Box((numbers[0], numbers[1], numbers[2], numbers[3]), "corners")
            yield Entry(names, where, box=box, grid=IMAGE_EDGE)
        else:
            yield Skipped(path, f"{where}: {cell!r} is no box x1,y1,x2,y2,class")


def _shares(cells: Sequence[str]) -> list[float]:
    """Return numbers that are shares of the image's size, but for a visibility; else an empty list."""
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return []
    return numbers if len(numbers) >= 4 and all(0 <= number <= 1 for number in numbers[:6]) else []


def _yolo_entry(names: tuple[str, ...], where: str, numbers: Sequence[float]) -> Entry | None:
    """Return the entry of a line of YOLO's without its class; None for a number of values that it lacks."""
    if len(numbers) in (4, 7):
        x, y, width, height = numbers[:4]
        clicks = () if len(numbers) == 4 or not numbers[6] else ((numbers[4], numbers[5]),)
        box = Box((x - width / 2, y - height / 2, width, height), "size")
        return Entry(names, where, clicks, box=box, relative=True)
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[::2], numbers[1::2]
        return Entry(names, where, box=Box((min(xs), min(ys), max(xs), max(ys)), "corners"), relative=True)
    return None


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type: it declares entities, by which a small file grows without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("a document type declaration is not accepted; remove the <!DOCTYPE ...> part")


def xml_root(file: LabelFile, tag: str) -> ET.Element:
    """Return the root of an XML file. Raises InputError for text that is no XML, or has another root."""
    path, data = file.path, file.content()
    if not data.strip():
        raise InputError(f"{path}: the file is empty; it must hold point labels")
    root = xml_tree(data, path)
    if root.tag != tag:
        raise InputError(
            f"{path}: the root is <{root.tag}>, not <{tag}>; give VOC-style XML or that of CVAT for images"
        )
    return root


def xml_tree(data: bytes, place: Path | str) -> ET.Element:
    """Return the root of XML from outside. Raises InputError, which names `place`, for text that is none."""
    try:
        return ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{place}: not well-formed XML ({error}); export it again") from error


def parse_xml(file: LabelFile) -> Entries:
    """Parse VOC-style XML, one file per image: <object> with <centroid><xc/><yc/></centroid> or <bndbox>.

    A <bndbox> holds xmin, ymin, xmax and ymax, both ends inside. All coordinates count from 1, as in MATLAB,
    and 1 is subtracted. For boxes VOC says so; as to centroids, the 533 of NUAA-SIRST's `centroids/` exceed
    those of their targets in the masks by 1.00 px in x and 1.01 px in y (medians; 90 % between 0.9 and 1.1).
    The image is the one named like the file, else the one of <filename>. SIRST-v2 marks an image without
    targets by an object of the pixel id 0; an object named background does so too.
    """
    path, root = file.path, xml_root(file, "annotation")
    names = (path.stem, (root.findtext("filename") or path.stem).strip())
    stated = root.find("size")
    size = None if stated is None else (stated.findtext("height"), stated.findtext("width"))
    objects = list(root.iter("object"))
    if not objects:
        yield Entry(names, "the whole file", size=size)
    for number, item in enumerate(objects, 1):
        centroid, bounds = item.find("centroid"), item.find("bndbox")
        if centroid is None and bounds is None:
            named = (item.findtext("name") or "").strip().lower()
            if named in _NO_TARGET or (item.findtext("pixels/id") or "").strip() == "0":
                yield Entry(names, f"object {number}", size=size)
            else:
                yield Skipped(str(path), f"object {number} has neither <centroid> nor <bndbox>")
            continue
        # "" for an absent coordinate: a bad number, to be reported as such.
        clicks = () if centroid is None else ((centroid.findtext("xc", ""), centroid.findtext("yc", "")),)
        box = None
        if bounds is not None:
            left, top = bounds.findtext("xmin", ""), bounds.findtext("ymin", "")
            box = Box((left, top, bounds.findtext("xmax", ""), bounds.findtext("ymax", "")))
        yield Entry(
            names,
            f"object {number}",
            clicks,
            box=box,
            category=known_category(item.findtext("name")),
            grid=COUNTED_FROM_ONE,
            size=size,
        )


def begins_like_xml(file: LabelFile) -> bool:
    """Return whether the text begins with a tag."""
    return file.text().lstrip().startswith("<")


def parse_mask(file: LabelFile) -> Entries:
    """Parse an image of marked pixels by the requested supervision; no nonzero pixel means no target.

    "point": each nonzero pixel is a click. "multi-point": pixels of one value or color are the clicks on one
    target. "scribble": each 8-connected component is a stroke. Raises InputError for boxes, for JPEG, and for
    clicks when 2x2 nonzero pixels touch (a mask of whole targets) or many in a line (a drawn mark).
    """
    path = file.path
    if file.supervision == "box":
        raise InputError(
            f"{path}: an image holds no boxes; give masks of whole targets to --points-from-masks"
        )
    if path.suffix.lower() in _LOSSY:
        raise InputError(f"{path}: JPEG changes the pixels beside a mark; save the marks as PNG")
    pixels = np.atleast_3d(read_image(path))
    marked = pixels.max(axis=2) > 0
    if not marked.any():
        yield Entry((path.name,), "the whole file", size=marked.shape)
    elif file.supervision == "scribble":
        yield from _strokes(marked, path)
    elif (marked[:-1, :-1] & marked[1:, :-1] & marked[:-1, 1:] & marked[1:, 1:]).any():
        raise InputError(f"{path}: nonzero pixels form areas, not points; give masks to --points-from-masks")
    elif drawn := [rows for rows, _ in components(marked) if len(rows) > _CLICKS_SIDE_BY_SIDE]:
        raise InputError(
            f"{path}: {len(drawn[0])} connected pixels are a line, not clicks; mark single pixels, or use "
            "--supervision scribble"
        )
    elif file.supervision == "multi-point":
        yield from _numbered_clicks(pixels, marked, path)
    else:
        rows, columns = np.nonzero(marked)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield Entry((path.name,), f"pixel ({column}, {row})", ((column, row),), size=marked.shape)


def _numbered_clicks(pixels: np.ndarray, marked: np.ndarray, path: Path) -> Entries:
    """Yield targets whose clicks are single pixels of one value or color.

    Targets come in order of their first pixels, row by row. Raises InputError when several pixels all have
    the value 1 or all have the largest value, as in a mask of two values: their targets are then unknown.
    """
    rows, columns = np.nonzero(marked)
    colors, owners = np.unique(pixels[rows, columns], axis=0, return_inverse=True)
    owners = owners.ravel()
    if len(colors) == 1 and len(rows) > 1 and _is_plain(colors[0]):
        raise InputError(
            f"{path}: its {len(rows)} pixels have one value, so their targets are not told apart; "
            "give each target a value of its own from 2 on"
        )
    for owner in dict.fromkeys(owners.tolist()):
        own = owners == owner
        clicks = tuple(zip(columns[own].tolist(), rows[own].tolist(), strict=True))
        value = ", ".join(f"{level:g}" for level in colors[owner].tolist())
        yield Entry((path.name,), f"value {value}", clicks, size=marked.shape)


def _is_plain(color: np.ndarray) -> bool:
    """Return whether a pixel has the value that masks of two values use for true."""
    largest = 1 if color.dtype.kind == "f" else np.iinfo(color.dtype).max
    return bool(((color == 0) | (color == 1) | (color == largest)).all())


def _strokes(marked: np.ndarray, path: Path) -> Entries:
    """Yield strokes of any width: each 8-connected component of nonzero pixels is one."""
    for rows, columns in components(marked):
        pixels = tuple(zip(columns.tolist(), rows.tolist(), strict=True))
        yield Entry((path.name,), f"stroke at {pixels[0]}", stroke=pixels, size=marked.shape)
