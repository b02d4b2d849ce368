"""Contact sheets: overview of a label run, replayed targets, worst and best cases."""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import atomic_path
from mclc_gpu.data.images import MASK, Colour, read_image, read_mask, stretched
from mclc_gpu.data.points import load_points
from mclc_gpu.detect.evaluate import Case
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.folder import LabelStore, read_tpm
from mclc_gpu.labels.replay import Process
from mclc_gpu.labels.windows import place_window
from mclc_gpu.score.matching import components_of
from mclc_gpu.score.metrics import mask_iou

PAPER: Colour = (250, 250, 247)
FRAME: Colour = (214, 214, 208)
INK: Colour = (28, 28, 32)
FAINT: Colour = (112, 112, 118)
# Orange and sky blue stay apart for colour-blind eyes, and both from gray.
CLICK: Colour = (255, 45, 85)
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


_TILES = 24
_MARGIN = 4  # pixels of surroundings shown around the clustered window


def evenly_spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of the indices 0 to `count` - 1, evenly spread, the first and last included."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def write_overview(
    out: Path, images: Mapping[str, Path], seed: int, title: str, truth: Mapping[str, Path] | None = None
) -> Path:
    """Write OUT/overview.png: targets spread evenly over the run, each with window, TPM, mask and truth."""
    points = load_points(out / "points.csv")
    targets = [(stem, index, point) for stem, own in points.items() for index, point in enumerate(own)]
    store = LabelStore.open(out)
    tiles = []
    for stem, index, point in (targets[t] for t in evenly_spread(len(targets), _TILES)):
        tiles.append(_tile(store, images[stem], stem, index, point, seed, truth))
    path = out / "overview.png"
    with atomic_path(path) as temporary:
        contact_sheet(tiles, title=title).save(temporary)
    return path


def _tile(
    store: LabelStore,
    image_path: Path,
    stem: str,
    index: int,
    point: Point,
    seed: int,
    truth: Mapping[str, Path] | None,
) -> Tile:
    image = read_image(image_path)
    height, width = image.shape[:2]
    window = place_window(height, width, point, seed, stem, index)
    top, left = max(window.top - _MARGIN, 0), max(window.left - _MARGIN, 0)
    area = np.s_[top : window.bottom + _MARGIN, left : window.right + _MARGIN]
    true = None
    if truth is not None and stem in truth:
        try:
            true = read_mask(truth[stem], (height, width))[area]
        except InputError:
            true = None  # a mask that does not fit its image was reported when it was used
    return Tile(
        name=stem,
        image=image[area],
        tpm=read_tpm(store.tpm(stem))[area],
        mask=read_mask(store.mask(stem))[area],
        click=(point.x - left, point.y - top),
        truth=true,
        category=point.category,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """Pixels as `enlarged` gives them; a caption of None leaves its place to the name of the target."""

    heading: str
    pixels: np.ndarray
    caption: str | None


def process_sheet(processes: Sequence[Process], config: LabelConfig, title: str = "") -> Image.Image:
    """Draw the targets row by row, each from its image to its mask.

    Args:
        processes: At least one; all of one run.
        config: The run's settings, for the headings.
        title: A line above the legend.

    Returns:
        An RGB image of 180 px per row.
    """
    rows = [_panels(process, config) for process in processes]
    width = 2 * MARGIN + len(rows[0]) * (PANEL + GAP) - GAP
    truth = any(process.truth is not None for process in processes)
    click = any(process.point.box is None for process in processes)
    sheet, top = new_sheet(width, len(rows), title, truth=truth, tpm=bool(processes[0].stages), click=click)
    draw = ImageDraw.Draw(sheet)
    draw_headings(draw, MARGIN, top, [panel.heading for panel in rows[0]])
    for number, (process, panels) in enumerate(zip(processes, rows, strict=True)):
        _draw_row(sheet, draw, process, panels, top + number * (PANEL + CAPTION))
    return sheet


def _panels(process: Process, config: LabelConfig) -> list[_Panel]:
    """The panels of one target; those of one run are of the same kinds."""
    window = enlarged(stretched(process.image))
    marked = window if process.marks is None else outlined(window, process.marks, colour=CLICK)
    panels = [_Panel("image and box" if process.point.box else "image and click", marked, None)]
    clustered = window
    if process.noisy is not None:
        clustered = enlarged(stretched(process.noisy))
        panels.append(_Panel(f"trial 1: {config.trial.noise} {config.trial.intensity:g}", clustered, None))
    if process.segment is not None:
        heading = "trial 1: segments" if process.point.seeds else "trial 1: segment"
        panels.append(_Panel(heading, outlined(clustered, process.segment), None))
    for planned, trials, tpm in process.stages:
        stopped = f"stopped after {trials}" if trials < planned else ""
        panels.append(_Panel(f"TPM after {planned}", enlarged(heat(tpm)), stopped))
    facts = ",  ".join(mask_facts(process.mask, process.truth))
    panels.append(_Panel(_mask_heading(config), outlined(window, process.mask, process.truth), facts))
    return panels


def _mask_heading(config: LabelConfig) -> str:
    if config.refine == "crf":
        return "mask (CRF)"
    return f"mask (TPM >= {config.threshold:g} max)" if config.maker == "mclc" else f"mask ({config.maker})"


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, process: Process, panels: Sequence[_Panel], top: int
) -> None:
    window = process.window
    click = None
    if process.point.box is None:
        click = process.point.x - window.left, process.point.y - window.top
    pixels = [panel.pixels for panel in panels]
    draw_panels(sheet, MARGIN, top, pixels, (window.height, window.width), click)
    font = ImageFont.load_default(13)
    for place, panel in enumerate(panels):
        at = (MARGIN + place * (PANEL + GAP), top + PANEL + 4)
        if panel.caption is not None:
            draw.text(at, panel.caption, INK, font)
    room = [panel.caption for panel in panels].count(None) * (PANEL + GAP) - 2 * GAP
    about = [str(process.target), str(process.point.category), f"{window.height} x {window.width} px"]
    if process.changed:
        about.insert(1, "not as the run wrote it")
    while len(about) > 1 and font.getlength(",  ".join(about)) > room:
        about.pop()
    draw.text((MARGIN, top + PANEL + 4), shortened(",  ".join(about), font, room), INK, font)


