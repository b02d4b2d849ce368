"""Monte Carlo trials against scikit-image and plain numpy, and the same counts whatever the launch."""

from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from clustering_reference import features, lloyd, near_tie
from devices import device_of, on_cpu
from skimage.measure import label as components
from skimage.segmentation import slic

from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.noise import add_noise
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.trials import TrialCounts, run_trials

KEY = 0x0123456789ABCDEF


class Case:
    """One image with a target, and a window around a click on it."""

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int],
        channels: int = 3,
        dtype: type = np.uint8,
        spread: float = 2.0,
    ):
        rng = np.random.default_rng([seed, *shape])
        above, left, below, right = rng.integers(0, 4, 4)  # 0: the window lies at the image's border
        height, width = shape
        y, x = np.mgrid[: height + above + below, : width + left + right].astype(float)
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        image = 60 + rng.uniform(-1, 1) * y + rng.uniform(-1, 1) * x + rng.normal(0, 4, y.shape)
        image += rng.uniform(20, 150) * np.exp(
            -((y - above - row) ** 2 + (x - left - column) ** 2) / spread**2
        )
        if channels == 3:
            image = image[..., None] + rng.normal(0, 2, (*image.shape, 3))
        self.image = np.clip(image, 0, 255).astype(np.uint8)
        if dtype is not np.uint8:
            self.image = (image * 37.5 - 900).astype(dtype)
        self.click = min(int(row), height - 1), min(int(column), width - 1)
        self.window = (above, left, height, width, *self.click, int(rng.integers(0, 9)))
        self.key = KEY + seed

    def noisy(self, config: TrialConfig, trial: int) -> np.ndarray:
        """Return the noisy window [H, W, 3] of one trial, float32."""
        top, left, height, width, *_, target = self.window
        window = self.image[top : top + height, left : left + width].astype(np.float32)
        window = np.broadcast_to(window.reshape(height, width, -1), (height, width, 3))
        byte = self.image.dtype == np.uint8
        out = add_noise(
            torch.from_numpy(window.transpose(2, 0, 1).copy())[None],
            torch.tensor([self.key]),
            torch.tensor([target]),
            trial,
            kind=config.noise,
            intensity=config.intensity,
            shared=config.shared_noise,
            low=0.0 if byte else float(window.min()),
            high=255.0 if byte else float(window.max()),
        )
        return out[0].permute(1, 2, 0).numpy()

    def partition(self, config: TrialConfig, trial: int, iterations: int, backend: str) -> np.ndarray:
        """Clusters of one trial after some iterations: the mask of a click on every pixel."""
        height, width = self.window[2:4]
        pixels = torch.arange(height * width)
        every = Windows.pack([(0, *self.window)] * len(pixels))
        every = every.replace(click_row=pixels // width, click_column=pixels % width)
        config = replace(config, connectivity="cluster", max_iterations=iterations)
        images = PackedImages.pack([self.image], device_of(backend))
        keys = torch.full((height * width,), self.key)
        options = {"first_trial": trial, "keep_masks": True, "backend": backend}
        result = run_trials(images, every, keys, config, 1, **options)
        assert result.masks is not None
        return result.masks.reshape(height * width, -1).argmax(1).reshape(height, width).cpu().numpy()


def run(cases: list[Case], config: TrialConfig, trials: int, **options) -> TrialCounts:
    windows = Windows.pack((i, *case.window) for i, case in enumerate(cases))
    keys = torch.tensor([case.key for case in cases], dtype=torch.int64)
    images = PackedImages.pack([case.image for case in cases], device_of(options.get("backend")))
    return on_cpu(run_trials(images, windows, keys, config, trials, **options))


def masks_of(result: TrialCounts, i: int, shape: tuple[int, int]) -> np.ndarray:
    """Masks [trials, H, W] of target i."""
    assert result.masks is not None
    return result.masks[:, result.offsets[i] : result.offsets[i + 1]].reshape(-1, *shape).numpy().astype(bool)


def slic_labels(noisy: np.ndarray, config: TrialConfig, iterations: int, enforce: bool = False) -> np.ndarray:
    return slic(
        noisy,
        n_segments=config.clusters,
        compactness=config.compactness,
        max_num_iter=iterations,
        enforce_connectivity=enforce,
        min_size_factor=config.min_size_factor,
        max_size_factor=config.max_size_factor,
        start_label=0,
    )


def check_against_slic(cases: list[Case], config: TrialConfig, trials: int = 2) -> None:
    result = run(cases, config, trials, keep_masks=True, backend="cpu")
    differing = 0
    for i, case in enumerate(cases):
        for trial, ours in enumerate(masks_of(result, i, case.window[2:4])):
            noisy = case.noisy(config, trial)
            segments = slic_labels(noisy, config, config.max_iterations, enforce=True)
            if (ours == (segments == segments[case.click])).all():
                continue
            differing += 1
            assert near_tie(
                lambda n, case=case, trial=trial: case.partition(config, trial, n, "cpu"),
                lambda n, noisy=noisy: slic_labels(noisy, config, n),
                features(noisy, config.compactness),
                config.clusters,
                config.max_iterations,
            ), f"window {i}, trial {trial}"
    assert differing <= len(cases) * trials // 20


SHAPES = [(1, 1), (1, 8), (9, 1), (2, 3), (3, 3), (5, 7), (6, 6), (11, 10), (20, 21), (33, 17), (7, 40)]
UNEVEN = [(12, 17), (28, 20), (36, 10), (39, 13)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_equals_scikit_image(channels: int, dtype: type) -> None:
    cases = [Case(seed, shape, channels, dtype) for seed in range(4) for shape in SHAPES]
    cases += [Case(9, (64, 64), channels, dtype), Case(9, (64, 5), channels, dtype)]
    # The grid holds 6, 12, 12 and 10 centers instead of 9, so that windows reach further or less far.
    cases += [Case(seed, shape, channels, dtype) for seed in range(8) for shape in UNEVEN]
    check_against_slic(cases, TrialConfig())


@pytest.mark.parametrize(
    "config",
    [
        TrialConfig(clusters=1),
        TrialConfig(clusters=4, compactness=5.0),
        TrialConfig(clusters=40, compactness=60.0, intensity=0.3),
        TrialConfig(max_iterations=1),
        TrialConfig(max_iterations=3, min_size_factor=0.2, max_size_factor=1.5),
        TrialConfig(noise="none"),
        TrialConfig(noise="pepper", shared_noise=True),
        TrialConfig(noise="gaussian", intensity=0.1),
        TrialConfig(intensity=1.0),
    ],
    ids=repr,
)
def test_equals_scikit_image_with_other_settings(config: TrialConfig) -> None:
    cases = [
        Case(20 + seed, shape, 1 + 2 * (seed % 2))
        for seed in range(3)
        for shape in [(3, 3), (9, 12), (21, 22)]
    ]
    check_against_slic(cases, config)


def test_one_pixel_targets_and_constant_images() -> None:
    cases = [Case(seed, (7, 7), spread=0.3) for seed in range(12)]
    for case, level in zip(cases[:3], (0, 128, 255), strict=True):
        case.image[:] = level
    check_against_slic(cases, TrialConfig(), trials=4)
    for case in cases:
        case.image = case.image.astype(np.float32)
    check_against_slic(cases, TrialConfig(), trials=4)


@pytest.mark.parametrize("method", ["slic", "kmeans"])
@pytest.mark.parametrize("tolerance", [0.0, 0.371])
@pytest.mark.parametrize("connectivity", ["component", "cluster"])
def test_equals_plain_numpy(method: str, tolerance: float, connectivity: str) -> None:
    config = TrialConfig(method=method, tolerance=tolerance, connectivity=connectivity)
    shapes = [(1, 6), (3, 3), (8, 9), (15, 14), (22, 21)]
    cases = [Case(40 + seed, shape, 1 + 2 * (seed % 2)) for seed in range(3) for shape in shapes]
    result = run(cases, config, 3, keep_masks=True, backend="cpu")
    for i, case in enumerate(cases):
        for trial, ours in enumerate(masks_of(result, i, case.window[2:4])):
            feature = features(case.noisy(config, trial), config.compactness)

            def reference(iterations: int, feature: np.ndarray = feature) -> np.ndarray:
                return lloyd(feature, config.clusters, iterations, tolerance, method == "slic")

            labels = reference(10)
            if connectivity == "component":
                labels = components(labels + 1, connectivity=1)
            if (ours == (labels == labels[case.click])).all():
                continue
            assert near_tie(
                lambda n, case=case, trial=trial: case.partition(config, trial, n, "cpu"),
                reference,
                feature,
                config.clusters,
                10,
                method == "slic",
            ), f"window {i}, trial {trial}"


def check_triton(cases: list[Case], config: TrialConfig, trials: int, first_trial: int = 0) -> None:
    options = {"first_trial": first_trial, "keep_masks": True}
    ours = run(cases, config, trials, backend="triton", **options)
    theirs = run(cases, config, trials, backend="cpu", **options)
    for i, case in enumerate(cases):
        shape = case.window[2:4]
        pairs = zip(masks_of(ours, i, shape), masks_of(theirs, i, shape), strict=True)
        for trial, (mine, other) in enumerate(pairs, first_trial):
            assert (mine == other).all() or near_tie(
                lambda n, case=case, trial=trial: case.partition(config, trial, n, "triton"),
                lambda n, case=case, trial=trial: lloyd(
                    features(case.noisy(config, trial), config.compactness),
                    config.clusters,
                    n,
                    config.tolerance,
                    config.method == "slic",
                ),
                features(case.noisy(config, trial), config.compactness),
                config.clusters,
                config.max_iterations,
                config.method == "slic",
            ), f"window {i}, trial {trial}"
    assert ours.masks is not None
    assert torch.equal(ours.masks.sum(0, dtype=torch.int32), ours.counts)


@pytest.mark.parametrize(
    ("config", "channels", "dtype"),
    [
        (TrialConfig(max_iterations=4), 3, np.uint8),
        (TrialConfig(connectivity="component", noise="gaussian", tolerance=0.371), 1, np.float32),
        (TrialConfig(connectivity="cluster", noise="pepper", intensity=0.3, shared_noise=True), 3, np.uint8),
        (TrialConfig(method="kmeans", noise="none", clusters=5), 3, np.float32),
        (TrialConfig(method="kmeans", connectivity="component", noise="pepper", intensity=0.2), 1, np.uint8),
        (
            TrialConfig(method="kmeans", connectivity="cluster", noise="gaussian", tolerance=0.371),
            3,
            np.uint8,
        ),
    ],
    ids=["slic", "component", "cluster", "kmeans", "kmeans component", "kmeans cluster"],
)
def test_triton_equals_cpu(config: TrialConfig, channels: int, dtype: type) -> None:
    cases = [Case(60 + i, shape, channels, dtype) for i, shape in enumerate([(5, 6), (6, 7)])]
    check_triton(cases, config, trials=2, first_trial=3)


@pytest.mark.parametrize(
    ("shape", "clusters", "trials"),
    [((12, 13), 9, 1), ((1, 9), 3, 3), ((5, 5), 1, 3), ((2, 2), 9, 2)],
    ids=str,
)
def test_triton_equals_cpu_on_odd_windows(shape: tuple[int, int], clusters: int, trials: int) -> None:
    check_triton([Case(70, shape)], TrialConfig(clusters=clusters, max_iterations=3), trials)


SETTINGS = [
    (TrialConfig(), np.uint8),
    (TrialConfig(method="kmeans", noise="gaussian", connectivity="component", tolerance=0.371), np.float32),
]


@pytest.mark.parametrize(("config", "dtype"), SETTINGS, ids=["slic", "kmeans"])
def test_a_target_does_not_depend_on_the_launch(config: TrialConfig, dtype: type) -> None:
    cases = [
        Case(80 + i, shape, 3, dtype) for i, shape in enumerate([(9, 11), (3, 3), (20, 17), (9, 11), (31, 6)])
    ]
    together = run(cases, config, 20, backend="cpu")

    def check(chosen: list[int]) -> None:
        result = run([cases[i] for i in chosen], config, 20, backend="cpu")
        for place, i in enumerate(chosen):
            ours = result.counts[result.offsets[place] : result.offsets[place + 1]]
            assert torch.equal(ours, together.counts[together.offsets[i] : together.offsets[i + 1]])

    for chosen in ([4, 2, 0, 1, 3], [2], [3, 1], [1, 1, 0]):
        check(chosen)
    threads = numba.get_num_threads()
    for number in {1, threads}:
        numba.set_num_threads(number)
        try:
            check([0, 1, 2, 3, 4])
        finally:
            numba.set_num_threads(threads)


@pytest.mark.parametrize(("config", "dtype"), SETTINGS, ids=["slic", "kmeans"])
def test_trials_add_up(config: TrialConfig, dtype: type) -> None:
    cases = [Case(90 + i, (10 + i, 12), 1, dtype) for i in range(3)]
    whole = run(cases, config, 24, keep_masks=True)
    parts = [
        run(cases, config, n, first_trial=first, keep_masks=True) for first, n in ((0, 7), (7, 1), (8, 16))
    ]
    assert torch.equal(sum(part.counts for part in parts), whole.counts)
    assert torch.equal(torch.cat([part.masks for part in parts]), whole.masks)
    assert torch.equal(whole.masks.sum(0, dtype=torch.int32), whole.counts)
    without = run(cases, config, 24)
    assert without.masks is None
    assert torch.equal(without.counts, whole.counts)
    assert without.trials == 24
    for i, case in enumerate(cases):
        counts = whole.counts[whole.offsets[i] : whole.offsets[i + 1]].reshape(case.window[2:4])
        assert counts[case.click] == 24
        assert bool((counts == 0).any())


def test_key_target_and_trial_change_the_counts() -> None:
    case = Case(100, (16, 16))
    packed = PackedImages.pack([case.image])
    windows = Windows.pack([(0, *case.window)] * 3)
    windows = windows.replace(target=windows.target + torch.tensor([0, 1, 0]))
    keys = torch.tensor([case.key, case.key, case.key + 1])
    result = run_trials(packed, windows, keys, TrialConfig(), 30, keep_masks=True)
    assert result.masks is not None
    same, target, key = result.counts.reshape(3, -1)
    assert not torch.equal(same, target)
    assert not torch.equal(same, key)
    assert len(result.masks[:, :256].unique(dim=0)) > 10
