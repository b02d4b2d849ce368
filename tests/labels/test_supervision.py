"""Stronger labels than points: several clicks and scribbles from every format; which kind is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_files import (
    BOX,
    CLICKS,
    HEIGHT,
    STROKE,
    WIDTH,
    coco,
    labelme,
    make_images,
    mask_file,
    only,
    reasons,
    saved,
    shape,
)

from mclc_gpu.data.annotations import SUPERVISIONS, Point, components, line_pixels, scribble
from mclc_gpu.data.points import read_points
from mclc_gpu.errors import InputError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


MULTI = {
    "csv": ("p.csv", "image,x,y,target\na,3,7,1\nb,1,1,1\na,9,9,\na,4,8,1\na,4,7, 1\n"),
    "records": (
        "p.json",
        [
            {"image": "a", "x": 3, "y": 7, "target": 1},
            {"image": "b", "x": 1, "y": 1, "target": 1},
            {"image": "a", "x": 9, "y": 9, "target": None},
            {"image": "a", "x": 4, "y": 8, "target": "1"},
            {"image": "a", "x": 4, "y": 7, "target": 1},
        ],
    ),
    "by-image": (
        "p.json",
        {
            "a": [[9, 9], *({"x": x, "y": y, "target": "k"} for x, y in ((3, 7), (4, 8), (4, 7)))],
            "b": [{"x": 1, "y": 1}],
        },
    ),
}


@pytest.mark.parametrize("form", MULTI)
def test_clicks_of_one_target_in_tables_and_records(tmp_path, images, form):
    name, content = MULTI[form]
    points = only(saved(tmp_path / name, content), images, "multi-point")
    assert points["b"] == [Point(1, 1)]
    assert set(points["a"]) == {CLICKS, Point(9, 9)}


@pytest.mark.parametrize(
    "content",
    [
        labelme(
            shape("point", (3, 7), group=5),
            shape("point", (9, 9)),
            shape("point", (4, 8), group=5),
            shape("point", (4, 7), group=5),
        ),
        coco({"keypoints": [3, 7, 2, 4, 8, 1, 0, 0, 0, 4, 7, 2]}, {"keypoints": [9, 9, 2]}),
    ],
    ids=["labelme", "coco"],
)
def test_clicks_of_one_target_in_tools(tmp_path, images, content):
    points = only(saved(tmp_path / "a.json", content), images, "multi-point")
    assert set(points["a"]) == {CLICKS, Point(9, 9)}


def test_keypoints_are_points_of_their_own_for_points(tmp_path, images):
    path = saved(tmp_path / "a.json", coco({"keypoints": [3, 7, 2, 4, 8, 1]}))
    assert only(path, images, "point") == {"a": [Point(3, 7), Point(4, 8)]}


@pytest.mark.parametrize("form", ["csv", "records", "by-image"])
def test_grouped_clicks_are_not_points(tmp_path, images, form):
    name, content = MULTI[form]
    points, why = reasons(saved(tmp_path / name, content), images, "point")
    assert points == {"a": [Point(9, 9)], "b": [Point(1, 1)]}
    assert len(why) == 1
    assert why[0].endswith("in 'a' has 3 clicks; --supervision multi-point reads them")


def test_bad_clicks_leave_their_targets_others(tmp_path, images):
    table = "image,x,y,category,target\na,3,nan,,1\na,3,7,spot,1\na,3,7,,1\na,99,7,,1\na,4,8,,1\n"
    points, why = reasons(saved(tmp_path / "p.csv", table), images, "multi-point")
    assert points == {"a": [Point(3, 7, "spot", seeds=((4, 8),))]}
    assert why == [
        "line 2: y is 'nan', not a finite number",
        "line 4: (3, 7) in 'a' was given before; kept once",
        "line 5: (99, 7) lies outside the 40x30 image 'a'",
    ]


def test_the_same_target_twice(tmp_path, images):
    table = "image,x,y,target\na,3,7,1\na,4,8,1\na,4,8,2\na,3,7,2\na,4,8,3\n"
    points, why = reasons(saved(tmp_path / "p.csv", table), images, "multi-point")
    assert points == {"a": [Point(3, 7, seeds=((4, 8),)), Point(4, 8)]}
    assert why == ["line 4: the target at (4, 8) in 'a' was given before; kept once"]
    table = "image,xmin,ymin,xmax,ymax\na,3,5,6,9\na,3,5,6,9.0\n"
    points, why = reasons(saved(tmp_path / "p.csv", table), images, "box")
    assert points == {"a": [BOX]}
    assert why == ["line 3: the target at (4.5, 7) in 'a' was given before; kept once"]


def test_parts_of_a_target_must_agree_on_its_category(tmp_path, images):
    table = "image,x,y,category,target\na,3,7,spot,k\na,4,8,point,k\n"
    points, why = reasons(saved(tmp_path / "p.csv", table), images, "multi-point")
    assert points == {}
    assert why == ["line 2: target 'k' has categories spot and point; keep one"]


def test_clicks_numbered_by_pixel_value(tmp_path, images):
    marks = {(3, 7): 2, (4, 8): 2, (4, 7): 2, (9, 9): 255}
    points = only(mask_file(tmp_path / "a.png", marks), images, "multi-point")
    assert points == {"a": [Point(3, 7, seeds=((4, 7), (4, 8))), Point(9, 9)]}
    assert only(mask_file(tmp_path / "a.png", {(3, 7): 255}), images, "multi-point") == {"a": [Point(3, 7)]}
    assert only(mask_file(tmp_path / "a.png", {}), images, "multi-point") == {"a": []}
    deep = only(mask_file(tmp_path / "a.png", {(3, 7): 900, (5, 7): 900}, np.uint16), images, "multi-point")
    assert deep == {"a": [Point(3, 7, seeds=((5, 7),))]}


@pytest.mark.parametrize(("value", "dtype"), [(1, np.uint8), (255, np.uint8), (65535, np.uint16)])
def test_clicks_in_a_mask_of_two_values_are_not_told_apart(tmp_path, images, value, dtype):
    path = mask_file(tmp_path / "a.png", {(3, 7): value, (9, 9): value}, dtype)
    with pytest.raises(InputError, match=r"its 2 pixels have one value.*from 2 on"):
        read_points(path, images, "multi-point")


def test_areas_are_no_clicks(tmp_path, images):
    path = mask_file(tmp_path / "a.png", {(x, y): x for x in (3, 4) for y in (7, 8)})
    with pytest.raises(InputError, match="areas, not points"):
        read_points(path, images, "multi-point")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "image,x,y,target\na,5,3,k\na,3,2,k\na,4.4,1.5,k\na,3,2,k\na,6,3,k\n"),
        ("a.json", labelme(shape("line", (3, 2), (6, 3)))),
        ("a.json", labelme(shape("linestrip", (3, 2), (6, 3), (3, 2)))),
        (
            "a.json",
            labelme(shape("line", (3, 2), (4, 2), group=1), shape("linestrip", (5, 3), (6, 3), group=1)),
        ),
    ],
    ids=["csv", "line", "linestrip", "group"],
)
def test_scribbles(tmp_path, images, name, content):
    assert only(saved(tmp_path / name, content), images, "scribble") == {"a": [STROKE]}


def test_a_line_passes_whole_pixels(tmp_path, images):
    content = labelme(shape("linestrip", (3, 2), (8, 2), (8, 6)))
    (stroke,) = only(saved(tmp_path / "a.json", content), images, "scribble")["a"]
    expected = {(x, 2) for x in range(3, 9)} | {(8, y) for y in range(2, 7)}
    assert {(stroke.x, stroke.y), *stroke.seeds} == expected
    assert len(stroke.seeds) == len(expected) - 1


def test_a_line_to_the_border_of_the_image_is_inside(tmp_path, images):
    at_border = {"shape_type": "line", "points": [[0, 0], [WIDTH, HEIGHT]], "label": "t"}
    (stroke,) = only(saved(tmp_path / "a.json", labelme(at_border)), images, "scribble")["a"]
    places = {(stroke.x, stroke.y), *stroke.seeds}
    assert {(0, 0), (WIDTH - 1, HEIGHT - 1)} <= places
    assert all(0 <= x < WIDTH and 0 <= y < HEIGHT for x, y in places)


def test_strokes_of_an_image(tmp_path, images):
    thick = {(x, y): 255 for x in (10, 11) for y in (20, 21)} | {(12, 22): 1}
    points = only(
        mask_file(tmp_path / "a.png", {(3, 2): 255, (4, 2): 255, (5, 3): 9, (6, 3): 9} | thick),
        images,
        "scribble",
    )
    assert points["a"][0] == STROKE
    assert {(points["a"][1].x, points["a"][1].y), *points["a"][1].seeds} == set(thick)
    assert only(mask_file(tmp_path / "b.png", {}), images, "scribble") == {"b": []}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            labelme(shape("line", (3, 2), (41, 2))),
            "shape 1: a scribble leaves the 40x30 image 'a' at (41, 2); draw it inside",
        ),
        (labelme(shape("linestrip")), "shape 1 is a linestrip of 0 points; draw it again"),
        (labelme(shape("line", (3, 2))), "shape 1 is a line of 1 points; draw it again"),
        (
            labelme({"shape_type": "line", "points": [[1, 2], [3]]}),
            "shape 1 is a line of 2 points; draw it again",
        ),
        (
            labelme({"shape_type": "line", "points": [[1, 2], [float("nan"), 3]]}),
            "shape 1: x is 'nan', not a finite number",
        ),
        (
            labelme({"shape_type": "line", "points": [[1, 2], [1e308, 3]]}),
            "shape 1: a scribble leaves the 40x30 image 'a' at (1e+308, 2.5); draw it inside",
        ),
        (
            labelme(shape("polygon", (3, 2), (4, 2), (4, 4))),
            "shape 1 is a box; --supervision box reads it",
        ),
    ],
)
def test_bad_scribbles(tmp_path, images, content, why):
    assert reasons(saved(tmp_path / "a.json", content), images, "scribble") == ({}, [why])


OTHERS = {
    ("point", "scribble"): ("a.json", labelme(shape("point", (3, 7)))),
    ("point", "box"): ("p.csv", "image,x,y\na,3,7\n"),
    ("scribble", "point"): ("a.json", labelme(shape("line", (3, 7), (4, 8)))),
    ("scribble", "multi-point"): ("a.json", labelme(shape("line", (3, 7), (4, 8)))),
    ("scribble", "box"): ("a.json", labelme(shape("line", (3, 7), (4, 8)))),
    ("box", "point"): ("a.json", labelme(shape("rectangle", (3, 5), (7, 10)))),
    ("box", "multi-point"): ("p.csv", "image,left,top,right,bottom\na,3,5,6,9\n"),
    ("box", "scribble"): ("p.json", [{"image": "a", "xmin": 3, "ymin": 5, "xmax": 6, "ymax": 9}]),
}


@pytest.mark.parametrize(("kind", "asked"), OTHERS)
def test_another_kind_is_left_out_and_named(tmp_path, images, kind, asked):
    name, content = OTHERS[kind, asked]
    points, (why,) = reasons(saved(tmp_path / name, content), images, asked)
    assert points == {}
    assert why.endswith(f" is a {kind}; --supervision {kind} reads it")
    assert only(tmp_path / name, images, kind)["a"]


def test_kinds_side_by_side(tmp_path, images):
    content = labelme(
        shape("point", (9, 9)), shape("line", (3, 2), (6, 3)), shape("rectangle", (3, 5), (7, 10))
    )
    path = saved(tmp_path / "a.json", content)
    expected = {"point": Point(9, 9), "multi-point": Point(9, 9), "scribble": STROKE, "box": BOX}
    for supervision in SUPERVISIONS:
        points, skipped = read_points(path, images, supervision)
        assert points == {"a": [expected[supervision]]}
        assert len(skipped) == 2


def test_unknown_supervision(tmp_path, images):
    with pytest.raises(InputError, match="supervision 'boxes' is unknown; give one of point, multi-point, "):
        read_points(tmp_path, images, "boxes")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.randoms())
def test_a_scribble_is_its_set_of_pixels(pixels, random):
    stroke = scribble(*np.array(pixels).T, category="spot")
    places = {(stroke.x, stroke.y), *stroke.seeds}
    assert places == {(x, y) for y, x in pixels}
    assert len(stroke.seeds) == len(places) - 1
    center = np.mean(list(places), axis=0)
    distances = {place: np.hypot(*(np.array(place) - center)) for place in places}
    assert distances[stroke.x, stroke.y] == pytest.approx(min(distances.values()))
    again = pixels * 2
    random.shuffle(again)
    assert scribble(*np.array(again).T, category="spot") == stroke


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5))
def test_a_line_is_connected_and_passes_its_corners(corners):
    rows, columns = line_pixels(corners)
    assert (np.maximum(abs(np.diff(rows)), abs(np.diff(columns))) <= 1).all()
    assert set(corners) <= set(zip(rows.tolist(), columns.tolist(), strict=True))
    mask = np.zeros((10, 10), bool)
    mask[rows, columns] = True
    assert len(list(components(mask))) == 1
