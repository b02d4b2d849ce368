"""The dense CRF against plain float64 numpy, against pydensecrf on real windows, and against itself."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest
import torch
from aot_table import variants
from devices import BACKENDS, device_of

from mclc_gpu.data.datasets import find_split, read_list, select
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.kernels import crf_cpu, crf_triton
from mclc_gpu.kernels.config import CrfConfig, TrialConfig
from mclc_gpu.kernels.crf import crf_masks, dense_crf, dense_crf_images, window_colors
from mclc_gpu.kernels.crf_simd_cpu import LANES, QUERIES, SUMS, VALUES, receive_plain, receive_simd
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.windows import draw_window, name_key

SHAPES = ((1, 1), (1, 9), (5, 1), (6, 7))
NORMALIZATIONS = ("symmetric", "before", "after", "none")
backends = pytest.mark.parametrize("backend", BACKENDS)


class Batch:
    """Random windows of dark and bright pixels: unary [classes, pixels], colors [pixels, channels]."""

    def __init__(self, shapes: Sequence[tuple[int, int]], classes: int = 2, channels: int = 3, seed: int = 0):
        rng = np.random.default_rng([seed, classes, channels])
        self.windows = torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)
        self.offsets = [0, *torch.cumsum(self.windows.prod(1), 0).tolist()]
        pixels = self.offsets[-1]
        self.unary = torch.from_numpy(rng.normal(0, 2, (classes, pixels)).astype(np.float32))
        bright = 60 + 40 * (rng.random((pixels, 1)) < 0.4) + rng.normal(0, 8, (pixels, channels))
        self.colors = torch.from_numpy(bright.clip(0, 255).astype(np.uint8))

    def solved(self, config: CrfConfig | None = None, backend: str | None = None) -> torch.Tensor:
        """Return the probabilities of all windows, computed by a backend, on the CPU."""
        place = device_of(backend)
        unary, colors = self.unary.to(place), self.colors.to(place)
        return dense_crf(unary, colors, self.windows, config, backend=backend).cpu()

    def expected(self, config: CrfConfig) -> np.ndarray:
        return np.concatenate(
            [
                brute_force(
                    self.unary[:, a:b].double().numpy(), self.colors[a:b].double().numpy(), shape, config
                )
                for a, b, shape in zip(self.offsets, self.offsets[1:], self.windows.tolist(), strict=False)
            ],
            axis=1,
        )


def brute_force(unary: np.ndarray, colors: np.ndarray, shape: Sequence[int], config: CrfConfig) -> np.ndarray:
    """Mean field with the whole kernel matrices in float64."""
    y, x = (axis.reshape(-1, 1).astype(float) for axis in np.mgrid[: shape[0], : shape[1]])
    places = (y - y.T) ** 2 + (x - x.T) ** 2
    rgb = np.broadcast_to(colors, (len(colors), 3))
    looks = ((rgb[:, None] - rgb[None]) ** 2).sum(2)
    smooth = np.exp(-places / (2 * config.gaussian_sxy**2))
    bilateral = np.exp(-places / (2 * config.bilateral_sxy**2) - looks / (2 * config.bilateral_srgb**2))
    mixed = config.gaussian_compat * normalized(smooth, config.normalization)
    mixed += config.bilateral_compat * normalized(bilateral, config.normalization)
    q = softmax(-unary)
    for _ in range(config.iterations):
        q = softmax(-unary + q @ mixed.T)
    return q


def normalized(kernel: np.ndarray, mode: str) -> np.ndarray:
    rows = kernel.sum(1)
    if mode == "symmetric":
        return kernel / np.sqrt(np.outer(rows, rows))
    return kernel / {"before": rows[None, :], "after": rows[:, None], "none": rows.mean()}[mode]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("classes", "channels", "iterations"), [(2, 3, 1), (2, 1, 5), (3, 3, 2), (4, 1, 0)])
def test_cpu_is_exact(classes: int, channels: int, iterations: int, normalization: str) -> None:
    batch = Batch([*SHAPES, (13, 11), (33, 37), (41, 38)], classes, channels)
    config = CrfConfig(normalization=normalization, iterations=iterations)
    found = dense_crf(batch.unary, batch.colors, batch.windows, config)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), batch.expected(config), atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (3, 3)])
def test_triton_is_exact(classes: int, channels: int, normalization: str) -> None:
    batch = Batch(SHAPES, classes, channels, seed=1)
    config = CrfConfig(normalization=normalization, iterations=2)
    found = batch.solved(config, "triton")
    np.testing.assert_allclose(found.numpy(), batch.expected(config), atol=1e-5)
    here = batch.solved(config, "cpu")
    torch.testing.assert_close(found, here, rtol=0, atol=1e-5)


@backends
@pytest.mark.parametrize(
    "settings",
    [
        {"gaussian_compat": 0.0},
        {"bilateral_compat": 0.0},
        {"gaussian_compat": 0.0, "bilateral_compat": 0.0},
        {"gaussian_sxy": 0.4, "bilateral_sxy": 2.5, "bilateral_srgb": 70.0},
        {"gaussian_sxy": 9.0, "bilateral_compat": 1.0},
        {"gaussian_sxy": 90.0, "bilateral_srgb": 0.5, "normalization": "none"},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_other_widths_and_terms_switched_off(settings: dict, backend: str) -> None:
    # In the long window, smoothing of width 0.4 leaves whole blocks of keys out; of width 9 it reaches all.
    batch = Batch([(8, 9), (80, 1)], seed=2)
    config = replace(CrfConfig(iterations=2), **settings)
    found = batch.solved(config, backend)
    np.testing.assert_allclose(found.numpy(), batch.expected(config), atol=1e-5)


@backends
def test_two_pixels_by_hand(backend: str) -> None:
    config = CrfConfig(gaussian_sxy=1.0, bilateral_sxy=2.0, bilateral_srgb=10.0)
    place = device_of(backend)
    probability = torch.tensor([0.9, 0.2], device=place)
    colors = torch.tensor([[10.0, 20.0, 30.0], [16.0, 20.0, 22.0]], device=place)
    logits = [math.log(9.0), math.log(0.25)]
    belief = [0.8, -0.6]  # probability of the second class minus that of the first
    expected = []
    for i in (0, 1):
        logit = logits[i]
        for compat, weight in ((3, math.exp(-1 / 2)), (10, math.exp(-1 / 8 - 100 / 200))):
            logit += compat * (belief[i] + weight * belief[1 - i]) / (1 + weight)
        expected.append(1 / (1 + math.exp(-logit)))
    found = dense_crf(probability, colors, torch.tensor([[1, 2]]), config, backend=backend)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-5)


def test_weights_are_the_same_made_kept_or_shared_between_threads() -> None:
    batch = Batch([(20, 21), (3, 3), (47, 50)], seed=3)
    energy = batch.unary[:1] - batch.unary[1:]
    given = energy, batch.colors, batch.windows, CrfConfig(iterations=2)
    kept = crf_cpu.run(*given)
    made = crf_cpu.run(*given, kept_weights=0)
    shared = crf_cpu.run(*given, kept_weights=0, shared_pixels=100)
    assert torch.equal(made, kept)
    assert not torch.equal(shared, kept)  # it adds up in another order
    torch.testing.assert_close(shared, kept, rtol=0, atol=1e-5)


def test_explicit_vectors_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(7)
    before = rng.normal(size=(SUMS + 1, 64)).astype(np.float32)
    weights = rng.random(3 + QUERIES * 40).astype(np.float32)
    planes = [before.copy(), before.copy()]
    for receive, own in zip((receive_simd, receive_plain), planes, strict=True):
        receive(own, np.uintp(16), np.uintp(8), np.uintp(8 + 5 * LANES), weights, np.uintp(3))
    np.testing.assert_array_equal(*planes)
    before[SUMS, 16:20] += weights[3:].reshape(QUERIES, 40) @ before[VALUES, 8:48]
    np.testing.assert_allclose(planes[0], before, rtol=1e-5)


@backends
def test_a_window_does_not_depend_on_the_others(backend: str) -> None:
    batch = Batch(SHAPES, seed=5)
    config = CrfConfig(iterations=2)
    together = batch.solved(config, backend)
    bounds = list(zip(batch.offsets, batch.offsets[1:], strict=False))
    for i, (a, b) in enumerate(bounds):
        place = device_of(backend)
        unary, colors = batch.unary[:, a:b].to(place), batch.colors[a:b].to(place)
        alone = dense_crf(unary, colors, batch.windows[i : i + 1], config, backend=backend).cpu()
        assert torch.equal(alone, together[:, a:b])


@pytest.mark.parametrize("shared_pixels", [4096, 16])
def test_threads_do_not_change_a_bit(shared_pixels: int) -> None:
    batch = Batch([*SHAPES, (24, 31)], seed=6)
    results = []
    before = numba.get_num_threads()
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            energy = batch.unary[:1] - batch.unary[1:]
            given = energy, batch.colors, batch.windows, CrfConfig()
            results.append(crf_cpu.run(*given, shared_pixels=shared_pixels))
    finally:
        numba.set_num_threads(before)
    assert torch.equal(*results)


@backends
def test_certain_probabilities_are_floored(backend: str) -> None:
    windows = torch.tensor([[6, 7], [4, 4], [1, 1]])
    place = device_of(backend)
    probability = (torch.arange(59, device=place) % 3 == 0).float()
    colors = torch.full((59, 1), 93, dtype=torch.uint8, device=place)
    config = CrfConfig(floor=1e-3)
    found = dense_crf(probability, colors, windows, config, backend=backend)
    unary = -torch.log(torch.stack([1 - probability, probability]).clamp(min=1e-3))
    both = dense_crf(unary, colors, windows, config, backend=backend)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, both[1])
    # A lone pixel is its own neighbor with weight 1 in both kernels.
    belief = (1 - 1e-3) / (1 + 1e-3) * (1 if probability[-1] else -1)
    logit = math.log(1000) * (1 if probability[-1] else -1) + 13 * belief
    assert float(found[-1]) == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-4)


@backends
def test_one_channel_counts_as_three_equal_ones(backend: str) -> None:
    batch = Batch(SHAPES[2:], channels=1)
    place = device_of(backend)
    gray, rgb, real = (
        dense_crf(batch.unary.to(place), colors.to(place), batch.windows, backend=backend)
        for colors in (batch.colors, batch.colors.repeat(1, 3), batch.colors.float())
    )
    torch.testing.assert_close(gray, rgb, rtol=0, atol=1e-6)
    assert torch.equal(gray, real)


def test_zero_iterations_give_the_probabilities_back() -> None:
    probability = torch.tensor([0.0, 0.25, 1.0])
    found = dense_crf(
        probability, torch.zeros(3, 1), torch.tensor([[3, 1]]), CrfConfig(iterations=0, floor=0.1)
    )
    torch.testing.assert_close(found, torch.tensor([0.1 / 1.1, 0.25, 1 / 1.1]))


@backends
@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_empty_batch(shape: tuple[int, ...], backend: str) -> None:
    windows = torch.empty(0, 2, dtype=torch.int64)
    place = device_of(backend)
    potential, colors = torch.empty(shape, device=place), torch.empty(0, 3, device=place)
    found = dense_crf(potential, colors, windows, backend=backend)
    assert found.shape == shape


@pytest.mark.parametrize("classes", [None, 3])
def test_whole_images_are_windows(classes: int | None) -> None:
    rng = np.random.default_rng(7)
    images = torch.from_numpy(rng.integers(40, 90, (2, 3, 9, 14), dtype=np.uint8))
    shape = (2, 9, 14) if classes is None else (2, classes, 9, 14)
    potential = torch.from_numpy(rng.random(shape, dtype=np.float32))
    found = dense_crf_images(potential, images)
    assert found.shape == shape
    for i in range(2):
        flat = potential[i].flatten(-2)
        alone = dense_crf(flat, images[i].flatten(1).t(), torch.tensor([[9, 14]]))
        assert torch.equal(found[i].flatten(-2), alone)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_window_colors_are_those_of_the_images(dtype: type) -> None:
    rng = np.random.default_rng(8)
    images = [rng.integers(0, 255, shape).astype(dtype) for shape in ((8, 9, 3), (12, 5), (6, 6, 3))]
    boxes = [(2, 1, 2, 4, 3), (1, 3, 0, 9, 5), (0, 0, 8, 8, 1), (1, 11, 4, 1, 1)]

    def crop(image: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        whole = images[image] if images[image].ndim == 3 else np.repeat(images[image][..., None], 3, 2)
        return whole[top : top + height, left : left + width].reshape(-1, 3)

    found = window_colors(PackedImages.pack(images), Windows.pack((*box, 0, 0, 0) for box in boxes))
    np.testing.assert_array_equal(found.numpy(), np.concatenate([crop(*box) for box in boxes]))
    alone = Windows.pack([(0, *boxes[1][1:], 0, 0, 0)])
    gray = window_colors(PackedImages.pack(images[1:2]), alone)
    np.testing.assert_array_equal(gray.numpy(), crop(*boxes[1])[:, :1])


def masks_case(dtype: type) -> tuple[torch.Tensor, PackedImages, Windows]:
    """Counts of five windows, one without any, in a gray image, one in color and one of equal channels."""
    rng = np.random.default_rng(4)
    color, gray = rng.integers(60, 110, (12, 14, 3)), rng.integers(90, 120, (12, 14, 1))
    images = [gray[..., 0], color, np.repeat(gray, 3, 2)]
    boxes = [(0, 3, 4, 5, 8), (1, 0, 0, 12, 7), (2, 11, 13, 1, 1), (2, 1, 3, 6, 9), (0, 0, 0, 4, 4)]
    windows = Windows.pack((*box, 0, 0, 0) for box in boxes)
    counts = torch.from_numpy(rng.integers(0, 51, int(windows.sizes.sum())).astype(np.int32))
    counts[windows.offsets[-2] :] = 0
    return counts, PackedImages.pack([image.astype(dtype) for image in images], device_of("triton")), windows


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_masks_from_counts(dtype: type) -> None:
    counts, images, windows = masks_case(dtype)
    place = images.data.device
    found = crf_masks(counts.to(place), images, windows, backend="triton").cpu()
    here = replace(images, data=images.data.cpu())
    expected = crf_masks(counts / 50, here, windows, backend="cpu")
    assert found.dtype == torch.bool
    assert 0 < int(expected.sum()) < len(expected) - 16
    assert torch.equal(found, expected)
    assert not found[windows.offsets[-2] :].any()
    assert torch.equal(crf_masks(counts, here, windows, backend="cpu"), expected)


def test_masks_take_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Kernel:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *given, **flags: launched.append((self.name, grid))

    for name in ("start_kernel", "sums_kernel"):
        monkeypatch.setattr(crf_triton, name, Kernel(name))
    counts, images, windows = masks_case(np.uint8)
    crf_triton.masks(counts, images, windows, CrfConfig())
    programs = int((-(-windows.sizes // 32)).sum())
    sums = ("sums_kernel", (programs,))
    assert launched == [("start_kernel", (len(windows),)), sums, sums]


VARIANTS = """
import numpy as np, torch
from mclc_gpu.kernels.crf import crf_masks
from mclc_gpu.kernels.packed import PackedImages, Windows
images = PackedImages.pack([np.zeros((64, 64), np.uint8), np.zeros((7, 9, 3), np.uint8)])
boxes = (0, 0, 0, 64, 64), (1, 0, 0, 1, 1), (0, 3, 5, 16, 31)
for chosen in ([0], [1], [1, 2], [2, 0, 1]):
    windows = Windows.pack((*boxes[i], 0, 0, 0) for i in chosen)
    crf_masks(torch.zeros(int(windows.sizes.sum())), images, windows, backend="triton")
