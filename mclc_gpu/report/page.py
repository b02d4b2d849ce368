"""Write report.html, the offline page that lists the labels to review first."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from mclc_gpu.data.files import atomic_path, is_file, prefetch_map
from mclc_gpu.data.images import MASK_COLOR, display_rgb, read_image, read_mask, read_probability
from mclc_gpu.data.names import find_files
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.labels.folder import LAYOUT, REPORT, LabelRun, read_tpm
from mclc_gpu.report.check import (
    CLICK_FLAGS,
    FLAGS,
    TRUTH_FLAGS,
    CheckedTarget,
    ImageCheck,
    LabelCheck,
    TopK,
    check_image,
)
from mclc_gpu.report.sheets import CLICK, GAP, PANEL, TRUTH, draw_panels, enlarged, heat, outlined
from mclc_gpu.runs import Progress
from mclc_gpu.score.config import ScoreOptions
from mclc_gpu.score.metrics import SCORES, ImageScore, Result, Scores, score_image

_URGENT, _EXTREMES = 24, 8  # targets with an image: flagged ones, and of either end of the IoU
_STEPS = 20  # bars of a histogram over 0..1
_FIFTHS = 5
_LABELED_BARS = 8


@dataclass
class LabelReport:
    """Report on a set of masks: pass `add` what `inspect` finds in each image, then `write` the page.

    Parameters
    ----------
    masks : mapping of str to Path
        Masks by stem, or with a threshold probability maps.
    truths : mapping of str to Path
        True masks; may be empty.
    images : mapping of str to Path
        Images for the page; may be empty.
    labels : LabelRun, optional
        Label run with the points, and the TPMs where there is no threshold.
    threshold : float, 0..1, optional
        The masks are probability > threshold.
    annotate : str
        Address of the annotation page that the targets are linked to; empty: no links.

    Attributes
    ----------
    check : LabelCheck
        Findings so far.
    problems : list of Skipped
        Files that the report could not read.
    """

    masks: Mapping[str, Path]
    truths: Mapping[str, Path]
    images: Mapping[str, Path]
    labels: LabelRun | None = None
    threshold: float | None = None
    annotate: str = ""
    check: LabelCheck = field(default_factory=LabelCheck)
    problems: list[Skipped] = field(default_factory=list)

    def inspect(
        self, stem: str, mask: np.ndarray, truth: np.ndarray | None = None, tpm: np.ndarray | None = None
    ) -> ImageCheck:
        """Check one image, see `mclc_gpu.report.check.check_image`; threads may call it at once.

        Without a TPM it uses that of the label run.
        """
        if tpm is None and truth is not None:
            found = attempt(f"TPM of {stem}", lambda: self.tpm(stem, mask.shape))
            if isinstance(found, Skipped):
                self.problems.append(found)
            else:
                tpm = found
        return check_image(stem, mask, truth, tpm, self.labels)

    def add(self, found: ImageCheck) -> None:
        """Collect the findings of one image."""
        self.check.add(found)

    def tpm(self, stem: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Read the label run's TPM of an image, float32 [H, W], 0..1; None where it has none.

        Raises InputError for a file that is no TPM of this (height, width).
        """
        if self.labels is None:
            return None
        path = self.labels.tpm(stem)
        if not is_file(path):
            return None
        tpm = read_tpm(path)
        if tpm.shape != shape:
            raise InputError(f"{path}: not of its mask's size")
        return tpm

    def write(self, path: Path, result: Result | None = None, skipped: Sequence[Skipped] = ()) -> None:
        """Write the page; a file that exists is replaced.

        Parameters
        ----------
        path : Path
            HTML file.
        result : Result, optional
            Scores, where the truth is known.
        skipped : sequence of Skipped
            Inputs that could not be checked, besides those that the label run skipped.
        """
        check, labels = self.check, self.labels
        problems = sorted(self.problems, key=lambda item: (item.file, item.why))
        left_out = [*(() if labels is None else labels.skipped), *skipped, *problems]
        urgent = check.urgent.items()
        legend = [("mask", MASK_COLOR)] if labels is None else [("click", CLICK), ("mask", MASK_COLOR)]
        page = _template().render(
            title=f"{'Masks' if labels is None else 'Labels'}: {check.images:,} images, "
            f"{check.targets:,} targets",
            totals=_totals(check, labels, len(left_out)),
            scores=[] if result is None else _scores(result),
            flag_counts=_flag_counts(check, labels),
            legend=legend + ([("truth", TRUTH)] if self.truths else []),
            note=_note(check, len(urgent)),
            urgent=self._cards(urgent[:_URGENT]),
            more=[_row(target) for target in urgent[_URGENT:]],
            sections=self._sections(urgent[:_URGENT]),
            charts=_charts(check),
            categories=[] if result is None else _categories(result),
            skipped=[(item.file, item.why) for item in left_out],
            settings="" if labels is None else json.dumps(labels.summary["settings"], indent=2),
        )
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")

    def _sections(self, urgent: Sequence[CheckedTarget]) -> list[tuple[str, list[dict[str, Any]]]]:
        """Choose unflagged targets of low confidence, and those of lowest and highest IoU; each only once."""
        shown = set(urgent)
        sections = []
        ranked: list[tuple[str, TopK[CheckedTarget], int]] = [
            ("Least confident of the others", self.check.unsure, _URGENT - len(urgent)),
            ("Lowest IoU of the others", self.check.worst, _EXTREMES),
            ("Highest IoU", self.check.best, _EXTREMES),
        ]
        for heading, top, count in ranked:
            chosen = [target for target in top.items() if target not in shown][:count]
            shown.update(chosen)
            if chosen:
                sections.append((heading, self._cards(chosen)))
        return sections

    def _cards(self, targets: Sequence[CheckedTarget]) -> list[dict[str, Any]]:
        """Make a card for each target; threads read the files."""
        return list(prefetch_map(self._card, targets))

    def _card(self, target: CheckedTarget) -> dict[str, Any]:
        facts = [f"x {round(target.x, 1):g}, y {round(target.y, 1):g}"]
        facts += [target.category] if target.category else []
        facts.append(f"{target.area} px")
        for name, value in (("confidence", target.confidence), ("IoU", target.iou)):
            facts += [] if math.isnan(value) else [f"{name} {value:.2f}"]
        link = f"{self.annotate}#{quote(target.name, safe='')}" if self.annotate else ""
        card = {"name": target.name, "facts": ",  ".join(facts), "image": "", "alt": "", "link": link}
        flags = [f"{kind}: {finding}" for kind, finding in target.flags]
        panels = attempt("", lambda: self._panels(target))
        if isinstance(panels, Skipped):
            flags.append(f"no image: {panels.why}")
        else:
            card |= {"image": _address(target, panels), "alt": f"{target.name}: {', '.join(panels)}"}
        return {**card, "flags": flags}

    def _panels(self, target: CheckedTarget) -> dict[str, np.ndarray]:
        """Return the enlarged sections of a target's files by name, as far as there are files."""
        stem = target.stem
        top, left, bottom, right = target.view
        area = np.s_[top:bottom, left:right]
        if self.threshold is None:
            mask = read_mask(self.masks[stem])
            tpm = self.tpm(stem, mask.shape)
        else:
            tpm = read_probability(self.masks[stem])
            mask = tpm > np.float32(self.threshold)
        shape = mask.shape[0], mask.shape[1]
        truth = read_mask(self.truths[stem], shape)[area] if stem in self.truths else None
        image = read_image(self.images[stem]) if stem in self.images else None
        if image is not None and image.shape[:2] != shape:
            raise InputError(f"{self.images[stem]}: not of its mask's size")
        # Without the image outlines are drawn on uniform gray.
        window = enlarged(display_rgb(np.zeros(mask[area].shape) if image is None else image[area]))
        panels = {} if image is None else {"image": window}
        if tpm is not None:
            panels["TPM"] = enlarged(heat(tpm[area]))
        return {**panels, "outlines": outlined(window, mask[area], truth)}


