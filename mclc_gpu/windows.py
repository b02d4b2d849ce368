"""The window of pixels that is clustered around each click."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from mclc_gpu.errors import InputError

# Inclusive ranges in pixels for (up, down, left, right), per target category, of the published procedure
# (Li et al., ICCV 2023); the fixed right side of points is part of it.
HALF_EXTENTS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "point": ((3, 5), (3, 5), (3, 5), (3, 3)),
    "spot": ((10, 11), (10, 11), (10, 11), (10, 11)),
    "extended": ((15, 25), (15, 25), (15, 25), (15, 25)),
}


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle inside an image and the clicked pixel inside that rectangle; all values in whole pixels.

    Attributes:
        top, left: First row and column in the image.
        height, width: Size, at least 1.
        click_row, click_column: The clicked pixel relative to (top, left): 0 <= click_row < height,
            0 <= click_column < width.
    """

    top: int
    left: int
    height: int
    width: int
    click_row: int
    click_column: int

    @property
    def bottom(self) -> int:
        """First image row below the window."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First image column to the right of the window."""
        return self.left + self.width


def name_key(seed: int, image_name: str) -> int:
    """A 64-bit key, 0 <= key < 2**64, for everything random about one image.

    The same seed (any integer) and name give the same key on every machine and in every version. Give the
    name without folder and extension, so that the same image stored otherwise keeps its key.
    """
    text = f"{seed}/{image_name}".encode(errors="surrogateescape")  # file names need not be valid text
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def draw_window(
    height: int, width: int, x: float, y: float, category: str, seed: int, image_name: str, target_index: int
) -> Window:
    """Draw one target's window by the published rule.

    With (row, column) the click rounded half up and clipped into the image, the window is rows
    [row - up, row + down) and columns [column - left, column + right), clipped to the image; the four
    extents are uniform in `HALF_EXTENTS`.

    Args:
        height, width: Size of the image in pixels.
        x, y: The click: column and row, pixel centres at integers.
        category: "point", "spot" or "extended".
        seed, image_name, target_index: All that the random numbers depend on; target_index counts the image's
            targets from 0.

    Returns:
        The window; it always contains the (clipped) click.

    Raises:
        InputError: Unknown category, a click that is not finite, or an image without pixels.
    """
    where = f"{image_name}: target {target_index}"
    if category not in HALF_EXTENTS:
        raise InputError(f"{where}: unknown category {category!r}: use one of {', '.join(HALF_EXTENTS)}")
    if not (math.isfinite(x) and math.isfinite(y)):
        raise InputError(f"{where}: click ({x}, {y}) is not a position: give x and y in pixels")
    if height < 1 or width < 1:
        raise InputError(f"{where}: the image has no pixels ({height} x {width}): remove it from the list")

    row = min(max(math.floor(y + 0.5), 0), height - 1)
    column = min(max(math.floor(x + 0.5), 0), width - 1)
    # Raw words, unlike Generator.integers, are promised to stay the same in future numpy versions; the
    # scaling's bias is of order 2**-60. The key is one integer: numpy turns a list of two into floats first.
    words = np.random.Philox(key=name_key(seed, image_name) | target_index << 64).random_raw(4)
    up, down, left, right = (
        low + (int(word) * (high - low + 1) >> 64)
        for word, (low, high) in zip(words, HALF_EXTENTS[category], strict=True)
    )
    top, first = max(row - up, 0), max(column - left, 0)
    return Window(
        top=top,
        left=first,
        height=min(row + down, height) - top,
        width=min(column + right, width) - first,
        click_row=row - top,
        click_column=column - first,
    )