"""


def test_one_variant_of_each_kernel_serves_all_windows() -> None:
    assert variants(VARIANTS) == {"start": 1, "sums": 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gaussian_sxy", 0.0),
        ("gaussian_sxy", math.nan),
        ("bilateral_sxy", -1.0),
        ("bilateral_srgb", math.inf),
        ("gaussian_compat", -0.5),
        ("bilateral_compat", math.nan),
        ("normalization", "both"),
        ("iterations", -1),
        ("iterations", 1.5),
        ("floor", 0.0),
        ("floor", 0.6),
    ],
)
def test_bad_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        CrfConfig(**{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"potential": torch.rand(6).double()}, "potential must be float32"),
        ({"potential": torch.rand(1, 6)}, "two classes"),
        ({"potential": torch.tensor([0, 0.5, math.nan, 1, 1, 1])}, "probabilities in 0..1"),
        ({"potential": torch.full((6,), 1.5)}, "probabilities in 0..1"),
        ({"potential": torch.full((2, 6), math.inf)}, "potential must be finite"),
        ({"colors": torch.rand(6, 2)}, r"colors must be uint8 or float32 \[6, 1 or 3\]"),
        ({"colors": torch.full((6, 1), math.nan)}, "colors must be finite"),
        ({"windows": torch.tensor([[2, 3, 1]])}, "windows must be int64"),
        ({"windows": torch.tensor([[2.0, 3.0]])}, "windows must be int64"),
        ({"windows": torch.tensor([[2, 4]])}, "hold 6 pixels together, got 8"),
        ({"windows": torch.tensor([[-2, -3]])}, "at least 1 pixel"),
        ({"backend": "gpu"}, "backend must be one of"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    call = {
        "potential": torch.rand(6),
        "colors": torch.rand(6, 3),
        "windows": torch.tensor([[2, 3]]),
        "backend": None,
    } | change
    with pytest.raises(ValueError, match=message):
        dense_crf(**call)


@pytest.mark.parametrize(("potential", "images"), [((1, 5, 4), (1, 3, 4, 5)), ((4, 5), (1, 3, 4, 5))])
def test_bad_images_are_named(potential: tuple[int, ...], images: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images"):
        dense_crf_images(torch.rand(potential), torch.rand(images))


@pytest.fixture(scope="module")
def densecrf() -> ModuleType:
    if importlib.util.find_spec("pydensecrf") is None:
        pytest.skip("pydensecrf is missing: `make reference` installs it")
    return importlib.import_module("pydensecrf.densecrf")


@pytest.fixture(scope="module")
def real(nuaa: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """TPMs of 20 trials, colors and shapes of two windows around every target of the train split."""
    images, rows, keys = [], [], []
    chosen, _ = select(find_files(nuaa / "images"), read_list(find_split(nuaa, "train")))
    for name, path in chosen.items():
        image = read_image(path)
        mask = read_mask(nuaa / "masks" / f"{name}_pixels0.png", image.shape[:2])
        for j, point in enumerate(points_from_mask(mask)):
            for seed in (0, 1):
                window = draw_window(*image.shape[:2], point.x, point.y, str(point.category), seed, name, j)
                rows.append((len(images), *astuple(window), j))
                keys.append(name_key(seed, name) >> 1)
        images.append(image)
    packed, windows = PackedImages.pack(images), Windows.pack(rows)
    result = run_trials(packed, windows, torch.tensor(keys), TrialConfig(), 20)
    return result.counts / 20, window_colors(packed, windows), windows.shapes


@pytest.mark.parametrize(
    ("normalization", "iterations"), [("symmetric", 1), ("symmetric", 5), ("before", 1), ("after", 1)]
)
def test_pydensecrf_decides_alike_on_real_windows(
    real: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    densecrf: ModuleType,
    normalization: str,
    iterations: int,
) -> None:
    probability, colors, windows = real
    assert len(windows) >= 500
    config = CrfConfig(normalization=normalization, iterations=iterations)
    found = dense_crf(probability, colors, windows, config) > 0.5
    kind = getattr(densecrf, f"NORMALIZE_{normalization.upper()}")
    unary = -torch.log(torch.stack([1 - probability, probability]).clamp(min=1e-5))
    same, first = 0, 0
    for height, width in windows.tolist():
        window = slice(first, first + height * width)
        first = window.stop
        field = densecrf.DenseCRF2D(width, height, 2)
        field.setUnaryEnergy(unary[:, window].numpy().copy())
        rgb = colors[window].reshape(height, width, 3).numpy().copy()
        field.addPairwiseGaussian(sxy=3, compat=3, normalization=kind)
        field.addPairwiseBilateral(sxy=32, srgb=13, rgbim=rgb, compat=10, normalization=kind)
        background, target = np.asarray(field.inference(iterations))
        same += int((found[window].numpy() == (target > background)).sum())
    print(f"{normalization}, {iterations} iterations: {same / first:.5f} of {first} pixels alike")
    assert same / first >= 0.995
