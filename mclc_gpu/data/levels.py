"""Gray levels as the detectors see them: every image, whatever its file holds, from 0 to 255."""

import numpy as np

from mclc_gpu.data.images import luma


def gray_levels(image: np.ndarray, in_channels: int) -> np.ndarray:
    """An image as a network of `in_channels` channels (1 or 3) sees it: float32 [C, H, W], 0 to 255.

    8-bit images are taken as they are. Images of any other type are scaled by their own range over all
    channels, darkest to 0 and brightest to 255; a constant one is 0 everywhere. For one channel a colour
    image gives its luma, for three a gray image is repeated.

    `image`: [H, W] or [H, W, 3], finite. Raises ValueError for another shape or number of channels.
    """
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or in_channels not in (1, 3):
        raise ValueError(f"image of shape {image.shape} for {in_channels} channels: give [H, W] or [H, W, 3]")
    if image.dtype != np.uint8:
        # In float64: the span of float images may be wider or narrower than float32 can divide by.
        values = image.astype(np.float64)
        low, high = values.min(), values.max()
        image = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    if in_channels == 1:
        return luma(image)[None]
    channels = image if image.ndim == 3 else np.broadcast_to(image[:, :, None], (*image.shape, 3))
    return np.ascontiguousarray(channels.transpose(2, 0, 1), dtype=np.float32)
