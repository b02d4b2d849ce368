"""Label files of CVAT, VIA, MakeSense, napari and ImageJ."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mclc_gpu.data.formats import (
    COLUMNS,
    IMAGE_EDGE,
    Box,
    Entries,
    Entry,
    LabelFile,
    PointFormat,
    Positions,
    bounds,
    known_category,
    xml_root,
)
from mclc_gpu.data.names import IMAGE_SUFFIXES
from mclc_gpu.errors import Skipped

_HEAD = 4096  # characters at which a format is recognized


def _is_cvat(file: LabelFile) -> bool:
    return "<annotations" in file.text()[:_HEAD]


def _parse_cvat(file: LabelFile) -> Entries:
    """Parse "CVAT for images 1.1": points, boxes, bounds of polygons and masks, polylines of each <image>."""
    for image in xml_root(file, "annotations").iter("image"):
        names, size = (image.get("name", ""),), (image.get("height"), image.get("width"))
        shapes = [shape for shape in image if shape.tag not in ("tag", "attribute")]
        if not shapes:
            yield Entry(names, f"image {names[0]!r}", size=size)
        for number, shape in enumerate(shapes, 1):
            where = f"image {names[0]!r}, shape {number}"
            entry = _cvat_shape(shape, names, where, size)
            yield (
                Skipped(str(file.path), f"{where} is {shape.tag}, not points, box, polygon, mask or polyline")
                if (entry is None)
                else entry
            )


def _cvat_shape(shape: ET.Element, names: tuple[str, ...], where: str, size: tuple[Any, Any]) -> Entry | None:
    about: dict[str, Any] = {"category": known_category(shape.get("label")), "grid": IMAGE_EDGE, "size": size}
    if shape.tag == "box" and not float(shape.get("rotation", "0") or 0):
        left, top, right, bottom = (shape.get(side, "") for side in ("xtl", "ytl", "xbr", "ybr"))
        return Entry(names, where, box=Box((left, top, right, bottom), "corners"), **about)
    if shape.tag == "mask":
        left, top, width, height = (shape.get(side, "") for side in ("left", "top", "width", "height"))
        return Entry(names, where, box=Box((left, top, width, height), "size"), **about)
    pairs = [pair.split(",") for pair in shape.get("points", "").split(";") if pair]
    corners: Positions = tuple((pair[0], pair[-1]) for pair in pairs)
    if not corners:
        return None
    if shape.tag == "points":
        return Entry(names, where, corners, **about)
    if shape.tag == "polygon":
        return Entry(names, where, box=bounds(corners), **about)
    return Entry(names, where, stroke=corners, polyline=True, **about) if shape.tag == "polyline" else None


def _via_images(root: Any) -> list[Mapping[str, Any]]:
    """Return the images of a VIA project or annotation file; an empty list for other JSON."""
    if isinstance(root, dict) and isinstance(root.get("_via_img_metadata"), dict):
        root = root["_via_img_metadata"]
    images = list(root.values()) if isinstance(root, dict) else []
    known = all(isinstance(image, dict) and {"filename", "regions"} <= image.keys() for image in images)
    return images if known else []


def _is_via(file: LabelFile) -> bool:
    return bool(_via_images(file.json()))


def _parse_via(file: LabelFile) -> Entries:
    """Parse the VGG Image Annotator's JSON: points, rectangles, polygons, circles (bounds) and polylines."""
    for image in _via_images(file.json()):
        names, regions = (str(image["filename"]),), image["regions"]
        if isinstance(regions, dict):
            regions = list(regions.values())
        if not regions:
            yield Entry(names, f"image {names[0]!r}")
        for number, region in enumerate(regions, 1):
            where = f"image {names[0]!r}, region {number}"
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            yield from _via_shape(file, names, where, shape)


def _is_via_table(file: LabelFile) -> bool:
    return "region_shape_attributes" in file.text(may_be_empty=True)[:_HEAD].partition("\n")[0]


def _parse_via_table(file: LabelFile) -> Entries:
    """Parse the VGG Image Annotator's CSV, whose cells hold regions as JSON."""
    rows = csv.DictReader(io.StringIO(file.text(), newline=""))
    for row in rows:
        names, where = ((row.get("filename") or row.get("#filename") or ""),), f"line {rows.line_num}"
        try:
            shape = json.loads(row.get("region_shape_attributes") or "{}")
        except ValueError:
            shape = None
        if shape == {}:
            yield Entry(names, where)
        else:
            yield from _via_shape(file, names, where, shape)


