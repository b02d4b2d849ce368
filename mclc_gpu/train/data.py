"""Training sets and the crops drawn from them: resident on the device where they fit, streamed otherwise."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import network_levels, read_image, read_truth
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.kernels.backend import free_memory
from mclc_gpu.train.pasting import DRAWS, StampCollector, Stamps, paste

TARGET_SHARE = 0.5  # share of the crops of images with targets that show one, in the paper's schedule


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
    spot : Tensor [S], int64
        row * width + column of a pixel that the crop is to show in place of a target; -1 for none.
    pasting : Tensor [S, DRAWS], float64
        Uniform in [0, 1), see `mclc_gpu.train.pasting.paste`.
    """

    image: Tensor
    draws: Tensor
    flips: Tensor
    spot: Tensor
    pasting: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Plan":
        return Plan(*(tensor[rows] for tensor in self._tensors))

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Plan":
        """Copy to a device."""
        return Plan(*(tensor.to(device) for tensor in self._tensors))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.image, self.draws, self.flips, self.spot, self.pasting


@dataclass(frozen=True, slots=True)
class Placing:
    """Rule by which crops are placed.

    Attributes
    ----------
    target_share : float, 0..1
        Share of the crops of images with targets that show a target.
    margin : float, 0..0.45
        Least distance of that target from the border of the crop, in sides of the crop.
    hard_share : float, 0..1
        Share of the other crops that show a false alarm.
    paste_share : float, 0..1
        Share of the crops into which a target is pasted.
    """

    target_share: float = TARGET_SHARE
    margin: float = 0.0
    hard_share: float = 0.0
    paste_share: float = 0.0


PAPER_PLACING = Placing()


