"""Label quality on several data sets, with several kinds of clicks, beside published values."""

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from mclc_gpu.bench.compare import Cell, Row, markdown, shown
from mclc_gpu.bench.dataset import Frames, read_set
from mclc_gpu.bench.printed import LABEL_IOU
from mclc_gpu.data.annotations import CATEGORIES, Point
from mclc_gpu.data.datasets import find_split
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import read_points
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import synchronize
from mclc_gpu.kernels.config import ScoreWeights
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.pipeline import (
    TargetMask,
    by_image,
    cluster_targets,
    compose,
    label_targets,
    refine_targets,
    warm_up,
)
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.windows import PlacedTargets
from mclc_gpu.runs import Progress
from mclc_gpu.score.metrics import Scores

CLICKS = ("masks_centroid", "masks_coarse", "1.5", "3", "5")
COMPARED = ("default", "paper")
# IoU on the test split of EDGSP, a network that is given a click and was trained on 1,676 true masks.
EDGSP = {"NUAA-SIRST": 0.838, "NUDT-SIRST": 0.955, "IRSTD-1k": 0.738}


@dataclass(frozen=True)
class Sample:
    """Result of one seed.

    Attributes
    ----------
    iou : float
        Total intersection over total union.
    of_category : tuple of float
        The same for point, spot and extended targets; NaN without such targets.
    targets : int
        Number labeled.
    seconds : float
        For these.
    unlabeled : int
        Targets that could not be labeled, whose masks are empty.
    niou, pd : float
        Mean IoU of the images; share of the targets that are detected.
    confidence : float
        Mean over the targets; NaN where the label maker knows none.
    """

    iou: float
    of_category: tuple[float, ...]
    targets: int
    seconds: float
    unlabeled: int = 0
    niou: float = math.nan
    pd: float = math.nan
    confidence: float = math.nan


@dataclass(frozen=True)
class Measured:
    """Results of all seeds of one setting."""

    samples: list[Sample]

    def mean(self, name: str) -> float:
        """Return the mean of an attribute over the seeds."""
        return statistics.fmean(getattr(sample, name) for sample in self.samples)

    @property
    def iou(self) -> float:
        """Mean over the seeds."""
        return self.mean("iou")

    @property
    def spread(self) -> float:
        """Standard deviation (n - 1) over the seeds; NaN for a single one."""
        return statistics.stdev(s.iou for s in self.samples) if len(self.samples) > 1 else math.nan

    @property
    def rate(self) -> float:
        """Targets per second, the median of the seeds'."""
        return statistics.median(sample.targets / sample.seconds for sample in self.samples)

    def numbers(self) -> Row:
        """Return the columns that all tables have."""
        means = np.mean([sample.of_category for sample in self.samples], axis=0).tolist()
        return {
            "iou": self.iou,
            "iou_sd": self.spread,
            **{f"iou_{name}": mean for name, mean in zip(CATEGORIES, means, strict=True)},
            "targets_per_s": self.rate,
            "unlabelled": self.mean("unlabeled"),
        }


def measure_labels(
    frames: Frames, points: Sequence[Sequence[Point]], config: LabelConfig, seed: int, device: torch.device
) -> tuple[Sample, PlacedTargets, list[TargetMask]]:
    """Label marked targets with one seed and score; return also where they were placed, and their masks.

    The time is that of placing, clustering and refining; call `mclc_gpu.labels.pipeline.warm_up` first.
    """
    synchronize(device)
    start = time.perf_counter()
    placed, skipped = place_targets(frames.images, points, frames.names, config, seed, device)
    groups = cluster_targets(frames.images, placed, config, device)
    targets = list(refine_targets(placed, groups, config))
    seconds = time.perf_counter() - start
    sample = scored(frames, composed(frames, targets), len(targets), seconds)
    confidence = statistics.fmean(target.confidence for target in targets) if targets else math.nan
    return replace(sample, unlabeled=len(skipped), confidence=confidence), placed, targets


def composed(frames: Frames, targets: Sequence[TargetMask]) -> list[np.ndarray]:
    """Return the mask of every image."""
    both = zip(frames.images, by_image(targets, len(frames.images)), strict=True)
    return [compose(image.shape[:2], found)[0] for image, found in both]


