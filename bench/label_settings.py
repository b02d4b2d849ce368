"""What the label tables vary: a setting for each row."""

from collections.abc import Callable
from dataclasses import dataclass

from mclc_gpu.labelconfig import LabelConfig, preset

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
