"""Run ``mclc-gpu show``: draw targets of a label run from click to mask."""

import sys
from pathlib import Path

from mclc_gpu.cli.commands import ShowOptions
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.files import atomic_path
from mclc_gpu.data.names import find_files
from mclc_gpu.errors import InputError
from mclc_gpu.labels.folder import LAYOUT, LabelRun, Target
from mclc_gpu.labels.replay import find_targets, rank_targets, trace_targets
from mclc_gpu.report.sheets import evenly_spread, mask_facts, trace_sheet
from mclc_gpu.runs import keep_apart

_SPREAD = 6  # targets shown when none are named
_MOST = 48


def show(options: ShowOptions, started: float) -> int:
    """Run the command; return the number of skipped inputs, which is 0."""
    del started
    _check_out(options)
    truths = {} if options.truth is None else find_files(options.truth)
    run = LabelRun.open(options.labels, find_files(options.images), truths)
    traces = trace_targets(run, _chosen(options, run), options.device)
    with atomic_path(options.out) as temporary:
        trace_sheet(traces, run.config, _title(run)).save(temporary)
    for trace in traces:
        print(f"{trace.target}: {',  '.join(mask_facts(trace.mask, trace.truth))}")
        if trace.changed:
            print(
                f"{trace.target}: {trace.changed} px of the mask are not as in "
                f"{run.mask(trace.target.stem)}: the image, the code or the device has changed since",
                file=sys.stderr,
            )
    print(f"{len(traces)} targets -> {options.out}")
    return 0


def _check_out(options: ShowOptions) -> None:
    """Raise InputError if the figure would replace an input or is no PNG file."""
    out: Path = options.out
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the figure is a PNG file; give a name that ends in .png")
    read = LAYOUT.places(options.labels)[1:]
    keep_apart("--out", (out, out.resolve().parent), (options.images, options.truth, *read))


def _chosen(options: ShowOptions, run: LabelRun) -> list[Target]:
    """Return the targets to draw, each once: those named, then the worst, then the best."""
    stems, _ = listed({stem: Path(stem) for stem in run.rows}, options.list, options.labels)
    targets = [target for word in options.target for target in find_targets(run, word)]
    counts = {"--worst": options.worst, "--best": options.best}
    asked = {option: count for option, count in counts.items() if count is not None}
    for option, count in asked.items():
        if count < 1:
            raise InputError(f"{option} {count}: give at least 1")
        if options.truth is None:
            raise InputError(f"{option} ranks masks by their IoU with the truth; give --truth too")
    if asked:
        ranked = [target for _, target in rank_targets(run, stems)]
        targets += ranked[: options.worst or 0] + ranked[::-1][: options.best or 0]
    elif not targets:
        candidates = [target for target in run.targets() if target.stem in stems]
        if not candidates:
            raise InputError(f"{options.labels}: no target to show in the images of the list")
        targets = [candidates[at] for at in evenly_spread(len(candidates), _SPREAD)]
    targets = list(dict.fromkeys(targets))
    if len(targets) > _MOST:
        raise InputError(f"{len(targets)} targets do not fit in one figure; choose at most {_MOST}")
    return targets


def _title(run: LabelRun) -> str:
    """Describe the run: label maker or trials, and the seed."""
    config, trial = run.config, run.config.trial
    method = config.maker
    if "trial" in config.entry.uses:
        noise = "no noise" if trial.noise == "none" else f"{trial.noise} {trial.intensity:g}"
        trials = f"{config.trials} trial{'s' if config.trials > 1 else ''}"
        method = f"{trials}, {trial.method} of {trial.clusters} clusters, {noise}"
    return f"{run.folder.resolve().name}: {method}, seed {run.seed}"
