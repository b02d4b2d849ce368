"""The picture of targets' ways to their masks: a row of panels per target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mclc_gpu.drawing import (
    CAPTION,
    CLICK,
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
from mclc_gpu.labelconfig import LabelConfig
from mclc_gpu.process import Process


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
