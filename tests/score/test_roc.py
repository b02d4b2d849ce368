"""Pd and Fa over thresholds, and the historical convention, against hand-computed and slow readings."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage
from skimage.measure import label, regionprops

from mclc_gpu.data.images import read_probability
from mclc_gpu.errors import InputError
from mclc_gpu.score.config import CANONICAL, CONVENTIONS, DNANET
from mclc_gpu.score.metrics import Scores, score_image
from mclc_gpu.score.roc import THRESHOLDS, Roc, RocScores, roc_counts

Box = tuple[int, int, int, int]  # first row, first column, height, width


def draw(*boxes: Box, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    drawn = np.zeros(shape, dtype=bool)
    for row, column, height, width in boxes:
        drawn[row : row + height, column : column + width] = True
    return drawn


def curve(probability: np.ndarray, truth: np.ndarray) -> Roc:
    scores = RocScores()
    scores.update(probability.astype(np.float32), truth)
    return scores.compute()


def at(roc: Roc, threshold: float) -> int:
    (index,) = np.flatnonzero(roc.thresholds == threshold)
    return int(index)


def test_every_score_of_a_hand_computed_image() -> None:
    # A 9 px target with 6 px at 0.75 and 3 px at 0.25; a false alarm of 2 px at 0.5 with a halo of 4 px at
    # 0.125; a 4 px target nobody sees.
    truth = draw((4, 4, 3, 3), (20, 20, 2, 2))
    probability = np.zeros((32, 32))
    probability[4:7, 4:6], probability[4:7, 6] = 0.75, 0.25
    probability[28, 2:4], probability[28, 4:8] = 0.5, 0.125
    roc = curve(probability, truth)
    for threshold, detected, alarms, both, predicted in [
        (1.0, 0, 0, 0, 0),
        (0.75, 0, 0, 0, 0),  # strictly above
        (0.625, 1, 0, 6, 6),
        (0.5, 1, 0, 6, 6),
        (0.375, 1, 2, 6, 8),
        (0.1875, 1, 2, 9, 11),
        (0.0625, 1, 6, 9, 15),
        (0.0, 1, 6, 9, 15),
    ]:
        k = at(roc, threshold)
        assert roc.pd[k] == detected / 2
        assert roc.fa[k] == alarms / 1024
        assert roc.recall[k] == both / 13
        assert roc.iou[k] == both / (predicted + 13 - both)
        assert roc.f1[k] == 2 * both / (predicted + 13)
        assert math.isnan(roc.precision[k]) if not predicted else roc.precision[k] == both / predicted


def test_thresholds_hold_both_ends_and_the_middle_and_are_dense_near_the_ends() -> None:
    assert {0.0, 0.25, 0.5, 1.0, 0.5**16, 1 - 0.5**16} <= set(THRESHOLDS.tolist())
    assert (np.diff(THRESHOLDS) > 0).all()
    assert len(THRESHOLDS) == 273


def test_a_component_that_falls_apart_can_cost_a_detection_and_regain_it() -> None:
    # Low, the target's spot and a ridge to its right are one component whose centroid is too far away.
    truth = draw((10, 4, 1, 2))
    probability = np.zeros((32, 32))
    probability[10, 4:6], probability[10, 6:20] = 0.9, 0.3
    roc = curve(probability, truth)
    assert roc.pd[at(roc, 0.25)] == 0
    assert roc.fa[at(roc, 0.25)] == 16 / 1024
    assert roc.pd[at(roc, 0.5)] == 1
    assert roc.fa[at(roc, 0.5)] == 0


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=str)
@pytest.mark.parametrize("kind", ["blobs", "noise", "steps"])
def test_each_threshold_counts_what_its_mask_alone_counts(convention, kind) -> None:
    rng = np.random.default_rng([7, len(kind)])
    probability = rng.random((37, 51)).astype(np.float32)
    if kind == "blobs":
        probability = ndimage.gaussian_filter(probability, 1.5)
        probability = np.clip((probability - 0.45) * 8, 0, 1)
    if kind == "steps":
        probability = np.float32(rng.integers(0, 4, (37, 51)) / 4) ** 3
    truth = ndimage.binary_dilation(rng.random((37, 51)) > 0.995)
    counts = roc_counts(probability, truth, None, convention)
    assert counts.targets > 2
    assert (counts.true, counts.pixels, counts.images) == (truth.sum(), truth.size, 1)
    for k in range(0, len(THRESHOLDS), 4):
        alone = score_image(probability > THRESHOLDS[k], truth, None, convention)
        assert counts.at[k].tolist() == [
            alone.detected,
            alone.false_alarm_pixels,
            alone.intersection,
            alone.predicted,
        ]


def test_the_set_sums_its_images() -> None:
    rng = np.random.default_rng(3)
    pairs = [(rng.random(size, np.float32), rng.random(size) > 0.98) for size in ((20, 30), (31, 17))]
    scores, masks = RocScores(), Scores()
    for probability, truth in pairs:
        scores.update(probability, truth)
        masks.update(probability > 0.5, truth)
    roc, result = scores.compute(), masks.compute()
    k = at(roc, 0.5)
    assert (roc.pd[k], roc.fa[k], roc.iou[k]) == (result.pd, result.fa, result.iou)
    assert (roc.precision[k], roc.recall[k], roc.f1[k]) == (result.precision, result.recall, result.f1)
    assert (roc.images, roc.targets) == (2, result.targets)


def test_nothing_true_and_nothing_at_all() -> None:
    roc = curve(np.full((8, 8), 0.3), draw(shape=(8, 8)))
    assert np.isnan(roc.pd).all()
    assert roc.fa[at(roc, 0.25)] == 1
    assert roc.within(1) is None
    nothing = RocScores().compute()
    assert np.isnan(nothing.fa).all()
    assert nothing.best_f1() is None
    assert str(nothing).splitlines()[0].split() == ["threshold", "Pd", "Fa", "x1e-6", "IoU", "F1"]


def test_the_best_threshold_within_a_limit_of_false_alarms() -> None:
    # 100 x 100 px: a false alarm of 1 px is Fa 1e-4. A target at 0.8, another at 0.4, false alarms at 0.6
    # (1 px) and at 0.3 (1 px).
    truth = draw((10, 10, 2, 2), (50, 50, 2, 2), shape=(100, 100))
    probability = np.zeros((100, 100))
    probability[10:12, 10:12], probability[50:52, 50:52] = 0.8, 0.4
    probability[80, 80], probability[90, 20] = 0.6, 0.3
    roc = curve(probability, truth)
    strict, loose = roc.within(0), roc.within(1e-4)
    assert strict is not None
    assert loose is not None
    assert (roc.pd[strict], roc.fa[strict]) == (0.5, 0)
    assert 0.6 <= roc.thresholds[strict] < 0.8
    assert (roc.pd[loose], roc.fa[loose]) == (1, 1e-4)
    assert 0.3 <= roc.thresholds[loose] < 0.4
    best = roc.best_f1()
    assert best is not None
    assert roc.f1[best] == roc.f1.max() == 16 / 17
    table = str(roc).splitlines()
    assert [line.split()[:3] for line in table[1:3]] == [["Fa", "<=", "1e-06"], ["Fa", "<=", "1e-05"]]
    assert table[3].split()[4:] == ["1.0000", "100.00", f"{8 / 9:.4f}", f"{16 / 17:.4f}"]
    assert table[5].split()[:2] == ["highest", "F1"]


def test_json_holds_null_for_what_is_not_defined() -> None:
    content = json.loads(json.dumps(curve(np.zeros((8, 8)), draw(shape=(8, 8))).as_dict(), allow_nan=False))
    assert content["pd"] == [None] * len(THRESHOLDS)
    assert content["fa"] == [0] * len(THRESHOLDS)
    assert content["thresholds"][-1] == 1


@pytest.mark.parametrize(
    ("probability", "truth", "said"),
    [
        (np.zeros((4, 6), np.float32), draw(shape=(6, 4)), "scene: the prediction is 6x4 but the truth 4x6"),
        (np.zeros((4, 6)), draw(shape=(4, 6)), "scene: the prediction is float64"),
        (np.zeros((4, 6), np.float32), np.zeros((4, 6)), "scene: the truth is float64"),
    ],
)
def test_bad_arrays_are_named(probability, truth, said) -> None:
    with pytest.raises(InputError, match=said):
        roc_counts(probability, truth, "scene")


def test_probability_maps_of_every_depth(tmp_path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(np.array([[0, 32767, 32768, 65535]], np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(np.array([[0, 0.25, 0.75, 1]], np.float32)).save(tmp_path / "f.tif")
    for name in ("8.png", "16.png", "f.tif"):
        probability = read_probability(tmp_path / name)
        assert probability.dtype == np.float32
        assert (probability > 0.5).tolist() == [[False, False, True, True]]
        assert (probability[0, 0], probability[0, 3]) == (0, 1)
    Image.fromarray(np.array([[0, 2]], np.float32)).save(tmp_path / "logits.tif")
    Image.fromarray(np.array([[[0, 2, 4]]], np.uint8)).save(tmp_path / "color.png")
    for name, said in (("logits.tif", "from 0 to 2"), ("color.png", "color")):
        with pytest.raises(InputError, match=f"{name}.*{said}"):
            read_probability(tmp_path / name)


# The historical convention


def test_a_false_alarm_as_large_as_a_match_is_hidden_by_the_historical_convention() -> None:
    truth = draw((4, 4, 2, 2))
    prediction = draw((4, 4, 2, 2), (20, 20, 2, 2), (28, 4, 1, 3))
    ours = score_image(prediction, truth)
    theirs = score_image(prediction, truth, None, DNANET)
    assert (ours.detected, ours.false_alarm_pixels) == (1, 7)
    assert (theirs.detected, theirs.false_alarm_pixels) == (1, 3)


def test_the_historical_convention_compares_areas_within_an_image_only() -> None:
    scores = Scores(DNANET)
    scores.update(draw((4, 4, 2, 2)), draw((4, 4, 2, 2)))
    scores.update(draw((20, 20, 2, 2)), draw())
    result = scores.compute()
    assert (result.false_alarm_pixels, result.convention) == (4, "dnanet")
    assert "convention dnanet" in str(result)
    assert result.as_dict()["convention"] == "dnanet"


def test_the_historical_convention_takes_the_first_component_not_the_nearest() -> None:
    # The upper component, 1 px, lies 2 px from the target, the lower one, 2 px, half a pixel.
    prediction, truth = draw((8, 10, 1, 1), (10, 10, 1, 2)), draw((10, 10, 1, 1))
    ours, theirs = (score_image(prediction, truth, None, c) for c in (CANONICAL, DNANET))
    assert ours.detected == theirs.detected == 1
    assert (ours.false_alarm_pixels, theirs.false_alarm_pixels) == (1, 2)


def historical(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """(matches, false-alarm pixels) as the published metric computes them, read independently."""
    components = regionprops(label(prediction, connectivity=2))
    remaining, matched = list(components), []
    for target in regionprops(label(truth, connectivity=2)):
        for component in remaining:
            distance = math.dist(component.centroid, target.centroid)
            if round(distance, 9) < 3:
                matched.append(component)
                remaining.remove(component)
                break
    hidden = {component.area for component in matched}
    return len(matched), int(sum(c.area for c in components if c.area not in hidden))


@st.composite
def sparse_pairs(draw_from: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw_from(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    side, size = st.integers(0, 15), st.integers(1, 3)
    boxes = st.lists(st.tuples(side, side, size, size), max_size=8)
    return draw(*draw_from(boxes), shape=shape), draw(*draw_from(boxes), shape=shape)


@settings(deadline=None, max_examples=200)
@given(sparse_pairs())
def test_the_historical_convention_agrees_with_an_independent_reading(pair) -> None:
    score = score_image(*pair, None, DNANET)
    assert (score.detected, score.false_alarm_pixels) == historical(*pair)


levels = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 6))


@settings(deadline=None, max_examples=60)
@given(levels, st.randoms(use_true_random=False), st.sampled_from([CANONICAL, DNANET]))
def test_the_sweep_agrees_with_single_masks_on_noise(field, random, convention) -> None:
    rng = np.random.default_rng(random.getrandbits(32))
    truth = rng.random(field.shape) < rng.random() / 2
    probability = np.float32(field / 6)
    counts = roc_counts(probability, truth, None, convention)
    for k in np.flatnonzero(np.isin(THRESHOLDS, np.arange(7) / 8)):
        alone = score_image(probability > THRESHOLDS[k], truth, None, convention)
        assert counts.at[k, :2].tolist() == [alone.detected, alone.false_alarm_pixels]


def test_conventions_do_not_mix() -> None:
    with pytest.raises(ValueError, match="dnanet"):
        Scores().merge(Scores(DNANET))
    assert CONVENTIONS.find("canonical") is CANONICAL
    with pytest.raises(InputError, match="'acm'"):
        CONVENTIONS.find("acm")
