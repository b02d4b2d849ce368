"""Every way of marking a target and of making labels: what comes out, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclc_gpu import InputError, LabelConfig, Point, TrialConfig, label_images
from mclc_gpu.data.images import read_mask
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.config import MAKERS, PRESETS, LabelOptions, MakerEntry, preset
from mclc_gpu.labels.folder import LabelRun
from mclc_gpu.labels.makers import WindowMaker, grabcut_mask, marked_mask, window_of
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.replay import trace_targets
from mclc_gpu.labels.run import label_dataset
from mclc_gpu.labels.windows import Window, box_pixels, centered_window, published_window

QUICK = LabelConfig(trials=12)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def disc():
    """A bright disc on noise, and its true mask."""
    y, x = np.mgrid[:48, :52]
    truth = np.hypot(y - 22, x - 25) <= 3.3
    image = 60 + np.random.default_rng(1).integers(0, 5, truth.shape) + 120 * truth
    return image.astype(np.uint8), truth


def labeled(image, point, config):
    (target,) = label_images([image], [[point]], config)
    whole = np.zeros(image.shape[:2], bool)
    whole[target.window.area] = target.mask
    return whole, target


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "point",
    [
        Point(25, 22, "spot"),
        Point(25, 22, "spot", seeds=((24, 22), (26, 23), (25, 20))),
        Point(25, 22, box=(22, 19, 28, 25)),
    ],
    ids=["click", "clicks", "box"],
)
def test_every_preset_labels_every_mark(disc, name, point):
    image, truth = disc
    mask, target = labeled(image, point, preset(name, **({"trials": 12} if name == "paper" else {})))
    assert np.isfinite(target.tpm).all()
    assert 0 <= target.tpm.min() <= target.tpm.max() <= 1
    if name != "point":
        assert iou(mask, truth) > 0.85
    elif point.box is None:
        assert mask.sum() == 1 + len(point.seeds)
        assert mask[22, 25]
    else:
        assert mask[19:26, 22:29].all()
        assert mask.sum() == 49


@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
def test_grabcut_scales_other_types(disc, dtype):
    image, truth = disc
    scaled = (image.astype(np.float64) * 200 + 5000).astype(dtype)
    masks = [labeled(version, Point(25, 22, "spot"), PRESETS["grabcut"])[0] for version in (image, scaled)]
    assert iou(masks[1], truth) > 0.85


def test_lca_is_one_clustering_without_noise(disc):
    image, _ = disc
    _, target = labeled(image, Point(25, 22, "spot"), PRESETS["lca"])
    row = (0, *(getattr(target.window, name) for name in Window.__slots__), 0)
    import torch

    counts = run_trials(
        PackedImages.pack([image]), Windows.pack([row]), torch.tensor([0]), TrialConfig(noise="none"), 1
    ).counts
    assert np.array_equal(counts.numpy().reshape(target.mask.shape) == 1, target.mask)
    kmeans = preset("lca", trial={"method": "kmeans"})
    assert (kmeans.trials, kmeans.trial.noise, kmeans.trial.method) == (1, "none", "kmeans")


def test_mask_and_tpm_stay_inside_the_box(disc):
    image, truth = disc
    box = (24, 18, 27, 26)
    for config in (QUICK, LabelConfig(trials=12, refine="threshold"), PRESETS["grabcut"]):
        mask, target = labeled(image, Point(25.5, 22, box=box), config)
        outside = np.ones(image.shape, bool)
        outside[18:27, 24:28] = False
        assert not mask[outside].any()
        tpm = np.zeros(image.shape, np.float32)
        tpm[target.window.area] = target.tpm
        assert not tpm[outside].any()
        # GrabCut takes the part of the disc outside for background, and so all of it.
        assert (mask & truth).any() or config.maker == "grabcut"


def test_several_clicks_join_what_one_click_leaves_out():
    """Two bright halves with a dark gap: one target for the annotator, two segments for the clustering."""
    image = np.full((40, 40), 50, np.uint8) + np.random.default_rng(0).integers(0, 3, (40, 40)).astype(
        np.uint8
    )
    image[16:22, 12:18] = 200
    image[16:22, 22:28] = 200
    one, _ = labeled(image, Point(14, 18, "spot"), PRESETS["lca"])
    both, _ = labeled(image, Point(14, 18, "spot", seeds=((25, 19),)), PRESETS["lca"])
    assert one[18, 14]
    assert not one[19, 25]
    assert both[18, 14]
    assert both[19, 25]


def test_estimated_category_of_a_box_is_by_its_area(disc):
    image, _ = disc
    for side, category in ((3, "point"), (9, "spot"), (10, "extended")):
        point = Point(25, 22, box=(20, 18, 20 + side - 1, 18 + side - 1))
        _, target = labeled(image, point, QUICK)
        assert target.point.category == category
        assert target.estimated


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.tuples(st.floats(-0.5, 89), st.floats(-0.5, 89)), min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_windows_hold_every_mark(height, width, marks):
    marks = [(min(x, width - 0.51), min(y, height - 0.51)) for x, y in marks]
    point = Point(*marks[0], "point", seeds=tuple(marks[1:]))
    window = published_window((height, width), point, 0, 0)
    assert 0 <= window.top < window.bottom <= height
    assert 0 <= window.left < window.right <= width
    for x, y in marks:
        assert window.top <= min(max(np.floor(y + 0.5), 0), height - 1) < window.bottom
        assert window.left <= min(max(np.floor(x + 0.5), 0), width - 1) < window.right
    assert window.top + window.click_row == min(max(np.floor(marks[0][1] + 0.5), 0), height - 1)


def test_windows_of_boxes():
    point = Point(51.5, 40, box=(50, 40, 53, 40))
    assert box_pixels(point.box, 100, 100) == (50, 40, 54, 41)
    assert published_window((100, 100), point, 0, 0) == Window(37, 46, 7, 12, 3, 6)
    large = Point(50, 50, box=(30, 47, 70, 52))  # three times 41 px would be more than can be clustered
    assert published_window((100, 100), large, 0, 0) == Window(41, 19, 18, 63, 9, 31)
    corner = Point(0, 0, box=(0, 0, 1, 9))
    assert published_window((100, 100), corner, 0, 0) == Window(0, 0, 20, 5, 0, 0)


def test_what_cannot_be_labeled_is_said(disc):
    image = np.pad(disc[0], 100)
    apart, large = Point(100, 100, "spot", seeds=((30, 100),)), Point(75, 60, box=(40, 40, 110, 80))
    points = [[apart, large, Point(9, 9)]]
    _, skipped = place_targets([image], points, ["a"], QUICK, 0)
    reasons = [item.why for item in skipped]
    assert "larger than 64 x 64" in reasons[0]
    assert "larger than 64 x 64" in reasons[1]
    assert "window is constant" in reasons[2]
    placed, skipped = place_targets([image], [[Point(9, 9)]], ["a"], PRESETS["grabcut"], 0)
    assert len(placed) == 1
    assert not skipped


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (2, 9), (5, 5)])
@pytest.mark.parametrize("name", PRESETS)
def test_narrow_images_give_finite_maps(shape, name):
    image = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    image[shape[0] // 2, shape[1] // 2] = 255
    changes = {"trial": {"clusters": 3}} | ({"trials": 5} if name == "paper" else {})
    mask, target = labeled(image, Point(shape[1] // 2, shape[0] // 2, "point"), preset(name, **changes))
    assert np.isfinite(target.tpm).all()
    assert target.tpm.max() == 1
    assert mask.dtype == bool


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (Point(10, 10, seeds=((60, 10),)), r"\(60, 10\) lies outside"),
        (Point(10, 10, seeds=((float("nan"), 10),)), "lies outside"),
        (Point(10, 10, box=(5, 5, 52, 9)), "box .* lies outside"),
        (Point(10, 10, box=(-3, 5, 9, 9)), "box .* lies outside"),
        (Point(10, 10, box=(9, 5, 5, 9)), "box .* right below left"),
        (Point(10, 10, box=(5, 5, float("nan"), 9)), "box .* lies outside"),
    ],
    ids=str,
)
def test_marks_outside_are_refused(disc, point, message):
    with pytest.raises(InputError, match=message):
        label_images([disc[0]], [[point]], QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maker": "sam"}, "maker 'sam'"),
        ({"maker": "grabcut", "trials": 5}, "trials 5"),
        ({"maker": "point"}, "maker 'point' makes no trials; use 1"),
        ({"maker": "components", "trials": 5}, "trials 5: maker 'components' makes no trials; use 0"),
        ({"maker": "components", "trials": -1}, "trials -1: maker 'components' makes no trials"),
        ({"maker": "components", "trials": 0, "stop_change": 0.2}, "stop_change 0.2: maker 'components'"),
        ({"trial": {"clusters": 0}}, "clusters"),
        ({"trial": {"color": 0}}, "color"),
        ({"crf": {"iterations": -1}}, "iterations"),
        ({"crf": {"bilateral_srgb": 0.0}}, "bilateral_srgb"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        preset("paper", **changes)


def test_grabcut_keeps_the_marked_part_only():
    image = np.full((24, 24), 40, np.uint8) + np.random.default_rng(0).integers(0, 6, (24, 24)).astype(
        np.uint8
    )
    image[10:14, 10:14] = 220
    image[3:7, 17:21] = 220
    mask = grabcut_mask(image, [12 * 24 + 12], None)
    assert mask[10:14, 10:14].all()
    assert not mask[3:7, 17:21].any()
    assert np.array_equal(mask, grabcut_mask(image, [12 * 24 + 12], None))


def test_grabcut_of_a_constant_window_is_the_mark():
    mask = grabcut_mask(np.full((9, 9), 7, np.uint8), [40], None)
    assert np.array_equal(mask, marked_mask((9, 9), [40], None))


def test_default_preset_needs_the_click_alone(disc):
    image, truth = disc
    for x, y in ((25, 22), (27, 20), (23, 24)):
        mask, target = labeled(image, Point(x, y), PRESETS["default"])
        assert np.array_equal(mask, truth)
        assert target.estimated
        assert target.point.category == "spot"
        assert target.trials == 0
        assert 0.5 < target.confidence <= 1
    assert np.isnan(labeled(image, Point(25, 22), QUICK)[1].confidence)


def test_default_preset_uses_a_given_category():
    """A small hot core in a wide dim body: the category says which of the two is meant."""
    y, x = np.mgrid[:60, :60]
    radius = np.hypot(y - 30, x - 30)
    image = (
        50 + np.random.default_rng(0).integers(0, 3, radius.shape) + 60 * (radius <= 7) + 90 * (radius <= 1.5)
    )
    image = image.astype(np.uint8)
    core, _ = labeled(image, Point(30, 30, "point"), PRESETS["default"])
    body, _ = labeled(image, Point(30, 30, "extended"), PRESETS["default"])
    assert np.array_equal(core, radius <= 1.5)
    assert np.array_equal(body, radius <= 7)
    ignored = preset("default", category="estimate")
    assert np.array_equal(*(labeled(image, Point(30, 30, c), ignored)[0] for c in ("point", "extended")))


def test_default_preset_on_dark_targets_and_flat_windows(disc):
    image, truth = disc
    dark = 255 - image
    auto = preset("default", components={"polarity": "auto"})
    assert np.array_equal(labeled(dark, Point(25, 22), auto)[0], truth)
    assert np.array_equal(labeled(image, Point(25, 22), auto)[0], truth)
    mask, target = labeled(np.full((30, 30), 9, np.uint8), Point(10, 12), PRESETS["default"])
    assert mask.sum() == 9
    assert mask[11:14, 9:12].all()
    assert target.confidence == 0


def test_default_preset_averages_several_marks():
    image = np.full((50, 50), 40, np.uint8) + np.random.default_rng(0).integers(0, 3, (50, 50)).astype(
        np.uint8
    )
    image[20:24, 10:14] = 200
    image[20:24, 24:28] = 200
    seeds = ((25.0, 22.0), (26.0, 21.0))
    _, target = labeled(image, Point(11, 21, "spot", seeds=seeds), PRESETS["default"])
    tpm = np.zeros(image.shape)
    tpm[target.window.area] = target.tpm
    one = np.zeros(image.shape)
    _, alone = labeled(image, Point(11, 21, "spot"), PRESETS["default"])
    one[alone.window.area] = alone.tpm
    other = np.zeros(image.shape)
    _, alone = labeled(image, Point(25, 22, "spot"), PRESETS["default"])
    other[alone.window.area] = alone.tpm
    np.testing.assert_allclose(tpm, (one + 2 * other) / 3, atol=1e-3)


class Bright(WindowMaker):
    """Pixels brighter than the mean of a window of 11 x 11 pixels."""

    def window(self, shape, point, config, key, index):
        return centered_window(shape, point, 5)

    def check(self, image, window, config):
        return "" if np.ptp(image[window.area]) > 20 else "its window is flat; click on a target"

    def tpm(self, pixels, marks, box, config):
        return pixels > pixels.mean() if box is None else box


def test_a_maker_can_be_added(tmp_path, monkeypatch):
    entry = MakerEntry(Bright, needs_category=False, graded=False)
    monkeypatch.setitem(MAKERS, "bright", entry)
    monkeypatch.setitem(PRESETS, "bright", LabelConfig(maker="bright", trials=1, refine="threshold"))
    write_dataset(tmp_path / "data", 4, 3, size=(64, 72))
    images, masks = tmp_path / "data" / "images", tmp_path / "data" / "masks"
    options = LabelOptions(
        images=images,
        points_from_masks=masks,
        out=tmp_path / "run",
        config=preset("bright", category="estimate"),
    )
    seen = []
    run = label_dataset(options, report=seen.append)
    assert [one.summary for one in seen] == [run.summary]
    opened = LabelRun.open(tmp_path / "run", run.images, run.truths)
    assert opened.config == options.config
    targets = list(opened.targets())
    for stem in opened.rows:
        mask = read_mask(opened.mask(stem))
        windows = opened.windows(stem, mask.shape)
        assert all(max(window.shape) <= 11 for window in windows)
        inside = np.zeros_like(mask)
        for window, row in zip(windows, opened.rows[stem], strict=True):
            assert row.estimated
            inside[window.area] = True
        assert mask.any()
        assert not (mask & ~inside).any()
    assert [trace.changed for trace in trace_targets(opened, targets, "cpu")] == [0] * len(targets)
    flat = np.full((20, 20), 7, np.uint8)
    with pytest.raises(InputError, match="its window is flat"):
        label_images([flat], [[Point(9, 9)]], options.config)


@pytest.mark.parametrize("name", PRESETS)
def test_labels_are_made_in_the_window_that_is_told(disc, name):
    image, _ = disc
    point = Point(25, 22, "spot", seeds=((27, 23),))
    (target,) = label_images([image], [[point]], preset(name), seed=5, names=["frame"])
    assert target.window == window_of(image.shape, point, preset(name), 5, "frame", 0)


def test_a_window_needs_a_category_if_the_maker_does():
    with pytest.raises(InputError, match=r"frame: target 2: unknown category None"):
        window_of((40, 40), Point(9, 9), LabelConfig(), 0, "frame", 2)
    assert window_of((40, 40), Point(9, 9), preset("default"), 0, "frame", 2).shape == (40, 40)
