"""Scores of any masks against plain numpy, and the vote that trials share with the components."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from component_reference import STEPS, candidates, find_target, gray_steps, score
from test_components import Case, windows_of

from mclc_gpu.data.annotations import CATEGORIES, Point
from mclc_gpu.kernels.components import vote_components
from mclc_gpu.kernels.config import ComponentConfig, TrialConfig
from mclc_gpu.kernels.packed import PackedImages
from mclc_gpu.kernels.scoring import add_shares, score_masks
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels import makers as voting
from mclc_gpu.labels.config import LabelConfig, changed, preset
from mclc_gpu.labels.pipeline import label_images
from mclc_gpu.labels.windows import Window, place_targets, place_window

BACKENDS = ["cpu", "triton"]
DEVICES = {"cpu": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
SHAPES = [(1, 1), (1, 9), (7, 1), (2, 3), (5, 7), (21, 40), (63, 63), (64, 65), (90, 101)]
MASKS = 12


def parts_of(windows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random part of each window that holds its click."""
    parts = windows.clone()
    for part, window in zip(parts, windows.tolist(), strict=True):
        for side in (0, 1):
            begin = int(rng.integers(0, window[5 + side] + 1)) if rng.random() < 0.7 else 0
            end = int(rng.integers(window[5 + side] + 1, window[3 + side] + 1))
            end = end if rng.random() < 0.7 else window[3 + side]
            part[1 + side], part[3 + side], part[5 + side] = (
                window[1 + side] + begin, end - begin, window[5 + side] - begin,
            )  # fmt: skip
    return parts


def random_masks(parts: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Empty, one pixel, full, full but for the window's border, and blobs and noise, of all targets."""
    columns = []
    for part in parts.tolist():
        height, width, row, column = part[3:7]
        y, x = np.mgrid[:height, :width]
        within = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
        masks = [np.zeros_like(within), (y == row) & (x == column), np.ones_like(within), within]
        for k in range(MASKS - len(masks)):
            square = (y - row - rng.normal()) ** 2 + (x - column - rng.normal()) ** 2
            blob = square < rng.uniform(1, 9) ** 2
            noise = rng.random(within.shape) < rng.uniform()
            masks.append((blob if k % 3 else noise) & (within if k % 2 else np.ones_like(within)))
        columns.append(np.stack(masks).reshape(MASKS, -1))
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.uint8))


def reference(
    image: np.ndarray,
    window: list[int],
    part: list[int],
    mask: np.ndarray,
    category: int,
    dark: bool,
    config: ComponentConfig,
) -> float:
    """Score of one mask [height, width of the part]."""
    _, top, left, height, width, *click = window[:7]
    _, part_top, part_left, part_height, part_width = part[:5]
    frame = np.ones(image.shape[:2], bool)
    frame[1:-1, 1:-1] = False
    # A side of the part cuts the mask off only where the image goes on behind it.
    open_sides = np.zeros((part_height, part_width), bool)
    open_sides[0] |= part_top > 0
    open_sides[-1] |= part_top + part_height < image.shape[0]
    open_sides[:, 0] |= part_left > 0
    open_sides[:, -1] |= part_left + part_width < image.shape[1]
    if not 0 < mask.sum() <= config.max_area or (mask & open_sides).any():
        return -np.inf
    area = np.s_[top : top + height, left : left + width]
    steps = gray_steps(image)
    v = (255 * STEPS - steps if dark else steps)[area]
    _, low = find_target(v, tuple(click), config.near)
    whole = np.zeros((height, width), bool)
    y, x = part_top - top, part_left - left
    whole[y : y + part_height, x : x + part_width] = mask
    return score(whole, v, low, frame[area], tuple(click), category, config)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "channels", "config"),
    [
        (np.uint8, 1, ComponentConfig()),
        (np.uint8, 3, ComponentConfig(near=0, max_area=100, core=1.5)),
        (np.uint16, 1, ComponentConfig(radius=8, near=20, category_weight=3.0)),
        (np.float32, 3, ComponentConfig()),
    ],
)
def test_equals_plain_numpy(dtype: type, channels: int, config: ComponentConfig, backend: str) -> None:
    rng = np.random.default_rng(5)
    cases = [Case(seed, shape, dtype, channels) for seed in range(3) for shape in SHAPES]
    if backend == "triton" and DEVICES[backend] == "cpu":  # the interpreter takes its time
        cases, config = cases[4:9:2], replace(config, radius=7)
    images, windows, categories = windows_of(cases, config.radius)
    parts = parts_of(windows, rng)
    masks = random_masks(parts, rng)
    dark = torch.from_numpy(rng.random(len(cases)) < 0.5)
    place = DEVICES[backend]
    there = PackedImages(images.data.to(place), images.table.to(place))
    marked = masks.to(place), categories, dark.to(place)
    found = score_masks(there, windows, parts, *marked, config, backend=backend).cpu()
    assert found.dtype == torch.float32
    sizes = (parts[:, 3] * parts[:, 4]).tolist()
    finite = 0
    for t, own in enumerate(masks.split(sizes, 1)):
        for k in range(MASKS):
            mask = own[k].numpy().reshape(parts[t, 3:5].tolist()) > 0
            args = windows[t].tolist(), parts[t].tolist(), mask, cases[t].category, bool(dark[t]), config
            expected = reference(cases[t].image, *args)
            assert found[k, t].item() == pytest.approx(expected, rel=1e-5, abs=1e-4), (t, k)
            finite += np.isfinite(expected)
    assert found.numel() * 0.1 < finite < found.numel() * 0.9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("polarity", ["bright", "dark"])
