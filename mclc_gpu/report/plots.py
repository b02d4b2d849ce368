"""Draw curves as PNG: scores over thresholds, a training run over its epochs, a search of settings."""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mclc_gpu.data.files import atomic_path
from mclc_gpu.errors import InputError
from mclc_gpu.score.metrics import SCORES
from mclc_gpu.score.roc import Roc

# The palette of Okabe and Ito, which stays distinct for color-blind readers.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_GRID, _FAINT, _DPI = "#d9d9d4", "#8a8a90", 110


def plot_roc(roc: Roc, path: Path, title: str = "", threshold: float = 0.5) -> None:
    """Draw the Pd-Fa curve, beside the scores by pixel over the threshold.

    The curve is the highest Pd that any threshold reaches within a Fa; the thresholds themselves are dots.
    They need not lie on it: what a high threshold leaves of a large target may have its centroid too far from
    the target's, as may what a low one joins. The axis of Fa is linear up to 1e-6 and logarithmic beyond, so
    that Fa = 0 is on it. A score that is not defined leaves a gap.

    Parameters
    ----------
    roc : Roc
    path : Path
        PNG file to write; one that exists is replaced.
    title : str
    threshold : float, 0..1
        Threshold to mark, to the nearest of the curve.
    """
    figure = _figure(10, 4.2, title)
    curve, scores = figure.subplots(1, 2)
    used = int(np.abs(roc.thresholds - threshold).argmin())
    order = np.argsort(roc.fa, kind="stable")
    reached = np.maximum.accumulate(roc.pd[order])
    fa = roc.fa * SCORES["fa"].factor
    curve.step(fa[order], reached, where="post", color=_COLORS[0], linewidth=1.8, label="highest within Fa")
    curve.plot(fa, roc.pd, ".", color=_FAINT, markersize=4, label="each threshold")
    name = f"threshold {threshold:.3g}"
    curve.plot(fa[used], roc.pd[used], "o", color=_COLORS[1], markersize=7, label=name)
    curve.set_xscale("symlog", linthresh=1)
    curve.set_xlim(left=0)
    curve.set_ylim(-0.02, 1.02)
    _dress(curve, f"{roc.images} images, {roc.targets} targets", SCORES["fa"].heading, "Pd")
    by_pixel = {name: values for name, values in roc.values.items() if name not in ("pd", "fa")}
    for color, (name, values) in zip(itertools.cycle(_COLORS), by_pixel.items(), strict=False):
        score = SCORES[name]
        scores.plot(roc.thresholds, values * score.factor, color=color, linewidth=1.8, label=score.heading)
    scores.axvline(threshold, color=_COLORS[1], linewidth=1)
    scores.set_xlim(0, 1)
    scores.set_ylim(-0.02, 1.02)
    _dress(scores, "by pixel", "threshold", "")
    _save(figure, path)


