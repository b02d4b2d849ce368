"""What `tune` may change of a label config: the settings of each maker and the values tried for them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mclc_gpu.errors import InputError
from mclc_gpu.labelconfig import LabelConfig, changed

Values = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One setting that is searched.

    Attributes:
        name: Field of `LabelConfig`, or part and field with a dot between.
        values: What is tried; numbers rise.
        ordered: Whether neighbours among the values are alike, so that the search may go step by step.
        only: (name, values) of the setting that must have one of these values for this one to matter.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool = True
    only: tuple[str, tuple[Any, ...]] | None = None

    def with_value(self, value: Any) -> "Parameter":
        """The same with `value` among those tried."""
        if value in self.values:
            return self
        more = (*self.values, value)
        return replace(self, values=tuple(sorted(more)) if self.ordered else more)


_NOISY = ("trial.noise", ("salt", "pepper", "gaussian"))
_ENFORCED = ("trial.connectivity", ("enforce",))
_CRF = ("refine", ("crf",))
_THRESHOLD = ("refine", ("threshold",))

# The search goes through them in this order, most telling first. The values are about evenly spaced, on a
# logarithmic scale where a setting acts by its ratio, around the presets'.
SPACES: dict[str, tuple[Parameter, ...]] = {
    "mclc": (
        Parameter("trial.clusters", (4, 6, 9, 12, 16, 20)),
        Parameter("trial.compactness", (2.5, 5.0, 10.0, 20.0, 40.0, 80.0)),
        Parameter("trial.noise", ("none", "salt", "pepper", "gaussian"), ordered=False),
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
    "components": (
        Parameter("components.polarity", ("bright", "dark", "auto"), ordered=False),
        Parameter("components.core", (-10.0, -5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0)),
        Parameter("components.body", (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0)),
        Parameter("threshold", (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
        Parameter("components.near", (1, 2, 3, 4, 6, 8, 11)),
        Parameter("components.category_weight", (0.0, 2.5, 5.0, 10.0, 20.0, 40.0)),
        Parameter("components.max_area", (125, 250, 500, 1000, 2000, 4096)),
        Parameter("components.levels", (32, 64, 128, 254)),
    ),
}


def space_of(config: LabelConfig) -> tuple[Parameter, ...]:
    """The settings of the config's maker that are searched, the config's own values among those tried.

    Raises InputError for a maker that has nothing to search.
    """
    if config.maker not in SPACES:
        raise InputError(f"maker {config.maker!r}: only {' and '.join(SPACES)} can be tuned")
    start = values_of(config, SPACES[config.maker])
    return tuple(parameter.with_value(start[parameter.name]) for parameter in SPACES[config.maker])


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
