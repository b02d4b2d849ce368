"""The report on a set of masks: one page to read offline, with the labels to look at first."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mclc_gpu import html
from mclc_gpu.data.ahead import ahead
from mclc_gpu.data.archives import is_file
from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.drawing import CLICK, GAP, MASK, PANEL, TRUTH, draw_panels, enlarged, heat, outlined, stretched
from mclc_gpu.errors import InputError
from mclc_gpu.html import Dot
from mclc_gpu.labelcheck import CLICK_DOUBTS, DOUBTS, TRUTH_DOUBTS, Checked, LabelCheck, Looked, look
from mclc_gpu.labelfiles import LabelFiles, open_labels
from mclc_gpu.labelstore import read_tpm
from mclc_gpu.metrics import ImageScore, Result, Scores, score_image
from mclc_gpu.progress import Progress
from mclc_gpu.roc import read_probability

REPORT = "report.html"
_SUSPECTS, _EXTREMES = 24, 8  # targets with a picture: doubtful ones, and of either end of the IoU
_SHOWN_SKIPS = 200
_STEPS = 20  # bars of what lies in 0..1
_FIFTHS = 5


@dataclass
class LabelReport:
    """A report in the making: give `check` what `look` found in each image, then `write`.

    Of all but the masks what is missing is left out.

    Attributes:
        masks: Masks by stem, or with a threshold probability maps.
        truths: True masks.
        images: The images themselves, for pictures.
        labels: The label run that knows the points, and has the TPMs where there is no threshold.
        threshold: The masks are probability > threshold.
        check: What was found so far.
        problems: What the report could not read.
    """

    masks: Mapping[str, Path]
    truths: Mapping[str, Path]
    images: Mapping[str, Path]
    labels: LabelFiles | None = None
    threshold: float | None = None
    check: LabelCheck = field(default_factory=LabelCheck)
    problems: list[Skipped] = field(default_factory=list)

    def look(
        self, stem: str, mask: np.ndarray, truth: np.ndarray | None = None, tpm: np.ndarray | None = None
    ) -> Looked:
        """Check one image that was read, see `mclc_gpu.labelcheck.look`; for threads.

        Without a TPM it takes the label run's.
        """
        if tpm is None and truth is not None:
            try:
                tpm = self.tpm(stem, mask.shape)
            except InputError as error:
                self.problems.append(Skipped(f"TPM of {stem}", str(error)))
        return look(stem, mask, truth, tpm, self.labels)

    def tpm(self, stem: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The label run's TPM of an image, float32 [H, W], 0..1; None where it has none.

        Raises InputError for a file that is no TPM of this (height, width).
        """
        if self.labels is None:
            return None
        path = self.labels.store.tpm(stem)
        if not is_file(path):
            return None
        tpm = read_tpm(path)
        if tpm.shape != shape:
            raise InputError(f"{path}: not of its mask's size")
        return tpm

    def write(self, path: Path, result: Result | None = None, skipped: Sequence[Skipped] = ()) -> None:
        """Write the page; a file there is replaced.

        Args:
            path: Of the page.
            result: Scores, where the truth is known.
            skipped: What could not be checked, besides what the label run left out.
        """
        check, labels, pictures = self.check, self.labels, _Pictures(self)
        problems = sorted(self.problems, key=lambda item: (item.file, item.why))
        left_out = [*_skipped_by(labels), *skipped, *problems]
        kind = "Masks" if labels is None else "Labels"
        title = f"{kind}: {check.images:,} images, {check.targets:,} targets"
        parts = [html.facts(_totals(check, labels, len(left_out)))]
        if result is not None:
            parts.append(html.facts(_scores(result)))
        parts += _doubtful(check, pictures, labels)
        parts += _others(check, pictures)
        parts += _plots(check)
        if result is not None and result.categories:
            rows = [
                (name, _number(one.iou), _number(one.pd), one.detected, one.targets)
                for name, one in result.categories.items()
            ]
            parts.append(html.heading("Scores by category of the true area"))
            parts.append(html.table(("category", "IoU", "Pd", "detected", "targets"), rows))
        parts += _account(labels, left_out)
        with atomic_path(path) as temporary:
            temporary.write_text(html.page(title, parts), encoding="utf-8", errors="backslashreplace")


def report_labels(
    out: Path, images: Mapping[str, Path], truths: Mapping[str, Path] | None = None
) -> LabelCheck:
    """Write OUT/report.html on a finished label run: every mask is read once more.

    Args:
        out: Folder of the run.
        images: Its images by stem.
        truths: True masks by stem, where they are known: they, and the TPMs, are read as well.

    Returns:
        What the report states.

    Raises:
        InputError: The folder holds no finished label run.
    """
    labels = open_labels(out)
    masks = {stem: labels.store.mask(stem) for stem in labels.points}
    report, scores = LabelReport(masks, truths or {}, images, labels), Scores()
    skipped = []

    def count(stem: str) -> tuple[Looked, ImageScore | None] | Skipped:
        try:
            mask = read_mask(masks[stem])
            if stem not in report.truths:
                return report.look(stem, mask), None
            truth = read_mask(report.truths[stem], (mask.shape[0], mask.shape[1]))
            return report.look(stem, mask, truth), score_image(mask, truth, stem)
        except InputError as error:
            return Skipped.because(masks[stem], error)

    with Progress("report", len(masks), "mask") as progress:
        for counted in ahead(count, masks):
            progress.advance(1)
            if isinstance(counted, Skipped):
                skipped.append(counted)
                continue
            report.check.add(counted[0])
            if counted[1] is not None:
                scores.add(counted[1])
    report.write(out / REPORT, scores.compute() if scores.images else None, skipped)
    return report.check


