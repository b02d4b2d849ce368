"""Vote of components against plain numpy, on both backends, in any batch, and on real images."""

from dataclasses import astuple, replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from aot_table import variants
from component_reference import reference_votes
from devices import BACKENDS, device_of, on_cpu

from mclc_gpu.data.annotations import CATEGORIES, category_of
from mclc_gpu.data.datasets import find_split, read_list
from mclc_gpu.data.images import luma, read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import hot_scene
from mclc_gpu.kernels.components import ComponentVotes, component_windows, vote_components
from mclc_gpu.kernels.config import CATEGORY_AREAS, OUTLINES, ComponentConfig
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.score.metrics import Scores

CONFIG = ComponentConfig()


class Case:
    """An image with a blob, and a click near it."""

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int],
        dtype: type = np.uint8,
        channels: int = 1,
        spread: float = 2.5,
        dark: bool = False,
    ):
        rng = np.random.default_rng([seed, *shape])
        y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
        row, column = (rng.uniform(-0.5, side - 0.5) for side in shape)
        gray = 70 + rng.uniform(-0.5, 0.5) * y + rng.uniform(-0.5, 0.5) * x + rng.normal(0, 3, shape)
        near = rng.uniform(15, 150) * np.exp(-((y - row) ** 2 + ((x - column) * 0.8) ** 2) / spread**2)
        gray += -0.4 * near if dark else near
        if channels == 3:
            gray = gray[..., None] + rng.normal(0, 2, (*shape, 3))
        if dtype is np.uint8:
            gray = gray.clip(0, 255)
        self.image = (gray if dtype is np.uint8 else gray * 150.3).astype(dtype)
        click = np.floor(np.array([row, column]) + rng.normal(0, 1.2, 2) + 0.5).astype(int)
        self.click = tuple(min(max(int(c), 0), side - 1) for c, side in zip(click, shape, strict=True))
        self.category = int(rng.integers(-1, 3))


def windows_of(
    cases: list[Case], radius: int, device: torch.device | str = "cpu"
) -> tuple[PackedImages, Windows, torch.Tensor]:
    images = PackedImages.pack([case.image for case in cases], device)
    clicks = torch.tensor([(i, *case.click) for i, case in enumerate(cases)]).reshape(-1, 3)
    categories = torch.tensor([case.category for case in cases], dtype=torch.int64)
    return images, component_windows(images, clicks, radius), categories


def vote(cases: list[Case], config: ComponentConfig, backend: str | None = None) -> ComponentVotes:
    images, windows, categories = windows_of(cases, config.radius, device_of(backend))
    pixels = []
    for case, (_, *window) in zip(cases, windows.table.tolist(), strict=True):
        pixels.append([row * window[3] + column for row, column in others_of(case, window)])
    others = Marks.pack(pixels)
    return on_cpu(vote_components(images, windows, categories, config, others=others, backend=backend))


def others_of(case: Case, window: list[int]) -> list[tuple[int, int]]:
    return case.other_places(window) if isinstance(case, Crowd) else []


def map_of(votes: ComponentVotes, t: int) -> np.ndarray:
    return votes.tpm[votes.offsets[t] : votes.offsets[t + 1]].numpy()


def check(cases: list[Case], config: ComponentConfig, backend: str = "cpu") -> ComponentVotes:
    """Return the votes, after a comparison with plain numpy."""
    _, windows, _ = windows_of(cases, config.radius)
    votes = vote(cases, config, backend)
    for t, (case, window) in enumerate(zip(cases, windows.table.tolist(), strict=True)):
        image, place = case.image, window[1:7]
        dark = config.polarity == "dark"
        others = others_of(case, place)
        theirs = reference_votes(image, place, case.category, config, dark, others)
        if config.polarity == "auto":
            other = reference_votes(image, place, case.category, config, True, others)
            dark = other.score > theirs.score + config.dark_margin
            theirs = other if dark else theirs
        assert np.abs(map_of(votes, t) - theirs.tpm.ravel()).max() < 1e-6, t
        assert (votes.area[t], votes.flat[t], votes.dark[t]) == (theirs.area, theirs.flat, dark), t
        assert votes.confidence[t].item() == pytest.approx(theirs.confidence, abs=1e-6), t
        assert votes.score[t].item() == pytest.approx(theirs.score, rel=1e-5, abs=1e-4), t
        assert (map_of(votes, t) >= 0.5).sum() == theirs.area, t
    return votes


