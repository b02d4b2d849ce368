"""What the commands that score have in common: their arguments' checks, and what they print and write."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mclc_gpu.data.files import write_json
from mclc_gpu.errors import Skipped
from mclc_gpu.score.metrics import Scores
from mclc_gpu.score.roc import Roc

_SHOWN_SKIPS = 20


def say_skipped(skipped: Sequence[Skipped], where: Path | None = None) -> None:
    """Tell what was left out, on stderr; `where` is the file that holds all of it when it is much."""
    shown = skipped if where is None else skipped[:_SHOWN_SKIPS]
    for item in shown:
        print(f"skipped {item.file}: {item.why}", file=sys.stderr)
    if len(shown) < len(skipped):
        print(f"and {len(skipped) - len(shown)} more, see {where}", file=sys.stderr)


def say_scores(
    scores: Scores, roc: Roc | None, plot: Path | None, json_file: Path | None, skipped: int
) -> None:
    """Print the scores of a set, draw its curve and write all numbers, as far as asked for."""
    result = scores.compute()
    print(result)
    if roc is not None:
        print(f"\n{roc}")
    if roc is not None and plot is not None:
        from mclc_gpu.report.plots import plot_roc

        plot_roc(roc, plot)
    if json_file is not None:
        curve = {} if roc is None else {"roc": roc.as_dict()}
        write_json(json_file, {**result.as_dict(), **curve, "skipped": skipped})
