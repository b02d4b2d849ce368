"""Signs of errors in the labels of one image, part by part: huge images need not be searched whole."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mclc_gpu.data.annotations import Point
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.folder import LabelRun, TargetRow
from mclc_gpu.labels.pipeline import TargetMask
from mclc_gpu.report.check import CheckedTarget, check_image

_BLOCK = 64  # pixels, of which parts are made
_WHOLE = 1 << 22  # pixels of an image that is searched at once


class _Part(NamedTuple):
    """Rectangle of an image, and the places of the targets that lie in it among all."""

    top: int
    left: int
    shape: tuple[int, int]
    places: list[int]


def check_targets(
    name: str, shape: tuple[int, int], targets: Sequence[TargetMask], config: LabelConfig, seed: int
) -> dict[int, CheckedTarget]:
    """Check the targets of one image, see `mclc_gpu.report.check`.

    Parameters
    ----------
    name : str
        Name of the image.
    shape : (int, int)
        Its height and width in pixels.
    targets : sequence of TargetMask
        All of its labels.
    config : LabelConfig
    seed : int

    Returns
    -------
    dict of int to CheckedTarget
        By place among `targets`; its `view` is of use in a part of the image only.
    """
    # Where windows are drawn at random they depend on the place among all targets of the image.
    whole = config.entry.seeded or shape[0] * shape[1] <= _WHOLE
    parts = [_Part(0, 0, shape, list(range(len(targets))))] if whole else parts_of(shape, targets)
    settings = {"settings": {"seed": seed, **asdict(config)}}
    found: dict[int, CheckedTarget] = {}
    for part in parts:
        own, mask = [targets[place] for place in part.places], np.zeros(part.shape, bool)
        for target in own:
            window = target.window
            rows = slice(window.top - part.top, window.bottom - part.top)
            mask[rows, window.left - part.left : window.right - part.left] |= target.mask
        run = LabelRun(Path(), settings)
        moved = (replace(target, point=_moved(target.point, part)) for target in own)
        run.rows = {name: [TargetRow.of(target) for target in moved]}
        for one in check_image(name, mask, labels=run).targets:
            if one.index is not None:
                place = part.places[one.index]
                found[place] = replace(one, index=place, x=one.x + part.left, y=one.y + part.top)
    return found


def _moved(point: Point, part: _Part) -> Point:
    """Return marks relative to the first pixel of a part."""
    x, y = part.left, part.top
    box = point.box
    return replace(
        point,
        x=point.x - x,
        y=point.y - y,
        seeds=tuple((one - x, other - y) for one, other in point.seeds),
        box=None if box is None else (box[0] - x, box[1] - y, box[2] - x, box[3] - y),
    )


def parts_of(shape: tuple[int, int], targets: Sequence[TargetMask]) -> Iterator[_Part]:
    """Yield the parts of an image of this (height, width) that hold targets.

    Targets whose windows touch lie in one part, which reaches beyond the windows unless the image ends there.
    """
    if not targets:
        return
    height, width = shape
    blocks = np.zeros((-(-height // _BLOCK), -(-width // _BLOCK)), bool)
    corners = []
    for target in targets:
        window = target.window
        top, left = max(window.top - 1, 0) // _BLOCK, max(window.left - 1, 0) // _BLOCK
        bottom, right = min(window.bottom, height - 1) // _BLOCK, min(window.right, width - 1) // _BLOCK
        blocks[top : bottom + 1, left : right + 1] = True
        corners.append((top, left))
    groups, _ = ndimage.label(blocks, np.ones((3, 3)))
    owners = np.array([groups[corner] for corner in corners])
    for number, (rows, columns) in enumerate(ndimage.find_objects(groups), 1):
        top, left = rows.start * _BLOCK, columns.start * _BLOCK
        size = min(rows.stop * _BLOCK, height) - top, min(columns.stop * _BLOCK, width) - left
        yield _Part(top, left, size, np.flatnonzero(owners == number).tolist())
