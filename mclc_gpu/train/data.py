"""Training sets and the crops drawn from them: resident on the device where they fit, streamed otherwise."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import network_levels, read_image, read_truth
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.kernels.backend import free_memory

TARGET_SHARE = 0.5  # share of the crops of images with targets that are placed on a target


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Images and masks of several sizes in one buffer: N images of C channels with T target pixels.

    Attributes
    ----------
    planes : Tensor [sum of (C + 1) H W], uint8 or float16
        For each image its C channels of gray levels, then its mask, 0 or 1.
    channels : int
        C.
    offset, height, width : Tensor [N], int64
        Start of each image in `planes`, and its size in pixels.
    first, count : Tensor [N], int64
        Range of each image's entries in `targets`.
    targets : Tensor [T + 1], int32
        row * width + column of target pixels; the last entry belongs to no image.
    """

    planes: Tensor
    channels: int
    offset: Tensor
    height: Tensor
    width: Tensor
    first: Tensor
    count: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Packed":
        """Copy to a device."""
        tensors = (self.offset, self.height, self.width, self.first, self.count, self.targets)
        return Packed(self.planes.to(device), self.channels, *(tensor.to(device) for tensor in tensors))


def pack(frames: Sequence[tuple[np.ndarray, np.ndarray]]) -> Packed:
    """Pack images and masks into one buffer.

    Parameters
    ----------
    frames : sequence of (ndarray [C, H, W], ndarray [H, W])
        Gray levels, uint8 or float16, 0 to 255, and mask, bool. One float16 image makes the whole buffer
        float16, which holds every level of 8 bits exactly.
    """
    wide = any(levels.dtype == np.float16 for levels, _ in frames)
    dtype = np.float16 if wide else np.uint8
    channels = frames[0][0].shape[0]
    sizes = np.array([mask.shape for _, mask in frames], np.int64).reshape(-1, 2)
    lengths = (channels + 1) * sizes.prod(axis=1)
    planes = np.empty(lengths.sum(), dtype)
    offset = np.cumsum(lengths) - lengths
    targets = []
    for (levels, mask), start in zip(frames, offset, strict=True):
        planes[start : start + levels.size] = levels.ravel()
        planes[start + levels.size : start + levels.size + mask.size] = mask.ravel()
        targets.append(np.flatnonzero(mask).astype(np.int32))
    count = np.array([len(own) for own in targets], np.int64)
    return Packed(
        planes=torch.from_numpy(planes),
        channels=channels,
        offset=torch.from_numpy(offset),
        height=torch.from_numpy(sizes[:, 0].copy()),
        width=torch.from_numpy(sizes[:, 1].copy()),
        first=torch.from_numpy(np.cumsum(count) - count),
        count=torch.from_numpy(count),
        targets=torch.from_numpy(np.concatenate([*targets, np.zeros(1, np.int32)])),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Random draws of S crops.

    Attributes
    ----------
    image : Tensor [S], int64
        Index of the image.
    draws : Tensor [S, 4], float64
        Uniform in [0, 1): whether to place the crop on a target, on which pixel of it, and the position along
        rows and columns.
    flips : Tensor [S, 3], bool
        Flip up-down, flip left-right, transpose.
    """

    image: Tensor
    draws: Tensor
    flips: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Plan":
        return Plan(self.image[rows], self.draws[rows], self.flips[rows])

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Plan":
        """Copy to a device."""
        return Plan(self.image.to(device), self.draws.to(device), self.flips.to(device))


def plan_epoch(images: int, crops: int, seed: int, epoch: int) -> Plan:
    """Draw the crops of an epoch with a Philox generator keyed by (seed, epoch).

    Parameters
    ----------
    images : int >= 1
        Number of images. Each is drawn once, in random order, before any is drawn again.
    crops : int >= 0
        Number of crops.
    seed, epoch : int

    Examples
    --------
    >>> from mclc_gpu.train.data import plan_epoch
    >>> sorted(plan_epoch(images=3, crops=6, seed=0, epoch=0).image.tolist())
    [0, 0, 1, 1, 2, 2]
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    rounds = -(-crops // images)
    order = np.concatenate([generator.permutation(images) for _ in range(rounds)])[:crops]
    return Plan(
        image=torch.from_numpy(order.astype(np.int64)),
        draws=torch.from_numpy(generator.random((crops, 4))),
        flips=torch.from_numpy(generator.random((crops, 3)) < 0.5),
    )


def cut(packed: Packed, plan: Plan, size: int) -> Tensor:
    """Cut crops from packed images.

    The position of a crop is uniform over its image. With probability `TARGET_SHARE`, in images that have a
    target, it is instead uniform over the positions that show a target pixel drawn at random. Images smaller
    than the crop lie anywhere inside it and are continued by reflection, masks like images.

    Parameters
    ----------
    packed : Packed
    plan : Plan
        B crops, on the device of `packed`.
    size : int, pixels
        Side of the crops.

    Returns
    -------
    Tensor [B, C + 1, size, size]
        Gray levels, then the mask, in the dtype of the buffer.
    """
    height, width = packed.height[plan.image], packed.width[plan.image]
    count = packed.count[plan.image]
    pick = packed.first[plan.image] + (plan.draws[:, 1] * count).long()
    pixel = packed.targets[pick].long()
    on_target = (plan.draws[:, 0] < TARGET_SHARE) & (count > 0)
    top = _start(height, size, pixel // width, on_target, plan.draws[:, 2])
    left = _start(width, size, pixel % width, on_target, plan.draws[:, 3])
    rows = _lines(top, height, size, plan.flips[:, 0])
    columns = _lines(left, width, size, plan.flips[:, 1])
    inside = rows[:, :, None] * width[:, None, None] + columns[:, None, :]  # [B, size, size]
    inside = torch.where(plan.flips[:, 2, None, None], inside.transpose(1, 2), inside)
    plane = torch.arange(packed.channels + 1, device=height.device)
    start = packed.offset[plan.image, None] + plane * (height * width)[:, None]  # [B, C + 1]
    return packed.planes[start[:, :, None, None] + inside[:, None]]


def _start(length: Tensor, size: int, pixel: Tensor, on_target: Tensor, draw: Tensor) -> Tensor:
    """Return the first row or column of each crop, negative where the image begins inside it."""
    room = length - size
    low, high = room.clamp(max=0), room.clamp(min=0)
    low = torch.where(on_target, torch.maximum(low, pixel - size + 1), low)
    high = torch.where(on_target, torch.minimum(high, pixel), high)
    return low + (draw * (high - low + 1)).long()


def _lines(start: Tensor, length: Tensor, size: int, flip: Tensor) -> Tensor:
    """Return the rows or columns of the image that each crop shows, int64 [B, size]."""
    steps = torch.arange(size, device=start.device)
    steps = torch.where(flip[:, None], size - 1 - steps, steps)
    period = 2 * length[:, None]
    place = (start[:, None] + steps) % period
    return torch.minimum(place, period - 1 - place)


Frame = tuple[np.ndarray, np.ndarray]  # levels uint8 or float16 [C, H, W], mask bool [H, W]

_RESIDENT_SHARE = 0.25  # of the memory that is free at the start; the network needs more of it


@dataclass(eq=False)
class TrainingSet:
    """Images and masks to train on, resident on the device or streamed; see `open_training_set`.

    Attributes
    ----------
    samples : list of Sample
        Usable samples.
    channels : {1, 3}
    mean, std : float
        Of the gray levels of all images; std is 1 where all levels are equal.
    digest : str
        Of all names, levels and masks.
    targets : int
        Images with at least one target pixel.
    skipped : list of Skipped
        Unusable samples.
    device : torch.device
        Device of the batches.
    packed : Packed or None
        All images and masks on the device; None if they are streamed, that is read again every epoch.
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
        """Yield batches of the planned crops on the device.

        Resident sets are cut without waiting for the device. Streamed sets are read by threads; only a few
        batches and the images they are cut from are in memory at a time, pinned where the device is a GPU.

        Parameters
        ----------
        plan : Plan
        batch : int >= 1
            Crops per batch.
        size : int, pixels
            Side of the crops.

        Yields
        ------
        images : Tensor [B, C, size, size], float32
            Normalized by `mean` and `std`.
        truth : Tensor [B, 1, size, size], float32
            0 or 1.

        Raises
        ------
        InputError
            If a file of a streamed set can no longer be read.
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
        for crop in prefetch_map(read, parts):
            yield crop.to(self.device, non_blocking=True)


def open_training_set(
    samples: Sequence[Sample], channels: int, device: torch.device, budget: int | None = None
) -> TrainingSet:
    """Read all samples once, compute their statistics, and keep them on the device if they fit.

    Parameters
    ----------
    samples : sequence of Sample
        Unusable ones are skipped.
    channels : {1, 3}
        Channels of levels, see `mclc_gpu.data.images.network_levels`. Levels are rounded to whole numbers for
        8-bit images and to float16 for others.
    device : torch.device
    budget : int, bytes, optional
        Most memory that a resident set may take; by default a quarter of what is free on the device and on
        the host.

    Raises
    ------
    InputError
        If no sample is usable, or no mask has a target.
    """
    if budget is None:
        budget = int(_RESIDENT_SHARE * min(free_memory(device), free_memory(torch.device("cpu"))))
    usable: list[Sample] = []
    skipped: list[Skipped] = []
    frames: list[Frame] | None = []
    tally = _Tally()

    def read(sample: Sample) -> Frame | Skipped:
        return attempt(sample.image, lambda: _read(channels, sample))

    for sample, frame in zip(samples, prefetch_map(read, samples), strict=True):
        if isinstance(frame, Skipped):
            skipped.append(frame)
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
    """Statistics and digest over all samples."""

    def __init__(self) -> None:
        self.pixels, self.masked, self.sum, self.squares, self.targets = 0, 0, 0.0, 0.0, 0
        self.width = 1  # bytes per value: one float16 image widens the whole buffer
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
        """Size of all levels and masks when packed."""
        return (self.pixels + self.masked) * self.width

    def mean_std(self) -> tuple[float, float]:
        mean = self.sum / self.pixels
        return mean, math.sqrt(max(self.squares / self.pixels - mean**2, 0.0)) or 1.0


def _read(channels: int, sample: Sample) -> Frame:
    image = read_image(sample.image)
    levels = network_levels(image, channels)
    stored = np.rint(levels).astype(np.uint8) if image.dtype == np.uint8 else levels.astype(np.float16)
    return stored, read_truth(sample.mask, image.shape[:2])


def _read_crops(samples: Sequence[Sample], channels: int, size: int, pin: bool, plan: Plan) -> Tensor:
    """Read and cut the crops of one batch, on the CPU."""
    own, place = torch.unique(plan.image, return_inverse=True)
    packed = pack([_read(channels, samples[index]) for index in own.tolist()])
    crops = cut(packed, Plan(place, plan.draws, plan.flips), size)
    return crops.pin_memory() if pin else crops
