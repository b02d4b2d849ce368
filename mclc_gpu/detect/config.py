"""Settings of `evaluate` and `predict`, free of torch and numpy so that the command line reads them quickly.

See `mclc_gpu.cli.options` for the metadata of the fields.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mclc_gpu.classical.config import METHODS, MethodOptions
from mclc_gpu.errors import InputError
from mclc_gpu.registry import Registry
from mclc_gpu.score.config import CONVENTIONS

TILE, OVERLAP = 1024, 64  # pixels
CHANNELS = (1, 3)  # of the input of networks that are trained
THRESHOLD = 0.5  # of detectors without a calibrated one

# Test-time augmentations; an entry takes a function from images to probability maps, and images [B, C, H, W],
# and returns their probability maps [B, H, W].
AUGMENTATIONS: Registry[Callable[..., Any]] = Registry(
    "tta",
    {
        "none": "mclc_gpu.detect.inference.single_view",
        "flips": "mclc_gpu.detect.inference.mean_over_flips",
    },
)
# Formats of export; an entry takes a `Trained` on the CPU, a `Threshold` and the path of the file, and
# returns the largest difference of a probability from PyTorch's, or None where it cannot be measured.
FORMATS: Registry[Callable[..., Any]] = Registry("format", {"onnx": "mclc_gpu.detect.export.write_onnx"})


class Threshold(NamedTuple):
    """Threshold of the target probability that a run uses.

    Attributes
    ----------
    value : float, 0..1
        A pixel is a target where its probability is above.
    source : {"given", "checkpoint", "default"}
        Origin of the value: the user, calibration on held-out images, or neither.
    """

    value: float
    source: str

    def __str__(self) -> str:
        """Return the value and its origin for people."""
        origin = {"given": "as given", "checkpoint": "from the checkpoint"}.get(self.source, self.source)
        return f"{self.value:g} ({origin})"


def check_threshold(value: float | None) -> None:
    """Raise ValueError for a threshold that is no probability; None passes."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"threshold {value:g}: a probability is 0 to 1")


