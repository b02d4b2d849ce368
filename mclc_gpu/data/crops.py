"""Random crops of images of any size, cut from one buffer by one indexing operation.

What is drawn for a crop depends on the seed, the epoch and the crop's number in the epoch alone: not on the
device, the batches, the number of processes or where a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TARGET_SHARE = 0.5  # of the crops of images with targets: those that are placed on a target


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Images and masks of several sizes in one buffer. N images of C channels, T target pixels.

    Attributes:
        planes: uint8 or float16 [sum of (C + 1) H W]: image after image its C channels of gray levels, then
            its mask, 0 or 1.
        channels: C.
        offset, height, width: int64 [N]: where an image starts in `planes`, and its size.
        first, count: int64 [N]: the image's share of `targets`.
        targets: int32 [T + 1]: row * width + column of target pixels; the last entry belongs to none.
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
        """The same on a device."""
        tensors = (self.offset, self.height, self.width, self.first, self.count, self.targets)
        return Packed(self.planes.to(device), self.channels, *(tensor.to(device) for tensor in tensors))


def pack(frames: Sequence[tuple[np.ndarray, np.ndarray]]) -> Packed:
    """Pack (levels, mask) pairs: uint8 or float16 [C, H, W], 0 to 255, and bool [H, W].

    One float16 image makes the whole buffer float16, which holds every level of 8 bits exactly.
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
    """What is drawn for S crops.

    Attributes:
        image: int64 [S]: index of the image.
        draws: float64 [S, 4], uniform in [0, 1): whether to place the crop on a target, on which pixel of it,
            and where along rows and columns.
        flips: bool [S, 3]: upside down, left to right, rows for columns.
    """

    image: Tensor
    draws: Tensor
    flips: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Plan":
        return Plan(self.image[rows], self.draws[rows], self.flips[rows])

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Plan":
        """The same on a device."""
        return Plan(self.image.to(device), self.draws.to(device), self.flips.to(device))


def plan_epoch(images: int, crops: int, seed: int, epoch: int) -> Plan:
    """Draw an epoch: every image once in random order, then again until there are as many crops as asked.

    The generator is Philox, keyed by (seed, epoch).
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
    """Cut crops: [B, C + 1, size, size] of the buffer's type, the mask last.

    A crop lies anywhere in its image with equal chance. With the chance `TARGET_SHARE`, in images that have a
    target, it instead lies anywhere where it shows a target pixel drawn at random. Images smaller than the
    crop lie anywhere inside it and are continued around by their mirror images, masks like images. `packed`
    and `plan` are on one device.
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
    """First row or column of each crop, negative where the image begins inside it."""
    room = length - size
    low, high = room.clamp(max=0), room.clamp(min=0)
    low = torch.where(on_target, torch.maximum(low, pixel - size + 1), low)
    high = torch.where(on_target, torch.minimum(high, pixel), high)
    return low + (draw * (high - low + 1)).long()


def _lines(start: Tensor, length: Tensor, size: int, flip: Tensor) -> Tensor:
    """Rows or columns of the image that each crop shows, int64 [B, size]."""
    steps = torch.arange(size, device=start.device)
    steps = torch.where(flip[:, None], size - 1 - steps, steps)
    period = 2 * length[:, None]
    place = (start[:, None] + steps) % period
    return torch.minimum(place, period - 1 - place)
