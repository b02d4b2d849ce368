"""Draw contact sheets of targets: overview of a label run, replayed targets, worst and best detections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import atomic_path
from mclc_gpu.data.images import MASK_COLOR, Color, display_rgb, read_image, read_mask
from mclc_gpu.data.synthetic import hot_scene
from mclc_gpu.detect.evaluate import Case
from mclc_gpu.errors import Skipped, attempt
from mclc_gpu.kernels.config import OUTLINES
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.folder import OVERVIEW, LabelRun, Target, read_tpm
from mclc_gpu.labels.pipeline import compose, label_images
from mclc_gpu.labels.replay import Trace
from mclc_gpu.report.check import TopK
from mclc_gpu.score.matching import components_of
from mclc_gpu.score.metrics import mask_iou

PAPER: Color = (250, 250, 247)
FRAME: Color = (214, 214, 208)
INK: Color = (28, 28, 32)
FAINT: Color = (112, 112, 118)
# Orange and sky blue stay distinct for color-blind readers, and both from gray.
CLICK: Color = (255, 45, 85)
TRUTH: Color = (64, 190, 255)
# The TPM's colors, from 0 to 1 in even steps of lightness.
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
_MARGIN = 18  # around the sheet
_CAPTION = 30  # height under the panels, with the space to the next ones
_GUTTER = 30  # between columns of targets
_TITLE, _LEGEND, _HEADING = 32, 28, 20  # heights above the first row of panels


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One image of a row.

    Attributes
    ----------
    heading : str
        Title of the column of panels; the first row's are drawn.
    pixels : ndarray of uint8, [H, W, 3]
        Output of `enlarged`, of one size in a row.
    caption : str or None
        Text under the panel; None leaves the space to the row's title.
    """

    heading: str
    pixels: np.ndarray
    caption: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One target of a sheet: panels side by side, with captions.

    Attributes
    ----------
    panels : sequence of Panel
    shape : (int, int)
        Height and width of the window before it was enlarged.
    title : sequence of str
        Parts of the text at the left under the panels; as many of them as fit are drawn.
    facts : str
        Text at the right under the panels.
    click : (float, float) or None
        Marked position (x, y) in the window, pixel centers at integers; a cross on the first panel shows it.
    """

    panels: Sequence[Panel]
    shape: tuple[int, ...]
    title: Sequence[str]
    facts: str = ""
    click: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Legend:
    """Explanation of colors at the top of a sheet.

    Attributes
    ----------
    mask, tpm : str
        Names of the mask's outline and of the color scale; "" leaves it out.
    click, truth : bool
        Explain the cross, and the outline of the truth.
    """

    mask: str = "pseudo mask"
    tpm: str = "TPM"
    click: bool = True
    truth: bool = False


def draw_sheet(
    rows: Sequence[Row],
    legend: Legend,
    title: str = "",
    *,
    columns: int = 2,
    panels: int = 3,
    empty: str = "no targets",
) -> Image.Image:
    """Draw targets in columns, row by row, under a title and a legend.

    Parameters
    ----------
    rows : sequence of Row
        Each with as many panels as `panels`.
    legend : Legend
    title : str
        Line above the legend, such as the settings of the run.
    columns : int >= 1
        Targets side by side.
    panels : int
        Panels of each row.
    empty : str
        Text in place of the targets where there are none.

    Returns
    -------
    Image
        RGB, 180 px high per row of targets.
    """
    row_width = panels * (PANEL + GAP) - GAP
    width = 2 * _MARGIN + columns * row_width + (columns - 1) * _GUTTER
    lines = max(-(-len(rows) // columns), 1)
    top = _MARGIN + (_TITLE if title else 0) + _LEGEND + _HEADING
    sheet = Image.new("RGB", (width, top + lines * (PANEL + _CAPTION) + _MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = ImageFont.load_default(17)
        draw.text((_MARGIN, _MARGIN), shortened(title, font, width - 2 * _MARGIN), INK, font)
    _draw_legend(sheet, legend, top - _HEADING - _LEGEND + 7)
    if not rows:
        draw.text((_MARGIN, top), empty, FAINT, ImageFont.load_default(14))
    for index, row in enumerate(rows):
        line, column = divmod(index, columns)
        left = _MARGIN + column * (row_width + _GUTTER)
        if line == 0:
            for place, panel in enumerate(row.panels):
                at = (left + place * (PANEL + GAP), top - 5)
                draw.text(at, panel.heading, FAINT, ImageFont.load_default(12), anchor="ls")
        _draw_row(sheet, row, left, top + line * (PANEL + _CAPTION))
    return sheet


def _draw_row(sheet: Image.Image, row: Row, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw_panels(sheet, left, top, [panel.pixels for panel in row.panels], row.shape, row.click)
    font, below = ImageFont.load_default(13), top + PANEL + 4
    room: float = len(row.panels) * (PANEL + GAP) - GAP
    if row.facts:
        draw.text((left + room, below), row.facts, INK, font, anchor="ra")
        room -= font.getlength(row.facts) + 16
    for place, panel in reversed([*enumerate(row.panels)]):
        if panel.caption is not None:
            start = place * (PANEL + GAP)
            draw.text((left + start, below), panel.caption, INK, font)
            room = min(room, start - 2 * GAP)
    title = list(row.title)
    while len(title) > 1 and font.getlength(",  ".join(title)) > room:
        title.pop()
    draw.text((left, below), shortened(",  ".join(title), font, room), INK, font)


def _draw_legend(sheet: Image.Image, legend: Legend, middle: int) -> None:
    """Explain cross, outlines and colors of the TPM, in a line whose middle is at `middle`."""
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(12), _MARGIN
    if legend.click:
        _draw_cross(draw, x + 9, middle, 3)
        draw.text((x + 26, middle), "click", INK, font, anchor="lm")
        x += 76
    for color, name in ((MASK_COLOR, legend.mask), (TRUTH, "truth" if legend.truth else "")):
        if name:
            draw.rectangle((x, middle - 6, x + 12, middle + 6), outline=color, width=3)
            draw.text((x + 20, middle), name, INK, font, anchor="lm")
            x += 46 + int(font.getlength(name))
    if legend.tpm:
        draw.text((x, middle), f"{legend.tpm}  0", INK, font, anchor="lm")
        x += int(font.getlength(f"{legend.tpm}  0")) + 6
        bar = np.broadcast_to(np.linspace(0, 1, 90), (12, 90))
        sheet.paste(Image.fromarray(heat(bar)), (x, middle - 6))
        draw.text((x + 96, middle), "1", INK, font, anchor="lm")


def _draw_cross(draw: ImageDraw.ImageDraw, x: float, y: float, start: float) -> None:
    """Draw four arms that begin `start` px from the marked position, which stays visible."""
    for color, width, rim in ((INK, 4, 1), (CLICK, 2, 0)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near, far = start - rim, start + 6 + rim
            draw.line((x + near * dx, y + near * dy, x + far * dx, y + far * dy), color, width)


def draw_panels(
    sheet: Image.Image,
    left: int,
    top: int,
    panels: Sequence[np.ndarray],
    shape: tuple[int, ...],
    click: tuple[float, float] | None,
) -> None:
    """Draw the panels of one target side by side, with a cross on the first where a click is given.

    Parameters
    ----------
    sheet : Image
        Drawn upon.
    left, top : int
        Corner of the first panel in the sheet.
    panels : sequence of ndarray of uint8, [H, W, 3]
        Outputs of `enlarged`, all of one size.
    shape : (int, int)
        Height and width of the window before it was enlarged.
    click : (float, float) or None
        (x, y) in that window, pixel centers at integers.
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


