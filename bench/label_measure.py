"""Label settings that the tables compare, made and scored seed by seed."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mclc_gpu.bench.dataset import Frames
from mclc_gpu.bench.reference import make_item, run
from mclc_gpu.data.annotations import CATEGORIES
from mclc_gpu.kernels.backend import synchronize
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.pipeline import by_image, cluster_targets, compose, refine_targets
from mclc_gpu.labels.windows import PlacedTarget, place_targets
from mclc_gpu.score.metrics import Scores

PAPER_MAKER = "MCLC, SLIC, CRF"
DEFAULT_MAKER = "preset default"
_INTENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2)
_CLUSTERS = (2, 4, 6, 9, 12, 16, 20, 25)
_TRIALS = (1, 2, 5, 10, 20, 50, 100, 200)
_DEVIATIONS = (0, 1, 1.5, 2, 3, 4, 5)
_METHODS = {"K-means": "kmeans", "SLIC": "slic"}
_REFINEMENTS = {"threshold": "threshold", "CRF": "crf"}
_CATEGORIES = {"given": "given", "estimated": "estimate"}


@dataclass(frozen=True)
class Setting:
    """How the labels of one row are made.

    Attributes:
        name: Of the maker, or of the series in a sweep.
        config: Of the chain.
        supervision: What is given for each target, see `mclc_gpu.data.simulate.points_from_mask`.
        x: Place in a sweep.
        jitter: Of the click, in pixels.
    """

    name: str
    config: LabelConfig
    supervision: str = "point"
    x: float = 0.0
    jitter: float = 0.0

    @property
    def category(self) -> str:
        """Where the category that the labels depend on comes from."""
        needed = {"point": False, "components": self.config.category == "given"}
        if self.supervision == "box" or not needed.get(self.config.maker, True):
            return "not used"
        return next(name for name, value in _CATEGORIES.items() if value == self.config.category)

    @property
    def as_published(self) -> bool:
        """Whether it has what the paper's makers have: one click, and the true category or none."""
        return self.supervision == "point" and self.category != "estimated"


@dataclass(frozen=True)
class Sweep:
    """A table over one quantity.

    Attributes:
        settings: For a number of trials.
        title, xlabel: Of the plot.
        series, x: Columns that hold a setting's name and x.
        log: Whether the plot's x is logarithmic.
    """

    settings: Callable[[int], list[Setting]]
    title: str
    xlabel: str
    series: str
    x: str
    log: bool = False


def maker_settings(trials: int) -> list[Setting]:
    """Each way of making labels that the paper compares, and labels from more than a click."""
    rows = [
        Setting("point label alone", preset("point")),
        Setting("GrabCut", preset("grabcut")),
        *(Setting(f"LCA, {name}", preset("lca", trial={"method": _METHODS[name]})) for name in _METHODS),
    ]
    for category in _CATEGORIES.values():
        for refinement, refine in _REFINEMENTS.items():
            for method in _METHODS:
                trial = {"method": _METHODS[method]}
                config = preset("paper", trials=trials, trial=trial, refine=refine, category=category)
                rows.append(Setting(f"MCLC, {method}, {refinement}", config))
        rows.append(Setting(DEFAULT_MAKER, preset("default", category=category)))
    stronger = ("multi-point", "scribble", "box")
    rows += [Setting(PAPER_MAKER, preset("paper", trials=trials), supervision) for supervision in stronger]
    return [
        *rows,
        *(Setting(DEFAULT_MAKER, preset("default", category="estimate"), kind) for kind in stronger),
        Setting("GrabCut", preset("grabcut"), "box"),
        Setting("box alone", preset("point"), "box"),
    ]


def _noise(trials: int) -> list[Setting]:
    return [
        Setting(
            kind, preset("paper", trials=trials, trial={"noise": kind, "intensity": intensity}), x=intensity
        )
        for kind in ("salt", "pepper", "gaussian")
        for intensity in _INTENSITIES
    ]


def _clusters(trials: int) -> list[Setting]:
    return [
        Setting(
            name, preset("paper", trials=trials, trial={"method": method, "clusters": clusters}), x=clusters
        )
        for name, method in _METHODS.items()
        for clusters in _CLUSTERS
    ]


def _trials(trials: int) -> list[Setting]:
    return [
        Setting(name, preset("paper", trials=count, refine=refine), x=count)
        for name, refine in _REFINEMENTS.items()
        for count in _TRIALS
        if count <= 2 * trials
    ]


def _deviation(trials: int) -> list[Setting]:
    makers = {
        "MCLC, category given": preset("paper", trials=trials),
        "MCLC, category estimated": preset("paper", trials=trials, category="estimate"),
        f"{DEFAULT_MAKER}, click alone": preset("default", category="estimate"),
    }
    return [
        Setting(name, config, x=deviation, jitter=deviation)
        for name, config in makers.items()
        for deviation in _DEVIATIONS
    ]


SWEEPS = {
    "noise": Sweep(
        _noise,
        "Kind and intensity of the noise",
        "intensity (salt, pepper: share of values; Gaussian: deviation / range)",
        "noise",
        "intensity",
        log=True,
    ),
    "clusters": Sweep(_clusters, "Number of clusters", "clusters", "clustering", "clusters"),
    "trials": Sweep(_trials, "Number of trials", "K", "refinement", "K", log=True),
    "deviation": Sweep(
        _deviation,
        "Clicks beside the targets' centres",
        "deviation (px): standard deviation in x and in y, cut at twice its length",
        "labels",
        "deviation",
    ),
}


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

    The time is that of placing, clustering and refining; call `mclc_gpu.labels.pipeline.warm_up` first.
    """
    points = frames.points(seed, setting.supervision, setting.jitter)
    synchronize(device)
    start = time.perf_counter()
    placed, skipped = place_targets(frames.images, points, frames.names, setting.config, seed, device)
    groups = cluster_targets(frames.images, placed, setting.config, device)
    targets = refine_targets(placed, groups, setting.config)
    seconds = time.perf_counter() - start
    both = zip(frames.images, by_image(targets, len(frames.images)), strict=True)
    masks = [compose(image.shape[:2], found)[0] for image, found in both]
    return replace(_scored(frames, masks, len(targets), seconds), unlabelled=len(skipped)), placed


def measure_reference(frames: Frames, placed: Sequence[PlacedTarget], trials: int, seed: int) -> Sample:
    """The same of the CPU reference with the dense CRF, on the windows of these targets and on all cores.

    Raises InputError where the reference cannot run: pydensecrf missing, images that are not 8-bit.
    """
    items = []
    of_image = by_image(placed, len(frames.images))
    for name, image, targets in zip(frames.names, frames.images, of_image, strict=True):
        windows = tuple(target.window for target in targets)
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
