"""Connectivity enforcement against scikit-image's, bit for bit."""

import numpy as np
import pytest
import torch
from devices import BACKENDS, device_of
from skimage.segmentation._slic import _enforce_label_connectivity_cython

from mclc_gpu.kernels import connectivity_triton
from mclc_gpu.kernels.slic import enforce_connectivity


def random_labels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Label images as SLIC leaves them and worse: white noise, Voronoi cells, Voronoi cells with specks."""
    count = int(rng.integers(1, 10))
    if rng.random() < 0.3:
        return rng.integers(0, count, (height, width)).astype(np.int32)
    seeds = rng.uniform(0, (height, width), (count, 2))
    pixels = np.stack(np.mgrid[:height, :width], axis=-1)
    labels = ((pixels[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
    specks = rng.random(labels.shape) < rng.choice([0.0, 0.05, 0.2])
    labels[specks] = rng.integers(0, count, int(specks.sum()))
    return labels.astype(np.int32)


def reference(labels: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    images = labels.astype(np.intp)[:, None]
    return np.concatenate(
        [_enforce_label_connectivity_cython(image, min_size, max_size, start_label=0) for image in images]
    )


def check(labels: np.ndarray, min_size: int, max_size: int, backend: str) -> None:
    given = torch.from_numpy(labels).to(device_of(backend))
    ours = enforce_connectivity(given, min_size, max_size, backend=backend)
    assert ours.dtype == torch.int32
    np.testing.assert_array_equal(ours.cpu().numpy(), reference(labels, min_size, max_size))


SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (1, 2), (5, 17), (16, 7), (22, 22), (31, 6)]
LIMITS = [(0, 1), (1, 2), (3, 2), (2, 5), (9, 4), (4, 1000), (30, 8), (10, 60), (26, 161), (1000, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_cpu_equals_scikit_image(shape: tuple[int, int], limits: tuple[int, int]) -> None:
    rng = np.random.default_rng([*shape, *limits])
    check(np.stack([random_labels(rng, *shape) for _ in range(60)]), *limits, backend="cpu")


@pytest.mark.parametrize(
    ("batch", "shape", "limits", "programs"),
    [
        (3, (1, 1), (5, 3), 3),
        (5, (1, 7), (2, 3), 5),
        (4, (6, 1), (3, 2), 4),
        (20, (3, 3), (3, 4), 1),
        (30, (5, 8), (0, 1), 1),
        (30, (8, 5), (30, 8), 1),
        (32, (8, 9), (6, 1000), 1),
        (40, (7, 6), (4, 14), 2),
    ],
    ids=str,
)
def test_triton_equals_scikit_image(
    batch: int,
    shape: tuple[int, int],
    limits: tuple[int, int],
    programs: int,
    device: torch.device,
) -> None:
    rng = np.random.default_rng([batch, *shape, *limits])
    labels = np.stack([random_labels(rng, *shape) for _ in range(batch)])
    given = torch.from_numpy(labels).to(device)
    ours = connectivity_triton.launch(given, *limits, programs_wanted=programs).cpu()
    np.testing.assert_array_equal(ours.numpy(), reference(labels, *limits))


def test_max_size_below_one_counts_as_one() -> None:
    for backend in BACKENDS:
        labels = torch.zeros(1, 3, 4, dtype=torch.int32, device=device_of(backend))
        assert enforce_connectivity(labels, 0, 0, backend=backend).flatten().tolist() == list(range(12))


def test_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(7)
    labels = torch.from_numpy(np.stack([random_labels(rng, 13, 19) for _ in range(9)]))
    together = enforce_connectivity(labels, 8, 40)
    for i in range(9):
        assert torch.equal(enforce_connectivity(labels[i : i + 1], 8, 40)[0], together[i])


def test_reads_strided_labels_and_keeps_them() -> None:
    labels = torch.from_numpy(random_labels(np.random.default_rng(3), 14, 15))[None]
    turned, before = labels.transpose(1, 2), labels.clone()
    ours = enforce_connectivity(turned, 5, 50)
    assert torch.equal(ours, enforce_connectivity(turned.contiguous(), 5, 50))
    assert torch.equal(labels, before)


def test_empty_batch() -> None:
    assert enforce_connectivity(torch.zeros(0, 4, 5, dtype=torch.int32), 1, 5).shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, 5, dtype=torch.int32), "int32"),
        (torch.zeros(1, 4, 5, dtype=torch.int64), "int32"),
        (torch.full((1, 2, 2), -1, dtype=torch.int32), ">= 0"),
    ],
)
def test_refuses_bad_labels(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enforce_connectivity(labels, 1, 5)
