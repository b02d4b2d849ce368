"""Output that several commands print and write: skipped inputs, and scores."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mclc_gpu.data.files import write_json
from mclc_gpu.detect.config import THRESHOLD
from mclc_gpu.errors import Skipped
from mclc_gpu.score.metrics import Scores
from mclc_gpu.score.roc import Roc

_PRINTED_SKIPS = 20


def print_skipped(skipped: Sequence[Skipped], complete: Path | None = None) -> None:
    """Print skipped inputs to stderr; only the first ones if the file `complete` lists them all."""
    printed = skipped if complete is None else skipped[:_PRINTED_SKIPS]
    for item in printed:
        print(f"skipped {item.file}: {item.why}", file=sys.stderr)
    if len(printed) < len(skipped):
        print(f"and {len(skipped) - len(printed)} more, see {complete}", file=sys.stderr)


def print_scores(
    scores: Scores,
    roc: Roc | None,
    plot: Path | None,
    json_file: Path | None,
    skipped: int,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Print the scores of a set of masks, plot its ROC curve and write all numbers as JSON.

    Parameters
    ----------
    scores : Scores
        Counts of the set.
    roc : Roc or None
        Scores at every threshold, where they were computed.
    plot, json_file : Path or None
        Files for the curve and for the numbers; None: not written.
    skipped : int
        Number of inputs that are not in the scores.
    about : mapping
        Further entries of the JSON file; the plot marks a "threshold" among them.
    """
    result = scores.compute()
    print(result)
    if roc is not None:
        print(f"\n{roc}")
    if roc is not None and plot is not None:
        from mclc_gpu.report.plots import plot_roc  # here, since it imports matplotlib

        threshold = about.get("threshold")
        plot_roc(roc, plot, threshold=THRESHOLD if threshold is None else threshold)
    if json_file is not None:
        curve = {} if roc is None else {"roc": roc.as_dict()}
        write_json(json_file, {**result.as_dict(), **curve, "skipped": skipped, **about})