def _via_shape(file: LabelFile, names: tuple[str, ...], where: str, shape: Any) -> Entries:
    values: Mapping[str, Any] = shape if isinstance(shape, dict) else {}
    kind = str(values.get("name", "region"))
    xs, ys = values.get("all_points_x"), values.get("all_points_y")
    corners: Positions = (
        tuple(zip(xs, ys, strict=False)) if isinstance(xs, list) and isinstance(ys, list) else ()
    )
    if kind == "point":
        yield Entry(names, where, ((values.get("cx", ""), values.get("cy", "")),), grid=IMAGE_EDGE)
    elif kind == "rect":
        sides = [values.get(name, "") for name in ("x", "y", "width", "height")]
        yield Entry(names, where, box=Box((sides[0], sides[1], sides[2], sides[3]), "size"), grid=IMAGE_EDGE)
    elif kind == "polygon" and corners:
        yield Entry(names, where, box=bounds(corners), grid=IMAGE_EDGE)
    elif kind == "polyline" and corners:
        yield Entry(names, where, stroke=corners, polyline=True, grid=IMAGE_EDGE)
    elif kind == "circle" and all(isinstance(values.get(name), int | float) for name in ("cx", "cy", "r")):
        x, y, r = values["cx"], values["cy"], values["r"]
        yield Entry(names, where, box=Box((x - r, y - r, x + r, y + r), "corners"), grid=IMAGE_EDGE)
    else:
        yield Skipped(str(file.path), f"{where} is a {kind}, not a point, rect, polygon, polyline or circle")


# MakeSense's tables have no header in older versions: label, numbers, image, width, height.
_MAKE_SENSE = {6: "click", 8: "box"}


def _rows(file: LabelFile) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(file.text(may_be_empty=True), newline=""))
    for row in reader:
        if any(row):
            yield reader.line_num, row


def _is_make_sense(file: LabelFile) -> bool:
    try:
        _, first = next(_rows(file), (0, []))
    except csv.Error:
        return False
    header = "image_name" in first and "image_width" in first
    return len(first) in _MAKE_SENSE and (header or _is_make_sense_row(first))


def _is_make_sense_row(row: Sequence[str]) -> bool:
    return row[-3].lower().endswith(IMAGE_SUFFIXES) and row[-2].isdigit() and row[-1].isdigit()


def _parse_make_sense(file: LabelFile) -> Entries:
    """Parse MakeSense's tables of points and boxes, with or without the header of newer versions."""
    for line, row in _rows(file):
        if "image_name" in row:
            continue
        where = f"line {line}"
        if len(row) not in _MAKE_SENSE:
            yield Skipped(str(file.path), f"{where}: {len(row)} cells; a point has 6, a box 8")
            continue
        about: dict[str, Any] = {
            "category": known_category(row[0]), "grid": IMAGE_EDGE, "size": (row[-1], row[-2]),
        }  # fmt: skip
        names = (row[-3],)
        if _MAKE_SENSE[len(row)] == "click":
            yield Entry(names, where, ((row[1], row[2]),), **about)
        else:
            yield Entry(names, where, box=Box((row[1], row[2], row[3], row[4]), "size"), **about)


def _is_napari(file: LabelFile) -> bool:
    return {"axis-0", "axis-1"} <= _header(file).keys()


def _parse_napari(file: LabelFile) -> Entries:
    """Parse napari's points (row axis-0, column axis-1) of the image that is named like the file."""
    header = _header(file)
    for line, row in _rows(file):
        if "axis-0" in row:
            continue
        if "axis-2" in header:
            yield Skipped(str(file.path), f"line {line}: points of a stack; save those of each image")
        else:
            y, x = (row[header[axis]] if header[axis] < len(row) else "" for axis in ("axis-0", "axis-1"))
            yield Entry((file.path.stem,), f"line {line}", ((x, y),))


def _is_image_j(file: LabelFile) -> bool:
    header = _header(file)
    named = not header.keys().isdisjoint(COLUMNS["image"])
    return {"x", "y"} <= header.keys() and not named and ("" in header or "mean" in header)


def _parse_image_j(file: LabelFile) -> Entries:
    """Parse ImageJ's results, X and Y from the image's edge; the image is the label, or named as the file."""
    header = _header(file)
    for line, row in _rows(file):
        if line == 1:
            continue
        cells = {name: row[at] for name, at in header.items() if at < len(row)}
        label = cells.get("label", "").partition(":")[0]
        names = (label, file.path.stem) if label else (file.path.stem,)
        yield Entry(names, f"line {line}", ((cells.get("x", ""), cells.get("y", "")),), grid=IMAGE_EDGE)


def _header(file: LabelFile) -> dict[str, int]:
    """Return the place of each column by its name in lower case."""
    try:
        _, first = next(_rows(file), (0, []))
    except csv.Error:
        return {}
    return {name.strip().lower(): place for place, name in reversed(list(enumerate(first)))}


CVAT = PointFormat(_parse_cvat, (".xml",), _is_cvat)
VIA = PointFormat(_parse_via, (".json",), _is_via)
VIA_TABLE = PointFormat(_parse_via_table, (".csv",), _is_via_table)
MAKE_SENSE = PointFormat(_parse_make_sense, (".csv",), _is_make_sense)
NAPARI = PointFormat(_parse_napari, (".csv",), _is_napari)
IMAGE_J = PointFormat(_parse_image_j, (".csv",), _is_image_j)
