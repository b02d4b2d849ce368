"""How targets of a label run came to their masks: the run's chain once more, looked at after some trials."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.images import read_image, read_mask, stem_of
from mclc_gpu.data.points import load_points
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.noise import add_noise
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.folder import LAYOUT, LabelStore, seed_of
from mclc_gpu.labels.makers import marked_mask
from mclc_gpu.labels.pipeline import TargetMask, by_image, cluster_targets, compose, refine_targets
from mclc_gpu.labels.windows import PlacedTarget, Window, around, place_targets, place_window
from mclc_gpu.runs import Progress, read_summary
from mclc_gpu.score.metrics import mask_iou

TRIALS_SHOWN = (1, 2, 20)  # besides all: the numbers of the paper's Fig. 9


@dataclass(frozen=True, order=True, slots=True)
class Target:
    """A target of a run: its image, and its place among the image's points in the run's points.csv."""

    stem: str
    index: int

    def __str__(self) -> str:
        return f"{self.stem}:{self.index}"


@dataclass(frozen=True)
class Run:
    """A finished label run: its folder and settings, and the points with the categories that were used.

    The vote of components uses the categories that were given; those it estimated came out of it: None here.
    """

    folder: Path
    config: LabelConfig
    seed: int
    points: dict[str, list[Point]]
    store: LabelStore

    @property
    def targets(self) -> list[Target]:
        """All targets, in the order of the run."""
        return [Target(stem, index) for stem, own in self.points.items() for index in range(len(own))]

    def window(self, target: Target, height: int, width: int) -> Window:
        """Where a target was clustered in its image of that size."""
        point = self.points[target.stem][target.index]
        if self.config.maker == "components":
            return around(height, width, point, self.config.components.radius)
        return place_window(height, width, point, self.seed, target.stem, target.index)


class Stage(NamedTuple):
    """A target's TPM, float32 [h, w], after `trials`: fewer than `planned` if the stop rule ended them."""

    planned: int
    trials: int
    tpm: np.ndarray


@dataclass(frozen=True, eq=False)
class Process:
    """One target's way to its mask; all arrays cover its window.

    Attributes:
        target, point, window: Which, what was marked (with the category that was used), and where.
        image: [h, w] or [h, w, 3], the image's own dtype.
        marks: bool [h, w], the box, or the seeds beside the click; None for a single click.
        noisy: float32 [h, w, 3], what the first trial clustered; None where trials have no noise.
        segment: bool [h, w], the first trial's segments under the marks; None for makers without trials.
        stages: The TPM after `TRIALS_SHOWN` and after all trials; none where all trials are equal.
        mask: bool [h, w], of this target and those whose windows overlap its own.
        truth: bool [h, w], None where it is not known.
        changed: Pixels in which `mask` is not what the run wrote.
    """

    target: Target
    point: Point
    window: Window
    image: np.ndarray
    marks: np.ndarray | None
    noisy: np.ndarray | None
    segment: np.ndarray | None
    stages: list[Stage]
    mask: np.ndarray
    truth: np.ndarray | None
    changed: int


