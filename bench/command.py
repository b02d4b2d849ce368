"""The bench command: run suites, print and save their tables and plots."""

import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from mclc_gpu.bench.compare import (
    Absent,
    Contest,
    Contestant,
    Result,
    Row,
    circumstances,
    clocked,
    machine,
    markdown,
    measure,
    rounded,
    write_rows,
)
from mclc_gpu.bench.dataset import Ground, open_ground
from mclc_gpu.bench.reference import Item, cluster_alone
from mclc_gpu.bench.suites import SUITES
from mclc_gpu.data.files import atomic_path, write_json
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.windows import Window, nearest_pixel
from mclc_gpu.runs import RunLayout

# Targets, trials and side of the windows: one of the three grows, the others stay.
_BASE = {"targets": 32, "K": 20, "side": 21}
GROWING = {"targets": (4, 16, 64, 256), "K": (1, 5, 100, 500), "side": (6, 11, 42, 63)}
_PEER_SIZE = 1_500_000  # trials x pixels that the peer clusters in about a second
_SECONDS = 1.0
_COLOURS = {True: "#0072b2", False: "#d55e00"}
_MARKERS = {"targets": ("o", "targets"), "K": ("s", "trials"), "side": ("^", "side of the windows")}


def cost(ground: Ground, grows: str | None, value: int) -> Contest:
    """Noise and SLIC with one quantity at a value of its own; None: all at their usual values."""
    usual = {"targets": 4, "K": 2, "side": 8} if ground.quick else _BASE
    quantities = usual | ({grows: value} if grows else {})
    targets, trials, side = (quantities[name] for name in ("targets", "K", "side"))
    crops, clicks = _crops(ground, targets, side)
    images = PackedImages.pack(crops, ground.device)
    rows = [(t, 0, 0, *crop.shape[:2], *clicks[t], 0) for t, crop in enumerate(crops)]
    windows, keys = Windows.pack(rows), torch.arange(targets)
    size = trials * sum(crop.shape[0] * crop.shape[1] for crop in crops)

    def own() -> object:
        return run_trials(images, windows, keys, TrialConfig(), trials)

    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), trials * targets, own=True)]
    absent: tuple[Absent, ...] = ()
    if crops[0].dtype != np.uint8:
        absent = (Absent("scikit-image", "cannot take these images: not 8 bits"),)
    elif size <= _PEER_SIZE:
        items = [_item(t, crop, clicks[t]) for t, crop in enumerate(crops)]
        run = partial(ground.pool.seconds, partial(cluster_alone, trials=trials), items)
        contestants.append(Contestant("scikit-image", run, trials * targets))
    text = ", ".join(f"{name} = {quantity}" for name, quantity in quantities.items())
    return Contest(f"noise and SLIC, {text}", "trials", contestants, ground.time(_SECONDS), absent, size=size)


CONTESTS: dict[str, Callable[[Ground], Contest]] = {
    "base": partial(cost, grows=None, value=0),
    **{
        f"{name} {value}": partial(cost, grows=name, value=value)
        for name, values in GROWING.items()
        for value in values
    },
}


def cost_rows(results: Mapping[str, Result]) -> list[Row]:
    """A row for each contestant of every contest: what grows, trials x pixels, median seconds."""
    rows: list[Row] = []
    for name, result in results.items():
        grows, _, value = name.partition(" ")
        for contestant in result.taking_part:
            seconds = float(np.median(result.seconds(contestant)))
            cells: Row = {"who": contestant.name, "own": int(contestant.own), "grows": grows}
            of_all = {"value": int(value) if value else None, "trials_x_pixels": result.contest.size}
            rows.append(cells | of_all | {"seconds": seconds, "runs": len(result.seconds(contestant))})
    return rows


def plot_cost(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the rows as PNG, log-log: seconds over trials x pixels; colours tell who, marks what grows."""
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for who in dict.fromkeys(row["who"] for row in rows):
        own = [row for row in rows if row["who"] == who]
        colour = _COLOURS[bool(own[0]["own"])]
        axes.plot([], [], color=colour, label=who)
        for grows, (marker, _) in _MARKERS.items():
            points = sorted(
                (float(row["trials_x_pixels"] or 0), float(row["seconds"] or 0))
                for row in own
                if row["grows"] in (grows, "base")
            )
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, alpha=0.85)
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


def _crops(ground: Ground, targets: int, side: int) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Square windows around targets of the frames, again from the first where there are too few targets."""
    frames = ground.frames
    clicks = [(image, p) for image, own in zip(frames.images, frames.points(0), strict=True) for p in own]
    crops, places = [], []
    for number in range(targets):
        image, point = clicks[number % len(clicks)]
        height, width = image.shape[:2]
        row, column = nearest_pixel(point.x, point.y, height, width)
        top, left = (
            min(max(middle - side // 2, 0), max(length - side, 0))
            for middle, length in ((row, height), (column, width))
        )
        crops.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
        places.append((row - top, column - left))
    return crops, places


def _item(number: int, crop: np.ndarray, click: tuple[int, int]) -> Item:
    rgb = np.repeat(crop[:, :, None], 3, axis=2) if crop.ndim == 2 else crop
    height, width = crop.shape[:2]
    window = Window(0, 0, height, width, *click)
    return Item(str(number), np.ascontiguousarray(rgb), (window,))


LIMITS = "limits"
CSV, COST_CSV, PLOT, PLAN = "bench.csv", "cost.csv", "cost.png", "plan.json"
LAYOUT = RunLayout("bench", (), (CSV, COST_CSV, PLOT, PLAN, "roofline.csv", "resources.csv"))
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
        tables[COST_CSV] = cost_rows(costs)
        title = f"{costs['base'].contest.work}; a line varies one of the three\n{machine(job.device)}"
        plot_cost(tables[COST_CSV], title, job.out / PLOT)
    for name, rows in limits.items():
        print(f"\n{name}\n\n{_plain_table(rows)}")
    for name, rows in tables.items():
        write_rows(job.out / name, rows)
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
        growing = CONTESTS if "label" in chosen else {}
        costs = {name: _measured("cost", build(ground)) for name, build in growing.items()}
        return ground.source, results, costs


def _measured(suite: str, contest: Contest) -> Result:
    print(f"{suite}: {contest.work}", file=sys.stderr, flush=True)
    return measure(contest)


def _limits(job: BenchJob) -> dict[str, list[Row]]:
    """The tables of the kernels' distance to the machine's limits, by name."""
    from mclc_gpu.bench.limits import roofline
    from mclc_gpu.bench.resources import resources

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
