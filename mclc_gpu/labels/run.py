"""Label a data set: streamed in chunks of bounded memory, resumable, files written atomically.

On a GPU the stages overlap: threads read and decode the next chunk of images, the device labels one while
the next is on its way to it, and threads encode and write the previous one. This thread queues the work and
waits for files alone. On the CPU the stages take turns, since each uses all cores.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.files import fingerprint_of
from mclc_gpu.data.names import find_files, find_images_and_masks, stem_of, unread_files
from mclc_gpu.data.points import read_points
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import Moment, device_name, pick_device, streams
from mclc_gpu.labels.config import LabelOptions
from mclc_gpu.labels.corrections import Corrections, corrections_json, with_corrections
from mclc_gpu.labels.folder import (
    LAYOUT,
    Encoded,
    ImageRecord,
    JournaledRows,
    LabelRun,
    TargetRow,
    Totals,
    encode,
    mask_path,
    shard_path,
    totals_of,
    tpm_path,
    write_files,
    write_shard,
    write_tables,
)
from mclc_gpu.labels.pipeline import (
    LabeledTargets,
    cluster_targets,
    refine_targets,
    warm_up,
)
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.stream import CHUNKS, WORKERS, Chunks, Loaded, Reader, Stages
from mclc_gpu.runs import (
    Journal,
    JournalEntries,
    Progress,
    close_run,
    completed_run,
    keep_apart,
    locked,
    open_run,
    provenance,
)

STAGES = ("read", "cluster", "refine", "write")
_CHUNKS_AHEAD = 2  # queued chunks whose files are not yet made, where stages overlap


@dataclass(frozen=True)
class Inputs:
    """Images and annotations of a label run.

    Attributes
    ----------
    images : mapping of str to Path
        Image files by stem, in order.
    points : mapping of str to sequence of Point
        Targets by stem; an image without an entry is reported and left out.
    truths : mapping of str to Path
        True masks by stem, where they are known.
    source : str
        Origin of the points, for label.json.
    skipped : list of Skipped
        Inputs already found unusable.
    corrections : mapping of str to mapping
        Masks that were corrected by hand, see `mclc_gpu.labels.corrections.Corrections`.
    """

    images: Mapping[str, Path]
    points: Mapping[str, Sequence[Point]]
    truths: Mapping[str, Path] = field(default_factory=dict)
    source: str = "points"
    skipped: list[Skipped] = field(default_factory=list)
    corrections: Corrections = field(default_factory=dict)


def read_inputs(options: LabelOptions) -> Inputs:
    """Find the images and read or simulate the annotations of a label run.

    Raises
    ------
    InputError
        A folder, file or list cannot be read, or names nothing that can be used.
    """
    source = options.supervision
    if options.points_from_masks is not None:
        files, truths = find_images_and_masks(options.images, options.points_from_masks)
        images, missing = listed(files, options.list, options.images)
        missing += unread_files(options.images)
        simulated, problems = simulate_points(
            truths,
            images,
            jitter=options.jitter,
            seed=options.seed,
            supervision=options.supervision,
            clicks=options.clicks,
        )
        if source == "multi-point":
            source += f" ({options.clicks} clicks)"
        source += f", simulated from masks, jitter {options.jitter:g} px"
        return Inputs(images, simulated, truths, source, [*missing, *problems])
    if options.points is None:
        raise InputError("no annotations: give points or points_from_masks")
    if options.jitter:
        raise InputError(f"--jitter {options.jitter:g} only applies to simulated clicks; remove it")
    files = find_files(options.images)
    images, missing = listed(files, options.list, options.images)
    missing += unread_files(options.images)
    points, problems = read_points(options.points, files, options.supervision)
    if not points:
        why = f"{problems[0].file}: {problems[0].why}" if problems else "it names no image"
        raise InputError(f"{options.points}: no usable point ({why})")
    return Inputs(images, points, source=f"{source}, given", skipped=[*missing, *problems])


def label_dataset(
    options: LabelOptions,
    inputs: Inputs | None = None,
    *,
    ranks: Ranks | None = None,
    report: Callable[[LabelRun], None] | None = None,
    started: float | None = None,
    chunks: Chunks = CHUNKS,
) -> LabelRun:
    """Label every image of a data set.

    Writes masks/, tpm/ (or shards/), points.csv, targets.csv and label.json into the output folder. Unusable
    images and targets are skipped and reported in label.json. The folder is locked meanwhile.

    Parameters
    ----------
    options : LabelOptions
        The same in every process.
    inputs : Inputs, optional
        Images and annotations in place of those that `options` names.
    ranks : Ranks, optional
        Processes that share the images; default: this one alone, on `options.device`. The files do not
        depend on their number.
    report : callable, optional
        Called in the first process with the finished run, while the folder is still locked; also for a
        resumed run that was complete. Unless it was, the run's rows are read from the journal one image at a
        time, not from its tables.
    started : float, optional
        `time.perf_counter()` when the work began, for the start-up time in label.json.
    chunks : Chunks, optional
        Bounds of the memory in use.

    Returns
    -------
    LabelRun
        The finished run, in every process.

    Raises
    ------
    InputError
        The inputs or the output folder cannot be used, or nothing could be labeled.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from mclc_gpu.data.synthetic import write_dataset
    >>> from mclc_gpu.labels.config import LabelOptions
    >>> from mclc_gpu.labels.run import label_dataset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = Path(folder)
    ...     write_dataset(data, count=3, seed=0, size=(64, 64))
    ...     images, masks = data / "images", data / "masks"
    ...     options = LabelOptions(images=images, points_from_masks=masks, out=data / "labels", device="cpu")
    ...     run = label_dataset(options)
    ...     run.summary["images"], sorted(run.masks())
    (3, ['synthetic_00000', 'synthetic_00001', 'synthetic_00002'])
    """
    started = time.perf_counter() if started is None else started
    out = options.out
    keep_apart("--out", LAYOUT.places(out), (options.images, options.points, options.points_from_masks))
    inputs = inputs or read_inputs(options)
    ranks = ranks or Ranks(pick_device(options.device))
    with locked(out, LAYOUT.kind, ranks.on_main):
        job = _Job(options, inputs, ranks, chunks)
        summary = ranks.on_main(job.completed)
        if summary is None:
            parts = ranks.gather(job.label(started))
            summary = ranks.on_main(lambda: job.close(parts, report))
        elif report is not None and ranks.main:
            report(LabelRun(out, summary, inputs.images, inputs.truths))
    return LabelRun(out, summary, inputs.images, inputs.truths)


@dataclass(frozen=True, slots=True)
class _Block:
    """Images whose labels are written together.

    Attributes
    ----------
    number : int
        Number of the archive that holds them.
    places : slice
        Their places in the job's list of images.
    stem : str
        Stem of the last of them.
    """

    number: int
    places: slice
    stem: str


@dataclass(frozen=True)
class _Part:
    """Share of one process: images, targets, trials, and the seconds of each stage."""

    images: int
    targets: int
    trials: int
    seconds: dict[str, float]


class _Job:
    """A label run from its inputs to its closed folder.

    Raises InputError where there is nothing to label.
    """

    def __init__(self, options: LabelOptions, inputs: Inputs, ranks: Ranks, chunks: Chunks) -> None:
        self.options, self.inputs, self.ranks, self.chunks = options, inputs, ranks, chunks
        self.stems = [stem for stem in inputs.images if stem in inputs.points]
        self.skipped = [*inputs.skipped, *_without_points(inputs)]
        if not self.stems:
            why = f"nothing to label: {self.skipped[0].file}: {self.skipped[0].why}" if self.skipped else ""
            raise InputError(why or "no images to label")
        # Everything that the output depends on, besides the content of the images.
        self.settings = {"seed": options.seed, "points": inputs.source, **asdict(options.config)}
        clicks = ([stem, *map(astuple, inputs.points[stem])] for stem in self.stems)
        by_hand = [corrections_json(inputs.corrections)] if inputs.corrections else []
        self.fingerprint = fingerprint_of(self.settings, options.shards, *clicks, *by_hand)

    def completed(self) -> dict[str, Any] | None:
        """Return the summary of the run to resume if it is complete, else None."""
        return completed_run(LAYOUT, self.options.out, self.fingerprint) if self.options.resume else None

    def label(self, started: float) -> _Part:
        """Label this process's share of the images that are not finished."""
        finished = self.ranks.on_main(self._finished)
        todo = self.ranks.share([block for block in self._blocks() if not finished[block.places].all()])
        mine = [stem for block in todo for stem in self.stems[block.places]]
        if mine:
            points = (point for stem in mine for point in self.inputs.points[stem])
            warm_up(self.options.config, self.ranks.device, points)
        startup = time.perf_counter() - started
        ends = {block.stem: block.number for block in todo}
        work = _Work(self.options, self.inputs, self.ranks, self.chunks, ends)
        with Journal(LAYOUT, self.options.out, self.fingerprint, self.ranks.rank) as journal:
            begin = time.perf_counter()
            work.run(mine, journal, int(finished.sum()))
            total = time.perf_counter() - begin
        seconds = {"startup": startup, **work.stages.seconds, "total": total}
        return _Part(len(mine), work.targets, work.trials, seconds)

    def _blocks(self) -> Iterator[_Block]:
        size = self.options.shards or 1
        for number, first in enumerate(range(0, len(self.stems), size)):
            places = slice(first, min(first + size, len(self.stems)))
            yield _Block(number, places, self.stems[places.stop - 1])

    def _finished(self) -> np.ndarray:
        """Start or resume the run; return bool [images], true where no work is left."""
        done = np.zeros(len(self.stems), bool)
        options = self.options
        with open_run(LAYOUT, options.out, self.fingerprint, options.resume, options.overwrite) as entries:
            for block in self._blocks():
                own = self.stems[block.places]
                if all(stem in entries for stem in own):
                    labeled = any(entries[stem]["points"] is not None for stem in own)
                    done[block.places] = not labeled or self._is_written(block)
        return done

    def _is_written(self, block: _Block) -> bool:
        """Return whether the files of a block that has labels exist."""
        out = self.options.out
        if self.options.shards:
            return shard_path(out, block.number).exists()
        return mask_path(out, block.stem).exists() and tpm_path(out, block.stem).exists()

    def close(self, parts: Sequence[_Part], report: Callable[[LabelRun], None] | None) -> dict[str, Any]:
        """Write the tables and label.json from the journals of all processes, then report on the run."""
        out, inputs = self.options.out, self.inputs
        with JournalEntries(LAYOUT.journals(out), self.fingerprint) as entries:
            totals = totals_of(ImageRecord.of(entries[stem]) for stem in self.stems)
            unusable = [Skipped(str(inputs.images[stem]), why) for stem, why in totals.skipped]
            if not totals.labeled:
                raise InputError(f"nothing could be labeled: {unusable[0].file}: {unusable[0].why}")
            rows = JournaledRows(totals.labeled, entries)
            write_tables(out, rows, corrected=totals.corrected > 0)
            summary = self._summary(parts, totals, unusable)
            # The journals stay readable while they are open, although this removes them.
            close_run(LAYOUT, out, summary)
            if report is not None:
                run = LabelRun(out, summary, inputs.images, inputs.truths)
                run.rows = rows
                report(run)
        return summary

    def _summary(self, parts: Sequence[_Part], totals: Totals, unusable: Sequence[Skipped]) -> dict[str, Any]:
        # Of processes side by side the slowest is what one waits for.
        seconds = {stage: max(part.seconds[stage] for part in parts) for stage in parts[0].seconds}
        work = seconds["cluster"] + seconds["refine"]
        targets, trials = (sum(getattr(part, name) for part in parts) for name in ("targets", "trials"))
        return {
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            **provenance(device_name(self.ranks.device)),
            "processes": self.ranks.world,
            "shards": self.options.shards,
            "images": len(totals.labeled),
            "resumed_images": len(self.stems) - sum(part.images for part in parts),
            "targets": totals.targets,
            "estimated_categories": totals.estimated,
            **({"corrected_masks": totals.corrected} if totals.corrected else {}),
            "trials": totals.trials,
            "seconds": seconds,
            "confidence": totals.confidence(),
            "targets_per_s": targets / work if work > 0 else None,
            "trials_per_s": trials / seconds["cluster"] if seconds["cluster"] > 0 else None,
            "skipped": [asdict(item) for item in (*self.skipped, *unusable)],
        }


