"""mclc-gpu evaluate."""

import argparse

from mclc_gpu.cli.common import checked_threshold, checked_tiles, say_scores, say_skipped
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.images import find_files
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.detect.evaluate import evaluate as evaluate_files
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.report.folder import FILES, write_report
from mclc_gpu.report.sheets import Extremes
from mclc_gpu.runs import keep_apart
from mclc_gpu.score.matching import CONVENTIONS


def evaluate(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    threshold = checked_threshold(arguments.threshold)
    checked_tiles(arguments.tile, arguments.overlap)
    convention = CONVENTIONS.find(arguments.convention)
    inputs = (arguments.images, arguments.masks, arguments.list, arguments.checkpoint)
    for option in ("roc", "json", "out"):
        path = getattr(arguments, option)
        if path is not None:
            keep_apart(f"--{option}", (path, path.resolve().parent), inputs)
    _keep_older_report(arguments)
    images, skipped = listed(find_files(arguments.images), arguments.list, arguments.images)
    masks = find_files(arguments.masks)
    trained = load_checkpoint(arguments.checkpoint, pick_device(arguments.device))
    predictor = Predictor(
        trained.network, trained.normalization, arguments.tile, arguments.overlap, arguments.amp
    )
    extremes = Extremes(threshold=threshold)
    evaluation = evaluate_files(
        predictor, images, masks, threshold=threshold, convention=convention, watch=extremes
    )
    skipped += evaluation.skipped
    say_skipped(skipped)
    if not evaluation.scores.images:
        raise InputError(f"{arguments.images}: no image that has a mask of its size in {arguments.masks}")
    roc = evaluation.roc.compute()
    say_scores(evaluation.scores, roc, arguments.roc, arguments.json, len(skipped))
    if arguments.out is not None:
        names = ("checkpoint", "images", "masks", "list", "threshold", "convention", "tile", "overlap", "amp")
        report = write_report(
            arguments.out,
            title=f"{trained.name} on {arguments.images}",
            scores=evaluation.scores,
            roc=roc,
            extremes=extremes,
            settings={
                **{name: getattr(arguments, name) for name in names},
                "skipped": len(skipped),
                "training": trained.settings,
            },
        )
        print(f"\nlook at {report}")
    return len(skipped)


def _keep_older_report(arguments: argparse.Namespace) -> None:
    if arguments.out is None or arguments.overwrite:
        return
    for name in FILES:
        if (arguments.out / name).exists():
            raise InputError(f"{arguments.out / name}: is there already; use --overwrite or another --out")
