"""Tables and sweeps of label quality and speed on data sets with true masks.

    python -m mclc_gpu.bench.label_tables --set DIR [--set DIR ...] --out DIR
    python -m mclc_gpu.bench.label_tables --images DIR --masks DIR [--list TXT] --out DIR

The first compares presets and published values on several data sets, with several kinds of clicks. The
second compares label makers and sweeps settings on one. Both write DIR/tables.md with a CSV file for each
table and a plot for each sweep.
"""

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mclc_gpu.bench.compare import Row, exit_code, machine, markdown, shown, versions, write_rows
from mclc_gpu.bench.dataset import Frames, read_set
from mclc_gpu.bench.label_sets import (
    CLICKS,
    COMPARED,
    Measured,
    Sample,
    measure_labels,
    measure_sets,
    read_label_set,
    scored,
    sets_legend,
    sets_table,
    with_spread,
)
from mclc_gpu.bench.printed import LABEL_IOU
from mclc_gpu.bench.reference import make_item, run
from mclc_gpu.data.annotations import CATEGORIES
from mclc_gpu.data.files import atomic_path
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.labels.config import MAKERS, LabelConfig, preset
from mclc_gpu.labels.pipeline import (
    by_image,
    warm_up,
)
from mclc_gpu.labels.windows import PlacedTarget, PlacedTargets
from mclc_gpu.runs import Progress

PAPER = "MCLC, SLIC, CRF"
DEFAULT = "preset default"
_INTENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2)
_CLUSTERS = (2, 4, 6, 9, 12, 16, 20, 25)
_TRIALS = (1, 2, 5, 10, 20, 50, 100, 200)
_DEVIATIONS = (0, 1, 1.5, 2, 3, 4, 5)
_METHODS = {"K-means": "kmeans", "SLIC": "slic"}
_REFINEMENTS = {"threshold": "threshold", "CRF": "crf"}
_CATEGORIES = {"given": "given", "estimated": "estimate"}
# IoU as Li et al. (ICCV 2023) print it for the 213 train images of NUAA-SIRST, where it is known.
PRINTED = {
    name: LABEL_IOU[key]["NUAA-SIRST"]
    for name, key in (
        ("point label alone", "point"),
        ("LCA, SLIC", "lca"),
        ("MCLC, SLIC, threshold", "mc"),
        (PAPER, "mclc"),
    )
}
_PRINTED_IMAGES = 213
# The vote of components also estimates categories.
_FITTED = (
    "The weights of preset default and of the estimated category were fitted on these images: "
    "what they reach on others is what counts."
)
_REFERENCE = f"CPU reference: {PAPER}"
# Distinct to color-blind eyes, and by their markers in gray print.
_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))


@dataclass(frozen=True)
class Setting:
    """Settings of the labels of one row.

    Attributes
    ----------
    name : str
        Name of the labels, or of the curve in a sweep.
    config : LabelConfig
    supervision : str
        Annotation of each target, see `mclc_gpu.data.simulate.points_from_mask`.
    x : float
        Value of the swept quantity.
    jitter : float
        Of the click, in pixels.
    """

    name: str
    config: LabelConfig
    supervision: str = "point"
    x: float = 0.0
    jitter: float = 0.0

    @property
    def category(self) -> str:
        """Source of the category that the labels depend on."""
        maker = MAKERS[self.config.maker]
        used = maker.category_in_mask and (maker.needs_category or self.config.category == "given")
        if self.supervision == "box" or not used:
            return "not used"
        return next(name for name, value in _CATEGORIES.items() if value == self.config.category)

    @property
    def as_published(self) -> bool:
        """True if the annotation is the paper's: one click, and the true category or none."""
        return self.supervision == "point" and self.category != "estimated"


@dataclass(frozen=True)
class Sweep:
    """A table over one quantity.

    Attributes
    ----------
    settings : callable
        Number of trials -> settings.
    title, xlabel : str
        Of the plot.
    series, x : str
        Columns that hold a setting's name and x.
    log : bool
        Whether the plot's x axis is logarithmic.
    """

    settings: Callable[[int], list[Setting]]
    title: str
    xlabel: str
    series: str
    x: str
    log: bool = False


