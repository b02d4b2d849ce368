"""Label a data set: streamed in chunks of bounded memory, resumable, files written atomically.

On a GPU three stages overlap: threads read and decode the next chunk of images, the device labels one,
and threads encode and write the one before. On the CPU the stages take turns, since each uses all cores.
Memory is bounded by the chunks, whatever the size of the data set.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import fingerprint_of
from mclc_gpu.data.images import read_image, stem_of
from mclc_gpu.data.points import write_points
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.kernels.backend import device_name, pick_device, synchronize
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.folder import (
    LAYOUT,
    Encoded,
    Facts,
    Record,
    Records,
    Totals,
    UsedPoints,
    encode,
    mask_path,
    shard_path,
    tpm_path,
    write_files,
    write_shard,
    write_targets,
)
from mclc_gpu.labels.pipeline import TargetMask, by_image, cluster_targets, refine_targets, warm_up
from mclc_gpu.labels.windows import place_targets
from mclc_gpu.runs import (
    Journal,
    JournalEntries,
    Progress,
    close_run,
    completed_run,
    locked,
    open_run,
    provenance,
)

_CHUNK_BYTES = 64 << 20
_CHUNK_IMAGES = 256
WORKERS = min(os.cpu_count() or 1, 32)  # threads that read, and as many that write


@dataclass(frozen=True)
class Loaded:
    """One image as it was read; None with the problem where it could not be."""

    stem: str
    image: np.ndarray | None
    problem: str = ""

    @property
    def bytes(self) -> int:
        return 0 if self.image is None else self.image.nbytes


class Stages:
    """Seconds of each stage.

    Those of work done by threads count by the share of the stage's threads that were at it, so that each
    stage's is the wall clock it would take alone. Stages overlap: together they may exceed the total.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time what this thread does."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def add(self, stage: str, busy: float) -> None:
        """Count the seconds of one thread among `WORKERS`."""
        self.seconds[stage] += busy / WORKERS


class Reader:
    """Reads images by threads, for whoever iterates over the chunks; a context manager."""

    def __init__(self, files: Iterable[tuple[str, Path]], stages: Stages, ahead: bool) -> None:
        """`files`: stem and path of each image, in order. `ahead`: read on while a chunk is used."""
        self.files, self.stages, self.ahead = iter(files), stages, ahead
        self.pool = ThreadPoolExecutor(WORKERS, "read")
        self.waiting: deque[Future[tuple[Loaded, float]]] = deque()
        self.mean = 0.0  # bytes of an image, of those read lately
        self.asked, self.taken = 0, 0  # images that were asked for, and handed on
        self.held = 0  # bytes of images that were read and not handed on
        self.changed = threading.Condition()
        self.closed = False

    def chunks(self) -> Iterator[list[Loaded]]:
        """Images in order, in chunks of bounded size."""
        chunk: list[Loaded] = []
        size = 0
        while True:
            self._fill(0 if self.ahead else len(chunk))
            if not self.waiting:
                break
            loaded, busy = self.waiting.popleft().result()
            with self.changed:
                self.held -= loaded.bytes
                self.taken += 1
                self.changed.notify_all()
            self.stages.add("read", busy)
            self.mean += (loaded.bytes - self.mean) / min(len(chunk) + 1, _CHUNK_IMAGES)
            chunk.append(loaded)
            size += loaded.bytes
            if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_IMAGES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _fill(self, read: int) -> None:
        """Ask for a chunk of images, by what the last ones took, less those that were `read` already."""
        chunk = min(_CHUNK_IMAGES, int(_CHUNK_BYTES / self.mean)) if self.mean else WORKERS
        while len(self.waiting) < max(chunk - read, 1):
            following = next(self.files, None)
            if following is None:
                return
            self.waiting.append(self.pool.submit(self._read, self.asked, *following))
            self.asked += 1

    def _read(self, number: int, stem: str, path: Path) -> tuple[Loaded, float]:
        """Read one image, once there is room: those that were asked for may be larger than those before."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self.held < _CHUNK_BYTES or number == self.taken or self.closed
                )  # the next one in any case
            )
        loaded, busy = _read(stem, path)
        with self.changed:
            self.held += loaded.bytes
        return loaded, busy

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.pool.shutdown(cancel_futures=True)


def _read(stem: str, path: Path) -> tuple[Loaded, float]:
    start = time.perf_counter()
    image = attempt(path, lambda: read_image(path))
    loaded = Loaded(stem, None, image.why) if isinstance(image, Skipped) else Loaded(stem, image)
    return loaded, time.perf_counter() - start


_OVERLAPPING = ("cuda",)  # devices that label while this machine's cores read and write
STAGES = ("read", "cluster", "refine", "write")


@dataclass
class LabelJob:
    """What to label and where to put it.

    Attributes:
        images: Image file of each stem to label, in order.
        points: Clicks of each stem; a stem without an entry is reported and left out.
        out: Output folder.
        config: Settings of the chain.
        seed: See `mclc_gpu.labels.pipeline.label_images`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: Go on where an interrupted run with the same settings stopped.
        overwrite: Replace an earlier run's output.
        shards: Write archives of the labels of so many images each; 0: a mask and a TPM file for each image.
        source: How the points came about, for label.json.
        skipped: Inputs already found unusable.
        started: `time.perf_counter()` when the work began, for the start-up time.
    """

    images: Mapping[str, Path]
    points: Mapping[str, Sequence[Point]]
    out: Path
    config: LabelConfig
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    shards: int = 0
    source: str = "points"
    skipped: list[Skipped] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def settings(self) -> dict[str, Any]:
        """What a run's output depends on, besides the images and points."""
        return {"seed": self.seed, "points": self.source, **asdict(self.config)}


