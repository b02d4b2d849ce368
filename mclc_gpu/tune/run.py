"""Tune label settings with a few true masks: a config, the summary of the search and a plot."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mclc_gpu.data.datasets import Sample, ValidationSet, listed, pair_samples
from mclc_gpu.data.files import fingerprint_of, write_csv, write_json
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import device_name, pick_device
from mclc_gpu.labels.config import preset
from mclc_gpu.report.plots import plot_search
from mclc_gpu.runs import (
    Journal,
    Progress,
    RunLayout,
    close_run,
    completed_run,
    keep_apart,
    locked,
    open_run,
    provenance,
)
from mclc_gpu.tune.config import TuneOptions
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
SEARCH_TRIALS = 30  # most trials per target while searching; results are measured with the config's own
FEW_IMAGES = 4


def tune_labels(options: TuneOptions) -> dict[str, Any]:
    """Find label settings for a set of images, and measure their gain.

    Three searches run: one on all images, whose result becomes the config, and one on each of two halves,
    whose result is measured on the other half. The config keeps the values of the preset unless the
    cross-validated gain exceeds its uncertainty (see `mclc_gpu.tune.search.gain_of`); of a single image,
    which has no halves, the gain is measured on the image itself.

    Writes config.json, search.csv, search.png and tune.json into the output folder. An interrupted run leaves
    the best config so far, and can be resumed.

    Parameters
    ----------
    options : TuneOptions

    Returns
    -------
    dict
        Content of tune.json.

    Raises
    ------
    InputError
        If the preset's maker has no settings to search, no image has a target, or a folder cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from mclc_gpu.data.synthetic import write_dataset
    >>> from mclc_gpu.tune.config import TuneOptions
    >>> from mclc_gpu.tune.run import tune_labels
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = Path(folder)
    ...     write_dataset(root, 2, 0, size=(64, 64))
    ...     data = {"images": root / "images", "masks": root / "masks"}
    ...     summary = tune_labels(TuneOptions(**data, out=root / "out", budget=2, device="cpu"))
    >>> summary["images"], summary["evaluations"]
    (2, 6)
    """
    started = time.perf_counter()
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.masks, options.list))
    run = _Run(options)
    with locked(options.out, LAYOUT.kind):
        if options.resume and (complete := completed_run(LAYOUT, options.out, run.fingerprint)) is not None:
            return complete
        found = run.search_and_judge()
        write_json(options.out / CONFIG, asdict(with_values(run.config, found["values"])))
        run.write_search()
        summary = {
            "settings": run.settings,
            "fingerprint": run.fingerprint,
            **provenance(device_name(run.device)),
            "images": len(run.whole.names),
            "targets": sum(map(len, run.whole.points[0])),
            "evaluations": len(run.rows),
            **found,
            "seconds": time.perf_counter() - started,
            "skipped": [asdict(item) for item in run.skipped],
        }
        close_run(LAYOUT, options.out, summary)
    return summary


def _read_set(options: TuneOptions, seeds: int) -> tuple[TuneSet, list[Skipped]]:
    """Read all usable images that have a target, simulate their clicks, and report what was skipped."""
    files, masks = find_images_and_masks(options.images, options.masks)
    images, missing = listed(files, options.list, options.images)
    samples, unpaired = pair_samples(images, masks)
    frames = ValidationSet(samples, budget=sys.maxsize)
    skipped = [*missing, *unpaired, *frames.skipped]
    usable = [(name, image, mask) for name, image, mask in frames if mask.any()]
    if not usable:
        why = f"{skipped[0].file}: {skipped[0].why}" if skipped else "the masks are empty"
        raise InputError(f"nothing to tune on: no image with a target in its mask ({why})")
    names, pixels, truth = (list(column) for column in zip(*usable, strict=True))
    clicks = _clicks(options, seeds, {sample.name: sample for sample in frames.samples}, names)
    return TuneSet(names, pixels, truth, clicks), skipped


def _clicks(
    options: TuneOptions, seeds: int, samples: Mapping[str, Sample], names: Sequence[str]
) -> list[Any]:
    """Simulate for each seed the clicks that `label` simulates with this seed."""
    images = {name: samples[name].image for name in names}
    masks = {name: samples[name].mask for name in names}
    made = []
    for seed in range(seeds if options.jitter else 1):
        points, _ = simulate_points(masks, images, jitter=options.jitter, seed=seed)
        made.append([points[name] for name in names])
    return made if options.jitter else made * seeds


class _Run:
    """One tuning run.

    Attributes
    ----------
    config : LabelConfig
        Config at which the search starts.
    settings : dict
        Settings on which the result depends, besides the files.
    whole : TuneSet
        All usable images.
    skipped : list of Skipped
    searches : list of Search
        The search on all images, then those on each half, as far as they were begun.
    rows : list of dict
        Rows of search.csv.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.options = options
        self.device = pick_device(options.device)
        changes = {} if options.category is None else {"category": options.category}
        self.config = preset(options.preset, **changes)
        self.space = space_of(self.config)
        self.start = values_of(self.config, self.space)
        # Without anything drawn at random, all seeds give the same labels.
        seeds = options.seeds if self.config.entry.seeded or options.jitter else 1
        self.settings = {
            "start": options.preset,
            "seeds": seeds,
            "budget": options.budget,
            "jitter": options.jitter,
            "seed": options.seed,
            "config": asdict(self.config),
        }
        self.whole, self.skipped = _read_set(options, seeds)
        areas = [int(mask.sum()) for mask in self.whole.truth]
        self.fingerprint = fingerprint_of([self.settings, self.whole.names, areas])
        self.brief = replace(self.config, trials=min(self.config.trials, SEARCH_TRIALS))
        self.searches: list[Search] = []
        self.rows: list[dict[str, Any]] = []

    def search_and_judge(self) -> dict[str, Any]:
        """Run all searches, with a journal of the evaluations, and measure their results."""
        options, out = self.options, self.options.out
        with open_run(LAYOUT, out, self.fingerprint, options.resume, options.overwrite) as before:
            known = {key: entry["pixels"] for key, entry in before.items()}
        with Journal(LAYOUT, out, self.fingerprint) as journal:
            self.evaluator = Evaluator(
                [self.whole.part(members) for members in self.whole.halves(options.seed) if members],
                self.device,
                known,
                # Records of a journal are named by "image"; here each is one config on one half.
                lambda key, pixels: journal.append({"image": key, "pixels": pixels}),
            )
            try:
                self._search()
            except KeyboardInterrupt:
                if self.rows:
                    write_json(out / CONFIG, asdict(with_values(self.config, self.searches[0].best)))
                    self.write_search()
                    print(f"{out / CONFIG}: the best so far, not cross-validated", file=sys.stderr)
                raise
            return self._judge()

    def _search(self) -> None:
        every = list(range(len(self.evaluator.parts)))
        which = [("all", every), *((f"half {n + 1}", [n]) for n in every if len(every) > 1)]
        with Progress("tune", len(which) * self.options.budget, "evaluation") as progress:
            for name, parts in which:
                search = self._begin(name, parts, progress)
                self.searches.append(search)
                search.run()

    def _begin(self, name: str, parts: Sequence[int], progress: Progress) -> Search:
        """Set up a search whose evaluations become rows of search.csv."""

        def score(values: Values) -> float:
            config = with_values(self.brief, values)
            ious = iou_by_seed(np.stack([self.evaluator.pixels(config, part) for part in parts], axis=1))
            iou = float(ious.mean())
            row = {"evaluation": len(self.rows) + 1, "search": name, "iou": iou, "spread": spread_of(ious)}
            self.rows.append({**row, **values})
            progress.advance(1, f"{name}: best IoU {max(search.best_score, iou):.4f}")
            return iou

        search = Search(score, self.space, self.start, self.options.budget, self.options.seed)
        return search

    def _judge(self) -> dict[str, Any]:
        """Measure the results of the searches with all trials, and decide which values are kept."""
        every = range(len(self.evaluator.parts))
        before = [self._of_images({}, part) for part in every]
        tuned = self.searches[0].best
        own = [self._of_images(tuned, part) for part in every]
        judged = own
        if len(every) > 1:
            judged = [self._of_images(self.searches[1 + (1 - part)].best, part) for part in every]
        gain, uncertainty = gain_of(_joined(before), _joined(judged), self.options.seed)
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
        return self.evaluator.of_images(with_values(self.config, values), part)

    def _changes(self, values: Values) -> dict[str, list[Any]]:
        """Return [before, after] of each parameter that differs from the preset's."""
        start = self.start
        return {name: [start[name], value] for name, value in values.items() if value != start[name]}

    def write_search(self) -> None:
        """Write search.csv and search.png."""
        write_csv(self.options.out / TABLE, list(self.rows[0]), (row.values() for row in self.rows))
        orders = {parameter.name: parameter.values for parameter in self.space}
        title = f"{self.config.maker} from preset {self.options.preset}, {len(self.rows)} evaluations"
        plot_search(self.rows, orders, self.searches[0].best, self.options.out / PLOT, title)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, axis=1)


def _facts(parts: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Return the mean IoU over the seeds and its spread, None for one seed."""
    ious = iou_by_seed(_joined(parts))
    return {"iou": float(ious.mean()), "spread": spread_of(ious) if len(ious) > 1 else None}
