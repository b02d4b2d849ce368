"""Pieces of a page of HTML that needs nothing beside itself: tables, cards with pictures, plots as SVG.

Whatever is text is escaped here; arguments that are markup already are named so.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from PIL import Image

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
