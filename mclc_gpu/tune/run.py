"""Tune label settings with a few true masks: a config, the summary of the search and a plot."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from scipy import special

from mclc_gpu.data.datasets import Sample, ValidationSet, listed, pair_samples
from mclc_gpu.data.files import fingerprint_of, write_csv, write_json
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import device_name, pick_device
from mclc_gpu.labels.config import LabelConfig, changed, preset
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
    cautious_gains,
    cross_validated,
    distance,
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
CONFIDENCE = 0.99  # that a gain is above 0, for settings to be kept
OUTLINE = "components.outline"
_KINDS = {"components.polarity", OUTLINE}  # of targets and of outlines

Tried = tuple[Values, np.ndarray]


def tune_labels(options: TuneOptions, start: LabelConfig | None = None) -> dict[str, Any]:
    """Find label settings for a set of images, and measure their gain.

    The search prefers settings near the preset's, the more so the fewer images there are (see
    `mclc_gpu.tune.search.cautious_gains`). The gain of its result, and of the best kind of outline alone, is
    cross-validated over the evaluations. The config has the first of the two whose gain is above 0 with a
    confidence of 99 % (see `needed_errors`), or else the values of the preset; also of a single image, which
    cannot be divided. Labels that need no size category are made without one unless `category` is given.

    Writes config.json, search.csv, search.png and tune.json into the output folder. An interrupted run leaves
    the best config so far, and can be resumed.

    Parameters
    ----------
    options : TuneOptions
    start : LabelConfig, optional
        Config at which the search starts, in place of the preset's.

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
    ...     summary = tune_labels(TuneOptions(**data, out=root / "out", budget=3, device="cpu"))
    >>> summary["images"], summary["evaluations"]
    (2, 3)
    """
    started = time.perf_counter()
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.masks, options.list))
    run = _Run(options, start)
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
    measured : LabelConfig
        That config as it is measured, without the size categories of the simulated clicks.
    settings : dict
        Settings on which the result depends, besides the files.
    whole : TuneSet
        All usable images.
    skipped : list of Skipped
    rows : list of dict
        Rows of search.csv.
    tried : list of (dict, ndarray)
        Values of each evaluation, and the counts of pixels with them, see `Evaluator.counts`.
    """

    def __init__(self, options: TuneOptions, start: LabelConfig | None) -> None:
        self.options = options
        self.device = pick_device(options.device)
        changes = {} if options.category is None else {"category": options.category}
        self.config = preset(options.preset, **changes) if start is None else changed(start, **changes)
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
        self.measured = self.config
        if options.category is None and not self.config.entry.needs_category:
            self.measured = replace(self.config, category="estimate")  # few clicks come with a category
        self.brief = replace(self.measured, trials=min(self.config.trials, SEARCH_TRIALS))
        self.rows: list[dict[str, Any]] = []
        self.tried: list[Tried] = []

    def search_and_judge(self) -> dict[str, Any]:
        """Run all searches, with a journal of the evaluations, and measure their results."""
        options, out = self.options, self.options.out
        with open_run(LAYOUT, out, self.fingerprint, options.resume, options.overwrite) as before:
            known = {key: entry["pixels"] for key, entry in before.items()}
        with Journal(LAYOUT, out, self.fingerprint) as journal:
            # Records of a journal are named by "image"; here each is one config.
            record = lambda key, counts: journal.append({"image": key, "pixels": counts})  # noqa: E731
            self.evaluator = Evaluator(self.whole, self.device, known, record)
            try:
                self._search()
            except KeyboardInterrupt:
                if self.rows:
                    write_json(out / CONFIG, asdict(with_values(self.config, self.search.best)))
                    self.write_search()
                    print(f"{out / CONFIG}: the best so far, not cross-validated", file=sys.stderr)
                raise
            return self._judge()

    def _search(self) -> None:
        """Run the search; its evaluations become rows of search.csv."""
        with Progress("tune", self.options.budget, "evaluation") as progress:

            def score(values: Values) -> float:
                counts = self.evaluator.counts(with_values(self.brief, values))
                self.tried.append((values, counts))
                gain = float(self._gains([self.tried[0], self.tried[-1]])[1])
                ious = iou_by_seed(counts)
                row = {"evaluation": len(self.tried), "search": "all", "iou": float(ious.mean())}
                self.rows.append({**row, "spread": spread_of(ious), "cautious_gain": gain, **values})
                progress.advance(1, f"cautious gain {max(self.search.best_score, gain):+.4f}")
                return gain

            self.search = Search(score, self.space, self.start, self.options.budget, self.options.seed)
            self.search.run()

    def _gains(self, tried: Sequence[Tried]) -> np.ndarray:
        return cautious_gains(_table(tried).mean(axis=1), self._steps(tried))

    def _steps(self, tried: Sequence[Tried]) -> np.ndarray:
        return np.array([distance(values, self.start, self.space) for values, _ in tried])

    def _judge(self) -> dict[str, Any]:
        """Cross-validate the choice among all settings and that of the outline alone, and decide."""
        alone = [one for one in self.tried if not self._changes(one[0]).keys() - _KINDS]
        choices = []
        for tried in (self.tried, alone):
            values = tried[int(np.argmax(self._gains(tried)))][0]
            counts, steps = _table(tried), self._steps(tried)
            held = counts[0]
            if len(self.whole.names) > 1:
                held = cross_validated(counts, steps, self.options.seed)
            choices.append((values, held, *gain_of(counts[0], held, self.options.seed)))
        errors = needed_errors(len(self.whole.names))
        passing = [choice for choice in choices if choice[2] > errors * choice[3]]
        values, held, gain, uncertainty = (passing or choices)[0]
        kept = bool(passing and values != self.start)
        return {
            "before": _facts(self._measured(self.start)),
            "after": _facts(self._measured(values)),
            "cross_validated": _facts(held) if len(self.whole.names) > 1 else None,
            "gain": gain,
            "gain_uncertainty": uncertainty,
            "gain_needed": errors * uncertainty,
            "outline": choices[1][0].get(OUTLINE),
            "outlines": self._outlines(alone),
            "changes": self._changes(values),
            "tuned_kept": kept,
            "values": values if kept else self.start,
        }

    def _outlines(self, alone: Sequence[Tried]) -> dict[str, float]:
        """Return the best IoU of each outline that was tried with all else as in the preset."""
        found: dict[str, float] = {}
        for values, counts in alone:
            if OUTLINE in values:
                iou = float(iou_by_seed(counts).mean())
                found[values[OUTLINE]] = max(iou, found.get(values[OUTLINE], 0.0))
        return found

    def _measured(self, values: Values) -> np.ndarray:
        """Count the pixels with all trials."""
        return self.evaluator.counts(with_values(self.measured, values))

    def _changes(self, values: Values) -> dict[str, list[Any]]:
        """Return [before, after] of each parameter that differs from the preset's."""
        start = self.start
        return {name: [start[name], value] for name, value in values.items() if value != start[name]}

    def write_search(self) -> None:
        """Write search.csv and search.png."""
        write_csv(self.options.out / TABLE, list(self.rows[0]), (row.values() for row in self.rows))
        orders = {parameter.name: parameter.values for parameter in self.space}
        title = f"{self.config.maker} from preset {self.options.preset}, {len(self.rows)} evaluations"
        plot_search(self.rows, orders, self.search.best, self.options.out / PLOT, title)


def needed_errors(images: int) -> float:
    """Return how many standard errors a gain must exceed: the one-sided quantile of Student's t."""
    return float(special.stdtrit(max(images - 1, 1), CONFIDENCE))


def _table(tried: Sequence[Tried]) -> np.ndarray:
    """Return the counts of all settings, [settings, seeds, images, 2]."""
    return np.stack([counts for _, counts in tried])


def _facts(counts: np.ndarray) -> dict[str, float | None]:
    """Return the mean IoU over the seeds and its spread, None for one seed."""
    ious = iou_by_seed(counts)
    return {"iou": float(ious.mean()), "spread": spread_of(ious) if len(ious) > 1 else None}
