"""Square cells around every pixel of an image, and the eight cells around each of these."""

import torch
import torch.nn.functional as F

# Steps from a cell to its neighbors, in sides of a cell; the neighbor i + 4 lies opposite to i.
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def replicated(images: torch.Tensor, margin: int) -> torch.Tensor:
    """Surround images [B, H, W] by a margin of their border pixels."""
    return F.pad(images[:, None], (margin,) * 4, mode="replicate")[:, 0]


def neighbors(values: torch.Tensor, side: int) -> torch.Tensor:
    """Collect the values of the eight cells around each cell.

    Parameters
    ----------
    values : Tensor [B, H + 2 side, W + 2 side]
        A value of the cell around each pixel, of images with a margin of `side` pixels.
    side : int >= 1, pixels
        Of a cell.

    Returns
    -------
    Tensor [8, B, H, W]
        In the order of `AROUND`.
    """
    height, width = values.shape[1] - 2 * side, values.shape[2] - 2 * side
    starts = [(side * (1 + row), side * (1 + column)) for row, column in AROUND]
    return torch.stack([values[:, top : top + height, left : left + width] for top, left in starts])


def inner(values: torch.Tensor, margin: int) -> torch.Tensor:
    """Remove a margin of images [B, H, W]."""
    return values[:, margin:-margin, margin:-margin] if margin else values
