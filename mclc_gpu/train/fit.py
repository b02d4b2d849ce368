"""Train a detector in a resumable run folder: labels where needed, epochs, curve and checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.data.datasets import Sample, ValidationSet, listed, pair_samples
from mclc_gpu.data.files import fingerprint_of
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.detect.calibrate import choose_threshold
from mclc_gpu.detect.checkpoint import Normalization, load_checkpoint, save_checkpoint
from mclc_gpu.detect.evaluate import score_network
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.distributed import Ranks, join, peer_errors
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import device_name, free_memory
from mclc_gpu.labels.config import LabelOptions
from mclc_gpu.labels.folder import LabelRun
from mclc_gpu.labels.run import label_dataset
from mclc_gpu.runs import keep_apart, locked, provenance
from mclc_gpu.score.metrics import Result, Scores
from mclc_gpu.score.roc import Roc, RocScores
from mclc_gpu.train.config import DataSet, TrainConfig, TrainOptions
from mclc_gpu.train.data import open_training_set
from mclc_gpu.train.folder import (
    BEST,
    EVENTS,
    KIND,
    LABELS,
    LAST,
    REMEDY,
    REPORT,
    Row,
    RunLog,
    begun_settings,
    check_folder,
    check_settings,
    make_row,
    start_folder,
)
from mclc_gpu.train.heldout import hold_out, in_both
from mclc_gpu.train.initial import Initial, backbone_origin, read_initial
from mclc_gpu.train.schedule import Budget
from mclc_gpu.train.trainer import Trainer, measure_budget, share_of_batch

_VALIDATION_SHARE = 0.1  # share of the free memory that validation images may take


@dataclass(frozen=True)
class Fitted:
    """Result of a training run.

    Attributes
    ----------
    best : Path
        Checkpoint of the epoch with the highest validation IoU, of equal ones the first; without validation
        images, of the last epoch.
    last : Path
        Checkpoint of the last epoch, from which the run can be resumed.
    rows : list of dict
        Curve, epoch by epoch, as in metrics.csv.
    best_epoch : int
        Epoch of `best`, counted from 1.
    scores : dict or None
        Validation scores of `best` by name; None without validation.
    samples, validation : sequence of Sample
        Images to train and to validate on, unusable ones included.
    held_out : bool
        True if the validation images were held out of those given to train on, and are scored by their
        labels.
    threshold : float or None
        Threshold of `best`, calibrated on the validation images; None if there was nothing
        to calibrate it on, or the schedule is "paper", whose threshold is 0.5.
    in_both : list of str
        Validation images that are trained on too.
    backbone : str or None
        Where the first weights of the network's backbone come from; None for a network without one.
    skipped : list of Skipped
        Inputs that were skipped, except by labeling.
    labels : list of LabelRun
        Label runs of the data sets that were labeled.
    collapsed : bool
        True if the network marked no pixel in the whole last validation, or, without one, in all crops of
        the last epoch.
    flooded : bool
        True if it marked more than half of the pixels of these crops.
    """

    best: Path
    last: Path
    rows: list[Row]
    best_epoch: int
    scores: dict[str, Any] | None
    samples: Sequence[Sample]
    validation: Sequence[Sample]
    skipped: list[Skipped]
    collapsed: bool
    flooded: bool = False
    held_out: bool = False
    threshold: float | None = None
    in_both: list[str] = field(default_factory=list)
    backbone: str | None = None
    labels: list[LabelRun] = field(default_factory=list)


def train_detector(
    options: TrainOptions,
    *,
    ranks: Ranks | None = None,
    report: Callable[[Fitted], None] | None = None,
    label_report: Callable[[LabelRun], None] | None = None,
    started: float | None = None,
) -> Fitted:
    """Label data sets that have points, and train a detector on all sets.

    Writes labels/ and what `fit` writes into the folder of the run, which is locked meanwhile.

    Parameters
    ----------
    options : TrainOptions
    ranks : Ranks, optional
        Processes that share the work, from `join`; by default this one joins them.
    report : callable, optional
        Called on rank 0 with the result, before the folder is unlocked.
    label_report : callable, optional
        Called on rank 0 with each finished label run.
    started : float, optional
        `time.perf_counter()` at the start of the program, from which label.json counts the start-up time.

    Returns
    -------
    Fitted

    Raises
    ------
    InputError
        As `fit` and `mclc_gpu.labels.run.label_dataset`, or if an input lies where the run writes.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from mclc_gpu.data.synthetic import write_dataset
    >>> from mclc_gpu.train.config import DataSet, TrainConfig, TrainOptions
    >>> from mclc_gpu.train.fit import train_detector
    >>> config = TrainConfig("acm", "paper", epochs=1, batch_size=2, size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = Path(folder)
    ...     write_dataset(root, 3, 0, size=(32, 32))
    ...     frames = DataSet(root / "images", points_from_masks=root / "masks")
    ...     fitted = train_detector(TrainOptions([frames], root / "run", config, device="cpu"))
    ...     sorted(path.name for path in (root / "run").iterdir())
    ['best.pt', 'config.json', 'events', 'labels', 'last.pt', 'metrics.csv']
    >>> fitted.best_epoch, fitted.labels[0].summary["images"]
    (1, 3)
    """
    out = options.out
    validation, skipped = _masked_samples(options.validation)
    inputs = [path for one in (*options.sets, *options.validation) for path in (one.images, one.source)]
    keep_apart("--out", (out, out / REPORT, out / EVENTS), inputs)
    ranks = ranks or join(options.device)
    initial = read_initial(options.init, options.backbone_weights, options.config)
    labels: list[LabelRun] = []
    samples: list[Sample] = []
    summaries: list[dict[str, Any]] = []
    with _claimed(options.config, out, ranks, options.resume, options.overwrite):
        for one, prefix in _prefixed(options.sets):
            summary: dict[str, Any] = {"images": str(one.images), "list": one.list and str(one.list)}
            if one.masks is not None:
                own, missing = _masked(one, prefix)
                skipped += missing
                summary |= {"masks": str(one.masks), "skipped": 0}
            else:
                threads = torch.get_num_threads()
                label_options = _label_options(one, prefix, options)
                run = label_dataset(label_options, ranks=ranks, report=label_report, started=started)
                # Numba's OpenMP layer raises it to the number of cores; a resumed run would train with fewer.
                torch.set_num_threads(threads)
                labels.append(run)
                # Images without a label are among the skipped inputs of the label run.
                own, _ = pair_samples(run.images, run.masks(), prefix)
                about = {name: run.summary[name] for name in ("settings", "fingerprint", "images", "targets")}
                summary |= {"labels": about, "skipped": len(run.skipped)}
            samples += own
            summaries.append(summary)
        about = {"sets": summaries, "unpaired": [asdict(item) for item in skipped]}
        fitted = _fit(
            samples, options.config, out, validation, ranks, options.resume, options.overwrite, about, initial
        )
        fitted = replace(fitted, labels=labels, skipped=[*skipped, *fitted.skipped])
        if report is not None:
            ranks.on_main(lambda: report(fitted))
    return fitted


def _prefixed(sets: Sequence[DataSet]) -> Iterator[tuple[DataSet, str]]:
    """Yield each data set with the prefix that keeps the names of its images apart from the others'."""
    for number, one in enumerate(sets, 1):
        yield one, f"{number}/" if len(sets) > 1 else ""


def _masked(one: DataSet, prefix: str) -> tuple[list[Sample], list[Skipped]]:
    """Return the samples of a data set with true masks, and what was skipped."""
    images, masks = find_images_and_masks(one.images, one.source)
    files, missing = listed(images, one.list, one.images)
    samples, unpaired = pair_samples(files, masks, prefix)
    if not samples:
        raise InputError(
            f"{one.source}: holds no mask of an image in {one.images}; check the paths and lists"
        )
    return samples, [*missing, *unpaired]


def _masked_samples(sets: Sequence[DataSet]) -> tuple[list[Sample], list[Skipped]]:
    """Return the samples of data sets with true masks, and what was skipped."""
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for one, prefix in _prefixed(sets):
        own, missing = _masked(one, prefix)
        samples += own
        skipped += missing
    return samples, skipped


def _label_options(one: DataSet, prefix: str, options: TrainOptions) -> LabelOptions:
    return LabelOptions(
        **vars(options.labels),
        images=one.images,
        points=one.points,
        points_from_masks=one.points_from_masks,
        list=one.list,
        out=options.out / LABELS / prefix,
        seed=options.config.seed,
        device=options.device,
        resume=options.resume,
        overwrite=options.overwrite,
    )


def fit(
    train: Sequence[Sample],
    config: TrainConfig,
    out: Path,
    *,
    validation: Sequence[Sample] = (),
    init: Path | None = None,
    backbone_weights: Path | None = None,
    device: str = "auto",
    ranks: Ranks | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Fitted:
    """Train a detector on images with masks.

    Writes config.json, metrics.csv, best.pt, last.pt and events/ (TensorBoard) into a folder, which is locked
    meanwhile. All files but the events are replaced atomically every epoch. On the CPU, a run that is stopped
    at any moment and resumed with as many threads ends with the same curve and weights as an uninterrupted
    one; on CUDA the same crops are drawn, but sums may differ in their last bits. Every step has a full
    batch: the last one of an epoch is filled with further crops of the epoch's images, so that no batch is
    too small for a network's batch norm.

    Under torchrun every process calls this with the same arguments and a folder that all of them see; each
    takes its share of every batch and of the validation. With batch norm shared over the GPUs, gradients are
    those of one process with the same batch; on the CPU each process normalizes its own share.

    Parameters
    ----------
    train : sequence of Sample
        Images with masks, by different names; unusable ones are skipped.
    config : TrainConfig
    out : Path
        Folder of the run.
    validation : sequence of Sample
        Images by which the best epoch is chosen. Without them best.pt is last.pt, and `config.hold_out` may
        hold out some of `train`.
    init : Path, optional
        Checkpoint whose weights training starts from.
    backbone_weights : Path, optional
        File of torchvision from which the network's backbone starts; see
        `mclc_gpu.networks.backbones.read_backbone`.
    device : str
        "auto", "cpu", "cuda" or, outside torchrun, "cuda:N"; ignored if `ranks` is given.
    ranks : Ranks, optional
        From `join`, if the caller has joined the other processes already.
    resume : bool
        Continue the run in `out` after its last epoch, or start one if there is none.
    overwrite : bool
        Replace the run in `out`.

    Returns
    -------
    Fitted

    Raises
    ------
    InputError
        If there is nothing to train on, a setting does not fit, the folder holds another run (the message
        names the first setting that differs), or training has diverged.
    """
    if ranks is None:
        ranks = join(device)
    with _claimed(config, out, ranks, resume, overwrite):
        initial = read_initial(init, backbone_weights, config)
        return _fit(train, config, out, validation, ranks, resume, overwrite, {}, initial)


@contextmanager
def _claimed(config: TrainConfig, out: Path, ranks: Ranks, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the lock of a folder in which the run can be started or resumed."""
    _check_run(config, out, ranks, resume, overwrite)  # before the folder is created
    with locked(out, KIND, ranks.on_main):
        _check_run(config, out, ranks, resume, overwrite)  # another run may have ended meanwhile
        yield


def _check_run(config: TrainConfig, out: Path, ranks: Ranks, resume: bool, overwrite: bool) -> None:
    """Raise InputError, before any long work, unless the run can be started or resumed in a folder."""
    share_of_batch(config, ranks)
    ranks.on_main(lambda: check_folder(out, resume, overwrite))
    if resume:
        check_settings(out, config.settings())


def _fit(
    train: Sequence[Sample],
    config: TrainConfig,
    out: Path,
    validation: Sequence[Sample],
    ranks: Ranks,
    resume: bool,
    overwrite: bool,
    about: Mapping[str, Any],
    initial: Initial | None,
) -> Fitted:
    """Train in a folder that is locked; `about`: further entries for config.json."""
    held_out = not validation
    if held_out:
        train, validation = hold_out(train, config.resolved().hold_out or 0.0)
    twice = [] if held_out else in_both(train, validation)
    data = open_training_set(train, config.channels, ranks.device)
    budget = _VALIDATION_SHARE * free_memory(torch.device("cpu"))
    held = ValidationSet(ranks.share(validation), budget)
    settings = {
        **config.settings(),
        "training_set": data.digest,
        "validation_set": fingerprint_of([sample.name for sample in validation]),
        "init": None if initial is None else initial.digest,
    }
    backbone = backbone_origin(initial, config)
    begun = None
    if resume:
        check_settings(out, settings)
        earlier = begun_settings(out)
        if earlier is not None and config.schedule == "fast":
            begun = Budget(earlier["pixels"], earlier["rounds"])
    unread = [item for part in ranks.gather(held.skipped) for item in part]
    skipped = [*data.skipped, *unread]
    usable = sum(ranks.gather(len(held)))
    if validation and not usable:
        if not held_out:
            raise InputError(f"nothing to validate on: {unread[0].file}: {unread[0].why}")
        validation = []
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if config.minutes is not None and begun is None:
            begun = measure_budget(config, data, ranks)
        trainer = Trainer(config, data, ranks, begun, initial and initial.weights)
        settings |= {"pixels": trainer.schedule.pixels, "rounds": trainer.schedule.rounds}
        notes = {**_facts(trainer, usable), "skipped": [asdict(item) for item in skipped], **about}
        notes |= {
            "backbone": backbone,
            "held_out": [one.name for one in validation] if held_out else [],
            "in_both": twice,
        }
        ranks.on_main(lambda: start_folder(out, settings, notes, overwrite))
        run = _Run(trainer, held if validation else None, out, settings, choose=not held_out)
        if resume and (out / LAST).exists():
            run.restore()
        with peer_errors():
            run.finish()
    return Fitted(
        best=out / BEST,
        last=out / LAST,
        rows=run.rows,
        best_epoch=run.best["epoch"],
        scores=run.best["scores"],
        samples=train,
        validation=validation,
        skipped=skipped,
        collapsed=run.collapsed,
        flooded=run.flooded,
        held_out=held_out and bool(validation),
        threshold=run.best["threshold"],
        in_both=twice,
        backbone=backbone,
    )


def _facts(trainer: Trainer, validation: int) -> dict[str, Any]:
    """Return the entries of config.json besides the settings."""
    data, ranks = trainer.data, trainer.ranks
    return {
        **provenance(device_name(ranks.device)),
        "processes": ranks.world,
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "images": len(data.samples),
        "images_with_targets": data.targets,
        "validation_images": validation,
        "mean": data.mean,
        "std": data.std,
        "resident": data.packed is not None,
    }


def validate(predictor: Predictor, samples: ValidationSet, ranks: Ranks) -> tuple[Result, Roc]:
    """Score a detector on the samples of all processes, at 0.5 and at all thresholds, in every process."""
    merged, curve, own = Scores(), RocScores(), RocScores()
    for scores, counts in ranks.gather((score_network(predictor, samples, roc=own), own.total)):
        merged.merge(scores)
        curve.add(counts)
    return merged.compute(), curve.compute()


class _Run:
    """Epochs of one run.

    Parameters
    ----------
    choose : bool
        Choose the best epoch by `held`; otherwise it is the last.

    Attributes
    ----------
    rows : list of dict
        Curve so far.
    best : dict
        "epoch", "iou", "scores" and "threshold" of the best epoch so far.
    threshold : float or None
        Calibrated by the last validation.
    collapsed, flooded : bool
        See `Fitted`.
    """

    def __init__(
        self,
        trainer: Trainer,
        held: ValidationSet | None,
        out: Path,
        settings: Mapping[str, Any],
        choose: bool,
    ) -> None:
        self.trainer, self.held, self.out, self.settings = trainer, held, out, dict(settings)
        self.choose = choose and held is not None
        data = trainer.data
        self.normalization = Normalization(data.mean, data.std)
        self.rows: list[Row] = []
        self.best: dict[str, Any] = {"epoch": 0, "iou": -1.0, "scores": None, "threshold": None}
        self.threshold: float | None = None
        self.collapsed = self.flooded = False

    def restore(self) -> None:
        """Restore the state in which last.pt was written."""
        path, schedule = self.out / LAST, self.trainer.schedule
        trained = load_checkpoint(path, self.trainer.ranks.device)
        try:
            self.trainer.restore(trained.network.state_dict(), trained.state)
            self.rows, self.best = trained.state["rows"], dict(trained.state["best"])
            if "threshold" not in self.best:  # of an earlier version
                best = self.out / BEST
                self.best["threshold"] = load_checkpoint(best, "cpu").threshold if best.exists() else None
            self.collapsed = trained.state["collapsed"]
            self.flooded = trained.state.get("flooded", False)
            self.threshold = trained.threshold
            for row in self.rows:  # the first version did not count pixels
                row.setdefault("mpixels", row["epoch"] / schedule.rounds * schedule.pixels / 1e6)
        # It is of another network, or a renamed best.pt.
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not of this run; {REMEDY}") from error

    def finish(self) -> None:
        """Run the epochs that are left."""
        schedule, ranks = self.trainer.schedule, self.trainer.ranks
        unit = "epoch" if self.trainer.config.schedule == "paper" else "round"
        whole = (self.out, schedule.rounds, unit, schedule.pixels / 1e6, self.rows)
        with RunLog(*whole) if ranks.main else nullcontext() as log:
            for epoch in range(len(self.rows), schedule.rounds):
                started = time.perf_counter()
                row, result = self._epoch(epoch)
                improved = self._add(row, result)
                if not ranks.main:
                    continue
                # last.pt marks the end of the epoch, so that it is written after best.pt.
                if improved:
                    self._save(BEST, result, {})
                self._save(LAST, result, {"rows": self.rows, **self.trainer.state()})
                if log is not None:
                    log.add(row, time.perf_counter() - started)

    def _epoch(self, epoch: int) -> tuple[Row, Result | None]:
        """Train for one epoch and validate if it is time to; return the row of the curve and the scores."""
        trainer = self.trainer
        config, ranks = trainer.config, trainer.ranks
        loss, crop_iou, marked = trainer.run_epoch(epoch)
        if not math.isfinite(loss):
            amp = " or without amp" if config.amp else ""
            raise InputError(
                f"{self.out}: the loss of epoch {epoch + 1} is {loss}, training has diverged: start again "
                f"with an lr below {config.lr:g}{amp}; {LAST} is that of epoch {epoch}"
            )
        result = None
        due = (epoch + 1) % (config.validate_every or 1) == 0 or epoch + 1 == trainer.schedule.rounds
        if self.held is not None and due:
            ranks.broadcast_buffers(trainer.result)
            predictor = Predictor(trainer.result, self.normalization, amp=config.amp)
            result, curve = validate(predictor, self.held, ranks)
            calibration = choose_threshold(curve) if config.schedule == "fast" else None
            self.threshold = None if calibration is None else calibration.threshold
        stretches = trainer.schedule.stretches(epoch)
        pixels = sum(stretch.pixels for stretch in stretches)
        self.flooded = marked > 0.5 * pixels
        self.collapsed = not marked if result is None else math.isnan(result.precision)
        scores = None if result is None else result.as_dict()
        mpixels = pixels / 1e6 + (self.rows[-1]["mpixels"] if self.rows else 0.0)
        return make_row(epoch + 1, mpixels, stretches[-1].rates[-1], loss, crop_iou, scores), result

    def _add(self, row: Row, result: Result | None) -> bool:
        """Add a row to the curve; return True if its epoch is the best so far."""
        self.rows = [*self.rows, row]
        if not self.choose:
            scores = None if result is None else result.as_dict()
            self.best = {"epoch": row["epoch"], "iou": -1.0, "scores": scores, "threshold": self.threshold}
            return True
        # IoU is NaN if neither truth nor prediction has a pixel, which counts as 0.
        iou = 0.0 if result is None or math.isnan(result.iou) else result.iou
        if result is None or iou <= self.best["iou"]:
            return False
        scores = result.as_dict()
        self.best = {"epoch": row["epoch"], "iou": iou, "scores": scores, "threshold": self.threshold}
        return True

    def _save(self, name: str, result: Result | None, more: Mapping[str, Any]) -> None:
        config = self.trainer.config
        save_checkpoint(
            self.out / name,
            network=self.trainer.result,
            name=config.network,
            in_channels=config.channels,
            normalization=self.normalization,
            settings=self.settings,
            state={
                "epoch": len(self.rows),
                "scores": None if result is None else result.as_dict(),
                "best": self.best,
                "collapsed": self.collapsed,
                "flooded": self.flooded,
                **more,
            },
            threshold=self.threshold,
        )
