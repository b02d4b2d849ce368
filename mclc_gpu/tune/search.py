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
    for part, own in changes.items():
        if isinstance(own, dict):
            changes[part] = _with_parts(getattr(config, part), own)
    return changed(config, **changes)


def _with_parts(part: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of a part of a config, with those of its own parts put together."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        inner, dot, setting = name.partition(".")
        changes[inner] = (
            replace(changes.get(inner, getattr(part, inner)), **{setting: value}) if dot else value
        )
    return changes


def matters(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Return True if a parameter has an effect, given the values of the others."""
    return parameter.only is None or values[parameter.only[0]] in parameter.only[1]


LEAST_GAIN = 0.0005  # IoU; a smaller gain is not worth another value
CAUTION = 1.0  # standard errors of a gain that are taken off it
STEP_PRICE = 0.1  # IoU for each step away from the start, divided by the number of images
_FOLDS, _PARTITIONS = 5, 10  # of the cross-validation
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


class _Clustered(NamedTuple):
    """Clustered targets of one seed, reused as long as only the refinement changes."""

    key: LabelConfig
    placed: PlacedTargets
    groups: list[ClusteredTargets]


class Evaluator:
    """Labels a set with any config and counts the pixels of each image; nothing is computed twice.

    Parameters
    ----------
    frames : TuneSet
    device : torch.device
    known : mapping, optional
        Results that an earlier run journaled, by key.
    record : callable
        Called with the key and the counts of every new result.
    """

    def __init__(
        self,
        frames: TuneSet,
        device: torch.device,
        known: Mapping[str, Any] | None = None,
        record: Callable[[str, Any], None] = lambda key, counts: None,
    ) -> None:
        self.frames = frames
        self.device = device
        self._known = {key: np.asarray(counts, np.int64) for key, counts in (known or {}).items()}
        self._record = record
        self._last: dict[int, _Clustered] = {}

    def counts(self, config: LabelConfig) -> np.ndarray:
        """Count intersection and union of masks and true ones: int64 [seeds, images, 2], pixels.

        Targets that cannot be labeled have no mask.
        """
        key = fingerprint_of(asdict(config))
        if key not in self._known:
            seeds = range(len(self.frames.points))
            self._known[key] = np.array([self._of_seed(config, seed) for seed in seeds])
            self._record(key, self._known[key].tolist())
        return self._known[key]

    def _of_seed(self, config: LabelConfig, seed: int) -> list[tuple[int, int]]:
        frames = self.frames
        _, placed, groups = self._clustered(config, seed)
        of_image = by_image(refine_targets(placed, groups, config), len(frames.images))
        both = [
            (compose(truth.shape, own)[0], truth) for own, truth in zip(of_image, frames.truth, strict=True)
        ]
        # The pixel counts of `Scores`, without its matching of components, which would take most of the time.
        return [(int(np.count_nonzero(m & t)), int(np.count_nonzero(m | t))) for m, t in both]

    def _clustered(self, config: LabelConfig, seed: int) -> _Clustered:
        key = replace(config, refine="threshold", threshold=0.0, crf=CrfConfig())
        last = self._last.get(seed)
        if last is None or last.key != key:
            frames = self.frames
            placed, _ = place_targets(
                frames.images, frames.points[seed], frames.names, config, seed, self.device
            )
            last = _Clustered(key, placed, cluster_targets(frames.images, placed, config, self.device))
            self._last[seed] = last
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


def distance(values: Values, start: Values, space: Sequence[Parameter]) -> int:
    """Count the steps between two settings along each parameter's values; one for values without order."""
    steps = 0
    for parameter in space:
        own, first = (parameter.values.index(each[parameter.name]) for each in (values, start))
        steps += abs(own - first) if parameter.ordered else own != first
    return steps


def cautious_gains(table: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Compute the gains in IoU of several settings over the first of them, drawn towards none.

    Of a gain its standard error is taken off, times `CAUTION`, and `STEP_PRICE` / images for each step that
    the settings lie from the first: with few images, only settings near the first or with a gain on most of
    the images are left above 0.

    Parameters
    ----------
    table : ndarray [settings, images, 2]
        Intersection and union, pixels.
    steps : ndarray [settings]
        Distances from the first settings, see `distance`.
    """
    images = table.shape[1]
    totals = np.maximum(table.sum(axis=1), 1)
    ious = totals[:, 0] / totals[:, 1]
    # Share of each image in the deviation of the quotient of the two sums (delta method).
    shares = (table[..., 0] - ious[:, None] * table[..., 1]) / totals[:, 1:]
    error = (shares - shares[0]).std(axis=1, ddof=1) * math.sqrt(images) if images > 1 else 0.0
    return ious - ious[0] - CAUTION * error - STEP_PRICE / images * steps


def cross_validated(table: np.ndarray, steps: np.ndarray, seed: int) -> np.ndarray:
    """Count the pixels of each image under the settings chosen without it: float64 [seeds, images, 2].

    The settings of most cautious gain on four fifths of the images are measured on the last fifth; counts are
    means over `_PARTITIONS` random partitions.

    Parameters
    ----------
    table : ndarray [settings, seeds, images, 2]
        Intersection and union, pixels.
    steps : ndarray [settings]
    seed : int
        Seed of the partitions.
    """
    images, mean = table.shape[2], table.mean(axis=1)
    held, rng = np.zeros(table.shape[1:]), np.random.default_rng(seed)
    for _ in range(_PARTITIONS):
        fold = rng.permutation(images) % min(_FOLDS, images)
        for k in range(fold.max() + 1):
            best = int(np.argmax(cautious_gains(mean[:, fold != k], steps)))
            held[:, fold == k] += table[best][:, fold == k] / _PARTITIONS
    return held


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
