"""What the pictures of targets are drawn with: gray levels, heat colours, outlines, captions."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mclc_gpu.metrics import mask_iou

Colour = tuple[int, int, int]
PAPER: Colour = (250, 250, 247)
FRAME: Colour = (214, 214, 208)
INK: Colour = (28, 28, 32)
FAINT: Colour = (112, 112, 118)
# Orange and sky blue stay apart for colour-blind eyes, and both from gray.
CLICK: Colour = (255, 45, 85)
MASK: Colour = (255, 176, 0)
TRUTH: Colour = (64, 190, 255)
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

PANEL = 150  # px, side of the square that a window is enlarged to
GAP = 6  # between the panels of a target
MARGIN = 18  # around a picture
CAPTION = 30  # height under the panels, with the space to the next ones
_TITLE, _LEGEND, _HEADING = 32, 28, 20  # heights above the first row of panels


def new_sheet(
    width: int,
    rows: int,
    title: str,
    *,
    truth: bool,
    tpm: bool = True,
    click: bool = True,
    words: tuple[str, str] = ("pseudo mask", "TPM"),
) -> tuple[Image.Image, int]:
    """A sheet for rows of panels, with title and legend, and where its first row begins.

    Args:
        width: Of the sheet in px.
        rows: Rows of panels; room is left for one at least.
        title: A line above the legend, or "".
        truth, tpm, click: Whether the legend explains the truth's outline, the TPM's colours, the cross.
        words: What the legend calls the mask and the TPM.
    """
    top = MARGIN + (_TITLE if title else 0) + _LEGEND + _HEADING
    sheet = Image.new("RGB", (width, top + max(rows, 1) * (PANEL + CAPTION) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = ImageFont.load_default(17)
        draw.text((MARGIN, MARGIN), shortened(title, font, width - 2 * MARGIN), INK, font)
    x = MARGIN
    middle = top - _HEADING - _LEGEND + 7
    if click:
        _draw_cross(draw, x + 9, middle, 3)
        draw.text((x + 26, middle), "click", INK, ImageFont.load_default(12), anchor="lm")
        x += 76
    x = _draw_outline_words(draw, x, middle, ((MASK, words[0]), (TRUTH, "truth"))[: 1 + truth])
    if tpm:
        _draw_scale(sheet, draw, x, middle, words[1])
    return sheet, top


def draw_headings(draw: ImageDraw.ImageDraw, left: int, top: int, headings: Sequence[str]) -> None:
    """What the panels of a column of targets show, above the first row of panels at `top`."""
    for panel, heading in enumerate(headings):
        at = (left + panel * (PANEL + GAP), top - 5)
        draw.text(at, heading, FAINT, ImageFont.load_default(12), anchor="ls")


def _draw_cross(draw: ImageDraw.ImageDraw, x: float, y: float, start: float) -> None:
    """Four arms that begin `start` px from the clicked position, which itself stays in sight."""
    for colour, width, rim in ((INK, 4, 1), (CLICK, 2, 0)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near, far = start - rim, start + 6 + rim
            draw.line((x + near * dx, y + near * dy, x + far * dx, y + far * dy), colour, width)


def _draw_outline_words(
    draw: ImageDraw.ImageDraw, x: int, middle: int, outlines: Sequence[tuple[Colour, str]]
) -> int:
    """Legend of the outlines, from x on; returns where it ends."""
    font = ImageFont.load_default(12)
    for colour, label in outlines:
        draw.rectangle((x, middle - 6, x + 12, middle + 6), outline=colour, width=3)
        draw.text((x + 20, middle), label, INK, font, anchor="lm")
        x += 46 + int(font.getlength(label))
    return x


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, middle: int, word: str) -> None:
    """Legend of the heat colours, from x on."""
    font = ImageFont.load_default(12)
    draw.text((x, middle), f"{word}  0", INK, font, anchor="lm")
    x += int(font.getlength(f"{word}  0")) + 6
    bar = np.broadcast_to(np.linspace(0, 1, 90), (12, 90))
    sheet.paste(Image.fromarray(heat(bar)), (x, middle - 6))
    draw.text((x + 96, middle), "1", INK, font, anchor="lm")


def outlined(
    window: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None, colour: Colour = MASK
) -> np.ndarray:
    """The enlarged window with the outline of a mask and, on demand, of the truth.

    The mask's outline lies on the mask's own pixels, the truth's around its pixels, so that both show where
    they agree.

    Args:
        window: uint8 [H, W, 3], see `enlarged`.
        mask, truth: bool [h, w] of the window before it was enlarged.
        colour: Of the mask's outline.
    """
    drawn = window.copy()
    thickness = min(max(round(max(window.shape[:2]) / max(mask.shape) / 3.5), 1), 3)
    if truth is not None:
        large = enlarged(truth)
        drawn[ndimage.binary_dilation(large, np.ones((3, 3)), thickness) & ~large] = TRUTH
    large = enlarged(mask)
    drawn[large & ~ndimage.binary_erosion(large, np.ones((3, 3)), thickness)] = colour
    return drawn


def draw_panels(
    sheet: Image.Image,
    left: int,
    top: int,
    panels: Sequence[np.ndarray],
    shape: tuple[int, ...],
    click: tuple[float, float] | None,
) -> None:
    """Panels of one target side by side, with the click's cross, if there is one, on the first.

    Args:
        left, top: Of the first panel in the sheet.
        panels: uint8 [H, W, 3] each, see `enlarged`, all of one size.
        shape: Of the window before it was enlarged.
        click: (x, y) in that window, pixel centres at integers.
    """
    draw = ImageDraw.Draw(sheet)
    height, width = panels[0].shape[:2]
    inset_x, inset_y = (PANEL - width) // 2, (PANEL - height) // 2
    for place, pixels in enumerate(panels):
        start = left + place * (PANEL + GAP)
        draw.rectangle((start, top, start + PANEL - 1, top + PANEL - 1), FRAME)
        sheet.paste(Image.fromarray(pixels), (start + inset_x, top + inset_y))
    if click is None:
        return
    scale = max(height, width) / max(shape[:2])
    x, y = ((c + 0.5) * scale for c in click)
    _draw_cross(draw, left + inset_x + x, top + inset_y + y, min(max(scale / 2 + 2, 3), 8))


def mask_facts(mask: np.ndarray, truth: np.ndarray | None) -> list[str]:
    """A mask's area and, where the truth is known, its IoU, for a caption."""
    facts = [f"{np.count_nonzero(mask)} px"]
    if truth is not None:
        iou = mask_iou(mask, truth)
        facts.append("IoU n/a" if math.isnan(iou) else f"IoU {iou:.2f}")
    return facts


def stretched(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] over the full range of gray, from the window's darkest value to its brightest."""
    values = image.astype(np.float64)
    low, high = values.min(), values.max()
    gray = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    if gray.ndim == 2:
        gray = np.repeat(gray[:, :, None], 3, axis=2)
    return np.rint(gray * 255).astype(np.uint8)


def heat(probability: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] colours of probabilities."""
    at = np.clip(probability, 0, 1) * (len(_HEAT) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """[h, w, ...] by nearest neighbour to the size at which its longer side fills the panel."""
    shape = pixels.shape[:2]
    sides = [max(1, round(side * PANEL / max(shape))) for side in shape]
    rows, columns = (np.arange(side) * old // side for side, old in zip(sides, shape, strict=True))
    return pixels[rows][:, columns]


def shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> str:
    """The text, or as much of its start as fits into `room` px with three dots."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
