"""The folder of a label run: masks, TPMs, tables and summary, written and read."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import (
    ARCHIVE_SUFFIX,
    MASK_PART,
    TPM_PART,
    atomic_path,
    key_of,
    write_archive,
    write_csv,
)
from mclc_gpu.data.images import find_files, read_image
from mclc_gpu.data.points import load_points
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import MAX_WINDOW
from mclc_gpu.labels.pipeline import TargetMask, compose
from mclc_gpu.labels.windows import Window, around, place_window
from mclc_gpu.runs import RunLayout, read_summary

TPM_ONE = 65535  # value of probability 1 in the 16-bit TPM files
MASKS, TPMS, SHARDS = "masks", "tpm", "shards"  # folders of a run
_COMPRESSION = 1  # half the time of PNG's default, and files of about a kilobyte all the same


@dataclass(frozen=True, slots=True)
class Encoded:
    """The files of one image, as bytes."""

    stem: str
    mask: bytes
    tpm: bytes


def encode(stem: str, shape: tuple[int, int], targets: Sequence[TargetMask]) -> Encoded:
    """Mask (8 bit, 0 or 255) and TPM (16 bit, 65535 is probability 1) of one image [H, W] as PNG files."""
    mask, tpm = compose(shape, targets)
    return Encoded(stem, _png(mask.astype(np.uint8) * 255), _png(np.round(tpm * TPM_ONE).astype(np.uint16)))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def read_tpm(path: Path) -> np.ndarray:
    """A TPM file as float32 [H, W] in 0..1. Raises InputError for a file that is not one."""
    tpm = read_image(path)
    if tpm.ndim != 2 or tpm.dtype != np.uint16:
        raise InputError(f"{path}: not a TPM; expected a 16-bit gray PNG")
    return tpm.astype(np.float32) / TPM_ONE


@dataclass(frozen=True)
class LabelStore:
    """The masks and TPMs of a run, by the stems of its images.

    Attributes:
        out: Folder of the run.
        archived: Paths of the masks in its archives; None where each image has files of its own.
    """

    out: Path
    archived: Mapping[str, Path] | None = field(repr=False)

    @staticmethod
    def open(out: Path) -> "LabelStore":
        """The files of a run. Raises InputError for archives that cannot be read."""
        shards = out / SHARDS
        full = shards.is_dir() and any(shards.glob(f"*{ARCHIVE_SUFFIX}"))
        return LabelStore(out, find_files(shards) if full else None)

    def mask(self, stem: str) -> Path:
        """The mask of an image: 8 bit, 0 or 255."""
        if self.archived is None:
            return mask_path(self.out, stem)
        return self.archived.get(stem, self.out / SHARDS / (key_of(stem) + MASK_PART))

    def tpm(self, stem: str) -> Path:
        """The TPM of an image, see `read_tpm`."""
        if self.archived is None:
            return tpm_path(self.out, stem)
        mask = self.mask(stem)
        return mask.with_name(mask.name.removesuffix(MASK_PART) + TPM_PART)

    def masks(self) -> Mapping[str, Path]:
        """All masks. Raises InputError where there is none."""
        return find_files(self.out / MASKS) if self.archived is None else self.archived


def mask_path(out: Path, stem: str) -> Path:
    """Where a run without archives keeps an image's mask."""
    return out / MASKS / f"{stem}.png"


def tpm_path(out: Path, stem: str) -> Path:
    """Where a run without archives keeps an image's TPM."""
    return out / TPMS / f"{stem}.png"


def shard_path(out: Path, number: int) -> Path:
    """The archive of that number, from 0."""
    return out / SHARDS / f"{number:06d}{ARCHIVE_SUFFIX}"


