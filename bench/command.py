"""Run ``mclc-gpu bench``: benchmark suites with their tables and the plot of the cost, and the plan."""

import os
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclc_gpu.bench.compare import (
    Benchmark,
    Result,
    Row,
    circumstances,
    machine,
    markdown,
    measure,
    rounded,
    write_rows,
)
from mclc_gpu.bench.config import GPU, HOST, LIMITS, PAPER, BenchOptions
from mclc_gpu.bench.dataset import open_context
from mclc_gpu.bench.plan import PLAN, run_plan
from mclc_gpu.bench.suites import BENCHMARKS, COST
from mclc_gpu.data.files import atomic_path, write_json
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.runs import RunLayout, keep_apart

CSV, COST_CSV, PLOT, HOST_JSON, GPU_JSON = "bench.csv", "cost.csv", "cost.png", "host.json", "gpu.json"
LAYOUT = RunLayout(
    "bench", (), (CSV, COST_CSV, PLOT, PLAN, HOST_JSON, GPU_JSON, "roofline.csv", "resources.csv")
)
# Environment variable: folder of NUAA-SIRST, whose train split is the default of the suites `host` and `gpu`.
NUAA = "MCLC_NUAA"
_HEADER = ("work", "who", "rate", "unit", "slowest", "fastest", "runs", "ratio")
_LEGEND = (
    "rate: of the median run, after a warm-up; slowest, fastest: of single runs; ratio: to the fastest "
    "baseline of the same work, in turns with it and on all cores of this processor. Below 1 a baseline is "
    "faster."
)
_WIDTH = 110  # of the text below a table
_COLORS = {True: "#0072b2", False: "#d55e00"}
_MARKERS = {"targets": ("o", "targets"), "K": ("s", "trials"), "side": ("^", "side of the windows")}


@dataclass(frozen=True)
class Measured:
    """Results of the benchmarks of a run.

    Attributes
    ----------
    source : str, optional
        Description of the frames; None where no benchmark ran on frames.
    suites : dict of str to list of Result
        By suite.
    cost : dict of str to Result
        Cost of growing work, by name.
    """

    source: str | None
    suites: dict[str, list[Result]]
    cost: dict[str, Result]


def bench(options: BenchOptions, started: float) -> int:
    """Run the command; return 0, as nothing is skipped."""
    del started
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.masks, options.list))
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: not a folder; choose another --out")
    command = shlex.join(["mclc-gpu", *sys.argv[1:]])
    if options.suites:
        run_bench(options, command)
    if options.plan is not None:
        run_plan(options, command)
    return 0


def run_bench(options: BenchOptions, command: str = "mclc-gpu bench") -> dict[str, Any]:
    """Measure, print the table and write the files.

    Parameters
    ----------
    options : BenchOptions
    command : str
        Command line, for the files.

    Returns
    -------
    dict
        Content of bench.json.

    Raises
    ------
    InputError
        Files that cannot be used, or a device that is not there.
    """
    device = pick_device(options.device)
    start = time.perf_counter()
    measured = _measure(options, device)
    limits = _limits(device) if LIMITS in options.suites else {}
    if HOST in options.suites:
        _run_host(options, command)
    if PAPER in options.suites:
        from mclc_gpu.bench.paper import run_paper

        run_paper(options, command)
    if GPU in options.suites:
        from mclc_gpu.bench.gpu import gpu_check

        gpu_check(device, options.out, command, *_folders(options), quick=options.quick)
    seconds = time.perf_counter() - start
    summary = {
        **circumstances(device, command),
        "frames": measured.source,
        "quick": options.quick,
        "seconds": seconds,
        "suites": {suite: [result.as_dict() for result in own] for suite, own in measured.suites.items()},
        "cost": [result.as_dict() for result in measured.cost.values()],
        "limits": limits,
    }
    write_json(LAYOUT.summary(options.out), summary)
    tables: dict[str, list[Row]] = {f"{name}.csv": rows for name, rows in limits.items()}
    if measured.suites:
        results = [(suite, result) for suite, own in measured.suites.items() for result in own]
        tables[CSV] = [{"suite": suite, **row} for suite, result in results for row in result.rows()]
        every = [result for _, result in results]
        print(f"{measured.source}. {machine(device)}.\n\n{_table(every)}\n\n{_remarks(every, options.quick)}")
    if measured.cost:
        tables[COST_CSV] = cost_rows(measured.cost)
        title = f"{measured.cost['base'].benchmark.work}; a line varies one of the three\n{machine(device)}"
        plot_cost(tables[COST_CSV], title, options.out / PLOT)
    for name, rows in limits.items():
        print(f"\n{name}\n\n{_plain_table(rows)}")
    for name, rows in tables.items():
        write_rows(options.out / name, rows)
    written = [LAYOUT.summary(options.out).name, *tables, *([PLOT] if measured.cost else [])]
    written += [name for name, suite in ((HOST_JSON, HOST), (GPU_JSON, GPU)) if suite in options.suites]
    print(f"\n{seconds:.0f} s; written to {options.out}: {', '.join(written)}")
    return summary


def _measure(options: BenchOptions, device: torch.device) -> Measured:
    """Run the benchmarks of the chosen suites."""
    chosen = [name for name in BENCHMARKS if name in options.suites]
    if not chosen:
        return Measured(None, {}, {})
    with open_context(options.images, options.masks, options.list, device, options.quick) as context:
        suites = {
            suite: [_run(suite, build(context)) for build in BENCHMARKS[suite].values()] for suite in chosen
        }
        growing = COST if "label" in chosen else {}
        cost = {name: _run("cost", build(context)) for name, build in growing.items()}
        return Measured(context.source, suites, cost)


