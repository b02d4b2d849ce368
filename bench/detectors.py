"""Detectors trained with the fast schedule and with each part of it switched off or replaced.

    python -m mclc_gpu.bench.detectors --set NUAA-SIRST/ --clicks masks_centroid --mpixels 100 --out DIR

Every training is a cell, kept as DIR/cells/SET-CLICKS/NAME.json; a command that was killed continues where it
stopped, inside a training too. DIR/detectors.md, detectors.csv and curves.png are written after each cell.
Recipes are compared on images of the train split that are held out in turn (--on held-out); --on test trains
on all of it and scores on the test split.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from matplotlib.figure import Figure

from mclc_gpu.bench.compare import Row, exit_code, machine, markdown, shown, versions, write_rows
from mclc_gpu.bench.paper_cells import Cell, Cells
from mclc_gpu.data.datasets import find_split, read_list
from mclc_gpu.data.files import atomic_path
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.detect.config import THRESHOLD, EvaluateOptions, used_threshold
from mclc_gpu.detect.evaluate import Evaluation, evaluate_images
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.runs import locked
from mclc_gpu.score.roc import Roc
from mclc_gpu.train.config import DataSet, FastConfig, TrainConfig, TrainOptions
from mclc_gpu.train.fit import train_detector

TRUE_MASKS = "masks"  # as clicks: the true masks themselves
ON = ("held-out", "test")
FULL = "full recipe"
# Changes to the settings of the full recipe, by the name of the row.
PARTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "one stage of 256 px": {"stages": "256:1"},
    "crops anywhere": {"target_share": 0.0},
    "no hard negatives": {"hard_share": 0.0},
    "no pasted targets": {"paste_share": 0.0},
    "no change of scale": {"scale_jitter": 0.0},
    "no change of gain": {"gain_jitter": 0.0},
    "soft-IoU alone": {"loss": "soft-iou"},
    "AdamW": {"optimizer": "adamw"},
    "no moving average": {"average": 0.0},
    "no prior": {"prior": 0.0},
    "no warm-up": {"warmup": 0.0},
    "norms never frozen": {"freeze": 1.0},
}
_FACTORS = {"iou": 100.0, "pd": 100.0, "fa": 1e6}  # of the scores in the table
_SCORES = {"iou": "IoU", "pd": "Pd", "fa": "Fa"}
_KEPT = ("iou", "niou", "pd", "fa")
_POINTS = 21  # thresholds of the curves that cells keep


@dataclass(frozen=True)
class Split:
    """Images to train on and images to score on, as lists of names.

    Attributes
    ----------
    root : Path
        Folder of the data set.
    clicks : str
        Name of the file or folder of clicks below `root`, or `TRUE_MASKS`.
    train, score : Path
    """

    root: Path
    clicks: str
    train: Path
    score: Path

    @property
    def data(self) -> DataSet:
        """Training set."""
        source = {"masks" if self.clicks == TRUE_MASKS else "points": self.root / self.clicks}
        return DataSet(self.root / "images", list=self.train, **source)


@dataclass(frozen=True)
class Recipe:
    """Row of the table: a training recipe with some seeds on one data set."""

    data: str
    name: str
    cells: tuple[Cell, ...]


def changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Return a training configuration with other values of its own fields or those of its fast schedule.

    Raises
    ------
    InputError
        There is no such field, or a value is out of range.
    """
    fast = {item.name for item in fields(FastConfig)}
    own = {item.name for item in fields(TrainConfig)}
    if unknown := changes.keys() - fast - own:
        raise InputError(f"{min(unknown)}: no setting of training; there are {', '.join(sorted(fast | own))}")
    inner = replace(config.fast, **{name: value for name, value in changes.items() if name in fast})
    return replace(config, fast=inner, **{name: value for name, value in changes.items() if name not in fast})


_BOOLEANS = {"True": True, "False": False}


