"""Settings of the label pipeline and of a label run; registries of label makers and presets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_type_hints

from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import NOISES, OUTLINES, ComponentConfig, CrfConfig, TrialConfig
from mclc_gpu.registry import Registry, resolve


@dataclass(frozen=True)
class Parameter:
    """One setting that `tune` searches.

    Attributes
    ----------
    name : str
        Field of `LabelConfig`, or parts and field with dots between, such as "trial.clusters".
    values : tuple
        Values to try; numbers rise.
    ordered : bool
        Neighbors among the values are alike, so that the search may go step by step.
    only : tuple or None
        (name, values) of the setting that must have one of these values for this one to matter.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool = True
    only: tuple[str, tuple[Any, ...]] | None = None

    def with_value(self, value: Any) -> Self:
        """Return the parameter with `value` among those to try."""
        if value in self.values:
            return self
        more = (*self.values, value)
        return replace(self, values=tuple(sorted(more)) if self.ordered else more)


@dataclass(frozen=True)
class MakerEntry:
    """A registered label maker: its implementation, and the traits by which settings are checked.

    Traits are known without importing the implementation, which may need PyTorch.

    Attributes
    ----------
    implementation : object or str
        Instance or class of a `mclc_gpu.labels.makers.Maker`, or the dotted path of one.
    trials : (int, int)
        Least and greatest `LabelConfig.trials`; equal where the maker makes no trials.
    uses : tuple of str
        Parts of `LabelConfig` that the maker reads: "trial", "components".
    graded : bool
        TPMs have values between 0 and 1, so that a threshold matters.
    needs_category : bool
        A target's category has to be known before it is labeled, and is estimated where it is not given.
        Otherwise it follows from the label's area.
    category_in_mask : bool
        The mask depends on the category.
    seeded : bool
        Labels depend on the random seed.
    stop_rule : bool
        `LabelConfig.stop_change` ends the trials.
    search_space : tuple of Parameter
        Settings for `tune` to search, most telling first; empty where there are none.
    """

    implementation: Any
    trials: tuple[int, int] = (1, 1)
    uses: tuple[str, ...] = ()
    graded: bool = True
    needs_category: bool = True
    category_in_mask: bool = True
    seeded: bool = True
    stop_rule: bool = False
    search_space: tuple[Parameter, ...] = ()

    @cached_property
    def maker(self) -> Any:
        """Implementation, an instance of a `mclc_gpu.labels.makers.Maker`."""
        found = self.implementation
        if isinstance(found, str):
            found = resolve(found)
        return found() if isinstance(found, type) else found


_NOISY = ("trial.noise", tuple(name for name in NOISES if name != "none"))
_ENFORCED = ("trial.connectivity", ("enforce",))
_CRF = ("refine", ("crf",))
_THRESHOLD = ("refine", ("threshold",))

# The values to search are about evenly spaced, on a logarithmic scale where a setting acts by its ratio,
# around the presets', whose own values are added.
MAKERS: Registry[MakerEntry] = Registry(
    "maker",
    {
        "mclc": MakerEntry(
            "mclc_gpu.labels.makers.MonteCarlo",
            trials=(1, 2**31),
            uses=("trial",),
            stop_rule=True,
            search_space=(
                Parameter("trial.clusters", (4, 6, 9, 12, 16, 20)),
                Parameter("trial.compactness", (2.5, 5.0, 10.0, 20.0, 40.0, 80.0)),
                Parameter("trial.noise", tuple(NOISES), ordered=False),
                Parameter("trial.intensity", (0.01, 0.02, 0.05, 0.1, 0.2), only=_NOISY),
                Parameter("refine", ("crf", "threshold"), ordered=False),
                Parameter("threshold", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), only=_THRESHOLD),
                Parameter("crf.bilateral_srgb", (3.0, 6.0, 9.0, 13.0, 19.0, 28.0, 40.0), only=_CRF),
                Parameter("crf.bilateral_compat", (2.5, 5.0, 10.0, 20.0, 40.0), only=_CRF),
                Parameter("crf.bilateral_sxy", (4.0, 8.0, 16.0, 32.0, 64.0), only=_CRF),
                Parameter("crf.gaussian_compat", (0.0, 1.0, 3.0, 6.0, 12.0), only=_CRF),
                Parameter("crf.gaussian_sxy", (1.0, 1.5, 2.0, 3.0, 5.0), only=_CRF),
                Parameter("crf.iterations", (1, 2, 5), only=_CRF),
                Parameter("trial.connectivity", ("enforce", "component", "cluster"), ordered=False),
                Parameter("trial.min_size_factor", (0.0, 0.1, 0.25, 0.5, 1.0), only=_ENFORCED),
                Parameter("trial.max_size_factor", (1.5, 3.0, 6.0), only=_ENFORCED),
            ),
        ),
        "components": MakerEntry(
            "mclc_gpu.labels.makers.ComponentVote",
            trials=(0, 0),
            uses=("components",),
            needs_category=False,
            seeded=False,
            search_space=(
                Parameter("components.polarity", ("bright", "dark", "auto"), ordered=False),
                Parameter("components.outline", tuple(OUTLINES), ordered=False),
                Parameter("components.core", (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)),
                Parameter("components.body", (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)),
                Parameter("threshold", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
                Parameter("components.weights.edge", (0.5, 1.5, 2.5, 4.5, 6.0)),
                Parameter("components.weights.rim", (0.0, 1.5, 2.5, 4.5)),
                Parameter("components.weights.large", (-2.0, -1.2, -0.3, 0.0, 0.5)),
                Parameter("components.opening", (0, 9, 13, 19, 31)),
                Parameter("components.levels", (32, 64, 128, 254)),
                Parameter("components.near", (2, 4, 6, 8, 11)),
                Parameter("components.category_weight", (0.0, 2.5, 5.0, 10.0, 20.0, 40.0)),
                Parameter("components.max_area", (125, 250, 500, 1000, 2000, 4096)),
            ),
        ),
        "grabcut": MakerEntry("mclc_gpu.labels.makers.GrabCut", graded=False),
        "point": MakerEntry(
            "mclc_gpu.labels.makers.MarkedPixels", graded=False, category_in_mask=False, seeded=False
        ),
    },
)

