"""Annotations simulated from masks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.measure import label, regionprops

from mclc_gpu.data.annotations import SUPERVISIONS, Point, category_of
from mclc_gpu.data.images import read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import read_points, write_points
from mclc_gpu.data.simulate import points_from_mask, simulate_points
from mclc_gpu.errors import InputError


def mask_of(text):
    return np.array([[char == "#" for char in row] for row in text.split()])


def test_one_click_per_8_connected_target_in_label_order():
    mask = mask_of("""
        .....#
        #...#.
        .#....
        ..#...
        ......
        ####.#""")
    assert [(p.x, p.y) for p in points_from_mask(mask)] == [(5, 0), (1, 2), (2, 5), (5, 5)]


def test_centroid_outside_the_target_moves_to_its_nearest_pixel():
    ring = mask_of("""
        .......
        ..###..
        .#...#.
        .#...#.
        .#...#.
        ..###..
        .......""")
    (click,) = points_from_mask(ring)
    assert ring[int(click.y), int(click.x)]
    assert (click.x, click.y) == (
        3,
        1,
    )  # of the four pixels two away from the center the first in raster order


@pytest.mark.parametrize(
    ("area", "category"), [(1, "point"), (9, "point"), (10, "spot"), (81, "spot"), (82, "extended")]
)
def test_category_by_true_area(area, category):
    mask = np.zeros((12, 12), bool)
    mask.ravel()[:area] = True
    assert [p.category for p in points_from_mask(mask)] == [category]


def test_empty_masks():
    assert points_from_mask(np.zeros((5, 5), bool)) == []
    assert points_from_mask(np.zeros((5, 5), bool), jitter=2.0, rng=np.random.default_rng(0)) == []


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_against_regionprops(mask):
    clicks = points_from_mask(mask)
    labels = label(mask, connectivity=2)
    regions = regionprops(labels)
    assert len(clicks) == len(regions)
    for click, region in zip(clicks, regions, strict=True):
        row, column = (math.floor(value + 0.5) for value in region.centroid)
        distances = np.hypot(region.coords[:, 0] - row, region.coords[:, 1] - column)
        assert labels[int(click.y), int(click.x)] == region.label
        assert np.hypot(click.y - row, click.x - column) == distances.min()


def test_jitter_follows_its_model():
    jitter, rng = 1.5, np.random.default_rng(1)
    mask = np.zeros((41, 41), bool)
    mask[20, 20] = True
    clicks = [points_from_mask(mask, jitter=jitter, rng=rng)[0] for _ in range(2000)]
    offsets = np.array([(p.x - 20, p.y - 20) for p in clicks])
    # Rounding adds up to half a pixel on either axis to the longest displacement of 2 * jitter.
    assert np.hypot(*offsets.T).max() <= 2 * jitter + math.sqrt(0.5)
    # Per axis, a normal pair cut at radius 2 sigma has variance sigma^2 (1 - 2 e^-2 / (1 - e^-2)); rounding
    # adds 1/12.
    deviation = math.sqrt(jitter**2 * (1 - 2 * math.exp(-2) / (1 - math.exp(-2))) + 1 / 12)
    np.testing.assert_allclose(offsets.std(axis=0), deviation, rtol=0.06)
    np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=0.1)
    assert all(p.category == "point" and p.x.is_integer() and p.y.is_integer() for p in clicks)


def test_jittered_clicks_stay_in_the_image():
    mask = np.zeros((4, 6), bool)
    mask[0, 5] = True
    rng = np.random.default_rng(2)
    clicks = [points_from_mask(mask, jitter=5.0, rng=rng)[0] for _ in range(200)]
    assert {p.x for p in clicks} == set(range(6))
    assert {p.y for p in clicks} == set(range(4))


@pytest.mark.parametrize("jitter", [-1.0, math.nan, math.inf])
def test_bad_jitter(jitter):
    with pytest.raises(InputError, match="jitter"):
        points_from_mask(np.ones((2, 2), bool), jitter=jitter, rng=np.random.default_rng(0))


def test_jitter_needs_a_generator():
    with pytest.raises(ValueError, match="generator"):
        points_from_mask(np.ones((2, 2), bool), jitter=1.0)


