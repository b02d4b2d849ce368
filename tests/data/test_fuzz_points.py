"""Damaged and hostile label files are read or refused with a one-line message."""

import json
import time

import pytest
from fuzzing import changed, damaged, only_input_errors, rngs
from label_files import (
    HEIGHT,
    WIDTH,
    coco,
    label_studio,
    labelme,
    make_images,
    mask_file,
    saved,
    shape,
    voc,
)

from mclc_gpu.data.annotations import SUPERVISIONS
from mclc_gpu.data.points import load_points, read_points
from mclc_gpu.errors import InputError

NUMBERS = {"image_id": 1, "keypoints": [3, 4, 2, 5, 6, 1], "bbox": [2, 3, 4, 5], "category_id": 1}
TREES = {
    "records": [
        {"image": "a", "x": 3, "y": 4, "category": "spot", "target": "1"},
        {"file": "b", "x": 1, "y": 2},
    ],
    "by_image": {"a": [[1, 2], [3, 4, "spot"], {"x": 5, "y": 6}], "b.png": []},
    "coco": coco(NUMBERS, {"image_id": 1, "bbox": [1, 1, 3, 3]}),
    "labelme": labelme(
        shape("point", (3, 4)), shape("line", (1, 1), (5, 6), group=1), shape("rectangle", (2, 2), (9, 8))
    ),
    "label_studio": label_studio("keypoint", x=20.0, y=30.0)
    + label_studio("rectangle", x=1, y=2, width=9, height=8),
    "minimal": [
        {
            "image": "/data/a.png",
            "kp": [
                {"keypointlabels": ["t"], "x": 9, "y": 9, "original_width": WIDTH, "original_height": HEIGHT}
            ],
        }
    ],
}
TEXTS = {
    "clicks.csv": b"image,x,y,category,target\na.png,3,4,spot,1\nb,5.5,6,,2\nc,,,,\n",
    "boxes.csv": b"image;x;y;left;top;right;bottom\r\na;;;1;2,5;8;9\r\nb;3;4;;;;\r\n",
    "a.txt": b"imagesource:x\ngsd:1\n3 4\n5.5 6 spot\n",
    "a.xml": voc(
        "<centroid><xc>3</xc><yc>4</yc></centroid><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax>"
        "<ymax>6</ymax></bndbox>"
    ).encode(),
    **{f"{name}.json": json.dumps(tree).encode() for name, tree in TREES.items()},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def judge(path, images, supervision):
    """Read labels; all positions must lie in their image, and every report must be one line."""
    points, skipped = read_points(path, images, supervision)
    for own in points.values():
        for target in own:
            boxes = [] if target.box is None else [target.box[:2], target.box[2:]]
            for x, y in [(target.x, target.y), *target.seeds, *boxes]:
                assert -0.5 <= x < WIDTH - 0.5
                assert -0.5 <= y < HEIGHT - 0.5
    assert not any("\n" in item.why for item in skipped)
    assert len(skipped) < 5000


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_labels(tmp_path, images, name):
    others = list(TEXTS.values())
    read = 0
    for rng in rngs(60):
        path = saved(tmp_path / name, damaged(TEXTS[name], rng, others[rng.integers(len(others))]))
        supervision = SUPERVISIONS[rng.integers(len(SUPERVISIONS))]
        read += only_input_errors(lambda path=path, supervision=supervision: judge(path, images, supervision))
        only_input_errors(lambda path=path: load_points(path))
    assert read > 0


@pytest.mark.parametrize("name", TREES)
def test_json_with_other_values(tmp_path, images, name):
    read = 0
    for rng in rngs(80):
        path = saved(tmp_path / "labels.json", json.dumps(changed(TREES[name], rng)))
        supervision = SUPERVISIONS[rng.integers(len(SUPERVISIONS))]
        read += only_input_errors(lambda path=path, supervision=supervision: judge(path, images, supervision))
    assert read > 0


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_of_points(tmp_path, images):
    whole = mask_file(tmp_path / "a.png", {(3, 4): 9, (7, 8): 10, (20, 9): 255}).read_bytes()
    read = 0
    for rng in rngs(100):
        path = saved(tmp_path / "a.png", damaged(whole, rng, whole))
        for supervision in SUPERVISIONS:
            read += only_input_errors(
                lambda path=path, supervision=supervision: judge(path, images, supervision)
            )
    assert read > 0


def nested(depth, middle="1", left="[", right="]"):
    return left * depth + middle + right * depth


def record(image='"a"', x="1", y="1"):
    """Return plain JSON of one point with the given JSON texts as values."""
    return f'[{{"image": {image}, "x": {x}, "y": {y}}}]'


def hostile():
    """Yield small files that take a careless reader endless time or memory."""
    for depth in (200, 900, 960, 10_000, 1_000_000):
        yield f"deep{depth}.json", nested(depth)
        yield f"record{depth}.json", record(x=nested(depth))
        yield f"names{depth}.json", record(image=nested(depth, '"a"'))
        yield f"id{depth}.json", '{"images": [{"id": ' + nested(depth) + '}], "annotations": []}'
        yield f"deep{depth}.xml", nested(depth // 10, "", "<annotation>", "</annotation>")
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    yield "bomb.xml", f'<!DOCTYPE a [<!ENTITY e0 "x">{entities}]><annotation>&e11;</annotation>'
    yield "out.xml", '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>'
    yield "numbers.json", record(x="9" * 4000, y="1e400")
    yield "digits.json", record(x="9" * 5000)
    yield "cell.csv", 'image,x,y\na,1,"' + "9" * 1_000_000
    yield "nul.csv", "image,x,y\na\0,1\0,2\n\0\0\0\n"
    yield "columns.csv", "image,x,y" + ",z" * 100_000 + "\na,1,2\n"
    yield "long.txt", "1 " * 1_000_000


@pytest.mark.parametrize(("name", "text"), list(hostile()), ids=lambda value: value[:20])
def test_hostile_labels(tmp_path, images, name, text):
    path = saved(tmp_path / name, text)
    begin = time.process_time()
    for supervision in SUPERVISIONS:
        only_input_errors(lambda supervision=supervision: read_points(path, images, supervision))
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("name", ["bomb.xml", "out.xml"])
def test_entities_are_refused(tmp_path, images, name):
    with pytest.raises(InputError, match="document type"):
        read_points(saved(tmp_path / name, dict(hostile())[name]), images)


def test_a_size_that_has_no_float(tmp_path, images):
    tree = label_studio("keypoint", x=20.0, y=30.0)
    tree[0]["annotations"][0]["result"][0]["original_width"] = 10**400
    points, skipped = read_points(saved(tmp_path / "p.json", tree), images)
    assert points == {}
    assert "without original_width" in skipped[0].why


def test_a_report_of_another_size_is_one_line(tmp_path, images):
    text = "<annotation><size><width>\n 7\n</width><height>9</height></size><object><bndbox><xmin>1</xmin>"
    text += "<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    _, (skipped,) = read_points(saved(tmp_path / "a.xml", text), images, "box")
    assert "annotated at 7x9" in skipped.why