def plot_curves(table: Path, path: Path, title: str = "") -> None:
    """Draw a training run's metrics.csv over its epochs, one panel per kind of number.

    Parameters
    ----------
    table : Path
        CSV file with a row per epoch. Columns that it lacks, and empty cells, are ignored.
    path : Path
        PNG file to write; one that exists is replaced.
    title : str

    Raises
    ------
    InputError
        The table cannot be read or holds nothing to draw.
    """
    columns = _read_table(table)
    epochs = columns.get("epoch", [])
    panels: dict[str, list[tuple[str, str, float]]] = {}
    for panel, name, label, factor in _training_curves():
        if any(map(math.isfinite, columns.get(name, ()))):
            panels.setdefault(panel, []).append((name, label, factor))
    if not epochs or not panels:
        raise InputError(f"{table}: holds no epoch with a number; train first")
    rows = -(-len(panels) // 3)
    figure = _figure(12, 3.2 * rows, title)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for empty in axes[len(panels) :]:
        empty.remove()
    for axis, (panel, curves) in zip(axes, panels.items(), strict=False):
        for color, (name, label, factor) in zip(itertools.cycle(_COLORS), curves, strict=False):
            known = [(e, v * factor) for e, v in zip(epochs, columns[name], strict=True) if math.isfinite(v)]
            at, values = zip(*known, strict=True)
            line = "." if len(known) == 1 else "-"
            axis.plot(at, values, line, color=color, linewidth=1.6, label=label)
        _dress(axis, panel, "epoch", "", legend=len(curves) > 1)
    _save(figure, path)


def _training_curves() -> list[tuple[str, str, str, float]]:
    """List the curves of a training run: title of the panel, column of metrics.csv, label, factor."""
    scores = [
        (score.panel or score.heading, name, score.label, score.factor) for name, score in SCORES.items()
    ]
    crops = ("IoU", "crop_iou", "IoU of training crops", 1.0)
    return [("loss", "loss", "loss", 1.0), *scores, crops, ("learning rate", "lr", "lr", 1.0)]


def plot_search(
    rows: Sequence[Mapping[str, Any]],
    tried: Mapping[str, Sequence[Any]],
    best: Mapping[str, Any],
    path: Path,
    title: str = "",
) -> None:
    """Draw a search of settings: IoU over the evaluations, and over the values of each setting.

    A setting's panel has the evaluations of the first search only: each one, the best IoU of each value, and
    a ring around the value of `best`. Its values are evenly spaced. Settings with one value in all rows are
    left out. IoUs far below those of the searches' starts are drawn at the lower edge.

    Parameters
    ----------
    rows : sequence of mapping
        Evaluations in order: "search" (its name), "iou", and a value of each setting. The first row of each
        search is its start.
    tried : mapping of str to sequence
        Values of each setting that were to be tried, in order.
    best : mapping of str to value
        Values that the first search found best.
    path : Path
        PNG file to write; one that exists is replaced.
    title : str
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
    for color, name in zip(_COLORS, searches, strict=False):
        own = [(place, row["iou"]) for place, row in enumerate(rows, 1) if row["search"] == name]
        at, ious = np.array(own).T
        top.plot(at, ious.clip(floor), ".", color=color, markersize=4, alpha=0.6)
        top.step(at, np.maximum.accumulate(ious), where="post", color=color, label=f"best, {name}")
        top.plot([at[0], at[-1]], [ious[0]] * 2, ":", color=color, linewidth=1.2)
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
    axis: Axes,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    tried: Sequence[Any],
    best: Mapping[str, Any],
    floor: float,
) -> None:
    """Draw the evaluations over one setting's values."""
    highest = {
        place: max(row["iou"] for row in rows if row[name] == value)
        for place, value in enumerate(tried)
        if any(row[name] == value for row in rows)
    }
    places = [tried.index(row[name]) for row in rows]
    axis.plot(places, np.clip([row["iou"] for row in rows], floor, None), ".", color=_FAINT, alpha=0.5)
    line = "." if isinstance(tried[0], str) else ".-"  # names have nothing between them
    axis.plot(list(highest), np.clip([*highest.values()], floor, None), line, color=_COLORS[0])
    chosen = tried.index(best[name])
    axis.plot(chosen, highest[chosen], "o", color=_COLORS[1], markersize=10, fillstyle="none")
    axis.set_xlim(-0.6, len(tried) - 0.4)
    axis.set_xticks(range(len(tried)), [v if isinstance(v, str) else f"{v:g}" for v in tried])


def _read_table(table: Path) -> Mapping[str, Sequence[float]]:
    """Read columns of numbers by name; NaN where a cell is empty or no number."""
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


def _figure(width: float, height: float, title: str) -> Figure:
    # Without pyplot there is no global state, no window and no choice of a backend.
    figure = Figure((width, height), dpi=_DPI, layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def _dress(axis: Axes, title: str, x: str, y: str, legend: bool = True) -> None:
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
