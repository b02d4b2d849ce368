"""MPCM and WSLCM against plain numpy, written from their formulas one cell at a time."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage

from mclc_gpu.bench import filters
from mclc_gpu.classical.mpcm import MPCM
from mclc_gpu.classical.wslcm import WSLCM


def reference(image: np.ndarray, method: MPCM | WSLCM) -> np.ndarray:
    plain = filters.mpcm if isinstance(method, MPCM) else filters.wslcm
    return plain(image, **asdict(method))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.min() >= 0
    # Differences of float32 means near 255 are good to 5e-5 gray levels, and their products to some 1e-3.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * max(expected.max(), 200))


METHODS = [
    MPCM(),
    MPCM(smallest=1, largest=1),
    MPCM(smallest=5, largest=15),
    WSLCM(),
    WSLCM(median=1),
    WSLCM(smallest=3, largest=5, brightest=2, least_deviation=0.5, median=5),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("size", [(40, 53), (7, 60), (4, 4), (1, 1), (1, 9)])
def test_formulas(method, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *size)).astype(np.float32)
    images[1] = ndimage.gaussian_filter(images[1], 2)
    images[2] = 20 * (rng.random(size) < 0.05) * images[2] / 256
    found = method.saliency(torch.from_numpy(images)).numpy()
    for image, one in zip(images, found, strict=True):
        assert_close(one, reference(image, method))


@pytest.mark.parametrize("method", [MPCM(), WSLCM()], ids=str)
@pytest.mark.parametrize("side", [40, pytest.param(1024, marks=pytest.mark.slow)])
def test_real_frames(nuaa_frames, method, side):
    for frame in nuaa_frames:
        image = np.ascontiguousarray(frame[:side, :side])
        (found,) = method.saliency(torch.from_numpy(image[None])).numpy()
        assert_close(found, reference(image, method))


@pytest.mark.parametrize("method", [MPCM(), WSLCM()], ids=str)
def test_a_small_bright_target_stands_out(method):
    y, x = np.mgrid[:64, :64]
    image = 60 + 0.5 * x + 80 * np.exp(-((x - 30) ** 2 + (y - 30) ** 2) / 8)
    found = method.saliency(torch.from_numpy(image[None].astype(np.float32)))[0].numpy()
    assert np.unravel_index(found.argmax(), found.shape) == (30, 30)
    assert found[abs(y - 30) + abs(x - 30) > 20].max() < found.max() / 100


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (MPCM, {"smallest": 4}, "odd"),
        (MPCM, {"smallest": 5, "largest": 3}, "order"),
        (WSLCM, {"brightest": 26}, "brightest"),
        (WSLCM, {"least_deviation": 0.0}, "least_deviation"),
        (WSLCM, {"median": 2}, "median"),
    ],
)
def test_parameters_out_of_range(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)
