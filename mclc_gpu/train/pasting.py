"""Copy-paste augmentation: targets of the training set added to crops of other images.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021,
doi:10.1109/CVPR46437.2021.00294. Small infrared targets are bright or dark spots without occlusion, so what a
target adds to its background is pasted, not its pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SIDE = 32  # pixels of a stamp; larger targets are not pasted
DRAWS = 7  # random numbers a crop
_MARGIN = 5  # pixels around a target that its stamp holds
_NEAR = 3  # pixels around targets that are no background
_FEWEST = 8  # background pixels from which their median is taken
_MOST = 4096  # stamps
_GAIN = 1.0  # width of the uniform distribution of the logarithm of the contrast
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True, slots=True, eq=False)
class Stamps:
    """Targets to paste: T stamps of C channels.

    Attributes
    ----------
    change : Tensor [T, C, SIDE, SIDE], float16
        Gray levels that the target adds to its background, faded out around it.
    mask : Tensor [T, SIDE, SIDE], bool
    """

    change: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)


class StampCollector:
    """Stamps of the images of a training set, taken one by one; those after the first 4096 are left out."""

    def __init__(self) -> None:
        self._changes: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []

    def add(self, levels: np.ndarray, mask: np.ndarray) -> None:
        """Add the targets of an image: levels [C, H, W], 0 to 255, and mask [H, W], bool."""
        if len(self._masks) >= _MOST or not mask.any():
            return
        labels, _ = ndimage.label(mask, _EIGHT)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            window = tuple(slice(max(one.start - _MARGIN, 0), one.stop + _MARGIN) for one in box)
            own = labels[window] == number
            background = ~ndimage.binary_dilation(mask[window], _EIGHT, iterations=_NEAR)
            if max(own.shape) > SIDE or background.sum() < _FEWEST:
                continue
            gray = levels[:, *window].astype(np.float32)
            under = np.median(gray[:, background], axis=1)[:, None, None]
            spread = ndimage.binary_dilation(own, iterations=2).astype(np.float32)
            change = (gray - under) * ndimage.gaussian_filter(spread, 1.0)
            padding = [((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2) for side in own.shape]
            self._changes.append(np.pad(change, [(0, 0), *padding]).astype(np.float16))
            self._masks.append(np.pad(own, padding))

    def stamps(self, device: torch.device) -> Stamps | None:
        """Return the stamps on a device; None if there are none."""
        if not self._masks:
            return None
        changes, masks = np.stack(self._changes[:_MOST]), np.stack(self._masks[:_MOST])
        return Stamps(torch.from_numpy(changes).to(device), torch.from_numpy(masks).to(device))


def paste(crops: Tensor, stamps: Stamps, draws: Tensor, share: float) -> Tensor:
    """Paste a target into a share of the crops, where it meets no other target.

    It is flipped and transposed at random, and its contrast is multiplied by exp(u), u uniform in -0.5..0.5.
    The host does not wait for the device.

    Parameters
    ----------
    crops : Tensor [B, C + 1, S, S], uint8 or floating-point
        Gray levels, 0 to 255, then the mask. Crops smaller than a stamp are returned as they are.
    stamps : Stamps
        Of C channels, on the device of `crops`.
    draws : Tensor [B, DRAWS], float64
        Uniform in [0, 1): whether to paste, which target, its row and column, contrast, flip, transpose.
    share : float, 0..1

    Returns
    -------
    Tensor [B, C + 1, S, S]
        In the dtype of `crops`.
    """
    count, planes, size, _ = crops.shape
    if size < SIDE:
        return crops
    use, which, row, column, contrast, flip, transpose = draws.unbind(1)
    chosen = (which * len(stamps)).long()
    change, mask = stamps.change[chosen].float(), stamps.mask[chosen, None]
    stamp = torch.cat([change, mask.float()], 1)
    stamp = torch.where(_each(flip < 0.5), stamp.flip(2), stamp)
    stamp = torch.where(_each(transpose < 0.5), stamp.transpose(2, 3), stamp)
    steps = torch.arange(SIDE, device=crops.device)
    rows = (row * (size - SIDE + 1)).long()[:, None] + steps
    columns = (column * (size - SIDE + 1)).long()[:, None] + steps
    image, plane = torch.arange(count, device=crops.device), torch.arange(planes, device=crops.device)
    place = (_each(image), plane[:, None, None], rows[:, None, :, None], columns[:, None, None, :])
    region = crops[place].float()
    gain = torch.exp(_GAIN * (contrast - 0.5)).float()
    levels = (region[:, :-1] + _each(gain) * stamp[:, :-1]).clamp(0, 255)
    if not crops.is_floating_point():
        levels = levels.round()
    pasted = torch.cat([levels, torch.maximum(region[:, -1:], stamp[:, -1:])], 1)
    free = (region[:, -1] == 0).flatten(1).all(1)
    result = torch.where(_each(free & (use < share)), pasted, region)
    return crops.index_put(place, result.to(crops.dtype))


def _each(values: Tensor) -> Tensor:
    """Give one value a crop the shape [B, 1, 1, 1]."""
    return values[:, None, None, None]
