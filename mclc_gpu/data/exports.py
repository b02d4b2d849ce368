"""Write labels in the formats of other tools: COCO, YOLO, LabelMe, Label Studio and CVAT."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import atomic_path, write_json
from mclc_gpu.data.masks import BoxedMask, coco_counts, label_studio_rle, outline
from mclc_gpu.registry import Registry

CLASS = "target"  # name of the only class


@dataclass(frozen=True, slots=True)
class ExportedTarget:
    """One target: its marks, its mask, and the expected IoU of the mask (NaN where it is not known)."""

    point: Point
    mask: BoxedMask
    confidence: float


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """One image with its targets.

    Attributes
    ----------
    stem : str
        Name without suffix.
    file : str
        Name with suffix, relative to the folder of images.
    shape : (int, int)
        Height and width in pixels.
    targets : sequence of ExportedTarget
        Their masks have pixels.
    """

    stem: str
    file: str
    shape: tuple[int, int]
    targets: Sequence[ExportedTarget]


Images = Iterable[ExportedImage]
Exporter = Callable[[Path, Images], Path]


def write_coco(folder: Path, images: Images) -> Path:
    """Write coco.json: box, mask as uncompressed run lengths, and the click as a keypoint of each target."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": CLASS, "keypoints": ["click"], "skeleton": []}],
    }
    for number, image in enumerate(images, 1):
        height, width = image.shape
        content["images"].append({"id": number, "file_name": image.file, "height": height, "width": width})
        for target in image.targets:
            mask, point = target.mask, target.point
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [mask.left, mask.top, mask.width, mask.height],
                    "area": mask.area,
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": coco_counts(mask, image.shape)},
                    "keypoints": [point.x, point.y, 2],
                    "num_keypoints": 1,
                }
            )
    write_json(folder / "coco.json", content)
    return folder / "coco.json"


def write_yolo_boxes(folder: Path, images: Images) -> Path:
    """Write yolo-boxes/NAME.txt: class 0, center, width and height as shares of the image's size."""

    def line(target: ExportedTarget, height: int, width: int) -> list[float]:
        mask = target.mask
        x, y = mask.left + mask.width / 2, mask.top + mask.height / 2
        return [x / width, y / height, mask.width / width, mask.height / height]

    return _write_yolo(folder / "yolo-boxes", images, line)


def write_yolo_polygons(folder: Path, images: Images) -> Path:
    """Write yolo-polygons/NAME.txt: class 0 and the outline's corners as shares of the image's size."""

    def line(target: ExportedTarget, height: int, width: int) -> list[float]:
        return [share for x, y in outline(target.mask) for share in (x / width, y / height)]

    return _write_yolo(folder / "yolo-polygons", images, line)


def _write_yolo(
    folder: Path, images: Images, line: Callable[[ExportedTarget, int, int], list[float]]
) -> Path:
    _clear(folder, ".txt")
    for image in images:
        lines = [" ".join(["0", *map(repr, line(target, *image.shape))]) for target in image.targets]
        _write_text(folder / f"{image.stem}.txt", "".join(f"{text}\n" for text in lines))
    return folder


def write_labelme(folder: Path, images: Images) -> Path:
    """Write labelme/NAME.json: for each target a polygon along its pixels and a point, in one group."""
    folder = folder / "labelme"
    _clear(folder, ".json")
    for image in images:
        shapes = []
        for number, target in enumerate(image.targets, 1):
            about = {"label": CLASS, "group_id": number, "description": "", "flags": {}}
            corners = [[float(x), float(y)] for x, y in outline(target.mask)]
            click = [[target.point.x + 0.5, target.point.y + 0.5]]
            shapes.append({**about, "shape_type": "polygon", "points": corners})
            shapes.append({**about, "shape_type": "point", "points": click})
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": image.file,
            "imageData": None,
            "imageHeight": image.shape[0],
            "imageWidth": image.shape[1],
        }
        write_json(folder / f"{image.stem}.json", content)
    return folder