def philox(seed: int, number: int) -> np.random.Generator:
    """Return the generator of an epoch or round."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, number], np.uint64)))


def plan_epoch(
    images: int,
    crops: int,
    seed: int,
    epoch: int,
    placing: Placing = PAPER_PLACING,
    hard: Tensor | None = None,
) -> Plan:
    """Draw the crops of an epoch with a Philox generator keyed by (seed, epoch).

    Parameters
    ----------
    images : int >= 1
        Number of images. Each is drawn once, in random order, before any is drawn again.
    crops : int >= 0
        Number of crops.
    seed, epoch : int
    placing : Placing
    hard : Tensor [H, 2], int64, optional
        Image and row * width + column of false alarms.

    Examples
    --------
    >>> from mclc_gpu.train.data import plan_epoch
    >>> sorted(plan_epoch(images=3, crops=6, seed=0, epoch=0).image.tolist())
    [0, 0, 1, 1, 2, 2]
    """
    generator = philox(seed, epoch)
    rounds = -(-crops // images)
    order = np.concatenate([generator.permutation(images) for _ in range(rounds)])[:crops]
    image = torch.from_numpy(order.astype(np.int64))
    draws = torch.from_numpy(generator.random((crops, 4)))
    flips = torch.from_numpy(generator.random((crops, 3)) < 0.5)
    spot = torch.full((crops,), -1)
    if hard is not None and len(hard):
        chosen = torch.from_numpy(generator.random(crops) < placing.hard_share)
        chosen &= draws[:, 0] >= placing.target_share
        pick = hard[torch.from_numpy(generator.integers(len(hard), size=crops))]
        image, spot = torch.where(chosen, pick[:, 0], image), torch.where(chosen, pick[:, 1], spot)
    return Plan(image, draws, flips, spot, torch.from_numpy(generator.random((crops, DRAWS))))


def cut(packed: Packed, plan: Plan, size: int, placing: Placing = PAPER_PLACING) -> Tensor:
    """Cut crops from packed images.

    The position of a crop is uniform over its image. With probability `placing.target_share`, in images that
    have a target, it is instead uniform over the positions that show a target pixel drawn at random. Images
    smaller than the crop lie anywhere inside it and are continued by reflection, masks like images.

    Parameters
    ----------
    packed : Packed
    plan : Plan
        B crops, on the device of `packed`.
    size : int, pixels
        Side of the crops.
    placing : Placing

    Returns
    -------
    Tensor [B, C + 1, size, size]
        Gray levels, then the mask, in the dtype of the buffer.
    """
    height, width = packed.height[plan.image], packed.width[plan.image]
    count = packed.count[plan.image]
    pick = packed.first[plan.image] + (plan.draws[:, 1] * count).long()
    pixel = torch.where(plan.spot < 0, packed.targets[pick].long(), plan.spot)
    shown = (plan.draws[:, 0] < placing.target_share) & (count > 0) | (plan.spot >= 0)
    margin = int(size * placing.margin)
    top = _start(height, size, margin, pixel // width, shown, plan.draws[:, 2])
    left = _start(width, size, margin, pixel % width, shown, plan.draws[:, 3])
    rows = _lines(top, height, size, plan.flips[:, 0])
    columns = _lines(left, width, size, plan.flips[:, 1])
    inside = rows[:, :, None] * width[:, None, None] + columns[:, None, :]  # [B, size, size]
    inside = torch.where(plan.flips[:, 2, None, None], inside.transpose(1, 2), inside)
    plane = torch.arange(packed.channels + 1, device=height.device)
    start = packed.offset[plan.image, None] + plane * (height * width)[:, None]  # [B, C + 1]
    return packed.planes[start[:, :, None, None] + inside[:, None]]


def _start(length: Tensor, size: int, margin: int, pixel: Tensor, shown: Tensor, draw: Tensor) -> Tensor:
    """Return the first row or column of each crop, negative where the image begins inside it.

    Where `shown`, the crop shows `pixel`, `margin` from its border unless that leads out of the image.
    """
    room = length - size
    low, high = room.clamp(max=0), room.clamp(min=0)
    first = torch.maximum(torch.minimum(pixel - size + 1 + margin, high), low)
    last = torch.minimum(torch.maximum(pixel - margin, low), high)
    low, high = torch.where(shown, first, low), torch.where(shown, last, high)
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
    pixels : int
        Of all masks.
    targets : int
        Images with at least one target pixel.
    skipped : list of Skipped
        Unusable samples.
    device : torch.device
        Device of the batches.
    packed : Packed or None
        All images and masks on the device; None if they are streamed, that is read again every epoch.
    stamps : Stamps or None
        Targets to paste, on the device; None if there are none.
    """

    samples: list[Sample]
    channels: int
    mean: float
    std: float
    digest: str
    pixels: int
    targets: int
    skipped: list[Skipped]
    device: torch.device
    packed: Packed | None = field(repr=False)
    stamps: Stamps | None = field(repr=False)

    def batches(
        self,
        plan: Plan,
        batch: int,
        size: int,
        placing: Placing = PAPER_PLACING,
        sides: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
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
        placing : Placing
        sides : sequence of int, pixels, optional
            Side with which the crops of each batch are cut, to be resampled to `size`.

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
        if self.packed is not None:
            plan = plan.to(self.device)
        starts = range(0, len(plan), batch)
        parts = [(plan[start : start + batch], size) for start in starts]
        if sides is not None:
            parts = [(part, side) for (part, _), side in zip(parts, sides, strict=True)]
        crops = self._streamed(parts, placing) if self.packed is None else self._cut(parts, placing)
        for (part, _), crop in zip(parts, crops, strict=True):
            if placing.paste_share and self.stamps is not None:
                crop = paste(crop, self.stamps, part.pasting.to(self.device), placing.paste_share)
            images = (crop[:, :-1].float() - self.mean) / self.std
            truth = crop[:, -1:].float()
            if crop.shape[-1] != size:
                images, truth = _resample(images, size), (_resample(truth, size) > 0.5).float()
            yield images, truth

    def _cut(self, parts: Sequence[tuple[Plan, int]], placing: Placing) -> Iterator[Tensor]:
        assert self.packed is not None
        for part, side in parts:
            yield cut(self.packed, part, side, placing)

    def _streamed(self, parts: Sequence[tuple[Plan, int]], placing: Placing) -> Iterator[Tensor]:
        pin = self.device.type == "cuda"
        read = partial(_read_crops, self.samples, self.channels, placing, pin)
        for crop in prefetch_map(read, parts):
            yield crop.to(self.device, non_blocking=True)

    def frames(self, chosen: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield some images as the network takes them.

        Yields
        ------
        index : int
            In `samples`.
        image : Tensor [1, C, H, W], float32
            Normalized by `mean` and `std`.
        mask : Tensor [H, W], bool
        """
        for index, planes in zip(chosen, self._planes(chosen), strict=True):
            yield index, (planes[None, :-1].float() - self.mean) / self.std, planes[-1] > 0

    def _planes(self, chosen: Sequence[int]) -> Iterator[Tensor]:
        """Yield gray levels and mask [C + 1, H, W] of some images on the device."""
        if self.packed is None:
            read = partial(_read, self.channels)
            for frame in prefetch_map(read, [self.samples[index] for index in chosen]):
                yield torch.from_numpy(np.concatenate([frame[0], frame[1][None].astype(frame[0].dtype)])).to(
                    self.device
                )
        else:
            # The sizes are needed here, not on the device.
            sizes = torch.stack([self.packed.offset, self.packed.height, self.packed.width], 1).tolist()
            for index in chosen:
                start, height, width = sizes[index]
                length = (self.channels + 1) * height * width
                yield self.packed.planes[start : start + length].view(-1, height, width)


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
    tally, collector = _Tally(), StampCollector()

    def read(sample: Sample) -> Frame | Skipped:
        return attempt(sample.image, lambda: _read(channels, sample))

    for sample, frame in zip(samples, prefetch_map(read, samples), strict=True):
        if isinstance(frame, Skipped):
            skipped.append(frame)
            continue
        usable.append(sample)
        tally.add(sample.name, frame)
        collector.add(*frame)
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
    return TrainingSet(
        usable,
        channels,
        mean,
        std,
        digest,
        tally.masked,
        tally.targets,
        skipped,
        device,
        packed,
        collector.stamps(device),
    )


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


def _read_crops(
    samples: Sequence[Sample], channels: int, placing: Placing, pin: bool, part: tuple[Plan, int]
) -> Tensor:
    """Read and cut the crops of one batch, on the CPU."""
    plan, side = part
    own, place = torch.unique(plan.image, return_inverse=True)
    packed = pack([_read(channels, samples[index]) for index in own.tolist()])
    crops = cut(packed, replace(plan, image=place), side, placing)
    return crops.pin_memory() if pin else crops


def _resample(planes: Tensor, size: int) -> Tensor:
    smooth = planes.shape[-1] > size
    return F.interpolate(planes, (size, size), mode="bilinear", align_corners=False, antialias=smooth)


def vary_gain(images: Tensor, strength: float) -> Tensor:
    """Vary gain, offset, gamma and noise of crops, each by its own draw from torch's global generator.

    Between the darkest and the brightest level of a crop, levels are raised to the power exp(0.15 s n), then
    multiplied by exp(0.15 s n) and shifted by 0.2 s n, with standard normal n and strength s; half of the
    crops receive normal noise with a standard deviation of up to 0.08 s.

    Parameters
    ----------
    images : Tensor [B, C, H, W], float32
        Normalized.
    strength : float >= 0
        1: as above; 0 changes nothing.

    Returns
    -------
    Tensor [B, C, H, W], float32
    """
    count, device = len(images), images.device
    normal = torch.randn(3, count, 1, 1, 1, device=device) * strength
    uniform = torch.rand(2, count, 1, 1, 1, device=device)
    low = images.amin((1, 2, 3), keepdim=True)
    extent = (images.amax((1, 2, 3), keepdim=True) - low).clamp(min=1e-3)
    curved = low + extent * ((images - low) / extent).clamp(0, 1) ** torch.exp(0.15 * normal[0])
    varied = curved * torch.exp(0.15 * normal[1]) + 0.2 * normal[2]
    noise = torch.where(uniform[0] < 0.5, 0.08 * strength * uniform[1], 0.0)
    return varied + noise * torch.randn_like(images)
