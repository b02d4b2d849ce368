"""Label files in JSON: COCO, LabelMe, Label Studio and plain lists, told apart by their keys."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeGuard
from urllib.parse import unquote

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
    row_entry,
)
from mclc_gpu.errors import Skipped

_LONGEST_SIDE = 1 << 31  # no image is longer, and larger numbers have no float
_LABEL_STUDIO_KEYS = {"keypointlabels": "keypoint", "rectanglelabels": "rectangle"}
# Corners of each kind of shape; None: any number but none.
_LABELME_CORNERS = {
    "point": 1, "line": 2, "rectangle": 2, "circle": 2, "linestrip": None, "polygon": None, "rotation": 4,
}  # fmt: skip


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(*values: Any) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _is_records(file: LabelFile) -> bool:
    root = file.json()
    return isinstance(root, list) and all(isinstance(record, dict) for record in root)


def _parse_records(file: LabelFile) -> Entries:
    """Parse [{"image": ..., "x": ..., "y": ..., "category": ...}, ...]; the keys are those of `COLUMNS`."""
    for number, record in enumerate(file.json(), 1):
        cells = _by_role(record)
        yield row_entry(_texts(cells.get("image")), f"record {number}", cells)


def _by_role(record: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a record by the names of their roles."""
    return {
        role: next(record[name] for name in names if name in record)
        for role, names in COLUMNS.items()
        if not record.keys().isdisjoint(names)
    }


def _is_by_image(file: LabelFile) -> bool:
    root = file.json()
    return isinstance(root, dict) and all(isinstance(points, list) for points in root.values())


def _parse_by_image(file: LabelFile) -> Entries:
    """Parse {image: [[x, y], ...], ...}; [x, y, category] and {"x": ..., "y": ...} may stand there too."""
    for image, points in file.json().items():
        if not points:
            yield Entry((image,), f"image {image!r}")
        for number, point in enumerate(points, 1):
            where = f"image {image!r}, point {number}"
            if isinstance(point, dict):
                yield row_entry((image,), where, _by_role(point))
            elif isinstance(point, list) and len(point) in (2, 3):
                at = ((point[0], point[1]),)
                yield Entry((image,), where, at, at, category=point[2] if len(point) == 3 else None)
            else:
                yield Skipped(str(file.path), f"{where} is not [x, y] or [x, y, category]")


def _is_coco(file: LabelFile) -> bool:
    root = file.json()
    return isinstance(root, dict) and isinstance(root.get("images"), list) and "annotations" in root


def _parse_coco(file: LabelFile) -> Entries:
    """Parse COCO: annotations with keypoints [x, y, visibility, ...] or bbox [x, y, w, h].

    Keypoints of visibility 0 are not labeled. The others are points of their own or, for multi-point
    supervision, the clicks on one target.
    """
    root, path = file.json(), str(file.path)
    images = {repr(image.get("id")): image for image in map(_dict, root["images"])}
    labels = {repr(item.get("id")): item.get("name") for item in map(_dict, _list(root.get("categories")))}
    annotated = set()
    for number, annotation in enumerate(map(_dict, _list(root["annotations"])), 1):
        key = repr(annotation.get("image_id"))
        if key not in images:
            yield Skipped(path, f"annotation {number} is of image id {key}, which is not listed")
            continue
        annotated.add(key)
        keypoints, corners = _list(annotation.get("keypoints")), _list(annotation.get("bbox"))
        box = Box((corners[0], corners[1], corners[2], corners[3]), "size") if len(corners) == 4 else None
        if box is None and (not keypoints or len(keypoints) % 3):
            why = "has neither keypoints [x, y, visibility] nor bbox [x, y, w, h]"
            yield Skipped(path, f"annotation {number} {why}")
            continue
        triples = zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=False)
        clicks = tuple((x, y) for x, y, visibility in triples if visibility != 0)
        image = images[key]
        if clicks or box:
            yield Entry(
                _texts(image.get("file_name")),
                f"annotation {number}",
                clicks,
                box=box,
                category=known_category(labels.get(repr(annotation.get("category_id")))),
                size=(image.get("height"), image.get("width")),
            )
    for key, image in images.items():
        if key not in annotated:
            yield Entry(_texts(image.get("file_name")), f"image id {key}")


def _is_labelme(file: LabelFile) -> bool:
    root = file.json()
    return isinstance(root, dict) and isinstance(root.get("shapes"), list)


