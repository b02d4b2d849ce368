"""Search of label settings: evaluation on true masks, coordinate search, and the uncertainty of a gain."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import fingerprint_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import CrfConfig
from mclc_gpu.labels.config import MAKERS, LabelConfig, Parameter, changed
from mclc_gpu.labels.pipeline import (
    ClusteredTargets,
    by_image,
    cluster_targets,
    compose,
    refine_targets,
)
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.windows import PlacedTargets

Values = dict[str, Any]


def space_of(config: LabelConfig) -> tuple[Parameter, ...]:
    """Return the search space of a config's label maker, with the config's own values among those to try.

    Raises
    ------
    InputError
        If the label maker has no settings to search.

    Examples
    --------
    >>> from mclc_gpu.labels.config import preset
    >>> from mclc_gpu.tune.search import space_of
    >>> space_of(preset("default"))[0].values
    ('bright', 'dark', 'auto')
    """
    space = config.entry.search_space
    if not space:
        able = [name for name, entry in MAKERS.items() if entry.search_space]
        raise InputError(f"maker {config.maker!r}: only {' and '.join(able)} can be tuned")
    start = values_of(config, space)
    return tuple(parameter.with_value(start[parameter.name]) for parameter in space)


def values_of(config: LabelConfig, space: tuple[Parameter, ...]) -> Values:
    """Return the config's own value of each parameter."""
    values = {}
    for parameter in space:
        part: Any = config
        for name in parameter.name.split("."):
            part = getattr(part, name)
        values[parameter.name] = part
    return values


def with_values(config: LabelConfig, values: Mapping[str, Any]) -> LabelConfig:
    """Return the config with these values of parameters; InputError for a value that cannot be used."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, setting = name.partition(".")
        if dot:
            changes.setdefault(part, {})[setting] = value
        else:
            changes[name] = value
    return changed(config, **changes)


def matters(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Return True if a parameter has an effect, given the values of the others."""
    return parameter.only is None or values[parameter.only[0]] in parameter.only[1]


LEAST_GAIN = 0.0005  # IoU; a smaller gain is not worth another value
_IDLE_RESTARTS = 25  # restarts in a row without a new evaluation: the space is exhausted
_RESAMPLES = 1000


@dataclass(frozen=True)
class TuneSet:
    """Images with true masks, and the clicks on each image for each seed.

    Attributes
    ----------
    names : list of str
    images : list of ndarray [H, W] or [H, W, 3]
    truth : list of ndarray [H, W], bool
    points : list of list of list of Point
        By seed, image and target.
    """

    names: list[str]
    images: list[np.ndarray]
    truth: list[np.ndarray]
    points: list[list[list[Point]]]

    def part(self, members: Sequence[int]) -> "TuneSet":
        """Return the subset of the images with these indices."""
        return TuneSet(
            [self.names[i] for i in members],
            [self.images[i] for i in members],
            [self.truth[i] for i in members],
            [[clicks[i] for i in members] for clicks in self.points],
        )

    def halves(self, seed: int) -> list[list[int]]:
        """Split the images into two halves alike in target area; return the indices of each.

        Of every two images that follow each other in target area, one goes to each half, drawn with `seed`.
        """
        order = sorted(range(len(self.names)), key=lambda i: (int(self.truth[i].sum()), self.names[i]))
        rng = np.random.default_rng(seed)
        parts: list[list[int]] = [[], []]
        for first in range(0, len(order), 2):
            flip = int(rng.integers(2))
            for place, member in enumerate(order[first : first + 2]):
                parts[(place + flip) % 2].append(member)
        return [sorted(part) for part in parts]


class _Clustered(NamedTuple):
    """Clustered targets of one part and seed, reused as long as only the refinement changes."""

    key: LabelConfig
    placed: PlacedTargets
    groups: list[ClusteredTargets]


