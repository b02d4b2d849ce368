"""Run ``mclc-gpu score``: score predicted masks or probability maps against true masks."""

from mclc_gpu.cli.common import print_scores, print_skipped
from mclc_gpu.errors import InputError
from mclc_gpu.runs import keep_apart
from mclc_gpu.score.config import ScoreOptions
from mclc_gpu.score.folders import score_folders


def score(options: ScoreOptions, started: float) -> int:
    """Run the command; return the number of skipped inputs, true masks without a prediction among them."""
    del started
    inputs = (options.pred, options.truth, options.images, options.list)
    for name, path in (("roc", options.roc), ("json", options.json), ("report", options.report)):
        if path is not None:
            keep_apart(f"--{name}", (path, path.resolve().parent), inputs)
    report = None
    if options.report is not None:
        # Imported here because it imports PyTorch, which scores without a report do not need.
        from mclc_gpu.report.page import open_report

        report = open_report(options)
    found = score_folders(options, curve=options.roc is not None, inspector=report)
    print_skipped(found.skipped)
    if not found.scores.images:
        raise InputError(f"{options.pred}: no mask that could be compared with {options.truth}")
    print_scores(found.scores, found.roc, options.roc, options.json, len(found.skipped))
    if report is not None and options.report is not None:
        report.write(options.report, found.scores.compute(), found.skipped)
    if found.missing:
        print(f"not scored, for lack of a prediction: {found.missing} true masks")
    return len(found.skipped) + found.missing
