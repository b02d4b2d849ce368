"""Replay a label run for selected targets, and record intermediate TPMs (for `show`)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.names import stem_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.noise import add_noise
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.folder import POINTS, LabelRun, Target
from mclc_gpu.labels.makers import marked_mask
from mclc_gpu.labels.pipeline import TargetMask, by_image, compose, label_targets
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.windows import PlacedTarget, PlacedTargets, Window
from mclc_gpu.runs import Progress
from mclc_gpu.score.metrics import mask_iou

TRIALS_SHOWN = (1, 2, 20)  # besides all: the numbers of the paper's Fig. 9


class Stage(NamedTuple):
    """A target's TPM, float32 [h, w], after `trials`: fewer than `planned` if the stop rule ended them."""

    planned: int
    trials: int
    tpm: np.ndarray


@dataclass(frozen=True, eq=False)
class Trace:
    """One target from its annotation to its mask; all arrays cover its window.

    Attributes
    ----------
    target : Target
    point : Point
        Annotation, with the category that was used.
    window : Window
    image : ndarray [h, w] or [h, w, 3]
        The image's own dtype.
    marks : ndarray [h, w], bool, or None
        The box, or the marks beside the click; None for a single click.
    noisy : ndarray [h, w, 3], float32, or None
        Input of the first trial's clustering; None where trials have no noise.
    segment : ndarray [h, w], bool, or None
        The first trial's segments under the marks; None for makers without trials.
    stages : list of Stage
        The TPM after `TRIALS_SHOWN` and after all trials; empty where all trials are equal.
    mask : ndarray [h, w], bool
        Mask of this target and of those whose windows overlap its own.
    truth : ndarray [h, w], bool, or None
        True mask, where it is known.
    changed : int
        Pixels in which `mask` differs from the file that the run wrote.
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


def find_targets(run: LabelRun, word: str) -> list[Target]:
    """Return the target called NAME:INDEX, or all targets of the image NAME.

    Raises
    ------
    InputError
        The run has no such image or target.
    """
    head, _, index = word.rpartition(":")
    for name, wanted in ((word, None), (stem_of(word), None), (head, index), (stem_of(head), index)):
        if name in run.rows:
            count = len(run.rows[name])
            targets = [Target(name, i) for i in range(count) if wanted in (None, str(i))]
            if not targets:
                what = f"has {count} targets, counted from 0" if count else "has no target"
                raise InputError(f"target {word!r}: {name} {what} in {run.folder / POINTS}")
            return targets
    raise InputError(f"target {word!r}: {run.folder / POINTS} names no such image; give NAME or NAME:INDEX")


def rank_targets(run: LabelRun, stems: Iterable[str]) -> list[tuple[float, Target]]:
    """Return the IoU of the run's masks with the truth in each target's window, worst first.

    Images without a true mask are left out, and windows without a pixel in either mask.

    Parameters
    ----------
    run : LabelRun
        With the true masks.
    stems : iterable of str
        Images to rank.

    Raises
    ------
    InputError
        There is nothing to compare, a mask cannot be read, a truth has another size.
    """
    found: list[tuple[float, Target]] = []
    compared = [stem for stem in stems if stem in run.truths and run.rows[stem]]
    with Progress("show", len(compared), "mask") as progress:
        for stem in compared:
            mask = read_mask(run.mask(stem))
            shape = mask.shape[0], mask.shape[1]
            truth = read_mask(run.truths[stem], shape)
            for index, window in enumerate(run.windows(stem, shape)):
                iou = mask_iou(mask[window.area], truth[window.area])
                if not math.isnan(iou):
                    found.append((iou, Target(stem, index)))
            progress.advance(1)
    if not found:
        raise InputError(f"{run.folder}: none of its targets has a true mask; check --truth and --list")
    return sorted(found, key=lambda pair: pair[0])


def _given_points(run: LabelRun, stem: str) -> list[Point]:
    """Return an image's points as the pipeline took them: without the categories that it gave them."""
    kept = run.config.entry.needs_category
    return [
        row.point if kept or not row.estimated else replace(row.point, category=None)
        for row in run.rows[stem]
    ]