def scored(frames: Frames, masks: Sequence[np.ndarray], targets: int, seconds: float) -> Sample:
    """Score the masks of all images, in which so many targets were labeled in so many seconds."""
    scores = Scores()
    for name, mask, truth in zip(frames.names, masks, frames.truth, strict=True):
        scores.update(mask, truth, name)
    result = scores.compute()
    known = result.categories
    of_category = tuple(known[name].iou if name in known else math.nan for name in CATEGORIES)
    return Sample(result.iou, of_category, targets, seconds, niou=result.niou, pd=result.pd)


def best_candidates(
    frames: Frames, points: Sequence[Sequence[Point]], config: LabelConfig, device: torch.device
) -> float:
    """Return the IoU if the vote of components chose the candidate most like the truth for every target.

    Without weights all candidates have the same share of the vote, so that each distinct probability of the
    map stands for one. Both kinds count: those of the levels above the local background, and those of the
    gray levels alone.
    """
    equal = replace(
        config.components,
        weights=ScoreWeights(*[0.0] * len(fields(ScoreWeights))),
        core=0.0,
        body=0.0,
        category_weight=0.0,
    )
    placed, _ = place_targets(frames.images, points, frames.names, config, 0, device)
    kinds = [replace(config, components=one) for one in (equal, replace(equal, opening=0))]
    both = zip(*(label_targets(frames.images, placed, one, device) for one in kinds), strict=True)
    truth = [_regions(mask) for mask in frames.truth]
    best = [max((_closest(one, *truth[one.image]) for one in pair), key=itemgetter(0)) for pair in both]
    masks = composed(frames, [target for _, target in best])
    return scored(frames, masks, len(best), math.nan).iou


