"""Search the settings of a label preset with a few true masks."""

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
from mclc_gpu.labels.pipeline import ClusteredTargets, by_image, cluster_targets, compose, refine_targets
from mclc_gpu.labels.windows import PlacedTarget, place_targets

Values = dict[str, Any]


def space_of(config: LabelConfig) -> tuple[Parameter, ...]:
    """The settings of the config's maker that are searched, the config's own values among those tried.

    Raises InputError for a maker that has nothing to search.
    """
    space = config.entry.search_space
    if not space:
        able = [name for name, entry in MAKERS.items() if entry.search_space]
        raise InputError(f"maker {config.maker!r}: only {' and '.join(able)} can be tuned")
    start = values_of(config, space)
    return tuple(parameter.with_value(start[parameter.name]) for parameter in space)


def values_of(config: LabelConfig, space: tuple[Parameter, ...]) -> Values:
    """The config's own value of each parameter."""
    values = {}
    for parameter in space:
        part: Any = config
        for name in parameter.name.split("."):
            part = getattr(part, name)
        values[parameter.name] = part
    return values


def with_values(config: LabelConfig, values: Mapping[str, Any]) -> LabelConfig:
    """The config with these values of parameters. Raises InputError for one that cannot be used."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, setting = name.partition(".")
        if dot:
            changes.setdefault(part, {})[setting] = value
        else:
            changes[name] = value
    return changed(config, **changes)


def matters(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Whether a parameter has any effect beside these values of the others."""
    return parameter.only is None or values[parameter.only[0]] in parameter.only[1]


LEAST_GAIN = 0.0005  # of IoU: less is not worth another value
_IDLE_RESTARTS = 25  # in a row that meet nothing new: the space is exhausted
_RESAMPLES = 1000


@dataclass(frozen=True)
class TuneSet:
    """Images with true masks (bool [H, W]), and for each seed the clicks on each image."""

    names: list[str]
    images: list[np.ndarray]
    truth: list[np.ndarray]
    points: list[list[list[Point]]]

    def part(self, members: Sequence[int]) -> "TuneSet":
        """Some of the images."""
        return TuneSet(
            [self.names[i] for i in members],
            [self.images[i] for i in members],
            [self.truth[i] for i in members],
            [[clicks[i] for i in members] for clicks in self.points],
        )

    def halves(self, seed: int) -> list[list[int]]:
        """Members of two halves that are alike: of each two images next in target area one goes to each."""
        order = sorted(range(len(self.names)), key=lambda i: (int(self.truth[i].sum()), self.names[i]))
        rng = np.random.default_rng(seed)
        parts: list[list[int]] = [[], []]
        for first in range(0, len(order), 2):
            flip = int(rng.integers(2))
            for place, member in enumerate(order[first : first + 2]):
                parts[(place + flip) % 2].append(member)
        return [sorted(part) for part in parts]


class _Clustered(NamedTuple):
    """What one seed's targets came to, as long as only the refinement changes."""

    key: LabelConfig
    placed: list[PlacedTarget]
    groups: list[ClusteredTargets]


class Evaluator:
    """Labels of the parts of a set by any config, scored in pixels; nothing is computed twice.

    Labels do not depend on which images are labelled together, so that the parts' pixels add up.
    """

    def __init__(
        self,
        parts: Sequence[TuneSet],
        device: torch.device,
        known: Mapping[str, Sequence[Sequence[int]]] | None = None,
        note: Callable[[str, list[list[int]]], None] = lambda key, pixels: None,
    ) -> None:
        """`known`: what an earlier run noted; `note` is called with everything that is new."""
        self.parts = parts
        self.device = device
        self._known = {key: np.asarray(pixels, np.int64) for key, pixels in (known or {}).items()}
        self._note = note
        self._last: dict[tuple[int, int], _Clustered] = {}

    def pixels(self, config: LabelConfig, part: int) -> np.ndarray:
        """int64 [seeds, 2]: intersection and union of a part's masks with the true ones."""
        key = f"{part}:{fingerprint_of(asdict(config))}"
        if key not in self._known:
            self._known[key] = self.of_images(config, part).sum(axis=1)
            self._note(key, self._known[key].tolist())
        return self._known[key]

    def of_images(self, config: LabelConfig, part: int) -> np.ndarray:
        """The same of each image: int64 [seeds, images, 2]. A target that cannot be labelled has no mask."""
        return np.array([self._of_seed(config, part, seed) for seed in range(len(self.parts[part].points))])

    def _of_seed(self, config: LabelConfig, part: int, seed: int) -> list[tuple[int, int]]:
        frames = self.parts[part]
        _, placed, groups = self._clustered(config, part, seed)
        of_image = by_image(refine_targets(placed, groups, config), len(frames.images))
        both = [
            (compose(truth.shape, own)[0], truth) for own, truth in zip(of_image, frames.truth, strict=True)
        ]
        # The pixels that `Scores` counts; its matching of components would take most of the time.
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
    """float64 [seeds] of intersections and unions [seeds, ..., 2]: total by total, 0 where all is empty."""
    totals = pixels.reshape(len(pixels), -1, 2).sum(axis=1)
    return totals[:, 0] / np.maximum(totals[:, 1], 1)