def parsed_variant(text: str) -> tuple[str, dict[str, Any]]:
    """Read "NAME: field=value, field=value" as the name of a row and its changes.

    Examples
    --------
    >>> from mclc_gpu.bench.detectors import parsed_variant
    >>> parsed_variant("scaled: scale_jitter=0.4, optimizer=adam")
    ('scaled', {'scale_jitter': 0.4, 'optimizer': 'adam'})
    """
    hints = {**get_type_hints(FastConfig), **get_type_hints(TrainConfig)}
    name, colon, rest = text.partition(":")
    changes: dict[str, Any] = {}
    for part in rest.split(";" if ";" in rest else ","):
        setting, equals, value = (word.strip() for word in part.partition("="))
        if not (colon and equals and name.strip()):
            raise InputError(f"--variant {text!r}: give NAME: setting=value, setting=value")
        kind = next(iter(get_args(hints.get(setting, str))), hints.get(setting, str))
        try:
            changes[setting] = _BOOLEANS[value] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            raise InputError(f"--variant {text!r}: {value!r} is no value of {setting}") from error
    return name.strip(), changes


def make_split(root: Path, clicks: str, on: str, fold: int, folds: int, lists: Path) -> Split:
    """Write the lists of a split and return it; every `folds`-th train image from `fold` on is held out."""
    train = find_split(root, "train")
    if on == "test":
        return Split(root, clicks, train, find_split(root, "test"))
    names = read_list(train)
    if len(names) < 2 * folds:
        raise InputError(f"{train}: {len(names)} names are too few for {folds} folds; use fewer --folds")
    parts = {
        "train": [name for place, name in enumerate(names) if place % folds != fold],
        "held-out": names[fold::folds],
    }
    paths = {}
    for part, own in parts.items():
        paths[part] = lists / f"{root.resolve().name}-fold-{fold + 1}-of-{folds}-{part}.txt"
        with atomic_path(paths[part]) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in own), encoding="utf-8")
    return Split(root, clicks, paths["train"], paths["held-out"])


def make_cell(name: str, split: Split, config: TrainConfig, device: str) -> Cell:
    """Return the measurement of one training."""
    about = {"root": str(split.root.resolve()), "clicks": split.clicks}
    lists = {part: list(read_list(path)) for part, path in (("train", split.train), ("score", split.score))}
    settings = {**about, **lists, "training": config.settings()}
    return Cell(name, settings, partial(_measure, split, config, device))


def _measure(split: Split, config: TrainConfig, device: str, folder: Path) -> dict[str, Any]:
    fitted = train_detector(TrainOptions([split.data], folder / "run", config, device=device, resume=True))
    options = EvaluateOptions(
        checkpoint=fitted.best,
        images=split.root / "images",
        masks=split.root / "masks",
        list=split.score,
        device=device,
    )
    trained = load_checkpoint(fitted.best, "cpu")
    threshold = used_threshold(None, trained.threshold)
    evaluation, flipped = evaluate_images(options), evaluate_images(replace(options, tta="flips"))
    curve = evaluation.roc.compute()
    return {
        "threshold": threshold.value,
        "threshold_from": threshold.source,
        "single": _kept(evaluation),
        "flips": _kept(flipped),
        "half": _at(curve, THRESHOLD),
        "curve": _sampled(curve),
        "curve_flips": _sampled(flipped.roc.compute()),
        "epoch": trained.state["epoch"],
        "collapsed": fitted.collapsed,
        "rows": fitted.rows,
    }


def _kept(evaluation: Evaluation) -> dict[str, float | None]:
    values: dict[str, Any] = evaluation.scores.compute().as_dict()
    return {name: values[name] for name in _KEPT}


def _at(roc: Roc, threshold: float) -> dict[str, float | None]:
    """Return the scores at the nearest threshold of a curve."""
    place, whole = int(np.abs(roc.thresholds - threshold).argmin()), roc.as_dict()
    return {name: whole[name][place] for name in ("thresholds", *_FACTORS)}


def _sampled(roc: Roc) -> dict[str, list[float | None]]:
    """Return scores at evenly spread thresholds."""
    points = [_at(roc, at) for at in np.linspace(0, 1, _POINTS)]
    return {name: [point[name] for point in points] for name in points[0]}