def write_files(out: Path, files: Encoded) -> None:
    """Write the files of one image, each atomically."""
    for path, content in ((tpm_path(out, files.stem), files.tpm), (mask_path(out, files.stem), files.mask)):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def write_shard(out: Path, number: int, images: Sequence[Encoded]) -> None:
    """Write the files of some images into one archive, atomically."""
    members = [
        (key_of(files.stem) + part, content)
        for files in images
        for part, content in ((MASK_PART, files.mask), (TPM_PART, files.tpm))
    ]
    write_archive(shard_path(out, number), members)


LAYOUT = RunLayout(
    "label", (MASKS, TPMS, SHARDS), ("points.csv", "targets.csv", "overview.png", "report.html")
)

TARGET_COLUMNS = ("image", "target", "x", "y", "category", "estimated", "area", "confidence", "trials")
LOW_CONFIDENCE = 0.6


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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

    def noted(self) -> dict[str, Any]:
        """The record as a journal notes it."""
        return asdict(self)

    @staticmethod
    def of(noted: Mapping[str, Any]) -> "Record":
        """The record that a journal noted."""
        points = None if noted["points"] is None else [Point(**point) for point in noted["points"]]
        return Record(**{**noted, "points": points, "targets": [Facts(**own) for own in noted["targets"]]})


class Records(Mapping[str, Record]):
    """Records of some images in a given order, made anew from what was noted whenever one is asked for."""

    def __init__(self, stems: Sequence[str], noted: Mapping[str, Mapping[str, Any]]) -> None:
        self.stems, self.noted = stems, noted

    def __getitem__(self, stem: str) -> Record:
        return Record.of(self.noted[stem])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stems)

    def __len__(self) -> int:
        return len(self.stems)


class UsedPoints(Mapping[str, list[Point]]):
    """The points that were used, by the stem of their image; images that could not be used have none."""

    def __init__(self, records: Records, labelled: Sequence[str]) -> None:
        self.records, self.labelled = records, labelled

    def __getitem__(self, stem: str) -> list[Point]:
        return list(self.records[stem].points or ())

    def __iter__(self) -> Iterator[str]:
        return iter(self.labelled)

    def __len__(self) -> int:
        return len(self.labelled)


@dataclass
class Totals:
    """Sums over the records of a run.

    Attributes:
        labelled: Stems of the images that could be used.
        skipped: (stem, why) of every image and target that could not.
        targets, trials, estimated: Targets, their trials, and those whose category was estimated.
        known, sum, low: Targets of known confidence, the sum of it, and those below `LOW_CONFIDENCE`.
    """

    labelled: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    targets: int = 0
    trials: int = 0
    estimated: int = 0
    known: int = 0
    sum: float = 0.0
    low: int = 0

    @staticmethod
    def of(records: Iterable[Record]) -> "Totals":
        """Of some records."""
        totals = Totals()
        for record in records:
            totals.add(record)
        return totals

    def add(self, record: Record) -> None:
        """Count one image."""
        self.skipped += [(record.image, why) for why in record.skipped]
        if record.points is None:
            return
        self.labelled.append(record.image)
        self.targets += len(record.points)
        self.trials += record.trials
        for own in record.targets:
            self.estimated += own.estimated
            if own.confidence is not None:
                self.known += 1
                self.sum += own.confidence
                self.low += own.confidence < LOW_CONFIDENCE

    def confidence(self) -> dict[str, float] | None:
        """The targets' confidence in brief; None from makers that have none."""
        return {"mean": self.sum / self.known, f"below_{LOW_CONFIDENCE:g}": self.low} if self.known else None


def write_targets(path: Path, records: Iterable[Record]) -> None:
    """A row of facts for every target, in the order of points.csv."""

    def rows() -> Iterator[tuple[object, ...]]:
        for record in records:
            for number, (point, own) in enumerate(zip(record.points or (), record.targets, strict=True)):
                place = record.image, number, float(point.x), float(point.y), point.category
                yield (*place, int(own.estimated), own.area, own.confidence, own.trials)

    write_csv(path, TARGET_COLUMNS, rows())


_LONGEST = 1e12  # seconds of a run; a damaged number may have thousands of digits