def test_a_component_has_the_score_of_the_vote(polarity: str, backend: str) -> None:
    config = ComponentConfig(polarity=polarity)
    cases = [Case(seed, (80, 90), dark=polarity == "dark") for seed in range(6)]
    if backend == "triton" and DEVICES[backend] == "cpu":
        cases, config = cases[:1], replace(config, radius=9, levels=12)
    images, windows, categories = windows_of(cases, config.radius)
    place = DEVICES[backend]
    there = PackedImages(images.data.to(place), images.table.to(place))
    votes = vote_components(there, windows, categories, config, backend=backend)
    for t, (case, window) in enumerate(zip(cases, windows.tolist(), strict=True)):
        top, left, height, width, *click = window[1:7]
        steps = gray_steps(case.image)
        v = (255 * STEPS - steps if polarity == "dark" else steps)[top : top + height, left : left + width]
        seed, low = find_target(v, tuple(click), config.near)
        beyond = np.zeros(v.shape, bool)
        sides = top > 0, top + height < 80, left > 0, left + width < 90
        beyond[0], beyond[-1] = sides[:2]
        beyond[:, 0] |= sides[2]
        beyond[:, -1] |= sides[3]
        found = np.array(candidates(v, seed, low, beyond, config), np.uint8)
        masks = torch.from_numpy(found.reshape(len(found), -1)).to(place)
        own, dark = windows[t : t + 1], votes.dark[t : t + 1]
        judged = score_masks(there, own, own, masks, categories[t : t + 1], dark, config, backend=backend)
        scores = judged[:, 0].double()
        assert scores.max().item() == pytest.approx(votes.score[t].item(), abs=1e-5)
        assert torch.logsumexp(scores, 0).item() == pytest.approx(votes.evidence[t].item(), abs=1e-5)
        # The vote itself is the softmax of these scores.
        tpm = torch.softmax(scores, 0) @ masks.double()
        mapped = votes.tpm[votes.offsets[t] : votes.offsets[t + 1]]
        assert (tpm - mapped).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_are_added_one_after_another(backend: str) -> None:
    rng = np.random.default_rng(3)
    parts = torch.tensor([[0, 0, 0, h, w, 0, 0, 0] for h, w in ((1, 1), (5, 7), (64, 64), (20, 3))])
    masks = random_masks(parts, rng)
    shares = torch.from_numpy(rng.random((MASKS, 4)) * 10.0 ** rng.integers(-12, 3, (MASKS, 4)))
    sums, totals = (torch.from_numpy(rng.random(n)) for n in (masks.shape[1], 4))
    owner = np.repeat(np.arange(4), (parts[:, 3] * parts[:, 4]).numpy())
    expected, whole = sums.numpy().copy(), totals.numpy().copy()
    for k in range(MASKS):
        expected += np.where(masks[k].numpy() > 0, shares[k].numpy()[owner], 0.0)
        whole += shares[k].numpy()
    place = DEVICES[backend]
    moved = [values.to(place) for values in (shares, sums, totals)]
    add_shares(masks.to(place), parts, *moved, backend=backend)
    assert np.array_equal(moved[1].cpu().numpy(), expected)
    assert np.array_equal(moved[2].cpu().numpy(), whole)


def targets(count: int, shape: tuple[int, int] = (70, 80)) -> tuple[list[np.ndarray], list[list[Point]]]:
    """Images with a blob and a click each; of the first three the category is known."""
    cases = [Case(seed, shape) for seed in range(count)]
    category = ["spot", "point", "extended", *([None] * count)]
    clicks = [
        [Point(float(case.click[1]), float(case.click[0]), category[t])] for t, case in enumerate(cases)
    ]
    return [case.image for case in cases], clicks


