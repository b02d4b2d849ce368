"""Fit a detector epoch by epoch in a resumable run folder."""

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from mclc_gpu.data.datasets import Sample, ValidationSet
from mclc_gpu.data.files import fingerprint_of, read_json, remove_leftovers, write_csv, write_json
from mclc_gpu.detect.checkpoint import Normalization, load_checkpoint, save_checkpoint
from mclc_gpu.detect.evaluate import score_network
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.distributed import Ranks, join, peer_errors
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import device_name, free_memory
from mclc_gpu.runs import Progress, locked, provenance
from mclc_gpu.score.metrics import SCORES, Result, Scores
from mclc_gpu.train.config import TrainConfig
from mclc_gpu.train.data import open_training_set
from mclc_gpu.train.trainer import Trainer, share_of_batch


class Events:
    """A file of TensorBoard events in a folder, which is made.

    Written at once and by this thread: TensorBoard's own writer has one that tells nobody of a full disk.
    """

    def __init__(self, folder: Path, behind: int) -> None:
        """What earlier files say of steps after the `behind` first ones is taken back."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self.file = self.path.open("wb", buffering=0)
        self.records = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        self._write(step=behind + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add points of curves, by their names. Raises OSError that names the file."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=points))

    def _write(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        try:
            self.records.write(event.SerializeToString())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file."""
        self.file.close()


CONFIG, METRICS, BEST, LAST, EVENTS = "config.json", "metrics.csv", "best.pt", "last.pt", "events"
LABELS, REPORT = "labels", "report"
KIND = "train"  # of run, as `locked` tells them apart
_VALIDATION_MEMORY = 0.1  # share of the free memory that validation images may take
Row = dict[str, Any]  # of the columns of metrics.csv; None where there is no value


def columns() -> list[str]:
    """Return the columns of metrics.csv: the training's own, and every score of `SCORES`."""
    return ["epoch", "lr", "loss", "crop_iou", *SCORES]


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """See that a run can be started or taken up in a folder, before anything long begins.

    Raises:
        InputError: It holds a run that is to be neither resumed nor overwritten, or files of others.
    """
    if _is_run(out / CONFIG):
        if not (resume or overwrite):
            raise InputError(f"{out}: holds an earlier run; use --resume, --overwrite or another --out")
        return
    for path in (*(out / name for name in (CONFIG, METRICS, BEST, LAST)), *(out / REPORT).glob("*")):
        if path.exists():
            raise InputError(f"{path}: was not written by mclc-gpu train; choose another --out")


def _is_run(path: Path) -> bool:
    """Whether a config.json is that of a training run: others use this name too."""
    try:
        return "network" in read_json(path, "")["settings"]
    except (OSError, InputError, KeyError, TypeError):
        return False


def same_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """See that a run begun in a folder has the same settings, among those that are given.

    Raises:
        InputError: One differs; the message names it.
    """
    path = out / CONFIG
    if not path.exists():
        return
    otherwise = "use --overwrite or another --out"
    begun = read_json(path, otherwise).get("settings")
    if not isinstance(begun, dict):
        raise InputError(f"{path}: damaged; {otherwise}")
    for name, value in settings.items():
        if begun.get(name) != value:
            if name == "training_set":
                raise InputError(
                    f"{out}: was begun with other images or labels; resume with the same, or use --overwrite "
                    "or another --out"
                )
            raise InputError(
                f"{out}: was begun with {name} {begun.get(name)}, not {value}; "
                "resume with the same, or use --overwrite or another --out"
            )


def start_folder(out: Path, settings: Mapping[str, Any], about: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder and write config.json; `overwrite` first removes an earlier run's curve and weights."""
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, out / REPORT):
        remove_leftovers(folder)
    if overwrite:
        for path in (*(out / name for name in (METRICS, BEST, LAST)), *(out / EVENTS).glob("events.*")):
            path.unlink(missing_ok=True)
    write_json(out / CONFIG, {"settings": dict(settings), **about})


class RunLog:
    """The curve of a run as metrics.csv, TensorBoard events and progress on stderr; a context manager.

    The CSV holds no times: a run that was interrupted and resumed ends with the same file as one that was
    not. It is written anew every epoch, so that it never ends in half a line.
    """

    def __init__(self, out: Path, epochs: int, rows: Sequence[Row]) -> None:
        """`rows`: of the epochs already behind, of `epochs` in all."""
        self.path, self.rows = out / METRICS, list(rows)
        self._write()
        # Events that an interrupted run wrote beyond its last checkpoint are taken back.
        self.events = Events(out / EVENTS, behind=len(rows))
        self.progress = Progress("train", epochs, "epoch", done=len(rows))

    def add(self, row: Row, seconds: float) -> None:
        """Note an epoch. `seconds`: how long it took, for TensorBoard."""
        self.rows.append(row)
        self._write()
        values = {name: row[name] for name in columns()[1:] if row[name] is not None}
        self.events.add(row["epoch"], {**values, "seconds": seconds})
        self.progress.advance(1, summary(row))

    def _write(self) -> None:
        names = columns()
        write_csv(self.path, names, ([row.get(name) for name in names] for row in self.rows))

    def __enter__(self) -> "RunLog":
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, value, trace)
        self.events.close()