class Crowd(Case):
    """A blob among others, with a click near each."""

    def __init__(self, seed: int, shape: tuple[int, int], dtype: type = np.uint8, number: int = 5):
        super().__init__(seed, shape, dtype)
        rng = np.random.default_rng([seed, *shape, number])
        y, x = np.mgrid[: shape[0], : shape[1]]
        gray, top = self.image.astype(np.float64), 255 if dtype is np.uint8 else np.inf
        self.others = []
        for _ in range(number):
            row, column = self.click + rng.normal(0, 5, 2)
            height = rng.uniform(0.2, 0.8) * (gray.max() - gray.min() + 30)
            gray += height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / rng.uniform(2, 12))
            place = np.floor([row, column] + rng.normal(0, 1, 2) + 0.5).clip(0, np.array(shape) - 1)
            self.others.append((int(place[0]), int(place[1])))
        self.image = gray.clip(0, top).astype(dtype)

    def other_places(self, window: list[int]) -> list[tuple[int, int]]:
        """Rows and columns in a window (top, left, height, width) of the clicks in it."""
        top, left, height, width = window[:4]
        places = [(row - top, column - left) for row, column in self.others]
        return [(row, column) for row, column in places if 0 <= row < height and 0 <= column < width]


SHAPES = [(1, 1), (1, 9), (7, 1), (2, 3), (3, 3), (5, 7), (21, 40), (63, 63), (64, 65), (90, 101)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_equals_plain_numpy(dtype: type, channels: int) -> None:
    cases = [Case(seed, shape, dtype, channels) for seed in range(5) for shape in SHAPES]
    votes = check(cases, CONFIG)
    assert int(votes.flat.sum()) < 15
    assert len(votes.area.unique()) > 15
    assert not votes.dark.any()


@pytest.mark.parametrize(
    "config",
    [
        ComponentConfig(levels=1),
        ComponentConfig(levels=7, near=0),
        ComponentConfig(levels=254, radius=20, near=9),
        ComponentConfig(radius=4, near=2, max_area=20),
        ComponentConfig(core=1.5, body=0.7, category_weight=2.0),
        ComponentConfig(weights=replace(CONFIG.weights, level=-1.0, edge=2.0, rim=0.0)),
        ComponentConfig(polarity="dark"),
        ComponentConfig(polarity="auto", dark_margin=0.5),
        ComponentConfig(max_area=1, near=31),
    ],
    ids=repr,
)
def test_equals_plain_numpy_with_other_settings(config: ComponentConfig) -> None:
    cases = [
        Case(seed, shape, dark=seed % 2 == 0) for seed in range(6) for shape in [(48, 37), (9, 80), (20, 30)]
    ]
    votes = check(cases, config)
    if config.polarity == "auto":
        assert 0 < int(votes.dark.sum()) < len(cases)
    else:
        assert bool((votes.dark == (config.polarity == "dark")).all())


@pytest.mark.parametrize("opening", [0, 1, 13, 17, 63])
def test_crowds_equal_plain_numpy(opening: int) -> None:
    config = ComponentConfig(opening=opening, levels=30)
    shapes = [(48, 37), (9, 80), (64, 64), (20, 30), (7, 5), (1, 20)]
    for dtype in (np.uint8, np.float32):
        check([Crowd(i, shape, dtype, n) for i, shape in enumerate(shapes) for n in (1, 3, 9)], config)


def test_touching_targets_share_the_saddle() -> None:
    case = Crowd(0, (40, 60), number=0)
    y, x = np.mgrid[:40, :60]
    for gap in (5, 7, 12):
        spots = [np.exp(-((y - 20) ** 2 + (x - column) ** 2) / 4) for column in (20, 20 + gap)]
        case.image = (30 + 60 * spots[0] + 120 * spots[1]).astype(np.uint8)  # dimmer than the other
        case.click, case.others, case.category = (20, 20), [(20, 20 + gap)], -1
        mask = map_of(check([case], CONFIG), 0).reshape(-1, 52)[:40, :60] >= 0.5
        columns = np.flatnonzero(mask.any(0))
        assert mask[20, 20]
        assert columns.max() - 20 <= gap / 2
        assert 6 <= mask.sum() <= 30


@pytest.mark.parametrize(
    ("config", "dtype", "channels", "shapes"),
    [
        (ComponentConfig(radius=12, near=2, levels=9), np.uint8, 1, [(29, 25), (20, 9), (1, 5)]),
        (ComponentConfig(radius=5, near=3, levels=5, polarity="auto"), np.float32, 3, [(9, 30), (12, 11)]),
        (ComponentConfig(radius=3, levels=1, max_area=9, polarity="dark"), np.uint8, 3, [(8, 7), (1, 1)]),
    ],
    ids=["gray", "color", "one level"],
)
def test_triton_equals_cpu(config: ComponentConfig, dtype: type, channels: int, shapes: list) -> None:
    cases = [Case(i, shape, dtype, channels, dark=i == 1) for i, shape in enumerate(shapes)]
    for case in cases:
        case.image[-1] = case.image.min()  # a seam that targets can be followed along, and equal values
    ours, theirs = check(cases, config, "triton"), vote(cases, config, "cpu")
    assert torch.equal(ours.area, theirs.area)
    assert torch.equal(ours.dark, theirs.dark)
    assert torch.equal(ours.flat, theirs.flat)
    assert torch.allclose(ours.tpm, theirs.tpm, rtol=0, atol=1e-6)
    assert torch.allclose(ours.confidence, theirs.confidence, rtol=0, atol=1e-6)
    assert torch.allclose(ours.score, theirs.score)


@pytest.mark.parametrize(("dtype", "opening"), [(np.uint8, 7), (np.float32, 0)])
def test_triton_equals_cpu_in_crowds(dtype: type, opening: int) -> None:
    config = ComponentConfig(radius=12, levels=9, opening=opening)
    cases = [Crowd(i, (25, 22), dtype, number) for i, number in enumerate((0, 1, 4))]
    y, x = np.mgrid[:25, :22]
    cases[0].image[:] = np.where(np.hypot(y - 12, x - 11) < 6, 90, 20)  # hidden by the opening
    cases[0].click = 12, 11
    ours, theirs = check(cases, config, "triton"), vote(cases, config, "cpu")
    assert torch.equal(ours.tpm, theirs.tpm)
    assert torch.equal(ours.area, theirs.area)
    assert torch.allclose(ours.score, theirs.score)


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_and_ties(backend: str) -> None:
    case = Case(0, (16, 15))
    case.image[:] = 20
    case.image[6:9, 6:9] = 90
    case.image[11, 5] = case.image[11, 9] = 80  # equally far from a click between them
    case.click, case.category = (7, 7), -1
    for limit, flat in ((9, False), (8, True)):
        config = ComponentConfig(radius=6, near=2, levels=4, max_area=limit)
        assert bool(check([case], config, backend).flat) == flat
    case.click = (13, 7)
    votes = check([case], ComponentConfig(radius=6, near=5, levels=2), backend)
    window = votes.tpm.reshape(-1, 13)
    assert (int(votes.area), window.argmax().item()) == (1, 4 * 13 + 4)


def test_windows_that_do_not_follow_the_click() -> None:
    case = Case(3, (70, 80))
    row, column = case.click
    images = PackedImages.pack([case.image])
    for height, width, above, before in [(9, 64, 4, 20), (12, 11, 0, 10), (64, 8, 30, 3), (1, 1, 0, 0)]:
        top, left = min(max(row - above, 0), 70 - height), min(max(column - before, 0), 80 - width)
        place = [top, left, height, width, row - top, column - left]
        ours = vote_components(images, Windows.pack([(0, *place, 0)]), torch.tensor([-1]), CONFIG)
        theirs = reference_votes(case.image, place, -1, CONFIG)
        assert np.abs(ours.tpm.numpy() - theirs.tpm.ravel()).max() < 1e-6
        assert bool(ours.flat) == theirs.flat


def test_constant_images_are_flat() -> None:
    cases = [Case(1, shape) for shape in SHAPES]
    for case in cases:
        case.image[:] = 7
        case.category = 1
    for polarity in ("bright", "dark", "auto"):
        votes = check(cases, ComponentConfig(polarity=polarity))
        assert bool(votes.flat.all())
        assert bool((votes.confidence == 0).all())
    for case in cases:
        case.image = case.image.astype(np.float32) * 1e30
    assert bool(check(cases, CONFIG).flat.all())


def test_targets_of_one_pixel() -> None:
    cases = [Case(seed, (40, 40), spread=0.2) for seed in range(6)]
    places = [(20, 20), (0, 0), (39, 17), (5, 39), (39, 39), (0, 3)]
    for case, place in zip(cases, places, strict=True):
        case.image[:] = case.image // 16
        case.image[place] = 200
        case.click = tuple(min(max(c + d, 0), 39) for c, d in zip(place, (1, -1), strict=True))
        case.category = -1
    votes = check(cases, CONFIG)
    assert votes.area.tolist() == [1] * 6
    assert bool((votes.confidence > 0.9).all())


def test_overlapping_targets_and_leaks_stop_at_the_limits() -> None:
    case = Case(0, (100, 100))
    case.image[:] = 20
    case.image[40:60, 40:60] = 90
    case.image[:, 70:] = 200
    case.click = (49, 49)
    for limit, area in ((1000, 400), (400, 400)):
        assert check([case], ComponentConfig(max_area=limit)).area.tolist() == [area]
    assert bool(check([case], ComponentConfig(max_area=399)).flat.all())
    assert bool(check([case], ComponentConfig(radius=10, near=3)).flat.all())


@pytest.mark.parametrize(
    ("dtype", "gain", "offset"), [(np.uint16, 16, 500), (np.float32, 2.0**-9, -1.0), (np.float64, -0.5, 3.0)]
)
def test_gain_and_offset_of_deep_images_do_not_matter(dtype: type, gain: float, offset: float) -> None:
    cases = [Case(seed, (50, 60)) for seed in range(8)]
    for case in cases:
        case.image[0, :2] = 0, 255  # the stretch is then none
    byte = vote(cases, CONFIG)
    for case in cases:
        case.image = (case.image * np.float64(gain) + offset).astype(dtype)
    deep = vote(cases, ComponentConfig(polarity="dark" if gain < 0 else "bright"))
    assert torch.equal(deep.tpm, byte.tpm)
    assert torch.equal(deep.area, byte.area)
    assert torch.equal(deep.confidence, byte.confidence)


def test_colors_count_by_their_luma() -> None:
    rng = np.random.default_rng(4)
    colors = rng.integers(0, 256, (30, 30, 3)).astype(np.uint8)
    gray, colored = Case(1, (30, 30)), Case(1, (30, 30))
    gray.image, colored.image = luma(colors), colors
    colored.image[0, :2], gray.image[0, :2] = [[0], [255]], [0, 255]
    one, other = vote([gray], CONFIG), vote([colored], CONFIG)
    assert torch.allclose(one.tpm, other.tpm, atol=1e-3)
    assert not bool(one.flat)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outlines_are_drawn_at_the_core_the_edge_or_around_the_body(backend: str) -> None:
    assert CONFIG.outline == "edge"
    assert CONFIG.score_weights() == astuple(CONFIG.weights)
    scenes = [hot_scene(0, index) for index in range(4)]
    images = PackedImages.pack([scene.image for scene in scenes], device_of(backend))
    places = [(i, round(scene.targets[0].y), round(scene.targets[0].x)) for i, scene in enumerate(scenes)]
    windows, unknown = component_windows(images, torch.tensor(places)), torch.full((4,), -1)
    areas = {
        outline: vote_components(images, windows, unknown, replace(CONFIG, outline=outline), backend=backend)
        .area.cpu()
        .numpy()
        for outline in OUTLINES
    }
    truth = np.array([scene.targets[0].area for scene in scenes])
    assert (areas["core"] <= areas["edge"]).all()
    assert (areas["edge"] < 0.5 * truth).all()
    assert (areas["body"] > 0.6 * truth).all()
    assert (areas["body"] < 1.2 * truth).all()
    with pytest.raises(ValueError, match="outline must be one of"):
        ComponentConfig(outline="rim")


def test_categories() -> None:
    assert CATEGORIES == ("point", "spot", "extended")
    for category, (least, most) in zip(CATEGORIES, CATEGORY_AREAS, strict=True):
        assert category_of(least) == category_of(most) == category
    areas = []
    for category in range(3):
        case = Case(2, (60, 60), spread=5.0)
        y, x = np.mgrid[:60, :60]
        case.image[:] = 40 + 60 * np.exp(-((y - 30) ** 2 + (x - 30) ** 2) / 60)
        case.click, case.category = (30, 30), category
        areas.append(int(check([case], CONFIG).area))
    assert areas[0] < 20 < areas[1] <= CATEGORY_AREAS[1][1] + 20 < areas[2]


def test_a_target_does_not_depend_on_the_batch() -> None:
    config = ComponentConfig(polarity="auto", dark_margin=0.0)
    for dtype in (np.uint8, np.float32):
        cases = [Case(20 + i, shape, dtype) for i, shape in enumerate([(30, 40), (5, 5), (80, 80), (30, 41)])]
        together = vote(cases, config)
        threads = numba.get_num_threads()
        for chosen in ([3, 1, 0, 2], [2], [0, 3], [1, 1, 0]):
            numba.set_num_threads(1 if len(chosen) == 4 else threads)
            try:
                votes = vote([cases[i] for i in chosen], config)
            finally:
                numba.set_num_threads(threads)
            for place, i in enumerate(chosen):
                assert (map_of(votes, place) == map_of(together, i)).all()
                for name in ("confidence", "area", "score", "dark", "flat"):
                    assert getattr(votes, name)[place] == getattr(together, name)[i]


VARIANTS = """
import numpy as np, torch
from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import ComponentConfig
from mclc_gpu.kernels.packed import PackedImages
for number in (1, 2, 300):
    for height, width in ((1, 1), (9, 16), (64, 64), (70, 81)):
        images = PackedImages.pack([np.zeros((height, width), np.uint8)])
        for polarity in ("bright", "dark", "auto"):
            config = ComponentConfig(radius=1 if number == 1 else 31, near=number % 2, polarity=polarity)
            windows = component_windows(images, torch.zeros(number, 3, dtype=torch.int64), config.radius)
            categories = torch.zeros(number, dtype=torch.int64)
            vote_components(images, windows, categories, config, backend="triton")
"""


def test_one_variant_of_the_kernel_serves_all_windows() -> None:
    assert variants(VARIANTS) == {"components": 1}


@pytest.fixture(scope="module")
def real(nuaa: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and masks of NUAA-SIRST train."""
    images, masks = find_files(nuaa / "images"), find_files(nuaa / "masks")
    names = [name for name in read_list(find_split(nuaa, "train")) if name in images and name in masks]
    pixels = [read_image(images[name]) for name in names]
    pairs = [(image, masks[name]) for name, image in zip(names, pixels, strict=True)]
    return pixels, [read_mask(path, image.shape[:2]) for image, path in pairs]


@pytest.mark.parametrize(
    ("jitter", "given", "least"),
    [(0.0, False, 0.83), (0.0, True, 0.835), (1.5, False, 0.82), (1.5, True, 0.825)],
)
def test_iou_on_real_images(real: tuple[list, list], jitter: float, given: bool, least: float) -> None:
    images, masks = real
    packed = PackedImages.pack(images)
    rows, categories = [], []
    for i, mask in enumerate(masks):
        for point in points_from_mask(mask, jitter=jitter, rng=np.random.default_rng(i)):
            rows.append((i, int(point.y), int(point.x)))
            categories.append(CATEGORIES.index(point.category) if given else -1)
    windows = component_windows(packed, torch.tensor(rows))
    votes = vote_components(packed, windows, torch.tensor(categories), CONFIG)
    predicted = [np.zeros(mask.shape, bool) for mask in masks]
    for t, (i, top, left, height, width, *_) in enumerate(windows.table.tolist()):
        found = map_of(votes, t).reshape(height, width) >= 0.5
        predicted[i][top : top + height, left : left + width] |= found
    scores = Scores()
    for ours, truth in zip(predicted, masks, strict=True):
        scores.update(ours, truth)
    assert scores.compute().iou >= least
    assert 0.75 < votes.confidence.mean() < 0.86
