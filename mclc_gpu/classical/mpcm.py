"""MPCM: contrast of a cell to the cells on opposite sides of it, over several sizes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mclc_gpu.classical.cells import inner, neighbors, replicated
from mclc_gpu.classical.method import Method


@dataclass(frozen=True)
class MPCM(Method):
    """Multiscale patch-based contrast measure (Wei, You and Li, Pattern Recognition 58, 2016).

    With m the mean of the cell around a pixel and m_i those of the eight cells around it, i + 4 opposite to
    i, the contrast at a scale is the least of the four products (m - m_i)(m - m_(i + 4)), and the map is the
    greatest contrast of all scales, or 0. A pixel stands out that is brighter than both sides in every
    direction, and also one that is darker. Doi: 10.1016/j.patcog.2016.04.002. Images are continued by their
    border pixels.

    Attributes
    ----------
    smallest, largest : int, odd, 1..63, pixels
        Sides of the cells: every odd number between these.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    in_gray_levels = False

    smallest: int = 3
    largest: int = 9

    def __post_init__(self) -> None:
        check_sides(self.smallest, self.largest)

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return the greatest contrast over the scales, in squared gray levels; see `Method.saliency`."""
        result = torch.zeros_like(images)
        for side in range(self.smallest, self.largest + 1, 2):
            padded = replicated(images, side + side // 2)
            means = F.avg_pool2d(padded[:, None], side, stride=1)[:, 0]
            above = inner(means, side) - neighbors(means, side)
            contrast = (above[:4] * above[4:]).amin(0)
            torch.maximum(result, contrast, out=result)
        return result


def check_sides(smallest: int, largest: int) -> None:
    """Raise ValueError for sides of cells that are out of range."""
    if not 1 <= smallest <= largest <= 63 or smallest % 2 == 0 or largest % 2 == 0:
        raise ValueError(
            f"smallest and largest must be odd, 1 to 63, in this order, got {smallest}, {largest}"
        )
