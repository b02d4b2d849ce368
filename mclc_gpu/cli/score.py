"""mclc-gpu score."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mclc_gpu.cli.common import say_scores, say_skipped
from mclc_gpu.data.datasets import listed, pair_files
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import find_files, read_mask, read_probability
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.runs import Progress, keep_apart
from mclc_gpu.score.config import ScoreOptions
from mclc_gpu.score.matching import CONVENTIONS, Convention
from mclc_gpu.score.metrics import ImageScore, Scores, score_image
from mclc_gpu.score.roc import RocCounts, RocScores, roc_counts

if TYPE_CHECKING:  # they import PyTorch, which scores do without
    from mclc_gpu.report.check import Looked
    from mclc_gpu.report.page import LabelReport

Pair = tuple[str, tuple[Path, Path]]  # stem, files of prediction and truth


def score(options: ScoreOptions, started: float) -> int:
    """Run the command; returns the number of skipped inputs, true masks without a prediction among them."""
    del started
    convention = CONVENTIONS.find(options.convention)
    threshold = options.threshold
    inputs = (options.pred, options.truth, options.images, options.list)
    for option in ("roc", "json", "report"):
        path = getattr(options, option)
        if path is not None:
            keep_apart(f"--{option}", (path, path.resolve().parent), inputs)
    predictions, truths = find_files(options.pred), find_files(options.truth)
    predictions, skipped = listed(predictions, options.list, options.pred)
    pairs, unpaired = pair_files(predictions, truths)
    skipped += unpaired
    scores, roc = Scores(convention), RocScores(convention)
    report = _report(options, predictions, truths, threshold)

    def count(pair: Pair) -> _Counted | Skipped:
        prediction = pair[1][0]
        return attempt(
            prediction, lambda: _count(pair, threshold, options.roc is not None, convention, report)
        )

    with Progress("score", len(pairs), "mask") as progress:
        for counted in prefetch_map(count, pairs.items()):
            progress.advance(1)
            if isinstance(counted, Skipped):
                skipped.append(counted)
                continue
            scores.add(counted.score)
            if counted.roc is not None:
                roc.add(counted.roc)
            if report is not None and counted.looked is not None:
                report.check.add(counted.looked)
    say_skipped(skipped)
    if not scores.images:
        raise InputError(f"{options.pred}: no mask that could be compared with {options.truth}")
    curve = None if options.roc is None else roc.compute()
    say_scores(scores, curve, options.roc, options.json, len(skipped))
    if report is not None and options.report is not None:
        report.write(options.report, scores.compute(), skipped)
    missing = len(truths) - len(pairs) if options.list is None else 0
    if missing:
        print(f"not scored, for lack of a prediction: {missing} true masks")
    return len(skipped) + missing


class _Counted(NamedTuple):
    score: ImageScore
    roc: RocCounts | None
    looked: "Looked | None"


def _count(
    pair: Pair, threshold: float | None, curve: bool, convention: Convention, report: "LabelReport | None"
) -> _Counted:
    """Scores of one pair of files; the prediction is a mask, or with a threshold a probability map."""
    stem, (prediction, truth_path) = pair
    probability = None if threshold is None else read_probability(prediction)
    # In float32, as the curve over all thresholds compares.
    mask = read_mask(prediction) if probability is None else probability > threshold
    truth = read_mask(truth_path)
    score = score_image(mask, truth, stem, convention)
    counts = roc_counts(probability, truth, stem, convention) if curve and probability is not None else None
    looked = None if report is None else report.look(stem, mask, truth, probability)
    return _Counted(score, counts, looked)


def _report(
    options: ScoreOptions,
    predictions: Mapping[str, Path],
    truths: Mapping[str, Path],
    threshold: float | None,
) -> "LabelReport | None":
    """An empty report, when one is asked for, on the label run that is named or that --pred lies in."""
    if options.report is None:
        return None
    # Imported here since they import PyTorch, which scores alone do without.
    from mclc_gpu.labels.folder import LAYOUT, open_labels
    from mclc_gpu.report.page import LabelReport

    folder = options.labels
    around = options.pred.resolve().parent
    if folder is None and options.pred.resolve().name in LAYOUT.folders and LAYOUT.summary(around).exists():
        folder = around
    images = {} if options.images is None else find_files(options.images)
    labels = None if folder is None else open_labels(folder)
    return LabelReport(predictions, truths, images, labels, threshold)
