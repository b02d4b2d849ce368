"""SLIC against scikit-image's on real windows, against a plain float64 trace, and at the edges."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from aot_table import variants
from devices import BACKENDS, device_of
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import slic as skimage_slic
from skimage.util import regular_grid

from mclc_gpu.kernels import slic_cpu, slic_triton
from mclc_gpu.kernels.slic import grid_centers, kmeans, lowest_gradient, slic, window_steps

NEAR_TIE = 1e-4


def salted_windows(root: Path, count: int, largest: int, seed: int, of_a_size: int = 1) -> list[np.ndarray]:
    """Random salted crops of real images: uint8 [H, W, 3], sides 6 .. largest, `of_a_size` of each size."""
    rng = np.random.default_rng(seed)
    files = sorted((root / "images").glob("*.png"))[::11]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    windows = []
    for i in range(count):
        image = images[rng.integers(len(images))]
        if i % of_a_size == 0:
            height, width = rng.integers(6, largest + 1, 2)
        y, x = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
        window = image[y : y + height, x : x + width].copy()
        window[rng.random(window.shape) < 0.05] = 255
        windows.append(window)
    return windows


def planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def reference(image: np.ndarray, n_segments: int, compactness: float, **options: object) -> np.ndarray:
    axis = None if image.shape[2] == 1 else -1
    pixels = image.astype(np.float32)
    return skimage_slic(
        pixels[..., 0] if axis is None else pixels,
        n_segments=n_segments,
        compactness=compactness,
        start_label=0,
        channel_axis=axis,
        **options,
    )


def distances(features: np.ndarray, centers: np.ndarray, reach: tuple[int, int], step: int) -> np.ndarray:
    """D^2 of all pixels to all centers, float64 [N, H, W]; infinite where a window does not reach."""
    y, x = np.mgrid[: features.shape[1], : features.shape[2]]
    cy, cx = centers[:, 0, None, None], centers[:, 1, None, None]
    d = ((y - cy) ** 2 + (x - cx) ** 2) / step**2
    d = d + ((features[None] - centers[:, 2:, None, None]) ** 2).sum(1)
    low_y, low_x = np.floor(cy - 2 * reach[0]), np.floor(cx - 2 * reach[1])
    high_y, high_x = np.floor(cy + 2 * reach[0]), np.floor(cx + 2 * reach[1])
    return np.where((y >= low_y) & (y <= high_y) & (x >= low_x) & (x <= high_x), d, np.inf)


def grid_start(
    height: int, width: int, n_segments: int, channels: int
) -> tuple[np.ndarray, tuple[int, int], int]:
    """Centers on the grid with color 0 (float64 [N, 2 + C]), the windows' steps, and the distance's step."""
    ys, xs, step_y, step_x = grid_centers(height, width, n_segments)
    centers = np.zeros((len(ys), 2 + channels))
    centers[:, 0], centers[:, 1] = ys, xs
    return centers, window_steps(height, width, len(ys)), max(step_y, step_x)


def means(features: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Centers [y, x, colors...] of the clusters, float64 [N, 2 + C]; NaN for empty ones."""
    rows = np.concatenate([np.mgrid[: labels.shape[0], : labels.shape[1]], features]).reshape(
        len(features) + 2, -1
    )
    sizes = np.bincount(labels.ravel(), minlength=count)
    sums = np.stack([np.bincount(labels.ravel(), row, minlength=count) for row in rows], 1)
    return np.divide(sums, sizes[:, None], out=np.full_like(sums, np.nan), where=sizes[:, None] > 0)


