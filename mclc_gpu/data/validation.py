"""Validation images and masks at their own size, read once where they fit into memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.errors import Skipped, attempt
from mclc_gpu.kernels.backend import free_memory

Named = tuple[str, np.ndarray, np.ndarray]  # name, image as read, mask bool [H, W]

_MEMORY_SHARE = 0.1


class ValidationSet:
    """Validation images; each iteration gives all of them again, in order.

    Attributes:
        samples: The usable ones.
        skipped: Samples left out.
    """

    def __init__(self, samples: Sequence[Sample], budget: int | None = None) -> None:
        """Read all samples once. `budget`: bytes to keep; by default a tenth of the memory that is free."""
        if budget is None:
            budget = int(_MEMORY_SHARE * free_memory(torch.device("cpu")))
        self.samples: list[Sample] = []
        self.skipped: list[Skipped] = []
        self._kept: list[Named] | None = []
        size = 0
        frames = prefetch_map(lambda sample: attempt(sample.image, lambda: _read(sample)), samples)
        for sample, frame in zip(samples, frames, strict=True):
            if isinstance(frame, Skipped):
                self.skipped.append(frame)
                continue
            self.samples.append(sample)
            size += frame[1].nbytes + frame[2].nbytes
            if self._kept is not None and size <= budget:
                self._kept.append(frame)
            else:
                self._kept = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Named]:
        """Raises InputError when a file that was not kept can no longer be read."""
        return iter(self._kept) if self._kept is not None else prefetch_map(_read, self.samples)


def _read(sample: Sample) -> Named:
    image = read_image(sample.image)
    return sample.name, image, read_mask(sample.mask, image.shape[:2])
