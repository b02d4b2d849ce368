"""Search for false alarms with a detector whose output is its input."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mclc_gpu.data.datasets import Sample
from mclc_gpu.networks.blocks import Detector, Logits
from mclc_gpu.train.data import open_training_set
from mclc_gpu.train.mining import false_alarms


class Echo(Detector):
    """A detector that marks what is brighter than the mean of the training set."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.gain = torch.nn.Parameter(torch.tensor(10.0))

    def segment(self, x: Tensor) -> Logits:
        return Logits((self.gain * (x - 1),))


@pytest.mark.parametrize("budget", [None, 0])
def test_false_alarms_are_bright_places_away_from_targets(tmp_path, budget) -> None:
    bright = {0: [(10, 12), (30, 5)], 1: [(3, 25)]}
    samples = []
    for number in range(2):
        image, mask = np.zeros((40, 30 + number), np.uint8), np.zeros((40, 30 + number), bool)
        mask[20:22, 20:22] = image[20:22, 20:22] = True
        image[20:22, 20:22] = image[20, 24] = 250  # a target, and a pixel three columns from it
        for row, column in bright[number]:
            image[row - 1 : row + 2, column - 1 : column + 2] = 250
        paths = [tmp_path / f"{kind}{number}.png" for kind in ("image", "mask")]
        for path, pixels in zip(paths, (image, mask.astype(np.uint8) * 255), strict=True):
            Image.fromarray(pixels).save(path)
        samples.append(Sample(f"{number}", *paths))
    data = open_training_set(samples, 1, torch.device("cpu"), budget)
    network = Echo().train()
    found = false_alarms(network, data, [1, 0])
    assert network.training
    expected = [(1, 3 * 31 + 25), (0, 10 * 30 + 12), (0, 30 * 30 + 5)]
    assert [tuple(one) for one in found.tolist()] == expected
    assert false_alarms(network, data, []).shape == (0, 2)
