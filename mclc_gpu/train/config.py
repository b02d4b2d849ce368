"""Settings of training, free of torch and numpy so that the command line reads them quickly.

The metadata of a field describe its command-line option, see `mclc_gpu.cli.options`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mclc_gpu.detect.config import CHANNELS
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import LabelSettings
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.registry import Registry

# A loss takes logits and truth [B, 1, H, W] and a sum over processes; see `mclc_gpu.train.losses.soft_iou`.
LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    {
        "soft-iou": "mclc_gpu.train.losses.soft_iou",
        "soft-iou+bce": "mclc_gpu.train.losses.soft_iou_and_cross_entropy",
        "bce": "mclc_gpu.train.losses.cross_entropy",
        "sls": "mclc_gpu.train.losses.scale_location",
        "partial-bce": "mclc_gpu.train.losses.partial_cross_entropy",
    },
)
# Losses that stand in for those of the same name in the first epochs, or rounds of the fast schedule.
WARM_UP_LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss", {"sls": "mclc_gpu.train.losses.iou_of_images"}
)
WARM_UP = 5
POINT_LOSSES = ("partial-bce",)  # for labels that tell single pixels of targets, not their extent
OPTIMIZERS: Registry[Callable[..., Any]] = Registry(
    "optimizer",
    {
        "adagrad": "torch.optim.Adagrad",
        "adam": "torch.optim.Adam",
        "adamw": "torch.optim.AdamW",
        "muon": "mclc_gpu.train.muon.Muon",
    },
)
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
SCHEDULES = ("fast", "paper")
BUDGETS = ("epochs", "mpixels", "minutes")
MPIXELS = 400.0  # default budget of the fast schedule

# Values of the settings that depend on the schedule. In "paper", Adagrad's learning rate is the paper's; the
# other is the one that the field's benchmark code gives Adam.
_BY_SCHEDULE: dict[str, dict[str, Any]] = {
    "fast": {"optimizer": "muon", "loss": "soft-iou+bce", "validate_every": 5, "hold_out": 0.1},
    "paper": {"optimizer": "adagrad", "loss": "soft-iou", "validate_every": 1, "hold_out": 0.0},
}
_LEARNING_RATES = {
    "fast": {"adagrad": 0.05, "muon": 0.02, "": 5e-3},
    "paper": {"adagrad": 0.05, "muon": 0.02, "": 5e-4},
}


class Stage(NamedTuple):
    """Part of a fast run: side of its crops in pixels, and its share of the run's pixels."""

    side: int
    share: float