class Evaluator:
    """Labels the parts of a set with any config and counts their pixels; nothing is computed twice.

    Labels do not depend on the images that are labeled together, so that the pixels of the parts add up.

    Parameters
    ----------
    parts : sequence of TuneSet
    device : torch.device
    known : mapping, optional
        Results that an earlier run journaled, by key.
    record : callable
        Called with the key and the pixels of every new result.
    """

    def __init__(
        self,
        parts: Sequence[TuneSet],
        device: torch.device,
        known: Mapping[str, Sequence[Sequence[int]]] | None = None,
        record: Callable[[str, list[list[int]]], None] = lambda key, pixels: None,
    ) -> None:
        self.parts = parts
        self.device = device
        self._known = {key: np.asarray(pixels, np.int64) for key, pixels in (known or {}).items()}
        self._record = record
        self._last: dict[tuple[int, int], _Clustered] = {}

    def pixels(self, config: LabelConfig, part: int) -> np.ndarray:
        """Count intersection and union of a part's masks with the true ones: int64 [seeds, 2], pixels."""
        key = f"{part}:{fingerprint_of(asdict(config))}"
        if key not in self._known:
            self._known[key] = self.of_images(config, part).sum(axis=1)
            self._record(key, self._known[key].tolist())
        return self._known[key]

    def of_images(self, config: LabelConfig, part: int) -> np.ndarray:
        """Count them per image: int64 [seeds, images, 2]. Targets that cannot be labeled have no mask."""
        return np.array([self._of_seed(config, part, seed) for seed in range(len(self.parts[part].points))])

    def _of_seed(self, config: LabelConfig, part: int, seed: int) -> list[tuple[int, int]]:
        frames = self.parts[part]
        _, placed, groups = self._clustered(config, part, seed)
        of_image = by_image(refine_targets(placed, groups, config), len(frames.images))
        both = [
            (compose(truth.shape, own)[0], truth) for own, truth in zip(of_image, frames.truth, strict=True)
        ]
        # The pixel counts of `Scores`, without its matching of components, which would take most of the time.
        return [(int(np.count_nonzero(m & t)), int(np.count_nonzero(m | t))) for m, t in both]

    def _clustered(self, config: LabelConfig, part: int, seed: int) -> _Clustered:
        key = replace(config, refine="threshold", threshold=0.0, crf=CrfConfig())
        last = self._last.get((part, seed))
        if last is None or last.key != key:
            frames = self.parts[part]
            placed, _ = place_targets(
                frames.images, frames.points[seed], frames.names, config, seed, self.device
            )
            last = _Clustered(key, placed, cluster_targets(frames.images, placed, config, self.device))
            self._last[part, seed] = last
        return last


def iou_by_seed(pixels: np.ndarray) -> np.ndarray:
    """Compute IoUs, float64 [seeds], from intersections and unions [seeds, ..., 2]; 0 if both are empty."""
    totals = pixels.reshape(len(pixels), -1, 2).sum(axis=1)
    return totals[:, 0] / np.maximum(totals[:, 1], 1)