CATEGORY_SOURCES = ("given", "estimate")
REFINEMENTS = ("crf", "threshold")


@dataclass(frozen=True)
class LabelConfig:
    """Settings of the label pipeline; the defaults are those of the published procedure.

    Attributes
    ----------
    maker : str
        Name in `MAKERS`. "mclc": trials of noise and clustering (Li et al., ICCV 2023, eq. 1-9), with one
        trial without noise the paper's LCA; "components": the vote of
        `mclc_gpu.kernels.components.vote_components`; "grabcut": see
        `mclc_gpu.labels.makers.grabcut_mask`; "point": the marked pixels, or the whole box.
    trials : int
        K of eq. 9: 1 to 2^31 for "mclc"; the other makers make none and have a fixed number.
    trial : TrialConfig
        Settings of one trial.
    category : {"given", "estimate"}
        "given" takes a point's own category and estimates it where there is none; "estimate" always
        estimates it.
    refine : {"crf", "threshold"}
        "crf": a dense CRF that starts from TPM / max(TPM); "threshold": TPM / max(TPM) >= threshold.
    threshold : float in 0..1
    crf : CrfConfig
        Settings of the CRF.
    stop_change : float >= 0
        T_F of the paper: a target's trials end once one more changes its TPM by less than this (L2 norm).
        0 runs all trials.
    components : ComponentConfig
        Settings of the vote of components.

    Raises
    ------
    InputError
        A value out of range.
    """

    maker: str = "mclc"
    trials: int = field(default=100, metadata={"help": "noisy trials per target", "metavar": "K"})
    trial: TrialConfig = field(default_factory=TrialConfig)
    category: str = field(
        default="given",
        metadata={
            "help": "target size category: as given, estimated where missing; or always estimated",
            "choices": CATEGORY_SOURCES,
        },
    )
    refine: str = field(default="crf", metadata={"help": "from TPM to mask", "choices": REFINEMENTS})
    threshold: float = field(default=0.7, metadata={"help": "mask = TPM / max(TPM) >= this", "metavar": "P"})
    crf: CrfConfig = field(default_factory=CrfConfig)
    stop_change: float = field(
        default=0.0,
        metadata={
            "help": "end a target's trials when one more changes its TPM by less; 0: never",
            "metavar": "T_F",
        },
    )
    components: ComponentConfig = field(default_factory=ComponentConfig)

    def __post_init__(self) -> None:
        entry = self.entry
        low, high = entry.trials
        if not low <= self.trials <= high:
            allowed = f"makes no trials; use {low}" if low == high else f"takes {low} to {high}"
            raise InputError(f"trials {self.trials}: maker {self.maker!r} {allowed}")
        if self.category not in CATEGORY_SOURCES:
            raise InputError(f"category {self.category!r}: use one of {', '.join(CATEGORY_SOURCES)}")
        if self.refine not in REFINEMENTS:
            raise InputError(f"refine {self.refine!r}: use one of {', '.join(REFINEMENTS)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold {self.threshold}: use a number in 0..1")
        if not (math.isfinite(self.stop_change) and self.stop_change >= 0):
            raise InputError(f"stop_change {self.stop_change}: use a number >= 0")
        if self.stop_change > 0 and not entry.stop_rule:
            raise InputError(f"stop_change {self.stop_change}: maker {self.maker!r} has no stop rule; use 0")

    @property
    def entry(self) -> MakerEntry:
        """Traits and implementation of the maker. Raises InputError for an unknown one."""
        return MAKERS.find(self.maker)

    def unused(self) -> dict[str, str]:
        """Return the settings without effect: fields or parts, each with the condition for an effect."""
        entry = self.entry
        conditions = {
            "trial": ("trial" in entry.uses, "only applies to presets with trials"),
            "components": ("components" in entry.uses, "only applies to presets that vote by components"),
            "stop_change": (entry.stop_rule, "only applies to presets with a stop rule"),
            "threshold": (
                entry.graded and self.refine == "threshold",
                "only applies with --refine threshold, to presets with graded maps",
            ),
            "crf": (self.refine == "crf", "only applies with --refine crf"),
        }
        return {name: when for name, (used, when) in conditions.items() if not used}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the config that a run was made with, from the "settings" of its label.json.

        Raises
        ------
        InputError
            Settings of another version, which lack a field or have one more, or a value that cannot be used.
        """
        own = {name: value for name, value in settings.items() if name not in _OF_THE_RUN}
        try:
            return _rebuilt(cls, own)
        except (TypeError, ValueError) as error:
            raise InputError(f"these settings cannot be used ({error}); make them anew") from error

    @classmethod
    def from_earlier(cls, settings: Mapping[str, Any]) -> Self:
        """Return the config of a run of any version: fields unknown here are dropped, missing ones default.

        Raises
        ------
        InputError
            An unknown label maker, or a value that cannot be used.
        """
        try:
            own = _known_values(cls, settings)
            low, high = MAKERS.find(own.get("maker", cls.maker)).trials
            own["trials"] = min(max(own.get("trials", cls.trials), low), high)
            return _rebuilt(cls, {**asdict(cls()), **own})
        except (TypeError, ValueError) as error:
            raise InputError(f"these settings cannot be used ({error})") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a config from a JSON file: config.json of ``tune``, or "settings" in label.json of a run.

        Raises
        ------
        InputError
            The file cannot be read, or holds no such settings.
        """
        from mclc_gpu.data.files import read_json  # here, so that the command line starts quickly

        remedy = "give the config.json of tune, or a label.json"
        try:
            content = read_json(path, remedy)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        settings = content.get("settings", content)
        if not isinstance(settings, dict):
            raise InputError(f"{path}: holds no label settings; {remedy}")
        try:
            return cls.from_settings(settings)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


