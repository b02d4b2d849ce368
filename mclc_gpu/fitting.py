"""A training run from its first epoch to its last: validated, saved each epoch, resumable."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mclc_gpu.checkpoint import Normalisation, load_checkpoint, save_checkpoint
from mclc_gpu.data.heldout import HeldOut
from mclc_gpu.data.training_set import Sample, open_training_set
from mclc_gpu.distributed import Ranks, all_there, join
from mclc_gpu.errors import InputError
from mclc_gpu.evaluation import score_network
from mclc_gpu.inference import Predictor
from mclc_gpu.journal import fingerprint_of
from mclc_gpu.lock import locked
from mclc_gpu.metrics import Result, Scores
from mclc_gpu.provenance import provenance
from mclc_gpu.runfolder import (
    BEST,
    KIND,
    LAST,
    Row,
    RunLog,
    check_folder,
    make_row,
    same_settings,
    start_folder,
)
from mclc_gpu.training import TrainConfig, Trainer, share_of_batch


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
    with locked(out, KIND, ranks):
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
    held = HeldOut(ranks.share(validation))
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
        with all_there():
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
        **provenance(ranks.device),
        "processes": ranks.world,
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "images": len(data.samples),
        "images_with_targets": data.targets,
        "validation_images": validation,
        "mean": data.mean,
        "std": data.std,
        "resident": data.packed is not None,
    }


def validate(predictor: Predictor, samples: HeldOut, ranks: Ranks) -> Result:
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
        self, trainer: Trainer, held: HeldOut | None, out: Path, settings: Mapping[str, Any]
    ) -> None:
        self.trainer, self.held, self.out, self.settings = trainer, held, out, dict(settings)
        data = trainer.data
        self.normalisation = Normalisation(data.mean, data.std)
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
            ranks.equalise(trainer.network)
            predictor = Predictor(trainer.network, self.normalisation, amp=config.amp)
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
            normalisation=self.normalisation,
            settings=self.settings,
            state={
                "epoch": len(self.rows),
                "scores": None if result is None else result.as_dict(),
                "best": self.best,
                "collapsed": self.collapsed,
                **more,
            },
        )
