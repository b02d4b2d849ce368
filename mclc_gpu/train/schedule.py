"""Schedules of training: which crops and learning rate each step of a run has, and its budget."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from mclc_gpu.errors import InputError
from mclc_gpu.train.config import TrainConfig

MINING = (0.25, 0.5, 0.75)  # shares of a fast run after which false alarms are searched
_LEAST_RATE = 0.01  # share of the highest learning rate at the end of a fast run


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of one shape.

    Attributes
    ----------
    side : int, pixels
        Side of the crops.
    crops : int
        Crops of a step, over all processes.
    rates : tuple of float
        Learning rate of each step.
    frozen : bool
        Batch norms behind a global pooling use their running statistics.
    """

    side: int
    crops: int
    rates: tuple[float, ...]
    frozen: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of all steps."""
        return len(self.rates) * self.crops * self.side**2


class Schedule(Protocol):
    """Steps of a run, which is cut into rounds (epochs).

    Attributes
    ----------
    rounds : int
    pixels : int
        Pixels of all crops of the run.
    """

    @property
    def rounds(self) -> int: ...

    @property
    def pixels(self) -> int: ...

    def stretches(self, number: int) -> list[Stretch]:
        """Return the steps of a round, counted from 0."""
        ...

    def mines(self, number: int) -> bool:
        """Tell if false alarms are searched before a round."""
        ...


@dataclass(frozen=True)
class PaperSchedule:
    """Epochs of equal steps; the learning rate falls to 0 along half a cosine from epoch to epoch.

    Attributes
    ----------
    rounds : int
        Epochs.
    images : int
        Images of the training set.
    config : TrainConfig
        Resolved settings.
    """

    rounds: int
    images: int
    config: TrainConfig

    @property
    def pixels(self) -> int:
        """Pixels of all crops of the run."""
        return self.rounds * self.stretches(0)[0].pixels

    def stretches(self, number: int) -> list[Stretch]:
        """Return the steps of an epoch: every image once, and some again to fill the last batch."""
        config = self.config
        steps = -(-self.images // config.batch_size)
        rate = 0.5 * highest(config) * (1 + math.cos(math.pi * number / self.rounds))
        return [Stretch(config.size, config.batch_size, (rate,) * steps)]

    def mines(self, number: int) -> bool:
        """Return False: no false alarms are searched."""
        del number
        return False


@dataclass(frozen=True)
class FastSchedule:
    """Stages of growing crops within a fixed number of pixels; see `FastConfig`.

    Attributes
    ----------
    rounds : int
    pixels : int
    config : TrainConfig
        Resolved settings.
    least : int
        Smallest batch of a process.
    world : int
        Processes.
    """

    rounds: int
    pixels: int
    config: TrainConfig
    least: int
    world: int

    @cached_property
    def _steps(self) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
        """First pixel of every step, and (first step, side, crops) of every stage that has a step."""
        starts: list[np.ndarray] = []
        stages: list[tuple[int, int, int]] = []
        done, first, end = 0, 0, 0.0
        for side, share in self.config.fast.parsed_stages():
            end += share * self.pixels
            each = crops_of_step(self.config, side, self.least, self.world)
            cost = each * side**2
            steps = max(math.ceil((min(end, self.pixels) - done) / cost - 1e-9), 0)
            if steps:
                stages.append((first, side, each))
            starts.append(done + cost * np.arange(steps, dtype=np.int64))
            done, first = done + cost * steps, first + steps
        return np.concatenate(starts), stages

    def stretches(self, number: int) -> list[Stretch]:
        """Return the steps that begin in a round."""
        starts, stages = self._steps
        first, end = np.searchsorted(starts, [self._begin(number), self._begin(number + 1)]).tolist()
        frozen = int(np.searchsorted(starts, self.config.fast.freeze * self.pixels))
        if self.config.fast.freeze == 1:
            frozen = len(starts)
        cuts = sorted({first, end, *(at for at in (*(s[0] for s in stages), frozen) if first < at < end)})
        made = []
        for low, high in pairwise(cuts):
            _, side, crops = stages[bisect_right([stage[0] for stage in stages], low) - 1]
            done = (starts[low:high] + crops * side**2) / self.pixels
            made.append(Stretch(side, crops, tuple(map(self._rate, done.tolist())), low >= frozen))
        return made

    def mines(self, number: int) -> bool:
        """Tell if a round is the first one after one of the shares `MINING` of the run."""
        if not self.config.fast.hard_share:
            return False
        return any((number - 1) / self.rounds < share <= number / self.rounds for share in MINING)

    def _begin(self, number: int) -> float:
        return number * self.pixels / self.rounds

    def _rate(self, done: float) -> float:
        """Return the learning rate of the step that ends at a share of the run."""
        warmup, most = self.config.fast.warmup, highest(self.config)
        if done < warmup:
            return most * done / warmup
        fall = 0.5 * (1 + math.cos(math.pi * min((done - warmup) / (1 - warmup), 1)))
        return most * max(fall, _LEAST_RATE)


def highest(config: TrainConfig) -> float:
    """Return the highest learning rate of resolved settings."""
    assert config.lr is not None
    return config.lr


def crops_of_step(config: TrainConfig, side: int, least: int, world: int) -> int:
    """Return the crops of a step of the fast schedule over all processes, of which each has `least`."""
    return world * max(least, config.fast.step_pixels // (side**2 * world))


class Budget(NamedTuple):
    """Pixels of the crops of a fast run, and the rounds into which they are divided."""

    pixels: int
    rounds: int


def budget_of(config: TrainConfig, pixels: int, least: int, world: int) -> Budget:
    """Return a budget of the rounds that are set, or as many as are longer than a step."""
    sides = [side for side, _ in config.fast.parsed_stages()]
    largest = max(crops_of_step(config, side, least, world) * side**2 for side in sides)
    return Budget(pixels, max(1, min(config.fast.rounds, pixels // largest)))


def make_schedule(
    config: TrainConfig, images: int, least: int, world: int, begun: Budget | None = None
) -> Schedule:
    """Build the schedule of a run.

    Parameters
    ----------
    config : TrainConfig
        Resolved.
    images : int
        Images of the training set.
    least : int
        Smallest batch of a process.
    world : int
        Processes.
    begun : Budget, optional
        That of the fast run that is resumed, or what was measured for one of some minutes. A larger budget
        in `config` adds rounds of the same size.

    Raises
    ------
    InputError
        If the budget is below that of the run that is resumed.
    """
    if config.schedule == "paper":
        assert config.epochs is not None
        return PaperSchedule(config.epochs, images, config)
    pixels = _pixels(config, images)
    if pixels is None:
        if begun is None:
            raise ValueError("a budget in minutes is measured before")
        pixels = begun.pixels
    budget = begun or budget_of(config, pixels, least, world)
    if pixels < budget.pixels:
        raise InputError(
            f"a budget of {pixels / 1e6:g} Mpixel is less than the {budget.pixels / 1e6:g} with which the "
            "run was begun; give as many or more"
        )
    if pixels > budget.pixels:
        longer = max(budget.rounds + 1, round(budget.rounds * pixels / budget.pixels))
        budget = Budget(pixels, longer)
    return FastSchedule(budget.rounds, budget.pixels, config, least, world)


def _pixels(config: TrainConfig, images: int) -> int | None:
    """Return the budget of the fast schedule in pixels; None for one of minutes."""
    if config.mpixels is not None:
        return max(1, round(config.mpixels * 1e6))
    if config.epochs is not None:
        return config.epochs * images * config.size**2
    return None
