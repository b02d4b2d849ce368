"""Time contenders in turns and print their rates side by side."""

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import torch

from mclc_gpu.data.files import write_csv
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import synchronize

Cell = str | int | float | None
Row = dict[str, Cell]
_PACKAGES = (
    *("mclc-gpu", "torch", "triton", "numba", "numpy", "scikit-image", "pydensecrf"),
    *("opencv-python-headless", "opencv-contrib-python-headless", "fast-slic", "cuda-slic"),
)


def exit_code(work: Callable[[], object]) -> int:
    """Run a script's work; return 0, or 2 for bad input with one line that says what is wrong."""
    try:
        work()
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same columns as CSV; see `mclc_gpu.data.files.write_csv`."""
    columns = list(rows[0])
    write_csv(path, columns, ([row[name] for name in columns] for row in rows))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format an aligned Markdown table: the first `left` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        both = [*zip(cells, widths, strict=True)]
        padded = [cell.ljust(width) for cell, width in both[:left]]
        padded += [cell.rjust(width) for cell, width in both[left:]]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(line(cells) for cells in (header, rule, *rows))


def shown(cell: Cell, digits: int) -> str:
    """Format a cell: numbers with so many decimals, nothing for None and NaN."""
    if _is_empty(cell):
        return ""
    return cell if isinstance(cell, str) else f"{cell:,.{digits}f}"


def rounded(cell: Cell) -> str:
    """Format a cell: a number with three digits, or all those before the point; text as it is."""
    if not isinstance(cell, float) or _is_empty(cell):
        return shown(cell, 0)
    size = abs(cell)
    if 0 < size < 0.001 or size >= 1e7:
        return f"{cell:.2e}"
    return shown(cell, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3)


def machine(device: torch.device) -> str:
    """Name the processor, the threads of this process, and the GPU if one is in use."""
    text = f"{_processor()}, {numba.config.NUMBA_NUM_THREADS} threads"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


def versions() -> str:
    """List the versions of Python and of the packages that the measurements depend on."""
    return ", ".join(f"{name} {known or 'not installed'}" for name, known in _versions().items())


def circumstances(device: torch.device, command: str) -> dict[str, Any]:
    """Describe machine, versions and command of a measurement, for JSON; None where a value is unknown."""
    sizes = getattr(os, "sysconf_names", {})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in sizes else None
    return {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": numba.config.NUMBA_NUM_THREADS,
        "memory_bytes": memory,
        "os": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _commit() -> str | None:
    """Return the commit of this checkout, marked if files were changed since; None outside a checkout."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        shown = [
            subprocess.run(
                ["git", "-C", str(folder), *argv], capture_output=True, text=True, check=True
            ).stdout
            for argv in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown[0].strip() + (", changed" if shown[1].strip() else "")


