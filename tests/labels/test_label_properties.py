"""Properties of labels for any images, points and settings."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclc_gpu.data.annotations import Point, box_target
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import PRESETS, changed
from mclc_gpu.labels.pipeline import compose, label_images

FEW = settings(max_examples=40) if settings.default.derandomize else settings.default
DTYPES = np.uint8, np.uint16, np.int16, np.float32, np.float64
CATEGORY = st.sampled_from([None, "point", "spot", "extended"])


@st.composite
def images(draw):
    """Any size from 1x1, gray or color, of any numbers: flat, of two levels, noise, or noise with blobs."""
    shape = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["flat", "levels", "noise", "blobs", "blobs", "blobs"]))
    pixels = np.full(shape, draw(st.integers(0, 255)), float)
    if kind == "levels":
        pixels = rng.integers(0, 2, shape) * 255.0
    elif kind != "flat":
        pixels = rng.uniform(0, 60, shape)
    if kind == "blobs":
        rows, columns = np.indices(shape)
        for _ in range(draw(st.integers(1, 3))):
            row, column, width = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(0.5, 6)
            pixels += 180 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    dtype = draw(st.sampled_from(DTYPES))
    pixels = pixels.clip(0, 255)
    if dtype != np.uint8:
        pixels = pixels * draw(st.sampled_from([1.0, 100.0] if dtype != np.float64 else [1e-12, 1e12]))
    if draw(st.booleans()) and draw(st.booleans()):
        pixels = np.stack([pixels, pixels[::-1], pixels * 0.5], axis=2)
    return pixels.astype(dtype)


@st.composite
def targets(draw, shape):
    """A target that is marked anywhere in an image: by a click, several, or a box."""
    height, width = shape

    def place():
        x = draw(st.one_of(st.floats(-0.5, width - 0.5, exclude_max=True), st.integers(0, width - 1)))
        y = draw(st.one_of(st.floats(-0.5, height - 0.5, exclude_max=True), st.integers(0, height - 1)))
        return float(x), float(y)

    kind = draw(st.sampled_from(["click", "click", "clicks", "box"]))
    if kind == "box":
        (left, right), (top, bottom) = (
            sorted((draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1))))
            for side in (width, height)
        )
        return box_target(left, top, right, bottom, draw(CATEGORY))
    x, y = place()
    seeds = tuple({place() for _ in range(draw(st.integers(1, 3)))} - {(x, y)}) if kind == "clicks" else ()
    return Point(x, y, draw(CATEGORY), seeds)


@st.composite
def scenes(draw):
    """Names, images and points of one to three images."""
    count = draw(st.integers(1, 3))
    frames = [draw(images()) for _ in range(count)]
    points = [[draw(targets(frame.shape[:2])) for _ in range(draw(st.integers(0, 3)))] for frame in frames]
    return [f"scene {n}" for n in range(count)], frames, points


@st.composite
def configs(draw):
    """Every maker, and trials of every kind."""
    name = draw(st.sampled_from(["paper", "paper", "default", "default", "lca", "point"]))
    config = changed(PRESETS[name], category=draw(st.sampled_from(["given", "estimate"])))
    config = replace(config, refine=draw(st.sampled_from(["crf", "threshold"])))
    config = replace(config, threshold=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])))
    if name == "paper":
        trial = {
            "method": draw(st.sampled_from(["slic", "kmeans"])),
            "clusters": draw(st.integers(1, 12)),
            "noise": draw(st.sampled_from(["none", "salt", "pepper", "gaussian"])),
            "intensity": draw(st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0])),
        }
        config = changed(config, trials=draw(st.integers(1, 4)), trial=trial)
    if name == "default":
        polarity = draw(st.sampled_from(["bright", "dark", "auto"]))
        config = changed(config, components={"polarity": polarity})
    return config


def arrays_of(found):
    return [
        (t.window, t.point, t.tpm.tobytes(), t.mask.tobytes(), t.trials, repr(t.confidence)) for t in found
    ]


def labeled(config, seed, names, frames, points):
    """Labels, or None where one of the targets cannot be labeled."""
    try:
        return label_images(frames, points, config, device="cpu", seed=seed, names=names)
    except InputError:
        return None


def check_target(target, image, config):
    height, width = image.shape[:2]
    window = target.window
    assert 0 <= window.top < window.bottom <= height
    assert 0 <= window.left < window.right <= width
    assert target.tpm.shape == target.mask.shape == (window.height, window.width)
    assert target.mask.dtype == bool
    assert target.tpm.dtype == np.float32
    assert ((target.tpm >= 0) & (target.tpm <= 1)).all()
    assert np.isnan(target.confidence) or 0 <= target.confidence <= 1
    assert target.point.category in ("point", "spot", "extended")
    if config.refine == "threshold":
        # No candidate of a target may reach into its box.
        assert target.mask.any() or (target.point.box is not None and not target.tpm.any())
        assert (target.tpm[target.mask] > 0).all() or config.threshold == 0
    if config.maker == "mclc" and config.trials == 1 and not target.point.seeds:
        assert set(np.unique(target.tpm)) <= {0, 1}


@FEW
@given(scenes(), configs(), st.integers(-(2**70), 2**70))
def test_labels_of_any_scene(scene, config, seed):
    names, frames, points = scene
    alone = [labeled(config, seed, [n], [f], [p]) for n, f, p in zip(*scene, strict=True)]
    usable = [n for n, found in enumerate(alone) if found is not None]
    for n in usable:
        assert len(alone[n]) == len(points[n])
        for target in alone[n]:
            check_target(target, frames[n], config)
        mask, tpm = compose(frames[n].shape[:2], alone[n])
        assert mask.sum() <= sum(target.mask.sum() for target in alone[n])
        assert ((tpm >= 0) & (tpm <= 1)).all()
    # Neither the others of a call, nor their order, nor a second call makes a difference.
    for order in (usable, usable[::-1]):
        parts = ([part[n] for n in order] for part in (names, frames, points))
        together = labeled(config, seed, *parts)
        assert together is not None
        assert arrays_of(together) == [one for n in order for one in arrays_of(alone[n])]
    if len(usable) < len(frames):
        assert labeled(config, seed, names, frames, points) is None


@FEW
@given(images(), st.data())
def test_a_target_does_not_depend_on_those_after_it(frame, data):
    """The noise of a target depends on its own number alone. An estimated category knows the other clicks."""
    drawn = [data.draw(targets(frame.shape[:2])) for _ in range(3)]
    points = [replace(point, category=point.category or "spot") for point in drawn]
    config = changed(PRESETS["paper"], trials=2, trial={"clusters": 1})
    few, many = (labeled(config, 5, ["x"], [frame], [points[:count]]) for count in (1, 3))
    if few is not None and many is not None:
        assert arrays_of(few) == arrays_of(many[:1])


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_json(name):
    config = PRESETS[name]
    assert type(config).from_settings(asdict(config)) == config
