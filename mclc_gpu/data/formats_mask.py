"""Point labels as pictures, one per image and named like it: marked pixels on a ground of zeros."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mclc_gpu.data.formats import Entries, Entry
from mclc_gpu.data.images import read_image
from mclc_gpu.data.shapes import components
from mclc_gpu.errors import InputError


def parse_point_mask(path: Path) -> Entries:
    """A mask of single pixels: each nonzero pixel is a point, none means no target.

    Raises InputError when 2x2 nonzero pixels touch: then the file is a mask of whole targets, not of points.
    """
    marked = _marked(path)
    _refuse_areas(marked, path)
    rows, columns = np.nonzero(marked)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        yield Entry((path.name,), f"pixel ({column}, {row})", ((column, row),), size=marked.shape)
    if not len(rows):
        yield Entry((path.name,), "the whole file", size=marked.shape)


def parse_multi_point_mask(path: Path) -> Entries:
    """Single pixels whose value (or colour) numbers their target: equal pixels are clicks on one target.

    Targets come in order of their first pixels, row by row. Raises InputError when 2x2 nonzero pixels touch,
    and when several pixels all have the value 1 or all have the largest value, as in a mask of two values:
    which of them belong together is then not said.
    """
    pixels = np.atleast_3d(read_image(path))
    marked = pixels.max(axis=2) > 0
    _refuse_areas(marked, path)
    rows, columns = np.nonzero(marked)
    colours, owners = np.unique(pixels[rows, columns], axis=0, return_inverse=True)
    owners = owners.ravel()
    if len(colours) == 1 and len(rows) > 1 and _is_plain(colours[0]):
        raise InputError(
            f"{path}: its {len(rows)} pixels have one value, so their targets are not told apart; "
            "give each target a value of its own from 2 on"
        )
    for owner in dict.fromkeys(owners.tolist()):
        own = owners == owner
        clicks = tuple(zip(columns[own].tolist(), rows[own].tolist(), strict=True))
        value = ", ".join(f"{level:g}" for level in colours[owner].tolist())
        yield Entry((path.name,), f"value {value}", clicks, size=marked.shape)
    if not len(rows):
        yield Entry((path.name,), "the whole file", size=marked.shape)


def parse_scribble_mask(path: Path) -> Entries:
    """Strokes of any width: each 8-connected component of nonzero pixels is one, none means no target."""
    marked = _marked(path)
    for rows, columns in components(marked):
        pixels = tuple(zip(columns.tolist(), rows.tolist(), strict=True))
        yield Entry((path.name,), f"stroke at {pixels[0]}", size=marked.shape, stroke=pixels)
    if not marked.any():
        yield Entry((path.name,), "the whole file", size=marked.shape)


def refuse_mask(path: Path) -> Entries:
    """Raise InputError: pixels say nothing that could be read as boxes."""
    raise InputError(f"{path}: a picture holds no boxes; give masks of whole targets to --points-from-masks")


MASK_PARSERS: dict[str, Callable[[Path], Entries]] = {
    "point": parse_point_mask,
    "multi-point": parse_multi_point_mask,
    "scribble": parse_scribble_mask,
    "box": refuse_mask,
}


def _marked(path: Path) -> np.ndarray:
    """Bool [H, W]: where a picture is not zero."""
    marked: np.ndarray = np.atleast_3d(read_image(path)).max(axis=2) > 0
    return marked


def _refuse_areas(marked: np.ndarray, path: Path) -> None:
    if (marked[:-1, :-1] & marked[1:, :-1] & marked[:-1, 1:] & marked[1:, 1:]).any():
        raise InputError(f"{path}: nonzero pixels form areas, not points; give masks to --points-from-masks")


def _is_plain(colour: np.ndarray) -> bool:
    """Whether a pixel has the value that masks of two values use for true."""
    largest = 1 if colour.dtype.kind == "f" else np.iinfo(colour.dtype).max
    return bool(((colour == 0) | (colour == 1) | (colour == largest)).all())
