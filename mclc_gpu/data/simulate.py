"""Simulate annotations of every supervision from true masks."""

import hashlib
import math
from collections.abc import Mapping
from functools import partial
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
from mclc_gpu.data.images import image_size, read_truth
from mclc_gpu.errors import InputError, Skipped, attempt


def points_from_mask(
    mask: np.ndarray,
    *,
    jitter: float = 0.0,
    rng: np.random.Generator | None = None,
    supervision: str = "point",
    clicks: int = 3,
) -> list[Point]:
    """Simulate the annotations of the targets of a mask.

    By supervision a target, an 8-connected component, gets

    - "point": a click on its centroid, rounded to the nearest pixel (halves up) and, when that pixel does not
      belong to the target (a ring, a crescent), moved to the target's nearest pixel;
    - "multi-point": `clicks` different random pixels of it, or all if it has fewer;
    - "scribble": the line from a random pixel of it to the pixel farthest from that one (of equally far ones
      the first in raster order), as far as the line lies on the target;
    - "box": its tight bounding box.

    The category is that of the true area, which an annotator would have to judge by eye.

    Parameters
    ----------
    mask : ndarray [H, W], bool
    jitter : float
        Deviation of the annotator in pixels, >= 0. Each click, the scribble as a whole, and two opposite
        corners of the box are displaced by N(0, jitter) in x and in y, drawn again until the displacement is
        at most 2 * jitter long, rounded, and clipped to the image. Clicks may then lie beside their target,
        or coincide (and count once); a box whose corners pass each other spans what lies between them. The
        paper displaces points too (Fig. 8); this distribution is our own choice, not the paper's.
    rng : numpy.random.Generator, optional
        Required for jitter > 0, "multi-point" and "scribble", else unused.
    supervision : {"point", "multi-point", "scribble", "box"}
    clicks : int
        Clicks per target, >= 1, with multi-point supervision.

    Returns
    -------
    list of Point
        In order of the targets' first pixels, row by row.

    Raises
    ------
    InputError
        Negative or non-finite jitter, clicks < 1, unknown supervision.
    ValueError
        `rng` is required and missing.

    Examples
    --------
    >>> import numpy as np
    >>> mask = np.zeros((9, 9), bool)
    >>> mask[2:5, 3:7] = True
    >>> points_from_mask(mask)
    [Point(x=5.0, y=3.0, category='spot', seeds=(), box=None)]
    >>> points_from_mask(mask, supervision="box")[0].box
    (3.0, 2.0, 6.0, 4.0)
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
    annotator = _Annotator(jitter, rng, mask.shape)
    points = []
    for rows, columns in components(mask):
        category = category_of(len(rows))
        if supervision == "box":
            points.append(annotator.box(rows, columns, category))
        elif supervision == "scribble":
            points.append(annotator.scribble(rows, columns, category))
        else:
            count = clicks if supervision == "multi-point" else None
            points.append(annotator.clicks(rows, columns, category, count))
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
    """Simulate the annotations of each image from its mask file; see `points_from_mask`.

    The annotations of an image depend on its mask, its stem and the other arguments, not on the other images.

    Parameters
    ----------
    masks, images : mapping of str to Path
        Files by stem.
    jitter, supervision, clicks
        See `points_from_mask`.
    seed : int
        Random seed.

    Returns
    -------
    points : dict of str to list of Point
        In the order of `images`; an empty mask gives an empty list.
    skipped : list of Skipped
        Images without a mask, masks of another size than their image, unreadable files.

    Raises
    ------
    InputError
        As `points_from_mask` does.
    """
    pairs, skipped = pair_files(images, masks)
    points: dict[str, list[Point]] = {}
    for stem, (image_path, mask_path) in pairs.items():
        mask = attempt(mask_path, partial(_mask_of, mask_path, image_path))
        if isinstance(mask, Skipped):
            skipped.append(mask)
            continue
        rng = _generator(seed, stem)
        points[stem] = points_from_mask(mask, jitter=jitter, rng=rng, supervision=supervision, clicks=clicks)
    return points, skipped


def _mask_of(mask: Path, image: Path) -> np.ndarray:
    return read_truth(mask, image_size(image))


def _generator(seed: int, stem: str) -> np.random.Generator:
    """Return the random generator of an image; Python's hash() would differ between processes."""
    digest = hashlib.blake2b(f"{seed}:{stem}".encode(errors="surrogateescape"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _center_pixel(rows: np.ndarray, columns: np.ndarray) -> tuple[int, int]:
    """Return (row, column) of the target's pixel that is nearest to its rounded centroid."""
    row, column = nearest_pixel(rows.mean()), nearest_pixel(columns.mean())
    nearest = np.argmin((rows - row) ** 2 + (columns - column) ** 2)
    return int(rows[nearest]), int(columns[nearest])


class _Annotator:
    """Annotator who aims at pixels of a target (rows and columns, int [n]) and hits displaced ones."""

    def __init__(self, jitter: float, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self._jitter = jitter
        self._rng = rng
        self._height, self._width = shape

    def clicks(self, rows: np.ndarray, columns: np.ndarray, category: str, count: int | None) -> Point:
        """Click on `count` random pixels or, for None, once on the center."""
        aims = [_center_pixel(rows, columns)]
        if count is not None:
            chosen = self._rng.choice(len(rows), min(count, len(rows)), replace=False)
            aims = list(zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True))
        hit = dict.fromkeys(self._displaced(*pixel) for pixel in aims)
        (x, y), *others = [(float(column), float(row)) for row, column in hit]
        return Point(x, y, category, seeds=tuple(others))

    def scribble(self, rows: np.ndarray, columns: np.ndarray, category: str) -> Point:
        """Draw a line along the target, from a random pixel to the one farthest from it."""
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
        """Draw the bounding box from its upper left to its lower right corner."""
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
