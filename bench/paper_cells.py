"""Cells of the paper's tables: labels, detectors and untrained methods, each measured once and kept."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from mclc_gpu.bench.compare import versions
from mclc_gpu.bench.paper_sets import SEA, PaperSet
from mclc_gpu.classical.config import MethodOptions
from mclc_gpu.data.files import atomic_path, read_json, write_json
from mclc_gpu.data.images import read_mask
from mclc_gpu.detect.config import THRESHOLD, EvaluateOptions, PredictOptions, used_threshold
from mclc_gpu.detect.evaluate import evaluate_images
from mclc_gpu.detect.predict import predict_images
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import LabelConfig, LabelOptions, LabelSettings, preset
from mclc_gpu.labels.folder import mask_path
from mclc_gpu.labels.run import label_dataset
from mclc_gpu.score.config import ScoreOptions
from mclc_gpu.score.folders import score_folders
from mclc_gpu.score.metrics import Result
from mclc_gpu.train.config import DataSet, FastConfig, TrainConfig, TrainOptions
from mclc_gpu.train.fit import train_detector
from mclc_gpu.train.losses import UNKNOWN
from mclc_gpu.tune.config import TuneOptions
from mclc_gpu.tune.run import CONFIG, tune_labels

CELLS = "cells"
FULL = "full"  # true masks in place of labels
# Networks for salient objects. Trained on the clicked pixels alone, they make the masks for other detectors.
SALIENT = ("pfan", "f3net")
PARTIAL = "partial-bce"  # loss for the clicked pixels
_QUICK_MPIXELS = 0.05
_FOUND = "found"  # folder of a network's masks in that of its cell
_RUN = "run"  # folder of a training run in that of its cell
_UNTRAINED = MethodOptions(threshold_rule="adaptive")
_KEPT = ("iou", "niou", "pd", "fa", "targets", "images")

# Settings of the labels by name. The paper knows each target's size category; preset "default" needs none.
LABELS: dict[str, LabelConfig] = {
    "point": preset("point"),
    "kmeans": preset("lca", trial={"method": "kmeans"}),
    "superpixel": preset("lca"),
    "grabcut": preset("grabcut"),
    "mc": preset("paper", refine="threshold"),
    "mclc": preset("paper"),
    "default": preset("default", category="estimate"),
}
# Presets at which `tune` starts for the labels that are searched.
TUNED = {"mclc": "paper", "default": "default"}


@dataclass(frozen=True)
class Source:
    """Labels of the train images.

    Attributes
    ----------
    name : str
        `FULL`, a name in `LABELS`, or in `SALIENT`.
    real : bool
        Clicks are those of an annotator in a hurry (see `mclc_gpu.bench.paper_sets.real_click`), not on the
        centroids.
    targets : int or None
        Number of targets that are labeled; None: all.
    searched : int
        Number of targets before those that have true masks, with which `tune` finds the settings; the
        detector is trained on these too.
    """

    name: str
    real: bool = False
    targets: int | None = None
    searched: int = 0

    @property
    def key(self) -> str:
        """Name for folders."""
        parts = [self.name]
        parts += ["real"] if self.real else []
        parts += [f"{self.targets}-targets"] if self.targets is not None else []
        parts += [f"{self.searched}-searched"] if self.searched else []
        return "-".join(parts)


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes
    ----------
    name : str
        Path of its JSON file below `CELLS`, without the suffix.
    settings : dict
        Everything that the result depends on, as JSON.
    measure : callable
        Takes the folder of the cell and returns the result.
    needs : tuple of Cell
        Cells whose files it reads.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Path], dict[str, Any]]
    needs: tuple["Cell", ...] = ()


@dataclass
class Cells:
    """Finished cells of an output folder.

    Attributes
    ----------
    out : Path
    quick : bool
        Remove training runs as soon as they are scored.
    failed : dict of str to str
        Reasons, by name, of cells that could not be measured.
    """

    out: Path
    quick: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return the content of a finished cell's file, None where there is none.

        Raises
        ------
        InputError
            The file holds a result with other settings, or is damaged.
        """
        path = self._path(cell)
        if not path.exists():
            return None
        remedy = "remove it, or choose another --out"
        content = read_json(path, remedy)
        if content.get("settings") != cell.settings:
            raise InputError(f"{path}: was measured with other settings or another version; {remedy}")
        return content

    def measure(self, cell: Cell) -> bool:
        """Measure a cell, unless it is finished, and those that it needs; return False if it cannot be."""
        if self.find(cell) is not None:
            return True
        for needed in cell.needs:
            if not self.measure(needed):
                self.failed[cell.name] = self.failed[needed.name]
                return False
        folder = self._path(cell).with_suffix("")
        start = time.perf_counter()
        try:
            found = cell.measure(folder)
        except InputError as error:
            self.failed[cell.name] = str(error)
            print(f"{cell.name}: not measured: {error}", file=sys.stderr, flush=True)
            return False
        if self.quick:
            shutil.rmtree(folder / _RUN, ignore_errors=True)
        about = {
            "seconds": time.perf_counter() - start,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions(),
        }
        write_json(self._path(cell), {"settings": cell.settings, **found, **about})
        return True

    def _path(self, cell: Cell) -> Path:
        return self.out / CELLS / f"{cell.name}.json"


