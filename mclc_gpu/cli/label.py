"""mclc-gpu label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclc_gpu.cli.commands import LabelArguments
from mclc_gpu.cli.common import say_skipped
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.images import find_files
from mclc_gpu.data.points import read_points
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.distributed import Ranks, join
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.labels.config import LabelOptions
from mclc_gpu.labels.folder import LAYOUT, open_labels
from mclc_gpu.labels.run import LabelJob, label_folder
from mclc_gpu.report.page import REPORT, report_labels
from mclc_gpu.report.sheets import write_overview
from mclc_gpu.runs import keep_apart, locked


def label(options: LabelArguments, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    _, summary = label_set(options, started, join(options.device), report=options.report)
    return len(summary["skipped"])


def label_set(
    options: LabelOptions, started: float, ranks: Ranks, report: bool = True
) -> tuple[Mapping[str, Path], dict[str, Any]]:
    """Label one set of images as the options say, and report on it unless told not to.

    Returns the images by stem, and label.json's content.
    """
    keep_apart(
        "--out",
        LAYOUT.places(options.out),
        (options.images, options.points, options.points_from_masks),
    )
    files = find_files(options.images)
    images, skipped = listed(files, options.list, options.images)
    points, truth, problems = _points(options, files, images)
    job = LabelJob(
        images=images,
        points=points,
        out=options.out,
        config=options.config,
        seed=options.seed,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
        shards=options.shards,
        source=_source(options, truth is not None),
        skipped=[*skipped, *problems],
        started=started,
    )
    with locked(options.out, LAYOUT.kind, ranks.on_main):
        summary = label_folder(job, ranks)
        if ranks.main:
            _look(job, summary, truth, report)
    return images, summary


def _look(job: LabelJob, summary: Mapping[str, Any], truth: Mapping[str, Path] | None, report: bool) -> None:
    """Draw the overview, say how it went, and write the report if it is wanted."""
    title = f"{summary['images']} images, {summary['targets']} targets, {job.config.maker}"
    if job.config.trials:
        title += f", {job.config.trials} trials"
    labels = open_labels(job.out)
    write_overview(labels, job.images, title, truth)
    _report(job.out, summary)
    if report:
        check = report_labels(labels, job.images, truth)
        print(f"{check.flagged} targets to review first, see {job.out / REPORT}")


def _source(options: LabelOptions, simulated: bool) -> str:
    kind = options.supervision
    if simulated and kind == "multi-point":
        kind += f" ({options.clicks} clicks)"
    return f"{kind}, simulated from masks, jitter {options.jitter:g} px" if simulated else f"{kind}, given"


def _points(
    options: LabelOptions, files: Mapping[str, Path], images: Mapping[str, Path]
) -> tuple[Mapping[str, Sequence[Point]], Mapping[str, Path] | None, list[Skipped]]:
    """Points by stem, the true masks if that is where they come from, and what was left out."""
    if options.points_from_masks is not None:
        masks = find_files(options.points_from_masks)
        points, problems = simulate_points(
            masks,
            images,
            jitter=options.jitter,
            seed=options.seed,
            supervision=options.supervision,
            clicks=options.clicks,
        )
        return points, masks, problems
    if options.jitter:
        raise InputError(f"--jitter {options.jitter:g}: only simulated clicks can be displaced; drop it")
    assert options.points is not None
    points, problems = read_points(options.points, files, options.supervision)
    if not points:
        why = f"{problems[0].file}: {problems[0].why}" if problems else "it names no image"
        raise InputError(f"{options.points}: no usable point ({why})")
    return points, None, problems


def _report(out: Path, summary: Mapping[str, Any]) -> None:
    skipped = [Skipped(**item) for item in summary["skipped"]]
    say_skipped(skipped, out / "label.json")
    seconds = summary["seconds"]
    stages = ", ".join(f"{stage} {seconds[stage]:.2f} s" for stage in ("read", "cluster", "refine", "write"))
    work = seconds["cluster"] + seconds["refine"]
    if not work:
        rate = "nothing left to label"
    elif summary["trials_per_s"]:
        rate = f"{summary['trials_per_s']:,.0f} trials/s"
    else:
        rate = f"{summary['targets_per_s']:,.0f} targets/s"
    estimated = summary["estimated_categories"]
    trials = f", {summary['trials']} trials" if summary["trials"] else ""
    print(f"{summary['images']} images, {summary['targets']} targets{trials} -> {out}")
    print(
        f"{seconds['total']:.2f} s ({stages}), {rate} on {summary['device']}; "
        f"start-up {seconds['startup']:.2f} s"
    )
    if estimated:
        print(f"category estimated for {estimated} of {summary['targets']} targets")
    if skipped:
        print(f"{len(skipped)} inputs skipped")