def spread_of(values: np.ndarray) -> float:
    """Compute the standard deviation (n - 1); NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def gain_of(before: np.ndarray, after: np.ndarray, seed: int) -> tuple[float, float]:
    """Compute the gain in IoU between two configs, and its uncertainty.

    Parameters
    ----------
    before, after : ndarray [seeds, images, 2], int64
        Intersection and union, pixels, with either config.
    seed : int
        Seed of the resampling.

    Returns
    -------
    gain : float
        Mean over the seeds.
    uncertainty : float
        Standard deviation of the gain over bootstrap resamples of the images and of the seeds, the same ones
        for both configs.
    """
    gain = float(np.mean(iou_by_seed(after) - iou_by_seed(before)))
    rng = np.random.default_rng(seed)
    seeds, images, _ = before.shape
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=_RESAMPLES)
    runs = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES)
    totals = [np.einsum("ri,sik->rsk", drawn, pixels) for pixels in (before, after)]
    ious = [total[..., 0] / np.maximum(total[..., 1], 1) for total in totals]
    gains = ((ious[1] - ious[0]) * runs).sum(axis=1) / seeds
    return gain, float(gains.std(ddof=1))


class _Spent(Exception):
    """Raised when the budget of evaluations is used up."""


class Search:
    """Coordinate search from the start, then from random places until the budget is spent.

    One parameter after another is moved step by step while the score rises, until no parameter helps. Each
    restart draws half of the best values again, uniformly. Equal arguments give an equal search.

    Parameters
    ----------
    score : callable
        Maps values to their score; called at most `budget` times, never twice with the same values.
    space : sequence of Parameter
    start : dict
        Values at the start.
    budget : int >= 1
    seed : int

    Attributes
    ----------
    best : dict
        Best values so far; those at the start while none is better by `LEAST_GAIN`.
    best_score : float
        Their score; minus infinity before the first evaluation.
    """

    def __init__(
        self,
        score: Callable[[Values], float],
        space: Sequence[Parameter],
        start: Values,
        budget: int,
        seed: int = 0,
    ) -> None:
        self._score, self._space, self._start, self._budget = score, space, start, budget
        self._rng = np.random.default_rng(seed)
        self._scores: dict[tuple[object, ...], float] = {}
        self.best, self.best_score = start, -math.inf

    @property
    def seen(self) -> int:
        """Number of different values that were evaluated."""
        return len(self._scores)

    def run(self) -> None:
        """Search; `best` stays valid after an interrupt."""
        try:
            self._at(self._start)
            self._climb(self._start)
            idle = 0
            while idle < _IDLE_RESTARTS:
                before = self.seen
                self._climb(self._elsewhere())
                idle = idle + 1 if self.seen == before else 0
        except _Spent:
            pass

    def _at(self, values: Values) -> float:
        """Return the score of these values."""
        key = tuple(values.values())
        if key not in self._scores:
            if len(self._scores) >= self._budget:
                raise _Spent
            score = self._scores[key] = self._score(values)
            if score > self.best_score + LEAST_GAIN:
                self.best, self.best_score = values, score
        return self._scores[key]

    def _climb(self, values: Values) -> None:
        """Go from these values to ones that no single parameter improves."""
        rises = True
        while rises:
            rises = False
            for parameter in self._space:
                if matters(parameter, values):
                    moved = self._along(parameter, values)
                    rises |= moved is not values
                    values = moved

    def _along(self, parameter: Parameter, values: Values) -> Values:
        """Move one parameter to its best value; return `values` itself if none is better."""
        if not parameter.ordered:
            others = [self._with(values, parameter, other) for other in parameter.values]
            best = max(others, key=self._at)
            return best if self._better(best, values) else values
        for direction in (1, -1):
            moved = values
            for step in self._steps(parameter, values, direction):
                if not self._better(step, moved):
                    break
                moved = step
            if moved is not values:
                return moved
        return values

    def _steps(self, parameter: Parameter, values: Values, direction: int) -> Iterator[Values]:
        """Yield the values with the parameter moved farther and farther in one direction."""
        place = parameter.values.index(values[parameter.name]) + direction
        while 0 <= place < len(parameter.values):
            yield self._with(values, parameter, parameter.values[place])
            place += direction

    def _better(self, one: Values, other: Values) -> bool:
        return self._at(one) > self._at(other) + LEAST_GAIN

    def _with(self, values: Values, parameter: Parameter, value: object) -> Values:
        return self._plain({**values, parameter.name: value})

    def _plain(self, values: Values) -> Values:
        """Replace values that do not matter by those at the start."""
        own = [(p, values[p.name] if matters(p, values) else self._start[p.name]) for p in self._space]
        return {parameter.name: value for parameter, value in own}

    def _elsewhere(self) -> Values:
        """Draw the values of a restart."""
        draws = [(p, p.values[int(self._rng.integers(len(p.values)))]) for p in self._space]
        anew = self._rng.random(len(draws)) < 0.5
        return self._plain(
            {p.name: v if new else self.best[p.name] for (p, v), new in zip(draws, anew, strict=True)}
        )