def test_the_vote_equals_a_brute_force() -> None:
    images, clicks = targets(5)
    images.append(np.full((70, 80), 9, np.uint8))  # flat
    clicks.append([Point(30.0, 31.0)])
    trials = 150
    config = preset("default", trials=trials, trial={"clusters": 7, "intensity": 0.1})
    names = [f"a{i}" for i in range(len(images))]
    found = label_images(images, clicks, config, names=names, seed=4)
    alone = label_images(images, clicks, preset("default"), names=names, seed=4)
    placed, _ = place_targets(images, clicks, names, config, 4)
    mixed = 0
    for t, (target, without) in enumerate(zip(found, alone, strict=True)):
        assert target.trials == trials
        packed = PackedImages.pack([images[t]])
        point = replace(clicks[t][0], category=without.point.category)
        assert target.point == point
        drawn = place_window(70, 80, point, 4, names[t], 0)
        outer = target.window
        top, left = max(drawn.top, outer.top), max(drawn.left, outer.left)
        bottom, right = min(drawn.bottom, outer.bottom), min(drawn.right, outer.right)
        click = outer.top + outer.click_row - top, outer.left + outer.click_column - left
        part = torch.tensor([[0, top, left, bottom - top, right - left, *click, 0]])
        row = [0, outer.top, outer.left, outer.height, outer.width, outer.click_row, outer.click_column, 0]
        window, key = torch.tensor([row]), torch.tensor([placed[t].key])
        known = clicks[t][0].category
        category = torch.tensor([CATEGORIES.index(known) if known else -1])
        votes = vote_components(packed, window, category, config.components)
        masks = run_trials(packed, part, key, config.trial, trials, keep_masks=True).masks
        scores = score_masks(packed, window, part, masks, category, votes.dark, config.components)
        weights = np.exp(np.append(scores[:, 0].double().numpy() - np.log(trials), votes.evidence.numpy()))
        weights = weights / weights.sum() if weights.sum() else np.append(np.zeros(trials), 1.0)
        expected = weights[-1] * without.tpm.astype(float)
        inside = np.s_[top - outer.top : bottom - outer.top, left - outer.left : right - outer.left]
        counted = np.tensordot(weights[:-1], masks.numpy(), 1).reshape(bottom - top, right - left)
        if not votes.flat[0]:
            expected[inside] += counted
        else:
            expected = without.tpm
        assert np.abs(target.tpm - expected).max() < 1e-6
        chosen = expected >= 0.5 * expected.max()
        quotient = expected[chosen].sum() / (chosen.sum() + expected[~chosen].sum())
        assert target.confidence == pytest.approx(0.0 if votes.flat[0] else quotient, abs=1e-5)
        mixed += np.abs(target.tpm - without.tpm).max() > 1e-3
    assert mixed >= 2
    assert found[-1].confidence == 0.0


def test_no_trials_are_the_components_alone() -> None:
    images, clicks = targets(4)
    config = preset("default")
    votes = label_images(images, clicks, config)
    packed = PackedImages.pack(images)
    rows = [(t, *numbers_of(target.window), 0) for t, target in enumerate(votes)]
    known = [CATEGORIES.index(own.category) if own.category else -1 for (own,) in clicks]
    theirs = vote_components(packed, torch.tensor(rows), torch.tensor(known), config.components)
    assert np.array_equal(np.concatenate([target.tpm.ravel() for target in votes]), theirs.tpm.numpy())
    assert [target.trials for target in votes] == [0] * 4


def numbers_of(window: Window) -> tuple[int, ...]:
    return (window.top, window.left, window.height, window.width, window.click_row, window.click_column)


def test_targets_do_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    images, clicks = targets(6)
    config = preset("default", trials=70)
    names = list("abcdef")
    whole = label_images(images, clicks, config, names=names)
    order = [4, 2, 0, 5, 3, 1]
    picked = [[values[i] for i in order] for values in (images, clicks, names)]
    turned = label_images(picked[0], picked[1], config, names=picked[2])
    monkeypatch.setattr(voting, "_MASK_BYTES", 64 * 900)  # a target or two at once
    parted = label_images(images, clicks, config, names=names)
    for i, target in enumerate(whole):
        for other in (turned[order.index(i)], parted[i]):
            assert np.array_equal(target.tpm, other.tpm)
            assert target.confidence == other.confidence
            assert np.array_equal(target.mask, other.mask)


