"""Registry of the commands, and the options of those that are no more than a command."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mclc_gpu.annotate.config import AnnotateOptions
from mclc_gpu.bench.config import BenchOptions
from mclc_gpu.detect.config import EvaluateOptions, ExportOptions, PredictOptions
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import LabelOptions
from mclc_gpu.registry import Registry, resolve
from mclc_gpu.score.config import ScoreOptions
from mclc_gpu.train.config import DataSet, TrainOptions
from mclc_gpu.tune.config import TuneOptions

_DATA = "data; for several sets give --images, a source of labels and --list again, in the same order"


@dataclass(frozen=True)
class Command:
    """A command; its function is imported when it runs, so that --help is quick.

    Attributes
    ----------
    help : str
        One line for the list of commands.
    options : type
        Dataclass of the options, see `mclc_gpu.cli.options`.
    function : callable or str
        Takes the options and the `time.perf_counter()` of the start, and returns the number of skipped
        inputs; or the dotted path of such a function.
    strict : bool
        Inputs may be skipped; there is an option --strict.
    """

    help: str
    options: type[Any]
    function: Callable[[Any, float], int] | str
    strict: bool = True

    def run(self, options: Any, started: float) -> int:
        """Run the command; return the number of skipped inputs."""
        function = resolve(self.function) if isinstance(self.function, str) else self.function
        skipped: int = function(options, started)
        return skipped


@dataclass(frozen=True, kw_only=True)
class LabelArguments(LabelOptions):
    """Options of ``label``.

    Attributes
    ----------
    report : bool
        Write report.html.
    """

    report: bool = field(
        default=True,
        metadata={"option": "no-report", "help": "do not write report.html"},
    )


@dataclass(frozen=True, kw_only=True)
class TrainArguments(TrainOptions):
    """Options of ``train``, which give several data sets by repetition.

    Attributes
    ----------
    images, list : tuple of Path
        Of each set; no lists at all for all images.
    sources : tuple of (str, Path)
        Kind, "points", "points-from-masks" or "masks", and path of each set's labels.
    val_images, val_masks, val_list : tuple of Path
        Of each validation set.
    """

    sets: Sequence[DataSet] = ()
    images: tuple[Path, ...] = field(
        metadata={
            "help": "folder of images",
            "metavar": "DIR",
            "repeat": True,
            "title": _DATA,
        }
    )
    sources: tuple[tuple[str, Path], ...] = field(
        default=(),
        metadata={
            "kinds": {
                "points": ("FILE|DIR", "point labels: CSV, JSON, XML, txt, PNG"),
                "points-from-masks": ("DIR", "simulate clicks from true masks"),
                "masks": ("DIR", "train on true masks, without labeling"),
            },
            "title": _DATA,
        },
    )
    list: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "use only the images named here, one per line",
            "metavar": "TXT",
            "repeat": True,
            "title": _DATA,
        },
    )
    val_images: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "choose the best epoch by these images; without them it is the last",
            "metavar": "DIR",
            "repeat": True,
            "title": _DATA,
        },
    )
    val_masks: tuple[Path, ...] = field(
        default=(),
        metadata={"help": "true masks of --val-images", "metavar": "DIR", "repeat": True, "title": _DATA},
    )
    val_list: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "use only the validation images named here",
            "metavar": "TXT",
            "repeat": True,
            "title": _DATA,
        },
    )

    def __post_init__(self) -> None:
        if len(self.images) != len(self.sources):
            raise InputError(
                f"{len(self.images)} --images but {len(self.sources)} of --points, --points-from-masks and "
                "--masks: give each set of images one of these, in the same order"
            )
        if len(self.val_images) != len(self.val_masks):
            raise InputError(
                f"{len(self.val_images)} --val-images but {len(self.val_masks)} --val-masks: give one of each"
            )
        val_sources = [("masks", path) for path in self.val_masks]
        object.__setattr__(self, "sets", _sets("", self.images, self.sources, self.list))
        object.__setattr__(self, "validation", _sets("val-", self.val_images, val_sources, self.val_list))
        super().__post_init__()


def _sets(
    prefix: str, images: Sequence[Path], sources: Sequence[tuple[str, Path]], lists: Sequence[Path]
) -> list[DataSet]:
    """Return the data set of each folder of images, source of labels and list."""
    if lists and len(lists) != len(images):
        raise InputError(
            f"{len(lists)} --{prefix}list but {len(images)} --{prefix}images: give one for each, in the same "
            "order, or none"
        )
    names: Sequence[Path | None] = lists or [None] * len(images)
    return [
        DataSet(folder, list=name, **{kind.replace("-", "_"): path})
        for folder, (kind, path), name in zip(images, sources, names, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of ``show``.

    Attributes
    ----------
    labels : Path
        Folder of a label run.
    images : Path
        Folder of its images.
    out : Path
        PNG file to write.
    truth : Path, optional
        Folder of true masks.
    target : tuple of str
        Targets "NAME:INDEX", or images "NAME" for all of their targets.
    worst, best : int >= 1, optional
        Number of targets with the lowest and the highest IoU.
    list : Path, optional
        Text file that names the images to choose among.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    """

    labels: Path = field(metadata={"help": "folder that label wrote", "metavar": "RUN"})
    images: Path = field(metadata={"help": "folder of images", "metavar": "DIR"})
    out: Path = field(metadata={"help": "image file to write", "metavar": "PNG"})
    truth: Path | None = field(default=None, metadata={"help": "folder of true masks", "metavar": "DIR"})
    target: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "targets of these images, or these targets, counted from 0 (6 spread over the run)",
            "metavar": "NAME[:INDEX]",
        },
    )
    worst: int | None = field(
        default=None, metadata={"help": "targets with the lowest IoU in their window", "metavar": "N"}
    )
    best: int | None = field(
        default=None, metadata={"help": "targets with the highest IoU in their window", "metavar": "N"}
    )
    list: Path | None = field(
        default=None, metadata={"help": "choose among the images named here, one per line", "metavar": "TXT"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of ``demo``.

    Attributes
    ----------
    out : Path
        Output folder.
    count : int >= 4
        Synthetic frames.
    epochs : int >= 1
        Epochs of training.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    seed : int
        Seed of the frames and of training.

    Raises
    ------
    InputError
        There are fewer than 4 frames.
    """

    out: Path = field(default=Path("demo-out"), metadata={"help": "output folder", "metavar": "DIR"})
    count: int = field(default=320, metadata={"help": "synthetic frames", "metavar": "N"})
    epochs: int = field(default=7, metadata={"help": "epochs of training", "metavar": "N"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})
    seed: int = field(default=0, metadata={"help": "seed of the frames and of training", "metavar": "N"})

    def __post_init__(self) -> None:
        if self.count < 4:
            raise InputError(f"--count {self.count}: give 4 frames or more, to train and to test")


COMMANDS: Registry[Command] = Registry(
    "command",
    {
        "label": Command(
            "make masks and probability maps from images and points",
            LabelArguments,
            "mclc_gpu.cli.label.label",
        ),
        "score": Command(
            "compute IoU, nIoU, Pd, Fa, precision, recall and F1 of masks",
            ScoreOptions,
            "mclc_gpu.cli.score.score",
        ),
        "train": Command(
            "label images from points and train a detector on them",
            TrainArguments,
            "mclc_gpu.cli.train.train",
        ),
        "evaluate": Command(
            "score a detector on images with masks",
            EvaluateOptions,
            "mclc_gpu.cli.detect.evaluate",
        ),
        "predict": Command(
            "find targets in images: masks, probability maps, a table",
            PredictOptions,
            "mclc_gpu.cli.detect.predict",
        ),
        "export": Command(
            "write a trained detector as a file that runs without PyTorch",
            ExportOptions,
            "mclc_gpu.cli.detect.export",
            strict=False,
        ),
        "tune": Command(
            "find label settings for one's own images from a few true masks",
            TuneOptions,
            "mclc_gpu.cli.tune.tune",
        ),
        "annotate": Command(
            "click targets in a browser, see and correct their masks",
            AnnotateOptions,
            "mclc_gpu.cli.annotate.annotate",
            strict=False,
        ),
        "show": Command(
            "draw the steps from click to mask for targets of a label run",
            ShowOptions,
            "mclc_gpu.cli.show.show",
            strict=False,
        ),
        "demo": Command(
            "run label, train, evaluate and predict on a synthetic data set",
            DemoOptions,
            "mclc_gpu.cli.main.demo",
            strict=False,
        ),
        "bench": Command(
            "measure rates on this machine, beside those of other packages",
            BenchOptions,
            "mclc_gpu.bench.command.bench",
            strict=False,
        ),
    },
)
