"""Gray levels as the detectors see them: every image, whatever its file holds, from 0 to 255."""

import numpy as np

from mclc_gpu.data.images import luma


def to_levels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image [H, W] or [H, W, 3] as float32 [channels, H, W] in 0..255, before normalisation.

    8-bit images keep their values. Images of other types have no scale that all sensors share: they are
    stretched from their own least to their own largest value; an image of one value becomes 0. For one
    channel, colours become luma (ITU-R BT.601); for three, gray is repeated.

    Raises ValueError for other shapes, or channels that are neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"expected an image [H, W] or [H, W, 3], got shape {image.shape}")
    levels = luma(image) if channels == 1 else image.astype(np.float32)
    if image.dtype != np.uint8:
        low, high = float(levels.min()), float(levels.max())
        # In float64: the span of float images may be wider or narrower than float32 can divide by.
        scale = 255.0 / (high - low) if high > low else 0.0
        levels = ((levels.astype(np.float64) - low) * scale).astype(np.float32)
    if levels.ndim == 2:
        return np.repeat(levels[None], channels, axis=0)
    return np.ascontiguousarray(levels.transpose(2, 0, 1))
