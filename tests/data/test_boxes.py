"""Boxes from every format that can hold them."""

import pytest
from label_files import (
    BOX,
    HEIGHT,
    WIDTH,
    coco,
    label_studio,
    labelme,
    make_images,
    mask_file,
    only,
    reasons,
    saved,
    shape,
    voc,
)

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.points import read_points
from mclc_gpu.errors import InputError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


BOXES = {
    "csv": ("p.csv", "image,left,top,right,bottom\na,3,5,6,9\n"),
    "csv-aliases": ("p.txt", "xmin;ymin;xmax;ymax;file\n3;5;6,2;9;a.png\n"),
    "csv-with-point": ("p.csv", "image,x,y,left,top,right,bottom\na,4,6,3,5,6,9\n"),
    "records": ("p.json", [{"image": "a", "xmin": 3, "ymin": 5, "xmax": 6, "ymax": "9"}]),
    "by-image": ("p.json", {"a": [{"left": 3, "top": 5, "right": 6, "bottom": 9}]}),
    "labelme": ("a.json", labelme(shape("rectangle", (3, 10), (7, 5)))),
    "coco": ("a.json", coco({"bbox": [3, 5, 4, 5]})),
    "coco-with-point": ("a.json", coco({"bbox": [3.2, 5.4, 4.2, 4.7], "keypoints": [4, 6, 2]})),
    "label-studio": ("a.json", label_studio("rectangle", x=7.5, y=50 / 3, width=10, height=50 / 3)),
    "label-studio-minimal": (
        "a.json",
        [
            {
                "image": "a.png",
                "box": [
                    {"x": 7.5, "y": 50 / 3, "width": 10, "height": 50 / 3, "rectanglelabels": ["t"]}
                    | {"original_width": WIDTH, "original_height": HEIGHT}
                ],
            }
        ],
    ),
    "voc": ("a.xml", voc("<bndbox><xmin>4</xmin><ymin>6</ymin><xmax>7</xmax><ymax>10</ymax></bndbox>")),
}


@pytest.mark.parametrize("form", BOXES)
def test_boxes(tmp_path, images, form):
    name, content = BOXES[form]
    assert only(saved(tmp_path / name, content), images, "box") == {"a": [BOX]}


@pytest.mark.parametrize("form", ["csv-with-point", "coco-with-point"])
def test_the_supervision_chooses_among_what_a_target_has(tmp_path, images, form):
    name, content = BOXES[form]
    assert only(saved(tmp_path / name, content), images, "point") == {"a": [Point(4, 6)]}


def test_images_without_boxes(tmp_path, images):
    table = "image,left,top,right,bottom\na,3,5,6,9\nb,,,,\n"
    assert only(saved(tmp_path / "p.csv", table), images, "box") == {"a": [BOX], "b": []}


def test_a_box_narrower_than_a_pixel_is_one_pixel(tmp_path, images):
    for left, right, column in ((3.6, 3.9, 3), (39.7, 39.9, 39), (39.7, 40.4, 39), (2.9, 3.2, 3)):
        content = labelme(shape("rectangle", (left, 5), (right, 6)))
        points = only(saved(tmp_path / "a.json", content), images, "box")
        assert points == {"a": [Point(column, 5, box=(column, 5, column, 5))]}


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        (
            "6,5,3,9",
            "the box left 6, top 5, right 3, bottom 9 has no area or its ends are exchanged; draw it again",
        ),
        ("3,5,6,4.9", "has no area or its ends are exchanged"),
        ("3,5,nan,9", "right is 'nan', not a finite number"),
        ("3,5,,9", "right is '', not a finite number"),
        ("3,5,inf,9", "right is 'inf', not a finite number"),
        ("40,5,44,9", "the box left 40, top 5, right 44, bottom 9 lies outside the 40x30 image 'a'"),
        ("3,-9,6,-2", "lies outside the 40x30 image 'a'"),
        ("3,5,40,9", "reaches out of the 40x30 image 'a'; clip it to the image"),
        ("-1,5,3,9", "reaches out of the 40x30 image 'a'; clip it to the image"),
        ("-1e308,5,1e308,9", "reaches out of the 40x30 image 'a'; clip it to the image"),
    ],
)
def test_bad_boxes(tmp_path, images, numbers, why):
    path = saved(tmp_path / "p.csv", f"image,left,top,right,bottom\na,{numbers}\na,3,5,6,9\n")
    points, said = reasons(path, images, "box")
    assert points == {"a": [BOX]}
    assert len(said) == 1
    assert said[0].startswith("line 2: ")
    assert said[0].endswith(why) or why in said[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (coco({"bbox": [3, 5, 0, 5]}), "annotation 1: the box x 3, y 5, width 0, height 5 has no area"),
        (coco({"bbox": [3, 5, -2, 5]}), "has no area"),
        (coco({"bbox": [3, 5, None, 5]}), "annotation 1: width is 'None', not a finite number"),
        (coco({"bbox": [3, 5, 1e308, 1e308]}), "reaches out of the 40x30 image 'a'"),
        (coco({"bbox": [3, 5]}), "annotation 1 has neither keypoints [x, y, visibility] nor bbox"),
        (labelme(shape("rectangle", (3, 5), (3, 9))), "shape 1: the box x 3, y 5, x 3, y 9 has no area"),
        (labelme(shape("rectangle", (3, 5))), "shape 1 is a rectangle of 1 points; draw it again"),
        (
            label_studio("rectangle", x=1, y=1, width=9, height=9, rotation=30),
            "task 1: a rotated rectangle; a box lies along rows and columns",
        ),
        (label_studio("rectangle", x=95, y=1, width=9, height=9), "reaches out of the 40x30 image 'a'"),
        (label_studio("brush"), "task 1: a brushlabels, not a keypoint or rectangle"),
    ],
)
def test_bad_boxes_of_tools(tmp_path, images, content, why):
    points, said = reasons(saved(tmp_path / "a.json", content), images, "box")
    assert points == {}
    assert len(said) == 1
    assert why in said[0]


def test_objects_that_say_nothing(tmp_path, images):
    path = saved(tmp_path / "a.xml", voc(""))
    assert reasons(path, images, "box") == ({}, ["object 1 has neither <centroid> nor <bndbox>"])


def test_pictures_hold_no_boxes(tmp_path, images):
    with pytest.raises(InputError, match="an image holds no boxes"):
        read_points(mask_file(tmp_path / "a.png", {(3, 7): 1}), images, "box")
