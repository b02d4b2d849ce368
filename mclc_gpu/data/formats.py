"""Parse label files (tables, text, XML, JSON, mask images) into unchecked entries.

A parser takes one file and yields an `Entry` per target; `mclc_gpu.data.points` checks the entries against
the images. Annotation tools (LabelMe, Label Studio) measure from the image's left and upper edge, half a
pixel more than a position with pixel centers at integers. COCO keypoints and plain records count pixels from
0, as this project does. Boxes of COCO and of the tools run along the pixels' edges: x to x + w is pixels x to
x + w - 1.
"""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard
from urllib.parse import unquote

import numpy as np

from mclc_gpu.data.annotations import CATEGORIES, components
from mclc_gpu.data.images import read_image
from mclc_gpu.errors import InputError, Skipped

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


_EDGE_TO_CENTRE = -0.5
_LONGEST_SIDE = 1 << 31  # no image is longer, and larger numbers have no float
_LABEL_STUDIO_KEYS = {"keypointlabels": "keypoint", "rectanglelabels": "rectangle"}
_LABELME_CORNERS = {"point": 1, "line": 2, "rectangle": 2, "linestrip": None}  # how many; None: any, not none


def parse_json(path: Path) -> Entries:
    """Entries of a JSON file of any of the kinds above, told apart by their keys.

    Plain: [{"image": ..., "x": ..., "y": ..., "category": ...}, ...] with the keys that `COLUMNS` lists, or
    {image: [[x, y], ...], ...}, where the same keys may stand in place of [x, y].
    Raises InputError for text that is not JSON and for JSON of no known kind.
    """
    try:
        root = json.loads(read_text(path))
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); export it again") from error
    first = _dict(root[0]) if isinstance(root, list) and root else {}
    if isinstance(root, dict) and isinstance(root.get("shapes"), list):
        yield from _labelme(root, path)
    elif isinstance(root, dict) and isinstance(root.get("images"), list) and "annotations" in root:
        yield from _coco(root, path)
    elif isinstance(root, dict) and isinstance(root.get("data"), dict):
        yield from _label_studio([root], path)
    elif isinstance(first.get("data"), dict) or list(_minimal_results(first)):
        yield from _label_studio(root, path)
    elif isinstance(root, list) and all(isinstance(record, dict) for record in root):
        yield from _records(root, path)
    elif isinstance(root, dict) and all(isinstance(points, list) for points in root.values()):
        yield from _points_by_image(root, path)
    else:
        raise InputError(
            f"{path}: JSON of no known kind; give a list of {{image, x, y}}, {{image: [[x, y], ...]}}, "
            "COCO, LabelMe or Label Studio"
        )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(*values: Any) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _records(records: list[dict[str, Any]], path: Path) -> Entries:
    for number, record in enumerate(records, 1):
        cells = _by_role(record)
        yield row_entry(_texts(cells.get("image")), f"record {number}", cells)


def _by_role(record: dict[str, Any]) -> dict[str, Any]:
    """The values of a record under the names of their roles."""
    return {
        role: next(record[name] for name in names if name in record)
        for role, names in COLUMNS.items()
        if not record.keys().isdisjoint(names)
    }


def _points_by_image(root: dict[str, Any], path: Path) -> Entries:
    for image, points in root.items():
        if not points:
            yield Entry((image,), f"image {image!r}")
        for number, point in enumerate(points, 1):
            where = f"image {image!r}, point {number}"
            if isinstance(point, dict):
                yield row_entry((image,), where, _by_role(point))
            elif isinstance(point, list) and len(point) in (2, 3):
                at = (tuple(point[:2]),)
                yield Entry((image,), where, at, point[2] if len(point) == 3 else None, stroke=at)
            else:
                yield Skipped(str(path), f"{where} is not [x, y] or [x, y, category]")