@dataclass(frozen=True)
class FastConfig:
    """Settings of the fast schedule; each names the value that switches its part off.

    Attributes
    ----------
    stages : str
        Side of the crops in pixels and share of the budget of each stage, "64:.5,128:.35,256:.15"; shares are
        divided by their sum. A single stage is "256:1".
    step_pixels : int >= 1
        Pixels of a step, in whole crops, over all processes; at least the network's smallest batch.
    rounds : int >= 1
        Parts of equal pixels into which the run is cut. Each ends with a row of the curve and a checkpoint.
    target_share : float, 0..1
        Share of the crops of images with targets that show a target.
    margin : float, 0..0.45
        Share of the side of a crop that lies at least between that target and each border; 0: anywhere.
    hard_share : float, 0..1
        Share of the other crops that show a false alarm of the network in training; 0: none, and none are
        searched. They are searched when 25, 50 and 75 % of the run are done.
    average : float, 0..1
        Decay per step of the moving average of weights and statistics, which is the detector that a run
        returns; 0: no average.
    prior : float
        Logit of the mask before training; 0: a probability of one half.
    warmup : float, 0..0.9
        Share of the run in which the learning rate rises; 0: none. Then it falls along half a cosine to 1 %.
    weight_decay : float >= 0
        Of weights with more than one dimension.
    freeze : float, 0..1
        Share of the run after which batch norms behind a global pooling use their running statistics; 1:
        never.
    paste_share : float, 0..1
        Share of the crops into which a target of another image is pasted, see `mclc_gpu.train.pasting`; 0:
        none.
    scale_jitter : float, 0..1
        Crops are cut with their side times exp(u), u uniform from minus to plus this, and resampled; 0: off.
    gain_jitter : float >= 0
        Strength of random gain, offset, gamma and noise, see `mclc_gpu.train.data.vary_gain`; 0: off.

    Raises
    ------
    InputError
        If a value is out of range.

    Examples
    --------
    >>> from mclc_gpu.train.config import FastConfig
    >>> FastConfig(stages="64:1,128:3").parsed_stages()
    [Stage(side=64, share=0.25), Stage(side=128, share=0.75)]
    """

    stages: str = field(
        default="64:.5,128:.35,256:.15",
        metadata={
            "help": "side of the crops and share of the budget of each stage",
            "metavar": "PX:SHARE,...",
        },
    )
    step_pixels: int = field(
        default=49152,
        metadata={"help": "pixels of a step over all processes, in whole crops", "metavar": "N"},
    )
    rounds: int = field(
        default=50,
        metadata={"help": "parts of the run, each ending with a row of the curve", "metavar": "N"},
    )
    target_share: float = field(
        default=0.7, metadata={"help": "share of the crops that show a target", "metavar": "SHARE"}
    )
    margin: float = field(
        default=0.1,
        metadata={"help": "least distance of that target from the border, in sides", "metavar": "SHARE"},
    )
    hard_share: float = field(
        default=0.3,
        metadata={
            "help": "share of the other crops that show a false alarm, searched three times; 0: off",
            "metavar": "SHARE",
        },
    )
    average: float = field(
        default=0.99,
        metadata={"help": "decay per step of the moving average of the weights; 0: off", "metavar": "DECAY"},
    )
    prior: float = field(
        default=-4.0, metadata={"help": "logit of the mask before training", "metavar": "LOGIT"}
    )
    warmup: float = field(
        default=0.1, metadata={"help": "share of the run with a rising learning rate", "metavar": "SHARE"}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "weight decay", "metavar": "X"})
    freeze: float = field(
        default=0.5,
        metadata={
            "help": "share of the run after which batch norms behind a global pooling keep their statistics; "
            "1: never",
            "metavar": "SHARE",
        },
    )
    paste_share: float = field(
        default=0.5,
        metadata={"help": "share of the crops with a pasted target; 0: off", "metavar": "SHARE"},
    )
    scale_jitter: float = field(
        default=0.4, metadata={"help": "largest change of scale, as a natural logarithm", "metavar": "X"}
    )
    gain_jitter: float = field(
        default=1.0, metadata={"help": "strength of random gain, gamma and noise", "metavar": "X"}
    )

    def __post_init__(self) -> None:
        self.parsed_stages()
        ranges = {
            "target_share": (0, 1), "margin": (0, 0.45), "hard_share": (0, 1), "average": (0, 1),
            "prior": (-20, 20), "warmup": (0, 0.9), "weight_decay": (0, 1), "freeze": (0, 1),
            "paste_share": (0, 1), "scale_jitter": (0, 1), "gain_jitter": (0, 10),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)}: use {low} to {high}")
        for name in ("step_pixels", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: use 1 or more")

    def parsed_stages(self) -> list[Stage]:
        """Return the stages with shares that add up to 1."""
        try:
            pairs = [part.split(":") for part in self.stages.split(",")]
            stages = [Stage(int(side), float(share)) for side, share in pairs]
            total = sum(stage.share for stage in stages)
            if not all(stage.side >= 16 and 0 < stage.share < math.inf for stage in stages):
                raise ValueError
        except ValueError:
            raise InputError(
                f"stages {self.stages!r}: give sides of 16 px or more with shares above 0, as in 64:.5,128:.5"
            ) from None
        return [Stage(side, share / total) for side, share in stages]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes
    ----------
    network : str
        A name in `mclc_gpu.networks.zoo.NETWORKS`.
    schedule : {"fast", "paper"}
        "fast": many small steps on small crops around targets, for minutes on a CPU; see `FastConfig`.
        "paper": the schedule of the papers, 1500 epochs of crops of 256 x 256 with Adagrad.
    epochs : int >= 1 or None
        Passes over the training set: each shows every image once, and some again to fill the last batch. In
        the fast schedule the budget is that of the pixels of these passes. None: 1500 in "paper".
    mpixels : float > 0 or None
        Budget of the fast schedule: million pixels of crops. None: 400.
    minutes : float > 0 or None
        The same as a time: the speed is measured before the run, which fixes the pixels.
    batch_size : int >= 1
        Crops per step of the schedule "paper", summed over all processes.
    size : int >= 16, pixels
        Side of the square crops of an epoch; in the fast schedule it only counts the pixels of `epochs`.
    optimizer : str or None
        A name in `OPTIMIZERS`. None: Muon in "fast", Adagrad in "paper".
    lr : float > 0 or None
        Highest learning rate. In "paper" it is that of the first epoch and falls to 0 along half a cosine.
        None: 0.05 for Adagrad, 0.02 for Muon, and for the others 0.005 in "fast" and 0.0005 in "paper".
    loss : str or None
        A name in `LOSSES`; see `mclc_gpu.train.losses.detector_loss`. None: soft-IoU, in "fast" with
        cross-entropy. With "partial-bce", whose labels are single pixels, no target is pasted, no crop is
        resampled, and by default no image is held out, since no threshold can be chosen on such labels.
    channels : {1, 3}
        Channels of the network's input; see `mclc_gpu.data.images.network_levels`.
    amp : bool
        Run the forward pass in bfloat16 where PyTorch holds it safe (autocast); the loss stays float32.
    compile : str or None
        A mode of torch.compile for the training pass; "reduce-overhead" records CUDA graphs.
    validate_every : int >= 1 or None
        Epochs, or rounds of the fast schedule, from one validation to the next; the last is always validated.
        None: 1 in "paper", 5 in "fast".
    hold_out : float, 0..0.5, or None
        Share of the images that are held out where no validation images are given; see
        `mclc_gpu.train.heldout.hold_out`. They are scored against their own labels, and the detector's
        threshold is calibrated on them. None: 0.1 in "fast", 0 in "paper".
    seed : int
        Seed of initial weights, order, crops, flips, jitter and dropout.
    fast : FastConfig
        Settings of the fast schedule.

    Raises
    ------
    InputError
        If a value is out of range, or there is more than one budget.

    Examples
    --------
    >>> from mclc_gpu.train.config import TrainConfig
    >>> TrainConfig(network="acm", schedule="paper").resolved().lr
    0.05
    """

    network: str = field(
        default="dnanet",
        metadata={"help": "detector to train", "metavar": "NAME", "choices": NETWORKS, "required": True},
    )
    schedule: str = field(
        default="fast",
        metadata={
            "help": "fast: small crops around targets, minutes on a CPU; paper: 1500 epochs of crops of 256",
            "choices": SCHEDULES,
        },
    )
    epochs: int | None = field(
        default=None,
        metadata={
            "help": "budget in passes over the training set (paper: 1500)",
            "metavar": "N",
            "either": "budget",
        },
    )
    mpixels: float | None = field(
        default=None,
        metadata={
            "help": "budget in million pixels of crops (fast: 400, ten minutes for acm on two CPU cores)",
            "metavar": "N",
            "either": "budget",
        },
    )
    minutes: float | None = field(
        default=None,
        metadata={
            "help": "budget in minutes of training; the speed is measured first",
            "metavar": "N",
            "either": "budget",
        },
    )
    batch_size: int = field(
        default=16,
        metadata={"help": "crops per step of --schedule paper, summed over all processes", "metavar": "N"},
    )
    size: int = field(
        default=256,
        metadata={
            "help": "side of the crops of an epoch; in the fast schedule it counts the pixels of --epochs",
            "metavar": "PX",
        },
    )
    optimizer: str | None = field(
        default=None,
        metadata={"help": "optimizer (fast: muon, paper: adagrad)", "choices": OPTIMIZERS},
    )
    lr: float | None = field(
        default=None,
        metadata={
            "help": "highest learning rate (adagrad 0.05, muon 0.02; others 0.005 fast, 0.0005 paper)",
            "metavar": "LR",
        },
    )
    loss: str | None = field(
        default=None,
        metadata={
            "help": "loss; partial-bce is for --preset point (fast: soft-iou+bce, paper: soft-iou)",
            "choices": LOSSES,
        },
    )
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
    validate_every: int | None = field(
        default=None,
        metadata={
            "help": "epochs from one validation to the next (paper: 1), or rounds (fast: 5)",
            "metavar": "N",
            "option": "val-every",
        },
    )
    hold_out: float | None = field(
        default=None,
        metadata={
            "help": "share of the images held out to calibrate the threshold, without --val-images "
            "(fast: 0.1, paper: 0)",
            "metavar": "SHARE",
        },
    )
    seed: int = field(
        default=0,
        metadata={"help": "seed of initial weights, order, crops, flips, jitter and dropout", "metavar": "N"},
    )
    fast: FastConfig = field(
        default_factory=FastConfig, metadata={"title": "fast schedule (with --schedule fast)"}
    )

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[Any]] = {
            "network": tuple(NETWORKS),
            "schedule": SCHEDULES,
            "optimizer": (None, *OPTIMIZERS),
            "loss": (None, *LOSSES),
            "channels": CHANNELS,
            "compile": (None, *COMPILE_MODES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(str(one) for one in allowed if one is not None)
                raise InputError(f"{name} {getattr(self, name)!r}: use one of {known}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("size", 16), ("validate_every", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"{name} {value}: use {least} or more")
        for name in ("lr", "mpixels", "minutes"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value}: use a number above 0")
        if self.hold_out is not None and not 0 <= self.hold_out <= 0.5:
            raise InputError(f"hold_out {self.hold_out}: use 0 to 0.5")
        if sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise InputError("give one of epochs, mpixels and minutes")
        if self.schedule == "paper" and (self.mpixels or self.minutes):
            raise InputError("schedule paper: its budget is given as epochs")

    def resolved(self) -> "TrainConfig":
        """Return these settings with a value for all that depend on the schedule, except the fast budget."""
        chosen = {
            name: value for name, value in _BY_SCHEDULE[self.schedule].items() if getattr(self, name) is None
        }
        made = replace(self, **chosen)
        if made.loss in POINT_LOSSES:
            # Labels of single pixels give neither a threshold nor a target to paste; resampling loses them.
            fast = replace(self.fast, paste_share=0.0, scale_jitter=0.0)
            made = replace(made, hold_out=self.hold_out or 0.0, fast=fast)
        if made.lr is None:
            rates = _LEARNING_RATES[self.schedule]
            made = replace(made, lr=rates.get(str(made.optimizer), rates[""]))
        if self.schedule == "paper" and self.epochs is None:
            made = replace(made, epochs=1500)
        if self.schedule == "fast" and self.epochs is self.mpixels is self.minutes is None:
            made = replace(made, mpixels=MPIXELS)
        return made

    def settings(self) -> dict[str, Any]:
        """Return the settings that have an effect, with the values that are used."""
        used = asdict(self.resolved())
        fast = used.pop("fast")
        if self.schedule == "paper":
            return {name: value for name, value in used.items() if name not in ("mpixels", "minutes")}
        return {**{name: value for name, value in used.items() if name != "batch_size"}, **fast}

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the reason."""
        if self.schedule == "fast":
            unused = {"batch_size": "only applies with --schedule paper (use --step-pixels)"}
            if self.epochs is None:
                unused["size"] = "only applies with --epochs or --schedule paper (use --stages)"
            return unused
        return {"fast": "only applies with --schedule fast"}


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
    init : Path, optional
        Checkpoint whose weights, of the same network, training starts from.
    backbone_weights : Path, optional
        State dict of torchvision from which the backbone of the network starts: that of `vgg16` for "pfan",
        of `resnet50` for "f3net".
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
    init: Path | None = field(
        default=None,
        metadata={"help": "start from the weights of this checkpoint", "metavar": "FILE", "either": "start"},
    )
    backbone_weights: Path | None = field(
        default=None,
        metadata={
            "help": "weights of torchvision for the backbone: vgg16 (pfan) or resnet50 (f3net)",
            "metavar": "FILE",
            "either": "start",
        },
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "continue an interrupted run, or a finished one with a larger budget",
            "either": "earlier",
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace an earlier run in --out", "either": "earlier"}
    )

    def __post_init__(self) -> None:
        if not self.sets:
            raise InputError("nothing to train on: give at least one set of images")

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the reason."""
        unused = {}
        if all(one.masks is not None for one in self.sets):
            unused["labels"] = "has no effect with --masks (nothing is labeled)"
        if self.validation:
            unused["config.hold_out"] = "has no effect with --val-images (no image is held out)"
        return unused