@dataclass(frozen=True)
class Maker:
    """Maker of the cells of one data set.

    Attributes
    ----------
    data : PaperSet
    out : Path
        Output folder of all cells.
    config : TrainConfig
        Training schedule.
    device : str
    """

    data: PaperSet
    out: Path
    config: TrainConfig
    device: str

    def labels(self, source: Source) -> Cell:
        """Label the train images, and score the labels on them."""
        name, settings = self._name("labels", source.key), self._settings(source)
        if source.name in SALIENT:
            config = replace(self.config, network=source.name, loss=PARTIAL)
            settings["train"] = config.settings()
            return Cell(name, settings, partial(_measure_salient, self, config))
        return Cell(name, settings, partial(_measure_labels, self, source), self._needs(source))

    def detector(self, network: str, source: Source) -> Cell:
        """Train a network on the labels, and score it on the test images."""
        config = replace(self.config, network=network)
        settings = {**self._settings(source), "train": config.settings()}
        measure = partial(_measure_detector, self, config, source)
        return Cell(self._name(network, source.key), settings, measure, self._needs(source))

    def method(self, name: str) -> Cell:
        """Score an untrained detector on the test images, by the threshold rule of comparisons."""
        settings = {"set": self.data.key, "method": name, "rule": _UNTRAINED.rule(THRESHOLD)}
        return Cell(self._name(name), settings, partial(_measure_method, self, name))

    def search(self, source: Source) -> Cell:
        """Search the settings of the labels on the true masks of some targets."""
        settings = {"set": self.data.key, "preset": TUNED[source.name], "targets": source.searched}
        name = self._name("tune", source.name, f"{source.searched}-targets")
        return Cell(name, settings, partial(_measure_search, self, source))

    def searched(self, source: Source) -> Path:
        """Return the path of the settings that `search` finds."""
        return self.folder(self.search(source)) / CONFIG

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell's files."""
        return self.out / CELLS / cell.name

    def label_config(self, source: Source) -> LabelConfig:
        """Return the settings of the labels."""
        return LabelConfig.read(self.searched(source)) if source.searched else LABELS[source.name]

    def data_set(self, source: Source) -> DataSet:
        """Return the train images of a source, with where their labels come from."""
        data = self.data
        chosen = data.train if source.targets is None else data.subset(source.targets, source.searched)[0]
        if source.name == FULL:
            return DataSet(data.images, masks=data.masks, list=chosen)
        if source.name in SALIENT:
            return DataSet(data.images, masks=self.folder(self.labels(source)) / "masks", list=chosen)
        if source.real:
            return DataSet(data.images, points=data.real_clicks(), list=chosen)
        return DataSet(data.images, points_from_masks=data.masks, list=chosen)

    def _needs(self, source: Source) -> tuple[Cell, ...]:
        if source.name in SALIENT:
            return (self.labels(source),)
        return (self.search(source),) if source.searched else ()

    def _settings(self, source: Source) -> dict[str, Any]:
        labels = asdict(LABELS[source.name]) if source.name in LABELS else None
        return {"set": self.data.key, "source": asdict(source), "labels": labels}

    def _name(self, *parts: str) -> str:
        return f"{self.data.key}/{'-'.join(parts)}"


def training_config(data: PaperSet, epochs: int | None, mpixels: float | None) -> TrainConfig:
    """Return the paper's schedule for a data set, one of fewer epochs, or the fast schedule."""
    if data.quick and epochs is None:
        fast = FastConfig(stages="64:1", rounds=1)
        return TrainConfig(schedule="fast", mpixels=mpixels or _QUICK_MPIXELS, fast=fast)
    if mpixels is not None:
        return TrainConfig(schedule="fast", mpixels=mpixels)
    config = TrainConfig(schedule="paper", epochs=epochs).resolved()
    if data.quick:
        return replace(config, size=64, batch_size=4)
    return replace(config, size=1024, batch_size=4) if data.name == SEA else config