def _skipped_by(labels: LabelFiles | None) -> list[Skipped]:
    return [] if labels is None else [Skipped(**item) for item in labels.summary.get("skipped", ())]


def _totals(check: LabelCheck, labels: LabelFiles | None, left_out: int) -> dict[str, str]:
    totals = {"targets to look at": f"{check.doubtful:,}"}
    if labels is not None:
        summary = labels.summary
        if summary.get("trials"):
            totals["trials"] = f"{summary['trials']:,}"
        if "seconds" in summary:
            totals["seconds of labelling"] = f"{summary['seconds']['total']:.2f}"
            totals["seconds of start-up"] = f"{summary['seconds']['startup']:.2f}"
        totals["device"] = str(summary.get("device", "n/a"))
        totals["categories estimated"] = f"{summary.get('estimated_categories', 0):,}"
    known = _known(check.confidence)
    if len(known):
        totals["mean confidence"] = f"{known.mean():.3f}"
    return {**totals, "inputs skipped": f"{left_out:,}"}


def _scores(result: Result) -> dict[str, str]:
    return {
        "IoU": _number(result.iou),
        "nIoU": _number(result.niou),
        "Pd": _number(result.pd),
        "Fa x1e-6": _number(result.fa * 1e6, 2),
        "precision": _number(result.precision),
        "recall": _number(result.recall),
        "F1": _number(result.f1),
        "true targets detected": f"{result.detected:,} of {result.targets:,}",
    }


def _doubtful(check: LabelCheck, pictures: "_Pictures", labels: LabelFiles | None) -> Iterator[str]:
    """What to look at first: counts by kind of doubt, cards, and a table of further targets."""
    yield html.heading("Look at these first")
    sought = TRUTH_DOUBTS if labels is None else CLICK_DOUBTS
    rows: list[tuple[str, int | str]] = [
        (kind, check.doubts[kind]) for kind in DOUBTS if kind in sought or check.doubts[kind]
    ]
    if labels is not None and not len(_known(check.confidence)):
        rows = [(kind, "not known" if kind == "low confidence" else count) for kind, count in rows]
    yield html.table(("sign of a wrong mask", "targets"), rows)
    suspects = check.suspects.items()
    yield pictures.legend()
    if not suspects:
        yield html.paragraph(f"None of the {check.targets:,} targets shows one of these signs.")
        return
    if check.doubtful > len(suspects):
        yield html.paragraph(f"The {len(suspects)} most urgent of {check.doubtful:,} targets are listed.")
    yield html.cards(pictures.cards(suspects[:_SUSPECTS]))
    more = suspects[_SUSPECTS:]
    if more:
        headings = ("target", "x", "y", "category", "pixels", "confidence", "IoU", "why")
        table = html.table(headings, map(_row, more), sortable=True)
        yield html.details(f"{len(more)} more without a picture", table)


def _row(target: Checked) -> tuple[str | int | float, ...]:
    numbers = _number(target.confidence, 2), _number(target.iou, 2)
    place = round(target.x, 1), round(target.y, 1)
    why = "; ".join(f"{kind}: {found}" for kind, found in target.doubts)
    return (target.name, *place, target.category or "", target.area, *numbers, why)


def _others(check: LabelCheck, pictures: "_Pictures") -> Iterator[str]:
    """Targets of low confidence without any other sign, and of lowest and highest IoU; each once a page."""
    suspects = check.suspects.items()[:_SUSPECTS]
    shown = set(suspects)
    for words, ranked, count in (
        ("Least confident of the others", check.unsure, _SUSPECTS - len(suspects)),
        ("Lowest IoU of the others", check.worst, _EXTREMES),
        ("Highest IoU", check.best, _EXTREMES),
    ):
        chosen = [target for target in ranked.items() if target not in shown][:count]
        shown.update(chosen)
        if chosen:
            yield html.heading(words)
            yield html.cards(pictures.cards(chosen))


