"""Where cluster centres start: a regular grid, and the paper's move to the lowest gradient nearby."""

import numpy as np
import torch
from torch.nn import functional


def _spacing(height: int, width: int, n_segments: int) -> tuple[float, float]:
    """Interval in y and x before rounding: S = sqrt(H W / N) unless the short side has no room for it."""
    if height * width <= n_segments:
        return 1.0, 1.0
    interval = (height * width / n_segments) ** 0.5
    if min(height, width) >= interval:
        return interval, interval
    if height <= width:
        return float(height), width / n_segments
    return height / n_segments, float(width)


def grid_centres(height: int, width: int, n_segments: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Start positions of about `n_segments` clusters, on the grid of scikit-image's ``regular_grid``.

    Parameters
    ----------
    height, width : int
        Image size in pixels, >= 1.
    n_segments : int
        Clusters wanted, >= 1; the grid may hold fewer or more.

    Returns
    -------
    ys, xs : float32 [N]
        Centres in raster order, in pixels.
    step_y, step_x : int
        Intervals of the grid in pixels.

    Notes
    -----
    S = sqrt(H W / N) of section 3.1 of the paper. Starts are the interval's half rounded down,
    steps are the interval rounded half to even.
    """
    spacing_y, spacing_x = _spacing(height, width, n_segments)
    step_y, step_x = round(spacing_y), round(spacing_x)
    ys, xs = np.meshgrid(
        np.arange(int(spacing_y // 2), height, step_y, dtype=np.float32),
        np.arange(int(spacing_x // 2), width, step_x, dtype=np.float32),
        indexing="ij",
    )
    return ys.ravel(), xs.ravel(), step_y, step_x


def window_steps(height: int, width: int, n_centres: int) -> tuple[int, int]:
    """Intervals in y and x, in pixels, of which a centre's window reaches two to each side.

    They are those of a grid of as many centres as there are, not of as many as were asked for. On a small
    image the two differ by a pixel or more, and the segments with them; scikit-image does the same.

    Parameters
    ----------
    height, width : int
        Image size in pixels, >= 1.
    n_centres : int
        Centres on the start grid, the length of what `grid_centres` returns.
    """
    spacing_y, spacing_x = _spacing(height, width, n_centres)
    return round(spacing_y), round(spacing_x)


def lowest_gradient(features: torch.Tensor, ys: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    """Move centres to the lowest gradient of their 3 x 3 neighbourhood, and give them the colour found there.

    The gradient is Achanta's, G(y, x) = |I(y, x+1) - I(y, x-1)|^2 + |I(y+1, x) - I(y-1, x)|^2 over all
    channels, with the image's border pixels repeated outwards. A centre stays where no neighbour is strictly
    lower; among equal neighbours the first in raster order wins.

    Parameters
    ----------
    features : Tensor [B, C, H, W], float32
    ys, xs : Tensor [N], int64
        Start positions, the same for all images.

    Returns
    -------
    Tensor [B, N, 2 + C], float32
        y, x (pixels) and colour of each centre.
    """
    height, width = features.shape[2:]
    padded = functional.pad(features, (1, 1, 1, 1), mode="replicate")
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    gradient = (along_x * along_x + along_y * along_y).sum(1)
    near_y = ys[:, None] + torch.tensor([0, -1, -1, -1, 0, 0, 1, 1, 1], device=features.device)  # [N, 9]
    near_x = xs[:, None] + torch.tensor([0, -1, 0, 1, -1, 1, -1, 0, 1], device=features.device)
    inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
    near_y, near_x = near_y.clamp(0, height - 1), near_x.clamp(0, width - 1)
    values = torch.where(inside, gradient[:, near_y, near_x], torch.inf)  # [B, N, 9]
    lowest = values.argmin(-1)  # the first of several
    index = torch.arange(len(ys), device=features.device)
    y, x = near_y[index, lowest], near_x[index, lowest]  # [B, N]
    image = torch.arange(len(features), device=features.device)[:, None]
    colours = features.permute(0, 2, 3, 1)[image, y, x]
    return torch.cat([y[..., None], x[..., None], colours], -1)