def trace(
    features: np.ndarray,
    centers: np.ndarray,
    reach: tuple[int, int],
    step: int,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Ten iterations of SLIC in plain float64; `labels` are those before the first one."""
    labels = np.zeros(features.shape[1:], np.int64) if labels is None else labels
    for _ in range(10):
        d = distances(features, centers, reach, step)
        labels = np.where(np.isinf(d).all(0), labels, d.argmin(0))
        centers = means(features, labels, len(centers))
    return labels


def assert_near_tie(window: np.ndarray, n_segments: int, compactness: float, backend: str) -> None:
    """Check that both labels are equally near where ours and scikit-image's differ for the first time."""
    start, reach, step = grid_start(*window.shape[:2], n_segments, 3)
    pixels = window.astype(np.float64) - window.min()
    features = rgb2lab(pixels / pixels.max()).transpose(2, 0, 1) / compactness
    before = None
    for iterations in range(1, 11):
        theirs = reference(
            window, n_segments, compactness, enforce_connectivity=False, max_num_iter=iterations
        )
        ours = (
            slic(
                planes(window).to(device_of(backend)),
                n_segments,
                compactness,
                max_iterations=iterations,
                enforce_connectivity=False,
                backend=backend,
            )[0]
            .cpu()
            .numpy()
        )
        y, x = np.nonzero(ours != theirs)
        if len(y):
            assert before is not None, "the first assignment is purely spatial and has to be the same"
            d = distances(features, means(features, before, len(start)), reach, step)
            pair = np.stack([d[ours[y, x], y, x], d[theirs[y, x], y, x]])
            assert (np.abs(pair[0] - pair[1]) / pair.max(0)).max() < NEAR_TIE
            return
        before = theirs
    raise AssertionError("labels agree after every iteration but not after connectivity enforcement")


def check_windows(windows: list[np.ndarray], backend: str, connectivity: bool) -> None:
    pixels = differing = 0
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for window in windows:
        by_size.setdefault(window.shape, []).append(window)
    labeled = []
    for same in by_size.values():
        batch = torch.cat([planes(window) for window in same]).to(device_of(backend))
        labels = slic(batch, 9, 20.0, enforce_connectivity=connectivity, backend=backend)
        labeled += zip(same, labels.cpu().numpy(), strict=True)
    for window, ours in labeled:
        theirs = reference(window, 9, 20.0, enforce_connectivity=connectivity)
        pixels += ours.size
        differing += int((ours != theirs).sum())
        if (ours != theirs).any():
            assert_near_tie(window, 9, 20.0, backend)
    assert differing <= 0.001 * pixels


def test_thousand_real_windows(nuaa: Path) -> None:
    check_windows(salted_windows(nuaa, 1000, 50, seed=0), "cpu", connectivity=True)


def test_real_windows_in_triton(nuaa: Path) -> None:
    check_windows(salted_windows(nuaa, 4, 12, seed=1), "triton", connectivity=False)


@pytest.mark.gpu  # an hour in the interpreter
def test_thousand_real_windows_in_triton(nuaa: Path) -> None:
    check_windows(salted_windows(nuaa, 1024, 20, seed=0, of_a_size=32), "triton", connectivity=True)


def test_whole_image_of_odd_size(nuaa: Path) -> None:
    image = np.asarray(Image.open(sorted((nuaa / "images").glob("*.png"))[5]).convert("RGB"))[
        :97, :131
    ].copy()
    theirs = reference(image, 60, 10.0)
    ours = slic(planes(image), 60, 10.0)[0].numpy()
    if (ours != theirs).any():
        assert_near_tie(image, 60, 10.0, "cpu")
    assert (ours != theirs).mean() <= 0.001


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "n_segments"),
    [
        ((1, 1, 1), 100),
        ((1, 1, 3), 1),
        ((1, 11, 1), 3),
        ((8, 1, 3), 4),
        ((3, 4, 1), 100),
        ((4, 5, 3), 1),
        ((5, 5, 1), 2),
        ((2, 9, 1), 5),
    ],
    ids=str,
)
def test_small_images_equal_scikit_image(shape: tuple[int, int, int], n_segments: int, backend: str) -> None:
    image = np.random.default_rng(shape).integers(0, 65535, shape).astype(np.uint16)
    for compactness in (0.1, 10.0):
        ours = slic(planes(image).to(device_of(backend)), n_segments, compactness, backend=backend)
        np.testing.assert_array_equal(ours[0].cpu().numpy(), reference(image, n_segments, compactness))


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_image(backend: str) -> None:
    image = np.full((5, 6, 1), 77, np.uint8)
    ours = slic(planes(image).to(device_of(backend)), 6, backend=backend)
    np.testing.assert_array_equal(ours[0].cpu().numpy(), reference(image, 6, 10.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("channels", "height", "width", "n_segments", "weight"),
    [(1, 11, 14, 6, 0.5), (2, 9, 34, 8, 3.0), (5, 13, 8, 4, 30.0), (3, 10, 10, 12, 300.0)],
    ids=str,
)
def test_equals_plain_trace(
    channels: int, height: int, width: int, n_segments: int, weight: float, backend: str
) -> None:
    image = np.random.default_rng([channels, height, width]).random((channels, height, width), np.float32)
    image.flat[:2] = 0, 1  # so that rescaling changes nothing
    expected = trace(image.astype(np.float64) * weight, *grid_start(height, width, n_segments, channels))
    options = {"lab": False, "enforce_connectivity": False, "backend": backend}
    ours = slic(torch.from_numpy(image)[None].to(device_of(backend)), n_segments, 1 / weight, **options)
    np.testing.assert_array_equal(ours[0].cpu().numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_start_equals_plain_trace(backend: str) -> None:
    image = np.random.default_rng(5).random((2, 14, 17), np.float32)
    image.flat[:2] = 0, 1
    start, reach, step = grid_start(14, 17, 6, 2)
    features = torch.from_numpy(image)[None]
    moved = lowest_gradient(features, *torch.from_numpy(start[:, :2]).long().unbind(1))[0].numpy()
    expected = trace(image.astype(np.float64), moved.astype(np.float64), reach, step)
    given = features.to(device_of(backend))
    ours = slic(given, 6, 1.0, start="gradient", enforce_connectivity=False, backend=backend)
    np.testing.assert_array_equal(ours[0].cpu().numpy(), expected)


@pytest.mark.parametrize("cluster", [slic_cpu.cluster, slic_triton.cluster], ids=BACKENDS)
def test_pixels_out_of_reach_keep_their_label(cluster: Callable[..., None]) -> None:
    rng = np.random.default_rng(11)
    image = rng.random((1, 1, 6, 30), np.float32)
    before = rng.integers(0, 4, (1, 6, 30)).astype(np.int32)
    start = np.array([[[1, 2, 0], [4, 3, 0.5], [2, 8, 0.7], [3, 6, 1]]], np.float32)
    assert np.isinf(distances(image[0], start[0], (2, 2), 2)).all(0).any(), "no pixel is out of reach"
    expected = trace(image[0].astype(np.float64), start[0].astype(np.float64), (2, 2), 2, before[0])
    place = device_of("cpu" if cluster is slic_cpu.cluster else "triton")
    features, centers, labels = (torch.from_numpy(array.copy()).to(place) for array in (image, start, before))
    arrays = (features, centers, labels)
    if cluster is slic_cpu.cluster:
        arrays = tuple(tensor.numpy() for tensor in arrays)
    cluster(*arrays[:2], 2, 2, np.float32(0.25), 10, 0.0, arrays[2])
    np.testing.assert_array_equal(labels[0].cpu().numpy(), expected)


def test_lowest_gradient_by_hand() -> None:
    image = torch.ones(1, 1, 5, 7)
    image[0, 0, :, 4:] = 9.0
    ys, xs = torch.tensor([0, 2, 2, 4]), torch.tensor([0, 3, 5, 4])
    # The gradient is 64 in columns 3 and 4 and 0 elsewhere: centers beside the edge step away from it.
    assert lowest_gradient(image, ys, xs)[0].tolist() == [[0, 0, 1], [1, 2, 1], [2, 5, 9], [3, 5, 9]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_does_not_depend_on_the_batch(backend: str) -> None:
    compiled = backend == "cpu"  # then a single image is cut into bands, and three are not
    size = (3, 96, 81) if compiled else (1, 9, 11)
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 255, (3, *size)).astype(np.uint8))
    images = images.to(device_of(backend))
    options = {"n_segments": 12 if compiled else 4, "compactness": 5.0, "tolerance": 0.5, "backend": backend}
    together = slic(images, enforce_connectivity=compiled, **options)
    for i in range(3):
        assert torch.equal(slic(images[i : i + 1], enforce_connectivity=compiled, **options)[0], together[i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_ends_the_iterations(backend: str) -> None:
    image = torch.from_numpy(np.random.default_rng(9).random((1, 1, 12, 12), np.float32))
    image = image.to(device_of(backend))
    options = {"n_segments": 4, "compactness": 0.1, "enforce_connectivity": False, "backend": backend}
    first = slic(image, max_iterations=1, **options)
    assert torch.equal(slic(image, tolerance=1e6, **options), first)
    assert not torch.equal(slic(image, tolerance=0.0, **options), first)


VARIANTS = """
import torch
from mclc_gpu.kernels.slic import kmeans, slic
for shape in ((1, 3, 1, 1), (1, 3, 1, 40), (5, 3, 16, 1), (2, 3, 33, 48)):
    for number in (1, 16, 1000):
        slic(torch.zeros(shape), number, enforce_connectivity=False, backend="triton")
        kmeans(torch.zeros(shape), number, backend="triton")
"""


def test_one_variant_of_each_kernel_serves_all_sizes() -> None:
    kernels = "range", "features", "centers", "bin", "assign", "update"
    assert variants(VARIANTS) == dict.fromkeys(kernels, 1)


@pytest.mark.parametrize("cluster", [slic, kmeans])
def test_launches_of_triton(cluster: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Kernel:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *given, **flags: launched.append(self.name)

    for name in ("range", "features", "centers", "bin", "assign", "update"):
        monkeypatch.setattr(slic_triton, f"{name}_kernel", Kernel(name))
    options = {"enforce_connectivity": False} if cluster is slic else {}
    cluster(torch.zeros(2, 3, 20, 30, device=device_of("triton")), 9, backend="triton", **options)
    iterations = ["assign", "update"] * 9
    assert launched == ["range", "features", "centers", "bin", *iterations, "assign"]


@pytest.mark.parametrize("cluster", [slic, kmeans])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_triton_refuses_what_is_not_finite(cluster: Callable[..., torch.Tensor], value: float) -> None:
    images = torch.rand(2, 1, 4, 5)
    images[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match="images must be finite"):
        cluster(images.to(device_of("triton")), 2, max_iterations=2, backend="triton")


def test_integer_images_equal_floats() -> None:
    image = torch.from_numpy(np.random.default_rng(4).integers(0, 255, (2, 3, 20, 24)).astype(np.uint8))
    as_float = slic(image.to(torch.float32), 9)
    assert torch.equal(slic(image, 9), as_float)
    assert torch.equal(slic(image.to(torch.uint16), 9), as_float)


def test_empty_batch() -> None:
    assert slic(torch.zeros(0, 3, 8, 9)).shape == (0, 8, 9)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 8, 8), {}, "float32, uint8 or uint16"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), {}, "float32, uint8 or uint16"),
        (torch.zeros(1, 1, 8, 8), {"lab": True}, "3 channels"),
        (torch.zeros(1, 1, 8, 8), {"n_segments": 0}, "n_segments must be above 0"),
        (torch.zeros(1, 1, 8, 8), {"compactness": 0.0}, "compactness must be above 0"),
        (torch.zeros(1, 1, 8, 8), {"max_iterations": 0}, "max_iterations must be above 0"),
        (torch.zeros(1, 1, 8, 8), {"tolerance": -1.0}, "tolerance must be at least 0"),
        (torch.zeros(1, 1, 8, 8), {"start": "random"}, "start must be one of"),
        (torch.full((1, 1, 8, 8), torch.nan), {}, "finite"),
        (torch.full((1, 1, 8, 8), torch.inf), {}, "finite"),
    ],
)
def test_refuses_bad_input(images: torch.Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slic(images, **options)


def test_grid_equals_regular_grid() -> None:
    rng = np.random.default_rng(0)
    shapes = [(h, w, n) for h in range(1, 24) for w in range(1, 24) for n in (1, 2, 3, 5, 9, 16, 50, 1000)]
    shapes += [tuple(map(int, rng.integers(1, 3000, 3))) for _ in range(500)]
    for height, width, n_segments in shapes:
        _, rows, columns = regular_grid((1, height, width), n_segments)
        y, x = np.meshgrid(np.arange(height)[rows], np.arange(width)[columns], indexing="ij")
        ys, xs, step_y, step_x = grid_centers(height, width, n_segments)
        np.testing.assert_array_equal(ys, y.ravel())
        np.testing.assert_array_equal(xs, x.ravel())
        assert (step_y, step_x) == (rows.step or 1, columns.step or 1)
        _, rows, columns = regular_grid((1, height, width), len(ys))
        assert window_steps(height, width, len(ys)) == (rows.step or 1, columns.step or 1)
