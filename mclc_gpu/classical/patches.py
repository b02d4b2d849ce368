"""Patches of images for the low-rank methods, and images from patches that overlap."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import ClassVar

import torch

from mclc_gpu.classical.lowrank import per_image, unit_range
from mclc_gpu.classical.method import Method

_GRIDS = 2  # sizes of images whose tables are kept; images of equal size come together


@dataclass(frozen=True)
class PatchMethod(Method):
    """Method on the patches of an image.

    Attributes
    ----------
    weight : float > 0
        Of the targets' sparsity against the background's rank; a larger one leaves fewer targets.
    patch : int, 2..512, pixels
        Side of a patch. A shorter image is continued by its mirror image.
    step : int, 1..patch, pixels
        From patch to patch.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    batch_pixels: ClassVar[int] = 1 << 18  # a pixel lies in up to 36 patches, each in ten float64 tensors

    weight: float = 1.0
    patch: int = 50
    step: int = 10

    def __post_init__(self) -> None:
        if not self.weight > 0 or not isfinite(self.weight):
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if not 2 <= self.patch <= 512:
            raise ValueError(f"patch must be in 2..512, got {self.patch}")
        if not 1 <= self.step <= self.patch:
            raise ValueError(f"step must be in 1..{self.patch}, at most the patch, got {self.step}")

    def patch_image_targets(
        self, images: torch.Tensor, separate: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Find the targets in the patch-image, the matrix whose columns are the patches.

        Parameters
        ----------
        images : Tensor [B, H, W]
        separate : function of Tensor [B, patch * patch, P], float64
            Returns the targets of patch-images, of which each is scaled to 0..1.

        Returns
        -------
        Tensor [B, H, W], float32
            Median over the patches of a pixel, in gray levels, >= 0.
        """
        grid = PatchGrid.of(images, self.patch, self.step)
        levels = images.double()
        targets = separate(unit_range(grid.cut(levels)).flatten(2).mT).mT
        joined = grid.join(targets.unflatten(2, (self.patch, self.patch)), median=True)
        span = levels.amax((1, 2)) - levels.amin((1, 2))
        return (per_image(span, joined) * joined).clamp(min=0).float()


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Square patches that slide over images of one size.

    The first starts at the first pixel, the others `step` pixels further each; where the last step would
    leave the image, the patch ends at its last pixel. Patches go down the columns of the grid first. An image
    shorter than a patch is continued by its mirror image to the length of one.

    Attributes
    ----------
    height, width : int, pixels
        Of the images.
    patch, step : int >= 1, pixels
    rows, columns : Tensor [H'], [W'], int64
        Image row and column of every row and column of the mirrored image; without mirror their own numbers.
    pixels : Tensor [P, patch * patch], int64
        Index of every pixel of each patch in the mirrored image.
    copies : Tensor [H' * W', most], int64
        Indices of all copies of every pixel in `pixels`; -1 behind the last one.
    """

    height: int
    width: int
    patch: int
    step: int
    rows: torch.Tensor
    columns: torch.Tensor
    pixels: torch.Tensor
    copies: torch.Tensor

    @staticmethod
    def of(images: torch.Tensor, patch: int, step: int) -> "PatchGrid":
        """Return the grid for images [B, H, W], on their device.

        Examples
        --------
        >>> import torch
        >>> from mclc_gpu.classical.patches import PatchGrid
        >>> grid = PatchGrid.of(torch.zeros(1, 7, 4), patch=4, step=2)
        >>> len(grid.pixels)
        3
        """
        return _grid(images.shape[1], images.shape[2], patch, step, images.device)

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """Cut images [B, H, W] into patches [B, P, patch, patch]."""
        mirrored = images[:, self.rows][:, :, self.columns].flatten(1)
        return mirrored[:, self.pixels].unflatten(2, (self.patch, self.patch))

    def join(self, patches: torch.Tensor, median: bool = False) -> torch.Tensor:
        """Join patches [B, P, patch, patch] to images [B, H, W]: mean or median of the copies of a pixel."""
        there = self.copies >= 0
        values = patches.flatten(1)[:, self.copies.clamp(min=0)]
        counts = there.sum(1)
        if median:
            values = values.masked_fill(~there, torch.inf).sort(2).values
            middle = torch.stack(((counts - 1) // 2, counts // 2), 1)
            joined = values.gather(2, middle.expand(len(values), -1, -1)).mean(2)
        else:
            joined = values.masked_fill(~there, 0).sum(2) / counts
        return joined.unflatten(1, (len(self.rows), -1))[:, : self.height, : self.width]


@lru_cache(_GRIDS)
def _grid(height: int, width: int, patch: int, step: int, device: torch.device) -> PatchGrid:
    rows, columns = _mirrored(height, patch), _mirrored(width, patch)
    lefts, tops = _starts(len(columns), patch, step), _starts(len(rows), patch, step)
    inside = torch.arange(patch)
    down = (tops[None, :, None, None] + inside[:, None]) * len(columns)
    pixels = (down + lefts[:, None, None, None] + inside).reshape(-1, patch * patch)
    # The copies of a pixel are neighbors in the sorted list of all pixels of all patches.
    order = pixels.flatten().argsort(stable=True)
    counts = torch.bincount(pixels.flatten(), minlength=len(rows) * len(columns))
    number = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    copies = torch.full((len(counts), int(counts.max())), -1)
    copies[pixels.flatten()[order], number] = order
    tables = (table.to(device) for table in (rows, columns, pixels, copies))
    return PatchGrid(height, width, patch, step, *tables)


def _mirrored(length: int, least: int) -> torch.Tensor:
    places = torch.arange(max(length, least)) % (2 * length)
    return torch.minimum(places, 2 * length - 1 - places)


def _starts(length: int, patch: int, step: int) -> torch.Tensor:
    last = length - patch
    return torch.tensor([*range(0, last, step), last])
