"""Tables and sweeps of label quality on a data set with true masks."""

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mclc_gpu.bench.compare import Row, machine, markdown, shown, versions, write_rows
from mclc_gpu.bench.dataset import Frames, read_set
from mclc_gpu.bench.label_measure import (
    PAPER_MAKER,
    SWEEPS,
    Measured,
    Sample,
    Sweep,
    maker_settings,
    measure,
    measure_reference,
)
from mclc_gpu.data.annotations import CATEGORIES
from mclc_gpu.data.files import atomic_path
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.labels.pipeline import warm_up
from mclc_gpu.labels.windows import PlacedTarget
from mclc_gpu.runs import Progress

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


TABLES = ("makers", *SWEEPS)
# IoU as Li et al. (ICCV 2023) print it for the 213 train images of NUAA-SIRST, where it is known.
PRINTED = {
    "point label alone": 0.0253,
    "LCA, SLIC": 0.518,
    "MCLC, SLIC, threshold": 0.704,
    PAPER_MAKER: 0.763,
}
_PRINTED_IMAGES = 213
# Of the vote of components, which also estimates categories.
_FITTED = (
    "The weights of preset default and of the estimated category were fitted on these images: "
    "what they reach on others is what counts."
)
_REFERENCE = f"CPU reference: {PAPER_MAKER}"


@dataclass
class Bench:
    """What all tables of a run share, and the document they are gathered in."""

    frames: Frames
    trials: int
    seeds: int
    device: torch.device
    out: Path
    text: list[str] = field(default_factory=list)

    def publish(self, name: str, rows: Sequence[Row], text: str) -> None:
        """Write a table's numbers and add it to the document, which is whole after every table."""
        write_rows(self.out / f"{name}.csv", rows)
        self.text.append(f"## {name}\n\n{text}\n")
        with atomic_path(self.out / "tables.md") as temporary:
            temporary.write_text("\n".join(self.text), encoding="utf-8")
        print(f"{name}: {self.out / f'{name}.csv'}", file=sys.stderr, flush=True)


def measure_makers(bench: Bench) -> None:
    """The table "makers", also printed.

    All makers run seed by seed, the reference among them, so that a machine whose speed drifts does so for
    all of them.
    """
    settings, left_out = [], []
    for setting in maker_settings(bench.trials):
        try:
            warm_up(setting.config, bench.device)
            settings.append(setting)
        except InputError as error:
            left_out.append(f"{setting.name} ({setting.supervision}) is left out: {error}")
    samples: list[list[Sample]] = [[] for _ in settings]
    reference: list[Sample] = []
    with Progress("makers", (len(settings) + 1) * bench.seeds, "run") as progress:
        for seed in range(bench.seeds):
            windows: list[PlacedTarget] = []
            for setting, own in zip(settings, samples, strict=True):
                sample, placed = measure(bench.frames, setting, seed, bench.device)
                own.append(sample)
                if setting.name == PAPER_MAKER and setting.as_published:
                    windows = placed
                progress.advance(1)
            try:
                reference.append(measure_reference(bench.frames, windows, bench.trials, seed))
            except InputError as error:
                if not seed:
                    left_out.append(f"{_REFERENCE} is left out: {error}")
            progress.advance(1)
    peer = Measured(reference) if reference else None
    rows = []
    for setting, own in zip(settings, samples, strict=True):
        printed = PRINTED.get(setting.name) if setting.as_published else None
        cells: Row = {
            "maker": setting.name,
            "supervision": setting.supervision,
            "category": setting.category,
        }
        rows.append(_compared(cells, Measured(own), peer, printed))
    if peer:
        cells = {"maker": _REFERENCE, "supervision": "point", "category": "given"}
        rows.append(_compared(cells, peer, peer, None))
    text = "\n\n".join([_makers_table(rows), _legend(bench), *left_out])
    bench.publish("makers", rows, text)
    print(text, flush=True)


def measure_sweep(bench: Bench, name: str, sweep: Sweep) -> None:
    """One table over one quantity, and its plot."""
    settings = sweep.settings(bench.trials)
    results = []
    with Progress(name, len(settings) * bench.seeds, "run") as progress:
        for setting in settings:
            warm_up(setting.config, bench.device)
            samples = []
            for seed in range(bench.seeds):
                samples.append(measure(bench.frames, setting, seed, bench.device)[0])
                progress.advance(1)
            results.append((setting, Measured(samples)))
    rows: list[Row] = [{sweep.series: s.name, sweep.x: s.x, **_numbers(measured)} for s, measured in results]
    curves: dict[str, Curve] = {}
    for setting, measured in results:
        curve = curves.setdefault(setting.name, Curve(setting.name, [], [], []))
        curve.x.append(setting.x)
        curve.mean.append(measured.iou)
        curve.spread.append(measured.spread)
    figure = plot_sweep(
        [*curves.values()], title=sweep.title, xlabel=sweep.xlabel, legend=sweep.series, log=sweep.log
    )
    save_plot(figure, bench.out / f"{name}.png")
    bench.publish(name, rows, f"{_sweep_table(sweep, rows)}\n\n![{sweep.title}]({name}.png)")