def label_folder(job: LabelJob, ranks: Ranks | None = None) -> dict[str, Any]:
    """Label every image of a job.

    Writes masks/, tpm/, points.csv and label.json into the job's folder and returns label.json's content.
    An image that cannot be used is reported there under "skipped", and the rest is done.

    Args:
        job: The same in every process.
        ranks: The processes that share the images; default: this one alone, on the job's device. The files
            do not depend on their number. Each returns the whole.

    Raises:
        InputError: The output folder cannot be used, or there is nothing to label.
    """
    ranks = ranks or Ranks(pick_device(job.device))
    if job.shards < 0:
        raise InputError(f"{job.shards} images an archive: give 1 or more, or 0 for files of their own")
    with locked(job.out, LAYOUT.kind, ranks.on_main):
        return _label_folder(job, ranks)


def _label_folder(job: LabelJob, ranks: Ranks) -> dict[str, Any]:
    stems = [stem for stem in job.images if stem in job.points]
    skipped = [*job.skipped, *_without_points(job)]
    if not stems:
        raise InputError(
            f"nothing to label: {skipped[0].file}: {skipped[0].why}" if skipped else "no images to label"
        )
    clicks = ([stem, *map(astuple, job.points[stem])] for stem in stems)
    fingerprint = fingerprint_of(job.settings(), job.shards, *clicks)
    complete = ranks.on_main(lambda: _completed(job, fingerprint))
    if complete is not None:
        return complete
    finished = ranks.on_main(lambda: _finished(job, fingerprint, stems))
    todo = ranks.share([block for block in _blocks(job, stems) if not finished[block.places].all()])
    mine = [stem for block in todo for stem in stems[block.places]]
    if mine:
        warm_up(job.config, ranks.device)
    startup = time.perf_counter() - job.started
    work = _Work(job, ranks, {block.stem: block.number for block in todo})
    before = int(finished.sum())
    with Journal(LAYOUT, job.out, fingerprint, ranks.rank) as journal:
        begin = time.perf_counter()
        work.run(mine, journal, before)
        total = time.perf_counter() - begin
    seconds = {"startup": startup, **work.stages.seconds, "total": total}
    parts = ranks.gather(_Part(len(mine), work.targets, work.trials, seconds))
    return ranks.on_main(lambda: _close(job, fingerprint, ranks, stems, parts, skipped))


@dataclass(frozen=True, slots=True)
class _Block:
    """Images whose labels are written together.

    Attributes:
        number: Of the archive that holds them.
        places: Their places in the job's list.
        stem: Of the last of them.
    """

    number: int
    places: slice
    stem: str


