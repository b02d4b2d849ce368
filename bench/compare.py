"""Time contenders in turns and print their rates side by side."""

import math
import os
import platform
import statistics
import subprocess
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
from mclc_gpu.kernels.backend import synchronize

Cell = str | int | float | None
Row = dict[str, Cell]
_PACKAGES = (
    *("mclc-gpu", "torch", "triton", "numba", "numpy", "scikit-image", "pydensecrf"),
    *("opencv-python-headless", "opencv-contrib-python-headless", "fast-slic", "cuda-slic"),
)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same columns as CSV; see `mclc_gpu.data.files.write_csv`."""
    columns = list(rows[0])
    write_csv(path, columns, ([row[name] for name in columns] for row in rows))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An aligned table that also reads well as plain text: the first columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        both = [*zip(cells, widths, strict=True)]
        padded = [cell.ljust(width) for cell, width in both[:left]]
        padded += [cell.rjust(width) for cell, width in both[left:]]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(line(cells) for cells in (header, rule, *rows))


def shown(cell: Cell, digits: int) -> str:
    """A cell to read: numbers with so many decimals, nothing for None and NaN."""
    if _is_empty(cell):
        return ""
    return cell if isinstance(cell, str) else f"{cell:,.{digits}f}"


def rounded(cell: Cell) -> str:
    """A cell to read: a number with three digits, or all those before the point; text as it is."""
    if not isinstance(cell, float) or _is_empty(cell):
        return shown(cell, 0)
    size = abs(cell)
    if 0 < size < 0.001 or size >= 1e7:
        return f"{cell:.2e}"
    return shown(cell, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3)


def machine(device: torch.device) -> str:
    """Processor and threads of this process, and the GPU if there is one in use."""
    text = f"{_processor()}, {numba.config.NUMBA_NUM_THREADS} threads"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


def versions() -> str:
    """Python and the packages that the numbers rest on."""
    return ", ".join(f"{name} {known or 'not installed'}" for name, known in _versions().items())


def circumstances(device: torch.device, command: str) -> dict[str, Any]:
    """What a measurement was made on, for JSON; None for what the system does not tell."""
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
    """Of the checkout that this file lies in, marked where it was changed since; None outside of one."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0].strip() + (", changed" if told[1].strip() else "")


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
class Contestant:
    """One way to do a piece of work.

    Attributes:
        name: For the table.
        run: Does the work once and returns the seconds it took, by a clock of its own choice.
        amount: Of the work that one run does, in the contest's unit.
        own: Whether it is this package's way.
    """

    name: str
    run: Callable[[], float]
    amount: float
    own: bool = False


@dataclass(frozen=True)
class Absent:
    """A peer that cannot take part, and why or how to get it."""

    name: str
    why: str


@dataclass(frozen=True)
class Contest:
    """A piece of work and who does it.

    Attributes:
        work: What is done, on what.
        unit: What the rates count, such as "targets".
        contestants: This package's first.
        seconds: That all rounds together may take; the first is run in any case.
        absent: Peers that cannot take part.
        remark: What a reader of the rates has to know.
        size: trials x pixels, where the cost over the work is to be plotted.
    """

    work: str
    unit: str
    contestants: Sequence[Contestant]
    seconds: float
    absent: Sequence[Absent] = ()
    remark: str = ""
    size: float | None = None