_OF_THE_RUN = ("seed", "points")  # settings that are not the pipeline's

PRESETS: Registry[LabelConfig] = Registry(
    "preset",
    {
        "paper": LabelConfig(),
        "default": LabelConfig(maker="components", trials=0, refine="threshold", threshold=0.5),
        "lca": LabelConfig(trials=1, trial=TrialConfig(noise="none"), refine="threshold"),
        "grabcut": LabelConfig(trials=1, maker="grabcut", refine="threshold"),
        "point": LabelConfig(trials=1, maker="point", refine="threshold"),
    },
)


def _known_values(kind: type[Any], values: Any) -> dict[str, Any]:
    """Return those of `values` that are fields of a dataclass; parts of it are filled up with defaults."""
    if not isinstance(values, Mapping):
        raise TypeError(f"no {kind.__name__}: {str(values)[:40]!r}")
    types = get_type_hints(kind)
    known = {name: value for name, value in values.items() if name in types}
    for name in known:
        if is_dataclass(types[name]):
            known[name] = {**asdict(types[name]()), **_known_values(types[name], known[name])}
    return known


def _rebuilt(kind: type[Any], values: Any) -> Any:
    """Return a dataclass, and those it is made of, from what `dataclasses.asdict` made of it."""
    if not isinstance(values, Mapping):
        raise TypeError(f"no {kind.__name__}: {str(values)[:40]!r}")
    names = {item.name for item in fields(kind)}
    lacks, more = sorted(names - values.keys()), sorted(values.keys() - names)
    if lacks or more:
        both = ("without ", lacks), ("with ", more)
        what = "; ".join(f"{verb}{', '.join(found)}" for verb, found in both if found)
        raise ValueError(f"{kind.__name__} of another version: {what}")
    types = get_type_hints(kind)
    return kind(**{name: _rebuilt_value(name, types[name], value) for name, value in values.items()})