def trace_targets(run: LabelRun, targets: Sequence[Target], device: str = "auto") -> list[Trace]:
    """Label targets of a run once more, with its settings, and record how each comes to its mask.

    Images are read whole; the targets beside the chosen ones are labeled only where windows overlap.

    Parameters
    ----------
    run : LabelRun
        With its images, and the true masks where they are known.
    targets : sequence of Target
    device : str
        "auto", "cpu", "cuda" or "cuda:N".

    Returns
    -------
    list of Trace
        One per target, in order.

    Raises
    ------
    InputError
        The run is of another version, an image is missing or cannot be labeled as it is now, a mask has
        another size, or the device cannot be used.
    """
    stems = list(dict.fromkeys(target.stem for target in targets))
    if missing := [stem for stem in stems if stem not in run.images]:
        raise InputError(f"{missing[0]}: labeled in {run.folder}, but no such image is in the folder given")
    arrays = [read_image(run.images[stem]) for stem in stems]
    shapes = [(array.shape[0], array.shape[1]) for array in arrays]
    written = [read_mask(run.mask(s), shape) for s, shape in zip(stems, shapes, strict=True)]
    known = [(stem, shape) for stem, shape in zip(stems, shapes, strict=True) if stem in run.truths]
    true = {stem: read_mask(run.truths[stem], shape) for stem, shape in known}
    # The categories in points.csv are those that were used, estimated or not.
    config = replace(run.config, category="given")
    points = [_given_points(run, s) for s in stems]
    place = pick_device(device)
    placed, problems = place_targets(arrays, points, stems, config, run.seed, place)
    if problems:
        raise InputError(f"{problems[0].file}: {problems[0].why}; the image changed since the run")
    by_name = {Target(stems[own.image], own.target): t for t, own in enumerate(placed)}
    chosen = placed.take(np.array([by_name[target] for target in targets], np.int64))
    stages, final = _stages(arrays, chosen, placed, config, place)
    masks = [compose(shape, own)[0] for shape, own in zip(shapes, by_image(final, len(stems)), strict=True)]
    return [
        _trace(
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
    chosen: PlacedTargets,
    placed: PlacedTargets,
    config: LabelConfig,
    device: torch.device,
) -> tuple[list[list[Stage]], list[TargetMask]]:
    """Return the stages of each chosen target, and the labels of all targets whose windows overlap theirs."""
    overlapping = [
        any(own.image == other.image and own.window.overlaps(other.window) for other in chosen)
        for own in placed
    ]
    final = label_targets(arrays, placed.take(np.flatnonzero(overlapping)), config, device)
    whole = {(own.image, own.target): own for own in final}
    stages: list[list[Stage]] = [[] for _ in chosen]
    for planned in _trials_shown(config):
        if planned == config.trials:
            found = [whole[own.image, own.target] for own in chosen]
        else:
            brief = replace(config, trials=planned, refine="threshold")
            found = label_targets(arrays, chosen, brief, device)
        for of_target, own in zip(stages, found, strict=True):
            of_target.append(Stage(planned, own.trials, own.tpm))
    return stages, final


def _trials_shown(config: LabelConfig) -> list[int]:
    """Return the numbers of trials after which TPMs are recorded."""
    if "trial" not in config.entry.uses:
        return []
    if not _is_noisy(config.trial):
        return [1]
    return [*(trials for trials in TRIALS_SHOWN if trials < config.trials), config.trials]


def _is_noisy(config: TrialConfig) -> bool:
    """Return whether trials differ from one another."""
    return config.noise != "none" and config.intensity > 0


def _trace(
    target: Target,
    own: PlacedTarget,
    image: np.ndarray,
    config: LabelConfig,
    stages: list[Stage],
    mask: np.ndarray,
    written: np.ndarray,
    truth: np.ndarray | None,
) -> Trace:
    area = own.window.area
    noisy = bool(stages) and _is_noisy(config.trial)
    marks = None
    if own.point.box is not None:
        marks = own.inside((image.shape[0], image.shape[1]))
    elif own.marks:
        marks = marked_mask(own.window.shape, own.marks, None)
    return Trace(
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
    """Return the input of one trial's clustering (eq. 7), before it is scaled to its own range.

    Parameters
    ----------
    image : ndarray, [H, W] or [H, W, 3]
        Any real dtype. Gray levels are repeated in three channels, which have noise of their own unless the
        config shares it.
    target : PlacedTarget
    config : TrialConfig
    trial : int
        Number of the trial, from 0.

    Returns
    -------
    ndarray of float32, [h, w, 3]
    """
    pixels = image[target.window.area].astype(np.float32)
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
    colors = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    noisy = add_noise(
        torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1)))[None],
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
