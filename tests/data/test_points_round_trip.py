"""Label files written and read back; arbitrary content raises InputError only."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from label_files import (
    BOX,
    CLICKS,
    HEIGHT,
    STROKE,
    WIDTH,
    make_images,
    saved,
)

from mclc_gpu.data.annotations import SUPERVISIONS, Point, box_target, scribble
from mclc_gpu.data.points import load_points, read_points, write_points
from mclc_gpu.errors import InputError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


COORDINATE = st.floats(-0.5, 29.0, allow_nan=False)
LETTERS = st.characters(exclude_characters="/\\", exclude_categories=["Cc", "Cs"])
# "\udcff" is how Python says a file name that is not UTF-8.
STEM = st.one_of(st.text(LETTERS, min_size=1, max_size=12).filter(str.strip), st.just("\udcff.1"))
PLACE = st.tuples(COORDINATE, COORDINATE)
PIXEL = st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1))
CATEGORY = st.sampled_from([None, "point", "spot", "extended"])


def clicks_of(places, category):
    return Point(*places[0], category, seeds=tuple(places[1:]))


def box_of(corners, category):
    (top, left), (bottom, right) = np.sort(corners, axis=0).tolist()
    return box_target(left, top, right, bottom, category)


TARGETS = {
    "point": st.builds(Point, COORDINATE, COORDINATE, CATEGORY),
    "multi-point": st.builds(clicks_of, st.lists(PLACE, min_size=1, max_size=4, unique=True), CATEGORY),
    "scribble": st.builds(
        lambda pixels, category: scribble(*np.array(pixels).T, category),
        st.lists(PIXEL, min_size=1, max_size=5),
        CATEGORY,
    ),
    "box": st.builds(box_of, st.tuples(PIXEL, PIXEL), CATEGORY),
}


def pixels_and_box(target):
    return frozenset([(target.x, target.y), *target.seeds]), target.box


@pytest.mark.parametrize("supervision", TARGETS)
@given(data=st.data())
def test_writing_and_reading_back_is_exact(tmp_path_factory, images, supervision, data):
    targets = st.lists(TARGETS[supervision], max_size=4, unique_by=pixels_and_box)
    points = data.draw(st.dictionaries(STEM, targets, min_size=1, max_size=4))
    # Fractions of a pixel in 0..1 alone are taken for shares of the image's size.
    numbers = [value for own in points.values() for target in own for mark in target.marks for value in mark]
    assume(any(value > 1 for value in numbers) or all((2 * value).is_integer() for value in numbers))
    path = tmp_path_factory.getbasetemp() / "supervised.csv"
    write_points(path, points)
    assert read_points(path, dict.fromkeys(points, images["a"]), supervision) == (points, [])
    assert load_points(path) == points


@given(st.lists(st.builds(Point, COORDINATE, COORDINATE, CATEGORY, st.lists(PLACE, max_size=3), st.none())))
def test_own_files_load_as_written_whatever_they_say(tmp_path_factory, points):
    path = tmp_path_factory.getbasetemp() / "own.csv"
    write_points(path, {"a": points, "b": []})
    assert load_points(path) == {"a": points, "b": []}


def test_extra_columns_only_where_needed(tmp_path):
    for points, header in (
        ([Point(1, 2)], "image,x,y,category"),
        ([Point(1, 2), CLICKS], "image,x,y,category,target"),
        ([BOX], "image,x,y,category,left,top,right,bottom"),
    ):
        write_points(tmp_path / "p.csv", {"a": points})
        assert (tmp_path / "p.csv").read_text().splitlines()[0] == header


@pytest.mark.parametrize("rows", ["a,1,nan", "a,1", "a,1,2,3"])
def test_own_files_that_were_changed(tmp_path, rows):
    with pytest.raises(InputError, match=r"p\.csv: .*write the file again"):
        load_points(saved(tmp_path / "p.csv", f"image,x,y\n{rows}\n"))


def test_points_survive_json():
    for point in (CLICKS, BOX, STROKE, Point(1, 2, "spot")):
        assert Point(**json.loads(json.dumps(asdict(point)))) == point
        assert hash(Point(**json.loads(json.dumps(asdict(point))))) == hash(point)


LABEL_BYTES = st.one_of(
    st.binary(max_size=120),
    st.tuples(
        st.sampled_from(
            [b"image,x,y\n", b"image;x;y\r\n", b"<annotation><object>", b"[", b'{"a":', b"\xff\xfe"]
        ),
        st.binary(max_size=60),
    ).map(b"".join),
    st.lists(st.sampled_from(["a", ",", "\n", '"', "1", "-", "nan", ";", "\0", "\r"]), max_size=20).map(
        lambda cells: ("image,x,y\n" + "".join(cells)).encode()
    ),
)
JSON_KEYS = ["a", "image", "x", "y", "category", "shapes", "points", "shape_type", "images", "annotations"]
JSON_KEYS += ["keypoints", "image_id", "id", "file_name", "width", "data", "result", "value"]
JSON_KEYS += ["keypointlabels", "original_width", "original_height", "rectanglelabels", "height", "bbox"]
JSON_KEYS += ["target", "group_id", "left", "top", "right", "bottom"]
JSON_VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["a", "point", "x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(JSON_KEYS), inner, max_size=5),
    ),
    max_leaves=20,
)


def judged(path, images, supervision):
    """Read labels; all positions must lie in their image, and only InputError may be raised."""
    try:
        points, _ = read_points(path, images, supervision)
    except InputError as error:
        return "\n" not in str(error)
    targets = [target for own in points.values() for target in own]
    places = [place for target in targets for place in ((target.x, target.y), *target.seeds)]
    places += [corner for target in targets if target.box for corner in (target.box[:2], target.box[2:])]
    return all(-0.5 <= x < WIDTH - 0.5 and -0.5 <= y < HEIGHT - 0.5 for x, y in places)


SUFFIX = st.sampled_from([".csv", ".json", ".xml", ".txt", ".png", ""])


@given(LABEL_BYTES, SUFFIX, st.sampled_from(SUPERVISIONS))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_random_bytes_raise_input_errors_only(tmp_path_factory, images, content, suffix, supervision):
    path = saved(tmp_path_factory.getbasetemp() / f"random{suffix}", content)
    assert judged(path, images, supervision)


@given(JSON_VALUE, st.sampled_from(SUPERVISIONS))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_random_json_raises_input_errors_only(tmp_path_factory, images, value, supervision):
    path = saved(tmp_path_factory.getbasetemp() / "random.json", json.dumps(value))
    assert judged(path, images, supervision)