def _parse_labelme(file: LabelFile) -> Entries:
    """Parse LabelMe, one file per image; shapes of one group_id are one target.

    Polygons, circles and X-AnyLabeling's rotated rectangles give the boxes around them.
    """
    root, path = file.json(), str(file.path)
    names = _texts(file.path.stem, root.get("imagePath"))
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
            target=None if group is None else str(group),
            grid=IMAGE_EDGE,
            size=size,
        )
        if kind not in _LABELME_CORNERS:
            yield Skipped(path, f"{where} is a {kind}, not a {', '.join(_LABELME_CORNERS)}")
        elif not at or len(at) != len(corners) or not _is_shape(kind, at):
            yield Skipped(path, f"{where} is a {kind} of {len(corners)} points; draw it again")
        elif kind == "point":
            yield replace(entry, clicks=at)
        elif kind == "rectangle":
            (x0, y0), (x1, y1) = at if len(at) == 2 else (at[0], at[2])
            yield replace(entry, box=Box((x0, y0, x1, y1), "corners"))
        elif kind in ("polygon", "rotation"):
            yield replace(entry, box=bounds(at))
        elif kind == "circle":
            yield replace(entry, box=_circle(at))
        else:
            yield replace(entry, stroke=at, polyline=True)


def _circle(corners: Positions) -> Box:
    """Return the box around a circle, given by its center and a point on it."""
    (x, y), edge = corners
    try:
        radius = math.dist((float(str(x)), float(str(y))), [float(str(value)) for value in edge])
    except ValueError:
        return Box((x, y, *edge), "corners")
    return Box(
        (float(str(x)) - radius, float(str(y)) - radius, float(str(x)) + radius, float(str(y)) + radius),
        "corners",
    )


def _is_shape(kind: str, corners: Positions) -> bool:
    """Return whether a LabelMe shape has as many corners as its kind; X-AnyLabeling gives rectangles four."""
    if kind == "rectangle" and len(corners) == 4:
        return all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise((*corners, corners[0])))
    return len(corners) == (_LABELME_CORNERS[kind] or len(corners))


def _is_label_studio(file: LabelFile) -> bool:
    root = file.json()
    if isinstance(root, dict):
        return isinstance(root.get("data"), dict)
    first = _dict(root[0]) if isinstance(root, list) and root else {}
    return isinstance(first.get("data"), dict) or bool(list(_minimal_results(first)))


def _parse_label_studio(file: LabelFile) -> Entries:
    """Parse Label Studio's JSON and JSON-MIN exports: keypoints and rectangles in percent of the size."""
    root, path = file.json(), str(file.path)
    for number, task in enumerate(map(_dict, root if isinstance(root, list) else [root]), 1):
        where = f"task {number}"
        texts = _texts(*_dict(task.get("data", task)).values(), task.get("file_upload"))
        names = tuple(uploaded_names(texts))
        valid = [a for a in map(_dict, _list(task.get("annotations"))) if not a.get("was_cancelled")]
        if len(valid) > 1:
            yield Skipped(path, f"{where} has {len(valid)} annotations; only the first is used")
        results = _list(valid[0].get("result")) if valid else list(_minimal_results(task))
        if valid and not results:
            yield Entry(names, where)
        for result in map(_dict, results):
            entry = _label_studio_result(result, names, where)
            yield Skipped(path, f"{where}: {entry}") if isinstance(entry, str) else entry


def _label_studio_result(result: dict[str, Any], names: tuple[str, ...], where: str) -> Entry | str:
    """Return the entry of one result, or why there is none."""
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
    if result.get("image_rotation"):
        return (
            f"a {kind} on an image rotated by {result['image_rotation']} degrees; rotate it back and export"
        )
    labels = _list(value.get(key))
    x, y = value.get("x"), value.get("y")
    return Entry(
        names,
        where,
        clicks=((x, y),) if kind == "keypoint" else (),
        box=Box((x, y, value.get("width"), value.get("height")), "size") if kind == "rectangle" else None,
        category=known_category(labels[0] if labels else None),
        grid=IMAGE_EDGE._replace(scale_x=width / 100, scale_y=height / 100),
        size=(height, width),
    )


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value < _LONGEST_SIDE


def _minimal_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the results of a JSON-MIN task, which lie in lists named by the labeling set-up."""
    for value in task.values():
        for item in _list(value):
            if not _LABEL_STUDIO_KEYS.keys().isdisjoint(_dict(item)):
                yield item


def uploaded_names(texts: tuple[str, ...]) -> Iterator[str]:
    """Yield file names from Label Studio's addresses, with and without the eight hex digits of an upload."""
    for text in texts:
        address = text.partition("?")
        # A local file's path is the value of ?d=; of other addresses, what follows the ? is a token.
        place = address[2] if address[2].startswith("d=") else address[0]
        name = re.split(r"[/\\=]", unquote(place.partition("&")[0]))[-1]
        yield name
        yield re.sub(r"^[0-9a-f]{8}-", "", name)


_JSON = (".json",)
BY_IMAGE = PointFormat(_parse_by_image, _JSON, _is_by_image)
RECORDS = PointFormat(_parse_records, _JSON, _is_records)
LABEL_STUDIO = PointFormat(_parse_label_studio, _JSON, _is_label_studio)
COCO = PointFormat(_parse_coco, _JSON, _is_coco)
LABELME = PointFormat(_parse_labelme, _JSON, _is_labelme)
