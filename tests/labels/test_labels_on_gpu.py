"""The chain from images and points to masks on a GPU, or on the interpreter in place of one."""

import numpy as np
import pytest
import torch

from mclc_gpu import Point, label_images
from mclc_gpu.labels.config import preset


def frames() -> tuple[list[np.ndarray], list[list[Point]]]:
    """Return a gray and a colored image, of 8 and 16 bits, with a bright target each, and their clicks."""
    noise = np.random.default_rng(0)
    gray = noise.integers(40, 48, (30, 37)).astype(np.uint8)
    gray[11:14, 20:22] = 200
    colored = noise.integers(900, 1100, (24, 41, 3)).astype(np.uint16)
    colored[5:8, 9:13] = 40000
    return [gray, colored], [[Point(21, 12, "point")], [Point(10, 6, "point")]]


@pytest.mark.parametrize("name", ["default", "paper"])
def test_labels_equal_those_of_the_cpu(device: torch.device, name: str) -> None:
    config = preset(name) if name == "default" else preset(name, trials=2)
    images, points = frames()
    ours = label_images(images, points, config, device=str(device))
    theirs = label_images(images, points, config, device="cpu")
    assert len(ours) == len(theirs) == 2
    for our, their in zip(ours, theirs, strict=True):
        # As the files hold them: a GPU returns maps of 16 bits.
        assert np.array_equal(np.rint(our.tpm * 65535), np.rint(their.tpm * 65535))
        assert np.array_equal(our.mask, their.mask)
        assert our.mask.any()