def clocked(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """The seconds of one run of the work on a device, from its being idle to its being done."""

    def run() -> float:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    return run


@dataclass
class Result:
    """The rounds of a contest.

    This package's first run warms up, whatever the contest's builder warmed up already: it may hold the
    compilation for new sizes. A peer's first run counts where it had no time for three.

    Attributes:
        contest: Whose.
        rounds: Seconds of every run of each contestant, by name, the first ones too.
        absent: Peers that could not take part, also those that failed in the first round.
    """

    contest: Contest
    rounds: dict[str, list[float]] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.absent = list(self.contest.absent)

    def first_round(self) -> None:
        """Run every peer once and this package twice. A peer that fails is left out from then on."""
        for contestant in self.contest.contestants:
            try:
                runs = [contestant.run() for _ in range(2 if contestant.own else 1)]
                self.rounds[contestant.name] = runs
            except Exception as error:
                if contestant.own:
                    raise
                text = " ".join(str(error).split())
                self.absent.append(Absent(contestant.name, f"failed: {type(error).__name__}: {text}"))

    def run(self, contestants: Sequence[Contestant], repeats: bool = True) -> None:
        """Run these in turn; with `repeats` those that are far faster than the slowest several times."""
        slowest = max(runs[-1] for runs in self.rounds.values())
        for contestant in contestants:
            if contestant.name not in self.rounds:
                continue
            runs = self.rounds[contestant.name]
            share = 0.1 * slowest / max(runs[-1], 1e-9)
            for _ in range(min(max(int(share), 1), _MOST_REPEATS) if repeats else 1):
                runs.append(contestant.run())

    def release(self) -> None:
        """Let go of images, networks and processes that the work holds: no more runs."""
        done = [replace(contestant, run=_released) for contestant in self.contest.contestants]
        self.contest = replace(self.contest, contestants=done)

    def seconds(self, contestant: Contestant) -> list[float]:
        """The runs that count."""
        runs = self.rounds[contestant.name]
        return runs[1:] if contestant.own or len(runs) > 2 else runs

    def rate(self, contestant: Contestant) -> float:
        """Units of work per second, by the median of its runs."""
        return contestant.amount / statistics.median(self.seconds(contestant))

    @property
    def taking_part(self) -> list[Contestant]:
        """Those that were measured."""
        return [contestant for contestant in self.contest.contestants if contestant.name in self.rounds]

    @property
    def fastest_peer(self) -> Contestant | None:
        """The peer with the highest rate, if there is a peer."""
        return max((c for c in self.taking_part if not c.own), key=self.rate, default=None)

    def rows(self) -> list[Row]:
        """A row for everyone: the rate with its extremes, and its quotient to the fastest peer's."""
        fastest = self.fastest_peer
        rows: list[Row] = []
        for contestant in self.taking_part:
            seconds, amount = self.seconds(contestant), contestant.amount
            rows.append(
                {
                    "work": self.contest.work,
                    "unit": self.contest.unit,
                    "who": contestant.name,
                    "own": int(contestant.own),
                    "rate": self.rate(contestant),
                    "slowest": amount / max(seconds),
                    "fastest": amount / min(seconds),
                    "runs": len(seconds),
                    "ratio": self.rate(contestant) / self.rate(fastest) if fastest else None,
                }
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON: also the quotients of this package's rates to every peer's."""
        own = [c for c in self.taking_part if c.own]
        peers = [c for c in self.taking_part if not c.own]
        return {
            "work": self.contest.work,
            "unit": self.contest.unit,
            "size": self.contest.size,
            "contestants": [
                {
                    "name": c.name,
                    "own": c.own,
                    "amount": c.amount,
                    "seconds": self.seconds(c),
                    "median_s": statistics.median(self.seconds(c)),
                    "rate": self.rate(c),
                }
                for c in self.taking_part
            ],
            "ratios": {c.name: {peer.name: self.rate(c) / self.rate(peer) for peer in peers} for c in own},
            "absent": [{"name": item.name, "why": item.why} for item in self.absent],
        }


def _released() -> float:
    raise RuntimeError("the contest is over")


def measure(contest: Contest) -> Result:
    """Rounds of all contestants in turn, so that a machine's drift meets all alike, as time allows."""
    result = Result(contest)
    start = before = time.perf_counter()
    result.first_round()
    for _ in range(MOST_ROUNDS):
        now = time.perf_counter()
        if 2 * now - before - start > contest.seconds:  # another round like the last would end too late
            break
        before = now
        result.run(contest.contestants)
    result.release()
    return result