def _without_points(inputs: Inputs) -> list[Skipped]:
    """Report the images without a usable point, unless the reason was reported already."""
    reported = {stem_of(item.file) for item in inputs.skipped}
    return [
        Skipped(str(path), "it has no usable point label")
        for stem, path in inputs.images.items()
        if stem not in inputs.points and stem not in reported
    ]


class _Pending(NamedTuple):
    """An image that is being labeled, or the record of one that could not be.

    The future gives the record, the files, and the seconds that these took.
    """

    record: ImageRecord | None
    made: "Future[tuple[ImageRecord, Encoded, float]] | None" = None


class _Chunk(NamedTuple):
    """Images that are being labeled together, and the moments before, between and after the two stages."""

    images: list[_Pending]
    moments: tuple[Moment, Moment, Moment]


class _Work:
    """Labeling of one process's images, chunk by chunk.

    Attributes
    ----------
    stages : Stages
        Seconds of each stage.
    targets, trials : int
        Numbers of finished targets and of their trials.
    overlap : bool
        A chunk is written, and the next one read, while another is labeled.
    """

    def __init__(
        self,
        options: LabelOptions,
        inputs: Inputs,
        ranks: Ranks,
        chunks: Chunks,
        ends: Mapping[str, int],
    ) -> None:
        """`ends`: number of each block that is this process's, by the stem of the block's last image."""
        self.options, self.inputs, self.ranks, self.ends = options, inputs, ranks, ends
        self.stages = Stages(STAGES)
        self.targets = self.trials = 0
        self.chunks = chunks
        self.overlap = ranks.device.type == "cuda" if chunks.overlap is None else chunks.overlap
        # In turns: a chunk is on its way to the device, or back, while the other's kernels run.
        self.streams = itertools.cycle(streams(ranks.device, 2 if self.overlap else 1))
        self.block: list[tuple[ImageRecord, Encoded | None]] = []

    def run(self, stems: Sequence[str], journal: Journal, before: int) -> None:
        """Label these images; `before` images of the job were finished at the start."""
        pending: deque[_Chunk] = deque()
        with ExitStack() as stack:
            # Rank 0 reports the progress of all processes by its own.
            world, silent = self.ranks.world, not self.ranks.main
            whole = before + len(stems) * world
            progress = stack.enter_context(Progress("label", whole, done=before, silent=silent))
            files = ((stem, self.inputs.images[stem]) for stem in stems)
            reader = stack.enter_context(Reader(files, self.stages, self.overlap, self.chunks))
            pool = ThreadPoolExecutor(WORKERS, "write")
            stack.callback(pool.shutdown, cancel_futures=True)
            for chunk in reader.chunks():
                pending.append(self._label(chunk, pool))
                while len(pending) > (_CHUNKS_AHEAD if self.overlap else 0):
                    self._finish(pending.popleft(), journal, progress)
            while pending:
                self._finish(pending.popleft(), journal, progress)

    def _label(self, chunk: Sequence[Loaded], pool: ThreadPoolExecutor) -> _Chunk:
        """Queue the work of one chunk, and the making of its files once it is done."""
        config, device, points = self.options.config, self.ranks.device, self.inputs.points
        good = {item.stem: item.image for item in chunk if item.image is not None}
        stems, images = list(good), list(good.values())
        with next(self.streams)():
            start = Moment(device)
            clicks = [points[stem] for stem in stems]
            placed, problems = place_targets(images, clicks, stems, config, self.options.seed, device)
            groups = cluster_targets(images, placed, config, device)
            clustered = Moment(device)
            labels = refine_targets(placed, groups, config)
            moments = start, clustered, Moment(device)
        counts = np.bincount(placed.windows.image.numpy(), minlength=len(stems))
        ends = np.cumsum(counts)
        parts = {
            stem: slice(end - count, end)
            for stem, end, count in zip(stems, ends.tolist(), counts.tolist(), strict=True)
        }
        reasons: dict[str, list[str]] = {stem: [] for stem in stems}
        for problem in problems:
            reasons[problem.file].append(problem.why)
        pending = []
        for item in chunk:
            stem = item.stem
            if item.image is None:
                pending.append(_Pending(ImageRecord(stem, None, [item.problem])))
                continue
            own, why = parts[stem], reasons[stem]
            if own.start == own.stop and points[stem]:
                pending.append(_Pending(ImageRecord(stem, None, why)))
                continue
            made = pool.submit(self._make, stem, item.image.shape[:2], labels, own, why)
            pending.append(_Pending(None, made))
        return _Chunk(pending, moments)

    def _make(
        self, stem: str, shape: tuple[int, int], labels: LabeledTargets, own: slice, why: list[str]
    ) -> tuple[ImageRecord, Encoded, float]:
        """Make the record and the files of an image, and write these unless an archive is to hold them."""
        targets = with_corrections(labels[own], self.inputs.corrections.get(stem))  # waits for the device
        start = time.perf_counter()
        files = encode(stem, shape, targets)
        if not self.options.shards:
            write_files(self.options.out, files)
        record = ImageRecord(stem, [TargetRow.of(target) for target in targets], why)
        return record, files, time.perf_counter() - start

    def _finish(self, chunk: _Chunk, journal: Journal, progress: Progress) -> None:
        """Wait for the files of a chunk, and journal its images."""
        for record, made in chunk.images:
            files = None
            if made is not None:
                record, files, busy = made.result()
                self.stages.add("write", busy)
            assert record is not None
            self.block.append((record, files))
            rows = record.rows or []
            self.targets += len(rows)
            self.trials += sum(row.trials or 0 for row in rows)
            if record.image in self.ends:
                self._end_block(self.ends[record.image], journal)
        start, clustered, refined = chunk.moments
        self.stages.seconds["cluster"] += clustered.since(start)
        self.stages.seconds["refine"] += refined.since(clustered)
        progress.advance(len(chunk.images) * self.ranks.world)

    def _end_block(self, number: int, journal: Journal) -> None:
        """Write the archive of a block, if it is to have one, and journal its images."""
        files = [files for _, files in self.block if files is not None]
        if self.options.shards and files:
            with self.stages.timed("write"):
                write_shard(self.options.out, number, files)
        for record, _ in self.block:
            journal.append(record.journaled())
        self.block.clear()
