"""mclc-gpu train."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mclc_gpu.cli.commands import TrainArguments
from mclc_gpu.cli.common import say_skipped
from mclc_gpu.cli.label import label_and_report
from mclc_gpu.data.datasets import Sample, listed, pair_samples
from mclc_gpu.data.images import find_files
from mclc_gpu.distributed import Ranks, join
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.labels.config import LabelOptions
from mclc_gpu.report.folder import report_run
from mclc_gpu.runs import keep_apart, locked
from mclc_gpu.train.config import DataSet
from mclc_gpu.train.fit import EVENTS, KIND, LABELS, REPORT, Fitted, check_run, fit


def train(options: TrainArguments, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    validation, skipped = _validation(options.validation)
    out = options.out
    inputs = [path for one in (*options.sets, *options.validation) for path in (one.images, one.source)]
    keep_apart("--out", (out, out / REPORT, out / EVENTS), inputs)
    ranks = join(options.device)
    check_run(options.config, options.out, ranks, options.resume, options.overwrite)
    # From here on: another run must not label anew what this one trains on.
    with locked(options.out, KIND, ranks.on_main):
        return _train(options, validation, skipped, started, ranks)


def _train(
    options: TrainArguments,
    validation: Sequence[Sample],
    skipped: list[Skipped],
    started: float,
    ranks: Ranks,
) -> int:
    check_run(options.config, options.out, ranks, options.resume, options.overwrite)
    samples: list[Sample] = []
    accounts = []
    for number, one in enumerate(options.sets, 1):
        prefix = f"{number}/" if len(options.sets) > 1 else ""
        more, left_out, account = _samples(one, prefix, options, started, ranks)
        samples += more
        skipped += left_out
        accounts.append(account)
    fitted = fit(
        samples,
        options.config,
        options.out,
        validation=validation,
        ranks=ranks,
        resume=options.resume,
        overwrite=options.overwrite,
        about={"sets": accounts, "unpaired": [asdict(item) for item in skipped]},
    )
    ranks.on_main(lambda: _report(options.out, fitted, samples, validation, skipped, ranks))
    return len(skipped) + len(fitted.skipped) + sum(account["skipped"] for account in accounts)


def _samples(
    one: DataSet, prefix: str, options: TrainArguments, started: float, ranks: Ranks
) -> tuple[list[Sample], list[Skipped], dict[str, Any]]:
    """Return the samples of one data set, labeled first if it has points, what was skipped, and a summary."""
    account: dict[str, Any] = {"images": str(one.images), "list": None if one.list is None else str(one.list)}
    if one.masks is not None:
        samples, skipped = _listed(one, prefix)
        return samples, skipped, {**account, "masks": str(one.masks), "skipped": 0}
    of_labels = LabelOptions(
        **vars(options.labels),
        images=one.images,
        points=one.points,
        points_from_masks=one.points_from_masks,
        list=one.list,
        out=options.out / LABELS / prefix,
        seed=options.config.seed,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    run = label_and_report(of_labels, ranks, started)
    # What got no label was reported by the labelling.
    samples, _ = pair_samples(run.images, run.masks(), prefix)
    about = {name: run.summary[name] for name in ("settings", "fingerprint", "images", "targets")}
    return samples, [], {**account, "labels": about, "skipped": len(run.skipped)}


def _listed(one: DataSet, prefix: str) -> tuple[list[Sample], list[Skipped]]:
    """Return the samples of a data set with true masks, and what was skipped."""
    files, missing = listed(find_files(one.images), one.list, one.images)
    samples, unpaired = pair_samples(files, find_files(one.source), prefix)
    if not samples:
        raise InputError(
            f"{one.source}: holds no mask of an image in {one.images}; check the paths and lists"
        )
    return samples, [*missing, *unpaired]


def _validation(sets: Sequence[DataSet]) -> tuple[list[Sample], list[Skipped]]:
    """Return the samples to validate on, and what was skipped."""
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for number, one in enumerate(sets, 1):
        more, left_out = _listed(one, f"{number}/" if len(sets) > 1 else "")
        samples += more
        skipped += left_out
    return samples, skipped


def _report(
    out: Path,
    fitted: Fitted,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    skipped: Sequence[Skipped],
    ranks: Ranks,
) -> None:
    """Write the run's report and say how it went."""
    say_skipped([*skipped, *(Skipped(**item) for item in fitted.skipped)], out / "config.json")
    report, scores = report_run(out, fitted.best, samples, validation, ranks.device)
    what = "validation" if validation else "training images and their labels (there is no validation set)"
    print(f"epoch {fitted.best_epoch} of {len(fitted.rows)}, {what}:")
    print(scores.compute())
    print(f"{fitted.best}\nlook at {report}")
    if fitted.collapsed:
        print(
            "warning: the network of the last epoch marks no pixel as target. Look at the labels, train "
            "longer, or start anew with a lower --lr",
            file=sys.stderr,
        )
