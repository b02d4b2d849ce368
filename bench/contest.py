"""What is measured against what, and the clock: contestants that do the same work take turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mclc_gpu.bench.tables import Row
from mclc_gpu.kernels.backend import synchronize

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
