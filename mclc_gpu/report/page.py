"""Write report.html, the offline page that lists the labels to review first."""

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mclc_gpu.data.files import atomic_path, is_file, prefetch_map
from mclc_gpu.data.images import MASK, read_image, read_mask, read_probability, stretched
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.labels.folder import LabelFiles, open_labels, read_tpm
from mclc_gpu.report.check import CLICK_DOUBTS, DOUBTS, TRUTH_DOUBTS, Checked, LabelCheck, Looked, look
from mclc_gpu.report.sheets import CLICK, GAP, PANEL, TRUTH, draw_panels, enlarged, heat, outlined
from mclc_gpu.runs import Progress
from mclc_gpu.score.metrics import SCORES, ImageScore, Result, Scores, score_image

_WIDTH, _HEIGHT = 360, 230  # of a plot, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 40  # around its axes
_STYLE = """
:root { color-scheme: light dark; --paper: #fafaf7; --card: #fff; --ink: #1c1c20; --faint: #63636a;
  --line: #d6d6d0; --accent: #0072b2; --warn: #a33a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --card: #202226; --ink: #e8e8e4;
  --faint: #a0a0a8; --line: #3a3c42; --accent: #56b4e9; --warn: #ffab70; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 1.2rem 1.5rem 3rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.45rem; margin: 0 0 .7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 62rem; } .faint, figcaption { color: var(--faint); }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .35rem .75rem; }
.facts b { display: block; font-size: 1.12rem; } .facts span { color: var(--faint); font-size: .85rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: .8rem; }
.card { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; overflow-wrap: anywhere; }
.card img { display: block; max-width: 100%; height: auto; margin-bottom: .4rem; }
.card strong { font-weight: 600; } .card .why { color: var(--warn); margin: .2rem 0 0; padding-left: 1.1rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border: 3px solid; margin: 0 .35em 0 .9em; }
table { border-collapse: collapse; background: var(--card); margin: .5rem 0; }
th, td { border: 1px solid var(--line); padding: .22rem .6rem; text-align: left; overflow-wrap: anywhere; }
th { font-weight: 600; } .sortable th { cursor: pointer; } td.n { text-align: right; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: .8rem; }
.plots figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; }
svg { width: 100%; height: auto; } svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .bar, .dot { fill: var(--accent); }
.path { fill: none; stroke: var(--accent); stroke-width: 2; }
.ideal { stroke: var(--faint); stroke-dasharray: 4 4; }
pre { background: var(--card); border: 1px solid var(--line); padding: .6rem; overflow: auto; }
summary { cursor: pointer; }
"""
_SCRIPT = """
for (const th of document.querySelectorAll(".sortable th")) th.addEventListener("click", () => {
  const body = th.closest("table").tBodies[0], rows = [...body.rows];
  const cell = row => row.cells[th.cellIndex].textContent;
  const down = th.dataset.down = th.dataset.down ? "" : "1";
  rows.sort((a, b) => cell(a).localeCompare(cell(b), "en", {numeric: true}) * (down ? 1 : -1));
  body.append(...rows);
});
"""


class Dot(NamedTuple):
    """A place on the unit square, and what it says when it is pointed at."""

    x: float
    y: float
    says: str


