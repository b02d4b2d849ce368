"""The contact sheet of a labelling run: what was clicked and what was found, target by target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mclc_gpu.drawing import (
    CAPTION,
    FAINT,
    GAP,
    INK,
    MARGIN,
    PANEL,
    draw_headings,
    draw_panels,
    enlarged,
    heat,
    mask_facts,
    new_sheet,
    outlined,
    shortened,
    stretched,
)
from mclc_gpu.errors import InputError

MAX_TILES = 48

_GUTTER = 30  # between columns of tiles
_HEADINGS = ("image and click", "TPM", "mask")
_TILE_WIDTH = 3 * PANEL + 2 * GAP


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One target to show; all arrays cover the same window, usually 3x3 to 65x65 px.

    Attributes:
        name: Name of the image.
        image: [h, w] gray or [h, w, 3] RGB, of any number type and range; shown from its darkest to its
            brightest.
        tpm: float [h, w], target probability, 0 to 1.
        mask: bool [h, w], the pseudo mask.
        click: (x, y) in the window: column and row, pixel centres at integers.
        truth: bool [h, w], the true mask, None when it is not known.
        category: Of the target, None when it is not known.
    """

    name: str
    image: np.ndarray
    tpm: np.ndarray
    mask: np.ndarray
    click: tuple[float, float]
    truth: np.ndarray | None = None
    category: str | None = None


def contact_sheet(tiles: Sequence[Tile], columns: int = 2, title: str = "") -> Image.Image:
    """Draw the tiles row by row: window with click, TPM, window with the outlines of mask and truth.

    The outline of a mask lies on the mask's own pixels, the outline of the truth around the truth's pixels,
    so that both show where they agree. The caption under a tile states the image, the category, the mask's
    area in pixels and, with truth, the IoU in the window (n/a when both masks are empty).

    Args:
        tiles: At most `MAX_TILES`; the caller chooses which of a long run. None of them gives a sheet that
            says so.
        columns: Tiles side by side, at least 1.
        title: A line above the legend, such as the settings of the run.

    Returns:
        An RGB image, about 1000 px wide with two columns.

    Raises:
        InputError: Too many tiles, columns below 1, or a tile whose arrays do not have the same size.
    """
    if len(tiles) > MAX_TILES:
        raise InputError(f"{len(tiles)} tiles do not fit on one contact sheet: choose at most {MAX_TILES}")
    if columns < 1:
        raise InputError(f"columns {columns}: give at least 1")
    for tile in tiles:
        _check(tile)
    rows = -(-len(tiles) // columns)
    width = 2 * MARGIN + columns * _TILE_WIDTH + (columns - 1) * _GUTTER
    sheet, top = new_sheet(width, rows, title, truth=any(tile.truth is not None for tile in tiles))
    draw = ImageDraw.Draw(sheet)
    if not tiles:
        draw.text((MARGIN, top), "no targets", FAINT, ImageFont.load_default(14))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left = MARGIN + column * (_TILE_WIDTH + _GUTTER)
        if row == 0:
            draw_headings(draw, left, top, _HEADINGS)
        _draw_tile(sheet, draw, tile, left, top + row * (PANEL + CAPTION))
    return sheet


def _check(tile: Tile) -> None:
    shape = tile.mask.shape
    arrays = {"image": tile.image.shape[:2], "tpm": tile.tpm.shape}
    if tile.truth is not None:
        arrays["truth"] = tile.truth.shape
    for what, other in arrays.items():
        if other != shape or len(shape) != 2 or 0 in shape:
            raise InputError(
                f"{tile.name}: the tile's {what} is {other} but its mask {shape}: "
                "cut both from one window [h, w]"
            )


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    window = enlarged(stretched(tile.image))
    panels = (window, enlarged(heat(tile.tpm)), outlined(window, tile.mask, tile.truth))
    draw_panels(sheet, left, top, panels, tile.mask.shape, tile.click)
    font = ImageFont.load_default(13)
    facts = ",  ".join([*([tile.category] if tile.category else []), *mask_facts(tile.mask, tile.truth)])
    draw.text((left + _TILE_WIDTH, top + PANEL + 4), facts, INK, font, anchor="ra")
    room = _TILE_WIDTH - font.getlength(facts) - 16
    draw.text((left, top + PANEL + 4), shortened(tile.name, font, room), INK, font)