_SIDE, _AROUND = 48, 8  # least side of a window, and least room around what it shows, pixels
_CASE_GUTTER = 30
_CASE_HEADINGS = ("image", "probability", "prediction and truth")
_WIDTH = 3 * PANEL + 2 * GAP


class Extremes:
    """Keeper of the images of lowest and of highest IoU, the `callback` of `score_network`.

    Images in which nothing is true and nothing predicted have no IoU and are passed over. Of equal IoU the
    one with more wrong pixels counts as worse, and the one with more true pixels as better. Only windows are
    kept, not whole images: of the worst around their largest error, of the best around their largest target.

    Attributes:
        keep: How many of either kind.
        threshold: The prediction is probability > threshold.
    """

    def __init__(self, keep: int = 12, threshold: float = 0.5) -> None:
        self.keep = keep
        self.threshold = threshold
        self._numbers = itertools.count()
        self._worst: list[tuple[tuple[float, int], int, Case]] = []
        self._best: list[tuple[tuple[float, int], int, Case]] = []

    def __call__(self, case: Case) -> None:
        """Look at one image."""
        score = case.score
        if math.isnan(score.iou):
            return
        # Heaps whose first element is the one to go next: of equal keys, the one that came last.
        number = -next(self._numbers)
        prediction = case.probability > np.float32(self.threshold)
        wrong = score.union - score.intersection
        error = prediction ^ case.truth if wrong else case.truth
        target = case.truth if score.true else prediction
        for heap, key, shown in (
            (self._worst, (-score.iou, wrong), error),
            (self._best, (score.iou, score.true), target),
        ):
            if len(heap) < self.keep or (key, number) > heap[0][:2]:
                heapq.heappush(heap, (key, number, _window(case, shown)))
            if len(heap) > self.keep:
                heapq.heappop(heap)

    def worst(self) -> list[Case]:
        """Windows of the images of lowest IoU, the worst first."""
        return [case for _, _, case in sorted(self._worst, key=lambda item: item[:2], reverse=True)]

    def best(self) -> list[Case]:
        """Windows of the images of highest IoU, the best first."""
        return [case for _, _, case in sorted(self._best, key=lambda item: item[:2], reverse=True)]


def _window(case: Case, shown: np.ndarray) -> Case:
    """The case cut to the largest component of a mask that is not empty."""
    components = components_of(shown)
    rows, columns = np.nonzero(components.labels == int(components.area.argmax()) + 1)
    height, width = case.truth.shape
    area = _side(rows, height), _side(columns, width)
    return Case(
        case.name,
        case.image[area].copy(),
        case.truth[area].copy(),
        case.probability[area].copy(),
        case.score,
    )


def _side(places: np.ndarray, length: int) -> slice:
    """A range around these places, inside 0..length."""
    first, last = int(places.min()), int(places.max())
    side = min(max(_SIDE, last - first + 1 + 2 * _AROUND), length)
    start = min(max((first + last + 1 - side) // 2, 0), length - side)
    return slice(start, start + side)


def case_sheet(cases: Sequence[Case], title: str, threshold: float = 0.5, columns: int = 2) -> Image.Image:
    """Draw cases row by row: image, probability, and the outlines of prediction and truth.

    A caption states the image's name and its scores, which are those of the whole image.
    """
    width = 2 * MARGIN + columns * _WIDTH + (columns - 1) * _CASE_GUTTER
    words = ("prediction", "probability")
    rows = -(-len(cases) // columns)
    sheet, top = new_sheet(width, rows, title, truth=True, click=False, words=words)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    if not cases:
        draw.text((MARGIN, top), "no image with a true or predicted pixel", FAINT, font)
    for index, case in enumerate(cases):
        row, column = divmod(index, columns)
        left, upper = MARGIN + column * (_WIDTH + _CASE_GUTTER), top + row * (PANEL + CAPTION)
        if row == 0:
            draw_headings(draw, left, top, _CASE_HEADINGS)
        window = enlarged(stretched(case.image))
        drawn = outlined(window, case.probability > np.float32(threshold), case.truth)
        panels = (window, enlarged(heat(case.probability)), drawn)
        draw_panels(sheet, left, upper, panels, case.truth.shape, None)
        facts = _facts(case)
        draw.text((left + _WIDTH, upper + PANEL + 4), facts, INK, font, anchor="ra")
        room = _WIDTH - font.getlength(facts) - 16
        draw.text((left, upper + PANEL + 4), shortened(case.name, font, room), INK, font)
    return sheet


def _facts(case: Case) -> str:
    score = case.score
    parts = [f"IoU {score.iou:.2f}", f"{score.detected} of {score.targets} found"]
    if score.false_alarm_pixels:
        parts.append(f"{score.false_alarm_pixels} px false")
    return ",  ".join(parts)
