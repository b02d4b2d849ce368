"""A detector with a known output: a pixel is a target where it is bright."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mclc_gpu.detect.checkpoint import Normalization, Trained
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.networks.blocks import Detector, Logits

PLAIN = Normalization(0.0, 1.0)


class Bright(Detector):
    """Detector with probability 1/2 at gray level 128, 0.73 at 138, 0.27 at 118; counts its calls."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.limit = nn.Parameter(torch.tensor(128.0))
        self.calls = 0

    def segment(self, x: torch.Tensor) -> Logits:
        self.calls += 1
        return Logits(((x - self.limit) / 10,))


def probability_of(level: float) -> float:
    return 1 / (1 + np.exp((128 - level) / 10))


def bright_predictor(**changes: Any) -> Predictor:
    return Predictor(Bright(), PLAIN, **changes)


def bright_checkpoint(path: Path, device: object) -> Trained:
    """Return the bright detector; stands in for `load_checkpoint`."""
    del path, device
    return Trained(Bright().eval(), "bright", 1, PLAIN, {"network": "bright", "lr": {"first": 0.05}}, {})


def write_scene(folder: Path, name: str, levels: dict[tuple[int, int, int, int], int], size=(40, 50)) -> None:
    """Write an image of gray level 20 with boxes (row, column, height, width) of other levels."""
    image = np.full(size, 20, np.uint8)
    for (row, column, height, width), level in levels.items():
        image[row : row + height, column : column + width] = level
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{name}.png")