def make_row(epoch: int, lr: float, loss: float, crop_iou: float, scores: Mapping[str, Any] | None) -> Row:
    """A row of the curve: epoch counted from 1, `scores` as `Result.as_dict` gives them."""
    row: Row = {"epoch": epoch, "lr": lr, "loss": loss, "crop_iou": crop_iou}
    row |= {name: None if scores is None else scores[name] for name in SCORES}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()
    }


def summary(row: Row) -> str:
    """A row in a few words: validation scores where there are any, else the IoU of the training crops."""
    text = f"loss {row['loss']:.4f}"
    if row["iou"] is None:
        crops = row["crop_iou"]
        return text if crops is None else f"{text} IoU of crops {crops:.4f}"
    pd = "n/a" if row["pd"] is None else f"{row['pd']:.4f}"
    return f"{text} IoU {row['iou']:.4f} Pd {pd} Fa {1e6 * row['fa']:.2f}e-6"


@dataclass(frozen=True)
class Fitted:
    """What `fit` leaves behind.

    Attributes:
        best: Checkpoint of the epoch with the highest validation IoU (of equals the first); without a
            validation set, of the last epoch.
        last: Checkpoint of the last epoch, from which the run can go on.
        rows: The curve, epoch by epoch, as in metrics.csv.
        best_epoch: The epoch of `best`, counted from 1.
        scores: Validation scores of `best` by name; None without validation.
        skipped: Inputs left out, as {"file", "why"}.
        collapsed: Whether the network marked no pixel in the whole last validation (without one: in all crops
            of the last epoch).
    """

    best: Path
    last: Path
    rows: list[Row]
    best_epoch: int
    scores: dict[str, Any] | None
    skipped: list[dict[str, str]]
    collapsed: bool


