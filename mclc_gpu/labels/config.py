"""Settings of the label chain, and the presets: each way of making labels that the paper compares."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self, get_type_hints

import numpy as np

from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import ComponentConfig, CrfConfig, TrialConfig


@dataclass(frozen=True)
class LabelConfig:
    """Settings of the chain; the defaults are those of the published procedure.

    Attributes:
        maker: "mclc": trials of noise and clustering (eq. 1-9), without noise and with one trial the paper's
            LCA; "components": the vote of `mclc_gpu.kernels.components.vote_components`; "grabcut": see
            `mclc_gpu.labels.makers.grabcut_mask`; "point": the marked pixels, or the whole box.
        trials: K of eq. 9, 1 to 2^31; 1 for "grabcut" and "point", 0 for "components": these make none.
        trial: Settings of one trial.
        category: "given" takes a point's own category and estimates it where there is none; "estimate" always
            estimates it.
        refine: "crf": a dense CRF that starts from TPM / max(TPM); "threshold": TPM / max(TPM) >= threshold.
        threshold: In 0..1.
        crf: Settings of the CRF.
        stop_change: T_F of the paper: a target's trials end once one more changes its TPM by less than this
            (L2 norm). 0 runs all trials; the only choice for "components".
        components: Settings of the vote of components.

    Raises:
        InputError: A value out of range.
    """

    maker: str = "mclc"
    trials: int = 100
    trial: TrialConfig = field(default_factory=TrialConfig)
    category: str = "given"
    refine: str = "crf"
    threshold: float = 0.7
    crf: CrfConfig = field(default_factory=CrfConfig)
    stop_change: float = 0.0
    components: ComponentConfig = field(default_factory=ComponentConfig)

    def __post_init__(self) -> None:
        if self.maker not in MAKERS:
            raise InputError(f"maker {self.maker!r}: use one of {', '.join(MAKERS)}")
        if self.maker in ("grabcut", "point") and self.trials != 1:
            raise InputError(f"trials {self.trials}: {self.maker} makes no trials; leave them out")
        if self.maker == "components" and self.trials != 0:
            raise InputError(f"trials {self.trials}: maker 'components' makes no trials; use 0")
        if self.maker == "mclc" and not 1 <= self.trials <= 2**31:
            raise InputError(f"trials {self.trials}: at least one trial is needed, and at most 2^31")
        if self.category not in ("given", "estimate"):
            raise InputError(f"category {self.category!r}: use given or estimate")
        if self.refine not in REFINEMENTS:
            raise InputError(f"refine {self.refine!r}: use one of {', '.join(REFINEMENTS)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold {self.threshold}: use a number in 0..1")
        if not (np.isfinite(self.stop_change) and self.stop_change >= 0):
            raise InputError(f"stop_change {self.stop_change}: use a number >= 0")
        if self.maker == "components" and self.stop_change > 0:
            raise InputError(f"stop_change {self.stop_change}: maker 'components' makes no trials; use 0")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The config that a run was made with, from the "settings" of its label.json.

        Raises InputError for the settings of another version, which lack a field or have one more, and for a
        value that cannot be used.
        """
        own = {name: value for name, value in settings.items() if name not in _OF_THE_RUN}
        try:
            return _rebuilt(cls, own)
        except (TypeError, ValueError) as error:
            raise InputError(f"these settings cannot be used ({error}); make them anew") from error


_OF_THE_RUN = ("seed", "points")  # settings that are not the chain's
MAKERS = ("mclc", "components", "grabcut", "point")
REFINEMENTS = ("crf", "threshold")
PRESETS = {
    "paper": LabelConfig(),
    "default": LabelConfig(maker="components", trials=0, refine="threshold", threshold=0.5),
    "lca": LabelConfig(trials=1, trial=TrialConfig(noise="none"), refine="threshold"),
    "grabcut": LabelConfig(trials=1, maker="grabcut", refine="threshold"),
    "point": LabelConfig(trials=1, maker="point", refine="threshold"),
}


def _rebuilt(kind: type[Any], values: Any) -> Any:
    """A dataclass, and those it is made of, from what `dataclasses.asdict` made of it."""
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
    """A preset with some settings changed (see `changed`). Raises InputError for an unknown preset too."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: use one of {', '.join(PRESETS)}")
    return changed(PRESETS[name], **changes)


def changed(config: LabelConfig, **changes: Any) -> LabelConfig:
    """A config with some settings changed.

    `trial`, `crf` and `components` may be mappings, which change only the settings they name.
    Raises InputError for an unknown setting or a bad value.
    """
    try:
        for part in ("trial", "crf", "components"):
            if isinstance(changes.get(part), Mapping):
                changes[part] = replace(getattr(config, part), **changes[part])
        return replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
