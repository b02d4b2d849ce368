"""Labelling a whole folder: streamed in chunks of bounded memory, resumable, files written atomically."""

import csv
import io
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.images import read_image, stem_of
from mclc_gpu.data.points import Point, write_points
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.journal import Journal, Layout, close_run, fingerprint_of, write_json
from mclc_gpu.kernels.backend import pick_device, synchronize
from mclc_gpu.labelconfig import LabelConfig
from mclc_gpu.labeling import TargetMask, cluster_targets, compose, refine_targets, warm_up
from mclc_gpu.placing import place_targets
from mclc_gpu.progress import Progress
from mclc_gpu.provenance import provenance

TPM_ONE = 65535  # value of probability 1 in the 16-bit TPM files
_CHUNK_BYTES = 64 << 20
_CHUNK_IMAGES = 256
_BATCH = 16  # images read at once
_COMPRESSION = 1  # half the time of PNG's default, and files of about a kilobyte all the same
TARGET_COLUMNS = ("image", "target", "x", "y", "category", "estimated", "area", "confidence", "trials")
LOW_CONFIDENCE = 0.6
STAGES = ("read", "cluster", "refine", "write")
LAYOUT = Layout("label", ("masks", "tpm"), ("points.csv", "targets.csv", "overview.png", "report.html"))


@dataclass(frozen=True)
class Facts:
    """What a run knows of one target beside its point: see `TargetMask`; the area is that of its own mask."""

    estimated: bool
    area: int
    confidence: float | None
    trials: int

    @staticmethod
    def of(target: TargetMask) -> "Facts":
        """Facts of a labelled target."""
        confidence = None if math.isnan(target.confidence) else round(target.confidence, 6)
        return Facts(target.estimated, int(np.count_nonzero(target.mask)), confidence, target.trials)


@dataclass(frozen=True)
class Record:
    """One finished image: the points that were used (None: the image could not be), and what was left out.

    `targets` has the facts of every point.
    """

    image: str
    points: list[Point] | None
    skipped: list[str]
    targets: list[Facts] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """Of all targets."""
        return sum(target.trials for target in self.targets)

    @property
    def estimated(self) -> int:
        """Targets whose category was estimated."""
        return sum(target.estimated for target in self.targets)

    @staticmethod
    def of(noted: Mapping[str, Any]) -> "Record":
        """The record that a journal noted."""
        points = None if noted["points"] is None else [Point(**point) for point in noted["points"]]
        return Record(**{**noted, "points": points, "targets": [Facts(**own) for own in noted["targets"]]})


@dataclass
class LabelJob:
    """What to label and where to put it.

    Attributes:
        images: Image file of each stem to label, in order.
        points: Clicks of each stem; a stem without an entry is reported and left out.
        out: Output folder.
        config: Settings of the chain.
        seed: See `mclc_gpu.labeling.label_images`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: Go on where an interrupted run with the same settings stopped.
        overwrite: Replace an earlier run's output.
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
    source: str = "points"
    skipped: list[Skipped] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def settings(self) -> dict[str, Any]:
        """What a run's output depends on, besides the images and points."""
        return {"seed": self.seed, "points": self.source, **asdict(self.config)}


def mask_path(out: Path, stem: str) -> Path:
    """Where a label run keeps an image's mask (8 bit, 0 or 255)."""
    return out / "masks" / f"{stem}.png"


def tpm_path(out: Path, stem: str) -> Path:
    """Where a label run keeps an image's TPM (16 bit, 65535 is probability 1)."""
    return out / "tpm" / f"{stem}.png"


def read_tpm(path: Path) -> np.ndarray:
    """A TPM file as float32 [H, W] in 0..1. Raises InputError for a file that is not one."""
    tpm = read_image(path)
    if tpm.ndim != 2 or tpm.dtype != np.uint16:
        raise InputError(f"{path}: not a TPM; expected a 16-bit gray PNG")
    return tpm.astype(np.float32) / TPM_ONE


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
    ranks = ranks or Ranks(_device(job.device))
    stems = [stem for stem in job.images if stem in job.points]
    skipped = [*job.skipped, *_without_points(job)]
    if not stems:
        raise InputError(
            f"nothing to label: {skipped[0].file}: {skipped[0].why}" if skipped else "no images to label"
        )
    clicks = {stem: [astuple(point) for point in job.points[stem]] for stem in stems}
    fingerprint = fingerprint_of([job.settings(), clicks])
    complete = ranks.on_main(lambda: _completed(job, fingerprint))
    if complete is not None:
        return complete
    before = ranks.on_main(lambda: _finished(job, fingerprint))
    mine = ranks.share([stem for stem in stems if stem not in before])
    if mine:
        warm_up(job.config, ranks.device)
    work = _Work(job, ranks, {"startup": time.perf_counter() - job.started})
    with Journal(LAYOUT, job.out, fingerprint, ranks.rank) as journal:
        work.run(mine, journal, len(before))
    parts = ranks.gather((work.finished, work.seconds))
    return ranks.on_main(lambda: _close(job, fingerprint, ranks, stems, before, parts, skipped))


