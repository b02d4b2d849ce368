"""Settings of `evaluate` and `predict`, free of torch and numpy so that the command line reads them quickly.

See `mclc_gpu.cli.options` for the metadata of the fields.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mclc_gpu.errors import InputError
from mclc_gpu.score.config import CONVENTIONS

TILE, OVERLAP = 1024, 64  # pixels
CHANNELS = (1, 3)  # of the input of networks that are trained


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Settings of a trained detector that runs on a folder of images.

    Attributes
    ----------
    checkpoint : Path
        File of the trained detector.
    images : Path
        Folder of images.
    list : Path, optional
        Text file that names the images to use, one per line; by default all.
    threshold : float, 0..1
        A pixel is a target where its probability is above.
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

    checkpoint: Path = field(metadata={"help": "checkpoint written by train", "metavar": "FILE"})
    images: Path = field(metadata={"help": "folder of images", "metavar": "DIR"})
    list: Path | None = field(
        default=None, metadata={"help": "use only the images named here, one per line", "metavar": "TXT"}
    )
    threshold: float = field(
        default=0.5, metadata={"help": "mark pixels whose target probability is above P", "metavar": "P"}
    )
    tile: int = field(default=TILE, metadata={"help": "longest image side run in one piece", "metavar": "PX"})
    overlap: int = field(default=OVERLAP, metadata={"help": "overlap of neighboring tiles", "metavar": "PX"})
    amp: bool = field(
        default=False, metadata={"help": "run in bfloat16 where it is safe; pays on CUDA devices"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold:g}: a probability is 0 to 1")
        if self.tile < 1 or not 0 <= self.overlap <= self.tile // 2:
            raise InputError(
                f"--tile {self.tile} --overlap {self.overlap}: give 1 px or more, and 0 to half of a tile"
            )


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

    def settings(self) -> dict[str, Any]:
        """Return what the output depends on, besides the checkpoint and the images."""
        return {"threshold": self.threshold, "tile": self.tile, "overlap": self.overlap, "amp": self.amp}