def outlined(
    window: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None, color: Color = MASK_COLOR
) -> np.ndarray:
    """Draw the outline of a mask, and of the truth where it is given, on an enlarged window.

    The mask's outline lies on the mask's own pixels, the truth's around its pixels, so that both show where
    they agree.

    Parameters
    ----------
    window : ndarray of uint8, [H, W, 3]
        Output of `enlarged`; stays as it is.
    mask, truth : ndarray of bool, [h, w]
        Of the window before it was enlarged.
    color : tuple of int
        RGB of the mask's outline.
    """
    drawn = window.copy()
    thickness = min(max(round(max(window.shape[:2]) / max(mask.shape) / 3.5), 1), 3)
    if truth is not None:
        large = enlarged(truth)
        drawn[ndimage.binary_dilation(large, np.ones((3, 3)), thickness) & ~large] = TRUTH
    large = enlarged(mask)
    drawn[large & ~ndimage.binary_erosion(large, np.ones((3, 3)), thickness)] = color
    return drawn


def mask_facts(mask: np.ndarray, truth: np.ndarray | None) -> list[str]:
    """Return a mask's area and, where the truth is known, its IoU, for a caption."""
    facts = [f"{np.count_nonzero(mask)} px"]
    if truth is not None:
        iou = mask_iou(mask, truth)
        facts.append("IoU n/a" if math.isnan(iou) else f"IoU {iou:.2f}")
    return facts