def spread_of(values: np.ndarray) -> float:
    """Standard deviation (n - 1); NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def gain_of(before: np.ndarray, after: np.ndarray, seed: int) -> tuple[float, float]:
    """What is gained in IoU, and how uncertain that is, from pixels int64 [seeds, images, 2] of two configs.

    The uncertainty is the standard deviation of the gain over bootstrap resamples of the images and of the
    seeds, the same ones for both configs.
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
    """The budget of evaluations is used up."""


class Search:
    """Coordinate search from the start, then again from random places until the budget is spent.

    One parameter after another goes step by step to better values for as long as the score rises, until none
    helps. Each restart draws half of the best place's values anew, uniformly. The same arguments give the
    same search.

    Attributes:
        best: The values found to be best so far, those at the start while nothing is better by `LEAST_GAIN`.
        best_score: Theirs; minus infinity before any was evaluated.
        seen: How many different values were evaluated.
    """

    def __init__(
        self,
        score: Callable[[Values], float],
        space: Sequence[Parameter],
        start: Values,
        budget: int,
        seed: int = 0,
    ) -> None:
        """`score` is called at most `budget` (>= 1) times, never twice with the same values."""
        self._score, self._space, self._start, self._budget = score, space, start, budget
        self._rng = np.random.default_rng(seed)
        self._scores: dict[tuple[object, ...], float] = {}
        self.best, self.best_score = start, -math.inf

    @property
    def seen(self) -> int:
        return len(self._scores)

    def run(self) -> None:
        """Search; what was found until an interrupt stays."""
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
        key = tuple(values.values())
        if key not in self._scores:
            if len(self._scores) >= self._budget:
                raise _Spent
            score = self._scores[key] = self._score(values)
            if score > self.best_score + LEAST_GAIN:
                self.best, self.best_score = values, score
        return self._scores[key]

    def _climb(self, values: Values) -> None:
        """From a place to one where no single parameter helps."""
        rises = True
        while rises:
            rises = False
            for parameter in self._space:
                if matters(parameter, values):
                    moved = self._along(parameter, values)
                    rises |= moved is not values
                    values = moved

    def _along(self, parameter: Parameter, values: Values) -> Values:
        """The place with the parameter's best value; `values` itself where none is better."""
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
        place = parameter.values.index(values[parameter.name]) + direction
        while 0 <= place < len(parameter.values):
            yield self._with(values, parameter, parameter.values[place])
            place += direction

    def _better(self, one: Values, other: Values) -> bool:
        return self._at(one) > self._at(other) + LEAST_GAIN

    def _with(self, values: Values, parameter: Parameter, value: object) -> Values:
        return self._plain({**values, parameter.name: value})

    def _plain(self, values: Values) -> Values:
        """The same place with the start's values where they do not matter."""
        own = [(p, values[p.name] if matters(p, values) else self._start[p.name]) for p in self._space]
        return {parameter.name: value for parameter, value in own}

    def _elsewhere(self) -> Values:
        draws = [(p, p.values[int(self._rng.integers(len(p.values)))]) for p in self._space]
        anew = self._rng.random(len(draws)) < 0.5
        return self._plain(
            {p.name: v if new else self.best[p.name] for (p, v), new in zip(draws, anew, strict=True)}
        )
