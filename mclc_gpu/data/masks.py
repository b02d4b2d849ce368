"""Masks of single targets: run lengths in a box, outlines along pixel edges, encodings of other tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mclc_gpu.errors import InputError

Corner = tuple[int, int]  # x, y: pixel (x, y) lies between the corners (x, y) and (x + 1, y + 1)
_BRUSH_SIZES = (3, 4, 8, 16)  # bits of the lengths in Label Studio's encoding


@dataclass(frozen=True, slots=True)
class BoxedMask:
    """Pixels of one target in a box of an image, as run lengths.

    Attributes
    ----------
    top, left : int
        First row and column of the box.
    height, width : int
        Size of the box in pixels; 0 for an empty mask.
    runs : tuple of int
        Lengths of the runs of pixels outside and inside the mask in turns, outside first, row by row.
    """

    top: int
    left: int
    height: int
    width: int
    runs: tuple[int, ...]

    @staticmethod
    def of(mask: np.ndarray, top: int = 0, left: int = 0) -> "BoxedMask":
        """Return a mask, bool [h, w], whose first pixel is (top, left) in its image, cut to its pixels."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return BoxedMask(top, left, 0, 0, ())
        first, start = int(rows[0]), int(columns[0])
        part = mask[first : int(rows[-1]) + 1, start : int(columns[-1]) + 1]
        flat = np.concatenate([[False], part.ravel(), [not part[-1, -1]]])
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        runs = np.diff(np.concatenate([[0], changes]))
        height, width = part.shape
        return BoxedMask(top + first, left + start, height, width, tuple(runs.tolist()))

    def pixels(self) -> np.ndarray:
        """Return the mask in its box, bool [height, width]."""
        inside = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(inside, self.runs).reshape(self.height, self.width)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return sum(self.runs[1::2])

    def json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {
            "top": self.top,
            "left": self.left,
            "height": self.height,
            "width": self.width,
            "runs": list(self.runs),
        }

    @classmethod
    def of_json(cls, content: Any, shape: tuple[int, int]) -> Self:
        """Return the mask that JSON from outside describes, in an image of this (height, width).

        Raises
        ------
        InputError
            It is no mask, lies outside the image or has no pixels.
        """
        names = ("top", "left", "height", "width")
        if not isinstance(content, dict) or set(content) != {*names, "runs"}:
            raise InputError("mask: give top, left, height, width and runs")
        numbers, runs = [content[name] for name in names], content["runs"]
        if not (
            isinstance(runs, list) and all(type(value) is int and value >= 0 for value in (*numbers, *runs))
        ):
            raise InputError("mask: give whole numbers of at least 0")
        top, left, height, width = numbers
        if top + height > shape[0] or left + width > shape[1] or not height * width:
            raise InputError(f"mask: its box must lie in the image of {shape[1]}x{shape[0]} pixels")
        if sum(runs) != height * width or not sum(runs[1::2]):
            raise InputError("mask: its runs must fill the box and hold a pixel; delete the target instead")
        return cls(top, left, height, width, tuple(runs))


def outline(mask: BoxedMask) -> list[Corner]:
    """Return one closed polygon along the edges of a mask's pixels.

    Parts and holes are joined by paths of no width along the edges of pixels, which are passed in both
    directions. So a pixel's center is inside the polygon exactly if the pixel is in the mask, by the rule of
    even crossings and by that of windings, and no edge meets a center.

    Parameters
    ----------
    mask : BoxedMask
        With at least one pixel.

    Returns
    -------
    list of (x, y)
        Corners of pixels in the image, 0 at its left and upper edge; the last one is not the first again.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.data.masks import BoxedMask, outline
    >>> outline(BoxedMask.of(np.ones((2, 3), bool), top=5, left=7))
    [(7, 5), (10, 5), (10, 7), (7, 7)]
    """
    first, *others = _rings(mask.pixels())
    x, y = first[0]
    path = list(first)
    for ring in others:
        path.append((x, y))
        corner = (ring[0][0], y)
        path += [corner, *ring, ring[0], corner]
    if others:
        path.append((x, y))
    moved = [(x + mask.left, y + mask.top) for x, y in path]
    return [corner for place, corner in enumerate(moved) if corner != moved[place - 1]]


