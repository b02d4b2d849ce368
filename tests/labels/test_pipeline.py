"""The chain from images and points to masks."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from mclc_gpu import InputError, LabelConfig, Point, TrialConfig, label_images
from mclc_gpu.data.synthetic import scene
from mclc_gpu.kernels.config import CrfConfig
from mclc_gpu.kernels.crf import crf_masks
from mclc_gpu.kernels.masks import window_maps
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.labels.config import PRESETS, preset
from mclc_gpu.labels.pipeline import compose
from mclc_gpu.labels.placing import estimate_areas, estimate_categories

QUICK = LabelConfig(trials=12)


def blob(height=40, width=44, row=20, column=22, radius=3.0, peak=150, dtype=np.uint8, base=60):
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - row, x - column)
    noise = np.random.default_rng(0).integers(0, 4, (height, width))
    return (base + noise + peak * (distance <= radius)).astype(dtype), distance <= radius


@pytest.fixture(scope="module")
def scenes():
    made = [scene(3, i, size=(96, 112)) for i in range(6)]
    points = [[Point(t.x, t.y, t.category) for t in s.targets] for s in made]
    return [s.image for s in made], points, [f"frame_{i}" for i in range(6)], [s.mask for s in made]


def by_name(targets, names):
    return {(names[t.image], t.target): (t.tpm, t.mask, t.window, t.trials) for t in targets}


def same(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[k][0], b[k][0]) and np.array_equal(a[k][1], b[k][1]) and a[k][2:] == b[k][2:]
        for k in a
    )


def test_a_bright_disc_is_found():
    image, truth = blob()
    (target,) = label_images([image], [[Point(22, 20, "spot")]], QUICK)
    mask, tpm = compose(image.shape, [target])
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    assert tpm.max() <= 1
    assert tpm[20, 22] == 1
    assert target.trials == 12
    assert not target.estimated


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_ranges_are_scaled_by_the_window(dtype):
    image, truth = blob(dtype=dtype)
    scaled = (image.astype(np.float64) * 100 + 1000).astype(dtype)
    masks = []
    for version in (image, scaled):
        mask, _ = compose(image.shape, label_images([version], [[Point(22, 20, "spot")]], QUICK))
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9
        masks.append(mask)
    assert np.mean(masks[0] == masks[1]) > 0.995


def test_labels_do_not_depend_on_batch_order_or_company(scenes):
    images, points, names, _ = scenes
    whole = by_name(label_images(images, points, QUICK, names=names), names)
    back = [images[::-1], points[::-1]]
    assert same(whole, by_name(label_images(*back, QUICK, names=names[::-1]), names[::-1]))
    alone = {}
    for image, own, name in zip(images, points, names, strict=True):
        alone |= by_name(label_images([image], [own], QUICK, names=[name]), [name])
    assert same(whole, alone)
    other = by_name(label_images(images, points, QUICK, names=names, seed=1), names)
    assert not same(whole, other)


def test_mixed_dtypes_in_one_call_equal_separate_calls(scenes):
    images, points, names, _ = scenes
    mixed = [image.astype(np.uint16) if i % 2 else image for i, image in enumerate(images)]
    together = by_name(label_images(mixed, points, QUICK, names=names), names)
    for i in range(len(images)):
        alone = by_name(label_images([mixed[i]], [points[i]], QUICK, names=[names[i]]), [names[i]])
        assert same({k: together[k] for k in alone}, alone)


def test_overlapping_windows_take_the_union():
    image, _ = blob()
    second, _ = blob(row=20, column=30)
    both = np.maximum(image, second)
    clicks = [Point(22, 20, "spot"), Point(30, 20, "spot")]
    targets = label_images([both], [clicks], QUICK)
    mask, tpm = compose(both.shape, targets)
    for target in targets:
        assert mask[target.window.area][target.mask].all()
        assert (tpm[target.window.area] >= target.tpm).all()
    assert mask.sum() == (compose(both.shape, targets[::-1])[0]).sum()


def test_stop_rule_ends_early_and_does_not_depend_on_the_batch(scenes):
    images, points, names, _ = scenes
    config = LabelConfig(trials=60, stop_change=0.05)
    whole = by_name(label_images(images, points, config, names=names), names)
    used = {value[3] for value in whole.values()}
    assert max(used) <= 60
    assert min(used) < 60
    key, value = next((k, v) for k, v in whole.items() if 2 <= v[3] < 60)
    i = names.index(key[0])
    alone = by_name(label_images([images[i]], [points[i]], config, names=[names[i]]), [names[i]])
    assert same({k: v for k, v in whole.items() if k[0] == key[0]}, alone)
    # The rule itself, from runs of fixed length: the last step is below T_F, no earlier one is.
    maps = {}
    for k in range(1, value[3] + 1):
        fixed = label_images([images[i]], [points[i]], LabelConfig(trials=k), names=[names[i]])
        maps[k] = next(t.tpm for t in fixed if t.target == key[1]).astype(np.float64)
    steps = [np.linalg.norm(maps[k] - maps[k - 1]) for k in range(2, value[3] + 1)]
    assert steps[-1] < 0.05
    assert all(step >= 0.05 - 1e-6 for step in steps[:-1])
    assert np.allclose(maps[value[3]], value[0])


def test_threshold_is_relative_to_each_windows_own_maximum():
    tpm = torch.tensor([0.2, 0.4, 0.0, 0.28, 0.0, 0.0, 1.0, 0.7, 0.69])
    windows = Windows.pack([(0, 0, 0, 1, width, 0, 0, t) for t, width in enumerate((4, 2, 3))])
    masks = window_maps(tpm, windows, 0.7).masks
    assert masks.tolist() == [0, 1, 0, 1, 0, 0, 1, 1, 0]
    assert window_maps(tpm, windows, 0.0).masks.tolist() == (tpm > 0).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crf_follows_the_image_and_leaves_empty_maps_empty(dtype):
    image, truth = blob(24, 20, 12, 10, 4.0)
    packed = PackedImages.pack([(image.astype(np.float64) * (1 if dtype == np.uint8 else 77)).astype(dtype)])
    windows = Windows.pack([(0, 0, 0, 24, 20, 12, 10, 0), (0, 2, 2, 10, 9, 3, 3, 1)])
    soft = torch.from_numpy(np.where(truth, 0.9, 0.3).astype(np.float32))  # a wrong corner, too weak to stay
    soft[:3, :3] = 0.6
    tpm = torch.cat([soft.reshape(-1), torch.zeros(90)])
    masks = crf_masks(tpm, packed, windows, CrfConfig())
    assert np.array_equal(masks[:480].reshape(24, 20).numpy(), truth)
    assert not masks[480:].any()


def test_masks_are_good_on_synthetic_scenes(scenes):
    images, points, names, truths = scenes
    ious = {}
    for refine in ("crf", "threshold"):
        targets = label_images(images, points, LabelConfig(trials=40, refine=refine), names=names)
        inside = union = 0
        for i, truth in enumerate(truths):
            mask, _ = compose(truth.shape, [t for t in targets if t.image == i])
            inside += (mask & truth).sum()
            union += (mask | truth).sum()
        ious[refine] = inside / union
    assert LabelConfig().refine == "crf"
    assert ious["crf"] > 0.6
    assert ious["threshold"] > 0.6


def areas(image, *clicks):
    return estimate_areas([image], [(0, Point(*click)) for click in clicks], torch.device("cpu"))


@pytest.mark.parametrize(("radius", "category"), [(1.0, "point"), (3.5, "spot"), (7.0, "extended")])
def test_category_is_estimated_from_the_blob(radius, category):
    image, truth = blob(80, 80, 40, 40, radius)
    for version in (image, np.stack([image] * 3, 2), image.astype(np.uint16) * 100):
        (area,) = areas(version, (41, 40))
        assert abs(area - truth.sum()) <= 4  # pixels of noise that touch a disc of the full range
        (target,) = label_images([version], [[Point(41, 40)]], LabelConfig(trials=2))
        assert target.estimated
        assert target.point.category == category


def test_given_category_is_used_unless_estimation_is_asked_for():
    image, _ = blob(80, 80, 40, 40, 3.5)
    for config, category, estimated in (
        (LabelConfig(trials=1), "extended", False),
        (LabelConfig(trials=1, category="estimate"), "spot", True),
    ):
        (target,) = label_images([image], [[Point(40, 40, "extended")]], config)
        assert (target.point.category, target.estimated) == (category, estimated)


def test_estimate_on_flat_and_corner_clicks():
    assert areas(np.full((9, 9), 7, np.uint8), (4, 4), (0, 0)) == [9, 4]
    image, truth = blob(30, 30, 0, 0)
    assert areas(image, (0, 0), (-0.4, -0.4)) == [truth.sum()] * 2


def test_estimates_come_in_the_order_of_the_clicks():
    small, large = blob(80, 80, 40, 40, 1.0), blob(80, 80, 40, 40, 7.0)
    images = [large[0], small[0].astype(np.uint16), small[0]]
    clicks = [(2, Point(40, 40)), (1, Point(40, 40)), (0, Point(40, 40)), (1, Point(41, 40))]
    found = estimate_categories(images, clicks, torch.device("cpu"))
    assert found == ["point", "point", "extended", "point"]
    assert estimate_categories(images, [], torch.device("cpu")) == []


def test_nuaa_categories(nuaa):
    from mclc_gpu.data.datasets import read_list
    from mclc_gpu.data.images import read_image
    from mclc_gpu.data.names import find_files
    from mclc_gpu.data.simulate import simulate_points

    files = find_files(nuaa / "images")
    names = read_list(nuaa / "splits" / "train.txt")[:80]
    points, _ = simulate_points(find_files(nuaa / "masks"), {name: files[name] for name in names})
    images = [read_image(files[name]) for name in points]
    clicks = [(i, point) for i, own in enumerate(points.values()) for point in own]
    found = estimate_categories(images, clicks, torch.device("cpu"))
    right = [category == point.category for category, (_, point) in zip(found, clicks, strict=True)]
    assert np.mean(right) > 0.93


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 0}, "maker 'mclc' takes 1 to"),
        ({"trials": 2**31 + 1}, "takes 1 to 2147483648"),
        ({"category": "guess"}, "given, estimate"),
        ({"refine": "magic"}, "use one of"),
        ({"threshold": 1.5}, "0..1"),
        ({"threshold": float("nan")}, "0..1"),
        ({"stop_change": -1.0}, ">= 0"),
    ],
)
def test_bad_settings_are_named(change, words):
    with pytest.raises(InputError, match=words):
        preset("paper", **change)


def test_presets():
    with pytest.raises(InputError, match="preset"):
        preset("best")
    assert PRESETS["paper"].trial == TrialConfig()
    assert preset("paper", trials=50) == dataclasses.replace(PRESETS["paper"], trials=50)


@pytest.mark.parametrize(
    "config",
    [
        LabelConfig(),
        LabelConfig(trials=7, category="estimate", refine="threshold", threshold=0.4, stop_change=0.02),
        LabelConfig(
            trial=TrialConfig(method="kmeans", noise="gaussian", intensity=0.2, shared_noise=True),
            crf=CrfConfig(bilateral_srgb=3.5, iterations=4, normalization="none"),
        ),
    ],
)
def test_settings_give_their_config_back(config):
    settings = json.loads(json.dumps({"seed": 3, "points": "given", **dataclasses.asdict(config)}))
    assert LabelConfig.from_settings(settings) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"later": 1}, "LabelConfig of another version: with later"),
        ({"crf": {"iterations": 1}}, "CrfConfig of another version: without bilateral_compat"),
        ({"trial": "slic"}, "no TrialConfig: 'slic'"),
        ({"trial": None}, "no TrialConfig"),
        ({"trials": "many"}, "trials is 'many', no int"),
        ({"trials": 1.5}, "trials is '1.5', no int"),
        ({"threshold": True}, "threshold is 'True', no float"),
        ({"trials": 10**30}, "trials is too large"),
        ({"trials": 0}, "trials 0"),
        ({"refine": "magic"}, "refine 'magic'"),
    ],
)
def test_settings_of_another_version_are_refused(change, words):
    settings = {**dataclasses.asdict(LabelConfig()), **change}
    with pytest.raises(InputError, match=re.escape(words)):
        LabelConfig.from_settings(settings)


def test_unusable_targets_are_named():
    flat = np.full((40, 40), 9, np.uint8)
    with pytest.raises(InputError, match=r"frame: target 0 .* constant"):
        label_images([flat], [[Point(5, 5, "spot")]], QUICK, names=["frame"])
    tiny = np.arange(4, dtype=np.uint8).reshape(2, 2)
    with pytest.raises(InputError, match="fewer than the 9 clusters"):
        label_images([tiny], [[Point(0, 0, "point")]], QUICK)
    with pytest.raises(InputError, match="device must be auto, cpu, cuda or cuda:N, got 'tpu'"):
        label_images([flat], [[Point(5, 5, "spot")]], QUICK, device="tpu")
    with pytest.raises(InputError, match="1 images, 0 lists"):
        label_images([tiny], [])
    for span in (1e-40, 3e38):
        extreme = np.zeros((20, 20), np.float32)
        extreme[10, 10] = span
        with pytest.raises(InputError, match="scale the image"):
            label_images([extreme], [[Point(10, 10, "spot")]], QUICK)
    broken = np.full((20, 20), np.nan, np.float32)
    broken[0, 0] = 1
    with pytest.raises(InputError, match="NaN"):
        label_images([broken], [[Point(10, 10, "spot")]])


@pytest.mark.parametrize(
    ("image", "point", "words"),
    [
        (np.zeros(9), Point(1, 1), "float64 [9]"),
        (np.zeros((9, 9, 2)), Point(1, 1), "[9, 9, 2]"),
        (np.zeros((9, 9, 3, 1)), Point(1, 1), "[9, 9, 3, 1]"),
        (np.zeros((0, 9)), Point(1, 1), "[0, 9]"),
        (np.zeros((9, 9), bool), Point(1, 1), "bool"),
        (np.zeros((9, 9), complex), Point(1, 1), "complex128"),
        (np.zeros((9, 9)), Point(float("nan"), 1), "(nan, 1)"),
        (np.zeros((9, 8)), Point(7.5, 1), "outside the 8x9"),
        (np.zeros((9, 8)), Point(1, -0.6), "outside the 8x9"),
    ],
)
def test_images_and_points_without_use_are_named(image, point, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        label_images([image], [[point]], names=["frame"])
    assert str(caught.value).startswith("frame: ")


def test_no_targets_no_labels():
    image, _ = blob()
    assert label_images([image], [[]]) == []
    mask, tpm = compose(image.shape, [])
    assert not mask.any()
    assert not tpm.any()
