"""The low-rank methods against plain numpy versions, image by image, and what they do with bad input."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mclc_gpu.bench import lowrank as plain
from mclc_gpu.classical import mslstipt
from mclc_gpu.classical.ipi import IPI
from mclc_gpu.classical.lowrank import iterate, shrink_singular_values, singular_values
from mclc_gpu.classical.mslstipt import MSLSTIPT
from mclc_gpu.classical.nram import NRAM
from mclc_gpu.classical.patches import PatchGrid, PatchMethod
from mclc_gpu.classical.pstnn import PSTNN
from mclc_gpu.classical.ript import RIPT
from mclc_gpu.classical.structure import structure_tensor
from mclc_gpu.errors import InputError

METHODS: dict[type[PatchMethod], Callable[..., np.ndarray]] = {
    IPI: plain.ipi,
    NRAM: plain.nram,
    PSTNN: plain.pstnn,
    RIPT: plain.ript,
    MSLSTIPT: lambda image, **settings: plain.mslstipt(image[None], **settings)[0],
}
SMALL = {IPI: (20, 10), NRAM: (20, 10), PSTNN: (20, 20), RIPT: (20, 10), MSLSTIPT: (24, 24)}
each = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)


def small(kind: type[PatchMethod]) -> PatchMethod:
    patch, step = SMALL[kind]
    return kind(patch=patch, step=step)


def scene(seed: int, size: tuple[int, int] = (65, 75)) -> np.ndarray:
    """Clouds and a horizon with two targets and noise, float32 gray levels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = sum(
        rng.uniform(5, 15) * np.sin(y / rng.uniform(5, 20) + x / rng.uniform(5, 20)) for _ in range(4)
    )
    image = 80 + waves + 30 * (y > size[0] * 0.6) + rng.normal(0, 1, size)
    for _ in range(2):
        row, column = rng.uniform(5, size[0] - 5), rng.uniform(5, size[1] - 5)
        image += rng.uniform(40, 90) * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2)
    return image.clip(0, 255).round().astype(np.float32)


def saliency(method: PatchMethod, *images: np.ndarray) -> np.ndarray:
    return method.saliency(torch.from_numpy(np.stack(images))).numpy()


def settings_of(kind: type[PatchMethod], method: PatchMethod) -> dict[str, int]:
    return {"size": method.patch} if kind is MSLSTIPT else {"size": method.patch, "step": method.step}


@each
def test_batches_equal_the_plain_version(kind):
    method = small(kind)
    images = [scene(0), scene(1), scene(2)]
    for image, found in zip(images, saliency(method, *images), strict=True):
        expected = METHODS[kind](image.astype(np.float64), **settings_of(kind, method)).clip(0)
        assert expected.max() > 20
        np.testing.assert_allclose(found, expected, atol=1e-4)


@each
def test_real_crops_equal_the_plain_version(kind, nuaa_frames):
    method = small(kind)
    for image in nuaa_frames[::8]:
        crop = image[20:85, 20:95]
        (found,) = saliency(method, crop)
        expected = METHODS[kind](crop.astype(np.float64), **settings_of(kind, method)).clip(0)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NRAM, PSTNN, RIPT, MSLSTIPT], ids=lambda kind: kind.__name__)
def test_real_frames_equal_the_plain_version(kind, nuaa_frames):
    method = kind()
    compared = 0
    for image in nuaa_frames:
        corner = image[:130, -140:]
        if min(corner.shape) < method.patch:
            continue
        (found,) = saliency(method, corner)
        expected = METHODS[kind](corner.astype(np.float64)).clip(0)
        # Errors of 1e-8 in singular values pass through the non-convex shrinkage of MSLSTIPT in 200 steps.
        np.testing.assert_allclose(found, expected, atol=0.05 if kind is MSLSTIPT else 1e-3)
        compared += 1
    assert compared >= 20


@each
def test_images_of_a_batch_do_not_depend_on_each_other(kind):
    method = small(kind)
    images = [scene(3), np.full((65, 75), 7, np.float32), scene(4), np.zeros((65, 75), np.float32)]
    together = saliency(method, *images)
    for image, found in zip(images, together, strict=True):
        np.testing.assert_allclose(saliency(method, image)[0], found, atol=1e-4)
    assert together[1].max() < 1e-6
    assert together[3].max() < 1e-6


@each
@pytest.mark.parametrize("size", [(1, 1), (1, 12), (7, 5), (33, 18)])
def test_images_smaller_than_a_patch(kind, size):
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, size).astype(np.float32)
    found = saliency(small(kind), image, np.full(size, 9, np.float32))
    assert found.shape == (2, *size)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found[1].max() < 1e-6