def open_report(options: ScoreOptions) -> LabelReport:
    """Return an empty report for a scored folder, on its label run if there is one.

    The run is `options.labels`, or the one in whose folder `options.pred` lies.

    Raises
    ------
    InputError
        A folder cannot be read, or `options.labels` holds no finished label run.
    """
    folder, pred = options.labels, options.pred.resolve()
    if folder is None and pred.name in LAYOUT.folders and LAYOUT.summary(pred.parent).exists():
        folder = pred.parent
    return LabelReport(
        find_files(options.pred),
        find_files(options.truth),
        {} if options.images is None else find_files(options.images),
        None if folder is None else LabelRun.open(folder),
        options.threshold,
    )


def report_labels(labels: LabelRun, annotate: str = "") -> LabelCheck:
    """Write report.html into the folder of a finished label run; every mask is read again.

    Parameters
    ----------
    labels : LabelRun
        Label run with its images; where its true masks are known the TPMs are read as well.
    annotate : str
        See `LabelReport`.

    Returns
    -------
    LabelCheck
        Findings that the report shows.
    """
    masks = {stem: labels.mask(stem) for stem in labels.rows}
    report = LabelReport(masks, labels.truths, labels.images, labels, annotate=annotate)
    scores = Scores()
    skipped = []

    def count(stem: str) -> tuple[ImageCheck, ImageScore | None]:
        mask = read_mask(masks[stem])
        if stem not in report.truths:
            return report.inspect(stem, mask), None
        truth = read_mask(report.truths[stem], (mask.shape[0], mask.shape[1]))
        return report.inspect(stem, mask, truth), score_image(mask, truth, stem)

    with Progress("report", len(masks), "mask") as progress:
        for counted in prefetch_map(lambda stem: attempt(masks[stem], lambda: count(stem)), masks):
            progress.advance(1)
            if isinstance(counted, Skipped):
                skipped.append(counted)
                continue
            report.add(counted[0])
            if counted[1] is not None:
                scores.add(counted[1])
    report.write(labels.folder / REPORT, scores.compute() if scores.images else None, skipped)
    return report.check