def _blocks(job: LabelJob, stems: Sequence[str]) -> Iterator[_Block]:
    size = job.shards or 1
    for number, first in enumerate(range(0, len(stems), size)):
        places = slice(first, min(first + size, len(stems)))
        yield _Block(number, places, stems[places.stop - 1])


def _completed(job: LabelJob, fingerprint: str) -> dict[str, Any] | None:
    return completed_run(LAYOUT, job.out, fingerprint) if job.resume else None


def _finished(job: LabelJob, fingerprint: str, stems: Sequence[str]) -> np.ndarray:
    """bool [images], those that need no more work: unusable ones, and those whose files are complete."""
    done = np.zeros(len(stems), bool)
    with open_run(LAYOUT, job.out, fingerprint, job.resume, job.overwrite) as noted:
        for block in _blocks(job, stems):
            own = stems[block.places]
            if all(stem in noted for stem in own):
                labelled = any(noted[stem]["points"] is not None for stem in own)
                done[block.places] = not labelled or _written(job, block)
    return done


def _written(job: LabelJob, block: _Block) -> bool:
    """Whether the files of a block that has labels are there."""
    if job.shards:
        return shard_path(job.out, block.number).exists()
    return mask_path(job.out, block.stem).exists() and tpm_path(job.out, block.stem).exists()


@dataclass(frozen=True)
class _Part:
    """What one process did: images, targets, trials, and the seconds of each stage."""

    images: int
    targets: int
    trials: int
    seconds: dict[str, float]


def _close(
    job: LabelJob,
    fingerprint: str,
    ranks: Ranks,
    stems: Sequence[str],
    parts: Sequence[_Part],
    skipped: Sequence[Skipped],
) -> dict[str, Any]:
    """Write points.csv, targets.csv and label.json from what all processes noted, now and before."""
    with JournalEntries(LAYOUT.journals(job.out), fingerprint) as noted:
        records = Records(stems, noted)
        totals = Totals.of(records.values())
        unusable = [Skipped(str(job.images[stem]), why) for stem, why in totals.skipped]
        if not totals.labelled:
            raise InputError(f"nothing could be labelled: {unusable[0].file}: {unusable[0].why}")
        write_points(job.out / "points.csv", UsedPoints(records, totals.labelled))
        write_targets(job.out / "targets.csv", (records[stem] for stem in totals.labelled))
    # Of processes side by side the slowest is what one waits for.
    seconds = {stage: max(part.seconds[stage] for part in parts) for stage in parts[0].seconds}
    work = seconds["cluster"] + seconds["refine"]
    targets, trials = (sum(getattr(part, name) for part in parts) for name in ("targets", "trials"))
    summary = {
        "settings": job.settings(),
        "fingerprint": fingerprint,
        **provenance(device_name(ranks.device)),
        "processes": ranks.world,
        "shards": job.shards,
        "images": len(totals.labelled),
        "resumed_images": len(stems) - sum(part.images for part in parts),
        "targets": totals.targets,
        "estimated_categories": totals.estimated,
        "trials": totals.trials,
        "seconds": seconds,
        "confidence": totals.confidence(),
        "targets_per_s": targets / work if work > 0 else None,
        "trials_per_s": trials / seconds["cluster"] if seconds["cluster"] > 0 else None,
        "skipped": [asdict(item) for item in (*skipped, *unusable)],
    }
    close_run(LAYOUT, job.out, summary)
    return summary


def _without_points(job: LabelJob) -> list[Skipped]:
    """Images without a usable point, unless it was said already what is wrong with them."""
    reported = {stem_of(item.file) for item in job.skipped}
    return [
        Skipped(str(path), "it has no usable point label")
        for stem, path in job.images.items()
        if stem not in job.points and stem not in reported
    ]


class _Behind(NamedTuple):
    """An image that is labelled, and its files in the making; None without any."""

    record: Record
    files: "Future[tuple[Encoded, float]] | None"


