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
        what = "training images and their labels (no validation set)"
        if fitted.validation:
            what = "held-out images and their labels" if fitted.held_out else "validation"
        if fitted.threshold is not None:
            what += f", threshold {fitted.threshold:.3f} chosen there"
        if fitted.backbone is not None:
            print(f"backbone: {fitted.backbone}")
        print(f"epoch {fitted.best_epoch} of {len(fitted.rows)}, {what}:")
        print(scores.compute())
        print(f"{fitted.best}\nreport: {page}")
        if fitted.in_both:
            print(
                f"warning: {len(fitted.in_both)} validation images are trained on too, such as "
                f"{fitted.in_both[0]}, and flatter the scores. Name others with --list or --val-list",
                file=sys.stderr,
            )
        if fitted.collapsed or fitted.flooded:
            marked = "no pixel" if fitted.collapsed else "most pixels"
            print(
                f"warning: the network of the last epoch marks {marked} as target. Look at the labels, train "
                "longer, or start again with a lower --lr",
                file=sys.stderr,
            )

    fitted = train_detector(
        options, ranks=ranks, report=report, label_report=report_label_run, started=started
    )
    return len(fitted.skipped) + sum(len(run.skipped) for run in fitted.labels)
