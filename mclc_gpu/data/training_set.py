"""Images and masks to train on: resident on the device where they fit, else streamed from their files."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mclc_gpu.data.ahead import ahead
from mclc_gpu.data.crops import Packed, Plan, cut, pack
from mclc_gpu.data.datasets import pair_files
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.levels import gray_levels
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import free_memory

Frame = tuple[np.ndarray, np.ndarray]  # levels uint8 or float16 [C, H, W], mask bool [H, W]

_RESIDENT_SHARE = 0.25  # of the memory free at the start: the network's own needs come on top


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its mask, as files. Names tell samples apart, in reports and across data sets."""

    name: str
    image: Path
    mask: Path


def pair_samples(
    images: Mapping[str, Path], masks: Mapping[str, Path], prefix: str = ""
) -> tuple[list[Sample], list[Skipped]]:
    """Samples of files by stem, and the images without a mask; `prefix` goes before the stems as names."""
    pairs, skipped = pair_files(images, masks)
    return [Sample(prefix + stem, image, mask) for stem, (image, mask) in pairs.items()], skipped


@dataclass(eq=False)
class TrainingSet:
    """What there is to train on; see `open_training_set`.

    Attributes:
        samples: The usable ones.
        channels: 1 or 3.
        mean, std: Of all gray levels of all images; std is 1 where they do not differ.
        digest: Of all names, levels and masks.
        targets: Images with at least one target pixel.
        skipped: Samples left out.
        device: Where batches go.
        packed: All images and masks on the device; None: they are read anew each epoch.
    """

    samples: list[Sample]
    channels: int
    mean: float
    std: float
    digest: str
    targets: int
    skipped: list[Skipped]
    device: torch.device
    packed: Packed | None = field(repr=False)

    def batches(self, plan: Plan, batch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The planned crops, `batch` at a time, on the device.

        Yields images, normalised float32 [B, C, size, size], and truth, float32 [B, 1, size, size], 0 or 1.
        Resident sets are cut without waiting for the device. Streamed ones are read by threads; only a few
        batches and the images they are cut from are in memory at a time, pinned where the device is a GPU.

        Raises:
            InputError: A file of a streamed set can no longer be read.
        """
        crops = self._streamed(plan, batch, size) if self.packed is None else self._cut(plan, batch, size)
        for crop in crops:
            images = (crop[:, :-1].float() - self.mean) / self.std
            yield images, crop[:, -1:].float()

    def _cut(self, plan: Plan, batch: int, size: int) -> Iterator[Tensor]:
        assert self.packed is not None
        plan = plan.to(self.device)
        for start in range(0, len(plan), batch):
            yield cut(self.packed, plan[start : start + batch], size)

    def _streamed(self, plan: Plan, batch: int, size: int) -> Iterator[Tensor]:
        pin = self.device.type == "cuda"
        parts = (plan[start : start + batch] for start in range(0, len(plan), batch))
        read = partial(_read_crops, self.samples, self.channels, size, pin)
        for crop in ahead(read, parts):
            yield crop.to(self.device, non_blocking=True)


def open_training_set(
    samples: Sequence[Sample], channels: int, device: torch.device, budget: int | None = None
) -> TrainingSet:
    """Read all samples once: what is usable is counted, and kept on the device where it fits.

    Levels are those of `gray_levels`, rounded to whole numbers for 8-bit images and to float16 for others.
    `budget`: bytes that the set may take; by default a quarter of the memory that is free on the device and
    on the host.

    Raises:
        InputError: No sample is usable, or no mask has a target.
    """
    if budget is None:
        budget = int(_RESIDENT_SHARE * min(free_memory(device), free_memory(torch.device("cpu"))))
    usable: list[Sample] = []
    skipped: list[Skipped] = []
    frames: list[Frame] | None = []
    tally = _Tally()
    for sample, (frame, problem) in zip(samples, ahead(partial(_try, channels), samples), strict=True):
        if frame is None:
            skipped.append(Skipped(str(sample.image), problem))
            continue
        usable.append(sample)
        tally.add(sample.name, frame)
        if frames is not None and tally.bytes <= budget:
            frames.append(frame)
        else:
            frames = None
    if not usable:
        raise InputError(
            f"nothing to train on: {skipped[0].file}: {skipped[0].why}"
            if skipped
            else "no images to train on"
        )
    if not tally.targets:
        raise InputError(
            f"nothing to train on: none of the {len(usable)} masks has a target, "
            f"such as {usable[0].mask}; give masks with targets"
        )
    mean, std = tally.mean_std()
    packed = None if frames is None else pack(frames).to(device)
    digest = tally.digest.hexdigest()
    return TrainingSet(usable, channels, mean, std, digest, tally.targets, skipped, device, packed)


class _Tally:
    """Counts over all samples."""

    def __init__(self) -> None:
        self.pixels, self.masked, self.sum, self.squares, self.targets = 0, 0, 0.0, 0.0, 0
        self.width = 1  # bytes a value: one float16 image widens the whole buffer
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, name: str, frame: Frame) -> None:
        levels, mask = frame
        self.pixels += levels.size
        self.masked += mask.size
        self.width = max(self.width, levels.itemsize)
        self.sum += float(levels.sum(dtype=np.float64))
        self.squares += float(np.square(levels, dtype=np.float64).sum())
        self.targets += bool(mask.any())
        self.digest.update(f"{name}\n{levels.shape}{levels.dtype}\n".encode())
        self.digest.update(levels.tobytes())
        self.digest.update(np.packbits(mask).tobytes())

    @property
    def bytes(self) -> int:
        """Of all levels and masks, packed."""
        return (self.pixels + self.masked) * self.width

    def mean_std(self) -> tuple[float, float]:
        mean = self.sum / self.pixels
        return mean, math.sqrt(max(self.squares / self.pixels - mean**2, 0.0)) or 1.0


def _read(channels: int, sample: Sample) -> Frame:
    image = read_image(sample.image)
    levels = gray_levels(image, channels)
    stored = np.rint(levels).astype(np.uint8) if image.dtype == np.uint8 else levels.astype(np.float16)
    return stored, read_mask(sample.mask, image.shape[:2])


def _try(channels: int, sample: Sample) -> tuple[Frame | None, str]:
    """A sample's levels and mask, or what is wrong with it."""
    try:
        return _read(channels, sample), ""
    except InputError as error:
        return None, Skipped.because(sample.image, error).why


def _read_crops(samples: Sequence[Sample], channels: int, size: int, pin: bool, plan: Plan) -> Tensor:
    """Crops of one batch, on the CPU."""
    own, place = torch.unique(plan.image, return_inverse=True)
    packed = pack([_read(channels, samples[index]) for index in own.tolist()])
    crops = cut(packed, Plan(place, plan.draws, plan.flips), size)
    return crops.pin_memory() if pin else crops