def _coco(root: dict[str, Any], path: Path) -> Entries:
    """COCO: annotations with keypoints [x, y, visibility, ...] or bbox [x, y, w, h].

    Keypoints of visibility 0 are not labelled. The others are points of their own or, for multi-point
    supervision, the clicks on one target.
    """
    images = {repr(image.get("id")): image for image in map(_dict, root["images"])}
    labels = {repr(item.get("id")): item.get("name") for item in map(_dict, _list(root.get("categories")))}
    annotated = set()
    for number, annotation in enumerate(map(_dict, _list(root["annotations"])), 1):
        key = repr(annotation.get("image_id"))
        if key not in images:
            yield Skipped(str(path), f"annotation {number} is of image id {key}, which is not listed")
            continue
        annotated.add(key)
        keypoints, corners = _list(annotation.get("keypoints")), _list(annotation.get("bbox"))
        box = (corners[0], corners[1], corners[2], corners[3]) if len(corners) == 4 else None
        if box is None and (not keypoints or len(keypoints) % 3):
            why = "has neither keypoints [x, y, visibility] nor bbox [x, y, w, h]"
            yield Skipped(str(path), f"annotation {number} {why}")
            continue
        triples = zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=False)
        clicks = tuple((x, y) for x, y, visibility in triples if visibility != 0)
        names, size = _texts(images[key].get("file_name")), _size_of(images[key])
        category = known_category(labels.get(repr(annotation.get("category_id"))))
        if clicks or box:
            where = f"annotation {number}"
            yield Entry(names, where, clicks, category, size=size, box=box, box_form="size")
    for key, image in images.items():
        if key not in annotated:
            yield Entry(_texts(image.get("file_name")), f"image id {key}")


def _size_of(image: dict[str, Any]) -> tuple[Any, Any]:
    return image.get("height"), image.get("width")


def _labelme(root: dict[str, Any], path: Path) -> Entries:
    """LabelMe: one file per image; points, lines and rectangles. Shapes of one group_id are one target."""
    names = _texts(path.stem, root.get("imagePath"))
    size = (root.get("imageHeight"), root.get("imageWidth"))
    if not root["shapes"]:
        yield Entry(names, "the whole file", size=size)
    for number, shape in enumerate(map(_dict, root["shapes"]), 1):
        kind, where = str(shape.get("shape_type", "shape")), f"shape {number}"
        corners = [tuple(corner) for corner in map(_list, _list(shape.get("points")))]
        at: Positions = tuple((corner[0], corner[1]) for corner in corners if len(corner) == 2)
        group = shape.get("group_id")
        entry = Entry(
            names,
            where,
            category=known_category(shape.get("label")),
            shift=_EDGE_TO_CENTRE,
            size=size,
            target=None if group is None else str(group),
        )
        if kind not in _LABELME_CORNERS:
            yield Skipped(str(path), f"{where} is a {kind}, not a point, line, linestrip or rectangle")
        elif not at or len(at) != len(corners) or len(at) != (_LABELME_CORNERS[kind] or len(at)):
            yield Skipped(str(path), f"{where} is a {kind} of {len(corners)} points; draw it again")
        elif kind == "point":
            yield replace(entry, clicks=at)
        elif kind == "rectangle":
            yield replace(entry, box=(*at[0], *at[1]), box_form="corners")
        else:
            yield replace(entry, stroke=at, drawn=True)


def _label_studio(tasks: list[Any], path: Path) -> Entries:
    """Label Studio's JSON and JSON-MIN exports: keypoints and rectangles in percent of the original size."""
    for number, task in enumerate(map(_dict, tasks), 1):
        where = f"task {number}"
        texts = _texts(*_dict(task.get("data", task)).values(), task.get("file_upload"))
        names = tuple(_uploaded_names(texts))
        answers = [a for a in map(_dict, _list(task.get("annotations"))) if not a.get("was_cancelled")]
        if len(answers) > 1:
            yield Skipped(str(path), f"{where} has {len(answers)} annotations; only the first is used")
        results = _list(answers[0].get("result")) if answers else list(_minimal_results(task))
        if answers and not results:
            yield Entry(names, where)
        for result in map(_dict, results):
            entry = _label_studio_result(result, names, where)
            yield Skipped(str(path), f"{where}: {entry}") if isinstance(entry, str) else entry


def _label_studio_result(result: dict[str, Any], names: tuple[str, ...], where: str) -> Entry | str:
    """The entry of one result, or why there is none."""
    value = _dict(result.get("value", result))
    key = next((key for key in _LABEL_STUDIO_KEYS if key in value), None)
    if key is None:
        return f"a {result.get('type', 'result')}, not a keypoint or rectangle"
    kind = _LABEL_STUDIO_KEYS[key]
    height, width = result.get("original_height"), result.get("original_width")
    if not (_is_length(height) and _is_length(width)):
        return f"a {kind} without original_width and original_height"
    if kind == "rectangle" and value.get("rotation"):
        return "a rotated rectangle; a box lies along rows and columns"
    labels = _list(value.get(key))
    x, y = value.get("x"), value.get("y")
    return Entry(
        names,
        where,
        clicks=((x, y),) if kind == "keypoint" else (),
        category=known_category(labels[0] if labels else None),
        scale=(width / 100, height / 100),
        shift=_EDGE_TO_CENTRE,
        size=(height, width),
        box=(x, y, value.get("width"), value.get("height")) if kind == "rectangle" else None,
        box_form="size",
    )


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value < _LONGEST_SIDE


