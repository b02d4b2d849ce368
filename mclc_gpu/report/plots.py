"""Curves as pictures: scores over thresholds, a training run over its epochs, a search of settings."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mclc_gpu.data.files import atomic_path
from mclc_gpu.errors import InputError
from mclc_gpu.score.roc import Roc

# Okabe and Ito's colours, which colour-blind eyes tell apart.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_GRID, _FAINT, _DPI = "#d9d9d4", "#8a8a90", 110
# What is drawn over the epochs: title, columns of the table, factor.
_PANELS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("loss", ("loss",), 1),
    ("IoU", ("iou", "niou", "crop_iou"), 1),
    ("Pd", ("pd",), 1),
    ("Fa x1e-6", ("fa",), 1e6),
    ("precision, recall, F1", ("precision", "recall", "f1"), 1),
    ("learning rate", ("lr",), 1),
)
_NAMES = {"iou": "IoU", "niou": "nIoU", "crop_iou": "IoU of training crops", "f1": "F1"}


def plot_roc(roc: Roc, path: Path, title: str = "") -> None:
    """Write the Pd-Fa curve, beside precision, recall, F1 and IoU over the threshold, as PNG.

    The curve is the highest Pd that any threshold reaches within a Fa; the thresholds themselves are dots.
    They need not lie on it: what a high threshold leaves of a large target may have its centroid too far from
    the target's, as may what a low one joins.

    The curve's Fa is drawn to a scale that is linear up to 1e-6 and logarithmic beyond, so that no false
    alarm at all has its place too. A score that is not defined leaves a gap.
    """
    figure = _figure(10, 4.2, title)
    curve, scores = figure.subplots(1, 2)
    half = int(np.flatnonzero(roc.thresholds == 0.5)[0])
    order = np.argsort(roc.fa, kind="stable")
    reached = np.maximum.accumulate(roc.pd[order])
    fa = roc.fa[order] * 1e6
    curve.step(fa, reached, where="post", color=_COLOURS[0], linewidth=1.8, label="highest within Fa")
    curve.plot(roc.fa * 1e6, roc.pd, ".", color=_FAINT, markersize=4, label="each threshold")
    curve.plot(roc.fa[half] * 1e6, roc.pd[half], "o", color=_COLOURS[1], markersize=7, label="threshold 0.5")
    curve.set_xscale("symlog", linthresh=1)
    curve.set_xlim(left=0)
    curve.set_ylim(-0.02, 1.02)
    _dress(curve, f"{roc.images} images, {roc.targets} targets", "Fa x1e-6", "Pd")
    for colour, (name, values) in zip(
        _COLOURS,
        {"precision": roc.precision, "recall": roc.recall, "F1": roc.f1, "IoU": roc.iou}.items(),
        strict=True,
    ):
        scores.plot(roc.thresholds, values, color=colour, linewidth=1.8, label=name)
    scores.set_xlim(0, 1)
    scores.set_ylim(-0.02, 1.02)
    _dress(scores, "by pixel", "threshold", "")
    _save(figure, path)


def plot_curves(table: Path, path: Path, title: str = "") -> None:
    """Write a training run's table (metrics.csv, a row an epoch) as PNG, one panel per kind of number.

    Columns that the table lacks, and empty cells, are passed over. Raises InputError when the table cannot be
    read or holds nothing to draw.
    """
    columns = _read_table(table)
    epochs = columns.get("epoch", [])
    panels = [
        (heading, [name for name in names if any(map(math.isfinite, columns.get(name, ())))], factor)
        for heading, names, factor in _PANELS
    ]
    panels = [panel for panel in panels if panel[1]]
    if not epochs or not panels:
        raise InputError(f"{table}: holds no epoch with a number; train first")
    rows = -(-len(panels) // 3)
    figure = _figure(12, 3.2 * rows, title)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for empty in axes[len(panels) :]:
        empty.remove()
    for axis, (heading, names, factor) in zip(axes, panels, strict=False):
        for colour, name in zip(_COLOURS, names, strict=False):
            known = [(e, v * factor) for e, v in zip(epochs, columns[name], strict=True) if math.isfinite(v)]
            at, values = zip(*known, strict=True)
            line = "." if len(known) == 1 else "-"
            axis.plot(at, values, line, color=colour, linewidth=1.6, label=_NAMES.get(name, name))
        _dress(axis, heading, "epoch", "", legend=len(names) > 1)
    _save(figure, path)


def plot_search(
    rows: Sequence[Mapping[str, Any]],
    tried: Mapping[str, Sequence[Any]],
    best: Mapping[str, Any],
    path: Path,
    title: str = "",
) -> None:
    """Write a search of settings as PNG: IoU over the evaluations, and over each setting's values.

    Args:
        rows: The evaluations in order: "search" (its name), "iou", and a value of each setting. The first row
            of each search is its start.
        tried: The values of each setting that were to be tried, in order.
        best: The values that the first search found best.
        path: Of the PNG file.
        title: Of the picture.

    A setting's panel has the evaluations of the first search only: each one, the best IoU of each value, and
    the value of `best` ringed. Its values are evenly spaced. Settings with one value in all rows are left
    out. IoUs far below the searches' starts are drawn at the lower edge.
    """
    searches = list(dict.fromkeys(row["search"] for row in rows))
    first = [row for row in rows if row["search"] == searches[0]]
    settings = [name for name in tried if len({row[name] for row in first}) > 1]
    starts = [next(row["iou"] for row in rows if row["search"] == name) for name in searches]
    highest, lowest = max(row["iou"] for row in rows), min(row["iou"] for row in rows)
    floor = max(lowest, min(starts) - 2 * max(highest - min(starts), 0.02))
    limits = floor - 0.03 * (highest - floor + 1e-3), highest + 0.05 * (highest - floor + 1e-3)
    lines = -(-len(settings) // 4)
    figure = _figure(12, 3.6 + 2.6 * lines, title)
    grid = figure.add_gridspec(1 + lines, 4, height_ratios=[1.4, *[1] * lines])
    top = figure.add_subplot(grid[0, :])
    for colour, name in zip(_COLOURS, searches, strict=False):
        own = [(place, row["iou"]) for place, row in enumerate(rows, 1) if row["search"] == name]
        at, ious = np.array(own).T
        top.plot(at, ious.clip(floor), ".", color=colour, markersize=4, alpha=0.6)
        top.step(at, np.maximum.accumulate(ious), where="post", color=colour, label=f"best, {name}")
        top.plot([at[0], at[-1]], [ious[0]] * 2, ":", color=colour, linewidth=1.2)
    top.plot([], [], ":", color=_FAINT, label="start")
    top.set_ylim(limits)
    _dress(top, "searches", "evaluation", "IoU")
    for place, name in enumerate(settings):
        axis = figure.add_subplot(grid[1 + place // 4, place % 4])
        _plot_setting(axis, first, name, tried[name], best, floor)
        axis.set_ylim(limits)
        _dress(axis, name, "", "IoU" if place % 4 == 0 else "", legend=False)
    _save(figure, path)


def _plot_setting(
    axis: "Axes",
    rows: Sequence[Mapping[str, Any]],
    name: str,
    tried: Sequence[Any],
    best: Mapping[str, Any],
    floor: float,
) -> None:
    """The evaluations over one setting's values."""
    highest = {
        place: max(row["iou"] for row in rows if row[name] == value)
        for place, value in enumerate(tried)
        if any(row[name] == value for row in rows)
    }
    places = [tried.index(row[name]) for row in rows]
    axis.plot(places, np.clip([row["iou"] for row in rows], floor, None), ".", color=_FAINT, alpha=0.5)
    line = "." if isinstance(tried[0], str) else ".-"  # names have nothing between them
    axis.plot(list(highest), np.clip([*highest.values()], floor, None), line, color=_COLOURS[0])
    chosen = tried.index(best[name])
    axis.plot(chosen, highest[chosen], "o", color=_COLOURS[1], markersize=10, fillstyle="none")
    axis.set_xlim(-0.6, len(tried) - 0.4)
    axis.set_xticks(range(len(tried)), [v if isinstance(v, str) else f"{v:g}" for v in tried])


def _read_table(table: Path) -> Mapping[str, Sequence[float]]:
    """Columns of numbers by name; NaN where a cell is empty or no number."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read as a table ({error}); check the path") from error
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _figure(width: float, height: float, title: str) -> "Figure":
    # Without pyplot there is no global state, no window and no choice of a backend.
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=_DPI, layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def _dress(axis: "Axes", title: str, x: str, y: str, legend: bool = True) -> None:
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False)


def _save(figure: "Figure", path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
