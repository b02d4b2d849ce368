"""Point labels in JSON: plain records, COCO, LabelMe and Label Studio.

Annotation tools (LabelMe, Label Studio) measure from the left and upper edge of the image, so that the first
pixel covers 0 to 1; with pixel centres at integers that is half a pixel more than the position here, and is
subtracted. COCO keypoints and plain records count pixels from 0, as this project does. The boxes of COCO and
of the tools run along the pixels' edges: x to x + w is pixels x to x + w - 1, both inside.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote

from mclc_gpu.data.formats import (
    COLUMNS,
    Entries,
    Entry,
    Positions,
    known_category,
    read_text,
    row_entry,
)
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

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
