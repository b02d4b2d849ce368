"""Data and a detector that train in a moment: frames with a bright square each, three convolutions."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from mclc_gpu.data.datasets import Sample
from mclc_gpu.networks.blocks import Detector, Logits


class Tiny(Detector):
    """A detector with all that can go wrong: batch norm, dropout and a side output."""

    smallest_batch = 2

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        )
        self.head, self.side = nn.Conv2d(8, 1, 3, padding=1), nn.Conv2d(8, 1, 1)

    def segment(self, x: Tensor) -> Logits:
        body = self.body(x)
        return Logits((self.head(body), self.side(body)) if self.training else (self.head(body),))


class Plain(Detector):
    """A detector without batch norm and dropout: its output for an image does not depend on the others."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def segment(self, x: Tensor) -> Logits:
        return Logits((self.body(x),))


def write_frames(folder: Path, count: int = 6, side: int = 40, seed: int = 0) -> list[Sample]:
    """Write images/ and masks/ of `count` frames, of several sizes, and return them as samples."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        height, width = side + i, side - i
        image = rng.normal(60, 8, (height, width))
        mask = np.zeros((height, width), bool)
        top, left = rng.integers(2, side - 14, 2)
        mask[top : top + 5, left : left + 5] = True
        image[mask] += 120
        sample = Sample(f"frame{i}", folder / "images" / f"frame{i}.png", folder / "masks" / f"frame{i}.png")
        for path, pixels in ((sample.image, image.clip(0, 255)), (sample.mask, mask * 255)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        samples.append(sample)
    return samples


def run_argv(root: Path, out: Path, command: str, *more: object) -> list[str]:
    """Return the arguments of a command on `root`; `predict` takes the detector of root/train."""
    given = [command, "--images", root / "images", "--out", out, "--device", "cpu", *more]
    if command == "predict":
        given += ["--checkpoint", root / "train" / "best.pt"]
    else:
        given += ["--points-from-masks", root / "masks"]
    return list(map(str, given))