@each
def test_targets_stand_out(kind):
    image = scene(6)
    image[30:33, 40:43] = 255
    (found,) = saliency(small(kind), image)
    assert np.unravel_index(found.argmax(), found.shape) in {
        (y, x) for y in range(30, 33) for x in range(40, 43)
    }


@pytest.mark.parametrize("count", [1, 3])
def test_frames_of_a_sequence_are_solved_together(count):
    rng = np.random.default_rng(7)
    frames = [(scene(8) + rng.normal(0, 1, (65, 75))).astype(np.float32) for _ in range(count)]
    found = saliency(MSLSTIPT(patch=24, step=24, frames=3), *frames)
    expected = plain.mslstipt(np.stack(frames).astype(np.float64), size=24).clip(0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_frames_count_for_a_method_of_sequences():
    assert MSLSTIPT(frames=6).length() == 6
    assert MSLSTIPT().length() == IPI().length() == 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (IPI, {"weight": 0.0}),
        (NRAM, {"weight": float("nan")}),
        (PSTNN, {"patch": 1}),
        (IPI, {"step": 51}),
        (RIPT, {"step": 0}),
        (RIPT, {"edge_weight": -1.0}),
        (MSLSTIPT, {"frames": 0}),
        (MSLSTIPT, {"power": 1.0}),
        (MSLSTIPT, {"rank_weight": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(kind, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        kind(**settings)


@pytest.mark.parametrize("shape", [(9, 4), (3, 9, 4), (2, 4, 9), (2, 3, 6, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_shrinkage_equals_that_of_a_full_decomposition(shape, dtype):
    matrices = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    u, s, vh = np.linalg.svd(matrices.numpy(), full_matrices=False)
    expected = (u * np.maximum(s - 1, 0)[..., None, :]) @ vh
    found, values = shrink_singular_values(matrices, lambda s: (s - 1).clamp(min=0))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(values.numpy(), np.maximum(s - 1, 0), atol=1e-10)
    np.testing.assert_allclose(singular_values(matrices).numpy(), s, atol=1e-10)


def test_a_decomposition_that_fails_is_repeated_by_another_algorithm(monkeypatch):
    matrices = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, _ = shrink_singular_values(matrices, lambda s: (s - 1).clamp(min=0))

    def fails(*_args: object, **_settings: object) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    found, _ = shrink_singular_values(matrices, lambda s: (s - 1).clamp(min=0))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-10)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    for kind in METHODS:
        with pytest.raises(InputError, match="does not converge"):
            saliency(small(kind), scene(0))


def test_iteration_stops_for_each_image_by_itself():
    seen = []

    def step(number, state):
        seen.append(state["x"].tolist())
        return {"x": state["x"] - 1}, state["x"] <= 1

    found = iterate({"x": torch.tensor([1.0, 3.0, 9.0])}, step, most=4)["x"]
    assert found.tolist() == [0, 0, 5]
    assert seen == [[1, 3, 9], [2, 8], [1, 7], [6]]


@pytest.mark.parametrize("size", [(20, 20), (31, 47), (12, 70), (5, 3)])
@pytest.mark.parametrize("median", [False, True])
def test_patches_join_to_the_image_they_were_cut_from(size, median):
    image = torch.rand(2, *size, dtype=torch.float64)
    grid = PatchGrid.of(image, 20, 7)
    np.testing.assert_allclose(grid.join(grid.cut(image), median).numpy(), image.numpy(), atol=1e-12)


@pytest.mark.parametrize("median", [False, True])
def test_pixels_of_several_patches_are_combined(median):
    grid = PatchGrid.of(torch.zeros(1, 33, 41), 12, 5)
    patches = torch.rand(1, len(grid.pixels), 12, 12, dtype=torch.float64)
    corners = plain.corners_of(np.zeros((33, 41)), 12, 5)
    expected = plain.join(patches[0].numpy().transpose(1, 2, 0), corners, (33, 41), median)
    np.testing.assert_allclose(grid.join(patches, median)[0].numpy(), expected, atol=1e-12)


def test_structure_tensor_equals_the_plain_version():
    image = scene(9).astype(np.float64)
    found = structure_tensor(torch.from_numpy(image[None]), 1.2, 2.0)
    for values, expected in zip(found, plain.structure_tensor(image, 1.2, 2.0), strict=True):
        np.testing.assert_allclose(values[0].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "dimension"),
    [
        ((9, 8, 7, 6, 5), 5),
        ((900, 8, 7, 6, 5), 1),
        ((900, 800, 7, 6, 5), 2),
        ((9, 8, 7, 6, 1e-20), 4),
        ((1, 1, 1, 0.001, 0.001), 3),
        ((0, 0, 0, 0, 0), 0),
    ],
)
def test_subspaces_end_at_a_steep_drop(values, dimension):
    assert mslstipt.subspace_dimension(torch.tensor(values, dtype=torch.float64), 10).item() == dimension
