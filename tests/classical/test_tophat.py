"""The white top-hat against scipy's morphology."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage

from mclc_gpu.bench import filters
from mclc_gpu.classical.tophat import TopHat


def reference(image: np.ndarray, method: TopHat) -> np.ndarray:
    return filters.tophat(image, **asdict(method))


@pytest.mark.parametrize(
    "method",
    [
        TopHat(),
        TopHat(radius=1),
        TopHat(radius=9),
        TopHat("ring"),
        TopHat("ring", 4, 0),
        TopHat("ring", 7, 6),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(40, 53), (7, 90), (5, 5), (1, 1), (1, 12)])
def test_it_is_the_image_less_its_background(method, size):
    images = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.float32)
    images[2] = ndimage.gaussian_filter(images[2], 3)
    found = method.saliency(torch.from_numpy(images)).numpy()
    for image, one in zip(images, found, strict=True):
        np.testing.assert_array_equal(one, reference(image, method))


def test_real_frames(nuaa_frames):
    for method in (TopHat(), TopHat("ring")):
        for image in nuaa_frames:
            (found,) = method.saliency(torch.from_numpy(image[None])).numpy()
            np.testing.assert_array_equal(found, reference(image, method))


def test_a_disk_keeps_small_targets_and_a_ring_compares_them_with_their_surroundings():
    y, x = np.mgrid[:60, :60]
    slope = (x + y).astype(np.float32)
    target = (abs(y - 30) <= 1) & (abs(x - 30) <= 1)
    image = torch.from_numpy(np.where(target, slope + 50, slope)[None].astype(np.float32))
    for method in (TopHat(), TopHat("ring")):
        found = method.saliency(image)[0].numpy()
        assert found[target].min() > 2 * found[~target].max()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"element": "cross"}, "element"),
        ({"radius": 0}, "radius"),
        ({"radius": 65}, "radius"),
        ({"element": "ring", "inner": 5}, "inner"),
        ({"element": "ring", "inner": -1}, "inner"),
    ],
)
def test_parameters_out_of_range(wrong, name):
    with pytest.raises(ValueError, match=name):
        TopHat(**wrong)