def used_threshold(given: float | None, calibrated: float | None) -> Threshold:
    """Return the threshold to use: the given one, else the checkpoint's, else 0.5.

    Examples
    --------
    >>> from mclc_gpu.detect.config import used_threshold
    >>> used_threshold(None, 0.4), str(used_threshold(0.7, 0.4))
    (Threshold(value=0.4, source='checkpoint'), '0.7 (as given)')
    """
    if given is not None:
        return Threshold(given, "given")
    return Threshold(THRESHOLD, "default") if calibrated is None else Threshold(calibrated, "checkpoint")


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Settings of a detector that runs on a folder of images.

    Attributes
    ----------
    checkpoint : Path, optional
        File of the trained detector; exactly one of `checkpoint` and `method` is given.
    method : str, optional
        Name in `mclc_gpu.classical.config.METHODS` of a detector that is not trained.
    untrained : MethodOptions
        Settings of that detector.
    images : Path
        Folder of images.
    list : Path, optional
        Text file that names the images to use, one per line; by default all.
    threshold : float, 0..1, optional
        A pixel is a target where its probability is above; by default the checkpoint's, or 0.5 where it has
        none. For a method, of the rule fixed.
    tta : str
        A name in `AUGMENTATIONS`.
    tile, overlap : int, pixels
        See `mclc_gpu.detect.inference.probability`.
    amp : bool
        Run in bfloat16 where PyTorch holds it safe.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".

    Raises
    ------
    InputError
        If a value is out of range.
    """

    checkpoint: Path | None = field(
        default=None,
        metadata={
            "help": "checkpoint written by train",
            "metavar": "FILE",
            "either": "detector",
            "required": True,
        },
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "detector that needs no training",
            "metavar": "NAME",
            "choices": METHODS,
            "either": "detector",
            "required": True,
        },
    )
    untrained: MethodOptions = field(default_factory=MethodOptions, metadata={"title": "with --method"})
    images: Path = field(metadata={"help": "folder of images", "metavar": "DIR"})
    list: Path | None = field(
        default=None, metadata={"help": "use only the images named here, one per line", "metavar": "TXT"}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "mark pixels whose target probability is above P (the checkpoint's, or 0.5 without one)",
            "metavar": "P",
        },
    )
    tta: str = field(
        default="none",
        metadata={
            "help": "mean over several views of each image, at as many times the cost: flips are four",
            "choices": AUGMENTATIONS,
        },
    )
    tile: int = field(default=TILE, metadata={"help": "longest image side run in one piece", "metavar": "PX"})
    overlap: int = field(default=OVERLAP, metadata={"help": "overlap of neighboring tiles", "metavar": "PX"})
    amp: bool = field(
        default=False, metadata={"help": "run in bfloat16 where it is safe; pays on CUDA devices"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.method is None):
            raise InputError("give one of --checkpoint and --method")
        if self.method is not None and self.method not in METHODS:
            raise InputError(f"--method {self.method}: use one of {', '.join(METHODS)}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold:g}: a probability is 0 to 1")
        if self.tta not in AUGMENTATIONS:  # to find it would import PyTorch
            raise InputError(f"tta {self.tta!r}: use one of {', '.join(AUGMENTATIONS)}")
        if self.tile < 1 or not 0 <= self.overlap <= self.tile // 2:
            raise InputError(
                f"--tile {self.tile} --overlap {self.overlap}: give 1 px or more, and 0 to half of a tile"
            )

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the condition for an effect."""
        if self.method is None:
            return {"untrained": "only applies with --method"}
        unused = dict.fromkeys(("tta", "tile", "overlap", "amp"), "only applies with --checkpoint")
        if self.untrained.threshold_rule != "fixed":
            unused["threshold"] = "only applies with --threshold-rule fixed"
        return unused

    def settings(self, threshold: float) -> dict[str, Any]:
        """Return what the output depends on, besides the checkpoint or method and the images.

        `threshold` is that of a network, or of the rule fixed.
        """
        if self.method is not None:
            return {"map_scale": self.untrained.map_scale, **self.untrained.rule(threshold)}
        return {
            "threshold": threshold,
            "tta": self.tta,
            "tile": self.tile,
            "overlap": self.overlap,
            "amp": self.amp,
        }


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DetectorOptions):
    """Settings of the evaluation of a detector on images with true masks.

    Attributes
    ----------
    masks : Path
        Folder of true masks.
    convention : str
        Convention of the false alarms; see `mclc_gpu.score.config.CONVENTIONS`.
    roc : Path, optional
        PNG file for Pd over Fa at all thresholds.
    json : Path, optional
        File for the scores.
    out : Path, optional
        Folder for a report with images.
    overwrite : bool
        Replace an earlier report in `out`.
    """

    masks: Path = field(metadata={"help": "folder of true masks", "metavar": "DIR"})
    convention: str = field(
        default="canonical",
        metadata={
            "help": "false alarms: canonical counts each component that matches no target, dnanet compares "
            "areas like the historical metric",
            "choices": tuple(CONVENTIONS),
        },
    )
    roc: Path | None = field(
        default=None, metadata={"help": "draw Pd over Fa at all thresholds", "metavar": "PNG"}
    )
    json: Path | None = field(
        default=None, metadata={"help": "also write the scores there", "metavar": "FILE"}
    )
    out: Path | None = field(
        default=None, metadata={"help": "write a report with images there", "metavar": "DIR"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an earlier report in --out"})


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DetectorOptions):
    """Settings of `mclc_gpu.detect.predict.predict_images`.

    Attributes
    ----------
    out : Path
        Output folder.
    resume : bool
        Continue an interrupted run with the same settings.
    overwrite : bool
        Replace an earlier run's output.
    """

    out: Path = field(metadata={"help": "output folder", "metavar": "DIR"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run", "either": "earlier"})
    overwrite: bool = field(
        default=False, metadata={"help": "replace an earlier run in --out", "either": "earlier"}
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Settings of `mclc_gpu.detect.export.export_detector`.

    Attributes
    ----------
    checkpoint : Path
        File of the trained detector.
    format : str
        A name in `FORMATS`.
    out : Path, optional
        File to write; by default that of the checkpoint with the format's suffix.
    threshold : float, 0..1, optional
        Threshold that the file states; by default the checkpoint's, or 0.5 where it has none.
    overwrite : bool
        Replace the file.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    checkpoint: Path = field(metadata={"help": "checkpoint written by train", "metavar": "FILE"})
    format: str = field(default="onnx", metadata={"help": "format of the file", "choices": FORMATS})
    out: Path | None = field(
        default=None,
        metadata={
            "help": "file to write (the checkpoint's name with the format's suffix)",
            "metavar": "FILE",
        },
    )
    threshold: float | None = field(
        default=None,
        metadata={"help": "threshold stated in the file (the checkpoint's, or 0.5)", "metavar": "P"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the file"})

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold:g}: a probability is 0 to 1")
        if self.format not in FORMATS:
            raise InputError(f"format {self.format!r}: use one of {', '.join(FORMATS)}")

    @property
    def file(self) -> Path:
        """File to write."""
        return self.checkpoint.with_suffix(f".{self.format}") if self.out is None else self.out
