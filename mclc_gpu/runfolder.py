"""The folder of a training run: its settings, its curve, and what it needs to go on."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mclc_gpu.data.atomic import atomic_path, remove_leftovers
from mclc_gpu.errors import InputError
from mclc_gpu.events import Events
from mclc_gpu.journal import read_json, write_json
from mclc_gpu.progress import Progress

CONFIG, METRICS, BEST, LAST, EVENTS = "config.json", "metrics.csv", "best.pt", "last.pt", "events"
LABELS, REPORT = "labels", "report"
KIND = "train"  # of run, as `locked` tells them apart
SCORES = ("iou", "niou", "pd", "fa", "precision", "recall", "f1")
COLUMNS = ("epoch", "lr", "loss", "crop_iou", *SCORES)
Row = dict[str, Any]  # of COLUMNS; None where there is no value


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
        values = {name: row[name] for name in COLUMNS[1:] if row[name] is not None}
        self.events.add(row["epoch"], {**values, "seconds": seconds})
        self.progress.advance(1, summary(row))

    def _write(self) -> None:
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)

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
