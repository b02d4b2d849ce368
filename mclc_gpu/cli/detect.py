"""Commands that run a trained detector: evaluate and predict."""

from mclc_gpu.cli.common import print_scores, print_skipped
from mclc_gpu.detect.config import EvaluateOptions, PredictOptions, Threshold
from mclc_gpu.detect.evaluate import Evaluation, evaluate_images
from mclc_gpu.detect.predict import LAYOUT, predict_images
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.report.folder import FILES, write_report
from mclc_gpu.report.sheets import Extremes
from mclc_gpu.runs import keep_apart

_REPORTED = ("checkpoint", "images", "masks", "list", "convention", "tta", "tile", "overlap", "amp")


def evaluate(options: EvaluateOptions, started: float) -> int:
    """Run `mclc-gpu evaluate`; return the number of skipped inputs."""
    del started
    inputs = options.images, options.masks, options.list, options.checkpoint
    for option, path in (("--roc", options.roc), ("--json", options.json), ("--out", options.out)):
        if path is not None:
            keep_apart(option, (path, path.parent), inputs)
    _refuse_older_report(options)
    extremes = Extremes()
    evaluation = evaluate_images(options, extremes)
    print_skipped(evaluation.skipped)
    if not evaluation.scores.images:
        raise InputError(f"{options.images}: no image that has a mask of its size in {options.masks}")
    roc = evaluation.roc.compute()
    threshold = evaluation.threshold
    about = {"threshold": threshold.value, "threshold_from": threshold.source, "tta": options.tta}
    print(f"threshold {threshold}" + ("" if options.tta == "none" else f", tta {options.tta}"))
    print_scores(evaluation.scores, roc, options.roc, options.json, len(evaluation.skipped), about)
    if options.out is not None:
        _report(options, evaluation, extremes)
    return len(evaluation.skipped)


def _refuse_older_report(options: EvaluateOptions) -> None:
    if options.out is None or options.overwrite:
        return
    for name in FILES:
        if (options.out / name).exists():
            raise InputError(f"{options.out / name}: exists already; use --overwrite or another --out")


def _report(options: EvaluateOptions, evaluation: Evaluation, extremes: Extremes) -> None:
    assert options.out is not None
    assert evaluation.trained is not None
    report = write_report(
        options.out,
        title=f"{evaluation.trained.name} on {options.images}",
        scores=evaluation.scores,
        roc=evaluation.roc.compute(),
        extremes=extremes,
        settings={
            **{name: getattr(options, name) for name in _REPORTED},
            "threshold": str(evaluation.threshold),
            "skipped": len(evaluation.skipped),
            "training": evaluation.trained.settings,
        },
    )
    print(f"\nreport: {report}")


def predict(options: PredictOptions, started: float) -> int:
    """Run `mclc-gpu predict`; return the number of skipped inputs."""
    summary = predict_images(options, started)
    skipped = [Skipped(**item) for item in summary["skipped"]]
    print_skipped(skipped, LAYOUT.summary(options.out))
    rate = "" if summary["images_per_s"] is None else f", {summary['images_per_s']:.1f} images/s"
    seconds = summary["seconds"]
    threshold = Threshold(summary["settings"]["threshold"], summary["threshold_from"])
    print(
        f"{summary['images']} images, {summary['detections']} detections at threshold {threshold} -> "
        f"{options.out}"
    )
    print(
        f"{seconds['total']:.2f} s{rate} on {summary['device']}; start-up {seconds['startup']:.2f} s"
        + (f"; {summary['resumed_images']} images were finished before" if summary["resumed_images"] else "")
    )
    if skipped:
        print(f"{len(skipped)} inputs skipped")
    return len(skipped)
