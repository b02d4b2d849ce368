"""The data of the usual training loop. Imports little: every worker of a loader starts by importing it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


class PlainCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random crops and flips of files, one by one: what a detector's repository usually holds."""

    def __init__(
        self, files: Sequence[tuple[Path, Path]], mean: float, std: float, size: int, least: int
    ) -> None:
        """Of images with their masks. `least`: crops of an epoch at least, however few the files."""
        self.files, self.mean, self.std, self.size = files, mean, std, size
        self.count = max(len(files), least)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        (image_file, mask_file), size = self.files[index % len(self.files)], self.size
        image = np.asarray(Image.open(image_file).convert("L"), np.float32)
        mask = np.asarray(Image.open(mask_file).convert("L"), np.float32) / 255
        planes = np.stack([(image - self.mean) / self.std, mask])
        missing = [(0, max(0, size - length)) for length in image.shape]
        planes = np.pad(planes, [(0, 0), *missing])
        top, left = (np.random.randint(length - size + 1) for length in planes.shape[1:])  # noqa: NPY002
        planes = planes[:, top : top + size, left : left + size]
        for axis in (1, 2):
            if np.random.random() < 0.5:  # noqa: NPY002
                planes = np.flip(planes, axis)
        if np.random.random() < 0.5:  # noqa: NPY002
            planes = planes.transpose(0, 2, 1)
        planes = np.ascontiguousarray(planes)
        return torch.from_numpy(planes[:1]), torch.from_numpy(planes[1:])
