"""Plots of the label tables' sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mclc_gpu.data.atomic import atomic_path

# Told apart by colour-blind eyes, and by their markers in gray print.
_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))


@dataclass(frozen=True)
class Curve:
    """Means at x with their standard deviations, NaN where there is only one seed."""

    name: str
    x: list[float]
    mean: list[float]
    spread: list[float]


def plot_sweep(curves: Sequence[Curve], *, title: str, xlabel: str, legend: str, log: bool) -> Figure:
    """A line for each curve with error bars of one standard deviation, IoU upward.

    `legend`: what the curves' names say; `log`: of x.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, curve in enumerate(curves):
        colour, marker = _STYLES[place % len(_STYLES)]
        axes.errorbar(
            curve.x,
            curve.mean,
            np.nan_to_num(curve.spread),
            label=curve.name,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=3,
        )
    ticks = sorted({x for curve in curves for x in curve.x})
    if log:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=xlabel, ylabel="IoU of the pseudo masks")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=legend, frameon=False)
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """Write it as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
