"""mclc-gpu score."""

import argparse
from pathlib import Path

from mclc_gpu.cli.outcome import checked_threshold, say_scores, say_skipped
from mclc_gpu.conventions import Convention, convention_of
from mclc_gpu.data.ahead import ahead
from mclc_gpu.data.datasets import pair_files, read_list, select
from mclc_gpu.data.images import find_files, read_mask
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError
from mclc_gpu.metrics import ImageScore, Scores, score_image
from mclc_gpu.progress import Progress
from mclc_gpu.roc import RocCounts, RocScores, read_probability, roc_counts

Pair = tuple[str, tuple[Path, Path]]  # stem, files of prediction and truth


def score(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    convention = convention_of(arguments.convention)
    threshold = None if arguments.threshold is None else checked_threshold(arguments.threshold)
    if threshold is None and arguments.roc is not None:
        threshold = 0.5
    predictions, truths = find_files(arguments.pred), find_files(arguments.truth)
    skipped: list[Skipped] = []
    if arguments.list is not None:
        predictions, skipped = select(predictions, read_list(arguments.list))
    pairs, unpaired = pair_files(predictions, truths)
    skipped += unpaired
    scores, roc = Scores(convention), RocScores(convention)

    def count(pair: Pair) -> tuple[ImageScore, RocCounts | None] | Skipped:
        try:
            return _count(pair, threshold, arguments.roc is not None, convention)
        except InputError as error:
            return Skipped.because(pair[1][0], error)

    with Progress("score", len(pairs), "mask") as progress:
        for counted in ahead(count, pairs.items()):
            progress.advance(1)
            if isinstance(counted, Skipped):
                skipped.append(counted)
                continue
            scores.add(counted[0])
            if counted[1] is not None:
                roc.add(counted[1])
    say_skipped(skipped)
    if not scores.images:
        raise InputError(f"{arguments.pred}: no mask that could be compared with {arguments.truth}")
    curve = None if arguments.roc is None else roc.compute()
    say_scores(scores, curve, arguments.roc, arguments.json, len(skipped))
    if arguments.list is None and len(truths) > len(pairs):
        print(f"not scored, for lack of a prediction: {len(truths) - len(pairs)} true masks")
    return len(skipped)


def _count(
    pair: Pair, threshold: float | None, curve: bool, convention: Convention
) -> tuple[ImageScore, RocCounts | None]:
    """Scores of one pair of files; the prediction is a mask, or with a threshold a probability map."""
    stem, (prediction, truth) = pair
    if threshold is None:
        return score_image(read_mask(prediction), read_mask(truth), stem, convention), None
    probability, mask = read_probability(prediction), read_mask(truth)
    # In float32, as the curve over all thresholds compares.
    counts = score_image(probability > threshold, mask, stem, convention)
    return counts, roc_counts(probability, mask, stem, convention) if curve else None
