"""False alarms of a network in training on its own training images, from which crops are then cut."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from mclc_gpu.detect.inference import evaluating, probability
from mclc_gpu.networks.blocks import Detector
from mclc_gpu.train.data import TrainingSet

_LEAST_PROBABILITY = 0.2
_DISTANCE = 3  # pixels around a target in which nothing is a false alarm
_EIGHT = np.ones((3, 3), bool)


def false_alarms(network: Detector, data: TrainingSet, chosen: Sequence[int], amp: bool = False) -> Tensor:
    """Find the components of probability > 0.2 that are more than 3 px from every target.

    Parameters
    ----------
    network : Detector
    data : TrainingSet
    chosen : sequence of int
        Images to search.
    amp : bool
        See `mclc_gpu.detect.inference.probability`.

    Returns
    -------
    Tensor [H, 2], int64
        Image, and row * width + column of the pixel at the centroid, on the CPU.
    """
    found: list[tuple[int, int]] = []
    with evaluating(network):
        for index, image, mask in data.frames(chosen):
            near = F.max_pool2d(mask[None, None].float(), 2 * _DISTANCE + 1, 1, _DISTANCE)[0, 0] > 0
            alarm = (probability(network, image, amp=amp)[0] > _LEAST_PROBABILITY) & ~near
            labels, count = ndimage.label(alarm.cpu().numpy(), _EIGHT)
            width = alarm.shape[1]
            centers = ndimage.center_of_mass(labels > 0, labels, range(1, count + 1))
            found += [(index, round(row) * width + round(column)) for row, column in centers]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