def _numbers(measured: Measured) -> Row:
    return {
        "iou": measured.iou,
        "iou_sd": measured.spread,
        **{f"iou_{name}": value for name, value in measured.of_category.items()},
        "targets_per_s": measured.rate,
        "unlabelled": measured.unlabelled,
    }


def _compared(cells: Row, measured: Measured, reference: Measured | None, printed: float | None) -> Row:
    ratio = measured.rate / reference.rate if reference else None
    return cells | _numbers(measured) | {"ratio_to_reference": ratio, "printed": printed}


def _with_spread(row: Row) -> str:
    spread = shown(row["iou_sd"], 4)
    return shown(row["iou"], 4) + (f" ± {spread}" if spread else "")


def _makers_table(rows: Sequence[Row]) -> str:
    header = ["maker", "supervision", "category", "IoU", *CATEGORIES, "targets/s", "ratio", "paper"]
    lines = [
        [
            *(str(row[name]) for name in header[:3]),
            _with_spread(row),
            *(shown(row[f"iou_{name}"], 3) for name in CATEGORIES),
            shown(row["targets_per_s"], 0),
            shown(row["ratio_to_reference"], 2),
            shown(row["printed"], 4),
        ]
        for row in rows
    ]
    return markdown(header, lines)


def _legend(bench: Bench) -> str:
    names = bench.frames.names
    same = len(names) == _PRINTED_IMAGES and all(re.fullmatch(r"Misc_\d+", name) for name in names)
    remark = _FITTED if same else "These values are not for the images measured here."
    return (
        f"K = {bench.trials}. IoU: mean and standard deviation over {bench.seeds} seeds; then by category, "
        "that of the targets' true areas. targets/s: placing, clustering and refining, without files, "
        "start-up and compilation; ratio: to the CPU reference's in this run, on the same windows. "
        "category: that which the labels depend on, given = by the true area. paper: IoU printed by Li et "
        f"al. for NUAA-SIRST. {remark}"
    )


def _sweep_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(str(row[sweep.series]) for row in rows))
    cells = {(row[sweep.series], row[sweep.x]): _with_spread(row) for row in rows}
    values = dict.fromkeys(row[sweep.x] for row in rows)
    lines = [[str(value), *(cells[name, value] for name in names)] for value in values]
    return markdown([sweep.x, *(f"{sweep.series}: {name}" for name in names)], lines)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.label_tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--masks", type=Path, required=True, help="folder of true masks")
    parser.add_argument("--list", type=Path, help="text file of image names, one a line; default: all images")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and plots")
    parser.add_argument("--seeds", type=int, default=5, help="runs of every setting, with seeds from 0 (5)")
    parser.add_argument("--trials", type=int, default=100, help="trials per target, K (100)")
    parser.add_argument("--only", default=",".join(TABLES), help="tables, with commas (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the tables; 2 for bad input, with one line that says what is wrong."""
    options = _arguments(arguments)
    try:
        _measure(options, sys.argv[1:] if arguments is None else arguments)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    chosen = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in chosen if name not in TABLES]:
        raise InputError(f"--only {unknown[0]!r}: use some of {', '.join(TABLES)}")
    if options.seeds < 1 or options.trials < 1:
        raise InputError(f"--seeds is {options.seeds}, --trials is {options.trials}: give at least 1 of each")
    device = pick_device(options.device)
    images, truth = read_set(options.images, options.masks, options.list)
    frames = Frames(list(images), list(images.values()), [truth[name] for name in images])
    targets = sum(map(len, frames.points(0)))
    if not targets:
        raise InputError(f"{options.masks}: no mask holds a target; check the folder")
    command = shlex.join(["python", "-m", "mclc_gpu.bench.label_tables", *arguments])
    about = f"{len(frames.names)} images, {targets} targets. {machine(device)}. {versions()}."
    bench = Bench(frames, options.trials, options.seeds, device, options.out)
    bench.text.append(f"# Pseudo masks\n\n```sh\n{command}\n```\n\n{about}\n")
    start = time.perf_counter()
    for name in TABLES:
        if name == "makers" and name in chosen:
            measure_makers(bench)
        elif name in chosen:
            measure_sweep(bench, name, SWEEPS[name])
    print(f"all in {time.perf_counter() - start:.0f} s: {options.out / 'tables.md'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
