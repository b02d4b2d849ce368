"""Commands on detectors: evaluate, predict and export."""

from typing import Any

from mclc_gpu.cli.common import print_scores, print_skipped
from mclc_gpu.detect.config import (
    THRESHOLD,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    Threshold,
)
from mclc_gpu.detect.evaluate import Evaluation, evaluate_images
from mclc_gpu.detect.export import export_detector
from mclc_gpu.detect.predict import LAYOUT, predict_images
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.report.folder import FILES, write_report
from mclc_gpu.report.sheets import Extremes
from mclc_gpu.runs import keep_apart

_REPORTED = ("checkpoint", "images", "masks", "list", "convention", "tta", "tile", "overlap", "amp")
_REPORTED_OF_METHOD = ("method", "images", "masks", "list", "convention")


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
    about = _print_threshold(options, evaluation)
    print_scores(evaluation.scores, roc, options.roc, options.json, len(evaluation.skipped), about)
    if options.out is not None:
        _report(options, evaluation, extremes)
    return len(evaluation.skipped)


def _print_threshold(options: EvaluateOptions, evaluation: Evaluation) -> dict[str, Any]:
    """Print the threshold, or rule and range of a method's; return it for the JSON file."""
    assert evaluation.detector is not None
    detector = evaluation.detector
    settings = detector.settings
    if options.method is None:
        threshold = Threshold(settings["threshold"], detector.about["threshold_from"])
        print(f"threshold {threshold}" + ("" if options.tta == "none" else f", tta {options.tta}"))
        return {"threshold": threshold.value, "threshold_from": threshold.source, "tta": options.tta}
    values = evaluation.thresholds.values()
    rule = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"{options.method}: {rule}, thresholds {min(values):g} to {max(values):g}")
    return {**detector.about, **settings, "thresholds": evaluation.thresholds}


def _refuse_older_report(options: EvaluateOptions) -> None:
    if options.out is None or options.overwrite:
        return
    for name in FILES:
        if (options.out / name).exists():
            raise InputError(f"{options.out / name}: exists already; use --overwrite or another --out")


def _report(options: EvaluateOptions, evaluation: Evaluation, extremes: Extremes) -> None:
    assert options.out is not None
    assert evaluation.detector is not None
    detector = evaluation.detector
    if options.method is None:
        settings = {name: getattr(options, name) for name in _REPORTED}
        threshold = Threshold(detector.settings["threshold"], detector.about["threshold_from"])
        more = {"threshold": str(threshold)}
    else:
        settings = {name: getattr(options, name) for name in _REPORTED_OF_METHOD}
        more = detector.settings
    report = write_report(
        options.out,
        title=f"{detector.name} on {options.images}",
        scores=evaluation.scores,
        roc=evaluation.roc.compute(),
        extremes=extremes,
        settings={
            **settings,
            **more,
            "skipped": len(evaluation.skipped),
            "parameters" if detector.trained is None else "training": detector.parameters,
        },
        threshold=THRESHOLD if options.method else detector.settings["threshold"],
    )
    print(f"\nreport: {report}")


def predict(options: PredictOptions, started: float) -> int:
    """Run `mclc-gpu predict`; return the number of skipped inputs."""
    summary = predict_images(options, started)
    skipped = [Skipped(**item) for item in summary["skipped"]]
    print_skipped(skipped, LAYOUT.summary(options.out))
    rate = "" if summary["images_per_s"] is None else f", {summary['images_per_s']:.1f} images/s"
    seconds = summary["seconds"]
    if options.method is None:
        threshold = f"threshold {Threshold(summary['settings']['threshold'], summary['threshold_from'])}"
    else:
        threshold = f"thresholds by the rule {summary['settings']['rule']}"
    print(f"{summary['images']} images, {summary['detections']} detections at {threshold} -> {options.out}")
    print(
        f"{seconds['total']:.2f} s{rate} on {summary['device']}; start-up {seconds['startup']:.2f} s"
        + (f"; {summary['resumed_images']} images were finished before" if summary["resumed_images"] else "")
    )
    if skipped:
        print(f"{len(skipped)} inputs skipped")
    return len(skipped)


def export(options: ExportOptions, started: float) -> int:
    """Run `mclc-gpu export`; return 0, no input is skipped."""
    del started
    made = export_detector(options)
    size = made.file.stat().st_size / 1e6
    print(f"{made.network}, threshold {made.threshold}, {size:.1f} MB -> {made.file}")
    if made.difference is None:
        print("not compared with PyTorch: onnxruntime is not installed; pip install 'mclc-gpu[onnx]'")
    else:
        print(f"onnxruntime gives the probabilities of PyTorch within {made.difference:.1g}")
    return 0
