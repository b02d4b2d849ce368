"""Files of a training run: checks of its folder, config.json, metrics.csv and TensorBoard events."""

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from mclc_gpu.data.files import read_json, remove_leftovers, write_csv, write_json
from mclc_gpu.errors import InputError
from mclc_gpu.runs import Progress
from mclc_gpu.score.metrics import SCORES
from mclc_gpu.train.config import BUDGETS

CONFIG, METRICS, BEST, LAST, EVENTS = "config.json", "metrics.csv", "best.pt", "last.pt", "events"
LABELS, REPORT = "labels", "report"
KIND = "train"  # kind of run, for its lock
Row = dict[str, Any]  # columns of metrics.csv; None where there is no value

REMEDY = "use --overwrite or another --out"


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise InputError for a run that is neither to be resumed nor replaced, and for files of no run."""
    if _is_run(out / CONFIG):
        if not (resume or overwrite):
            raise InputError(f"{out}: holds an earlier run; use --resume, --overwrite or another --out")
        return
    for path in (*(out / name for name in (CONFIG, METRICS, BEST, LAST)), *(out / REPORT).glob("*")):
        if path.exists():
            raise InputError(f"{path}: was not written by mclc-gpu train; choose another --out")


def _is_run(path: Path) -> bool:
    """Check that a config.json is that of a training run; other programs use this name too."""
    try:
        return "network" in read_json(path, "")["settings"]
    except (OSError, InputError, KeyError, TypeError):
        return False


# Settings that do not matter for resuming; `_check_budget` compares them.
_BUDGET = (*BUDGETS, "pixels", "rounds")


def begun_settings(out: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder, None if there is no run.

    Raises
    ------
    InputError
        If config.json is damaged.
    """
    path = out / CONFIG
    if not path.exists():
        return None
    begun = read_json(path, REMEDY).get("settings")
    if not isinstance(begun, dict):
        raise InputError(f"{path}: damaged; {REMEDY}")
    begun = {"schedule": "paper", "hold_out": 0.0, **begun}  # as it was in the first version
    if begun["schedule"] == "fast" and not all(isinstance(begun.get(n), int) for n in ("pixels", "rounds")):
        raise InputError(f"{path}: damaged; {REMEDY}")
    return begun


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise InputError if a run in a folder was begun with another value of one of these settings.

    A larger budget is no other value: training goes on along the curve of the larger one.
    """
    begun = begun_settings(out)
    if begun is None:
        return
    for name, value in settings.items():
        if name in _BUDGET:
            larger = value is None or begun.get(name) is None or value >= begun[name]
            if larger and (name != "minutes" or value in (None, begun.get(name))):
                continue
        if begun.get(name) != value:
            other = f"{name} {begun.get(name)}, not {value}"
            if name == "training_set":
                other = "other images or labels"
            raise InputError(f"{out}: was begun with {other}; resume with the same, or {REMEDY}")


def start_folder(out: Path, settings: Mapping[str, Any], notes: Mapping[str, Any], overwrite: bool) -> None:
    """Write config.json; `overwrite` first removes the curve and the weights of an earlier run."""
    for folder in (out, out / REPORT):
        remove_leftovers(folder)
    if overwrite:
        for path in (*(out / name for name in (METRICS, BEST, LAST)), *(out / EVENTS).glob("events.*")):
            path.unlink(missing_ok=True)
    write_json(out / CONFIG, {"settings": dict(settings), **notes})


def columns() -> list[str]:
    """Return the columns of metrics.csv: those of training, and every score of `SCORES`."""
    return ["epoch", "mpixels", "lr", "loss", "crop_iou", *SCORES]


def make_row(
    epoch: int, mpixels: float, lr: float, loss: float, crop_iou: float, scores: Mapping[str, Any] | None
) -> Row:
    """Return a row of the curve.

    Parameters
    ----------
    epoch : int
        Number of the epoch or round, from 1.
    mpixels : float
        Million pixels of all crops up to its end.
    lr : float
        Learning rate of its last step.
    loss, crop_iou : float
        As `Trainer.run_epoch` returns them.
    scores : mapping or None
        Scores of the validation, see `Result.as_dict`.
    """
    row: Row = {"epoch": epoch, "mpixels": mpixels, "lr": lr, "loss": loss, "crop_iou": crop_iou}
    row |= {name: None if scores is None else scores[name] for name in SCORES}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()
    }


def _in_words(row: Row) -> str:
    """Describe a row by its validation scores or, where there are none, by the IoU of the training crops."""
    text = f"loss {row['loss']:.4f}"
    if row["iou"] is None:
        crops = row["crop_iou"]
        return text if crops is None else f"{text} IoU of crops {crops:.4f}"
    shown = ((SCORES[name], row[name]) for name in ("iou", "pd", "fa"))
    return " ".join([text, *(f"{s.heading} {s.text(math.nan if v is None else v)}" for s, v in shown)])


class RunLog:
    """Curve of a run as metrics.csv, TensorBoard events and progress on stderr; a context manager.

    metrics.csv holds no times, so that a resumed run ends with the same file as an uninterrupted one. It is
    replaced every epoch and never ends in a partial line.

    Parameters
    ----------
    out : Path
        Folder of the run.
    epochs : int
        Epochs or rounds of the whole run.
    unit : str
        "epoch" or "round".
    mpixels : float
        Million pixels of the whole run.
    rows : sequence of dict
        Curve of the epochs that are finished.
    """

    def __init__(self, out: Path, epochs: int, unit: str, mpixels: float, rows: Sequence[Row]) -> None:
        self.path, self.rows = out / METRICS, list(rows)
        self._write()
        self.events = Events(out / EVENTS, purge_step=len(rows) + 1)
        self.progress = Progress("train", epochs, unit, done=len(rows))
        self.mpixels = mpixels
        self.seconds = 0.0
        self.earlier = rows[-1]["mpixels"] if rows else 0.0

    def add(self, row: Row, seconds: float) -> None:
        """Add an epoch; TensorBoard shows the seconds that it took as well."""
        self.rows.append(row)
        self._write()
        values = {name: row[name] for name in columns()[1:] if row[name] is not None}
        self.events.add(row["epoch"], {**values, "seconds": seconds})
        self.seconds += seconds
        done = row["mpixels"]
        rate = (done - self.earlier) / max(self.seconds, 1e-9)
        left = max(self.mpixels - done, 0) / max(rate, 1e-9)
        speed = f"{done:.4g} of {self.mpixels:.4g} Mpixel at {rate:.2f} per s, {_duration(left)} left"
        self.progress.advance(1, f"{_in_words(row)}, {speed}")

    def _write(self) -> None:
        names = columns()
        write_csv(self.path, names, ([row.get(name) for name in names] for row in self.rows))

    def __enter__(self) -> "RunLog":
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)
        self.events.close()


def _duration(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Events:
    """TensorBoard event file in a folder, which is created; each point is written at once.

    `torch.utils.tensorboard.SummaryWriter` writes in a thread of its own: on a full disk that thread prints a
    traceback, and the error that reaches the caller names no file and may come an epoch late.

    Parameters
    ----------
    folder : Path
    purge_step : int
        TensorBoard hides points of earlier files from this step on: those that an interrupted run wrote after
        its last checkpoint.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self.file = self.path.open("wb", buffering=0)
        self.records = RecordWriter(self.file)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of the named curves; OSError, if any, names the file."""
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