def heat(probability: np.ndarray) -> np.ndarray:
    """Color probabilities [h, w]: uint8 [h, w, 3], dark to bright."""
    at = np.clip(probability, 0, 1) * (len(_HEAT) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Resize [h, w, ...] by nearest neighbor to the size at which its longer side fills a panel."""
    shape = pixels.shape[:2]
    sides = [max(1, round(side * PANEL / max(shape))) for side in shape]
    rows, columns = (np.arange(side) * old // side for side, old in zip(sides, shape, strict=True))
    return pixels[rows][:, columns]


def shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> str:
    """Return the text, or as much of its start as fits into `room` px with three dots."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."


def evenly_spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of the indices 0 to `count` - 1, evenly spread, the first and last included."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


_OVERVIEW = 24  # targets
_AROUND_WINDOW = 4  # pixels of surroundings shown


def write_overview(labels: LabelRun, title: str) -> Path:
    """Write overview.png into the folder of a label run: targets spread evenly over the run.

    Each is shown with the window in which it was labeled, its TPM, and the outlines of mask and truth.

    Parameters
    ----------
    labels : LabelRun
        Finished run, with its images, and its true masks where they are known.
    title : str

    Returns
    -------
    Path
        The PNG file.
    """
    targets = list(labels.targets())
    chosen = [targets[t] for t in evenly_spread(len(targets), _OVERVIEW)]
    rows = [_overview_row(labels, target) for target in chosen]
    path = labels.folder / OVERVIEW
    with atomic_path(path) as temporary:
        legend = Legend(truth=any(target.stem in labels.truths for target in chosen))
        draw_sheet(rows, legend, title).save(temporary)
    return path


def _overview_row(labels: LabelRun, target: Target) -> Row:
    stem, truths = target.stem, labels.truths
    image, point = read_image(labels.images[stem]), labels.rows[stem][target.index].point
    height, width = image.shape[:2]
    window = labels.windows(stem, (height, width))[target.index]
    top, left = max(window.top - _AROUND_WINDOW, 0), max(window.left - _AROUND_WINDOW, 0)
    area = np.s_[top : window.bottom + _AROUND_WINDOW, left : window.right + _AROUND_WINDOW]
    truth = None
    if stem in truths:
        read = attempt(truths[stem], lambda: read_mask(truths[stem], (height, width))[area])
        truth = None if isinstance(read, Skipped) else read  # it was reported when the masks were used
    return target_row(
        stem,
        image[area],
        read_tpm(labels.tpm(stem))[area],
        read_mask(labels.mask(stem))[area],
        (point.x - left, point.y - top),
        truth,
        point.category,
    )


def target_row(
    name: str,
    image: np.ndarray,
    tpm: np.ndarray,
    mask: np.ndarray,
    click: tuple[float, float] | None = None,
    truth: np.ndarray | None = None,
    category: str | None = None,
) -> Row:
    """Show a labeled target: its window with the click, its TPM, and the outlines of mask and truth.

    The caption states the image, the category, the mask's area in pixels and, with truth, the IoU in the
    window (n/a when both masks are empty).

    Parameters
    ----------
    name : str
        Name of the image.
    image : ndarray, [h, w] or [h, w, 3]
        Gray or RGB, of any number type and range; shown from its darkest to its brightest.
    tpm : ndarray of float, [h, w], 0..1
    mask, truth : ndarray of bool, [h, w]
    click : (float, float), optional
        (x, y) in the window: column and row, pixel centers at integers.
    category : str, optional
    """
    window = enlarged(display_rgb(image))
    panels = [
        Panel("image and click", window),
        Panel("TPM", enlarged(heat(tpm))),
        Panel("mask", outlined(window, mask, truth)),
    ]
    facts = [*([category] if category else []), *mask_facts(mask, truth)]
    return Row(panels, mask.shape, [name], ",  ".join(facts), click)


def outline_sheet(index: int = 278, side: int = 49) -> Image.Image:
    """Draw one synthetic target, an aircraft with hot engines, in each kind of outline.

    docs/outlines.png is ``outline_sheet().save("docs/outlines.png")``.

    Parameters
    ----------
    index : int
        Index of the scene, see `mclc_gpu.data.synthetic.hot_scene`.
    side : int, pixels
        Side of the square that is shown.
    """
    made = hot_scene(0, index)
    (target,) = made.targets
    place = Point(round(target.x), round(target.y))
    top, left = (min(max(at - side // 2, 0), 160 - side) for at in (place.y, place.x))
    at = np.s_[top : top + side, left : left + side]
    window = enlarged(display_rgb(made.image[at]))
    panels = [Panel("image and click", window)]
    for name in OUTLINES:
        config = preset("default", components={"outline": name})
        mask, _ = compose(made.image.shape, label_images([made.image], [[place]], config, device="cpu"))
        facts = ",  ".join(mask_facts(mask[at], made.mask[at]))
        panels.append(Panel(f"--outline {name}", outlined(window, mask[at], made.mask[at]), facts))
    row = Row(panels, (side, side), ("",), click=(place.x - left, place.y - top))
    legend = Legend(mask="mask", tpm="", truth=True)
    return draw_sheet([row], legend, columns=1, panels=len(panels))


def trace_sheet(traces: Sequence[Trace], config: LabelConfig, title: str = "") -> Image.Image:
    """Draw replayed targets row by row, each from its image to its mask.

    Parameters
    ----------
    traces : sequence of Trace
        At least one; all of one run.
    config : LabelConfig
        Settings of the run, for the headings.
    title : str
        Line above the legend.

    Returns
    -------
    Image
        RGB, 180 px high per target.
    """
    rows = [_trace_row(trace, config) for trace in traces]
    legend = Legend(
        tpm="TPM" if traces[0].stages else "",
        click=any(row.click is not None for row in rows),
        truth=any(trace.truth is not None for trace in traces),
    )
    return draw_sheet(rows, legend, title, columns=1, panels=len(rows[0].panels))


def _trace_row(trace: Trace, config: LabelConfig) -> Row:
    """Show one target; the rows of one run have the same kinds of panels."""
    point, window = trace.point, trace.window
    image = enlarged(display_rgb(trace.image))
    marked = image if trace.marks is None else outlined(image, trace.marks, color=CLICK)
    panels = [Panel("image and box" if point.box else "image and click", marked)]
    clustered = image
    if trace.noisy is not None:
        clustered = enlarged(display_rgb(trace.noisy))
        panels.append(Panel(f"trial 1: {config.trial.noise} {config.trial.intensity:g}", clustered))
    if trace.segment is not None:
        heading = "trial 1: segments" if point.seeds else "trial 1: segment"
        panels.append(Panel(heading, outlined(clustered, trace.segment)))
    for planned, trials, tpm in trace.stages:
        stopped = f"stopped after {trials}" if trials < planned else ""
        panels.append(Panel(f"TPM after {planned}", enlarged(heat(tpm)), stopped))
    facts = ",  ".join(mask_facts(trace.mask, trace.truth))
    panels.append(Panel(_mask_heading(config), outlined(image, trace.mask, trace.truth), facts))
    title = [str(trace.target), str(point.category), f"{window.height} x {window.width} px"]
    if trace.changed:
        title.insert(1, "differs from the run's mask")
    click = (point.x - window.left, point.y - window.top) if point.box is None else None
    return Row(panels, (window.height, window.width), title, click=click)


def _mask_heading(config: LabelConfig) -> str:
    if config.refine == "crf":
        return "mask (CRF)"
    with_trials = "trial" in config.entry.uses
    return f"mask (TPM >= {config.threshold:g} max)" if with_trials else f"mask ({config.maker})"


_LEAST_SIDE, _AROUND_CASE = 48, 8  # pixels: least side of a section, and least room around what it shows


class Extremes:
    """Keep the images of lowest and of highest IoU; a callback for `mclc_gpu.detect.evaluate.score_network`.

    Images in which nothing is true and nothing predicted have no IoU and are passed over. Of equal IoU the
    one with more wrong pixels counts as worse, and the one with more true pixels as better. Only sections are
    kept, not whole images: of the worst around their largest error, of the best around their largest target.

    Parameters
    ----------
    keep : int
        Number of images of either kind.
    """

    def __init__(self, keep: int = 12) -> None:
        self._worst: TopK[Case] = TopK(keep)
        self._best: TopK[Case] = TopK(keep)

    def __call__(self, case: Case) -> None:
        """Take one image into account."""
        score = case.score
        if math.isnan(score.iou):
            return
        prediction = case.prediction
        wrong = score.union - score.intersection
        error = prediction ^ case.truth if wrong else case.truth
        target = case.truth if score.true else prediction
        for top, key, shown in (
            (self._worst, (-score.iou, wrong), error),
            (self._best, (score.iou, score.true), target),
        ):
            if top.admits(key):
                top.add(key, _section(case, shown))

    def worst(self) -> list[Case]:
        """Return sections of the images of lowest IoU, the worst first."""
        return self._worst.items()

    def best(self) -> list[Case]:
        """Return sections of the images of highest IoU, the best first."""
        return self._best.items()


def _section(case: Case, shown: np.ndarray) -> Case:
    """Cut a case to the largest component of a mask that is not empty."""
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
        case.threshold,
    )


def _side(places: np.ndarray, length: int) -> slice:
    """Return a range around these places, inside 0..length."""
    first, last = int(places.min()), int(places.max())
    side = min(max(_LEAST_SIDE, last - first + 1 + 2 * _AROUND_CASE), length)
    start = min(max((first + last + 1 - side) // 2, 0), length - side)
    return slice(start, start + side)


def case_sheet(cases: Sequence[Case], title: str) -> Image.Image:
    """Draw detections: image, probability, and the outlines of prediction and truth.

    A caption states the image's name and its scores, which are those of the whole image.
    """
    legend = Legend("prediction", "probability", click=False, truth=True)
    rows = [_case_row(case) for case in cases]
    return draw_sheet(rows, legend, title, empty="no image with a true or predicted pixel")


def _case_row(case: Case) -> Row:
    score, window = case.score, enlarged(display_rgb(case.image))
    panels = [
        Panel("image", window),
        Panel("probability", enlarged(heat(case.probability))),
        Panel("prediction and truth", outlined(window, case.prediction, case.truth)),
    ]
    facts = [f"IoU {score.iou:.2f}", f"{score.detected} of {score.targets} found"]
    if score.false_alarm_pixels:
        facts.append(f"{score.false_alarm_pixels} px false")
    return Row(panels, case.truth.shape, [case.name], ",  ".join(facts))