def open_run(folder: Path) -> Run:
    """A finished label run from its label.json and points.csv.

    Raises InputError when the folder holds none, or one that another version made.
    """
    path = LAYOUT.summary(folder)
    try:
        summary = read_summary(path, "label again")
    except OSError as error:
        raise InputError(
            f"{folder}: holds no finished label run ({path.name}: {error.strerror}); give the --out of label"
        ) from error
    seed = seed_of(summary, path)
    try:
        config = LabelConfig.from_settings(summary["settings"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    points = load_points(folder / "points.csv")
    told = _told(folder, points) if config.maker == "components" else points
    return Run(folder, config, seed, told, LabelStore.open(folder))


def _told(folder: Path, points: Mapping[str, Sequence[Point]]) -> dict[str, list[Point]]:
    """The points without the categories that came out of the run."""
    path = folder / "targets.csv"
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            estimated = {
                (row["image"], int(row["target"])) for row in csv.DictReader(file) if row["estimated"] == "1"
            }
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); label again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not as a label run writes it; label again") from error
    return {
        stem: [replace(p, category=None) if (stem, j) in estimated else p for j, p in enumerate(own)]
        for stem, own in points.items()
    }


def find_targets(run: Run, word: str) -> list[Target]:
    """The target called NAME:INDEX, or all targets of the image NAME.

    Raises InputError when the run has no such image or target.
    """
    head, _, index = word.rpartition(":")
    for name, wanted in ((word, None), (stem_of(word), None), (head, index), (stem_of(head), index)):
        if name in run.points:
            targets = [Target(name, i) for i in range(len(run.points[name])) if wanted in (None, str(i))]
            if not targets:
                count = len(run.points[name])
                what = f"has {count} targets, counted from 0" if count else "has no target"
                raise InputError(f"target {word!r}: {name} {what} in {run.folder / 'points.csv'}")
            return targets
    raise InputError(
        f"target {word!r}: {run.folder / 'points.csv'} names no such image; give NAME or NAME:INDEX"
    )


def rank_targets(run: Run, truths: Mapping[str, Path], stems: Iterable[str]) -> list[tuple[float, Target]]:
    """IoU of the run's masks with the truth in each target's window, worst first.

    Left out are images without a true mask, and windows without a pixel in either mask.

    Args:
        run: The run.
        truths: True masks by stem.
        stems: Images to look at.

    Raises:
        InputError: There is nothing to compare, a mask cannot be read, a truth has another size.
    """
    found: list[tuple[float, Target]] = []
    compared = [stem for stem in stems if stem in truths and run.points[stem]]
    with Progress("show", len(compared), "mask") as progress:
        for stem in compared:
            mask = read_mask(run.store.mask(stem))
            shape = mask.shape[0], mask.shape[1]
            truth = read_mask(truths[stem], shape)
            for target in (Target(stem, index) for index in range(len(run.points[stem]))):
                area = run.window(target, *shape).area
                iou = mask_iou(mask[area], truth[area])
                if not math.isnan(iou):
                    found.append((iou, target))
            progress.advance(1)
    if not found:
        raise InputError(f"{run.folder}: none of its targets has a true mask; check --truth and --list")
    return sorted(found, key=lambda pair: pair[0])


def make_processes(
    run: Run,
    targets: Sequence[Target],
    images: Mapping[str, Path],
    truths: Mapping[str, Path],
    device: str = "auto",
) -> list[Process]:
    """Take some targets of a run through its chain again.

    Args:
        run: The run.
        targets: Which; their images are held in memory together.
        images: The run's images by stem.
        truths: True masks by stem; those that are missing stay unknown.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        A process per target, in order.

    Raises:
        InputError: An image is missing or cannot be labelled as it is now, a mask has another size, the
            device cannot be used.
    """
    stems = list(dict.fromkeys(target.stem for target in targets))
    if missing := [stem for stem in stems if stem not in images]:
        raise InputError(f"{missing[0]}: labelled in {run.folder}, but no such image is in the folder given")
    arrays = [read_image(images[stem]) for stem in stems]
    shapes = [(array.shape[0], array.shape[1]) for array in arrays]
    written = [read_mask(run.store.mask(s), shape) for s, shape in zip(stems, shapes, strict=True)]
    true = {s: read_mask(truths[s], shape) for s, shape in zip(stems, shapes, strict=True) if s in truths}
    # The categories in points.csv are those that were used, estimated or not.
    config = replace(run.config, category="given")
    points = [run.points[s] for s in stems]
    place = pick_device(device)
    placed, problems = place_targets(arrays, points, stems, config, run.seed, place)
    if problems:
        raise InputError(f"{problems[0].file}: {problems[0].why}; the image changed since the run")
    by_name = {Target(stems[own.image], own.target): own for own in placed}
    chosen = [by_name[target] for target in targets]
    try:
        stages, final = _stages(arrays, chosen, placed, config, place)
    except ValueError as error:
        raise InputError(str(error)) from error
    masks = [compose(shape, own)[0] for shape, own in zip(shapes, by_image(final, len(stems)), strict=True)]
    return [
        _process(
            target,
            own,
            arrays[own.image],
            config,
            of_target,
            masks[own.image],
            written[own.image],
            true.get(target.stem),
        )
        for target, own, of_target in zip(targets, chosen, stages, strict=True)
    ]


def _stages(
    arrays: Sequence[np.ndarray],
    chosen: Sequence[PlacedTarget],
    placed: Sequence[PlacedTarget],
    config: LabelConfig,
    device: torch.device,
) -> tuple[list[list[Stage]], list[TargetMask]]:
    """The stages of each chosen target, and the masks of all targets whose windows touch theirs."""

    def labelled(targets: Sequence[PlacedTarget], config: LabelConfig) -> list[TargetMask]:
        return refine_targets(targets, cluster_targets(arrays, targets, config, device), config)

    final = labelled([own for own in placed if any(_touch(own, other) for other in chosen)], config)
    whole = {(own.image, own.target): own for own in final}
    stages: list[list[Stage]] = [[] for _ in chosen]
    for planned in _trials_shown(config):
        if planned == config.trials:
            found = [whole[own.image, own.target] for own in chosen]
        else:
            found = labelled(chosen, replace(config, trials=planned, refine="threshold"))
        for of_target, own in zip(stages, found, strict=True):
            of_target.append(Stage(planned, own.trials, own.tpm))
    return stages, final


def _touch(a: PlacedTarget, b: PlacedTarget) -> bool:
    """Whether two targets' windows overlap."""
    rows = max(a.window.top, b.window.top) < min(a.window.bottom, b.window.bottom)
    columns = max(a.window.left, b.window.left) < min(a.window.right, b.window.right)
    return a.image == b.image and rows and columns


def _trials_shown(config: LabelConfig) -> list[int]:
    if config.maker != "mclc":
        return []
    if not _is_noisy(config.trial):
        return [1]
    return [*(trials for trials in TRIALS_SHOWN if trials < config.trials), config.trials]


def _is_noisy(config: TrialConfig) -> bool:
    """Whether trials differ from one another."""
    return config.noise != "none" and config.intensity > 0


def _process(
    target: Target,
    own: PlacedTarget,
    image: np.ndarray,
    config: LabelConfig,
    stages: list[Stage],
    mask: np.ndarray,
    written: np.ndarray,
    truth: np.ndarray | None,
) -> Process:
    area = own.window.area
    noisy = bool(stages) and _is_noisy(config.trial)
    marks = None
    if own.point.box is not None:
        marks = own.inside((image.shape[0], image.shape[1]))
    elif own.seeds:
        marks = marked_mask((own.window.height, own.window.width), own.seeds, None)
    return Process(
        target=target,
        point=own.point,
        window=own.window,
        image=image[area],
        marks=marks,
        noisy=noisy_window(image, own, config.trial) if noisy else None,
        segment=stages[0].tpm > 0 if stages else None,
        stages=stages if noisy else [],
        mask=mask[area],
        truth=None if truth is None else truth[area],
        changed=int(np.count_nonzero(mask[area] != written[area])),
    )


def noisy_window(image: np.ndarray, target: PlacedTarget, config: TrialConfig, trial: int = 0) -> np.ndarray:
    """What one trial of a target clusters (eq. 7): float32 [h, w, 3], before it is scaled to its own range.

    `image` is [H, W] or [H, W, 3], of any real dtype; gray levels stand in all three channels, which have
    noise of their own unless the config shares it.
    """
    pixels = image[target.window.area].astype(np.float32)
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
    colours = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    noisy = add_noise(
        torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1)))[None],
        torch.tensor([target.key]),
        torch.tensor([target.target]),
        trial,
        kind=config.noise,
        intensity=config.intensity,
        shared=config.shared_noise,
        low=low,
        high=high,
    )
    return noisy[0].numpy().transpose(1, 2, 0)