def _run(suite: str, benchmark: Benchmark) -> Result:
    print(f"{suite}: {benchmark.work}", file=sys.stderr, flush=True)
    return measure(benchmark)


def _folders(options: BenchOptions) -> tuple[Path | None, Path | None, Path | None]:
    """Return the given folders of images and masks and list, else those of NUAA-SIRST if it is known."""
    if options.images is None and (root := os.environ.get(NUAA)):
        return Path(root, "images"), Path(root, "masks"), Path(root, "splits", "train.txt")
    return options.images, options.masks, options.list


def _run_host(options: BenchOptions, command: str) -> None:
    """Write and print the costs of the label pipeline on the host of a GPU."""
    from mclc_gpu.bench.host import METHOD, HostScale, host_suite, host_table

    print("host: label pipeline with a recorded device", file=sys.stderr, flush=True)
    device = torch.device("cpu")
    scale = HostScale(repeats=1, chunks=2, sampled=0) if options.quick else HostScale()
    with open_context(*_folders(options), device, options.quick) as context:
        try:
            costs = host_suite(context.frames, scale)
        except RuntimeError as error:
            raise InputError(str(error)) from error
        about = {**circumstances(device, command), "frames": context.source, "method": METHOD}
    write_json(options.out / HOST_JSON, {**costs, **about})
    text = textwrap.fill(METHOD, _WIDTH, break_on_hyphens=False)
    print(f"{about['frames']}. {machine(device)}.\n\n{host_table(costs)}\n\n{text}")


def _limits(device: torch.device) -> dict[str, list[Row]]:
    """Return the tables of the suite `limits` by name."""
    from mclc_gpu.bench.limits import roofline
    from mclc_gpu.bench.resources import resources

    print("limits: roofline", file=sys.stderr, flush=True)
    tables = {"roofline": roofline(device)}
    print("limits: resources, compiling ahead of time", file=sys.stderr, flush=True)
    try:
        return tables | {"resources": resources()}
    except RuntimeError as error:
        raise InputError(str(error)) from error


def cost_rows(results: Mapping[str, Result]) -> list[Row]:
    """Return a row per contender of every cost benchmark: what grows, trials x pixels, median seconds."""
    rows: list[Row] = []
    for name, result in results.items():
        grows, _, value = name.partition(" ")
        for contender in result.measured:
            seconds = float(np.median(result.seconds(contender)))
            cells: Row = {"who": contender.name, "own": int(contender.own), "grows": grows}
            size = {"value": int(value) if value else None, "trials_x_pixels": result.benchmark.size}
            rows.append(cells | size | {"seconds": seconds, "runs": len(result.seconds(contender))})
    return rows


def plot_cost(rows: Sequence[Row], title: str, path: Path) -> None:
    """Plot seconds over trials x pixels, log-log, as PNG; the marker shows which quantity grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for who in dict.fromkeys(row["who"] for row in rows):
        own = [row for row in rows if row["who"] == who]
        color = _COLORS[bool(own[0]["own"])]
        axes.plot([], [], color=color, label=who)
        for grows, (marker, _) in _MARKERS.items():
            points = sorted(
                (float(row["trials_x_pixels"] or 0), float(row["seconds"] or 0))
                for row in own
                if row["grows"] in (grows, "base")
            )
            axes.plot(*zip(*points, strict=True), marker=marker, color=color, alpha=0.85)
    for marker, text in _MARKERS.values():
        axes.plot([], [], marker, color="#8a8a90", label=text)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="work: trials x pixels of their windows", ylabel="seconds, median")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _table(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        work = result.benchmark.work
        for row in result.rows():
            rate, slowest, fastest, ratio = (
                rounded(row[name]) for name in ("rate", "slowest", "fastest", "ratio")
            )
            unit = f"{row['unit']}/s"
            lines.append([work, str(row["who"]), rate, unit, slowest, fastest, str(row["runs"]), ratio])
            work = ""
    return markdown(_HEADER, lines, left=2)


def _remarks(results: Sequence[Result], quick: bool) -> str:
    """Explain the table: how to read it, which baselines are faster, and which were not measured."""
    lines = [_LEGEND, *dict.fromkeys(r.benchmark.remark for r in results if r.benchmark.remark)]
    if quick:
        lines.append("--quick: rates of so little work mean nothing.")
    lost: dict[str, list[str]] = {}
    for result in results:
        baseline = result.fastest_baseline
        for row in result.rows():
            if baseline and row["own"] and isinstance(row["ratio"], float) and row["ratio"] < 1:
                text = f"{row['work']}, {row['who']} ({rounded(row['ratio'])})"
                lost.setdefault(baseline.name, []).append(text)
    lines += [f"Slower than {name}: {'; '.join(works)}." for name, works in lost.items()]
    wrapped = [textwrap.fill(line, _WIDTH, break_on_hyphens=False) for line in lines]
    absent = {(item.name, item.why): None for result in results for item in result.absent}
    return "\n".join([*wrapped, *(f"Not measured: {name}: {why}" for name, why in absent)])


def _plain_table(rows: Sequence[Row]) -> str:
    """Format all rows and the columns that hold a value; text comes first."""
    header = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    left = next(
        (place for place, name in enumerate(header) if not isinstance(rows[0][name], str)), len(header)
    )
    return markdown(header, [[rounded(row[name]) for name in header] for row in rows], left)
