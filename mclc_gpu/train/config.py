"""Settings of training, free of torch and numpy so that the command line reads them quickly.

The metadata of a field describe its command-line option, see `mclc_gpu.cli.options`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mclc_gpu.detect.config import CHANNELS
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import LabelSettings
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.registry import Registry

# A loss takes logits and truth [B, 1, H, W] and a sum over processes; see `mclc_gpu.train.trainer.soft_iou`.
LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    {
        "soft-iou": "mclc_gpu.train.trainer.soft_iou",
        "bce": "mclc_gpu.train.trainer.cross_entropy",
    },
)
OPTIMIZERS: Registry[Callable[..., Any]] = Registry(
    "optimizer",
    {
        "adagrad": "torch.optim.Adagrad",
        "adam": "torch.optim.Adam",
        "adamw": "torch.optim.AdamW",
    },
)
# Adagrad's learning rate is the paper's; the other is the one that the field's benchmark code gives Adam.
LEARNING_RATES = {"adagrad": 0.05}
LEARNING_RATE = 5e-4
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are the paper's.

    Attributes
    ----------
    network : str
        A name in `mclc_gpu.networks.zoo.NETWORKS`.
    epochs : int >= 1
        Passes over the training set: each shows every image once, and some again to fill the last batch.
    batch_size : int >= 1
        Crops per step, summed over all processes.
    size : int >= 16, pixels
        Side of the square crops.
    optimizer : str
        A name in `OPTIMIZERS`.
    lr : float > 0 or None
        Learning rate of the first epoch; it falls to 0 along half a cosine. None: the optimizer's own, 0.05
        for Adagrad and 0.0005 for the others.
    loss : str
        A name in `LOSSES`; see `mclc_gpu.train.trainer.detector_loss`.
    channels : {1, 3}
        Channels of the network's input; see `mclc_gpu.data.images.network_levels`.
    amp : bool
        Run the forward pass in bfloat16 where PyTorch holds it safe (autocast); the loss stays float32.
    compile : str or None
        A mode of torch.compile for the training pass; "reduce-overhead" records CUDA graphs.
    validate_every : int >= 1
        Epochs from one validation to the next; the last epoch is always validated.
    seed : int
        Seed of initial weights, order, crops, flips and dropout.

    Raises
    ------
    InputError
        If a value is out of range.

    Examples
    --------
    >>> from mclc_gpu.train.config import TrainConfig
    >>> TrainConfig(network="acm", epochs=100).lr_of(50)
    0.025
    """

    network: str = field(
        default="dnanet",
        metadata={"help": "detector to train", "metavar": "NAME", "choices": NETWORKS, "required": True},
    )
    epochs: int = field(default=1500, metadata={"help": "passes over the training set", "metavar": "N"})
    batch_size: int = field(
        default=16, metadata={"help": "crops per step, summed over all processes", "metavar": "N"}
    )
    size: int = field(default=256, metadata={"help": "side of the crops", "metavar": "PX"})
    optimizer: str = field(default="adagrad", metadata={"help": "optimizer", "choices": OPTIMIZERS})
    lr: float | None = field(
        default=None,
        metadata={
            "help": "learning rate at the start; falls to 0 along a cosine (adagrad 0.05, others 0.0005)",
            "metavar": "LR",
        },
    )
    loss: str = field(default="soft-iou", metadata={"help": "loss", "choices": LOSSES})
    channels: int = field(
        default=1, metadata={"help": "channels of the network's input: 1 gray, 3 color", "choices": CHANNELS}
    )
    amp: bool = field(
        default=False, metadata={"help": "run in bfloat16 where it is safe; pays on CUDA devices"}
    )
    compile: str | None = field(
        default=None,
        metadata={
            "help": "compile the network, in a mode of torch.compile; reduce-overhead records CUDA graphs",
            "choices": COMPILE_MODES,
            "const": "default",
        },
    )
    validate_every: int = field(
        default=1,
        metadata={"help": "epochs from one validation to the next", "metavar": "N", "option": "val-every"},
    )
    seed: int = field(
        default=0,
        metadata={"help": "seed of initial weights, order, crops, flips and dropout", "metavar": "N"},
    )

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[Any]] = {
            "network": tuple(NETWORKS),
            "optimizer": tuple(OPTIMIZERS),
            "loss": tuple(LOSSES),
            "channels": CHANNELS,
            "compile": (None, *COMPILE_MODES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} {getattr(self, name)!r}: use one of {', '.join(map(str, allowed))}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("size", 16), ("validate_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: use {least} or more")
        if not (math.isfinite(self.first_lr) and self.first_lr > 0):
            raise InputError(f"lr {self.lr}: use a number above 0")

    @property
    def first_lr(self) -> float:
        """Learning rate of the first epoch."""
        return LEARNING_RATES.get(self.optimizer, LEARNING_RATE) if self.lr is None else self.lr

    def settings(self) -> dict[str, Any]:
        """Return all settings, with the learning rate that is used."""
        return {**asdict(self), "lr": self.first_lr}

    def lr_of(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0: cosine annealing to 0."""
        return 0.5 * self.first_lr * (1 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True)
class DataSet:
    """Images with the source of their masks: one of `points`, `points_from_masks` and `masks`.

    Attributes
    ----------
    images : Path
        Folder of images, or an archive or folder of archives.
    points : Path, optional
        Point labels in any format that `mclc_gpu.data.points.read_points` reads; masks are made from them.
    points_from_masks : Path, optional
        Folder of true masks from which clicks are simulated; masks are made from these clicks.
    masks : Path, optional
        Folder of true masks.
    list : Path, optional
        Text file that names the images to use, one per line; by default all.

    Raises
    ------
    InputError
        If not exactly one source is given.
    """

    images: Path
    points: Path | None = None
    points_from_masks: Path | None = None
    masks: Path | None = None
    list: Path | None = None

    def __post_init__(self) -> None:
        if sum(path is not None for path in (self.points, self.points_from_masks, self.masks)) != 1:
            raise InputError(f"{self.images}: give one of points, points_from_masks and masks")

    @property
    def source(self) -> Path:
        """Path of the points or masks."""
        return next(path for path in (self.points, self.points_from_masks, self.masks) if path is not None)


@dataclass(frozen=True)
class TrainOptions:
    """Settings of `mclc_gpu.train.fit.train_detector`.

    Attributes
    ----------
    sets : sequence of DataSet
        Images to train on.
    out : Path
        Folder of the run.
    config : TrainConfig
        Network and training schedule.
    validation : sequence of DataSet
        Images with true masks by which the best epoch is chosen; without them it is the last.
    labels : LabelSettings
        Settings of the labels of sets that have points.
    device : str
        "auto", "cpu", "cuda" or, outside torchrun, "cuda:N".
    resume, overwrite : bool
        Continue or replace the run in `out`.

    Raises
    ------
    InputError
        If there is no data set.
    """

    sets: Sequence[DataSet]
    out: Path = field(metadata={"help": "folder of the run", "metavar": "RUN"})
    config: TrainConfig = field(default_factory=TrainConfig)
    validation: Sequence[DataSet] = ()
    labels: LabelSettings = field(
        default_factory=LabelSettings, metadata={"title": "labels, as for mclc-gpu label"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N", "metavar": "DEVICE"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run", "either": "earlier"})
    overwrite: bool = field(
        default=False, metadata={"help": "replace an earlier run in --out", "either": "earlier"}
    )

    def __post_init__(self) -> None:
        if not self.sets:
            raise InputError("nothing to train on: give at least one set of images")

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the reason."""
        if all(one.masks is not None for one in self.sets):
            return {"labels": "has no effect with --masks (nothing is labeled)"}
        return {}
