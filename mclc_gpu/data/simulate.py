"""Point labels simulated from true masks, for measuring on data sets that come with masks."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from skimage.measure import label

from mclc_gpu.data.datasets import pair_files
from mclc_gpu.data.images import image_size, read_mask
from mclc_gpu.data.points import Point
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

POINT_AREA = 9  # largest area in pixels of the category "point"
SPOT_AREA = 81  # and of "spot"; the published code's limits


def category_of(area: int) -> str:
    """The category of a target of `area` pixels: point (<= 9), spot (<= 81) or extended."""
    if area <= POINT_AREA:
        return "point"
    return "spot" if area <= SPOT_AREA else "extended"


def points_from_mask(
    mask: np.ndarray, *, jitter: float = 0.0, rng: np.random.Generator | None = None
) -> list[Point]:
    """One click per target of a mask, in order of the targets' first pixels (row by row).

    `mask`: bool [H, W]; a target is an 8-connected component. The click is the target's centroid, rounded to
    the nearest pixel (halves up) and, when that pixel is not of the target (a ring, a crescent), moved to the
    target's nearest pixel. The category is that of the target's true area, which an annotator would have to
    judge by eye.

    `jitter` in pixels, >= 0: an annotator's deviation from the centroid. The click is displaced by N(0,
    jitter) in x and in y, drawn again until the displacement is at most 2 * jitter long, rounded, and clipped
    to the image; it may then lie beside its target. The paper displaces points too (Fig. 8); this
    distribution is our own choice, not the paper's. `rng` is needed for jitter > 0 and not used otherwise.

    Raises InputError for a jitter that is negative or not finite, ValueError for jitter without `rng`.
    """
    if not (math.isfinite(jitter) and jitter >= 0):
        raise InputError(f"jitter {jitter} is not a distance in pixels; give a number >= 0")
    if jitter and rng is None:
        raise ValueError("jitter needs a random generator")
    labels, count = label(mask, connectivity=2, return_num=True)
    rows, columns = np.nonzero(labels)
    owners = labels[rows, columns] - 1
    # Stable: pixels of a target stay in raster order, so that of equally near pixels the first is taken.
    order = np.argsort(owners, kind="stable")
    areas = np.bincount(owners, minlength=count)
    points = []
    for of_target in np.split(order, np.cumsum(areas)[:-1]) if count else []:
        y, x = _centre_pixel(rows[of_target], columns[of_target])
        if jitter and rng is not None:
            y, x = _displaced(y, x, jitter, mask.shape, rng)
        points.append(Point(float(x), float(y), category_of(len(of_target))))
    return points


def simulate_points(
    masks: Mapping[str, Path], images: Mapping[str, Path], *, jitter: float = 0.0, seed: int = 0
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Clicks for each image from its mask file (see `points_from_mask`), by stem, in the order of `images`.

    The clicks of an image depend on its mask, its stem, `jitter` and `seed` alone, not on the other images.
    An empty mask gives an empty list. Left out and reported: images without a mask, masks of another size
    than their image, unreadable files. Raises InputError for a bad `jitter`.
    """
    pairs, skipped = pair_files(images, masks)
    points: dict[str, list[Point]] = {}
    for stem, (image_path, mask_path) in pairs.items():
        try:
            mask = read_mask(mask_path, image_size(image_path))
        except InputError as error:
            skipped.append(Skipped.because(mask_path, error))
            continue
        points[stem] = points_from_mask(mask, jitter=jitter, rng=_generator(seed, stem))
    return points, skipped


def _generator(seed: int, stem: str) -> np.random.Generator:
    """A generator of this image's own; Python's hash() would differ from one process to the next."""
    digest = hashlib.blake2b(f"{seed}:{stem}".encode(errors="surrogateescape"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _centre_pixel(rows: np.ndarray, columns: np.ndarray) -> tuple[int, int]:
    """(row, column) of the target's pixel that is nearest to its rounded centroid."""
    row, column = math.floor(rows.mean() + 0.5), math.floor(columns.mean() + 0.5)
    nearest = np.argmin((rows - row) ** 2 + (columns - column) ** 2)
    return int(rows[nearest]), int(columns[nearest])


def _displaced(
    row: int, column: int, jitter: float, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, int]:
    while True:
        dy, dx = rng.normal(0.0, jitter, 2)
        if math.hypot(dy, dx) <= 2 * jitter:
            break
    height, width = shape
    return (
        min(max(math.floor(row + dy + 0.5), 0), height - 1),
        min(max(math.floor(column + dx + 0.5), 0), width - 1),
    )
