"""Label files as annotation tools write them, of one image `a`."""

import json

import numpy as np
from PIL import Image

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import read_points

WIDTH, HEIGHT = 40, 30
STROKE = Point(4, 2, None, seeds=((3, 2), (5, 3), (6, 3)))  # of the line from (3, 2) to (6, 3)
BOX = Point(4.5, 7, None, box=(3, 5, 6, 9))
CLICKS = Point(3, 7, None, seeds=((4, 8), (4, 7)))


def make_images(folder):
    """Write images a, b and c to a folder; return them by stem."""
    for stem in ("a", "b", "c"):
        Image.new("L", (WIDTH, HEIGHT)).save(folder / f"{stem}.png")
    return find_files(folder)


def saved(path, content):
    """Write bytes, text, or anything else as JSON."""
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mask_file(path, marks, dtype=np.uint8):
    """Write an image that holds `marks` ((x, y): value) on zeros."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype)
    for (x, y), value in marks.items():
        pixels[y, x] = value
    Image.fromarray(pixels).save(path)
    return path


def only(path, images, supervision):
    points, skipped = read_points(path, images, supervision)
    assert skipped == []
    return points


def reasons(path, images, supervision):
    points, skipped = read_points(path, images, supervision)
    return points, [item.why for item in skipped]


def labelme(*shapes):
    return {"shapes": list(shapes), "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}


def shape(kind, *corners, group=None):
    """Return a LabelMe shape through pixel centers, or along pixel borders for rectangles."""
    half = 0 if kind == "rectangle" else 0.5
    points = [[x + half, y + half] for x, y in corners]
    return {"label": "t", "points": points, "shape_type": kind, "group_id": group}


def coco(*annotations):
    listed = [{"image_id": 1, "id": n, **annotation} for n, annotation in enumerate(annotations)]
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    return {"images": [image], "annotations": listed, "categories": []}


def label_studio(kind, **percent):
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    value = percent | {f"{kind}labels": ["Target"]}
    result = size | {"type": f"{kind}labels", "value": value}
    return [{"data": {"image": "/data/a.png"}, "annotations": [{"result": [result]}]}]


def voc(inner):
    return f"<annotation><object><name>t</name>{inner}</object></annotation>"
