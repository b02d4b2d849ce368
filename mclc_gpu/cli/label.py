"""mclc-gpu label."""

from mclc_gpu.cli.commands import LabelArguments
from mclc_gpu.cli.common import print_skipped
from mclc_gpu.distributed import join
from mclc_gpu.labels.folder import REPORT, LabelRun
from mclc_gpu.labels.run import STAGES, label_dataset
from mclc_gpu.labels.stream import CHUNKS, Chunks
from mclc_gpu.report.page import report_labels
from mclc_gpu.report.sheets import write_overview


def label(options: LabelArguments, started: float, chunks: Chunks = CHUNKS) -> int:
    """Run the command; return the number of skipped inputs."""

    def report(run: LabelRun) -> None:
        report_label_run(run, page=options.report)

    run = label_dataset(options, ranks=join(options.device), report=report, started=started, chunks=chunks)
    return len(run.skipped)


def report_label_run(run: LabelRun, page: bool = True) -> None:
    """Draw the overview of a label run, print a summary, and write report.html if `page`."""
    write_overview(run, run.title)
    _print_summary(run)
    if page:
        print(f"{report_labels(run).flagged} targets to review first, see {run.folder / REPORT}")


def _print_summary(run: LabelRun) -> None:
    summary, skipped = run.summary, run.skipped
    print_skipped(skipped, run.path)
    seconds = summary["seconds"]
    stages = ", ".join(f"{stage} {seconds[stage]:.2f} s" for stage in STAGES)
    work = seconds["cluster"] + seconds["refine"]
    if not work:
        rate = "nothing left to label"
    elif summary["trials_per_s"]:
        rate = f"{summary['trials_per_s']:,.0f} trials/s"
    else:
        rate = f"{summary['targets_per_s']:,.0f} targets/s"
    estimated = summary["estimated_categories"]
    trials = f", {summary['trials']} trials" if summary["trials"] else ""
    print(f"{summary['images']} images, {summary['targets']} targets{trials} -> {run.folder}")
    print(
        f"{seconds['total']:.2f} s ({stages}), {rate} on {summary['device']}; "
        f"start-up {seconds['startup']:.2f} s"
    )
    if estimated:
        print(f"category estimated for {estimated} of {summary['targets']} targets")
    if skipped:
        print(f"{len(skipped)} inputs skipped")
