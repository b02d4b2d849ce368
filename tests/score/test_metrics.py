"""Scores against hand-computed cases and against a slow, independent reading of the definitions."""

import itertools
import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mclc_gpu.cli.main import main
from mclc_gpu.errors import InputError
from mclc_gpu.report.folder import write_report
from mclc_gpu.report.plots import plot_curves
from mclc_gpu.score.metrics import SCORES, Result, Score, Scores, mask_iou, ratio
from mclc_gpu.train.folder import columns, make_row

Box = tuple[int, int, int, int]  # first row, first column, height, width


def mask(*boxes: Box, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    drawn = np.zeros(shape, dtype=bool)
    for row, column, height, width in boxes:
        drawn[row : row + height, column : column + width] = True
    return drawn


def score(prediction: np.ndarray, truth: np.ndarray) -> Result:
    scores = Scores()
    scores.update(prediction, truth)
    return scores.compute()


def test_every_score_of_a_hand_computed_image() -> None:
    # 9 px target predicted one column off, a 4 px target missed, a 2 px false alarm.
    truth = mask((4, 4, 3, 3), (20, 20, 2, 2))
    result = score(mask((4, 5, 3, 3), (28, 2, 1, 2)), truth)
    assert (result.intersection, result.union, result.pixels, result.images) == (6, 9 + 4 + 3 + 2, 1024, 1)
    assert (result.targets, result.detected, result.false_alarm_pixels) == (2, 1, 2)
    assert result.iou == 6 / 18
    assert result.niou == 6 / 18
    assert result.pd == 1 / 2
    assert result.fa == 2 / 1024
    assert result.precision == 6 / 11
    assert result.recall == 6 / 13
    assert result.f1 == pytest.approx(2 / (11 / 6 + 13 / 6))


def test_iou_sums_pixels_and_niou_averages_images() -> None:
    scores = Scores()
    scores.update(mask((0, 0, 1, 1)), mask((0, 0, 1, 1)))
    scores.update(mask((0, 0, 1, 3)), mask((0, 0, 3, 3)))
    result = scores.compute()
    assert result.iou == 4 / 10
    assert result.niou == pytest.approx((1 + 1 / 3) / 2)


def test_an_image_with_two_empty_masks_is_left_out_of_niou_alone() -> None:
    scores = Scores()
    scores.update(mask((0, 0, 1, 2)), mask((0, 0, 1, 4)))
    scores.update(mask(), mask())
    result = scores.compute()
    assert result.niou == 0.5
    assert result.images == 2
    assert result.pixels == 2 * 1024


@pytest.mark.parametrize(
    ("prediction", "truth"), [(mask(), mask((0, 0, 1, 1))), (mask((0, 0, 1, 1)), mask())]
)
def test_one_empty_mask_counts_as_zero(prediction: np.ndarray, truth: np.ndarray) -> None:
    assert score(prediction, truth).niou == 0


def test_no_target_and_no_image_leave_ratios_undefined() -> None:
    nothing = Scores().compute()
    assert nothing.images == 0
    assert all(math.isnan(value) for value in (nothing.iou, nothing.niou, nothing.pd, nothing.fa, nothing.f1))
    clean = score(mask(), mask())
    assert math.isnan(clean.iou)
    assert math.isnan(clean.pd)
    assert clean.fa == 0
    assert clean.categories == {}


@pytest.mark.parametrize(
    ("offset", "detected"), [((0, 3), 0), ((3, 0), 0), ((2, 2), 1), ((0, 2), 1), ((2, 3), 0), ((0, -3), 0)]
)
def test_the_limit_of_three_pixels_is_strict(offset: tuple[int, int], detected: int) -> None:
    row, column = offset
    result = score(mask((10 + row, 10 + column, 1, 1)), mask((10, 10, 1, 1)))
    assert result.detected == detected
    assert result.false_alarm_pixels == 1 - detected


@pytest.mark.parametrize("column", range(2, 20))
def test_the_limit_holds_for_centroids_that_are_rounded_fractions(column: int) -> None:
    corner = mask((4, column, 1, 2), (5, column, 1, 1))  # centroid at a third of a pixel
    assert score(np.roll(corner, 3, axis=1), corner).detected == 0


def test_one_predicted_component_detects_one_of_two_targets() -> None:
    # Both targets lie 2 px from the centroid of the prediction that joins them.
    result = score(mask((8, 8, 1, 5)), mask((8, 8, 1, 1), (8, 12, 1, 1)))
    assert (result.targets, result.detected, result.false_alarm_pixels) == (2, 1, 0)


def test_the_first_target_takes_the_nearest_component_even_if_another_needs_it() -> None:
    # Target 0 could have taken either; it takes the nearer one, the only one that target 1 reaches.
    truth = mask((8, 8, 1, 1), (10, 8, 1, 1))
    near_both, above = (9, 9, 1, 1), (6, 7, 1, 1)
    result = score(mask(near_both, above), truth)
    assert (result.detected, result.false_alarm_pixels) == (1, 1)


def test_of_equally_near_components_the_first_is_taken() -> None:
    # The 4 px one above comes first; the 1 px one below is the false alarm.
    upper, lower = (7, 8, 1, 5), (11, 10, 1, 1)
    result = score(mask(upper, lower), mask((9, 10, 1, 1)))
    assert (result.detected, result.false_alarm_pixels) == (1, 1)


def test_detection_goes_by_centroids_not_by_overlap() -> None:
    long_target = mask((8, 2, 1, 20))
    result = score(mask((8, 2, 1, 4)), long_target)
    assert (result.detected, result.false_alarm_pixels, result.intersection) == (0, 4, 4)
    beside = score(mask((9, 11, 1, 2)), long_target)
    assert (beside.detected, beside.false_alarm_pixels, beside.intersection) == (1, 0, 0)


def test_diagonal_pixels_are_one_component() -> None:
    truth = mask((4, 4, 1, 1), (5, 5, 1, 1), (6, 4, 1, 1))
    assert score(truth, truth).targets == 1


def test_categories_by_true_area() -> None:
    # point: 4 px, predicted whole with 1 px too much; spot: 25 px, missed; extended: 100 px, half predicted.
    truth = mask((2, 2, 2, 2), (2, 12, 5, 5), (15, 5, 10, 10))
    prediction = mask((2, 2, 2, 2), (4, 2, 1, 1), (15, 5, 10, 5), (28, 28, 2, 2))
    categories = score(prediction, truth).categories
    assert list(categories) == ["point", "spot", "extended"]
    point, spot, extended = categories.values()
    assert (point.iou, point.pd, point.targets, point.detected) == (4 / 5, 1, 1, 1)
    assert (spot.iou, spot.pd) == (0, 0)
    assert (extended.iou, extended.pd) == (50 / 100, 1)


@pytest.mark.parametrize(("area", "category"), [(9, "point"), (10, "spot"), (81, "spot"), (82, "extended")])
def test_limits_of_the_categories(area: int, category: str) -> None:
    truth = mask((0, 0, 1, area), shape=(4, 100))
    assert list(score(truth, truth).categories) == [category]


def test_a_component_over_two_targets_burdens_the_one_it_covers_most() -> None:
    truth = mask((4, 4, 2, 2), (4, 10, 5, 5))
    prediction = mask((4, 4, 5, 11))
    categories = score(prediction, truth).categories
    assert categories["point"].iou == 1
    assert categories["spot"].iou == 25 / (25 + 55 - 25 - 4)


def test_a_matched_component_without_overlap_burdens_its_target() -> None:
    result = score(mask((4, 6, 1, 1)), mask((4, 4, 1, 1)))
    assert result.categories["point"].iou == 0
    assert result.detected == 1
    assert result.union == 2


masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 11)), elements=st.booleans())


