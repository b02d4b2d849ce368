"""The overview picture of a label run, made from its files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.points import Point, load_points
from mclc_gpu.errors import InputError
from mclc_gpu.labelstore import LabelStore, read_tpm
from mclc_gpu.overview import Tile, contact_sheet
from mclc_gpu.windows import place_window

_TILES = 24
_MARGIN = 4  # pixels of surroundings shown around the clustered window


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0 .. count - 1, evenly over all of them, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def write_overview(
    out: Path, images: Mapping[str, Path], seed: int, title: str, truth: Mapping[str, Path] | None = None
) -> Path:
    """Write OUT/overview.png: targets spread evenly over the run, each with window, TPM, mask and truth."""
    points = load_points(out / "points.csv")
    targets = [(stem, index, point) for stem, own in points.items() for index, point in enumerate(own)]
    store = LabelStore.open(out)
    tiles = []
    for stem, index, point in (targets[t] for t in spread(len(targets), _TILES)):
        tiles.append(_tile(store, images[stem], stem, index, point, seed, truth))
    path = out / "overview.png"
    with atomic_path(path) as temporary:
        contact_sheet(tiles, title=title).save(temporary)
    return path


def _tile(
    store: LabelStore,
    image_path: Path,
    stem: str,
    index: int,
    point: Point,
    seed: int,
    truth: Mapping[str, Path] | None,
) -> Tile:
    image = read_image(image_path)
    height, width = image.shape[:2]
    window = place_window(height, width, point, seed, stem, index)
    top, left = max(window.top - _MARGIN, 0), max(window.left - _MARGIN, 0)
    area = np.s_[top : window.bottom + _MARGIN, left : window.right + _MARGIN]
    true = None
    if truth is not None and stem in truth:
        try:
            true = read_mask(truth[stem], (height, width))[area]
        except InputError:
            true = None  # a mask that does not fit its image was reported when it was used
    return Tile(
        name=stem,
        image=image[area],
        tpm=read_tpm(store.tpm(stem))[area],
        mask=read_mask(store.mask(stem))[area],
        click=(point.x - left, point.y - top),
        truth=true,
        category=point.category,
    )
