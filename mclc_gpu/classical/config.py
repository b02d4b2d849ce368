"""Registry of the untrained detectors and their settings, free of torch and numpy for a quick command line.

See `mclc_gpu.cli.options` for the metadata of the fields.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mclc_gpu.errors import InputError
from mclc_gpu.registry import Registry

if TYPE_CHECKING:  # PyTorch is imported with the first method, so that names can be listed quickly
    from mclc_gpu.classical.method import Method

METHODS: "Registry[type[Method]]" = Registry(
    "method",
    {
        "tophat": "mclc_gpu.classical.tophat.TopHat",
        "mpcm": "mclc_gpu.classical.mpcm.MPCM",
        "wslcm": "mclc_gpu.classical.wslcm.WSLCM",
        "ipi": "mclc_gpu.classical.ipi.IPI",
        "nram": "mclc_gpu.classical.nram.NRAM",
        "pstnn": "mclc_gpu.classical.pstnn.PSTNN",
        "ript": "mclc_gpu.classical.ript.RIPT",
        "mslstipt": "mclc_gpu.classical.mslstipt.MSLSTIPT",
    },
)
RULES = ("adaptive", "k-sigma", "top-n", "fixed")
SCALES = ("image", "gray")


@dataclass(frozen=True)
class MethodOptions:
    """Parameters of an untrained detector, scale of its maps, and threshold of each image.

    Attributes
    ----------
    parameters : tuple of str
        Changes of the method's parameters, each "NAME=VALUE".
    map_scale : {"image", "gray"}
        Probability 1 is the highest value of the image's own map, or 255 gray levels above the background.
    threshold_rule : {"adaptive", "k-sigma", "top-n", "fixed"}
        See `mclc_gpu.classical.rules.threshold_of`.
    sigmas : float >= 0
        k of the rule k-sigma. On the train images of NUAA-SIRST, 10 gives the top-hat an IoU of 0.46, where
        the rule adaptive gives 0.25. A map of N pixels holds no value above mean + k deviations where more
        than about N / k^2 pixels are bright: small crops need a smaller k.
    top : int >= 1, pixels
        n of the rule top-n.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    parameters: tuple[str, ...] = field(
        default=(),
        metadata={
            "option": "parameter",
            "help": "change a parameter of the method; a wrong name lists them all",
            "metavar": "NAME=VALUE",
            "repeat": True,
        },
    )
    map_scale: str = field(
        default="image",
        metadata={
            "help": "probability 1 is the highest value of the image's map, or 255 gray levels",
            "choices": SCALES,
        },
    )
    threshold_rule: str = field(
        default="k-sigma",
        metadata={
            "help": "threshold of each image's map: adaptive is max(0.7 maximum, mean + 0.5 deviation), "
            "k-sigma mean + k deviations, top-n leaves the n brightest pixels, fixed is --threshold",
            "choices": RULES,
        },
    )
    sigmas: float = field(default=10.0, metadata={"help": "k of --threshold-rule k-sigma", "metavar": "K"})
    top: int = field(default=20, metadata={"help": "n of --threshold-rule top-n", "metavar": "N"})

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("--map-scale", self.map_scale, SCALES),
            ("--threshold-rule", self.threshold_rule, RULES),
        ):
            if value not in choices:
                raise InputError(f"{option} {value}: use one of {', '.join(choices)}")
        if not 0 <= self.sigmas < math.inf:
            raise InputError(f"--sigmas {self.sigmas:g}: give 0 or more")
        if self.top < 1:
            raise InputError(f"--top {self.top}: give 1 pixel or more")

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the condition for an effect."""
        needs = {"sigmas": "k-sigma", "top": "top-n"}
        return {
            name: f"only applies with --threshold-rule {rule}"
            for name, rule in needs.items()
            if self.threshold_rule != rule
        }

    def rule(self, fixed: float) -> dict[str, Any]:
        """Return the threshold rule and its constant, for the output; `fixed` is the fixed threshold."""
        constants: dict[str, dict[str, Any]] = {
            "k-sigma": {"k": self.sigmas},
            "top-n": {"n": self.top},
            "fixed": {"threshold": fixed},
        }
        return {"rule": self.threshold_rule, **constants.get(self.threshold_rule, {})}