def table_rows(recipes: Iterable[Recipe], cells: Cells) -> list[Row]:
    """Return the rows of finished recipes: means and standard deviations over the seeds."""
    rows: list[Row] = []
    for recipe in recipes:
        found = [content for cell in recipe.cells if (content := cells.find(cell)) is not None]
        failed = [cells.failed[cell.name] for cell in recipe.cells if cell.name in cells.failed]
        row: Row = {
            "set": recipe.data,
            "recipe": recipe.name,
            "seeds": f"{len(found)} of {len(recipe.cells)}",
            "failed": failed[0] if failed else None,
            "threshold": _mean([one["threshold"] for one in found]),
        }
        for part in ("single", "flips", "half"):
            for score in ("iou", "pd", "fa"):
                values = [one[part][score] for one in found if one[part][score] is not None]
                row[f"{part}_{score}"] = _mean(values)
                row[f"{part}_{score}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        row["seconds"] = _mean([one["seconds"] for one in found])
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


_HEADINGS = {"single": "calibrated", "flips": "with flips", "half": "at 0.5"}


def table_text(rows: Sequence[Row]) -> str:
    """Format the rows as Markdown."""
    header = ["set, clicks", "recipe", "seeds", "threshold"]
    header += [f"{_SCORES[score]} {_HEADINGS[part]}" for part in _HEADINGS for score in _FACTORS]
    lines = []
    for row in rows:
        line = [str(row["set"]), str(row["recipe"]), str(row["seeds"]), shown(row["threshold"], 2)]
        for part in _HEADINGS:
            for score, factor in _FACTORS.items():
                mean, spread = row[f"{part}_{score}"], row[f"{part}_{score}_sd"]
                line.append(_with_spread(mean, spread, factor))
        lines.append([*line, shown(row["seconds"], 0)])
    return markdown([*header, "seconds"], lines, left=3)


def _with_spread(mean: Any, spread: Any, factor: float) -> str:
    if mean is None:
        return ""
    return f"{mean * factor:.1f}" + ("" if spread is None else f" ± {spread * factor:.1f}")


def plot_curves(path: Path, recipes: Iterable[Recipe], cells: Cells) -> None:
    """Draw IoU, Pd and Fa over the threshold, the mean of each recipe's finished seeds."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for recipe in recipes:
        found = [content["curve"] for cell in recipe.cells if (content := cells.find(cell)) is not None]
        if not found:
            continue
        for axis, (score, factor) in zip(axes, _FACTORS.items(), strict=True):
            values = np.array([one[score] for one in found], np.float64).mean(axis=0) * factor
            axis.plot(found[0]["thresholds"], values, label=f"{recipe.data}: {recipe.name}", linewidth=1.3)
            axis.set(title=_SCORES[score], xlabel="threshold")
    axes[2].set_yscale("symlog", linthresh=1.0)
    if axes[0].get_lines():
        figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.detectors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--set",
        type=Path,
        action="append",
        required=True,
        help="folder with images/, masks/, clicks and split lists; repeatable",
    )
    add(
        "--clicks",
        action="append",
        help=f"click file or folder of each set, or {TRUE_MASKS} for the true masks; repeatable "
        "(masks_centroid)",
    )
    add("--network", default="acm", help="network to train (%(default)s)")
    add("--mpixels", type=float, default=400.0, help="budget in million pixels of crops (%(default)g)")
    add("--seeds", type=int, default=3, help="trainings of each recipe, with seeds from 0 (%(default)s)")
    add(
        "--on",
        choices=ON,
        default=ON[0],
        help="score on train images that are held out in turn, or on the test split (%(default)s)",
    )
    add("--folds", type=int, default=4, help="seed S holds out fold S of so many (%(default)s)")
    add("--part", action="append", help=f"recipes to train: {', '.join(PARTS)}; repeatable (all)")
    add(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE,...",
        help="another recipe, by its changes to the settings of training; with ; between them, values may "
        "hold commas; repeatable",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--out", type=Path, required=True, help="folder for tables and cells")
    return parser.parse_args(arguments)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the tables; return 0, or 2 for bad input with one line that says what is wrong."""
    options = _arguments(arguments)
    return exit_code(lambda: _run(options, sys.argv[1:] if arguments is None else arguments))


def _recipes(options: argparse.Namespace) -> list[Recipe]:
    """Return the recipes of all sets, the seeds of each as cells."""
    chosen = options.part or ([] if options.variant else [*PARTS])
    if unknown := [name for name in chosen if name not in PARTS]:
        raise InputError(f"--part {unknown[0]!r}: use some of {', '.join(PARTS)}")
    if options.seeds < 1 or options.folds < 2:
        raise InputError(
            f"--seeds is {options.seeds}, --folds is {options.folds}: give 1 seed and 2 folds or more"
        )
    changes = {name: PARTS[name] for name in chosen} | dict(map(parsed_variant, options.variant))
    base = TrainConfig(options.network, schedule="fast", mpixels=options.mpixels)
    recipes = []
    for root in options.set:
        for clicks in options.clicks or ["masks_centroid"]:
            data = f"{root.resolve().name}, {clicks}"
            for name, of_recipe in changes.items():
                cells = []
                for seed in range(options.seeds):
                    fold = seed % options.folds
                    split = make_split(root, clicks, options.on, fold, options.folds, options.out / "lists")
                    config = replace(changed(base, of_recipe), seed=seed)
                    parts = (options.network, name, f"{options.mpixels:g}-Mpixel", options.on, f"seed-{seed}")
                    key = "-".join(parts).replace(" ", "-")
                    cells.append(make_cell(f"{data.replace(', ', '-')}/{key}", split, config, options.device))
                recipes.append(Recipe(data, name, tuple(cells)))
    return recipes


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    device = pick_device(options.device)
    command = shlex.join(["python", "-m", "mclc_gpu.bench.detectors", *arguments])
    head = f"# Detectors\n\n```sh\n{command}\n```\n\n{machine(device)}. {versions()}."
    with locked(options.out, "bench"):
        recipes, cells = _recipes(options), Cells(options.out)
        # All recipes with the first seed, then with the second: an early look compares all of them.
        order = [cell for of_seed in zip(*(one.cells for one in recipes), strict=True) for cell in of_seed]
        for place, cell in enumerate(order, 1):
            print(f"detectors: {place} of {len(order)}: {cell.name}", file=sys.stderr, flush=True)
            cells.measure(cell)
            text = _publish(options, recipes, cells, head)
    print(text)


def _publish(options: argparse.Namespace, recipes: Sequence[Recipe], cells: Cells, head: str) -> str:
    """Write the table, its numbers and the curves as they stand; return the table."""
    rows = table_rows(recipes, cells)
    write_rows(options.out / "detectors.csv", rows)
    plot_curves(options.out / "curves.png", recipes, cells)
    where = (
        "the test split" if options.on == "test" else f"held-out train images (1 of {options.folds} folds)"
    )
    legend = (
        f"{options.network}, {options.mpixels:g} Mpixel of crops for each training, scored on {where} "
        "against true masks: IoU and Pd in percent, Fa in false-alarm pixels per million, mean and standard "
        "deviation over the seeds. calibrated: at the checkpoint's own threshold; with flips: the same "
        "threshold, mean over four flips. seconds: labels, training and scoring."
    )
    failed = "".join(f"\n\n{row['recipe']}: not measured: {row['failed']}" for row in rows if row["failed"])
    table = table_text(rows)
    with atomic_path(options.out / "detectors.md") as temporary:
        text = f"{head}\n\n{table}\n\n{legend}{failed}\n\n![Scores over the threshold](curves.png)\n"
        temporary.write_text(text, encoding="utf-8")
    return f"{table}\n\n{legend}{failed}"


if __name__ == "__main__":
    sys.exit(main())
