"""Images, windows and marks of a batch, packed into tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mclc_gpu.kernels.config import MAX_WINDOW

MAX_SEEDS = 254  # with the click, a trial's counts fit a byte
WINDOW_COLUMNS = ("image", "top", "left", "height", "width", "click_row", "click_column", "target")


@dataclass(frozen=True)
class PackedImages:
    """Images of any sizes in one buffer.

    Attributes
    ----------
    data : Tensor [elements], uint8 or float32
        All images behind one another, each planar [channels, height, width]. uint8 values are gray levels
        0..255 (salt is 255, pepper 0); float32 windows are scaled by their own range (salt is the window's
        maximum).
    table : Tensor [images, 4], int64
        Offset into data, height, width, channels (1 or 3).
    """

    data: torch.Tensor
    table: torch.Tensor

    @staticmethod
    def pack(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "PackedImages":
        """Pack images [H, W] or [H, W, 3], all uint8 or all of one other real dtype (kept as float32).

        Raises
        ------
        ValueError
            No images, mixed or unusable dtypes, other shapes, or values that are not finite.
        """
        if not images:
            raise ValueError("no images to pack")
        byte = images[0].dtype == np.uint8
        flat, rows, offset = [], [], 0
        for image in images:
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
                raise ValueError(
                    f"an image must be [H, W] or [H, W, 3] and not empty, got {list(image.shape)}"
                )
            if (image.dtype == np.uint8) != byte or image.dtype.kind not in "uif":
                raise ValueError("images packed together must be all uint8 or all of another real dtype")
            planar = image if image.ndim == 2 else image.transpose(2, 0, 1)
            with np.errstate(over="ignore"):
                planar = np.ascontiguousarray(planar, np.uint8 if byte else np.float32).reshape(-1)
            if not byte and not np.isfinite(planar).all():
                raise ValueError("an image holds NaN or infinite values, or some too large for float32")
            rows.append((offset, image.shape[0], image.shape[1], 1 if image.ndim == 2 else 3))
            flat.append(planar)
            offset += planar.size
        # From page-locked memory a GPU takes them while this thread goes on.
        pinned = torch.device(device).type == "cuda"
        data = torch.empty(offset, dtype=torch.uint8 if byte else torch.float32, pin_memory=pinned)
        np.concatenate(flat, out=data.numpy())
        table = torch.tensor(rows, dtype=torch.int64)
        return PackedImages(data.to(device, non_blocking=pinned), table.to(device))


@dataclass(frozen=True)
class Seeds:
    """Further pixels that mark the targets beside their clicks, as several clicks or a scribble do.

    A target may have up to `MAX_SEEDS`.

    Attributes
    ----------
    offsets : Tensor [targets + 1], int64, on the CPU
    pixels : Tensor [seeds], int64, on the CPU
        Row * width + column within the window; those of target t are pixels[offsets[t] : offsets[t + 1]].
    """

    offsets: torch.Tensor
    pixels: torch.Tensor

    @staticmethod
    def pack(seeds: Sequence[Sequence[int]]) -> "Seeds":
        """Of one sequence of pixels per target."""
        sizes = torch.tensor([0, *map(len, seeds)], dtype=torch.int64)
        flat = torch.tensor([pixel for own in seeds for pixel in own], dtype=torch.int64)
        return Seeds(torch.cumsum(sizes, 0), flat)

    def of(self, targets: torch.Tensor) -> "Seeds":
        """Those of some targets: int64 [chosen], in that order."""
        sizes = self.offsets.diff()[targets]
        offsets = torch.cumsum(torch.cat([torch.zeros(1, dtype=torch.int64), sizes]), 0)
        within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], sizes)
        first = torch.repeat_interleave(self.offsets[:-1][targets], sizes)
        return Seeds(offsets, self.pixels[first + within])


def check_windows(images: PackedImages, windows: torch.Tensor) -> None:
    """ValueError for windows (on the CPU) of a wrong form, outside their image or without their click."""
    if windows.ndim != 2 or windows.shape[1] != len(WINDOW_COLUMNS) or windows.dtype != torch.int64:
        raise ValueError(
            f"windows must be int64 [targets, {len(WINDOW_COLUMNS)}] with columns {WINDOW_COLUMNS}"
        )
    image, top, left, height, width, row, column, target = windows.unbind(1)
    if bool(((image < 0) | (image >= len(images.table))).any()):
        raise ValueError(f"a window names an image outside 0..{len(images.table) - 1}")
    size = images.table.cpu()[image]
    wrong = (height < 1) | (width < 1) | (height > MAX_WINDOW) | (width > MAX_WINDOW)
    wrong |= (top < 0) | (left < 0) | (top + height > size[:, 1]) | (left + width > size[:, 2])
    wrong |= (row < 0) | (column < 0) | (row >= height) | (column >= width) | (target < 0) | (target >= 2**31)
    if bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        raise ValueError(
            f"window {first} {dict(zip(WINDOW_COLUMNS, windows[first].tolist(), strict=True))} must be "
            f"1..{MAX_WINDOW} pixels per side, lie inside its image and hold its click"
        )


def _check_seeds(windows: torch.Tensor, seeds: Seeds) -> None:
    sizes = seeds.offsets.diff()
    if len(sizes) != len(windows) or bool((sizes < 0).any()) or int(seeds.offsets[-1]) != len(seeds.pixels):
        raise ValueError(f"seeds must have offsets [{len(windows) + 1}] that rise to {len(seeds.pixels)}")
    pixels = torch.repeat_interleave(windows[:, 3] * windows[:, 4], sizes)
    if len(sizes) and int(sizes.max()) > MAX_SEEDS:
        raise ValueError(f"a target has {int(sizes.max())} seeds; at most {MAX_SEEDS} are possible")
    if bool(((seeds.pixels < 0) | (seeds.pixels >= pixels)).any()):
        raise ValueError("a seed lies outside its window")