class Row(NamedTuple):
    """What targets.csv says of a target beside its point; the confidence is NaN where there is none."""

    estimated: bool
    confidence: float


@dataclass(frozen=True)
class LabelFiles:
    """A finished label run as it lies on disk, of this version or an earlier one.

    Attributes:
        folder: Of the run.
        summary: Its label.json.
        seed: Its seed.
        radius: Of its windows, where all are alike.
        points: Targets of every image.
        rows: Facts of the same targets; empty for a run without targets.csv.
        store: Its masks and TPMs.
    """

    folder: Path
    summary: dict[str, Any]
    seed: int
    radius: int | None
    points: dict[str, list[Point]]
    rows: dict[str, list[Row]]
    store: LabelStore

    def window(self, stem: str, index: int, shape: tuple[int, int]) -> Window:
        """Where a target was labelled in its image of this (height, width)."""
        point = self.points[stem][index]
        if self.radius is not None:
            return around(*shape, point, self.radius)
        return place_window(*shape, point, self.seed, stem, index)


def open_labels(folder: Path) -> LabelFiles:
    """Open a finished label run. Raises InputError when the folder holds none, or files that do not fit."""
    path = LAYOUT.summary(folder)
    try:
        summary = read_summary(path, "label again")
    except OSError as error:
        raise InputError(
            f"{folder}: holds no finished label run ({path.name}: {error.strerror}); give the --out of label"
        ) from error
    if not _is_account(summary):
        raise InputError(f"{path}: not as a label run writes it; label again")
    seed, radius = seed_of(summary, path), _radius_of(summary["settings"], path)
    points = load_points(folder / "points.csv")
    rows = _read_rows(folder / "targets.csv", points)
    return LabelFiles(folder, summary, seed, radius, points, rows, LabelStore.open(folder))


def _is_account(summary: Mapping[str, Any]) -> bool:
    """Whether what a report says of a run is there in its form, or not at all."""
    kinds = {"trials": int, "estimated_categories": int, "skipped": list, "seconds": dict}
    if not all(isinstance(summary.get(name, kind()), kind) for name, kind in kinds.items()):
        return False
    seconds, skipped = summary.get("seconds"), summary.get("skipped", ())
    if seconds is not None and not all(
        isinstance(seconds.get(name), int | float) and abs(seconds[name]) < _LONGEST
        for name in ("total", "startup")
    ):
        return False
    return all(
        isinstance(item, dict)
        and item.keys() == {"file", "why"}
        and all(isinstance(text, str) for text in item.values())
        for item in skipped
    )


def seed_of(summary: Mapping[str, Any], path: Path) -> int:
    """The seed of a run by its label.json. Raises InputError where that holds none."""
    settings = summary.get("settings")
    seed = settings.get("seed") if isinstance(settings, dict) else None
    if not isinstance(seed, int):
        raise InputError(f"{path}: does not hold a label run's settings; label again")
    return seed


def _radius_of(settings: Mapping[str, Any], path: Path) -> int | None:
    if settings.get("maker") != "components":
        return None
    components = settings.get("components")
    radius = components.get("radius") if isinstance(components, dict) else None
    if not isinstance(radius, int) or not 0 < radius <= MAX_WINDOW:
        raise InputError(f"{path}: does not hold the radius of the run's windows; label again")
    return radius


def _read_rows(path: Path, points: Mapping[str, Sequence[Point]]) -> dict[str, list[Row]]:
    """Rows of targets.csv by image; none when there is no such file."""
    rows: dict[str, list[Row]] = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for line in csv.DictReader(file):
                row = Row(line["estimated"] == "1", float(line["confidence"] or "nan"))
                rows.setdefault(line["image"], []).append(row)
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of targets ({error!r}); label again") from error
    wrong = [stem for stem, own in points.items() if len(rows.get(stem, ())) != len(own)]
    if wrong:
        raise InputError(f"{path}: does not fit points.csv ({wrong[0]}); label again")
    return rows
