"""What `mclc-gpu bench` does: suites of contests run one after another, their table, files and plot."""

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.bench import cost
from mclc_gpu.bench.contest import Contest, Result, measure
from mclc_gpu.bench.ground import open_ground
from mclc_gpu.bench.suites import SUITES
from mclc_gpu.bench.tables import Row, circumstances, machine, markdown, rounded, write_csv
from mclc_gpu.errors import InputError
from mclc_gpu.journal import Layout, write_json

LIMITS = "limits"
CSV, COST_CSV, PLOT, PLAN = "bench.csv", "cost.csv", "cost.png", "plan.json"
LAYOUT = Layout("bench", (), (CSV, COST_CSV, PLOT, PLAN, "roofline.csv", "resources.csv"))
_HEADER = ("work", "who", "rate", "unit", "slowest", "fastest", "runs", "ratio")
_LEGEND = (
    "rate: of the median run, after a warm-up; slowest, fastest: of single runs; ratio: to the fastest peer "
    "of the same work, in turns with it and on all cores of this processor. Below 1 a peer is faster."
)
_WIDTH = 110  # of the text below a table


@dataclass(frozen=True)
class BenchJob:
    """What to measure.

    Attributes:
        suites: Names of `SUITES`, and `LIMITS`.
        device: This package's.
        out: Folder for the files.
        images, masks, names: Folders of frames and of their true masks, and a list of some of them; None:
            synthetic frames.
        quick: Little work, to see that everything runs.
        command: As it was given.
    """

    suites: Sequence[str]
    device: torch.device
    out: Path
    images: Path | None = None
    masks: Path | None = None
    names: Path | None = None
    quick: bool = False
    command: str = "mclc-gpu bench"


def run_bench(job: BenchJob) -> dict[str, Any]:
    """Measure, print the table, write the files; returns the content of bench.json.

    Raises InputError for files that cannot be used.
    """
    start = time.perf_counter()
    source, results, costs = _contests(job)
    limits = _limits(job) if LIMITS in job.suites else {}
    seconds = time.perf_counter() - start
    account = {
        **circumstances(job.device, job.command),
        "frames": source,
        "quick": job.quick,
        "seconds": seconds,
        "suites": {suite: [result.as_dict() for result in own] for suite, own in results.items()},
        "cost": [result.as_dict() for result in costs.values()],
        "limits": limits,
    }
    write_json(LAYOUT.summary(job.out), account)
    tables: dict[str, list[Row]] = {f"{name}.csv": rows for name, rows in limits.items()}
    if results:
        tables[CSV] = [
            {"suite": suite, **row} for suite, own in results.items() for r in own for row in r.rows()
        ]
        print(f"{source}. {machine(job.device)}.\n\n{_table(results)}\n\n{_remarks(results, job.quick)}")
    if costs:
        tables[COST_CSV] = cost.cost_rows(costs)
        title = f"{costs['base'].contest.work}; a line varies one of the three\n{machine(job.device)}"
        cost.plot_cost(tables[COST_CSV], title, job.out / PLOT)
    for name, rows in limits.items():
        print(f"\n{name}\n\n{_plain_table(rows)}")
    for name, rows in tables.items():
        write_csv(job.out / name, rows)
    written = [LAYOUT.summary(job.out).name, *tables, *([PLOT] if costs else [])]
    print(f"\n{seconds:.0f} s; written to {job.out}: {', '.join(written)}")
    return account


def _contests(job: BenchJob) -> tuple[str | None, dict[str, list[Result]], dict[str, Result]]:
    """What the frames are, the results by suite, and those of growing work by name."""
    chosen = [name for name in SUITES if name in job.suites]
    if not chosen:
        return None, {}, {}
    with open_ground(job.images, job.masks, job.names, job.device, job.quick) as ground:
        results = {
            suite: [_measured(suite, build(ground)) for build in SUITES[suite].values()] for suite in chosen
        }
        growing = cost.CONTESTS if "label" in chosen else {}
        costs = {name: _measured("cost", build(ground)) for name, build in growing.items()}
        return ground.source, results, costs


def _measured(suite: str, contest: Contest) -> Result:
    print(f"{suite}: {contest.work}", file=sys.stderr, flush=True)
    return measure(contest)


def _limits(job: BenchJob) -> dict[str, list[Row]]:
    """The tables of the kernels' distance to the machine's limits, by name."""
    from mclc_gpu.bench.resources import resources
    from mclc_gpu.bench.roofline import roofline

    print("limits: roofline", file=sys.stderr, flush=True)
    tables = {"roofline": roofline(job.device)}
    print("limits: resources, compiling ahead of time", file=sys.stderr, flush=True)
    try:
        return tables | {"resources": resources()}
    except RuntimeError as error:
        raise InputError(str(error)) from error


def _table(results: Mapping[str, Sequence[Result]]) -> str:
    lines = []
    for result in (result for own in results.values() for result in own):
        work = result.contest.work
        for row in result.rows():
            rate, slowest, fastest, ratio = (
                rounded(row[name]) for name in ("rate", "slowest", "fastest", "ratio")
            )
            unit = f"{row['unit']}/s"
            lines.append([work, str(row["who"]), rate, unit, slowest, fastest, str(row["runs"]), ratio])
            work = ""
    return markdown(_HEADER, lines, left=2)


def _remarks(results: Mapping[str, Sequence[Result]], quick: bool) -> str:
    """What the table leaves to be said: how to read it, where a peer is faster, and which are not there."""
    every = [result for own in results.values() for result in own]
    lines = [_LEGEND, *dict.fromkeys(result.contest.remark for result in every if result.contest.remark)]
    if quick:
        lines.append("--quick: rates of so little work mean nothing.")
    lost: dict[str, list[str]] = {}
    for result in every:
        peer = result.fastest_peer
        for row in result.rows():
            if peer and row["own"] and isinstance(row["ratio"], float) and row["ratio"] < 1:
                text = f"{row['work']}, {row['who']} ({rounded(row['ratio'])})"
                lost.setdefault(peer.name, []).append(text)
    lines += [f"Slower than {name}: {'; '.join(works)}." for name, works in lost.items()]
    wrapped = [textwrap.fill(line, _WIDTH, break_on_hyphens=False) for line in lines]
    absent = {(item.name, item.why): None for result in every for item in result.absent}
    return "\n".join([*wrapped, *(f"Not measured: {name}: {why}" for name, why in absent)])


def _plain_table(rows: Sequence[Row]) -> str:
    """All rows and those columns that hold anything; text comes first."""
    header = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    left = next(
        (place for place, name in enumerate(header) if not isinstance(rows[0][name], str)), len(header)
    )
    return markdown(header, [[rounded(row[name]) for name in header] for row in rows], left)