@st.composite
def sparse_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Masks of small boxes, alone and touching, so that many components are near each other."""
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    boxes = st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(1, 3), st.integers(1, 3)), max_size=8
    )
    return mask(*draw(boxes), shape=shape), mask(*draw(boxes), shape=shape)


def flood(pixels: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected components as lists of pixels, in raster order of their first pixels."""
    left = {(int(r), int(c)) for r, c in np.argwhere(pixels)}
    components = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        component, front = [start], [start]
        while front:
            row, column = front.pop()
            for near in itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1)):
                if near in left:
                    left.remove(near)
                    component.append(near)
                    front.append(near)
        components.append(component)
    return components


def squared_distance(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> float:
    (ay, ax), (by, bx) = ([sum(axis) / len(c) for axis in zip(*c, strict=True)] for c in (a, b))
    return (ay - by) ** 2 + (ax - bx) ** 2


def brute_force(prediction: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    true, predicted = flood(truth), flood(prediction)
    free = list(range(len(predicted)))
    owner: dict[int, int] = {}
    for t, target in enumerate(true):
        near = sorted((round(squared_distance(predicted[p], target), 9), p) for p in free)
        if near and near[0][0] < 9:
            owner[near[0][1]] = t
            free.remove(near[0][1])
    detected = len(owner)
    for p, component in enumerate(predicted):
        shared = [len(set(component) & set(target)) for target in true]
        if any(shared):
            owner[p] = shared.index(max(shared))
    every = set(itertools.chain(*true))
    leaks = [len(set(component) - every) for component in predicted]
    unions = [len(t) + sum(leaks[p] for p in owner if owner[p] == n) for n, t in enumerate(true)]
    small = [n for n, target in enumerate(true) if len(target) <= 9]
    return {
        "intersection": len(every & set(itertools.chain(*predicted))),
        "union": len(every | set(itertools.chain(*predicted))),
        "targets": len(true),
        "detected": detected,
        "false_alarm_pixels": sum(len(predicted[p]) for p in free),
        "points": len(small),
        "point_intersection": sum(len(set(true[n]) & set(itertools.chain(*predicted))) for n in small),
        "point_union": sum(unions[n] for n in small),
    }


def check_against_brute_force(prediction: np.ndarray, truth: np.ndarray) -> None:
    counts = Scores().update(prediction, truth)
    point = counts.categories.get("point")
    assert brute_force(prediction, truth) == {
        "intersection": counts.intersection,
        "union": counts.union,
        "targets": counts.targets,
        "detected": counts.detected,
        "false_alarm_pixels": counts.false_alarm_pixels,
        "points": point.targets if point else 0,
        "point_intersection": point.intersection if point else 0,
        "point_union": point.union if point else 0,
    }
    assert sum(one.intersection for one in counts.categories.values()) == counts.intersection
    assert sum(one.detected for one in counts.categories.values()) == counts.detected
    assert sum(one.targets for one in counts.categories.values()) == counts.targets


@settings(deadline=None, max_examples=200)
@given(sparse_pairs())
def test_agrees_with_brute_force_on_boxes(pair: tuple[np.ndarray, np.ndarray]) -> None:
    check_against_brute_force(*pair)


@settings(deadline=None, max_examples=100)
@given(masks, st.randoms(use_true_random=False))
def test_agrees_with_brute_force_on_noise(truth: np.ndarray, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    check_against_brute_force(rng.random(truth.shape) < rng.random(), truth)


def random_scores(names: Sequence[str | None], seed: int = 0) -> Scores:
    scores = Scores()
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index if name is None else int(name)])
        prediction, truth = rng.random((2, 20, 30)) < rng.uniform(0.02, 0.3)
        scores.update(prediction, truth, name)
    return scores


def test_merging_in_any_order_equals_one_run() -> None:
    names = [str(index) for index in range(12)]
    whole = random_scores(names).compute()
    parts = [random_scores(names[start::3]) for start in range(3)]
    for order in itertools.permutations(parts):
        merged = Scores()
        for part in order:
            merged.merge(part)
        assert merged.compute() == whole
    assert parts[0].compute().images == 4


def test_merging_counts_repeated_images_once() -> None:
    # Samplers hand out images twice when the number of processes does not divide their number.
    merged = random_scores(["0", "1"])
    merged.merge(random_scores(["2", "0"]))
    assert merged.compute() == random_scores(["0", "1", "2"]).compute()


def test_images_without_names_are_all_counted() -> None:
    merged = random_scores([None, None])
    merged.merge(random_scores([None, None]))
    assert merged.compute().images == 4


def test_scores_travel_between_processes() -> None:
    scores = random_scores(["0", "1", "2"])
    assert pickle.loads(pickle.dumps(scores)).compute() == scores.compute()


def test_json_holds_null_for_what_is_not_defined() -> None:
    empty = json.loads(json.dumps(score(mask(), mask()).as_dict(), allow_nan=False))
    assert empty["iou"] is None
    assert empty["fa"] == 0
    full = score(mask((0, 0, 2, 2)), mask((0, 0, 2, 2))).as_dict()
    assert json.loads(json.dumps(full))["categories"]["point"] == {
        "iou": 1,
        "pd": 1,
        "targets": 1,
        "detected": 1,
    }


def test_printed_table() -> None:
    text = str(score(mask((4, 5, 3, 3), (28, 2, 1, 2)), mask((4, 4, 3, 3), (20, 20, 2, 2))))
    headings, values, counts, point = text.splitlines()
    assert headings.split() == ["IoU", "nIoU", "Pd", "Fa", "x1e-6", "precision", "recall", "F1"]
    assert values.split() == ["0.3333", "0.3333", "0.5000", "1953.12", "0.5455", "0.4615", "0.5000"]
    assert counts == "1 images, 1 of 2 targets detected, 2 false-alarm pixels"
    assert point.split() == ["point", "IoU", "0.3750", "Pd", "0.5000", "(1", "of", "2", "detected)"]
    assert "n/a" in str(score(mask(), mask()))


@pytest.mark.parametrize(
    ("prediction", "truth", "said"),
    [
        (mask(shape=(4, 6)), mask(shape=(6, 4)), "scene_7: the prediction is 6x4 but the truth 4x6"),
        (mask().astype(np.uint8), mask(), "scene_7: the prediction is uint8"),
        (mask(), np.zeros((3, 32, 32), bool), r"scene_7: the truth is bool of shape \(3, 32, 32\)"),
        (mask(shape=(0, 5)), mask(shape=(0, 5)), "scene_7: the prediction is bool of shape"),
    ],
)
def test_bad_masks_are_named(prediction: np.ndarray, truth: np.ndarray, said: str) -> None:
    scores = Scores()
    with pytest.raises(InputError, match=said) as caught:
        scores.update(prediction, truth, "scene_7")
    assert "\n" not in str(caught.value)
    assert scores.compute().images == 0


def test_an_image_scored_twice_is_named() -> None:
    scores = random_scores(["3"])
    with pytest.raises(InputError, match="3: scored twice"):
        scores.update(mask(), mask(), "3")


def test_iou_of_two_masks():
    mask = np.zeros((4, 5), bool)
    mask[:2, :3] = True
    truth = np.roll(mask, 1, axis=1)
    assert mask_iou(mask, truth) == 4 / 8
    assert mask_iou(mask, mask) == 1
    assert mask_iou(mask, ~mask) == 0
    assert math.isnan(mask_iou(mask & ~mask, mask & ~mask))


def test_a_score_added_at_run_time_is_in_every_output(monkeypatch, tmp_path, capsys) -> None:
    dice = Score(
        "Dice",
        lambda c: ratio(200 * c.intersection, c.predicted + c.true),
        by_category=True,
        unit="in %",
        digits=1,
        panel="IoU",
    )
    monkeypatch.setitem(SCORES, "dice", dice)
    monkeypatch.setitem(SCORES, "image_dice", replace(dice, label="mean Dice", image_mean=True))
    truth = mask((4, 4, 3, 3), (20, 20, 2, 2))
    for name, pixels in (("pred", mask((4, 5, 3, 3))), ("truth", truth)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.uint8(pixels) * 255).save(tmp_path / name / "a.png")
    report, page = tmp_path / "scores.json", tmp_path / "page.html"
    words = ["score", "--pred", tmp_path / "pred", "--truth", tmp_path / "truth", "--json", report]
    words += ["--report", page, "--roc", tmp_path / "roc.png"]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("F1  Dice in %  mean Dice in %")
    assert shown[1].split()[-2:] == ["54.5", "54.5"]
    assert "Dice in % 54.5" in shown[3]
    content = json.loads(report.read_text())
    assert content["dice"] == content["image_dice"] == 200 * 6 / 22
    assert content["categories"]["point"]["dice"] == 200 * 6 / 22
    assert max(content["roc"]["dice"]) == content["dice"]
    assert "image_dice" not in content["roc"]
    assert "Dice in %" in page.read_text()

    scores = Scores()
    scores.update(mask((4, 5, 3, 3)), truth, "a")
    write_report(tmp_path / "report", title="Run", scores=scores)
    lines = (tmp_path / "report" / "report.md").read_text().splitlines()
    assert [line for line in lines if "| Dice in % |" in line]
    assert json.loads((tmp_path / "report" / "scores.json").read_text())["dice"] == content["dice"]
    assert columns()[-2:] == ["dice", "image_dice"]
    row = make_row(1, 2.5, 0.1, 0.5, 0.2, scores.compute().as_dict())
    assert row["dice"] == content["dice"]
    (tmp_path / "metrics.csv").write_text(f"epoch,dice\n1,{row['dice']}\n")
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
