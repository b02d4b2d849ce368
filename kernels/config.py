"""Settings of the kernels, free of torch and numpy so that the command line can read them quickly."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any

from mclc_gpu.registry import Registry, resolve

MAX_WINDOW = 64  # pixels per side
CATEGORY_AREAS = ((1, 9), (10, 81), (82, MAX_WINDOW**2))  # pixels: of point, spot and extended targets
LUMA = (0.299, 0.587, 0.114)  # of R, G and B: ITU-R BT.601
STEPS = 2048  # of a gray level: 255 * STEPS fits 19 bits, and the sum over the largest window fits 31
WHITE = 255 * STEPS
TPM_ONE = 65535  # probability 1 in a map of 16 bits
MAX_LEVELS = 254  # a pixel's join level and one value for "never" fit a byte

METHODS = ("slic", "kmeans")
CONNECTIVITY = ("enforce", "component", "cluster")
NORMALIZATIONS = ("symmetric", "before", "after", "none")
POLARITIES = ("bright", "dark", "auto")
ENDS = ("low", "high")  # of a range of values


@dataclass(frozen=True)
class Noise:
    """A kind of noise: how it changes one value, one channel of one pixel, on each backend.

    A device function takes ``(value, word, intensity, bound, low, high)`` and returns the noisy value:

    - value : float32, without noise, in low..high.
    - word : 32 random bits of this channel, pixel, trial and target (numba: uint64; Triton: uint32).
    - intensity : float32 in 0..1, the strength as the kind understands it.
    - bound : integer, round(intensity 2^24). ``word >> 8`` is uniform in 0 .. 2^24 - 1 and so below the bound
      with probability `intensity`.
    - low, high : float32, the range of values; the noisy value must stay in it.

    On the CPU it is a plain Python function on scalars that numba can compile, on Triton a ``triton.jit``
    function on blocks. Both must take the same arithmetic steps, so that both backends draw the same values.

    Parameters
    ----------
    cpu, triton : function, or the dotted path of one
        A path is imported when the backend is first used.
    replaced_by : {"low", "high"}, optional
        For a kind that replaces a value by this end of the range just where ``word >> 8 < bound``: the trials
        on the CPU then choose between features computed once for each pixel instead of calling `cpu`.

    See Also
    --------
    mclc_gpu.kernels.noise : Registry of the kinds, the random numbers, and how to add a kind.
    """

    cpu: Callable[..., Any] | str
    triton: Callable[..., Any] | str
    replaced_by: str | None = None

    def __post_init__(self) -> None:
        if self.replaced_by not in (None, *ENDS):
            raise ValueError(f"replaced_by must be one of {ENDS} or None, got {self.replaced_by!r}")

    def function(self, backend: str) -> Callable[..., Any]:
        """Return the device function of a backend, "cpu" or "triton"."""
        found = self.cpu if backend == "cpu" else self.triton
        return resolve(found) if isinstance(found, str) else found


def _built_in(name: str, replaced_by: str | None = None) -> Noise:
    return Noise(f"mclc_gpu.kernels.noise_cpu.{name}", f"mclc_gpu.kernels.noise_triton.{name}", replaced_by)


NOISES: Registry[Noise] = Registry(
    "noise",
    {
        "none": _built_in("none"),
        "salt": _built_in("salt", "high"),
        "pepper": _built_in("pepper", "low"),
        "gaussian": _built_in("gaussian"),
    },
)


def check_noise(kind: str, intensity: float) -> None:
    """Raise InputError for an unknown kind, ValueError for an intensity out of range."""
    NOISES.find(kind)
    if not 0.0 <= intensity <= 1.0:
        raise ValueError(f"noise intensity must be in 0..1, got {intensity}")


@dataclass(frozen=True)
class TrialConfig:
    """Settings of one trial; the defaults are the published ones.

    Attributes
    ----------
    method : {"slic", "kmeans"}
        SLIC lets a cluster center reach two steps per axis; K-means lets every center reach every pixel.
    clusters : int, 1..4096
        Requested clusters; the regular grid of start centers may hold a few more or fewer.
    compactness : float > 0
        Weight of space against color (mu_c of eq. 2 in units of CIELAB).
    max_iterations : int >= 1
    tolerance : float >= 0, pixels
        T of the paper: stop when no center moved that far (L2). 0 stops at the fixed point only.
    noise : str
        Name in `NOISES`. One-channel images count as three equal channels.
    intensity : float in 0..1
        Strength of the noise, see `mclc_gpu.kernels.noise.add_noise`.
    shared_noise : bool
        Draw once per pixel for all channels instead of once per channel.
    connectivity : {"enforce", "component", "cluster"}
        "enforce": scikit-image's connectivity enforcement, then the segment under the click. "component": the
        4-connected component of the cluster under the click. "cluster": the whole cluster under the click.
    min_size_factor, max_size_factor : float >= 0
        Limits of a segment's size for the enforcement, as multiples of the mean segment's.

    Raises
    ------
    ValueError
        A value out of range; InputError, which is one, for an unknown noise.
    """

    method: str = field(default="slic", metadata={"help": "clustering method", "choices": METHODS})
    clusters: int = field(default=9, metadata={"help": "clusters per window", "metavar": "N"})
    compactness: float = field(
        default=20.0, metadata={"help": "weight of space against color", "metavar": "M"}
    )
    max_iterations: int = 10
    tolerance: float = 0.0
    noise: str = field(default="salt", metadata={"help": "noise of the trials", "choices": NOISES})
    intensity: float = field(
        default=0.05,
        metadata={"help": "share of values replaced, or sigma of Gaussian noise", "metavar": "I"},
    )
    shared_noise: bool = False
    connectivity: str = "enforce"
    min_size_factor: float = 0.5
    max_size_factor: float = 3.0

    def __post_init__(self) -> None:
        check_noise(self.noise, self.intensity)
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        if self.connectivity not in CONNECTIVITY:
            raise ValueError(f"connectivity must be one of {CONNECTIVITY}, got {self.connectivity!r}")
        if not 1 <= self.clusters <= MAX_WINDOW**2:
            raise ValueError(f"clusters must be in 1..{MAX_WINDOW**2}, got {self.clusters}")
        if not (math.isfinite(self.compactness) and self.compactness > 0):
            raise ValueError(f"compactness must be positive, got {self.compactness}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {self.max_iterations}")
        for name in ("tolerance", "min_size_factor", "max_size_factor"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class CrfConfig:
    """Settings of the dense CRF; the defaults are the published ones.

    Attributes
    ----------
    gaussian_sxy : float > 0, pixels
        Width of the smoothness kernel exp(-|dp|^2 / 2 sxy^2).
    gaussian_compat : float >= 0
        Weight of that kernel in the Potts model; 0 leaves the term out.
    bilateral_sxy : float > 0, pixels
    bilateral_srgb : float > 0, units of the colors
        Widths of the appearance kernel exp(-|dp|^2 / 2 sxy^2 - |dc|^2 / 2 srgb^2).
    bilateral_compat : float >= 0
        Weight of that kernel; 0 leaves the term out.
    normalization : {"symmetric", "before", "after", "none"}
        Each kernel K becomes N^-1/2 K N^-1/2, K N^-1, N^-1 K or K / mean(N), with N the diagonal of the row
        sums of K. A pixel counts among its own neighbors.
    iterations : int >= 0
        Mean-field steps; 0 gives the softmax of the unary potentials.
    floor : float in (0, 0.5]
        Probabilities of either class below it are raised to it.

    Raises
    ------
    ValueError
        A value out of range.
    """

    gaussian_sxy: float = field(
        default=3.0,
        metadata={
            "option": "crf-gaussian",
            "metavar": "SXY",
            "help": "smoothness kernel of the CRF: width in pixels, weight",
        },
    )
    gaussian_compat: float = field(default=3.0, metadata={"option": "crf-gaussian", "metavar": "COMPAT"})
    bilateral_sxy: float = field(
        default=32.0,
        metadata={
            "option": "crf-bilateral",
            "metavar": "SXY",
            "help": "appearance kernel of the CRF: widths in pixels and gray levels, weight",
        },
    )
    bilateral_srgb: float = field(default=13.0, metadata={"option": "crf-bilateral", "metavar": "SRGB"})
    bilateral_compat: float = field(default=10.0, metadata={"option": "crf-bilateral", "metavar": "COMPAT"})
    normalization: str = "symmetric"
    iterations: int = field(
        default=1,
        metadata={"option": "crf-iterations", "metavar": "N", "help": "mean-field steps of the CRF"},
    )
    floor: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("gaussian_compat", "bilateral_compat"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {self.normalization!r}")
        if not (isinstance(self.iterations, Integral) and self.iterations >= 0):
            raise ValueError(f"iterations must be a whole number of at least 0, got {self.iterations}")
        if not 0 < self.floor <= 0.5:
            raise ValueError(f"floor must be above 0 and at most 0.5, got {self.floor}")


@dataclass(frozen=True)
class ScoreWeights:
    """Weights of a candidate's score; any finite numbers. Gray levels are those of an 8-bit image.

    The defaults were fitted on the train splits of NUAA-SIRST and NUDT-SIRST (270 and 918 targets), with
    jittered clicks and scaled and noisy copies of them, on crowds made of their targets, and with a small
    weight on synthetic dim bodies with hot parts.

    Attributes
    ----------
    level, level_square : float
        Weights of ln e and its square, where e >= 0.3 is the level of the outline over the ring around it.
    edge : float
        Weight of ln s, where s >= 0.3 is the fall across the outline: mean of its inner less its outer
        pixels.
    rim : float
        Weight of ln(0.3 + f), where f is the mean fall from the pixels of the outline to their neighbors
        outside, each between 0 and r + 1. A candidate that leaks is steep along a part of its outline only.
    size : float
        Weight of ln A ln (c / sqrt(r + 1)), where A is the area in pixels, c >= 0.5 the peak over the ring
        and r the spread of the background: the window's median less its 5th percentile. A target far above a
        calm background is drawn whole, its dim parts too.
    outline : float
        Weight of N / sqrt(A), where N is the number of pixels that touch the candidate from outside.
    distance : float
        Weight of d / (2 + 0.05 sqrt(A)), where d is the distance in pixels of its centroid from the click.
    large : float
        Weight of max(ln(A / 50), 0): few small targets are larger than 50 pixels.

    Raises
    ------
    ValueError
        A weight that is not finite.
    """

    level: float = 1.212
    level_square: float = -0.346
    edge: float = 3.585
    rim: float = 3.476
    size: float = 0.321
    outline: float = 0.367
    distance: float = -2.338
    large: float = -0.646

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise ValueError(f"the weight {name} must be a finite number, got {value}")


# Added to the weights of `ScoreWeights`, by what the annotator means by a target.
OUTLINES: dict[str, dict[str, float]] = {
    "core": {"level": 2.0},
    "edge": {},
    "body": {"level": 0.5, "edge": -2.0, "rim": -1.5, "size": 0.4},
}


@dataclass(frozen=True)
class ComponentConfig:
    """Settings of the vote of components.

    Attributes
    ----------
    radius : int, 1..31, pixels
        A window reaches that far from its click (`component_windows`). No candidate reaches the window's
        border, unless that is the image's border.
    near : int, 0..31, pixels
        Radius of the disk around the click in which the target's brightest pixel is sought.
    opening : int, 0 or odd, 1..63, pixels
        Side of the square of the gray opening that is taken off the window as its local background before
        candidates are made (white top-hat), so that they follow targets across a gradient. Where it takes
        most of what stands out at the click, as of targets that hold such a square, the vote is also held on
        the gray levels, and the better score decides. 0: on the gray levels alone.
    levels : int, 1..254
        Gray levels tried, evenly spaced from the target's brightest pixel down to the background.
    max_area : int, 1..4096, pixels
        Area of the largest candidate.
    polarity : {"bright", "dark", "auto"}
        Targets are brighter or darker than their surroundings; "auto" decides for each by its best score.
    dark_margin : float >= 0
        Margin by which the best dark score must exceed the best bright one under "auto".
    outline : {"core", "edge", "body"}
        Where annotators draw a target: close around its bright core, along its steepest edge, or around its
        dim body too, as of aircraft with hot engines. Each adds its own to some of the weights (`OUTLINES`).
    core : float
        Added to the weight of ln e: above 0 masks are drawn tighter, towards the core, below 0 wider.
    body : float
        Added to the weight of size: above 0 a hot spot gives way to the dim body around it where that stands
        clear of a calm background, wherever the click lies on it; about 1.5 for aircraft with hot engines.
    category_weight : float >= 0
        Loss of score for each factor of e by which a candidate's area misses the given category.
    weights : ScoreWeights

    Raises
    ------
    ValueError
        A value out of range.
    """

    radius: int = 31
    near: int = 8
    opening: int = 13
    levels: int = 64
    max_area: int = 2000
    polarity: str = field(
        default="bright",
        metadata={"help": "targets are brighter or darker than their surroundings", "choices": POLARITIES},
    )
    dark_margin: float = 3.0
    outline: str = field(
        default="edge",
        metadata={
            "help": "where annotators draw a target: close around its core, along its steepest edge, "
            "or around a dim body with hot parts",
            "choices": tuple(OUTLINES),
        },
    )
    core: float = 0.0
    body: float = 0.0
    category_weight: float = 10.0
    weights: ScoreWeights = field(default_factory=ScoreWeights)

    def __post_init__(self) -> None:
        if self.polarity not in POLARITIES:
            raise ValueError(f"polarity must be one of {POLARITIES}, got {self.polarity!r}")
        if self.outline not in OUTLINES:
            raise ValueError(f"outline must be one of {tuple(OUTLINES)}, got {self.outline!r}")
        largest = (MAX_WINDOW - 1) // 2
        limits = {"radius": (1, largest), "near": (0, largest), "levels": (1, MAX_LEVELS)}
        limits |= {"max_area": (1, MAX_WINDOW**2), "opening": (0, MAX_WINDOW - 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high or value != int(value):
                raise ValueError(f"{name} must be a whole number in {low}..{high}, got {value}")
        if self.opening and self.opening % 2 == 0:
            raise ValueError(f"opening must be odd or 0, got {self.opening}")
        for name in ("dark_margin", "category_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("core", "body"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")

    def score_weights(self) -> tuple[float, ...]:
        """Return the weights in the order of `ScoreWeights`, with `outline`, `core` and `body` added."""
        weights = asdict(self.weights)
        for name, more in (*OUTLINES[self.outline].items(), ("level", self.core), ("size", self.body)):
            weights[name] += more
        return tuple(map(float, weights.values()))
