"""A target's category from the image and the click, for points that come without one."""

from collections.abc import Sequence

import numpy as np
import torch

from mclc_gpu.data.points import Point
from mclc_gpu.data.simulate import category_of
from mclc_gpu.kernels.components import ComponentConfig, component_windows, vote_components
from mclc_gpu.kernels.trials import PackedImages
from mclc_gpu.windows import nearest_pixel


def estimate_areas(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[int]:
    """Area in pixels of the target under each click (index of its image, point), by the vote of components.

    On the 270 targets of NUAA-SIRST's train split, clicked at their centres, the category of this area is the
    true one for 96 %. Where nothing stands out it is that of the 3 x 3 pixels around the click.
    """
    areas = [0] * len(clicks)
    for byte in (True, False):
        members = [n for n, (image, _) in enumerate(clicks) if (images[image].dtype == np.uint8) == byte]
        if not members:
            continue
        used = sorted({clicks[n][0] for n in members})
        index = {image: n for n, image in enumerate(used)}
        packed = PackedImages.pack([images[i] for i in used], device)
        pixels = [
            (index[i], *nearest_pixel(point.x, point.y, *images[i].shape[:2]))
            for i, point in (clicks[n] for n in members)
        ]
        windows = component_windows(packed, torch.tensor(pixels, dtype=torch.int64))
        unknown = torch.full((len(members),), -1)
        found = vote_components(packed, windows, unknown, ComponentConfig()).area.tolist()
        for n, area in zip(members, found, strict=True):
            areas[n] = area
    return areas


def estimate_categories(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[str]:
    """ "point", "spot" or "extended": the category of `estimate_areas` at each click."""
    return [category_of(area) for area in estimate_areas(images, clicks, device)]
