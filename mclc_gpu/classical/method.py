"""Base class of the untrained detectors."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch


class Method(ABC):
    """Untrained detector. A subclass is a frozen dataclass of its parameters, which have defaults.

    A parameter is an int, a float or a str; `__post_init__` raises ValueError where one is out of range.

    Attributes
    ----------
    in_gray_levels : bool
        The saliency is in gray levels above the background, and maps may be scaled by 255 of them.
    batch_pixels : int
        Most pixels of the images that run together, which are one at least.
    cpu_pixels : int
        The same on the CPU, where what leaves the cache runs slower.
    """

    in_gray_levels: ClassVar[bool] = True
    batch_pixels: ClassVar[int] = 1 << 20
    cpu_pixels: ClassVar[int] = 1 << 17

    def length(self) -> int:
        """Return the number of consecutive frames of a sequence that run together; 1: single images."""
        return 1

    @abstractmethod
    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Compute how much every pixel stands out as a small bright target.

        Parameters
        ----------
        images : Tensor [B, H, W], float32
            Gray levels, 0 to 255, finite, of any size from 1 x 1. For a method with a `length` above 1 they
            are consecutive frames of one sequence, B at most that length; otherwise a batch of single images,
            whose results must not depend on each other.

        Returns
        -------
        Tensor [B, H, W], float32
            Finite and >= 0, on the device of the images.
        """