def _rings(pixels: np.ndarray) -> list[list[Corner]]:
    """Return the closed lines around the parts of a mask, clockwise, and around its holes; corners only."""
    inside = np.pad(pixels, 1)
    following: dict[Corner, list[Corner]] = {}
    for y, x in np.argwhere(pixels).tolist():
        sides = (
            (inside[y, x + 1], (x, y), (x + 1, y)),
            (inside[y + 1, x + 2], (x + 1, y), (x + 1, y + 1)),
            (inside[y + 2, x + 1], (x + 1, y + 1), (x, y + 1)),
            (inside[y + 1, x], (x, y + 1), (x, y)),
        )
        for beside, start, end in sides:
            if not beside:
                following.setdefault(start, []).append(end)
    rings = []
    while following:
        start = next(iter(following))
        ring, at = [], start
        while at in following:
            ring.append(at)
            ends = following[at]
            before = ring[-2] if len(ring) > 1 else at
            # Where two pixels touch at a corner the line turns left, and joins them.
            turn = [(at[0] - before[0]) * (e[1] - at[1]) - (at[1] - before[1]) * (e[0] - at[0]) for e in ends]
            end = ends.pop(turn.index(min(turn)))
            if not ends:
                del following[at]
            at = end
        rings.append(_bends(ring))
    return rings


def _bends(ring: Sequence[Corner]) -> list[Corner]:
    """Return the corners of a closed line at which it turns."""
    around = zip((ring[-1], *ring[:-1]), ring, (*ring[1:], ring[0]), strict=True)
    return [b for a, b, c in around if (b[0] - a[0]) * (c[1] - b[1]) != (b[1] - a[1]) * (c[0] - b[0])]


def coco_counts(mask: BoxedMask, shape: tuple[int, int]) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask in its image, [H, W]: column by column, outside first.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.data.masks import BoxedMask, coco_counts
    >>> coco_counts(BoxedMask.of(np.ones((2, 1), bool), top=1, left=1), (4, 3))
    [5, 2, 5]
    """
    rows, columns = np.nonzero(mask.pixels())
    flat = np.sort((columns + mask.left) * shape[0] + rows + mask.top)
    starts = flat[np.concatenate([[True], np.diff(flat) > 1])] if len(flat) else flat
    ends = flat[np.concatenate([np.diff(flat) > 1, [True]])] + 1 if len(flat) else flat
    edges = np.stack([starts, ends], 1).ravel()
    return np.diff(np.concatenate([[0], edges, [shape[0] * shape[1]]])).tolist()


def label_studio_rle(mask: BoxedMask, shape: tuple[int, int]) -> list[int]:
    """Return Label Studio's encoding of a brush mask in its image, [H, W]: bytes of a stream of bits.

    The stream encodes the image's pixels row by row as red, green, blue and alpha, all 255 in the mask and 0
    elsewhere: their number in 32 bits, 7 in 5 bits (the bits of a value less 1), four sizes less 1 in 4 bits
    each; then for each run a 1, the index of a size in 2 bits, the length less 1 in that many bits, and the
    value in 8 bits.
    """
    rows, columns = np.nonzero(mask.pixels())
    flat = (rows + mask.top) * shape[1] + columns + mask.left
    starts = flat[np.concatenate([[True], np.diff(flat) > 1])] if len(flat) else flat
    ends = flat[np.concatenate([np.diff(flat) > 1, [True]])] + 1 if len(flat) else flat
    pixels = shape[0] * shape[1]
    edges = np.concatenate([[0], np.stack([starts, ends], 1).ravel(), [pixels]]) * 4
    bits = [f"{pixels * 4:032b}{7:05b}", *(f"{size - 1:04b}" for size in _BRUSH_SIZES)]
    for number, length in enumerate(np.diff(edges).tolist()):
        value = f"{255 * (number % 2):08b}"
        while length:
            part = min(length, 1 << _BRUSH_SIZES[-1])
            index, size = next((i, most) for i, most in enumerate(_BRUSH_SIZES) if part <= 1 << most)
            bits.append(f"1{index:02b}{part - 1:0{size}b}{value}")
            length -= part
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[at : at + 8], 2) for at in range(0, len(stream), 8)]
