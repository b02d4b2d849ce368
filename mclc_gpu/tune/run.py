"""A tuning run: images with true masks in; a config, the account of its search and a plot out."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclc_gpu.data.datasets import Sample, pair_samples
from mclc_gpu.data.files import fingerprint_of, write_csv, write_json
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.data.validation import ValidationSet
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import device_name
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.report.plots import plot_search
from mclc_gpu.runs import Journal, Progress, RunLayout, close_run, completed_run, locked, open_run, provenance
from mclc_gpu.tune.search import (
    Evaluator,
    Search,
    TuneSet,
    Values,
    gain_of,
    iou_by_seed,
    space_of,
    spread_of,
    values_of,
    with_values,
)

CONFIG, TABLE, PLOT = "config.json", "search.csv", "search.png"
LAYOUT = RunLayout("tune", (), (CONFIG, TABLE, PLOT))
SEARCH_TRIALS = 30  # of a target at most while searching; what is reported has the config's own number
FEW_IMAGES = 4


@dataclass
class TuneJob:
    """What to tune on, and where to put what is found.

    Attributes:
        images, masks: Files by stem; images without a mask are left out.
        out: Output folder.
        config: Where the search starts.
        start: Name of that config.
        seeds: Every evaluation is the mean over seeds 0, 1, ..., of the noise and the simulated clicks.
        budget: Evaluations of each of the three searches at most.
        jitter: Of the clicks, in pixels, see `mclc_gpu.data.simulate.points_from_mask`.
        seed: Of the search itself and the halves.
        device: Where to evaluate.
        resume, overwrite: As in `mclc_gpu.labels.run.LabelJob`.
        skipped: Inputs already found unusable.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    out: Path
    config: LabelConfig
    start: str
    seeds: int = 3
    budget: int = 100
    jitter: float = 0.0
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    resume: bool = False
    overwrite: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds {self.seeds}: give at least 1")
        if self.budget < 1:
            raise InputError(f"budget {self.budget}: give at least 1 evaluation")
        if not (self.config.entry.seeded or self.jitter):
            self.seeds = 1  # nothing is drawn at random

    def settings(self) -> dict[str, Any]:
        """What the result depends on, besides the files."""
        own = {name: getattr(self, name) for name in ("start", "seeds", "budget", "jitter", "seed")}
        return {**own, "config": asdict(self.config)}


def tune_labels(job: TuneJob) -> dict[str, Any]:
    """Find label settings for a set of images, and tell what they are worth.

    Three searches: on all images, whose result is the config, and on each of two halves, whose result is
    judged on the other half. The config keeps its start's values unless the cross-validated gain is larger
    than its uncertainty (see `mclc_gpu.tune.search.gain_of`); of a single image, which has no halves, it is
    the gain on itself.

    Writes config.json, search.csv, search.png and tune.json into the job's folder and returns the content of
    tune.json. When interrupted in a search it leaves what was found so far, and can be resumed.

    Raises:
        InputError: Nothing to tune on, or the folder cannot be used.
    """
    started = time.perf_counter()
    space_of(job.config)
    whole, skipped = _read_set(job)
    with locked(job.out, LAYOUT.kind):
        return _tune_labels(job, whole, skipped, started)


def _tune_labels(job: TuneJob, whole: TuneSet, skipped: Sequence[Skipped], started: float) -> dict[str, Any]:
    fingerprint = fingerprint_of([job.settings(), whole.names, [int(mask.sum()) for mask in whole.truth]])
    if job.resume and (complete := completed_run(LAYOUT, job.out, fingerprint)) is not None:
        return complete
    with open_run(LAYOUT, job.out, fingerprint, job.resume, job.overwrite) as before:
        known = {key: entry["pixels"] for key, entry in before.items()}
    with Journal(LAYOUT, job.out, fingerprint) as journal:
        parts = [members for members in whole.halves(job.seed) if members]
        evaluator = Evaluator(
            [whole.part(members) for members in parts],
            job.device,
            known,
            # A journal names its records' subject "image"; here it is one config on one half.
            lambda key, pixels: journal.append({"image": key, "pixels": pixels}),
        )
        run = _Run(job, evaluator)
        try:
            run.search()
        except KeyboardInterrupt:
            if run.rows:
                write_json(job.out / CONFIG, asdict(with_values(job.config, run.searches[0].best)))
                run.write_search()
                print(f"{job.out / CONFIG}: the best so far, not cross-validated", file=sys.stderr)
            raise
        found = run.judge()
    config = with_values(job.config, found["values"])
    write_json(job.out / CONFIG, asdict(config))
    run.write_search()
    summary = {
        "settings": job.settings(),
        "fingerprint": fingerprint,
        **provenance(device_name(job.device)),
        "images": len(whole.names),
        "targets": sum(map(len, whole.points[0])),
        "evaluations": len(run.rows),
        **found,
        "seconds": time.perf_counter() - started,
        "skipped": [asdict(item) for item in skipped],
    }
    close_run(LAYOUT, job.out, summary)
    return summary


