"""mclc-gpu train."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mclc_gpu.cli.common import say_skipped
from mclc_gpu.cli.label import label_set
from mclc_gpu.cli.options import parser
from mclc_gpu.data.datasets import Sample, listed, pair_samples
from mclc_gpu.data.images import find_files
from mclc_gpu.distributed import Ranks, join
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.labels.folder import LabelStore
from mclc_gpu.report.folder import report_run
from mclc_gpu.runs import keep_apart, locked
from mclc_gpu.train.config import TrainConfig
from mclc_gpu.train.fit import EVENTS, KIND, LABELS, REPORT, Fitted, check_run, fit

_LABEL_OPTIONS = (
    "jitter", "supervision", "clicks", "preset", "config", "trials", "category", "refine", "threshold",
    "crf_iterations", "crf_gaussian", "crf_bilateral", "method", "noise", "intensity", "clusters",
    "compactness", "polarity", "shards", "stop_change",
)  # fmt: skip


def train(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    sets = _paired(arguments)
    if all(one.masks is not None for one in sets):
        _refuse_label_options(arguments)
    config = TrainConfig(
        network=arguments.network,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        size=arguments.size,
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        loss=arguments.loss,
        channels=arguments.channels,
        amp=arguments.amp,
        compile=arguments.compile,
        validate_every=arguments.val_every,
        seed=arguments.seed,
    )
    validation, skipped = _validation(arguments)
    inputs = [*arguments.images, *(path for _, path in arguments.sources)]
    out: Path = arguments.out
    written = (out, out / REPORT, out / EVENTS)
    keep_apart("--out", written, [*inputs, *arguments.val_images, *arguments.val_masks])
    ranks = join(arguments.device)
    check_run(config, arguments.out, ranks, arguments.resume, arguments.overwrite)
    # From here on: another run must not label anew what this one trains on.
    with locked(arguments.out, KIND, ranks.on_main):
        return _train(arguments, sets, config, validation, skipped, started, ranks)


def _train(
    arguments: argparse.Namespace,
    sets: Sequence[argparse.Namespace],
    config: TrainConfig,
    validation: Sequence[Sample],
    skipped: list[Skipped],
    started: float,
    ranks: Ranks,
) -> int:
    check_run(config, arguments.out, ranks, arguments.resume, arguments.overwrite)
    samples: list[Sample] = []
    accounts = []
    for number, one in enumerate(sets, 1):
        more, left_out, account = _samples(one, number if len(sets) > 1 else None, arguments, started, ranks)
        samples += more
        skipped += left_out
        accounts.append(account)
    fitted = fit(
        samples,
        config,
        arguments.out,
        validation=validation,
        ranks=ranks,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        about={"sets": accounts, "unpaired": [asdict(item) for item in skipped]},
    )
    ranks.on_main(lambda: _report(arguments.out, fitted, samples, validation, skipped, ranks))
    return len(skipped) + len(fitted.skipped) + sum(account["skipped"] for account in accounts)


def _refuse_label_options(arguments: argparse.Namespace) -> None:
    """See that none of them is given where nothing is labelled."""
    plain = parser().parse_args(["label", "--images", ".", "--points", ".", "--out", "."])
    for name in _LABEL_OPTIONS:
        if getattr(arguments, name) != getattr(plain, name):
            raise InputError(f"--{name.replace('_', '-')}: of labels that are made; --masks gives true ones")


def _paired(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each data set: its images, where its labels come from, and its list."""
    images, sources, lists = arguments.images, arguments.sources, arguments.list
    if len(images) != len(sources):
        raise InputError(
            f"{len(images)} --images but {len(sources)} of --points, --points-from-masks and --masks: "
            "give each set of images one of these, in the same order"
        )
    _same_number("--list", lists, "--images", images)
    return [
        argparse.Namespace(
            **{**vars(arguments), "points": None, "points_from_masks": None, "masks": None}
            | {"images": own, kind: path, "list": names}
        )
        for own, (kind, path), names in zip(images, sources, lists or [None] * len(images), strict=True)
    ]


def _same_number(option: str, paths: Sequence[Path], other: str, others: Sequence[Path]) -> None:
    if paths and len(paths) != len(others):
        raise InputError(
            f"{len(paths)} {option} but {len(others)} {other}: give one for each, in the same order, or none"
        )


def _samples(
    one: argparse.Namespace, number: int | None, arguments: argparse.Namespace, started: float, ranks: Ranks
) -> tuple[list[Sample], list[Skipped], dict[str, Any]]:
    """Samples of one data set, labelled first where it has points; what was left out; and its account."""
    prefix = "" if number is None else f"{number}/"
    account: dict[str, Any] = {"images": str(one.images), "list": None if one.list is None else str(one.list)}
    if one.masks is not None:
        samples, skipped = _listed(one.images, one.masks, one.list, prefix)
        return samples, skipped, {**account, "masks": str(one.masks), "skipped": 0}
    one.out = arguments.out / LABELS / prefix
    images, summary = label_set(one, started, ranks)
    # What got no label was reported by the labelling.
    samples, _ = pair_samples(images, LabelStore.open(one.out).masks(), prefix)
    about = {name: summary[name] for name in ("settings", "fingerprint", "images", "targets")}
    return samples, [], {**account, "labels": about, "skipped": len(summary["skipped"])}


def _listed(images: Path, masks: Path, names: Path | None, prefix: str) -> tuple[list[Sample], list[Skipped]]:
    """Samples of two folders, and what was left out."""
    files, missing = listed(find_files(images), names, images)
    samples, unpaired = pair_samples(files, find_files(masks), prefix)
    if not samples:
        raise InputError(f"{masks}: holds no mask of an image in {images}; check the paths and lists")
    return samples, [*missing, *unpaired]


def _validation(arguments: argparse.Namespace) -> tuple[list[Sample], list[Skipped]]:
    """Samples to validate on, and what was left out."""
    images, masks, lists = arguments.val_images, arguments.val_masks, arguments.val_list
    if len(images) != len(masks):
        raise InputError(f"{len(images)} --val-images but {len(masks)} --val-masks: give one of each")
    _same_number("--val-list", lists, "--val-images", images)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for number, folders in enumerate(zip(images, masks, lists or [None] * len(images), strict=True), 1):
        more, left_out = _listed(*folders, f"{number}/" if len(images) > 1 else "")
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
