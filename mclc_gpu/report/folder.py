"""Write the report folder of an evaluation or a training run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.data.datasets import Sample, ValidationSet
from mclc_gpu.data.files import atomic_path, write_csv, write_json
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.detect.config import THRESHOLD, used_threshold
from mclc_gpu.detect.evaluate import score_network
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.report.plots import plot_curves, plot_roc
from mclc_gpu.report.sheets import Extremes, case_sheet, evenly_spread
from mclc_gpu.score.metrics import SCORES, Result, Scores
from mclc_gpu.score.roc import Roc, RocScores
from mclc_gpu.train.folder import METRICS
from mclc_gpu.train.folder import REPORT as RUN_REPORT

REPORT = "report.md"
_TABLE, _SCORES, _ROC = "images.csv", "scores.json", "roc.png"
_CURVES, _WORST, _BEST = "curves.png", "worst.png", "best.png"
FILES = (REPORT, _TABLE, _SCORES, _ROC, _CURVES, _WORST, _BEST)


def write_report(
    folder: Path,
    *,
    title: str,
    scores: Scores | None = None,
    roc: Roc | None = None,
    extremes: Extremes | None = None,
    metrics_csv: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    threshold: float = THRESHOLD,
) -> Path:
    """Write report.md, and the tables and figures that it shows, as far as their content is given.

    Parameters
    ----------
    folder : Path
        Created when missing; files of an older report are replaced.
    title : str
        First line of the report.
    scores : Scores, optional
        Content of images.csv, with a row per image, and of scores.json.
    roc : Roc, optional
        Content of roc.png, and of the curve in scores.json.
    extremes : Extremes, optional
        Content of worst.png and best.png.
    metrics_csv : Path, optional
        Table of a training run, drawn in curves.png.
    settings : mapping, optional
        Names and values to state, which may be nested.
    threshold : float, 0..1
        Threshold of the scores, which roc.png marks.

    Returns
    -------
    Path
        The file report.md.

    Raises
    ------
    InputError
        `metrics_csv` cannot be read.
    """
    lines = [f"# {title}", ""]
    result = None if scores is None else scores.compute()
    if scores is not None and result is not None:
        lines += _score_lines(result)
        write_json(folder / _SCORES, result.as_dict() | ({} if roc is None else {"roc": roc.as_dict()}))
        _write_images(folder / _TABLE, scores)
        lines += [f"Scores of each image: [{_TABLE}]({_TABLE}).", ""]
    if metrics_csv is not None:
        plot_curves(metrics_csv, folder / _CURVES)
        lines += ["## Training", "", f"![Loss and scores by epoch]({_CURVES})", ""]
    if roc is not None:
        plot_roc(roc, folder / _ROC, threshold=threshold)
        lines += ["## Over thresholds", "", "```", str(roc), "```", ""]
        lines += [f"![Pd over Fa, and scores by pixel over the threshold]({_ROC})", ""]
    if extremes is not None:
        lines += ["## Images", ""]
        for name, heading, cases in (
            (_WORST, "Lowest IoU", extremes.worst()),
            (_BEST, "Highest IoU", extremes.best()),
        ):
            with atomic_path(folder / name) as temporary:
                case_sheet(cases, heading).save(temporary)
            lines += [f"![{heading}]({name})", ""]
    if settings:
        lines += ["## Settings", "", *_table(("setting", "value"), _flat(settings)), ""]
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
    return folder / REPORT


def _score_lines(result: Result) -> list[str]:
    """Format scores as lines of Markdown."""
    numbers = {SCORES[name].heading: SCORES[name].text(value) for name, value in result.values.items()}
    lines = [f"{result.summary()}; convention {result.convention}.", ""]
    lines += [*_table(tuple(numbers), [tuple(numbers.values())]), ""]
    if result.categories:
        shown = [score for score in SCORES.values() if score.by_category]
        rows = [
            (
                category,
                *(SCORES[name].text(value) for name, value in one.values.items()),
                f"{one.detected} of {one.targets}",
            )
            for category, one in result.categories.items()
        ]
        lines += [*_table(("targets", *(score.heading for score in shown), "detected"), rows), ""]
    return lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table as lines."""
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _flat(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """List names and values of nested settings, the names joined by dots."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        inside = isinstance(value, Mapping) and value
        rows += _flat(value, f"{above}{name}.") if inside else [(f"{above}{name}", str(value))]
    return rows


def _write_images(path: Path, scores: Scores) -> None:
    columns = ("image", "iou", "targets", "detected", "false_alarm_pixels", "true", "predicted")
    rows = []
    for one in scores.images:
        iou = "" if math.isnan(one.iou) else f"{one.iou:.6f}"
        counts = [one.targets, one.detected, one.false_alarm_pixels, one.true, one.predicted]
        rows.append([one.name, iou, *counts])
    write_csv(path, columns, rows)


_SHOWN = 200  # training images in a report without a validation set


def report_run(
    out: Path, checkpoint: Path, train: Sequence[Sample], validation: Sequence[Sample], device: torch.device
) -> tuple[Path, Scores]:
    """Write the report of a training run: curves, scores, ROC and the best and worst images.

    Parameters
    ----------
    out : Path
        Folder of the run; the report is in its folder ``report``.
    checkpoint : Path
        Detector to score.
    train, validation : sequence of Sample
        The report is on the validation set or, without one, on up to 200 images spread evenly over the
        training set, whose masks the network has learned.
    device : torch.device

    Returns
    -------
    Path
        The file report.md.
    Scores
        Scores in the report.

    Raises
    ------
    InputError
        The checkpoint, an image or the run's metrics.csv cannot be read.
    """
    trained = load_checkpoint(checkpoint, device)
    samples = validation
    if not validation:
        samples = [train[index] for index in evenly_spread(len(train), _SHOWN)]
    predictor = Predictor(trained.network, trained.normalization, amp=trained.settings["amp"])
    extremes, roc = Extremes(), RocScores()
    threshold = used_threshold(None, trained.threshold).value
    scored = ValidationSet(samples, budget=0)
    scores = score_network(predictor, scored, threshold=threshold, roc=roc, callback=extremes)
    shown = "validation" if validation else "training"
    report = write_report(
        out / RUN_REPORT,
        title=f"{trained.name}, epoch {trained.state['epoch']}, on its {shown} set",
        scores=scores,
        roc=roc.compute(),
        extremes=extremes,
        metrics_csv=out / METRICS,
        settings=trained.settings,
        threshold=threshold,
    )
    return report, scores
