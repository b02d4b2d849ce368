"""Labels of every supervision simulated from true masks, for measuring on data sets that come with masks."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mclc_gpu.data.annotations import (
    Point,
    box_target,
    category_of,
    check_supervision,
    components,
    line_pixels,
    nearest_pixel,
    scribble,
)
from mclc_gpu.data.datasets import pair_files
from mclc_gpu.data.images import image_size, read_mask
from mclc_gpu.errors import InputError, Skipped


def points_from_mask(
    mask: np.ndarray,
    *,
    jitter: float = 0.0,
    rng: np.random.Generator | None = None,
    supervision: str = "point",
    clicks: int = 3,
) -> list[Point]:
    """What an annotator would give for each target of a mask, in order of the targets' first pixels.

    `mask`: bool [H, W]; a target is an 8-connected component. The category is that of the target's true area,
    which an annotator would have to judge by eye. By `supervision`:
    "point": one click on the target's centroid, rounded to the nearest pixel (halves up) and, when that pixel
    is not of the target (a ring, a crescent), moved to the target's nearest pixel.
    "multi-point": `clicks` (>= 1) different pixels of the target at random, or all where it has fewer.
    "scribble": the line from a random pixel of the target to the pixel farthest from it (of equally far ones
    the first in raster order), as far as it lies on the target.
    "box": the tight bounding box.

    `jitter` in pixels, >= 0: the annotator's deviation. Each click, the scribble as a whole, and two opposite
    corners of the box are displaced by N(0, jitter) in x and in y, drawn again until the displacement is at
    most 2 * jitter long, rounded, and clipped to the image; clicks may then lie beside their target, or fall
    together (and count once). A box whose corners pass each other spans what lies between them. The paper
    displaces points too (Fig. 8); this distribution is our own choice, not the paper's. `rng` is needed for
    jitter > 0, "multi-point" and "scribble" and not used otherwise.

    Raises InputError for a jitter that is negative or not finite, clicks < 1 and an unknown supervision,
    ValueError where `rng` is needed and missing.
    """
    check_supervision(supervision)
    if not (math.isfinite(jitter) and jitter >= 0):
        raise InputError(f"jitter {jitter} is not a distance in pixels; give a number >= 0")
    if clicks < 1:
        raise InputError(f"clicks {clicks} per target are too few; give 1 or more")
    if rng is None:
        if jitter or supervision in ("multi-point", "scribble"):
            raise ValueError("jitter, multi-point and scribble need a random generator")
        rng = np.random.default_rng(0)  # nothing is drawn from it
    hand = _Hand(jitter, rng, mask.shape)
    points = []
    for rows, columns in components(mask):
        category = category_of(len(rows))
        if supervision == "box":
            points.append(hand.box(rows, columns, category))
        elif supervision == "scribble":
            points.append(hand.scribble(rows, columns, category))
        else:
            count = clicks if supervision == "multi-point" else None
            points.append(hand.clicks(rows, columns, category, count))
    return points


def simulate_points(
    masks: Mapping[str, Path],
    images: Mapping[str, Path],
    *,
    jitter: float = 0.0,
    seed: int = 0,
    supervision: str = "point",
    clicks: int = 3,
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Labels for each image from its mask file (see `points_from_mask`), by stem, in the order of `images`.

    The labels of an image depend on its mask, its stem, `jitter`, `seed`, `supervision` and `clicks` alone,
    not on the other images. An empty mask gives an empty list. Left out and reported: images without a mask,
    masks of another size than their image, unreadable files. Raises InputError as `points_from_mask` does.
    """
    pairs, skipped = pair_files(images, masks)
    points: dict[str, list[Point]] = {}
    for stem, (image_path, mask_path) in pairs.items():
        try:
            mask = read_mask(mask_path, image_size(image_path))
        except InputError as error:
            skipped.append(Skipped.because(mask_path, error))
            continue
        rng = _generator(seed, stem)
        points[stem] = points_from_mask(mask, jitter=jitter, rng=rng, supervision=supervision, clicks=clicks)
    return points, skipped


def _generator(seed: int, stem: str) -> np.random.Generator:
    """A generator of this image's own; Python's hash() would differ from one process to the next."""
    digest = hashlib.blake2b(f"{seed}:{stem}".encode(errors="surrogateescape"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _centre_pixel(rows: np.ndarray, columns: np.ndarray) -> tuple[int, int]:
    """(row, column) of the target's pixel that is nearest to its rounded centroid."""
    row, column = nearest_pixel(rows.mean()), nearest_pixel(columns.mean())
    nearest = np.argmin((rows - row) ** 2 + (columns - column) ** 2)
    return int(rows[nearest]), int(columns[nearest])


class _Hand:
    """An annotator who means pixels of a target (rows and columns, int [n]) and hits others near by."""

    def __init__(self, jitter: float, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self._jitter = jitter
        self._rng = rng
        self._height, self._width = shape

    def clicks(self, rows: np.ndarray, columns: np.ndarray, category: str, count: int | None) -> Point:
        """`count` clicks on random pixels; None: one click on the centre."""
        meant = [_centre_pixel(rows, columns)]
        if count is not None:
            chosen = self._rng.choice(len(rows), min(count, len(rows)), replace=False)
            meant = list(zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True))
        hit = dict.fromkeys(self._displaced(*pixel) for pixel in meant)
        (x, y), *others = [(float(column), float(row)) for row, column in hit]
        return Point(x, y, category, seeds=tuple(others))

    def scribble(self, rows: np.ndarray, columns: np.ndarray, category: str) -> Point:
        """A line along the target, from a random pixel to the one farthest from it."""
        start = int(self._rng.integers(len(rows)))
        end = int(np.argmax((rows - rows[start]) ** 2 + (columns - columns[start]) ** 2))
        corners = [(int(rows[at]), int(columns[at])) for at in (start, end)]
        on_target = set(zip(rows.tolist(), columns.tolist(), strict=True))
        passed = np.stack(line_pixels(corners), axis=1).tolist()
        drawn = np.array([pixel for pixel in map(tuple, passed) if pixel in on_target])
        down, right = self._displacement()
        moved = drawn + np.array([nearest_pixel(down), nearest_pixel(right)])
        return scribble(moved[:, 0].clip(0, self._height - 1), moved[:, 1].clip(0, self._width - 1), category)

    def box(self, rows: np.ndarray, columns: np.ndarray, category: str) -> Point:
        """The bounding box, drawn from its upper left to its lower right corner."""
        first = self._displaced(int(rows.min()), int(columns.min()))
        last = self._displaced(int(rows.max()), int(columns.max()))
        (top, bottom), (left, right) = map(sorted, zip(first, last, strict=True))
        return box_target(left, top, right, bottom, category)

    def _displaced(self, row: int, column: int) -> tuple[int, int]:
        down, right = self._displacement()
        return (
            min(max(nearest_pixel(row + down), 0), self._height - 1),
            min(max(nearest_pixel(column + right), 0), self._width - 1),
        )

    def _displacement(self) -> tuple[float, float]:
        while self._jitter:
            down, right = self._rng.normal(0.0, self._jitter, 2)
            if math.hypot(down, right) <= 2 * self._jitter:
                return float(down), float(right)
        return 0.0, 0.0
