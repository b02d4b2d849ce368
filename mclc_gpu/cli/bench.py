"""mclc-gpu bench."""

import argparse
import shlex

from mclc_gpu.cli.options import BENCH_SUITES
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.runs import keep_apart


def bench(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns 0, as nothing is skipped."""
    from mclc_gpu.bench.command import LAYOUT, BenchJob, run_bench
    from mclc_gpu.bench.plan import run_plan

    del started
    if (arguments.images is None) != (arguments.masks is None):
        raise InputError("--images and --masks belong together: give both, or none for synthetic frames")
    if arguments.list is not None and arguments.images is None:
        raise InputError(f"--list {arguments.list}: names images of --images; give that too")
    if arguments.plan is not None and arguments.plan < 1:
        raise InputError(f"--plan {arguments.plan}: give 1 image or more")
    keep_apart("--out", LAYOUT.places(arguments.out), (arguments.images, arguments.masks, arguments.list))
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out}: is no folder; give another place")
    device = pick_device(arguments.device)
    suites = arguments.suite or (() if arguments.plan else BENCH_SUITES[:-1])
    job = BenchJob(
        suites=suites,
        device=device,
        out=arguments.out,
        images=arguments.images,
        masks=arguments.masks,
        names=arguments.list,
        quick=arguments.quick,
        command=shlex.join(["mclc-gpu", *arguments.words]),
    )
    if suites:
        run_bench(job)
    if arguments.plan is not None:
        run_plan(job, arguments.plan)
    return 0