def _device(name: str) -> torch.device:
    try:
        return pick_device(name)
    except ValueError as error:
        raise InputError(str(error)) from error


def _completed(job: LabelJob, fingerprint: str) -> dict[str, Any] | None:
    return Journal.completed(LAYOUT, job.out, fingerprint) if job.resume else None


def _finished(job: LabelJob, fingerprint: str) -> dict[str, Record]:
    """Records of the images that need no more work: unusable ones, and those whose files are complete."""
    noted = Journal.open(LAYOUT, job.out, fingerprint, job.resume, job.overwrite)
    records = {stem: Record.of(entry) for stem, entry in noted.items()}
    return {
        stem: record
        for stem, record in records.items()
        if record.points is None or (mask_path(job.out, stem).exists() and tpm_path(job.out, stem).exists())
    }


def _close(
    job: LabelJob,
    fingerprint: str,
    ranks: Ranks,
    stems: Sequence[str],
    before: Mapping[str, Record],
    parts: Sequence[tuple[dict[str, Record], dict[str, float]]],
    skipped: Sequence[Skipped],
) -> dict[str, Any]:
    """Write points.csv and label.json from every process's part and what was finished before."""
    now = {stem: record for finished, _ in parts for stem, record in finished.items()}
    records = [now[stem] if stem in now else before[stem] for stem in stems]
    unusable = [Skipped(str(job.images[r.image]), why) for r in records for why in r.skipped]
    labelled = [r for r in records if r.points is not None]
    if not labelled:
        raise InputError(f"nothing could be labelled: {unusable[0].file}: {unusable[0].why}")
    write_points(job.out / "points.csv", {r.image: list(r.points or ()) for r in labelled})
    _write_targets(job.out / "targets.csv", labelled)
    # Of processes side by side the slowest is what one waits for.
    seconds = {stage: max(own[stage] for _, own in parts) for stage in parts[0][1]}
    trials_now = sum(record.trials for record in now.values())
    targets_now = sum(len(record.targets) for record in now.values())
    work = seconds["cluster"] + seconds["refine"]
    summary = {
        "settings": job.settings(),
        "fingerprint": fingerprint,
        **provenance(ranks.device),
        "processes": ranks.world,
        "images": len(labelled),
        "resumed_images": len(stems) - len(now),
        "targets": sum(len(r.points or ()) for r in labelled),
        "estimated_categories": sum(r.estimated for r in labelled),
        "trials": sum(r.trials for r in labelled),
        "seconds": seconds,
        "confidence": _confidence(labelled),
        "targets_per_s": targets_now / work if work > 0 else None,
        "trials_per_s": trials_now / seconds["cluster"] if seconds["cluster"] > 0 else None,
        "skipped": [asdict(item) for item in (*skipped, *unusable)],
    }
    write_json(LAYOUT.summary(job.out), summary)
    close_run(LAYOUT, job.out)
    return summary


