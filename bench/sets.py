"""Images with true masks as the benches take them."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclc_gpu.data.datasets import pair_files, read_list, select
from mclc_gpu.data.images import find_files, read_image, read_mask
from mclc_gpu.errors import InputError


def pair_set(images: Path, masks: Path, names: Path | None) -> dict[str, tuple[Path, Path]]:
    """Files of images and true masks by name; what is not there is told on standard error.

    Raises InputError where there is none.
    """
    found = find_files(images)
    chosen, skipped = select(found, found if names is None else read_list(names))
    pairs, unpaired = pair_files(chosen, find_files(masks))
    for item in skipped + unpaired:
        print(f"{item.file}: left out: {item.why}", file=sys.stderr)
    if not pairs:
        raise InputError(f"{images}: no image of it is listed and has a mask in {masks}: check the paths")
    return pairs


def read_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Images and true masks by name."""
    pixels = {name: read_image(image) for name, (image, _) in pairs.items()}
    return pixels, {name: read_mask(mask, pixels[name].shape[:2]) for name, (_, mask) in pairs.items()}


def read_set(
    images: Path, masks: Path, names: Path | None
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Images and true masks by name; what is not there is told on standard error."""
    return read_pairs(pair_set(images, masks, names))
