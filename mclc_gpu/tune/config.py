"""Settings of `tune`, free of torch and numpy so that the command line reads them quickly.

See `mclc_gpu.cli.options` for the metadata of the fields.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mclc_gpu.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Settings of `mclc_gpu.tune.run.tune_labels`.

    Attributes
    ----------
    images, masks : Path
        Folders of images and of their true masks; images without a mask are skipped.
    out : Path
        Output folder.
    list : Path, optional
        Text file that names the images to use, one per line; by default all.
    preset : str
        Label preset at which the search starts.
    category : {"given", "estimate"}, optional
        Source of the targets' size categories; by default none for labels that need none, else the preset's.
    jitter : float >= 0, pixels
        Spread of the simulated clicks; see `mclc_gpu.data.simulate.points_from_mask`.
    seeds : int >= 1
        Every evaluation is the mean over the seeds 0, 1, ..., of the noise and the simulated clicks.
    budget : int >= 1
        Most evaluations of the search.
    seed : int
        Seed of the search itself and of the cross-validation.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    resume : bool
        Continue an interrupted run with the same settings.
    overwrite : bool
        Replace an earlier run's output.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    images: Path = field(metadata={"help": "folder of images", "metavar": "DIR"})
    masks: Path = field(metadata={"help": "folder of true masks", "metavar": "DIR"})
    out: Path = field(metadata={"help": "output folder", "metavar": "DIR"})
    list: Path | None = field(
        default=None, metadata={"help": "use only the images named here, one per line", "metavar": "TXT"}
    )
    preset: str = field(
        default="default",
        metadata={"help": "label preset at which the search starts", "choices": ("paper", "default")},
    )
    category: str | None = field(
        default=None,
        metadata={
            "help": "whether annotators will give the targets' size category "
            "(default: only where labels need it)",
            "choices": ("given", "estimate"),
        },
    )
    jitter: float = field(default=0.0, metadata={"help": "spread of simulated clicks", "metavar": "PX"})
    seeds: int = field(default=3, metadata={"help": "runs per evaluation", "metavar": "N"})
    budget: int = field(
        default=100,
        metadata={
            "help": "most evaluations of the search",
            "metavar": "N",
        },
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})
    seed: int = field(default=0, metadata={"help": "seed of the search", "metavar": "N"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run", "either": "earlier"})
    overwrite: bool = field(
        default=False, metadata={"help": "replace an earlier run in --out", "either": "earlier"}
    )

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds {self.seeds}: give at least 1")
        if self.budget < 1:
            raise InputError(f"budget {self.budget}: give at least 1 evaluation")