def _is_empty(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


MOST_ROUNDS = 25
_MOST_REPEATS = 5


@dataclass(frozen=True)
class Contender:
    """An implementation that takes part in a benchmark.

    Attributes
    ----------
    name : str
        For the table.
    run : callable
        Does the work once and returns the seconds it took, by a clock of its own choice.
    amount : float
        Work that one run does, in the benchmark's unit.
    own : bool
        Whether it is this package's; the others are baselines.
    """

    name: str
    run: Callable[[], float]
    amount: float
    own: bool = False


@dataclass(frozen=True)
class Absent:
    """A baseline that cannot take part, and why or how to install it."""

    name: str
    why: str


@dataclass(frozen=True)
class Benchmark:
    """A piece of work and the implementations that do it.

    Attributes
    ----------
    work : str
        What is done, on what.
    unit : str
        What the rates count, such as "targets".
    contenders : sequence of Contender
        This package's first.
    seconds : float
        Time budget of all rounds together; the first round runs in any case.
    absent : sequence of Absent
        Baselines that cannot take part.
    remark : str
        What a reader of the rates has to know.
    size : float, optional
        Trials x pixels, where the cost over the work is to be plotted.
    """

    work: str
    unit: str
    contenders: Sequence[Contender]
    seconds: float
    absent: Sequence[Absent] = ()
    remark: str = ""
    size: float | None = None


def clocked(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Return a function that runs the work on an idle device and returns the seconds until it is done."""

    def run() -> float:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    return run


@dataclass
class Result:
    """The measured runs of a benchmark.

    This package's first run warms up: it may hold the compilation for new sizes. A baseline's first run
    counts where it had no time for three.

    Attributes
    ----------
    benchmark : Benchmark
    rounds : dict of str to list of float
        Seconds of every run of each contender, the first ones too.
    absent : list of Absent
        Baselines that could not take part, including those that failed in the first round.
    """

    benchmark: Benchmark
    rounds: dict[str, list[float]] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.absent = list(self.benchmark.absent)

    def first_round(self) -> None:
        """Run every baseline once and this package twice; a baseline that fails is left out."""
        for contender in self.benchmark.contenders:
            try:
                runs = [contender.run() for _ in range(2 if contender.own else 1)]
                self.rounds[contender.name] = runs
            except Exception as error:
                if contender.own:
                    raise
                text = " ".join(str(error).split())
                self.absent.append(Absent(contender.name, f"failed: {type(error).__name__}: {text}"))

    def next_round(self) -> None:
        """Run every contender; those far faster than the slowest run several times."""
        slowest = max(runs[-1] for runs in self.rounds.values())
        for contender in self.measured:
            runs = self.rounds[contender.name]
            share = 0.1 * slowest / max(runs[-1], 1e-9)
            runs += [contender.run() for _ in range(min(max(int(share), 1), _MOST_REPEATS))]

    def release(self) -> None:
        """Release images, networks and processes that the work holds; no further runs."""
        done = [replace(contender, run=_released) for contender in self.benchmark.contenders]
        self.benchmark = replace(self.benchmark, contenders=done)

    def seconds(self, contender: Contender) -> list[float]:
        """Return the runs that count."""
        runs = self.rounds[contender.name]
        return runs[1:] if contender.own or len(runs) > 2 else runs

    def rate(self, contender: Contender) -> float:
        """Return units of work per second, by the median of the runs."""
        return contender.amount / statistics.median(self.seconds(contender))

    @property
    def measured(self) -> list[Contender]:
        """Contenders that took part."""
        return [contender for contender in self.benchmark.contenders if contender.name in self.rounds]

    @property
    def fastest_baseline(self) -> Contender | None:
        """Baseline with the highest rate, if there is a baseline."""
        return max((c for c in self.measured if not c.own), key=self.rate, default=None)

    def rows(self) -> list[Row]:
        """Return a row per contender: the rate, its extremes, and its ratio to the fastest baseline's."""
        fastest = self.fastest_baseline
        rows: list[Row] = []
        for contender in self.measured:
            seconds, amount = self.seconds(contender), contender.amount
            rows.append(
                {
                    "work": self.benchmark.work,
                    "unit": self.benchmark.unit,
                    "who": contender.name,
                    "own": int(contender.own),
                    "rate": self.rate(contender),
                    "slowest": amount / max(seconds),
                    "fastest": amount / min(seconds),
                    "runs": len(seconds),
                    "ratio": self.rate(contender) / self.rate(fastest) if fastest else None,
                }
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Return all runs, and the ratios of this package's rates to every baseline's, for JSON."""
        own = [c for c in self.measured if c.own]
        baselines = [c for c in self.measured if not c.own]
        return {
            "work": self.benchmark.work,
            "unit": self.benchmark.unit,
            "size": self.benchmark.size,
            "contenders": [
                {
                    "name": c.name,
                    "own": c.own,
                    "amount": c.amount,
                    "seconds": self.seconds(c),
                    "median_s": statistics.median(self.seconds(c)),
                    "rate": self.rate(c),
                }
                for c in self.measured
            ],
            "ratios": {
                c.name: {other.name: self.rate(c) / self.rate(other) for other in baselines} for c in own
            },
            "absent": [{"name": item.name, "why": item.why} for item in self.absent],
        }


def _released() -> float:
    raise RuntimeError("the benchmark is over")


def measure(benchmark: Benchmark) -> Result:
    """Run rounds of all contenders, as many as the time budget allows.

    The contenders take turns, so that a machine whose speed drifts does so for all of them.
    """
    result = Result(benchmark)
    start = before = time.perf_counter()
    result.first_round()
    for _ in range(MOST_ROUNDS):
        now = time.perf_counter()
        if 2 * now - before - start > benchmark.seconds:  # another round like the last would end too late
            break
        before = now
        result.next_round()
    result.release()
    return result