@pytest.fixture
def scenes(tmp_path):
    """Make 20x20 images and masks: c's mask is empty, d's of another size, e has none, z no image."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for stem in "abcde":
        Image.new("L", (20, 20)).save(tmp_path / "images" / f"{stem}.png")
    mask = np.zeros((20, 20), np.uint8)
    mask[5, 5] = mask[12, 3] = mask[9:13, 9:12] = 255
    for stem in "abz":
        Image.fromarray(mask).save(tmp_path / "masks" / f"{stem}_pixels0.png")
    Image.fromarray(0 * mask).save(tmp_path / "masks" / "c.png")
    Image.fromarray(mask[:10]).save(tmp_path / "masks" / "d.png")
    return find_files(tmp_path / "masks"), find_files(tmp_path / "images")


def test_simulate_points(scenes):
    masks, images = scenes
    points, skipped = simulate_points(masks, images)
    clicks = [Point(5.0, 5.0, "point"), Point(10.0, 11.0, "spot"), Point(3.0, 12.0, "point")]
    assert points == {"a": clicks, "b": clicks, "c": []}
    reported = {item.file.rpartition("/")[2]: item.why for item in skipped}
    assert set(reported) == {"d.png", "e.png"}
    assert "the mask is 20x10 but its image is 20x20" in reported["d.png"]
    assert reported["e.png"] == "there is no mask of this image"


def test_simulation_depends_on_image_and_seed_alone(scenes):
    masks, images = scenes
    points, _ = simulate_points(masks, images, jitter=3.0, seed=7)
    assert points["a"] != points["b"]  # equal masks, names of their own
    for stem in ("a", "b"):
        alone, _ = simulate_points(masks, {stem: images[stem]}, jitter=3.0, seed=7)
        assert alone == {stem: points[stem]}
    assert simulate_points(masks, images, jitter=3.0, seed=8)[0]["a"] != points["a"]
    # The same in every process and version: these are written down, not computed.
    assert [(p.x, p.y) for p in points["a"]] == [(4, 2), (9, 12), (0, 12)]


@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("jitter", [0.0, 2.0])
@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), seed=st.integers(0, 9))
def test_every_supervision_of_any_mask(supervision, jitter, mask, seed):
    def draw():
        rng = np.random.default_rng(seed)
        return points_from_mask(mask, jitter=jitter, rng=rng, supervision=supervision, clicks=2)

    targets, regions = draw(), regionprops(label(mask, connectivity=2))
    assert targets == draw()
    assert [target.category for target in targets] == [category_of(region.area) for region in regions]
    for target, region in zip(targets, regions, strict=True):
        pixels = set(map(tuple, region.coords.tolist()))
        marked = [(y, x) for x, y in ((target.x, target.y), *target.seeds)]
        assert len(set(marked)) == len(marked)
        assert all(y < mask.shape[0] and x < mask.shape[1] and min(x, y) >= 0 for y, x in marked)
        assert (target.box is not None) == (supervision == "box")
        if jitter == 0 and supervision != "box":
            assert set(marked) <= pixels
        if jitter == 0 and supervision == "multi-point":
            assert len(marked) == min(2, len(pixels))
        if supervision in ("point", "box"):
            assert target.seeds == ()
        if target.box is not None:
            left, top, right, bottom = target.box
            assert 0 <= left <= right < mask.shape[1]
            assert 0 <= top <= bottom < mask.shape[0]
            assert (target.x, target.y) == ((left + right) / 2, (top + bottom) / 2)
            if jitter == 0:
                assert (top, left, bottom + 1, right + 1) == region.bbox


def test_clicks_of_a_target_are_random():
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    rng = np.random.default_rng(0)
    firsts, seconds = set(), set()
    for _ in range(300):
        (target,) = points_from_mask(mask, rng=rng, supervision="multi-point", clicks=2)
        firsts.add((target.x, target.y))
        seconds.update(target.seeds)
    assert firsts == seconds == {(x, y) for x in range(1, 5) for y in range(1, 5)}


def test_scribbles_run_to_the_farthest_pixel_and_stay_on_their_target():
    mask = mask_of("""
        #####
        #...#
        #.#.#
        #...#
        #...#""")
    rng = np.random.default_rng(0)
    drawn = set()
    for _ in range(100):
        arch, dot = points_from_mask(mask, rng=rng, supervision="scribble")
        assert (dot.x, dot.y, dot.seeds) == (2, 2, ())
        drawn.add(frozenset([(arch.x, arch.y), *arch.seeds]))
    # The diagonal leaves the arch, and passes the dot, which is another target.
    assert {(0, 4), (4, 0)} in drawn
    assert not any((2, 2) in stroke for stroke in drawn)
    # Both feet are equally far from (2, 0); the left one comes first.
    assert any({(2, 0), (0, 4)} <= stroke for stroke in drawn)
    assert not any({(2, 0), (4, 4)} <= stroke for stroke in drawn)