def write_label_studio(folder: Path, images: Images) -> Path:
    """Write label-studio.json: tasks with a keypoint, a rectangle and a brush mask for each target.

    Images are named as local files below the root that Label Studio is told (``/data/local-files/?d=``).
    """
    tasks = []
    for image in images:
        height, width = image.shape
        common = {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "to_name": "image",
        }
        results = []
        for number, target in enumerate(image.targets):
            mask, point = target.mask, target.point
            x, y = (point.x + 0.5) * 100 / width, (point.y + 0.5) * 100 / height
            values: dict[str, dict[str, Any]] = {
                "keypointlabels": {"x": x, "y": y, "width": 100 / width},
                "rectanglelabels": {
                    "x": mask.left * 100 / width,
                    "y": mask.top * 100 / height,
                    "width": mask.width * 100 / width,
                    "height": mask.height * 100 / height,
                    "rotation": 0,
                },
                "brushlabels": {"format": "rle", "rle": label_studio_rle(mask, image.shape)},
            }
            for kind, value in values.items():
                result = {**common, "id": f"{kind[:3]}{number}", "type": kind, "from_name": kind}
                results.append({**result, "value": {**value, kind: [CLASS]}})
        place = f"/data/local-files/?d={quote(image.file)}"
        tasks.append({"data": {"image": place}, "annotations": [{"result": results}]})
    _write_text(folder / "label-studio.json", json.dumps(tasks) + "\n")
    return folder / "label-studio.json"


def write_cvat(folder: Path, images: Images) -> Path:
    """Write cvat.xml, "CVAT for images 1.1": a mask and a point for each target."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for number, image in enumerate(images):
        height, width = image.shape
        about = {"id": str(number), "name": image.file, "width": str(width), "height": str(height)}
        element = ET.SubElement(root, "image", about)
        for target in image.targets:
            mask, point = target.mask, target.point
            shape = {"label": CLASS, "source": "manual", "occluded": "0", "z_order": "0"}
            box = {name: str(getattr(mask, name)) for name in ("left", "top", "width", "height")}
            ET.SubElement(element, "mask", {**shape, "rle": ", ".join(map(str, mask.runs)), **box})
            click = f"{point.x + 0.5!r},{point.y + 0.5!r}"
            ET.SubElement(element, "points", {**shape, "points": click})
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode", xml_declaration=False)
    _write_text(folder / "cvat.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')
    return folder / "cvat.xml"


def _clear(folder: Path, suffix: str) -> None:
    """Remove the files of an earlier export, some of whose images may have no labels any more."""
    for path in sorted(folder.rglob(f"*{suffix}")):
        path.unlink()


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


EXPORTS: Registry[Exporter] = Registry(
    "export",
    {
        "coco": write_coco,
        "yolo-boxes": write_yolo_boxes,
        "yolo-polygons": write_yolo_polygons,
        "labelme": write_labelme,
        "label-studio": write_label_studio,
        "cvat": write_cvat,
    },
)


def export(name: str, folder: Path, images: Images) -> Path:
    """Write labels in one of the formats of `EXPORTS`.

    Parameters
    ----------
    name : str
    folder : Path
        Created when missing; files of an earlier export are replaced.
    images : iterable of ExportedImage
        Passed through once.

    Returns
    -------
    Path
        The file or folder that was written.

    Raises
    ------
    InputError
        The format is unknown.
    OSError
        A file cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from mclc_gpu.data.annotations import Point
    >>> from mclc_gpu.data.exports import ExportedImage, ExportedTarget, export
    >>> from mclc_gpu.data.masks import BoxedMask
    >>> target = ExportedTarget(Point(4, 3), BoxedMask.of(np.ones((2, 2), bool), top=2, left=4), 0.9)
    >>> with TemporaryDirectory() as folder:
    ...     made = export("yolo-boxes", Path(folder), [ExportedImage("a", "a.png", (8, 16), [target])])
    ...     print((made / "a.txt").read_text(), end="")
    0 0.3125 0.375 0.125 0.25
    """
    return EXPORTS.find(name)(folder, images)
