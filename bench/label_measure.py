"""Labels of one setting made and scored seed by seed, by this package and by the CPU reference."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mclc_gpu.bench.cpu_reference import make_item, run
from mclc_gpu.bench.label_settings import Setting
from mclc_gpu.data.points import CATEGORIES, Point
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.kernels.backend import synchronize
from mclc_gpu.labeling import (
    PlacedTarget,
    TargetMask,
    cluster_targets,
    compose,
    refine_targets,
)
from mclc_gpu.metrics import Scores
from mclc_gpu.placing import place_targets
from mclc_gpu.windows import name_key


@dataclass(frozen=True)
class Frames:
    """Images of a data set with their true masks (bool [H, W]), by name."""

    names: list[str]
    images: list[np.ndarray]
    truth: list[np.ndarray]
    _points: dict[tuple[int, str, float], list[list[Point]]] = field(default_factory=dict, repr=False)

    def points(self, seed: int, supervision: str = "point", jitter: float = 0.0) -> list[list[Point]]:
        """What an annotator would give; of an image it depends on its mask, its name and the seed alone."""
        key = seed, supervision, jitter
        if key not in self._points:
            self._points[key] = [
                points_from_mask(
                    mask,
                    supervision=supervision,
                    jitter=jitter,
                    rng=np.random.default_rng(name_key(seed, name)),
                )
                for name, mask in zip(self.names, self.truth, strict=True)
            ]
        return self._points[key]


@dataclass(frozen=True)
class Sample:
    """What one seed gave.

    Attributes:
        iou: Total intersection over total union.
        of_category: The same for point, spot and extended targets; NaN without such targets.
        targets: How many were labelled.
        seconds: For these.
        unlabelled: Targets that could not be labelled, whose masks are empty.
    """

    iou: float
    of_category: tuple[float, ...]
    targets: int
    seconds: float
    unlabelled: int = 0


@dataclass(frozen=True)
class Measured:
    """All seeds of one setting."""

    samples: list[Sample]

    @property
    def iou(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(sample.iou for sample in self.samples)

    @property
    def spread(self) -> float:
        """Standard deviation (n - 1) over the seeds; NaN for a single one."""
        return statistics.stdev(s.iou for s in self.samples) if len(self.samples) > 1 else math.nan

    @property
    def of_category(self) -> dict[str, float]:
        """Mean IoU by category."""
        means = np.mean([sample.of_category for sample in self.samples], axis=0)
        return dict(zip(CATEGORIES, means.tolist(), strict=True))

    @property
    def rate(self) -> float:
        """Targets per second, the median of the seeds'."""
        return statistics.median(sample.targets / sample.seconds for sample in self.samples)

    @property
    def unlabelled(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(sample.unlabelled for sample in self.samples)


def measure(
    frames: Frames, setting: Setting, seed: int, device: torch.device
) -> tuple[Sample, list[PlacedTarget]]:
    """The labels of one seed, and the targets they belong to.

    The time is that of placing, clustering and refining; call `mclc_gpu.labeling.warm_up` first.
    """
    points = frames.points(seed, setting.supervision, setting.jitter)
    synchronize(device)
    start = time.perf_counter()
    placed, skipped = place_targets(frames.images, points, frames.names, setting.config, seed, device)
    groups = cluster_targets(frames.images, placed, setting.config, device)
    targets = refine_targets(placed, groups, setting.config)
    seconds = time.perf_counter() - start
    of_image: list[list[TargetMask]] = [[] for _ in frames.images]
    for target in targets:
        of_image[target.image].append(target)
    both = zip(frames.images, of_image, strict=True)
    masks = [compose(image.shape[:2], found)[0] for image, found in both]
    return replace(_scored(frames, masks, len(targets), seconds), unlabelled=len(skipped)), placed


def measure_reference(frames: Frames, placed: Sequence[PlacedTarget], trials: int, seed: int) -> Sample:
    """The same of the CPU reference with the dense CRF, on the windows of these targets and on all cores.

    Raises InputError where the reference cannot run: pydensecrf missing, images that are not 8-bit.
    """
    items = []
    for index, (name, image) in enumerate(zip(frames.names, frames.images, strict=True)):
        windows = tuple(target.window for target in placed if target.image == index)
        items.append(replace(make_item(name, image, [], seed), windows=windows))
    outcome = run(items, trials, "crf", None, seed)
    masks = [outcome.masks[name] for name in frames.names]
    return _scored(frames, masks, len(placed), outcome.seconds["total"])


def _scored(frames: Frames, masks: Sequence[np.ndarray], targets: int, seconds: float) -> Sample:
    scores = Scores()
    for name, mask, truth in zip(frames.names, masks, frames.truth, strict=True):
        scores.update(mask, truth, name)
    result = scores.compute()
    known = result.categories
    of_category = tuple(known[name].iou if name in known else math.nan for name in CATEGORIES)
    return Sample(result.iou, of_category, targets, seconds)