class _Work:
    """A process's share of a job.

    Attributes:
        stages: Seconds of each stage.
        targets, trials: Done here.
        overlap: Whether a chunk is written, and the next one read, while another is labelled.
    """

    def __init__(self, job: LabelJob, ranks: Ranks, ends: Mapping[str, int]) -> None:
        """`ends`: number of each block that is this process's, by the stem of the block's last image."""
        self.job, self.ranks, self.ends = job, ranks, ends
        self.stages = Stages(STAGES)
        self.targets = self.trials = 0
        self.overlap = ranks.device.type in _OVERLAPPING
        self.block: list[tuple[Record, Encoded | None]] = []

    def run(self, stems: Sequence[str], journal: Journal, before: int) -> None:
        """Label these images; `before` of the job's were finished at the start."""
        behind: deque[list[_Behind]] = deque()
        with ExitStack() as stack:
            progress = stack.enter_context(self._progress(len(stems), before))
            files = ((stem, self.job.images[stem]) for stem in stems)
            reader = stack.enter_context(Reader(files, self.stages, self.overlap))
            pool = ThreadPoolExecutor(WORKERS, "write")
            stack.callback(pool.shutdown, cancel_futures=True)
            for chunk in reader.chunks():
                behind.append(self._label(chunk, pool))
                while len(behind) > self.overlap:
                    self._finish(behind.popleft(), journal, progress)
            while behind:
                self._finish(behind.popleft(), journal, progress)

    def _progress(self, share: int, before: int) -> Progress:
        """Rank 0 tells how far all are, by its own share."""
        return Progress("label", before + share * self.ranks.world, done=before, silent=not self.ranks.main)

    def _label(self, chunk: Sequence[Loaded], pool: ThreadPoolExecutor) -> list[_Behind]:
        """Label one chunk and have its files made."""
        job = self.job
        good = [(item.stem, item.image) for item in chunk if item.image is not None]
        stems, images = [stem for stem, _ in good], [image for _, image in good]
        with self.stages.timed("cluster"):
            points = [job.points[stem] for stem in stems]
            placed, problems = place_targets(images, points, stems, job.config, job.seed, self.ranks.device)
            groups = cluster_targets(images, placed, job.config, self.ranks.device)
            synchronize(self.ranks.device)
        with self.stages.timed("refine"):
            targets = refine_targets(placed, groups, job.config)
        of_image = dict(zip(stems, by_image(targets, len(stems)), strict=True))
        reasons: dict[str, list[str]] = {stem: [] for stem in stems}
        for problem in problems:
            reasons[problem.file].append(problem.why)
        labelled = []
        for item in chunk:
            if item.image is None:
                labelled.append(_Behind(Record(item.stem, None, [item.problem]), None))
                continue
            own, why = of_image[item.stem], reasons[item.stem]
            if not own and job.points[item.stem]:
                labelled.append(_Behind(Record(item.stem, None, why), None))
                continue
            record = Record(item.stem, [t.point for t in own], why, [Facts.of(t) for t in own])
            labelled.append(_Behind(record, pool.submit(self._make, item.stem, item.image.shape[:2], own)))
        return labelled

    def _make(
        self, stem: str, shape: tuple[int, int], targets: Sequence[TargetMask]
    ) -> tuple[Encoded, float]:
        """The files of an image, written unless an archive is to hold them, and the seconds it took."""
        start = time.perf_counter()
        files = encode(stem, shape, targets)
        if not self.job.shards:
            write_files(self.job.out, files)
        return files, time.perf_counter() - start

    def _finish(self, chunk: Sequence[_Behind], journal: Journal, progress: Progress) -> None:
        """Note the images of a chunk whose files are all there."""
        for record, future in chunk:
            files = None
            if future is not None:
                files, busy = future.result()
                self.stages.add("write", busy)
            self.block.append((record, files))
            self.targets += len(record.targets)
            self.trials += record.trials
            if record.image in self.ends:
                self._end_block(self.ends[record.image], journal)
        progress.advance(len(chunk) * self.ranks.world)

    def _end_block(self, number: int, journal: Journal) -> None:
        """Write the archive of a block, if it is to have one, and note its images."""
        files = [files for _, files in self.block if files is not None]
        if self.job.shards and files:
            with self.stages.timed("write"):
                write_shard(self.job.out, number, files)
        for record, _ in self.block:
            journal.append(record.noted())
        self.block.clear()