def page(title: str, markup: Iterable[str]) -> str:
    """A whole page of parts that are markup."""
    body = "\n".join(markup)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A line of explanation."""
    return f'<p class="faint">{escape(text)}</p>'


def facts(values: Mapping[str, str]) -> str:
    """Short values with their names, side by side."""
    parts = (
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items()
    )
    return f'<div class="facts">{"".join(parts)}</div>'


def legend(words: Mapping[str, tuple[int, int, int]]) -> str:
    """What the colours of outlines and marks mean."""
    swatches = (
        f'<span class="swatch" style="border-color: rgb{colour}"></span>{escape(word)}'
        for word, colour in words.items()
    )
    return f'<p class="faint">{"".join(swatches)}</p>'


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str | int | float]], *, sortable: bool = False
) -> str:
    """A table; numbers stand to the right. Where scripts run, a click on a heading sorts a sortable one."""

    def cell(value: str | int | float) -> str:
        return f"<td>{escape(value)}</td>" if isinstance(value, str) else f'<td class="n">{value}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def picture(image: Image.Image) -> str:
    """A picture as the address that holds it, a PNG of its own."""
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=6)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def card(address: str, shows: str, name: str, lines: Sequence[str], reasons: Sequence[str]) -> str:
    """A picture with a name, lines of facts, and reasons for which it should be looked at.

    Args:
        address: Of the picture, see `picture`; or "".
        shows: What the picture shows, for those who do not see it.
        name, lines, reasons: Text below it.
    """
    parts = [f'<img src="{address}" alt="{escape(shows)}">'] if address else []
    parts += [f"<strong>{escape(name)}</strong>", *(f"<div>{escape(line)}</div>" for line in lines)]
    if reasons:
        parts.append(f'<ul class="why">{"".join(f"<li>{escape(why)}</li>" for why in reasons)}</ul>')
    return f'<article class="card">{"".join(parts)}</article>'


def cards(markup: Iterable[str]) -> str:
    """Cards side by side."""
    joined = "\n".join(markup)
    return f'<div class="cards">\n{joined}\n</div>'


def plots(markup: Iterable[str]) -> str:
    """Plots side by side."""
    joined = "\n".join(markup)
    return f'<div class="plots">\n{joined}\n</div>'


def details(title: str, markup: str, *, shown: bool = False) -> str:
    """A part that unfolds when its title is clicked."""
    return f"<details{' open' if shown else ''}><summary>{escape(title)}</summary>\n{markup}\n</details>"


def verbatim(text: str) -> str:
    """Text with its own spacing."""
    return f"<pre>{escape(text)}</pre>"


def bars(title: str, words: Sequence[str], counts: Sequence[int], axis: str) -> str:
    """A histogram as SVG: a bar for each count, the word below it; not all words where there are many."""
    most = max(counts, default=0) or 1
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(counts), 1)
    every = -(-len(words) // 8) or 1
    parts = [_axis_y([0, most / 2, most], [f"{value:.6g}" for value in (0, most / 2, most)])]
    for place, (word, count) in enumerate(zip(words, counts, strict=True)):
        x, y = _LEFT + place * step, _y(count / most)
        height = _HEIGHT - _BOTTOM - y
        parts.append(
            f'<rect class="bar" x="{x + step * 0.08:.1f}" y="{y:.1f}" width="{step * 0.84:.1f}" '
            f'height="{height:.1f}"><title>{escape(word)}: {count}</title></rect>'
        )
        if place % every == 0:
            parts.append(_text(x + step / 2, _HEIGHT - _BOTTOM + 15, word))
    return _plot(title, parts, axis)


def diagonal(title: str, dots: Sequence[Dot], axis: str) -> str:
    """Dots of the unit square, joined in order, beside the line on which both values are equal."""
    ticks = [0, 0.25, 0.5, 0.75, 1]
    parts = [_axis_y(ticks, [f"{value:g}" for value in ticks])]
    parts += [_text(_x(value), _HEIGHT - _BOTTOM + 15, f"{value:g}") for value in ticks]
    parts.append(f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    line = " ".join(f"{_x(dot.x):.1f},{_y(dot.y):.1f}" for dot in dots)
    parts.append(f'<polyline class="path" points="{line}"/>')
    parts += [
        f'<circle class="dot" cx="{_x(dot.x):.1f}" cy="{_y(dot.y):.1f}" r="4">'
        f"<title>{escape(dot.says)}</title></circle>"
        for dot in dots
    ]
    return _plot(title, parts, axis)


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _axis_y(values: Sequence[float], words: Sequence[str]) -> str:
    parts = []
    for value, word in zip(values, words, strict=True):
        y = _y(value / values[-1])
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
            + _text(_LEFT - 6, y + 4, word, "end")
        )
    return "".join(parts)


def _plot(title: str, parts: Sequence[str], axis: str) -> str:
    inside = "".join([*parts, _text(_x(0.5), _HEIGHT - 6, axis)])
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{inside}</svg></figure>'
    )


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
        """Check one image that was read, see `mclc_gpu.report.check.look`; for threads.

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
        parts = [facts(_totals(check, labels, len(left_out)))]
        if result is not None:
            parts.append(facts(_scores(result)))
        parts += _doubtful(check, pictures, labels)
        parts += _others(check, pictures)
        parts += _plots(check)
        if result is not None and result.categories:
            rows = [
                (name, _number(one.iou), _number(one.pd), one.detected, one.targets)
                for name, one in result.categories.items()
            ]
            parts.append(heading("Scores by category of the true area"))
            parts.append(table(("category", "IoU", "Pd", "detected", "targets"), rows))
        parts += _account(labels, left_out)
        with atomic_path(path) as temporary:
            temporary.write_text(page(title, parts), encoding="utf-8", errors="backslashreplace")


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

    def count(stem: str) -> tuple[Looked, ImageScore | None]:
        mask = read_mask(masks[stem])
        if stem not in report.truths:
            return report.look(stem, mask), None
        truth = read_mask(report.truths[stem], (mask.shape[0], mask.shape[1]))
        return report.look(stem, mask, truth), score_image(mask, truth, stem)

    with Progress("report", len(masks), "mask") as progress:
        for counted in prefetch_map(lambda stem: attempt(masks[stem], lambda: count(stem)), masks):
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
        **{SCORES[name].heading: SCORES[name].text(value) for name, value in result.values.items()},
        "true targets detected": f"{result.detected:,} of {result.targets:,}",
    }