def maker_settings(trials: int) -> list[Setting]:
    """Return the settings that the paper compares, and those with more than a click."""
    rows = [
        Setting("point label alone", preset("point")),
        Setting("GrabCut", preset("grabcut")),
        *(Setting(f"LCA, {name}", preset("lca", trial={"method": _METHODS[name]})) for name in _METHODS),
    ]
    for category in _CATEGORIES.values():
        for refinement, refine in _REFINEMENTS.items():
            for method in _METHODS:
                trial = {"method": _METHODS[method]}
                config = preset("paper", trials=trials, trial=trial, refine=refine, category=category)
                rows.append(Setting(f"MCLC, {method}, {refinement}", config))
        rows.append(Setting(DEFAULT, preset("default", category=category)))
    stronger = ("multi-point", "scribble", "box")
    rows += [Setting(PAPER, preset("paper", trials=trials), supervision) for supervision in stronger]
    return [
        *rows,
        *(Setting(DEFAULT, preset("default", category="estimate"), kind) for kind in stronger),
        Setting("GrabCut", preset("grabcut"), "box"),
        Setting("box alone", preset("point"), "box"),
    ]


def _noise(trials: int) -> list[Setting]:
    return [
        Setting(
            kind, preset("paper", trials=trials, trial={"noise": kind, "intensity": intensity}), x=intensity
        )
        for kind in ("salt", "pepper", "gaussian")
        for intensity in _INTENSITIES
    ]


def _clusters(trials: int) -> list[Setting]:
    return [
        Setting(
            name, preset("paper", trials=trials, trial={"method": method, "clusters": clusters}), x=clusters
        )
        for name, method in _METHODS.items()
        for clusters in _CLUSTERS
    ]


def _trials(trials: int) -> list[Setting]:
    return [
        Setting(name, preset("paper", trials=count, refine=refine), x=count)
        for name, refine in _REFINEMENTS.items()
        for count in _TRIALS
        if count <= 2 * trials
    ]


def _deviation(trials: int) -> list[Setting]:
    makers = {
        "MCLC, category given": preset("paper", trials=trials),
        "MCLC, category estimated": preset("paper", trials=trials, category="estimate"),
        f"{DEFAULT}, click alone": preset("default", category="estimate"),
    }
    return [
        Setting(name, config, x=deviation, jitter=deviation)
        for name, config in makers.items()
        for deviation in _DEVIATIONS
    ]


SWEEPS = {
    "noise": Sweep(
        _noise,
        "Kind and intensity of the noise",
        "intensity (salt, pepper: share of values; Gaussian: deviation / range)",
        "noise",
        "intensity",
        log=True,
    ),
    "clusters": Sweep(_clusters, "Number of clusters", "clusters", "clustering", "clusters"),
    "trials": Sweep(_trials, "Number of trials", "K", "refinement", "K", log=True),
    "deviation": Sweep(
        _deviation,
        "Clicks beside the targets' centers",
        "deviation (px): standard deviation in x and in y, cut at twice its length",
        "labels",
        "deviation",
    ),
}


def measure(
    frames: Frames, setting: Setting, seed: int, device: torch.device
) -> tuple[Sample, PlacedTargets]:
    """Label simulated marks with one seed and score, see `measure_labels`."""
    points = frames.points(seed, setting.supervision, setting.jitter)
    sample, placed, _ = measure_labels(frames, points, setting.config, seed, device)
    return sample, placed


def measure_reference(frames: Frames, placed: Sequence[PlacedTarget], trials: int, seed: int) -> Sample:
    """Label the windows of these targets with the CPU reference and its dense CRF, on all cores, and score.

    Raises
    ------
    InputError
        The reference cannot run: pydensecrf is missing, or images are not 8-bit.
    """
    items = []
    of_image = by_image(placed, len(frames.images))
    for name, image, targets in zip(frames.names, frames.images, of_image, strict=True):
        windows = tuple(target.window for target in targets)
        items.append(replace(make_item(name, image, [], seed), windows=windows))
    outcome = run(items, trials, "crf", None, seed)
    masks = [outcome.masks[name] for name in frames.names]
    return scored(frames, masks, len(placed), outcome.seconds["total"])


