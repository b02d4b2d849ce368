"""Run ``mclc-gpu bench``: measure rates on this machine."""

import shlex
import sys

from mclc_gpu.bench.command import LAYOUT, BenchJob, run_bench
from mclc_gpu.bench.plan import run_plan
from mclc_gpu.cli.commands import BENCH_SUITES, BenchOptions
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.runs import keep_apart


def bench(options: BenchOptions, started: float) -> int:
    """Run the command; return 0, as nothing is skipped."""
    del started
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.masks, options.list))
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: not a folder; choose another --out")
    job = BenchJob(
        suites=options.suite or (() if options.plan else BENCH_SUITES[:-1]),
        device=pick_device(options.device),
        out=options.out,
        images=options.images,
        masks=options.masks,
        names=options.list,
        quick=options.quick,
        command=shlex.join(["mclc-gpu", *sys.argv[1:]]),
    )
    if job.suites:
        run_bench(job)
    if options.plan is not None:
        run_plan(job, options.plan)
    return 0
