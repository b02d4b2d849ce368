"""The contact sheet of a labelling run: what was clicked and what was found, target by target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mclc_gpu.errors import InputError

MAX_TILES = 48

Colour = tuple[int, int, int]
_PAPER: Colour = (250, 250, 247)
_FRAME: Colour = (214, 214, 208)
_INK: Colour = (28, 28, 32)
_FAINT: Colour = (112, 112, 118)
# Orange and sky blue stay apart for colour-blind eyes, and both from gray.
_CLICK: Colour = (255, 45, 85)
_MASK: Colour = (255, 176, 0)
_TRUTH: Colour = (64, 190, 255)
# The TPM's colours, from 0 to 1 in even steps of lightness.
_HEAT = np.array(
    [
        (2, 2, 14),
        (42, 11, 84),
        (98, 20, 110),
        (152, 40, 98),
        (202, 66, 68),
        (238, 110, 32),
        (250, 176, 24),
        (252, 250, 170),
    ]
)

_PANEL = 150  # px, side of the square that a window is enlarged to
_GAP = 6  # between the panels of a tile
_GUTTER = 30  # between columns of tiles
_MARGIN = 18
_CAPTION = 30  # height under the panels, with the space to the next tile
_TITLE, _LEGEND, _HEADING = 32, 28, 20
_HEADINGS = ("image and click", "TPM", "mask")
_TILE_WIDTH = 3 * _PANEL + 2 * _GAP


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
    top = _MARGIN + (_TITLE if title else 0) + _LEGEND + _HEADING
    width = 2 * _MARGIN + columns * _TILE_WIDTH + (columns - 1) * _GUTTER
    sheet = Image.new("RGB", (width, top + max(rows, 1) * (_PANEL + _CAPTION) + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = ImageFont.load_default(17)
        draw.text((_MARGIN, _MARGIN), _shortened(title, font, width - 2 * _MARGIN), _INK, font)
    _draw_legend(sheet, draw, top - _HEADING - _LEGEND, any(tile.truth is not None for tile in tiles))
    if not tiles:
        draw.text((_MARGIN, top), "no targets", _FAINT, ImageFont.load_default(14))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (_TILE_WIDTH + _GUTTER)
        if row == 0:
            for panel, heading in enumerate(_HEADINGS):
                at = (left + panel * (_PANEL + _GAP), top - 5)
                draw.text(at, heading, _FAINT, ImageFont.load_default(12), anchor="ls")
        _draw_tile(sheet, draw, tile, left, top + row * (_PANEL + _CAPTION))
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
    window = _enlarged(_stretched(tile.image))
    outlined = window.copy()
    scale = max(window.shape[:2]) / max(tile.mask.shape)
    thickness = min(max(round(scale / 3.5), 1), 3)
    if tile.truth is not None:
        truth = _enlarged(tile.truth)
        outlined[ndimage.binary_dilation(truth, np.ones((3, 3)), thickness) & ~truth] = _TRUTH
    mask = _enlarged(tile.mask)
    outlined[mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), thickness)] = _MASK

    height, width = window.shape[:2]
    inset_x, inset_y = (_PANEL - width) // 2, (_PANEL - height) // 2
    for panel, pixels in enumerate((window, _enlarged(_heat(tile.tpm)), outlined)):
        start = left + panel * (_PANEL + _GAP)
        draw.rectangle((start, top, start + _PANEL - 1, top + _PANEL - 1), _FRAME)
        sheet.paste(Image.fromarray(pixels), (start + inset_x, top + inset_y))
    x, y = ((c + 0.5) * scale for c in tile.click)
    _draw_cross(draw, left + inset_x + x, top + inset_y + y, min(max(scale / 2 + 2, 3), 8))

    font = ImageFont.load_default(13)
    facts = _facts(tile)
    right = left + _TILE_WIDTH
    draw.text((right, top + _PANEL + 4), facts, _INK, font, anchor="ra")
    room = _TILE_WIDTH - font.getlength(facts) - 16
    draw.text((left, top + _PANEL + 4), _shortened(tile.name, font, room), _INK, font)


def _facts(tile: Tile) -> str:
    parts = [tile.category] if tile.category else []
    parts.append(f"{np.count_nonzero(tile.mask)} px")
    if tile.truth is not None:
        union = np.count_nonzero(tile.mask | tile.truth)
        parts.append(f"IoU {np.count_nonzero(tile.mask & tile.truth) / union:.2f}" if union else "IoU n/a")
    return ",  ".join(parts)


def _draw_cross(draw: ImageDraw.ImageDraw, x: float, y: float, start: float) -> None:
    """Four arms that begin `start` px from the clicked position, which itself stays in sight."""
    for colour, width, rim in ((_INK, 4, 1), (_CLICK, 2, 0)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near, far = start - rim, start + 6 + rim
            draw.line((x + near * dx, y + near * dy, x + far * dx, y + far * dy), colour, width)


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, truth: bool) -> None:
    font = ImageFont.load_default(12)
    middle = y + 7
    _draw_cross(draw, _MARGIN + 9, middle, 3)
    x = _MARGIN + 26
    draw.text((x, middle), "click", _INK, font, anchor="lm")
    x += 50
    for colour, label in ((_MASK, "pseudo mask"), (_TRUTH, "truth"))[: 1 + truth]:
        draw.rectangle((x, middle - 6, x + 12, middle + 6), outline=colour, width=3)
        draw.text((x + 20, middle), label, _INK, font, anchor="lm")
        x += 46 + int(font.getlength(label))
    draw.text((x, middle), "TPM  0", _INK, font, anchor="lm")
    x += int(font.getlength("TPM  0")) + 6
    bar = np.broadcast_to(np.linspace(0, 1, 90), (12, 90))
    sheet.paste(Image.fromarray(_heat(bar)), (x, middle - 6))
    draw.text((x + 96, middle), "1", _INK, font, anchor="lm")


def _stretched(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] over the full range of gray, from the window's darkest value to its brightest."""
    values = image.astype(np.float64)
    low, high = values.min(), values.max()
    gray = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    if gray.ndim == 2:
        gray = np.repeat(gray[:, :, None], 3, axis=2)
    return np.rint(gray * 255).astype(np.uint8)


def _heat(probability: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] colours of probabilities."""
    at = np.clip(probability, 0, 1) * (len(_HEAT) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """[h, w, ...] by nearest neighbour to the size at which its longer side fills the panel."""
    shape = pixels.shape[:2]
    sides = [max(1, round(side * _PANEL / max(shape))) for side in shape]
    rows, columns = (np.arange(side) * old // side for side, old in zip(sides, shape, strict=True))
    return pixels[rows][:, columns]


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> str:
    """The text, or as much of its start as fits into `room` px with three dots."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
