"""Command train."""

import sys

from mclc_gpu.cli.commands import TrainArguments
from mclc_gpu.cli.common import print_skipped
from mclc_gpu.cli.label import report_label_run
from mclc_gpu.distributed import join
from mclc_gpu.report.folder import report_run
from mclc_gpu.train.fit import Fitted, train_detector
from mclc_gpu.train.folder import CONFIG


def train(options: TrainArguments, started: float) -> int:
    """Run `mclc-gpu train`; return the number of skipped inputs."""
    ranks = join(options.device)

    def report(fitted: Fitted) -> None:
        print_skipped(fitted.skipped, options.out / CONFIG)
        page, scores = report_run(options.out, fitted.best, fitted.samples, fitted.validation, ranks.device)
        what = "validation" if fitted.validation else "training images and their labels (no validation set)"
        print(f"epoch {fitted.best_epoch} of {len(fitted.rows)}, {what}:")
        print(scores.compute())
        print(f"{fitted.best}\nreport: {page}")
        if fitted.collapsed:
            print(
                "warning: the network of the last epoch marks no pixel as target. Look at the labels, train "
                "longer, or start again with a lower --lr",
                file=sys.stderr,
            )

    fitted = train_detector(
        options, ranks=ranks, report=report, label_report=report_label_run, started=started
    )
    return len(fitted.skipped) + sum(len(run.skipped) for run in fitted.labels)