def test_trials_in_other_portions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, clicks = targets(4)
    config = preset("default", trials=70)
    whole = label_images(images, clicks, config)
    monkeypatch.setattr(voting, "_TRIALS", 9)
    for target, other in zip(whole, label_images(images, clicks, config), strict=True):
        assert np.abs(target.tpm - other.tpm).max() < 1e-6


def test_many_trials_settle() -> None:
    images, clicks = targets(4)
    maps = [
        np.concatenate(
            [t.tpm.ravel() for t in label_images(images, clicks, preset("default", trials=number))]
        )
        for number in (0, 200, 800)
    ]
    assert np.abs(maps[2] - maps[1]).max() < 0.05
    assert np.abs(maps[1] - maps[0]).max() > 0.01


def test_several_marks_have_the_mean_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    (image,), ((click,),) = targets(1)
    marks = [(click.x, click.y), (click.x + 1, click.y - 2), (click.x - 1, click.y)]
    config = preset("default", trials=20)
    several = Point(*marks[0], "spot", seeds=tuple(marks[1:]))
    (target,), _ = place_targets([image], [[several]], ["a"], config, 0)
    packed = PackedImages.pack([image])
    window = torch.tensor([[0, *numbers_of(target.window), 0]])
    together, confidence, _ = voting.vote(packed, window, [target], config)
    # The window of the trials is that of all the marks.
    part = voting.trial_windows(packed, window, [target], [9])
    monkeypatch.setattr(voting, "trial_windows", lambda *_: part)
    alone = []
    for x, y in marks:
        window[0, 5], window[0, 6] = int(y + 0.5) - target.window.top, int(x + 0.5) - target.window.left
        alone.append(voting.vote(packed, window, [replace(target, seeds=())], config))
    assert (together - sum(own[0] for own in alone) / 3).abs().max() < 1e-6
    assert confidence.item() == pytest.approx(sum(own[1].item() for own in alone) / 3, abs=1e-6)


@pytest.mark.parametrize("noise", ["salt", "none", "gaussian"])
@pytest.mark.parametrize("method", ["slic", "kmeans"])
def test_images_where_nothing_can_be_clustered(method: str, noise: str) -> None:
    """Constant ones, ones with fewer pixels than clusters, huge values: trials must not break the vote."""
    config = preset("default", trials=3, trial={"method": method, "noise": noise})
    huge = np.full((40, 40), -3e37, np.float32)
    huge[20, 20] = 3e37
    images = [
        np.full((30, 30), 7, np.uint8),
        np.arange(6, dtype=np.uint8).reshape(2, 3) * 40,
        np.uint8([[5]]),
    ]
    clicks = [[Point(3.0, 3.0)], [Point(2.0, 1.0)], [Point(0.0, 0.0)]]
    found = label_images(images, clicks, config)
    found += label_images([huge, huge[:3, :3]], [[Point(20.0, 20.0)], [Point(1.0, 1.0)]], config)
    for target in found:
        assert np.isfinite(target.tpm).all()
        assert 0 <= target.confidence <= 1
        assert target.mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 0}, "window of masks 0 must be a part"),
        ({"masks": (2, 5)}, r"masks must be uint8 \[K, 36\]"),
        ({"dark": 2}, r"dark must be bool \[1\]"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    images = PackedImages.pack([np.zeros((20, 20), np.uint8)])
    window = torch.tensor([[0, 5, 5, 9, 9, 4, 4, 0]])
    part = torch.tensor([[0, 4 if "parts" in change else 6, 6, 6, 6, 3, 3, 0]])
    masks = torch.zeros(change.get("masks", (2, 36)), dtype=torch.uint8)
    dark = torch.zeros(change.get("dark", 1), dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        score_masks(images, window, part, masks, torch.tensor([-1]), dark, ComponentConfig())


@pytest.mark.parametrize(("name", "shape"), [("shares", (2, 3)), ("sums", (35,)), ("totals", (2,))])
def test_bad_shares_are_refused(name: str, shape: tuple[int, ...]) -> None:
    part = torch.tensor([[0, 6, 6, 6, 6, 3, 3, 0]])
    given = {"shares": (2, 1), "sums": (36,), "totals": (1,)} | {name: shape}
    values = [torch.zeros(own, dtype=torch.float64) for own in given.values()]
    with pytest.raises(ValueError, match=f"{name} must be float64"):
        add_shares(torch.zeros((2, 36), dtype=torch.uint8), part, *values)


def test_settings() -> None:
    assert changed(LabelConfig(), trial=TrialConfig(clusters=4)).trial.clusters == 4
    for bad in ({"trials": -1}, {"trials": 2**31 + 1}, {"stop_change": 0.2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            preset("default", **bad)