@cache
def _template() -> Template:
    """Load page.html, which lies beside this file; values are escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    ).get_template("page.html")


def _totals(check: LabelCheck, labels: LabelRun | None, left_out: int) -> list[tuple[str, str, str]]:
    """Name, value and remark of the numbers at the top of the page."""
    totals = {"targets to review": f"{check.flagged:,}"}
    if labels is not None:
        summary = labels.summary
        if summary.get("trials"):
            totals["trials"] = f"{summary['trials']:,}"
        if "seconds" in summary:
            totals["seconds of labeling"] = f"{summary['seconds']['total']:.2f}"
            totals["seconds of start-up"] = f"{summary['seconds']['startup']:.2f}"
        totals["device"] = str(summary.get("device", "n/a"))
        totals["categories estimated"] = f"{summary.get('estimated_categories', 0):,}"
    known = _known(check.confidence)
    if len(known):
        totals["mean confidence"] = f"{known.mean():.3f}"
    totals["inputs skipped"] = f"{left_out:,}"
    return [(name, value, "") for name, value in totals.items()]


def _scores(result: Result) -> list[tuple[str, str, str]]:
    shown = [(SCORES[name], value) for name, value in result.values.items()]
    rows = [
        (one.heading, one.text(value), "higher is better" if one.higher_is_better else "lower is better")
        for one, value in shown
    ]
    return [*rows, ("true targets detected", f"{result.detected:,} of {result.targets:,}", "")]


def _categories(result: Result) -> list[tuple[str | int, ...]]:
    """Tabulate the scores per category; the first row is the headings."""
    headings = [score.heading for score in SCORES.values() if score.by_category]
    rows: list[tuple[str | int, ...]] = [("category", *headings, "detected", "targets")]
    for name, one in result.categories.items():
        scores = [SCORES[score].text(value) for score, value in one.values.items()]
        rows.append((name, *scores, one.detected, one.targets))
    return rows


def _flag_counts(check: LabelCheck, labels: LabelRun | None) -> list[tuple[str, int | str]]:
    """Rows of flags and the number of targets with each; those that can apply, and those that occurred."""
    applicable = TRUTH_FLAGS if labels is None else CLICK_FLAGS
    counts: dict[str, int | str] = {
        kind: check.flags[kind] for kind in FLAGS if kind in applicable or check.flags[kind]
    }
    if labels is not None and not len(_known(check.confidence)):
        counts["low confidence"] = "not known"
    return list(counts.items())


def _note(check: LabelCheck, listed: int) -> str:
    if not listed:
        return f"None of the {check.targets:,} targets shows one of these signs."
    if check.flagged > listed:
        return f"The {listed} most urgent of {check.flagged:,} targets are listed."
    return ""


def _row(target: CheckedTarget) -> tuple[str | int | float, ...]:
    numbers = ["n/a" if math.isnan(v) else f"{v:.2f}" for v in (target.confidence, target.iou)]
    place = round(target.x, 1), round(target.y, 1)
    flags = "; ".join(f"{kind}: {finding}" for kind, finding in target.flags)
    return (target.name, *place, target.category or "", target.area, *numbers, flags)


def _charts(check: LabelCheck) -> list[dict[str, Any]]:
    charts = []
    pixels, true, summed = check.reliability
    if pixels.any():
        dots = [
            {"x": s / n, "y": t / n, "text": f"TPM {s / n:.3f}: {t / n:.3f} of {n:.0f} pixels are true"}
            for n, t, s in zip(pixels, true, summed, strict=True)
            if n
        ]
        charts.append(_diagonal("Share of true pixels by TPM", dots, "TPM above 0, mean of each tenth"))
    confidence, iou = np.asarray(check.confidence), np.asarray(check.iou)
    both = np.flatnonzero(~np.isnan(confidence) & ~np.isnan(iou))
    if len(both) >= _FIFTHS:
        order = both[np.argsort(confidence[both], kind="stable")]
        parts = np.array_split(order, _FIFTHS)
        means = [(confidence[part].mean(), iou[part].mean(), len(part)) for part in parts]
        dots = [
            {"x": c, "y": i, "text": f"confidence {c:.3f}: mean IoU {i:.3f} of {n} targets"}
            for c, i, n in means
        ]
        charts.append(_diagonal("Mean IoU by fifths of confidence", dots, "mean confidence of each fifth"))
    for name, values in (("confidence", _known(check.confidence)), ("IoU", _known(check.iou))):
        if len(values):
            counts = np.histogram(values, _STEPS, (0, 1))[0].tolist()
            bars = {f"{step / _STEPS:g}": count for step, count in enumerate(counts)}
            charts.append(_histogram(f"Targets by {name}", bars, f"lower end of the range of {name}"))
    if check.areas:
        digits = range(max(check.areas) + 1)
        ranges = ["0", "1", *(f"{1 << d - 1}-{(1 << d) - 1}" for d in digits[2:])]
        bars = {ranges[d]: check.areas[d] for d in digits}
        charts.append(_histogram("Targets by area", bars, "pixels"))
    return charts


def _diagonal(title: str, dots: Sequence[Mapping[str, Any]], axis: str) -> dict[str, Any]:
    """Chart of dots in the unit square, joined in order, beside the line on which both values are equal."""
    ticks = [(value, f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    return {"title": title, "axis": axis, "bars": [], "dots": dots, "x_ticks": ticks, "y_ticks": ticks}


def _histogram(title: str, counts: Mapping[str, int], axis: str) -> dict[str, Any]:
    """Chart of a bar per label; where there are many, not every label is shown."""
    most, width = max(counts.values()) or 1, 1 / len(counts)
    bars = [
        {
            "left": (place + 0.08) * width,
            "width": 0.84 * width,
            "height": count / most,
            "text": f"{label}: {count}",
        }
        for place, (label, count) in enumerate(counts.items())
    ]
    ticks = [((place + 0.5) * width, label) for place, label in enumerate(counts)]
    ticks = ticks[:: -(-len(counts) // _LABELED_BARS)]
    levels = [(share, f"{most * share:.6g}") for share in (0, 0.5, 1)]
    return {"title": title, "axis": axis, "bars": bars, "dots": [], "x_ticks": ticks, "y_ticks": levels}


def _known(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return array[~np.isnan(array)]


def _address(target: CheckedTarget, panels: Mapping[str, np.ndarray]) -> str:
    """Draw panels side by side as a PNG with a transparent background, and return it as a data URI."""
    strip = Image.new("RGBA", (len(panels) * (PANEL + GAP) - GAP, PANEL))
    top, left, bottom, right = target.view
    click = None if target.index is None else (target.x - left, target.y - top)
    draw_panels(strip, 0, 0, list(panels.values()), (bottom - top, right - left), click)
    data = io.BytesIO()
    strip.save(data, format="PNG", compress_level=6)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