def _regions(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the targets of a true mask, and give every pixel the number of the nearest target."""
    numbers, count = ndimage.label(truth, np.ones((3, 3)))
    if not count:
        return numbers, numbers
    rows, columns = ndimage.distance_transform_edt(~truth, return_distances=False, return_indices=True)
    return numbers, numbers[rows, columns]


def _closest(target: TargetMask, numbers: np.ndarray, nearest: np.ndarray) -> tuple[float, TargetMask]:
    """Return the candidate of greatest IoU with the target nearest to the click, and this IoU."""
    window = target.window
    number = nearest[window.top + window.click_row, window.left + window.click_column]
    own = numbers[window.area] == number
    values, places = np.unique(target.levels, return_inverse=True)

    def at_least(weights: np.ndarray) -> np.ndarray:
        return np.bincount(places.ravel(), weights.ravel(), len(values))[::-1].cumsum()[::-1]

    both, area = at_least(own), at_least(np.ones_like(own))
    iou = np.where(values > 0, both / (area + (numbers == number).sum() - both), -1.0)
    best = int(iou.argmax())
    return float(iou[best]), replace(target, mask=target.levels >= values[best])


@dataclass(frozen=True)
class LabelSet:
    """A data set with its clicks.

    Attributes
    ----------
    name : str
        That of the folder.
    frames : Frames
        Images of the split.
    clicks : dict of str to list of list of list of Point
        By kind of clicks and seed: the clicks of every image. Those that hold no chance have one seed.
    """

    name: str
    frames: Frames
    clicks: dict[str, list[list[list[Point]]]]


def read_label_set(
    root: Path, split: Literal["train", "test"], clicks: Sequence[str], seeds: int
) -> LabelSet:
    """Read a data set in the layout of the field: images/, masks/, a list of the split, folders of clicks.

    Parameters
    ----------
    root : Path
    split : {"train", "test"}
    clicks : sequence of str
        A number means clicks simulated from the masks, that many pixels off (see
        `mclc_gpu.data.simulate.points_from_mask`); other text is the name of a file or folder of clicks
        below `root`.
    seeds : int
        Of simulated clicks with chance, from 0.

    Raises
    ------
    InputError
        Files are missing or cannot be used, or no mask holds a target.
    """
    pixels, truth = read_set(root / "images", root / "masks", find_split(root, split))
    frames = Frames(list(pixels), list(pixels.values()), [truth[name] for name in pixels])
    if not any(mask.any() for mask in frames.truth):
        raise InputError(f"{root / 'masks'}: no mask holds a target; check the folder")
    found: dict[str, list[list[list[Point]]]] = {}
    for kind in clicks:
        jitter = _jitter(kind)
        if jitter is None:
            points, skipped = read_points(root / kind, find_files(root / "images"))
            for item in skipped:
                print(f"{item.file}: left out: {item.why}", file=sys.stderr)
            found[kind] = [[points.get(name, []) for name in frames.names]]
        else:
            drawn = [frames.points(seed, jitter=jitter) for seed in range(seeds if jitter else 1)]
            found[f"jitter {jitter:g} px"] = drawn
    return LabelSet(root.resolve().name, frames, found)


def _jitter(kind: str) -> float | None:
    try:
        return float(kind)
    except ValueError:
        return None


def measure_sets(
    sets: Sequence[LabelSet], presets: Sequence[str], trials: int, seeds: int, device: torch.device
) -> list[Row]:
    """Return a row for every set and kind of clicks; categories are estimated from the click.

    Settings with chance, in the clicks or in the labels, run with `seeds` seeds; the others once.
    """
    configs = {
        name: preset(name, category="estimate", **({"trials": trials} if name == "paper" else {}))
        for name in presets
    }
    for config in configs.values():
        warm_up(config, device)
    rows: list[Row] = []
    with Progress("sets", sum(len(one.clicks) for one in sets), "row") as progress:
        for one in sets:
            for kind, drawn in one.clicks.items():
                row: Row = {"set": one.name, "clicks": kind}
                for name, config in configs.items():
                    row |= _measured(one.frames, drawn, name, config, seeds, device)
                published = LABEL_IOU["mclc"].get(one.name)
                rows.append(row | {"published": published, "edgsp": EDGSP.get(one.name)})
                progress.advance(1)
    return rows


def _measured(
    frames: Frames,
    drawn: Sequence[Sequence[Sequence[Point]]],
    name: str,
    config: LabelConfig,
    seeds: int,
    device: torch.device,
) -> Row:
    runs = max(len(drawn), seeds if config.entry.seeded else 1)
    measured = Measured(
        [measure_labels(frames, drawn[seed % len(drawn)], config, seed, device)[0] for seed in range(runs)]
    )
    row: Row = {
        f"{name}_iou": measured.iou,
        f"{name}_iou_sd": measured.spread,
        f"{name}_pd": measured.mean("pd"),
        f"{name}_targets_per_s": measured.rate,
    }
    if config.maker == "components":
        oracles = [best_candidates(frames, points, config, device) for points in drawn]
        row |= {
            f"{name}_niou": measured.mean("niou"),
            f"{name}_confidence": measured.mean("confidence"),
            f"{name}_oracle": statistics.fmean(oracles),
        }
    return row


def sets_table(rows: Sequence[Row]) -> str:
    """Format the rows of `measure_sets`."""
    columns = {
        "default": {"niou": "nIoU", "confidence": "confidence", "oracle": "oracle"},
        "paper": {},
    }
    header, lines = ["set", "clicks"], [[str(row["set"]), str(row["clicks"])] for row in rows]
    for name, more in columns.items():
        if f"{name}_iou" in rows[0]:
            header += [f"{name} IoU", "Pd", *more.values()]
            for row, line in zip(rows, lines, strict=True):
                line.append(with_spread(row[f"{name}_iou"], row[f"{name}_iou_sd"]))
                line += [shown(row[f"{name}_{column}"], 3) for column in ("pd", *more)]
    for row, line in zip(rows, lines, strict=True):
        line += [shown(row["published"], 3), shown(row["edgsp"], 3)]
    return markdown([*header, "MCLC, published", "EDGSP, test split"], lines, left=2)


def with_spread(iou: Cell, spread: Cell) -> str:
    """Format a mean and its standard deviation."""
    deviation = shown(spread, 4)
    return shown(iou, 4) + (f" ± {deviation}" if deviation else "")


def sets_legend(split: str, trials: int, seeds: int) -> str:
    """Explain the columns of `sets_table`."""
    return (
        f"Labels of the {split} images from the click alone, categories estimated; preset paper with "
        f"K = {trials}. IoU: over all pixels, mean and standard deviation over {seeds} seeds where there is "
        "chance. Clicks: files of the set, or simulated with N(0, jitter) in x and y, cut at twice that "
        "length. nIoU: mean IoU of the images. confidence: mean IoU that the labels expect of themselves. "
        "oracle: IoU if the vote chose the candidate most like the truth for every target. MCLC, published: "
        "labels of the train split as Li et al. (ICCV 2023) print them. EDGSP, test split: a network that is "
        "given the click and was trained on 1,676 true masks. The weights of preset default were fitted on "
        "the train splits of NUAA-SIRST and NUDT-SIRST."
    )
