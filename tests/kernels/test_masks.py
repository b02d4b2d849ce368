"""Probability maps and masks of windows, against numpy and between the backends."""

import numpy as np
import pytest
import torch
from devices import BACKENDS, device_of

from mclc_gpu.kernels.masks import WindowMaps, window_maps
from mclc_gpu.kernels.packed import Windows

SHAPES = [(7, 9), (1, 1), (33, 32), (5, 1), (64, 64)]
WINDOWS = Windows.pack([(0, 0, 0, height, width, 0, 0, t) for t, (height, width) in enumerate(SHAPES)])


def made(values: np.ndarray, threshold: float, backend: str, **options: torch.Tensor) -> WindowMaps:
    given = torch.from_numpy(values).to(device_of(backend))
    maps = window_maps(given, WINDOWS, threshold, backend=backend, **options)
    return WindowMaps(*(part.cpu() for part in maps))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
def test_counts(backend: str, threshold: float) -> None:
    rng = np.random.default_rng(0)
    divisors = np.array([100, 3, 7, 12, 255])
    counts = [
        rng.integers(0, most + 1, shape).astype(np.int32)
        for most, shape in zip(divisors, SHAPES, strict=True)
    ]
    counts[3][:] = 0
    flat = np.concatenate([count.ravel() for count in counts])
    maps = made(flat, threshold, backend, divisors=torch.from_numpy(divisors))
    starts = WINDOWS.offsets.tolist()
    for count, divisor, first, end in zip(counts, divisors, starts[:-1], starts[1:], strict=True):
        tpm = (count.ravel() / np.float32(divisor)).astype(np.float32)
        assert np.array_equal(maps.tpm[first:end].numpy(), tpm)
        levels = maps.levels[first:end].numpy().view(np.uint16)
        assert np.array_equal(levels, np.round(tpm * 65535).astype(np.uint16))
        # In whole numbers, where the quotient is the threshold itself.
        reaches = (count.ravel() > 0) & (10 * count.ravel() >= round(10 * threshold) * count.max())
        assert np.array_equal(maps.masks[first:end].numpy(), reaches)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_votes_are_added_in_their_order(backend: str) -> None:
    rng = np.random.default_rng(1)
    votes = torch.tensor([3, 1, 5, 254, 2])
    sizes = WINDOWS.sizes.tolist()
    maps = [rng.random((n, size), np.float32) for n, size in zip(votes.tolist(), sizes, strict=True)]
    found = made(np.concatenate([own.ravel() for own in maps]), 0.5, backend, votes=votes)
    expected = []
    for own in maps:
        share, mean = np.float32(1) / np.float32(len(own)), np.zeros(own.shape[1], np.float32)
        for vote in own:
            mean += vote * share
        expected.append(mean)
    assert np.array_equal(found.tpm.numpy(), np.concatenate(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_lies_outside_a_box(backend: str) -> None:
    boxes = torch.tensor([[1, 5, 2, 9], [0, 1, 0, 1], [4, 33, 0, 20], [2, 3, 0, 1], [10, 11, 63, 64]])
    values = np.random.default_rng(2).random(int(WINDOWS.sizes.sum()), np.float32) + np.float32(0.1)
    maps = made(values, 0.0, backend, boxes=boxes)
    inside = []
    for (height, width), (top, bottom, left, right) in zip(SHAPES, boxes.tolist(), strict=True):
        own = np.zeros((height, width), bool)
        own[top:bottom, left:right] = True
        inside.append(own.ravel())
    allowed = np.concatenate(inside)
    assert np.array_equal(maps.masks.numpy(), allowed)
    assert np.array_equal(maps.tpm.numpy(), np.where(allowed, values, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_windows(backend: str) -> None:
    maps = window_maps(torch.zeros(0, device=device_of(backend)), WINDOWS[:0], 0.5, backend=backend)
    assert all(len(part) == 0 for part in maps)


@pytest.mark.parametrize(
    "values", [torch.zeros(3), torch.zeros(int(WINDOWS.sizes.sum()), dtype=torch.float64)]
)
def test_other_values_are_refused(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="values must be float32 or int32"):
        window_maps(values, WINDOWS, 0.5)