def schedule_of(config: TrainConfig) -> str:
    """Describe a schedule in a few words."""
    if config.schedule == "fast":
        return f"fast schedule of {config.mpixels:g} million pixels"
    return f"the paper's schedule with {config.epochs} epochs"


def _measure_labels(maker: Maker, source: Source, folder: Path) -> dict[str, Any]:
    one = maker.data_set(source)
    run = label_dataset(
        LabelOptions(
            images=one.images,
            points=one.points,
            points_from_masks=one.points_from_masks,
            list=one.list,
            config=maker.label_config(source),
            out=folder,
            device=maker.device,
            resume=True,
        )
    )
    found = score_folders(ScoreOptions(pred=folder / "masks", truth=maker.data.masks, list=one.list))
    return {**_kept(found.scores.compute()), "skipped": len(run.skipped)}


def _measure_salient(maker: Maker, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train a network on the clicked pixels, and score the masks that it then finds in the train images.

    What clicks tell is kept: clicked pixels are targets, and pixels far from all clicks are none.
    """
    data = maker.data
    clicked = DataSet(data.images, points_from_masks=data.masks, list=data.train)
    labels = LabelSettings(config=LABELS["point"])
    fitted = train_detector(
        TrainOptions([clicked], folder / _RUN, config, labels=labels, device=maker.device, resume=True)
    )
    predict_images(
        PredictOptions(
            checkpoint=fitted.best,
            images=data.images,
            list=data.train,
            out=folder / _FOUND,
            device=maker.device,
            resume=True,
        )
    )
    (run,) = fitted.labels
    for name, path in run.masks().items():
        clicks, found = read_mask(path), read_mask(mask_path(folder / _FOUND, name))
        near = ndimage.maximum_filter(clicks, 2 * UNKNOWN + 1)
        target = mask_path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            Image.fromarray(np.uint8(255) * (clicks | (found & near))).save(temporary, "png")
    score = score_folders(ScoreOptions(pred=folder / "masks", truth=data.masks, list=data.train))
    return {**_kept(score.scores.compute()), "collapsed": fitted.collapsed}


def _measure_detector(maker: Maker, config: TrainConfig, source: Source, folder: Path) -> dict[str, Any]:
    data = maker.data
    test = _test_list(data)
    sets = [maker.data_set(source)]
    labels = LabelSettings()
    if source.name in LABELS:
        labels = LabelSettings(config=maker.label_config(source))
    if source.searched:
        known = data.subset(source.searched)[0]
        sets.append(DataSet(data.images, masks=data.masks, list=known))
    fitted = train_detector(
        TrainOptions(sets, folder / _RUN, config, labels=labels, device=maker.device, resume=True)
    )
    evaluation = evaluate_images(
        EvaluateOptions(
            checkpoint=fitted.best,
            images=data.images,
            masks=data.masks,
            list=test,
            device=maker.device,
        )
    )
    found = _kept(evaluation.scores.compute())
    return {**found, "threshold": used_threshold(None, fitted.threshold).value, "collapsed": fitted.collapsed}


def _measure_method(maker: Maker, name: str, folder: Path) -> dict[str, Any]:
    del folder
    data = maker.data
    options = EvaluateOptions(
        method=name,
        untrained=_UNTRAINED,
        images=data.images,
        masks=data.masks,
        list=_test_list(data),
        device=maker.device,
    )
    return _kept(evaluate_images(options).scores.compute())


def _test_list(data: PaperSet) -> Path:
    if data.test is None:
        raise InputError(f"{data.images.parent}: no list of test images; add splits/test.txt")
    return data.test


def _measure_search(maker: Maker, source: Source, folder: Path) -> dict[str, Any]:
    data = maker.data
    chosen, targets = data.subset(source.searched)
    summary = tune_labels(
        TuneOptions(
            images=data.images,
            masks=data.masks,
            list=chosen,
            preset=TUNED[source.name],
            out=folder,
            device=maker.device,
            resume=True,
            budget=5 if data.quick else TuneOptions.budget,
            seeds=1 if data.quick else TuneOptions.seeds,
        )
    )
    return {"targets": targets, "images": summary["images"], "values": summary["values"]}


def _kept(result: Result) -> dict[str, Any]:
    """Return the scores that cells keep, with None for NaN."""
    values = result.as_dict()
    return {name: values[name] for name in _KEPT}