def _plots(check: LabelCheck) -> Iterator[str]:
    made = []
    pixels, true, summed = check.reliability
    if pixels.any():
        filled = np.flatnonzero(pixels)
        dots = [
            Dot(
                summed[b] / pixels[b],
                true[b] / pixels[b],
                f"TPM {summed[b] / pixels[b]:.3f}: "
                f"{true[b] / pixels[b]:.3f} of {int(pixels[b])} pixels are true",
            )
            for b in filled
        ]
        made.append(html.diagonal("Share of true pixels by TPM", dots, "TPM above 0, mean of each tenth"))
    confidence, iou = np.asarray(check.confidence), np.asarray(check.iou)
    both = np.flatnonzero(~np.isnan(confidence) & ~np.isnan(iou))
    if len(both) >= _FIFTHS:
        order = both[np.argsort(confidence[both], kind="stable")]
        dots = [
            Dot(
                confidence[part].mean(),
                iou[part].mean(),
                f"confidence {confidence[part].mean():.3f}: "
                f"mean IoU {iou[part].mean():.3f} of {len(part)} targets",
            )
            for part in np.array_split(order, _FIFTHS)
        ]
        made.append(html.diagonal("Mean IoU by fifths of confidence", dots, "mean confidence of each fifth"))
    for name, values in (("confidence", _known(check.confidence)), ("IoU", _known(check.iou))):
        if len(values):
            counts = np.histogram(values, _STEPS, (0, 1))[0].tolist()
            words = [f"{step / _STEPS:g}" for step in range(_STEPS)]
            made.append(html.bars(f"Targets by {name}", words, counts, f"{name}, from .. on"))
    if check.areas:
        digits = range(max(check.areas) + 1)
        words = ["0", "1", *(f"{1 << d - 1}-{(1 << d) - 1}" for d in digits[2:])][: len(digits)]
        made.append(html.bars("Targets by area", words, [check.areas[d] for d in digits], "pixels"))
    if made:
        yield html.heading("All targets")
        yield html.plots(made)


def _account(labels: LabelFiles | None, left_out: Sequence[Skipped]) -> Iterator[str]:
    """What was left out, and the settings."""
    if left_out:
        yield html.heading("Skipped inputs")
        rows = [(item.file, item.why) for item in left_out[:_SHOWN_SKIPS]]
        yield html.table(("input", "why"), rows)
        if len(left_out) > _SHOWN_SKIPS:
            yield html.paragraph(f"and {len(left_out) - _SHOWN_SKIPS:,} more")
    if labels is not None:
        yield html.heading("How the labels were made")
        yield html.details("settings", html.verbatim(json.dumps(labels.summary["settings"], indent=2)))


def _known(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return array[~np.isnan(array)]


def _number(value: float, digits: int = 4) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


@dataclass(frozen=True)
class _Pictures:
    """Cards with pictures of targets, of which no more than those on the page are ever held."""

    report: LabelReport

    def legend(self) -> str:
        """What the colours mean."""
        words = {"mask": MASK} if self.report.labels is None else {"click": CLICK, "mask": MASK}
        return html.legend(words | ({"truth": TRUTH} if self.report.truths else {}))

    def cards(self, targets: Sequence[Checked]) -> list[str]:
        """A card for each of some targets; their files are read by threads."""
        return list(ahead(self._card, targets))

    def _card(self, target: Checked) -> str:
        place = f"x {round(target.x, 1):g}, y {round(target.y, 1):g}"
        facts = [place, *([target.category] if target.category else []), f"{target.area} px"]
        for word, value in (("confidence", target.confidence), ("IoU", target.iou)):
            facts += [] if math.isnan(value) else [f"{word} {value:.2f}"]
        why = [f"{kind}: {found}" for kind, found in target.doubts]
        address = shows = ""
        try:
            panels = self._panels(target)
            address = html.picture(_strip(target, list(panels.values())))
            shows = f"{target.name}: {', '.join(panels)}"
        except InputError as error:
            why.append(f"no picture: {error}")
        return html.card(address, shows, target.name, [",  ".join(facts)], why)

    def _panels(self, target: Checked) -> dict[str, np.ndarray]:
        """What is shown of a target, enlarged, by name: as much of it as there is."""
        files, stem = self.report, target.stem
        top, left, bottom, right = target.view
        area = np.s_[top:bottom, left:right]
        if files.threshold is None:
            mask = read_mask(files.masks[stem])
            tpm = files.tpm(stem, mask.shape)
        else:
            tpm = read_probability(files.masks[stem])
            mask = tpm > np.float32(files.threshold)
        shape = mask.shape[0], mask.shape[1]
        truth = read_mask(files.truths[stem], shape)[area] if stem in files.truths else None
        image = read_image(files.images[stem]) if stem in files.images else None
        if image is not None and image.shape[:2] != shape:
            raise InputError(f"{files.images[stem]}: not of its mask's size")
        # Without the image outlines are drawn on even gray.
        window = enlarged(stretched(np.zeros(mask[area].shape) if image is None else image[area]))
        panels = {} if image is None else {"image": window}
        if tpm is not None:
            panels["TPM"] = enlarged(heat(tpm[area]))
        return {**panels, "outlines": outlined(window, mask[area], truth)}


def _strip(target: Checked, panels: Sequence[np.ndarray]) -> Image.Image:
    """The panels side by side, nothing between them, so that any paper shows through."""
    strip = Image.new("RGBA", (len(panels) * (PANEL + GAP) - GAP, PANEL))
    top, left, bottom, right = target.view
    click = None if target.index is None else (target.x - left, target.y - top)
    draw_panels(strip, 0, 0, panels, (bottom - top, right - left), click)
    return strip