def _rebuilt_value(name: str, kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return _rebuilt(kind, value)
    allowed = (int, float) if kind is float else kind
    # True is an int to Python, and numbers beyond 2^63 are none to compiled code.
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is {str(value)[:40]!r}, no {kind.__name__}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError(f"{name} is too large")
    return value


def preset(name: str, **changes: Any) -> LabelConfig:
    """Return a preset with some settings changed (see `changed`).

    Raises
    ------
    InputError
        An unknown preset or setting, or a bad value.

    Examples
    --------
    >>> from mclc_gpu.labels.config import preset
    >>> config = preset("paper", trials=20, trial={"noise": "gaussian"})
    >>> config.maker, config.trials, config.trial.noise
    ('mclc', 20, 'gaussian')
    """
    return changed(PRESETS.find(name), **changes)


def changed(config: LabelConfig, **changes: Any) -> LabelConfig:
    """Return a config with some settings changed.

    `trial`, `crf` and `components` may be mappings, which change only the settings they name.

    Raises
    ------
    InputError
        An unknown setting or a bad value.
    """
    try:
        for part in ("trial", "crf", "components"):
            if isinstance(changes.get(part), Mapping):
                changes[part] = replace(getattr(config, part), **changes[part])
        return replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Settings of labels, whatever the data set.

    Attributes
    ----------
    jitter : float >= 0, pixels
        Spread of simulated clicks.
    supervision : {"point", "multi-point", "scribble", "box"}
        Mark of a target: one click, several, a scribble or a bounding box.
    clicks : int >= 1
        Simulated clicks per target of "multi-point".
    config : LabelConfig
        Settings of the label pipeline; default: the preset "default".
    shards : int >= 0
        Images per tar archive of labels; 0: a mask and a TPM file for each image.
    """

    jitter: float = field(default=0.0, metadata={"help": "spread of simulated clicks", "metavar": "PX"})
    supervision: str = field(
        default="point",
        metadata={
            "help": "mark of a target: one click, several, a scribble or a bounding box",
            "choices": ("point", "multi-point", "scribble", "box"),
        },
    )
    clicks: int = field(
        default=3, metadata={"help": "simulated clicks per target of multi-point", "metavar": "N"}
    )
    config: LabelConfig = field(
        default_factory=lambda: PRESETS["default"],
        metadata={"title": "label settings", "presets": PRESETS, "read": LabelConfig.read},
    )
    shards: int = field(
        default=0,
        metadata={
            "help": "write the labels of N images each into tar archives, instead of two files an image",
            "metavar": "N",
        },
    )

    def __post_init__(self) -> None:
        if self.shards < 0:
            raise InputError(f"shards {self.shards}: use 1 or more images per archive, or 0 for single files")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(LabelSettings):
    """Inputs, output and settings of a label run (see `mclc_gpu.labels.run.label_dataset`).

    Attributes
    ----------
    images : Path
        Folder of images.
    points : Path or None
        Point labels: a file or folder (see `mclc_gpu.data.points.read_points`).
    points_from_masks : Path or None
        Folder of true masks from which point labels are simulated; exactly one of `points` and
        `points_from_masks` is given.
    out : Path
        Output folder.
    list : Path or None
        Text file that names the images to label, one a line; None: all.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    seed : int
        Any integer; see `mclc_gpu.labels.pipeline.label_images`.
    resume : bool
        Continue an interrupted run with the same settings.
    overwrite : bool
        Replace an earlier run's output.
    """

    images: Path = field(metadata={"help": "folder of images", "metavar": "DIR"})
    points: Path | None = field(
        default=None,
        metadata={
            "help": "point labels: CSV, JSON, XML, txt, PNG",
            "metavar": "FILE|DIR",
            "either": "points",
            "required": True,
        },
    )
    points_from_masks: Path | None = field(
        default=None,
        metadata={
            "help": "simulate clicks from true masks",
            "metavar": "DIR",
            "either": "points",
            "required": True,
        },
    )
    out: Path = field(metadata={"help": "output folder", "metavar": "DIR"})
    list: Path | None = field(
        default=None, metadata={"help": "label only the images named here, one per line", "metavar": "TXT"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})
    seed: int = field(default=0, metadata={"help": "seed of noise and simulated clicks", "metavar": "N"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run", "either": "earlier"})
    overwrite: bool = field(
        default=False, metadata={"help": "replace an earlier run in --out", "either": "earlier"}
    )

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the condition for an effect."""
        return {} if self.points_from_masks else {"jitter": "only applies with --points-from-masks"}
