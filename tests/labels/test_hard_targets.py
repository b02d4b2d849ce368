"""The default preset on what annotators really click: large and tiny targets, hot spots, clicks far off."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from mclc_gpu import Point, label_images
from mclc_gpu.labels.config import PRESETS, preset
from mclc_gpu.labels.pipeline import compose


def disc(radius, size=96, peak=100, blur=1.0):
    """A blurred disc on noise, and its mask."""
    y, x = np.mgrid[:size, :size] - size // 2
    truth = np.hypot(y, x) <= radius
    image = 60 + peak * ndimage.gaussian_filter(truth.astype(float), blur)
    return np.clip(image + np.random.default_rng(0).normal(0, 2, truth.shape), 0, 255).astype(np.uint8), truth


def found(image, *points, config=PRESETS["default"]):
    targets = label_images([image], [list(points)], config)
    return compose(image.shape[:2], targets)[0], targets


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("radius", [1.5, 5, 12, 20, 25])
@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (4, 3)])
def test_discs_of_all_sizes_and_clicks_up_to_five_pixels_off(radius, dx, dy):
    image, truth = disc(radius)
    # Of 9 pixels under a blur as wide, those that are half as bright count for some annotators.
    assert iou(found(image, Point(48 + dx, 48 + dy))[0], truth) > (0.7 if radius > 2 else 0.5)


def test_a_target_of_one_pixel():
    image, _ = disc(0.4, blur=0.01)
    mask, _ = found(image, Point(49, 47))
    assert mask.sum() == 1
    assert mask[48, 48]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_gain_and_offset_of_other_types_do_not_matter(dtype):
    image, truth = disc(6)
    masks = [
        found((image.astype(np.float64) * gain + offset).astype(dtype), Point(48, 48))[0]
        for gain, offset in ((1, 0), (13, 2000), (200, 50))
    ]
    assert iou(masks[0], truth) > 0.85
    for mask in masks[1:]:
        assert iou(mask, masks[0]) > 0.98


def test_two_clicks_in_one_target_give_that_target():
    image, truth = disc(7)
    mask, targets = found(image, Point(45, 48), Point(51, 49))
    assert len(targets) == 2
    assert iou(mask, truth) > 0.85


def test_two_targets_side_by_side_stay_apart():
    left, truth_left = disc(3)
    image = np.maximum(left, np.roll(left, 12, 1))
    truth = truth_left | np.roll(truth_left, 12, 1)
    mask, _ = found(image, Point(48, 48), Point(60, 48))
    assert iou(mask, truth) > 0.75
    assert ndimage.label(mask)[1] == 2


def test_two_small_targets_five_pixels_apart_are_both_found():
    y, x = np.mgrid[:48, :64]
    image = 40 + np.random.default_rng(0).normal(0, 1.5, y.shape)
    for column, contrast in ((20, 50), (25, 100)):
        image += contrast * np.exp(-((y - 24) ** 2 + (x - column) ** 2) / 3)
    truth = (abs(y - 24) <= 1) & ((abs(x - 20) <= 1) | (abs(x - 25) <= 1))
    mask, _ = found(np.rint(image).astype(np.uint8), Point(20, 24), Point(25, 24))
    assert iou(mask, truth) > 0.85
    assert ndimage.label(mask)[1] == 2


@pytest.mark.parametrize("noise", [2, 5, 20])
def test_no_click_on_noise_is_certain(noise):
    rng = np.random.default_rng(noise)
    image = np.clip(60 + rng.normal(0, noise, (128, 128)), 0, 255).astype(np.uint8)
    _, targets = found(image, *(Point(*map(float, place)) for place in rng.integers(10, 118, (18, 2))))
    confidences = np.array([target.confidence for target in targets])
    assert confidences.max() < 1
    assert confidences.mean() < 0.85


def test_a_hot_engine_on_a_dim_body():
    """Annotators outline the body over a clean background; the click's place and the category tell."""
    y, x = np.mgrid[:80, :80]
    body = (abs(y - 40) <= 3) & (abs(x - 40) <= 14)
    engine = np.hypot(y - 40, x - 28) <= 1.5
    image = 40 + np.random.default_rng(1).normal(0, 1, body.shape) + 12 * body + 150 * engine
    image = np.clip(image, 0, 255).astype(np.uint8)
    assert iou(found(image, Point(40, 40))[0], body) > 0.95
    assert iou(found(image, Point(32, 40, "extended"))[0], body) > 0.95
    assert iou(found(image, Point(28, 40))[0], engine) > 0.9  # a click on the engine asks for the engine


def aircraft(seed):
    """A body of 5 to 15 % of the peak, well above the noise, with hot spots; its mask; where one spot is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96] - 48
    turn, length, width = rng.uniform(0, np.pi), rng.uniform(7, 15), rng.uniform(2, 3.5)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    body = (abs(along) <= length) & (abs(across) <= width)
    body |= (abs(along - 0.2 * length) <= width) & (abs(across) <= 0.6 * length)
    places = rng.uniform(-0.9, 0.9, rng.integers(1, 4)) * length
    spots = [np.exp(-((along - place) ** 2 + across**2) / 2) for place in places]
    peak = rng.uniform(80, 180)
    light = np.maximum(rng.uniform(0.05, 0.15) * ndimage.gaussian_filter(body.astype(float), 0.6), sum(spots))
    image = np.rint(40 + peak * light + rng.normal(0, 0.5, body.shape))
    spot = np.argmax(spots[0])
    return np.clip(image, 0, 255).astype(np.uint8), body, Point(*(float(c) for c in (spot % 96, spot // 96)))


def test_hot_spots_give_way_to_their_body_when_asked_to():
    """On the middle of the body and on a hot spot of it alike; the category asks for it as well."""
    scenes = [aircraft(seed) for seed in range(12)]
    for click in (lambda hot: Point(48, 48), lambda hot: hot):
        for config, category, least in (
            (preset("default", components={"body": 1.6}), None, 0.8),
            (PRESETS["default"], "extended", 0.7),
        ):
            scores = [
                iou(found(image, replace(click(hot), category=category), config=config)[0], body)
                for image, body, hot in scenes
            ]
            assert np.mean(scores) > least


def test_the_knob_draws_masks_tighter_or_wider():
    image, _ = disc(5, blur=3.0)
    tight, usual, wide = (
        found(image, Point(48, 48), config=preset("default", components={"core": core}))[0]
        for core in (5.0, 0.0, -5.0)
    )
    assert (usual | wide).sum() == wide.sum() > usual.sum() > tight.sum() == (tight & usual).sum()


@pytest.mark.parametrize("polarity", ["dark", "auto"])
def test_dark_targets(polarity):
    image, truth = disc(5, peak=-50)
    config = preset("default", components={"polarity": polarity})
    assert iou(found(image, Point(49, 47), config=config)[0], truth) > 0.8


def test_clicks_at_the_corner_of_the_image():
    image, truth = disc(6)
    corner, cut = image[48:, 48:], truth[48:, 48:]
    assert iou(found(corner, Point(1, 1))[0], cut) > 0.8