def _write_targets(path: Path, records: Sequence[Record]) -> None:
    """A row of facts for every target, in the order of points.csv."""
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(TARGET_COLUMNS)
    for record in records:
        for number, (point, own) in enumerate(zip(record.points or (), record.targets, strict=True)):
            confidence = "" if own.confidence is None else own.confidence
            place = record.image, number, float(point.x), float(point.y), point.category
            rows.writerow([*place, int(own.estimated), own.area, confidence, own.trials])
    with atomic_path(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")


def _confidence(records: Sequence[Record]) -> dict[str, float] | None:
    """The targets' confidence in brief; None from makers that have none."""
    known = [own.confidence for r in records for own in r.targets if own.confidence is not None]
    if not known:
        return None
    low = sum(confidence < LOW_CONFIDENCE for confidence in known)
    return {"mean": float(np.mean(known)), f"below_{LOW_CONFIDENCE:g}": low}


def _without_points(job: LabelJob) -> list[Skipped]:
    """Images without a usable point, unless it was said already what is wrong with them."""
    reported = {stem_of(item.file) for item in job.skipped}
    return [
        Skipped(str(path), "it has no usable point label")
        for stem, path in job.images.items()
        if stem not in job.points and stem not in reported
    ]


@dataclass
class _Loaded:
    stem: str
    image: np.ndarray | None
    problem: str = ""


def _load(job: LabelJob, stem: str) -> _Loaded:
    try:
        return _Loaded(stem, read_image(job.images[stem]))
    except InputError as error:
        return _Loaded(stem, None, Skipped.because(job.images[stem], error).why)


class _Work:
    """A process's share of a job: read, label and write, chunk by chunk.

    Attributes:
        finished: Record of every image done here.
        seconds: Wall clock of each stage.
    """

    def __init__(self, job: LabelJob, ranks: Ranks, seconds: dict[str, float]) -> None:
        self.job = job
        self.ranks = ranks
        self.finished: dict[str, Record] = {}
        self.seconds = {**seconds, **dict.fromkeys((*STAGES, "total"), 0.0)}

    def run(self, stems: Sequence[str], journal: Journal, before: int) -> None:
        """Label these images; `before` of the job's were finished at the start."""
        begin = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool, self._progress(len(stems), before) as progress:
            for chunk in self._chunks(stems, pool):
                for record in self._label(chunk, pool):
                    journal.append(asdict(record))
                    self.finished[record.image] = record
                progress.advance(len(chunk) * self.ranks.world)
        self.seconds["total"] = time.perf_counter() - begin

    def _progress(self, share: int, before: int) -> Progress:
        """Rank 0 tells how far all are, by its own share."""
        return Progress("label", before + share * self.ranks.world, done=before, silent=not self.ranks.main)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def _chunks(self, stems: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[list[_Loaded]]:
        """Images in chunks of bounded size; only a few more than a chunk are ever in memory."""
        waiting = iter(stems)
        chunk: list[_Loaded] = []
        size = 0
        while batch := list(islice(waiting, _BATCH)):
            with self._timed("read"):
                loaded = list(pool.map(lambda stem: _load(self.job, stem), batch))
            chunk += loaded
            size += sum(item.image.nbytes for item in loaded if item.image is not None)
            if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_IMAGES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _label(self, chunk: Sequence[_Loaded], pool: ThreadPoolExecutor) -> list[Record]:
        """Label and write one chunk; a record of every image of it."""
        job = self.job
        records = {item.stem: Record(item.stem, None, [item.problem]) for item in chunk if item.image is None}
        good = [(item.stem, item.image) for item in chunk if item.image is not None]
        stems, images = [stem for stem, _ in good], [image for _, image in good]
        with self._timed("cluster"):
            points = [job.points[stem] for stem in stems]
            placed, problems = place_targets(images, points, stems, job.config, job.seed, self.ranks.device)
            groups = cluster_targets(images, placed, job.config, self.ranks.device)
            synchronize(self.ranks.device)
        with self._timed("refine"):
            targets = refine_targets(placed, groups, job.config)
        of_image: list[list[TargetMask]] = [[] for _ in images]
        for target in targets:
            of_image[target.image].append(target)
        usable = [bool(own) or not job.points[stem] for stem, own in zip(stems, of_image, strict=True)]
        with self._timed("write"):
            written = np.flatnonzero(usable).tolist()
            list(pool.map(lambda i: _write(job.out, stems[i], images[i].shape[:2], of_image[i]), written))
        reasons: dict[str, list[str]] = {stem: [] for stem in stems}
        for problem in problems:
            reasons[problem.file].append(problem.why)
        for stem, own, well in zip(stems, of_image, usable, strict=True):
            used = [t.point for t in own] if well else None
            facts = [Facts.of(t) for t in own] if well else []
            records[stem] = Record(stem, used, reasons[stem], facts)
        return [records[item.stem] for item in chunk]


def _write(out: Path, stem: str, shape: tuple[int, int], targets: Sequence[TargetMask]) -> None:
    mask, tpm = compose(shape, targets)
    with atomic_path(tpm_path(out, stem)) as path:
        Image.fromarray(np.round(tpm * TPM_ONE).astype(np.uint16)).save(path, compress_level=_COMPRESSION)
    with atomic_path(mask_path(out, stem)) as path:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=_COMPRESSION)