def _read_set(job: TuneJob) -> tuple[TuneSet, list[Skipped]]:
    """All usable images that have a target, and what was left out."""
    samples, unpaired = pair_samples(job.images, job.masks)
    frames = ValidationSet(samples, budget=sys.maxsize)
    skipped = [*job.skipped, *unpaired, *frames.skipped]
    usable = [(name, image, mask) for name, image, mask in frames if mask.any()]
    if not usable:
        why = f"{skipped[0].file}: {skipped[0].why}" if skipped else "the masks are empty"
        raise InputError(f"nothing to tune on: no image with a target in its mask ({why})")
    names, images, truth = (list(column) for column in zip(*usable, strict=True))
    clicks = _clicks(job, {sample.name: sample for sample in frames.samples}, names)
    return TuneSet(names, images, truth, clicks), skipped


def _clicks(job: TuneJob, samples: Mapping[str, Sample], names: Sequence[str]) -> list[Any]:
    """For each seed the clicks that `label` with this seed would simulate."""
    images = {name: samples[name].image for name in names}
    masks = {name: samples[name].mask for name in names}
    made = []
    for seed in range(job.seeds if job.jitter else 1):
        points, _ = simulate_points(masks, images, jitter=job.jitter, seed=seed)
        made.append([points[name] for name in names])
    return made if job.jitter else made * job.seeds


class _Run:
    """The searches of a job.

    Attributes:
        searches: On all images, then on each half; those that were begun.
        rows: Of search.csv.
    """

    def __init__(self, job: TuneJob, evaluator: Evaluator) -> None:
        self.job, self.evaluator = job, evaluator
        self.space = space_of(job.config)
        self.start = values_of(job.config, self.space)
        self.brief = replace(job.config, trials=min(job.config.trials, SEARCH_TRIALS))
        self.searches: list[Search] = []
        self.rows: list[dict[str, Any]] = []

    def search(self) -> None:
        """All searches."""
        every = list(range(len(self.evaluator.parts)))
        which = [("all", every), *((f"half {n + 1}", [n]) for n in every if len(every) > 1)]
        with Progress("tune", len(which) * self.job.budget, "evaluation") as progress:
            for name, parts in which:
                search = self._begin(name, parts, progress)
                self.searches.append(search)
                search.run()

    def _begin(self, name: str, parts: Sequence[int], progress: Progress) -> Search:
        def score(values: Values) -> float:
            config = with_values(self.brief, values)
            ious = iou_by_seed(np.stack([self.evaluator.pixels(config, part) for part in parts], axis=1))
            iou = float(ious.mean())
            row = {"evaluation": len(self.rows) + 1, "search": name, "iou": iou, "spread": spread_of(ious)}
            self.rows.append({**row, **values})
            progress.advance(1, f"{name}: best IoU {max(search.best_score, iou):.4f}")
            return iou

        search = Search(score, self.space, self.start, self.job.budget, self.job.seed)
        return search

    def judge(self) -> dict[str, Any]:
        """What the results of the searches are worth with all trials, and which values are kept."""
        every = range(len(self.evaluator.parts))
        before = [self._of_images({}, part) for part in every]
        tuned = self.searches[0].best
        own = [self._of_images(tuned, part) for part in every]
        judged = own
        if len(every) > 1:
            judged = [self._of_images(self.searches[1 + (1 - part)].best, part) for part in every]
        gain, uncertainty = gain_of(_joined(before), _joined(judged), self.job.seed)
        # A single image without noise has no spread at all.
        kept = bool(tuned != self.start and gain > uncertainty)
        halves = [
            {
                "images": len(part.names),
                "changes": self._changes(search.best),
                "other_half_before": _facts([before[1 - n]])["iou"],
                "other_half_after": _facts([judged[1 - n]])["iou"],
            }
            for n, (part, search) in enumerate(zip(self.evaluator.parts, self.searches[1:], strict=False))
        ]
        return {
            "before": _facts(before),
            "after": _facts(own),
            "cross_validated": _facts(judged) if halves else None,
            "gain": gain,
            "gain_uncertainty": uncertainty,
            "halves": halves,
            "changes": self._changes(tuned),
            "tuned_kept": kept,
            "values": tuned if kept else self.start,
        }

    def _of_images(self, values: Values, part: int) -> np.ndarray:
        return self.evaluator.of_images(with_values(self.job.config, values), part)

    def _changes(self, values: Values) -> dict[str, list[Any]]:
        """[before, after] of each parameter that differs from the start's."""
        start = self.start
        return {name: [start[name], value] for name, value in values.items() if value != start[name]}

    def write_search(self) -> None:
        """Write search.csv and search.png."""
        write_csv(self.job.out / TABLE, list(self.rows[0]), (row.values() for row in self.rows))
        orders = {parameter.name: parameter.values for parameter in self.space}
        title = f"{self.job.config.maker} from preset {self.job.start}, {len(self.rows)} evaluations"
        plot_search(self.rows, orders, self.searches[0].best, self.job.out / PLOT, title)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, axis=1)


def _facts(parts: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Mean IoU over the seeds and its spread, None of one seed."""
    ious = iou_by_seed(_joined(parts))
    return {"iou": float(ious.mean()), "spread": spread_of(ious) if len(ious) > 1 else None}