@dataclass
class Document:
    """Tables of a run, in a folder.

    Attributes
    ----------
    out : Path
    text : list of str
        Parts of tables.md.
    """

    out: Path
    text: list[str]

    def publish(self, name: str, rows: Sequence[Row], text: str) -> None:
        """Write a table's numbers and add it to the document, which is complete after every table."""
        write_rows(self.out / f"{name}.csv", rows)
        self.text.append(f"## {name}\n\n{text}\n")
        with atomic_path(self.out / "tables.md") as temporary:
            temporary.write_text("\n".join(self.text), encoding="utf-8")
        print(f"{name}: {self.out / f'{name}.csv'}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Tables:
    """Data and options that all tables of one data set share, and the document that collects them."""

    frames: Frames
    trials: int
    seeds: int
    device: torch.device
    document: Document


def plot_sweep(sweep: Sweep, results: Sequence[tuple[Setting, Measured]]) -> Figure:
    """Plot IoU over the swept quantity: a curve per name, with error bars of one standard deviation."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(dict.fromkeys(setting.name for setting, _ in results)):
        own = [(setting.x, measured) for setting, measured in results if setting.name == name]
        color, marker = _STYLES[place % len(_STYLES)]
        axes.errorbar(
            [x for x, _ in own],
            [measured.iou for _, measured in own],
            np.nan_to_num([measured.spread for _, measured in own]),
            label=name,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=3,
        )
    ticks = sorted({setting.x for setting, _ in results})
    if sweep.log:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=sweep.xlabel, ylabel="IoU of the pseudo masks")
    axes.set_title(sweep.title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=sweep.series, frameon=False)
    return figure


TABLES = ("makers", *SWEEPS)


def measure_makers(tables: Tables) -> None:
    """Measure and print the table "makers".

    The settings and the reference take turns seed by seed, so that a machine whose speed drifts does so for
    all of them.
    """
    settings, left_out = [], []
    for setting in maker_settings(tables.trials):
        try:
            warm_up(setting.config, tables.device)
            settings.append(setting)
        except InputError as error:
            left_out.append(f"{setting.name} ({setting.supervision}) is left out: {error}")
    samples: list[list[Sample]] = [[] for _ in settings]
    reference: list[Sample] = []
    with Progress("makers", (len(settings) + 1) * tables.seeds, "run") as progress:
        for seed in range(tables.seeds):
            windows: Sequence[PlacedTarget] = []
            for setting, own in zip(settings, samples, strict=True):
                sample, placed = measure(tables.frames, setting, seed, tables.device)
                own.append(sample)
                if setting.name == PAPER and setting.as_published:
                    windows = placed
                progress.advance(1)
            try:
                reference.append(measure_reference(tables.frames, windows, tables.trials, seed))
            except InputError as error:
                if not seed:
                    left_out.append(f"{_REFERENCE} is left out: {error}")
            progress.advance(1)
    baseline = Measured(reference) if reference else None
    rows = []
    for setting, own in zip(settings, samples, strict=True):
        printed = PRINTED.get(setting.name) if setting.as_published else None
        cells: Row = {
            "maker": setting.name,
            "supervision": setting.supervision,
            "category": setting.category,
        }
        rows.append(_compared(cells, Measured(own), baseline, printed))
    if baseline:
        cells = {"maker": _REFERENCE, "supervision": "point", "category": "given"}
        rows.append(_compared(cells, baseline, baseline, None))
    text = "\n\n".join([_makers_table(rows), _legend(tables), *left_out])
    tables.document.publish("makers", rows, text)
    print(text, flush=True)


def measure_sweep(tables: Tables, name: str, sweep: Sweep) -> None:
    """Measure one table over one quantity, and plot it."""
    settings = sweep.settings(tables.trials)
    results = []
    with Progress(name, len(settings) * tables.seeds, "run") as progress:
        for setting in settings:
            warm_up(setting.config, tables.device)
            samples = []
            for seed in range(tables.seeds):
                samples.append(measure(tables.frames, setting, seed, tables.device)[0])
                progress.advance(1)
            results.append((setting, Measured(samples)))
    rows: list[Row] = [{sweep.series: s.name, sweep.x: s.x, **own.numbers()} for s, own in results]
    with atomic_path(tables.document.out / f"{name}.png") as temporary:
        plot_sweep(sweep, results).savefig(temporary, dpi=150)
    tables.document.publish(name, rows, f"{_sweep_table(sweep, rows)}\n\n![{sweep.title}]({name}.png)")


def _compared(cells: Row, measured: Measured, reference: Measured | None, printed: float | None) -> Row:
    ratio = measured.rate / reference.rate if reference else None
    return cells | measured.numbers() | {"ratio_to_reference": ratio, "printed": printed}


def _makers_table(rows: Sequence[Row]) -> str:
    header = ["maker", "supervision", "category", "IoU", *CATEGORIES, "targets/s", "ratio", "paper"]
    lines = [
        [
            *(str(row[name]) for name in header[:3]),
            with_spread(row["iou"], row["iou_sd"]),
            *(shown(row[f"iou_{name}"], 3) for name in CATEGORIES),
            shown(row["targets_per_s"], 0),
            shown(row["ratio_to_reference"], 2),
            shown(row["printed"], 4),
        ]
        for row in rows
    ]
    return markdown(header, lines)


def _legend(tables: Tables) -> str:
    names = tables.frames.names
    same = len(names) == _PRINTED_IMAGES and all(re.fullmatch(r"Misc_\d+", name) for name in names)
    remark = _FITTED if same else "These values are not for the images measured here."
    return (
        f"K = {tables.trials}. IoU: mean and standard deviation over {tables.seeds} seeds; then by category, "
        "that of the targets' true areas. targets/s: placing, clustering and refining, without files, "
        "start-up and compilation; ratio: to the CPU reference's in this run, on the same windows. "
        "category: that which the labels depend on, given = by the true area. paper: IoU printed by Li et "
        f"al. for NUAA-SIRST. {remark}"
    )


def _sweep_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(str(row[sweep.series]) for row in rows))
    cells = {(row[sweep.series], row[sweep.x]): with_spread(row["iou"], row["iou_sd"]) for row in rows}
    values = dict.fromkeys(row[sweep.x] for row in rows)
    lines = [[str(value), *(cells[name, value] for name in names)] for value in values]
    return markdown([sweep.x, *(f"{sweep.series}: {name}" for name in names)], lines)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.label_tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    sets = parser.add_argument_group("several data sets")
    sets.add_argument(
        "--set",
        type=Path,
        action="append",
        default=[],
        help="folder with images/, masks/ and split lists; repeatable",
    )
    sets.add_argument("--split", choices=("train", "test"), default="train", help="images (%(default)s)")
    sets.add_argument(
        "--clicks",
        default=",".join(CLICKS),
        help="click files or folders of each set, and jitters of simulated clicks in px (%(default)s)",
    )
    sets.add_argument("--presets", default=",".join(COMPARED), help="presets to compare (%(default)s)")
    one = parser.add_argument_group("one data set")
    one.add_argument("--images", type=Path, help="folder of images")
    one.add_argument("--masks", type=Path, help="folder of true masks")
    one.add_argument("--list", type=Path, help="text file of image names, one a line; default: all images")
    one.add_argument("--only", default=",".join(TABLES), help="tables, with commas (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and plots")
    parser.add_argument("--seeds", type=int, default=5, help="runs of every setting, with seeds from 0 (5)")
    parser.add_argument("--trials", type=int, default=100, help="trials per target, K (100)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the tables; return 0, or 2 for bad input with one line that says what is wrong."""
    options = _arguments(arguments)
    return exit_code(lambda: _measure(options, sys.argv[1:] if arguments is None else arguments))


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    if options.seeds < 1 or options.trials < 1:
        raise InputError(f"--seeds is {options.seeds}, --trials is {options.trials}: give 1 or more of each")
    device = pick_device(options.device)
    command = shlex.join(["python", "-m", "mclc_gpu.bench.label_tables", *arguments])
    about = f"{machine(device)}. {versions()}."
    document = Document(options.out, [f"# Pseudo masks\n\n```sh\n{command}\n```\n\n{about}\n"])
    start = time.perf_counter()
    if options.set and (options.images or options.masks or options.list):
        raise InputError("--set and --images, --masks or --list exclude each other; give either")
    if options.set:
        _measure_sets(options, document, device)
    elif options.images and options.masks:
        _measure_one(options, document, device)
    else:
        raise InputError("no data set is named; give --set, or --images and --masks")
    print(f"all in {time.perf_counter() - start:.0f} s: {options.out / 'tables.md'}", file=sys.stderr)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _measure_sets(options: argparse.Namespace, document: Document, device: torch.device) -> None:
    presets = _split(options.presets)
    if unknown := [name for name in presets if name not in COMPARED]:
        raise InputError(f"--presets {unknown[0]!r}: use some of {', '.join(COMPARED)}")
    clicks = _split(options.clicks)
    if not presets or not clicks:
        raise InputError("--presets or --clicks is empty: name at least one of each")
    sets = [read_label_set(root, options.split, clicks, options.seeds) for root in options.set]
    rows = measure_sets(sets, presets, options.trials, options.seeds, device)
    text = f"{sets_table(rows)}\n\n{sets_legend(options.split, options.trials, options.seeds)}"
    document.publish("sets", rows, text)
    print(text, flush=True)


def _measure_one(options: argparse.Namespace, document: Document, device: torch.device) -> None:
    chosen = _split(options.only)
    if unknown := [name for name in chosen if name not in TABLES]:
        raise InputError(f"--only {unknown[0]!r}: use some of {', '.join(TABLES)}")
    images, truth = read_set(options.images, options.masks, options.list)
    frames = Frames(list(images), list(images.values()), [truth[name] for name in images])
    targets = sum(map(len, frames.points(0)))
    if not targets:
        raise InputError(f"{options.masks}: no mask holds a target; check the folder")
    document.text.append(f"{len(frames.names)} images, {targets} targets.\n")
    tables = Tables(frames, options.trials, options.seeds, device, document)
    for name in TABLES:
        if name == "makers" and name in chosen:
            measure_makers(tables)
        elif name in chosen:
            measure_sweep(tables, name, SWEEPS[name])


if __name__ == "__main__":
    sys.exit(main())
