"""mclc-gpu score."""

import argparse
import sys

from mclc_gpu.data.datasets import pair_files, read_list, select
from mclc_gpu.data.images import find_files, read_mask
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError
from mclc_gpu.journal import write_json
from mclc_gpu.metrics import Scores
from mclc_gpu.progress import Progress


def score(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    predictions, truths = find_files(arguments.pred), find_files(arguments.truth)
    skipped: list[Skipped] = []
    if arguments.list is not None:
        predictions, skipped = select(predictions, read_list(arguments.list))
    pairs, unpaired = pair_files(predictions, truths)
    skipped += unpaired
    scores = Scores()
    with Progress("score", len(pairs), "mask") as progress:
        for stem, (prediction, truth) in pairs.items():
            progress.advance(1)
            try:
                scores.update(read_mask(prediction), read_mask(truth), stem)
            except InputError as error:
                skipped.append(Skipped.because(prediction, error))
    for item in skipped:
        print(f"skipped {item.file}: {item.why}", file=sys.stderr)
    if not scores.images:
        raise InputError(f"{arguments.pred}: no mask that could be compared with {arguments.truth}")
    result = scores.compute()
    print(result)
    if arguments.list is None and len(truths) > len(pairs):
        print(f"not scored, for lack of a prediction: {len(truths) - len(pairs)} true masks")
    if arguments.json is not None:
        write_json(arguments.json, {**result.as_dict(), "skipped": len(skipped)})
    return len(skipped)