def _minimal_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Results of a JSON-MIN task, which lie in lists named by the labelling set-up."""
    for value in task.values():
        for item in _list(value):
            if not _LABEL_STUDIO_KEYS.keys().isdisjoint(_dict(item)):
                yield item


def _uploaded_names(texts: tuple[str, ...]) -> Iterator[str]:
    """File names out of Label Studio's addresses, with and without the eight hex digits of an upload."""
    for text in texts:
        name = re.split(r"[/\\=]", unquote(text))[-1]
        yield name
        yield re.sub(r"^[0-9a-f]{8}-", "", name)


def parse_point_mask(path: Path) -> Entries:
    """A mask of single pixels: each nonzero pixel is a point, none means no target.

    Raises InputError when 2x2 nonzero pixels touch: then the file is a mask of whole targets, not of points.
    """
    marked = _marked(path)
    _refuse_areas(marked, path)
    rows, columns = np.nonzero(marked)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        yield Entry((path.name,), f"pixel ({column}, {row})", ((column, row),), size=marked.shape)
    if not len(rows):
        yield Entry((path.name,), "the whole file", size=marked.shape)


def parse_multi_point_mask(path: Path) -> Entries:
    """Single pixels whose value (or colour) numbers their target: equal pixels are clicks on one target.

    Targets come in order of their first pixels, row by row. Raises InputError when 2x2 nonzero pixels touch,
    and when several pixels all have the value 1 or all have the largest value, as in a mask of two values:
    which of them belong together is then not said.
    """
    pixels = np.atleast_3d(read_image(path))
    marked = pixels.max(axis=2) > 0
    _refuse_areas(marked, path)
    rows, columns = np.nonzero(marked)
    colours, owners = np.unique(pixels[rows, columns], axis=0, return_inverse=True)
    owners = owners.ravel()
    if len(colours) == 1 and len(rows) > 1 and _is_plain(colours[0]):
        raise InputError(
            f"{path}: its {len(rows)} pixels have one value, so their targets are not told apart; "
            "give each target a value of its own from 2 on"
        )
    for owner in dict.fromkeys(owners.tolist()):
        own = owners == owner
        clicks = tuple(zip(columns[own].tolist(), rows[own].tolist(), strict=True))
        value = ", ".join(f"{level:g}" for level in colours[owner].tolist())
        yield Entry((path.name,), f"value {value}", clicks, size=marked.shape)
    if not len(rows):
        yield Entry((path.name,), "the whole file", size=marked.shape)


def parse_scribble_mask(path: Path) -> Entries:
    """Strokes of any width: each 8-connected component of nonzero pixels is one, none means no target."""
    marked = _marked(path)
    for rows, columns in components(marked):
        pixels = tuple(zip(columns.tolist(), rows.tolist(), strict=True))
        yield Entry((path.name,), f"stroke at {pixels[0]}", size=marked.shape, stroke=pixels)
    if not marked.any():
        yield Entry((path.name,), "the whole file", size=marked.shape)


def refuse_mask(path: Path) -> Entries:
    """Raise InputError: pixels say nothing that could be read as boxes."""
    raise InputError(f"{path}: a picture holds no boxes; give masks of whole targets to --points-from-masks")


MASK_PARSERS: dict[str, Callable[[Path], Entries]] = {
    "point": parse_point_mask,
    "multi-point": parse_multi_point_mask,
    "scribble": parse_scribble_mask,
    "box": refuse_mask,
}


def _marked(path: Path) -> np.ndarray:
    """Bool [H, W]: where a picture is not zero."""
    marked: np.ndarray = np.atleast_3d(read_image(path)).max(axis=2) > 0
    return marked


def _refuse_areas(marked: np.ndarray, path: Path) -> None:
    if (marked[:-1, :-1] & marked[1:, :-1] & marked[:-1, 1:] & marked[1:, 1:]).any():
        raise InputError(f"{path}: nonzero pixels form areas, not points; give masks to --points-from-masks")


def _is_plain(colour: np.ndarray) -> bool:
    """Whether a pixel has the value that masks of two values use for true."""
    largest = 1 if colour.dtype.kind == "f" else np.iinfo(colour.dtype).max
    return bool(((colour == 0) | (colour == 1) | (colour == largest)).all())