def _doubtful(check: LabelCheck, pictures: "_Pictures", labels: LabelFiles | None) -> Iterator[str]:
    """What to look at first: counts by kind of doubt, cards, and a table of further targets."""
    yield heading("Look at these first")
    sought = TRUTH_DOUBTS if labels is None else CLICK_DOUBTS
    rows: list[tuple[str, int | str]] = [
        (kind, check.doubts[kind]) for kind in DOUBTS if kind in sought or check.doubts[kind]
    ]
    if labels is not None and not len(_known(check.confidence)):
        rows = [(kind, "not known" if kind == "low confidence" else count) for kind, count in rows]
    yield table(("sign of a wrong mask", "targets"), rows)
    suspects = check.suspects.items()
    yield pictures.legend()
    if not suspects:
        yield paragraph(f"None of the {check.targets:,} targets shows one of these signs.")
        return
    if check.doubtful > len(suspects):
        yield paragraph(f"The {len(suspects)} most urgent of {check.doubtful:,} targets are listed.")
    yield cards(pictures.cards(suspects[:_SUSPECTS]))
    more = suspects[_SUSPECTS:]
    if more:
        headings = ("target", "x", "y", "category", "pixels", "confidence", "IoU", "why")
        yield details(f"{len(more)} more without a picture", table(headings, map(_row, more), sortable=True))


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
            yield heading(words)
            yield cards(pictures.cards(chosen))


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
        made.append(diagonal("Share of true pixels by TPM", dots, "TPM above 0, mean of each tenth"))
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
        made.append(diagonal("Mean IoU by fifths of confidence", dots, "mean confidence of each fifth"))
    for name, values in (("confidence", _known(check.confidence)), ("IoU", _known(check.iou))):
        if len(values):
            counts = np.histogram(values, _STEPS, (0, 1))[0].tolist()
            words = [f"{step / _STEPS:g}" for step in range(_STEPS)]
            made.append(bars(f"Targets by {name}", words, counts, f"{name}, from .. on"))
    if check.areas:
        digits = range(max(check.areas) + 1)
        words = ["0", "1", *(f"{1 << d - 1}-{(1 << d) - 1}" for d in digits[2:])][: len(digits)]
        made.append(bars("Targets by area", words, [check.areas[d] for d in digits], "pixels"))
    if made:
        yield heading("All targets")
        yield plots(made)


def _account(labels: LabelFiles | None, left_out: Sequence[Skipped]) -> Iterator[str]:
    """What was left out, and the settings."""
    if left_out:
        yield heading("Skipped inputs")
        rows = [(item.file, item.why) for item in left_out[:_SHOWN_SKIPS]]
        yield table(("input", "why"), rows)
        if len(left_out) > _SHOWN_SKIPS:
            yield paragraph(f"and {len(left_out) - _SHOWN_SKIPS:,} more")
    if labels is not None:
        yield heading("How the labels were made")
        yield details("settings", verbatim(json.dumps(labels.summary["settings"], indent=2)))


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
        return legend(words | ({"truth": TRUTH} if self.report.truths else {}))

    def cards(self, targets: Sequence[Checked]) -> list[str]:
        """A card for each of some targets; their files are read by threads."""
        return list(prefetch_map(self._card, targets))

    def _card(self, target: Checked) -> str:
        place = f"x {round(target.x, 1):g}, y {round(target.y, 1):g}"
        facts = [place, *([target.category] if target.category else []), f"{target.area} px"]
        for word, value in (("confidence", target.confidence), ("IoU", target.iou)):
            facts += [] if math.isnan(value) else [f"{word} {value:.2f}"]
        why = [f"{kind}: {found}" for kind, found in target.doubts]
        address = shows = ""
        try:
            panels = self._panels(target)
            address = picture(_strip(target, list(panels.values())))
            shows = f"{target.name}: {', '.join(panels)}"
        except InputError as error:
            why.append(f"no picture: {error}")
        return card(address, shows, target.name, [",  ".join(facts)], why)

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