def test_a_displaced_scribble_keeps_its_shape():
    mask = np.zeros((30, 30), bool)
    mask[15, 10:20] = True
    rng = np.random.default_rng(3)
    places = set()
    for _ in range(50):
        (stroke,) = points_from_mask(mask, jitter=2.0, rng=rng, supervision="scribble")
        xs = sorted([stroke.x, *(x for x, _ in stroke.seeds)])
        assert {stroke.y, *(y for _, y in stroke.seeds)} == {stroke.y}
        assert np.diff(xs).tolist() == [1] * (len(xs) - 1)
        places.add((xs[0], stroke.y))
    assert len(places) > 10


def test_each_corner_of_a_box_is_displaced():
    mask = np.zeros((30, 30), bool)
    mask[10:20, 10:20] = True
    rng = np.random.default_rng(4)
    drawn = [points_from_mask(mask, jitter=1.5, rng=rng, supervision="box")[0].box for _ in range(500)]
    edges = np.array(drawn) - (10, 10, 19, 19)
    assert abs(edges).max() <= 3
    assert (edges.std(axis=0) > 0.5).all()
    assert abs(np.corrcoef(edges.T) - np.eye(4)).max() < 0.2


@pytest.mark.parametrize("supervision", ["multi-point", "scribble"])
def test_random_supervisions_need_a_generator(supervision):
    with pytest.raises(ValueError, match="generator"):
        points_from_mask(np.ones((2, 2), bool), supervision=supervision)


def test_bad_clicks_and_supervision():
    with pytest.raises(InputError, match="clicks 0 per target are too few"):
        points_from_mask(np.ones((2, 2), bool), clicks=0)
    with pytest.raises(InputError, match="supervision 'dots' is unknown"):
        points_from_mask(np.ones((2, 2), bool), supervision="dots")


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_simulated_labels_of_every_supervision_read_back(scenes, tmp_path, supervision):
    masks, images = scenes
    points, _ = simulate_points(masks, images, jitter=1.0, seed=7, supervision=supervision, clicks=4)
    write_points(tmp_path / "points.csv", points)
    assert read_points(tmp_path / "points.csv", images, supervision) == (points, [])
    alone, _ = simulate_points(
        masks, {"b": images["b"]}, jitter=1.0, seed=7, supervision=supervision, clicks=4
    )
    assert alone == {"b": points["b"]}
    assert points["a"] != points["b"]


# The same in every process and version: these are written down, not computed.
DRAWN = {
    "multi-point": Point(8, 10, "spot", seeds=((12, 8), (9, 10))),
    "scribble": Point(10, 11, "spot", seeds=((9, 10), (11, 12))),
    "box": Point(9, 11, "spot", box=(8, 9, 10, 13)),
}


@pytest.mark.parametrize("supervision", DRAWN)
def test_what_a_seed_draws_stays(scenes, supervision):
    masks, images = scenes
    points, _ = simulate_points(masks, images, jitter=1.0, seed=7, supervision=supervision)
    assert points["a"][1] == DRAWN[supervision]


def test_nuaa_clicks(nuaa):
    images, masks = find_files(nuaa / "images"), find_files(nuaa / "masks")
    some = {stem: images[stem] for stem in list(images)[::8]}
    points, skipped = simulate_points(masks, some)
    assert skipped == []
    assert list(points) == list(some)
    for stem, clicks in points.items():
        mask = read_mask(masks[stem])
        assert len(clicks) == label(mask, connectivity=2).max()
        assert all(mask[int(p.y), int(p.x)] for p in clicks)


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_nuaa_labels_read_back(nuaa, tmp_path, supervision):
    images, masks = find_files(nuaa / "images"), find_files(nuaa / "masks")
    some = {stem: images[stem] for stem in list(images)[::16]}
    points, skipped = simulate_points(masks, some, seed=1, supervision=supervision)
    assert skipped == []
    assert sum(map(len, points.values())) > len(some)
    write_points(tmp_path / "points.csv", points)
    assert read_points(tmp_path / "points.csv", images, supervision) == (points, [])
