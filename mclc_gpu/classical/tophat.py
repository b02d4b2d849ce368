"""White top-hat: gray levels above an opening of the image, by a disk or by a ring around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import inf

import torch
import torch.nn.functional as F

from mclc_gpu.classical.method import Method

ELEMENTS = ("disk", "ring")
Run = tuple[int, int, int]  # row, first and last column of a row of a structuring element, from its center


@dataclass(frozen=True)
class TopHat(Method):
    """White top-hat transform.

    - disk: the image less its opening by a disk D. What no disk fits into stands out (Rivest and Fortin,
      "Detection of dim targets in digital infrared imagery by morphological image processing", Optical
      Engineering 35(7), 1996, doi:10.1117/1.600620).
    - ring: the image less its dilation by the ring R and erosion by D; R is D without the disk of radius
      `inner`. A pixel is compared with its surroundings alone; what does not exceed them is 0 (Bai and Zhou,
      "Analysis of new top-hat transformation and the application for infrared dim small target detection",
      Pattern Recognition 43(6), 2010, doi:10.1016/j.patcog.2009.12.023).

    Pixels outside the image are left out of every minimum and maximum, so that any size can be transformed.

    Attributes
    ----------
    element : {"disk", "ring"}
    radius : int, 1..64, pixels
        Of the disk D, x^2 + y^2 <= radius^2.
    inner : int, 0..radius - 1, pixels
        Of the hole in the ring; only for the element ring.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    element: str = "disk"
    radius: int = 5
    inner: int = 3

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise ValueError(f"element must be one of {', '.join(ELEMENTS)}, got {self.element!r}")
        if not 1 <= self.radius <= 64:
            raise ValueError(f"radius must be in 1..64, got {self.radius}")
        if self.element == "ring" and not 0 <= self.inner < self.radius:
            raise ValueError(f"inner must be in 0..{self.radius - 1}, less than radius, got {self.inner}")

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return gray levels above the opening; see `Method.saliency`."""
        disk = tuple(_disk(self.radius))
        if self.element == "disk":
            background = dilated(eroded(images, disk), disk)
        else:
            around = dilated(images, _ring(self.radius, self.inner))
            # Left out of the minimum where no pixel of the ring lies in the image.
            background = eroded(around.masked_fill(around == -inf, inf), disk)
        return (images - background).clamp(min=0)


def dilated(images: torch.Tensor, runs: tuple[Run, ...]) -> torch.Tensor:
    """Compute the maximum of images [B, H, W] over a symmetric flat element, which its runs make up."""
    height, width = images.shape[1:]
    reach = max(max(abs(row), abs(first), abs(last)) for row, first, last in runs)
    doubled = [
        F.pad(images, (reach,) * 4, value=-inf)
    ]  # maxima over 1, 2, 4, ... pixels from each to the right
    while 1 << len(doubled) <= 2 * reach + 1:
        step = 1 << (len(doubled) - 1)
        doubled.append(torch.maximum(doubled[-1][:, :, :-step], doubled[-1][:, :, step:]))
    of_length: dict[int, torch.Tensor] = {}
    result = torch.full_like(images, -inf)
    for row, first, last in runs:
        length = last - first + 1
        if length not in of_length:
            half = doubled[length.bit_length() - 1]
            rest = length - (1 << (length.bit_length() - 1))
            of_length[length] = torch.maximum(half[:, :, : half.shape[2] - rest], half[:, :, rest:])
        top, left = reach + row, reach + first
        torch.maximum(result, of_length[length][:, top : top + height, left : left + width], out=result)
    return result


def eroded(images: torch.Tensor, runs: tuple[Run, ...]) -> torch.Tensor:
    """Compute the minimum of images [B, H, W] over a symmetric flat element, which its runs make up."""
    return -dilated(-images, runs)


def _disk(radius: int) -> Iterator[Run]:
    for row in range(-radius, radius + 1):
        half = int((radius * radius - row * row) ** 0.5)
        yield row, -half, half


@cache
def _ring(radius: int, inner: int) -> tuple[Run, ...]:
    hole = {row: last for row, _, last in _disk(inner)}
    runs: list[Run] = []
    for row, first, last in _disk(radius):
        if row not in hole:
            runs.append((row, first, last))
        elif hole[row] < last:
            runs += [(row, first, -hole[row] - 1), (row, hole[row] + 1, last)]
    return tuple(runs)