def fit(
    train: Sequence[Sample],
    config: TrainConfig,
    out: Path,
    *,
    validation: Sequence[Sample] = (),
    device: str = "auto",
    ranks: Ranks | None = None,
    resume: bool = False,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train a detector on masks.

    Writes config.json, metrics.csv, best.pt, last.pt and events/ (TensorBoard) into a folder, all but the
    events whole or not at all, every epoch. On the CPU, a run that was stopped at any moment and resumed ends
    with the same curve and weights as one that was not, given as many threads; on CUDA the same crops are
    drawn, but sums may differ in their last bits. Every step has a full batch: the last of an epoch is filled
    with further crops of the epoch's images, so that none is too small for a network's batch norm.

    Under torchrun every process calls this with the same arguments and a folder that all of them see; each
    takes its share of every batch and of the validation. With batch norm shared over the GPUs, gradients
    are those of one process with the same batch; on the CPU each process normalises its own share.

    Args:
        train: What to train on; names differ.
        config: Settings.
        out: The run's folder.
        validation: What to choose the best epoch by. Without it best.pt is last.pt.
        device: "auto", "cpu", "cuda" or, outside torchrun, "cuda:N"; not looked at when `ranks` is given.
        ranks: From `join`, when the caller has joined the other processes already.
        resume: Go on after the last epoch of the run in `out`, or start one where there is none.
        overwrite: Replace the run in `out`.
        about: Further entries for config.json.

    Raises:
        InputError: Nothing to train on, a setting that does not fit, a folder that holds another run (the
            message names the first setting that differs), or training that has diverged.
    """
    if ranks is None:
        ranks = join(device)
    with locked(out, KIND, ranks.on_main):
        check_run(config, out, ranks, resume, overwrite)
        return _fit(train, config, out, validation, ranks, resume, overwrite, about or {})


def _fit(
    train: Sequence[Sample],
    config: TrainConfig,
    out: Path,
    validation: Sequence[Sample],
    ranks: Ranks,
    resume: bool,
    overwrite: bool,
    about: Mapping[str, Any],
) -> Fitted:
    data = open_training_set(train, config.channels, ranks.device)
    budget = _VALIDATION_MEMORY * free_memory(torch.device("cpu"))
    held = ValidationSet(ranks.share(validation), budget)
    names = [sample.name for sample in validation]
    settings = {
        **config.settings(), "training_set": data.digest, "validation_set": fingerprint_of(names)
    }  # fmt: skip
    if resume:
        same_settings(out, settings)
    unread = [item for part in ranks.gather(held.skipped) for item in part]
    skipped = [asdict(item) for item in (*data.skipped, *unread)]
    usable = sum(ranks.gather(len(held)))
    if validation and not usable:
        raise InputError(f"nothing to validate on: {unread[0].file}: {unread[0].why}")
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        trainer = Trainer(config, data, ranks)
        notes = {**_about(trainer, usable), "skipped": skipped, **about}
        ranks.on_main(lambda: start_folder(out, settings, notes, overwrite))
        run = _Run(trainer, held if validation else None, out, settings)
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
        skipped=skipped,
        collapsed=run.collapsed,
    )


def check_run(config: TrainConfig, out: Path, ranks: Ranks, resume: bool, overwrite: bool) -> None:
    """See, before anything long begins, that such a run can be started or taken up in a folder.

    Raises:
        InputError: As `fit` does.
    """
    share_of_batch(config, ranks)
    ranks.on_main(lambda: check_folder(out, resume, overwrite))
    if resume:
        same_settings(out, config.settings())


def _about(trainer: Trainer, validation: int) -> dict[str, Any]:
    """What config.json tells besides the settings."""
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


def validate(predictor: Predictor, samples: ValidationSet, ranks: Ranks) -> Result:
    """Scores of the samples that all processes hold, for each of them."""
    merged = Scores()
    for part in ranks.gather(score_network(predictor, samples)):
        merged.merge(part)
    return merged.compute()


class _Run:
    """The epochs of one run.

    Attributes:
        rows: The curve so far.
        best: "epoch", "iou" and "scores" of the best epoch so far.
        collapsed: Whether the last epoch marked nothing.
    """

    def __init__(
        self, trainer: Trainer, held: ValidationSet | None, out: Path, settings: Mapping[str, Any]
    ) -> None:
        self.trainer, self.held, self.out, self.settings = trainer, held, out, dict(settings)
        data = trainer.data
        self.normalization = Normalization(data.mean, data.std)
        self.rows: list[Row] = []
        self.best: dict[str, Any] = {"epoch": 0, "iou": -1.0, "scores": None}
        self.collapsed = False

    def restore(self) -> None:
        """Go back to where last.pt was written."""
        path = self.out / LAST
        trained = load_checkpoint(path, self.trainer.ranks.device)
        try:
            self.trainer.network.load_state_dict(trained.network.state_dict())
            self.trainer.optimizer.load_state_dict(trained.state["optimizer"])
            self.rows, self.best = trained.state["rows"], trained.state["best"]
            self.collapsed = trained.state["collapsed"]
        # Of another network, or best.pt by the name of last.pt.
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not of this run; use --overwrite or another --out") from error

    def finish(self) -> None:
        """Run the epochs that are left."""
        config, ranks = self.trainer.config, self.trainer.ranks
        with RunLog(self.out, config.epochs, self.rows) if ranks.main else nullcontext() as log:
            for epoch in range(len(self.rows), config.epochs):
                started = time.perf_counter()
                row, result = self._epoch(epoch)
                improved = self._note(row, result)
                if not ranks.main:
                    continue
                # last.pt says that the epoch is over: what else belongs to it is there by then.
                if improved:
                    self._save(BEST, result, {})
                self._save(
                    LAST, result, {"rows": self.rows, "optimizer": self.trainer.optimizer.state_dict()}
                )
                if log is not None:
                    log.add(row, time.perf_counter() - started)

    def _epoch(self, epoch: int) -> tuple[Row, Result | None]:
        trainer = self.trainer
        config, ranks = trainer.config, trainer.ranks
        loss, crop_iou, marked = trainer.run_epoch(epoch)
        if not math.isfinite(loss):
            amp = " or leave out amp" if config.amp else ""
            raise InputError(
                f"{self.out}: the loss of epoch {epoch + 1} is {loss}, training has diverged: start anew "
                f"with an lr below {config.first_lr:g}{amp}; {LAST} is that of epoch {epoch}"
            )
        result = None
        if self.held is not None and ((epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs):
            ranks.broadcast_buffers(trainer.network)
            predictor = Predictor(trainer.network, self.normalization, amp=config.amp)
            result = validate(predictor, self.held, ranks)
        self.collapsed = not marked if result is None else math.isnan(result.precision)
        scores = None if result is None else result.as_dict()
        return make_row(epoch + 1, config.lr_of(epoch), loss, crop_iou, scores), result

    def _note(self, row: Row, result: Result | None) -> bool:
        """Add a row to the curve; whether its epoch is the best so far."""
        self.rows = [*self.rows, row]
        if self.held is None:
            self.best = {"epoch": row["epoch"], "iou": -1.0, "scores": None}
            return True
        # Not a number where neither truth nor prediction has a pixel: as good as nothing.
        iou = 0.0 if result is None or math.isnan(result.iou) else result.iou
        if result is None or iou <= self.best["iou"]:
            return False
        self.best = {"epoch": row["epoch"], "iou": iou, "scores": result.as_dict()}
        return True

    def _save(self, name: str, result: Result | None, more: Mapping[str, Any]) -> None:
        config = self.trainer.config
        save_checkpoint(
            self.out / name,
            network=self.trainer.network,
            name=config.network,
            in_channels=config.channels,
            normalization=self.normalization,
            settings=self.settings,
            state={
                "epoch": len(self.rows),
                "scores": None if result is None else result.as_dict(),
                "best": self.best,
                "collapsed": self.collapsed,
                **more,
            },
        )
