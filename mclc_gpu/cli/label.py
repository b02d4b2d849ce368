"""mclc-gpu label."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclc_gpu.cli.common import say_skipped
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.files import read_json
from mclc_gpu.data.images import find_files
from mclc_gpu.data.points import read_points
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.distributed import Ranks, join
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.labels.config import PRESETS, LabelConfig, changed, unused_settings
from mclc_gpu.labels.folder import LAYOUT
from mclc_gpu.labels.run import LabelJob, label_folder
from mclc_gpu.report.page import REPORT, report_labels
from mclc_gpu.report.sheets import write_overview
from mclc_gpu.runs import keep_apart, locked

_OPTIONS_OF = {
    "trial": ("--method", "--clusters", "--compactness", "--noise", "--intensity"),
    "components": ("--polarity",),
    "threshold": ("--threshold",),
    "stop_change": ("--stop-change",),
    "crf": ("--crf-iterations", "--crf-gaussian", "--crf-bilateral"),
}


def label(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    _, summary = label_set(arguments, started, join(arguments.device), report=not arguments.no_report)
    return len(summary["skipped"])


def label_set(
    arguments: argparse.Namespace, started: float, ranks: Ranks, report: bool = True
) -> tuple[Mapping[str, Path], dict[str, Any]]:
    """Label one set of images as the options say, and report on it unless told not to.

    Returns the images by stem, and label.json's content.
    """
    keep_apart(
        "--out",
        LAYOUT.places(arguments.out),
        (arguments.images, arguments.points, arguments.points_from_masks),
    )
    config = label_config(arguments)
    files = find_files(arguments.images)
    images, skipped = listed(files, arguments.list, arguments.images)
    points, truth, problems = _points(arguments, files, images)
    job = LabelJob(
        images=images,
        points=points,
        out=arguments.out,
        config=config,
        seed=arguments.seed,
        device=arguments.device,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        shards=arguments.shards,
        source=_source(arguments, truth is not None),
        skipped=[*skipped, *problems],
        started=started,
    )
    with locked(arguments.out, LAYOUT.kind, ranks.on_main):
        summary = label_folder(job, ranks)
        if ranks.main:
            _look(job, summary, truth, report)
    return images, summary


def _look(job: LabelJob, summary: Mapping[str, Any], truth: Mapping[str, Path] | None, report: bool) -> None:
    """Draw the overview, say how it went, and write the report if it is wanted."""
    title = f"{summary['images']} images, {summary['targets']} targets, {job.config.maker}"
    if job.config.trials:
        title += f", {job.config.trials} trials"
    write_overview(job.out, job.images, job.seed, title, truth)
    _report(job.out, summary)
    if report:
        check = report_labels(job.out, job.images, truth)
        print(f"{check.doubtful} targets to look at first, see {job.out / REPORT}")


def label_config(arguments: argparse.Namespace) -> LabelConfig:
    """The preset, or the settings of a file, with what the options change of it."""
    base = PRESETS[arguments.preset] if arguments.config is None else read_config(arguments.config)
    gaussian_sxy, gaussian_compat = arguments.crf_gaussian or (None, None)
    bilateral_sxy, bilateral_srgb, bilateral_compat = arguments.crf_bilateral or (None, None, None)
    config = changed(
        base,
        **_given(
            trials=arguments.trials,
            category=arguments.category,
            refine=arguments.refine,
            threshold=arguments.threshold,
            stop_change=arguments.stop_change,
        ),
        trial=_given(
            method=arguments.method,
            clusters=arguments.clusters,
            compactness=arguments.compactness,
            noise=arguments.noise,
            intensity=arguments.intensity,
        ),
        components=_given(polarity=arguments.polarity),
        crf=_given(
            gaussian_sxy=gaussian_sxy,
            gaussian_compat=gaussian_compat,
            bilateral_sxy=bilateral_sxy,
            bilateral_srgb=bilateral_srgb,
            bilateral_compat=bilateral_compat,
            iterations=arguments.crf_iterations,
        ),
    )
    _refuse_without_effect(arguments, config)
    return config


def _refuse_without_effect(arguments: argparse.Namespace, config: LabelConfig) -> None:
    """Raise InputError for a given option that has no effect."""
    unused = unused_settings(config)
    for part, options in _OPTIONS_OF.items():
        for option in options if part in unused else ():
            if getattr(arguments, option.removeprefix("--").replace("-", "_")) is not None:
                raise InputError(f"{option} {unused[part]}; remove it")


def read_config(path: Path) -> LabelConfig:
    """Settings of a JSON file: a whole label config by itself, or under "settings" as label.json has it.

    Raises InputError for a file that cannot be read or holds none.
    """
    try:
        content = read_json(path, "give what tune wrote, or a label.json")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path of --config") from error
    settings = content.get("settings", content)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no label settings; give what tune wrote, or a label.json")
    try:
        return LabelConfig.from_settings(settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _source(arguments: argparse.Namespace, simulated: bool) -> str:
    kind = arguments.supervision
    if simulated and kind == "multi-point":
        kind += f" ({arguments.clicks} clicks)"
    return f"{kind}, simulated from masks, jitter {arguments.jitter:g} px" if simulated else f"{kind}, given"


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _points(
    arguments: argparse.Namespace, files: Mapping[str, Path], images: Mapping[str, Path]
) -> tuple[Mapping[str, Sequence[Point]], Mapping[str, Path] | None, list[Skipped]]:
    """Points by stem, the true masks if that is where they come from, and what was left out."""
    if arguments.points_from_masks is not None:
        masks = find_files(arguments.points_from_masks)
        points, problems = simulate_points(
            masks,
            images,
            jitter=arguments.jitter,
            seed=arguments.seed,
            supervision=arguments.supervision,
            clicks=arguments.clicks,
        )
        return points, masks, problems
    if arguments.jitter:
        raise InputError(f"--jitter {arguments.jitter:g}: only simulated clicks can be displaced; drop it")
    points, problems = read_points(arguments.points, files, arguments.supervision)
    if not points:
        why = f"{problems[0].file}: {problems[0].why}" if problems else "it names no image"
        raise InputError(f"{arguments.points}: no usable point ({why})")
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
