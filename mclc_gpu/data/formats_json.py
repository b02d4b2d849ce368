"""Point labels in JSON: plain records, COCO keypoints, LabelMe and Label Studio.

Annotation tools (LabelMe, Label Studio) measure from the left and upper edge of the image, so that the first
pixel covers 0 to 1; with pixel centres at integers that is half a pixel more than the position here, and is
subtracted. COCO keypoints and plain records count pixels from 0, as this project does.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mclc_gpu.data.formats import COLUMNS, Entries, Entry, known_category, read_text
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

_EDGE_TO_CENTRE = -0.5


def parse_json(path: Path) -> Entries:
    """Entries of a JSON file of any of the kinds above, told apart by their keys.

    Plain: [{"image": ..., "x": ..., "y": ..., "category": ...}, ...] or {image: [[x, y], ...], ...}.
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
            "COCO keypoints, LabelMe or Label Studio"
        )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(*values: Any) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


def _records(records: list[dict[str, Any]], path: Path) -> Entries:
    for number, record in enumerate(records, 1):
        image, x, y, category = (
            next((record[name] for name in names if name in record), "") for names in COLUMNS.values()
        )
        yield Entry(_texts(image), f"record {number}", x, y, category)


def _points_by_image(root: dict[str, Any], path: Path) -> Entries:
    for image, points in root.items():
        if not points:
            yield Entry((image,), f"image {image!r}")
        for number, point in enumerate(points, 1):
            where = f"image {image!r}, point {number}"
            if isinstance(point, dict):
                yield Entry((image,), where, point.get("x", ""), point.get("y", ""), point.get("category"))
            elif isinstance(point, list) and len(point) in (2, 3):
                yield Entry((image,), where, _present(point[0]), _present(point[1]), *point[2:])
            else:
                yield Skipped(str(path), f"{where} is not [x, y] or [x, y, category]")


def _present(value: Any) -> Any:
    """JSON's null is a missing number here, not the mark of an image without targets."""
    return "" if value is None else value


def _coco(root: dict[str, Any], path: Path) -> Entries:
    """COCO keypoints: annotations with keypoints [x, y, visibility, ...]; visibility 0 means not labelled."""
    images = {repr(image.get("id")): image for image in map(_dict, root["images"])}
    labels = {repr(item.get("id")): item.get("name") for item in map(_dict, _list(root.get("categories")))}
    annotated = set()
    for number, annotation in enumerate(map(_dict, _list(root["annotations"])), 1):
        key = repr(annotation.get("image_id"))
        if key not in images:
            yield Skipped(str(path), f"annotation {number} is of image id {key}, which is not listed")
            continue
        annotated.add(key)
        keypoints = _list(annotation.get("keypoints"))
        if not keypoints or len(keypoints) % 3:
            yield Skipped(str(path), f"annotation {number} has no keypoints [x, y, visibility]")
            continue
        image = images[key]
        names, size = _texts(image.get("file_name")), (image.get("height"), image.get("width"))
        category = known_category(labels.get(repr(annotation.get("category_id"))))
        for at in range(0, len(keypoints), 3):
            x, y, visibility = keypoints[at : at + 3]
            if visibility != 0:
                yield Entry(names, f"annotation {number}", _present(x), _present(y), category, size=size)
    for key, image in images.items():
        if key not in annotated:
            yield Entry(_texts(image.get("file_name")), f"image id {key}")


def _labelme(root: dict[str, Any], path: Path) -> Entries:
    """LabelMe: one file per image, shapes of type "point"."""
    names = _texts(path.stem, root.get("imagePath"))
    size = (root.get("imageHeight"), root.get("imageWidth"))
    if not root["shapes"]:
        yield Entry(names, "the whole file", size=size)
    for number, shape in enumerate(map(_dict, root["shapes"]), 1):
        points = _list(shape.get("points"))
        if shape.get("shape_type") != "point" or len(points) != 1 or len(_list(points[0])) != 2:
            yield Skipped(str(path), f"shape {number} is a {shape.get('shape_type', 'shape')}, not one point")
            continue
        x, y = map(_present, points[0])
        category = known_category(shape.get("label"))
        yield Entry(names, f"shape {number}", x, y, category, shift=_EDGE_TO_CENTRE, size=size)


def _label_studio(tasks: list[Any], path: Path) -> Entries:
    """Label Studio's JSON and JSON-MIN exports: keypoints in percent of the image's original size."""
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
            value = _dict(result.get("value", result))
            labels = _list(value.get("keypointlabels"))
            if "keypointlabels" not in value:
                yield Skipped(str(path), f"{where}: a {result.get('type', 'result')}, not a keypoint")
                continue
            height, width = result.get("original_height"), result.get("original_width")
            if not (isinstance(height, int) and isinstance(width, int)):
                yield Skipped(str(path), f"{where}: a keypoint without original_width and original_height")
                continue
            category = known_category(labels[0] if labels else None)
            x, y = _present(value.get("x")), _present(value.get("y"))
            scale = (width / 100, height / 100)
            yield Entry(names, where, x, y, category, scale, _EDGE_TO_CENTRE, (height, width))


def _minimal_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Keypoints of a JSON-MIN task, which lie in a list named by the labelling set-up."""
    for value in task.values():
        for item in _list(value):
            if "keypointlabels" in _dict(item):
                yield item


def _uploaded_names(texts: tuple[str, ...]) -> Iterator[str]:
    """File names out of Label Studio's addresses, with and without the eight hex digits of an upload."""
    for text in texts:
        name = re.split(r"[/\\=]", unquote(text))[-1]
        yield name
        yield re.sub(r"^[0-9a-f]{8}-", "", name)
