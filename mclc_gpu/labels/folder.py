"""The folder of a label run: masks, TPMs, tables and summary, written and read."""

import csv
import io
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

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
from mclc_gpu.data.images import read_image
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import load_points, write_points
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.config import TPM_ONE
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.makers import window_of
from mclc_gpu.labels.pipeline import TargetMask, compose_levels
from mclc_gpu.labels.windows import Window
from mclc_gpu.runs import JournalEntries, RunLayout, read_summary

LOW_CONFIDENCE = 0.6
MASKS, TPMS, SHARDS = "masks", "tpm", "shards"
POINTS, TARGETS, OVERVIEW, REPORT = "points.csv", "targets.csv", "overview.png", "report.html"
LAYOUT = RunLayout("label", (MASKS, TPMS, SHARDS), (POINTS, TARGETS, OVERVIEW, REPORT))
TARGET_COLUMNS = ("image", "target", "x", "y", "category", "estimated", "area", "confidence", "trials")
CORRECTED = "corrected"  # column behind these where masks were corrected by hand

_COMPRESSION = 1  # half the time of PNG's default, and files of about a kilobyte all the same
_LONGEST = 1e12  # seconds of a run; a damaged number may have thousands of digits
_REMEDY = "label again"
_POINT = [item.name for item in fields(Point)]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Files of one image, as bytes."""

    stem: str
    mask: bytes
    tpm: bytes


def encode(stem: str, shape: tuple[int, int], targets: Sequence[TargetMask]) -> Encoded:
    """Encode the mask and the TPM of one image as PNG files.

    Parameters
    ----------
    stem : str
        Name of the image without suffix.
    shape : (int, int)
        Height and width of the image in pixels.
    targets : sequence of TargetMask
        Labels of the image's targets.

    Returns
    -------
    Encoded
        Mask of 8 bit, 0 or 255; TPM of 16 bit, in which 65535 is probability 1.
    """
    mask, levels = compose_levels(shape, targets)
    return Encoded(stem, _png(mask.view(np.uint8) * np.uint8(255)), _png(levels))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def read_tpm(path: Path) -> np.ndarray:
    """Read a TPM file: float32 [H, W] in 0..1. Raises InputError for a file that is none."""
    tpm = read_image(path)
    if tpm.ndim != 2 or tpm.dtype != np.uint16:
        raise InputError(f"{path}: not a TPM; expected a 16-bit gray PNG")
    return tpm.astype(np.float32) / TPM_ONE


def mask_path(out: Path, stem: str) -> Path:
    """Return the path of an image's mask in a run without archives."""
    return out / MASKS / f"{stem}.png"


def tpm_path(out: Path, stem: str) -> Path:
    """Return the path of an image's TPM in a run without archives."""
    return out / TPMS / f"{stem}.png"


def shard_path(out: Path, number: int) -> Path:
    """Return the path of an archive by its number, from 0."""
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


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One target of a label run, as points.csv and targets.csv have it.

    Attributes
    ----------
    point : Point
        With the category that was used.
    estimated : bool
        The category was estimated rather than given.
    area : int or None
        Pixels of the target's own mask; None in rows that were read from a folder.
    confidence : float
        Expected IoU 0..1 of the mask; NaN from makers that do not know it.
    trials : int or None
        Trials behind the TPM; None in rows that were read from a folder.
    corrected : bool
        The mask was corrected by hand.
    """

    point: Point
    estimated: bool
    area: int | None = None
    confidence: float = math.nan
    trials: int | None = None
    corrected: bool = False

    @staticmethod
    def of(target: TargetMask) -> "TargetRow":
        """Return the row of a labeled target."""
        area, confidence = int(np.count_nonzero(target.mask)), round(target.confidence, 6)
        facts = area, confidence, target.trials, target.corrected
        return TargetRow(target.point, target.estimated, *facts)


@dataclass(frozen=True, order=True, slots=True)
class Target:
    """Reference to a target of a run: its image, and its place among the image's points, from 0."""

    stem: str
    index: int

    def __str__(self) -> str:
        return f"{self.stem}:{self.index}"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """Outcome of one image, as the journal of a run holds it.

    Attributes
    ----------
    image : str
        Stem of the image.
    rows : list of TargetRow or None
        Labeled targets; None where the image could not be used.
    skipped : list of str
        Reasons for which the image or some of its targets were left out.
    """

    image: str
    rows: list[TargetRow] | None
    skipped: list[str]

    def journaled(self) -> dict[str, Any]:
        """Return the record as a line of the journal, JSON without NaN."""
        rows = self.rows or []
        facts = [
            {
                "estimated": row.estimated,
                "area": row.area,
                "confidence": None if math.isnan(row.confidence) else row.confidence,
                "trials": row.trials,
                **({CORRECTED: True} if row.corrected else {}),
            }
            for row in rows
        ]
        points = None
        if self.rows is not None:
            points = [{name: getattr(row.point, name) for name in _POINT} for row in rows]
        return {"image": self.image, "points": points, "skipped": self.skipped, "targets": facts}

    @staticmethod
    def of(line: Mapping[str, Any]) -> "ImageRecord":
        """Return the record of a line of the journal."""
        rows = None
        if line["points"] is not None:
            rows = [
                TargetRow(Point(**point), **{**facts, "confidence": _number(facts["confidence"])})
                for point, facts in zip(line["points"], line["targets"], strict=True)
            ]
        return ImageRecord(line["image"], rows, line["skipped"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


class JournaledRows(Mapping[str, list[TargetRow]]):
    """Targets of the labeled images by stem, read from the journal at each access; for threads too."""

    def __init__(self, stems: Sequence[str], journal: JournalEntries) -> None:
        self.stems, self._journal, self._lock = stems, journal, threading.Lock()

    def __getitem__(self, stem: str) -> list[TargetRow]:
        with self._lock:
            line = self._journal[stem]
        return ImageRecord.of(line).rows or []

    def __iter__(self) -> Iterator[str]:
        return iter(self.stems)

    def __len__(self) -> int:
        return len(self.stems)


@dataclass
class Totals:
    """Sums over the records of a run.

    Attributes
    ----------
    labeled : list of str
        Stems of the images that could be used.
    skipped : list of (str, str)
        Stem and reason of each image and target that could not.
    targets, trials, estimated : int
        Targets, their trials, and targets whose category was estimated.
    corrected : int
        Targets whose mask was corrected by hand.
    known, sum, low : int, float, int
        Targets of known confidence, the sum of it, and those below `LOW_CONFIDENCE`.
    """

    labeled: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    targets: int = 0
    trials: int = 0
    estimated: int = 0
    corrected: int = 0
    known: int = 0
    sum: float = 0.0
    low: int = 0

    def add(self, record: ImageRecord) -> None:
        """Count one image."""
        self.skipped += [(record.image, why) for why in record.skipped]
        if record.rows is None:
            return
        self.labeled.append(record.image)
        self.targets += len(record.rows)
        for row in record.rows:
            self.trials += row.trials or 0
            self.estimated += row.estimated
            self.corrected += row.corrected
            if not math.isnan(row.confidence):
                self.known += 1
                self.sum += row.confidence
                self.low += row.confidence < LOW_CONFIDENCE

    def confidence(self) -> dict[str, float] | None:
        """Return mean and number of low values of the confidence; None from makers that have none."""
        return {"mean": self.sum / self.known, f"below_{LOW_CONFIDENCE:g}": self.low} if self.known else None


def write_tables(out: Path, rows: Mapping[str, Sequence[TargetRow]], corrected: bool = False) -> None:
    """Write points.csv and targets.csv of a run, from its targets by the stem of their image.

    `corrected`: masks were corrected by hand, and a column says which.
    """

    def cells() -> Iterator[tuple[object, ...]]:
        for stem, own in rows.items():
            for number, row in enumerate(own):
                place = stem, number, float(row.point.x), float(row.point.y), row.point.category
                facts = int(row.estimated), row.area, row.confidence, row.trials
                yield (*place, *facts, int(row.corrected)) if corrected else (*place, *facts)

    write_points(out / POINTS, {stem: [row.point for row in own] for stem, own in rows.items()})
    write_csv(out / TARGETS, (*TARGET_COLUMNS, CORRECTED) if corrected else TARGET_COLUMNS, cells())


@dataclass
class LabelRun:
    """A finished label run, of this version or an earlier one.

    Attributes
    ----------
    folder : Path
        Output folder of the run.
    summary : dict
        Content of its label.json.
    images, truths : mapping of str to Path
        Images and true masks by stem, as far as they are known.
    """

    folder: Path
    summary: dict[str, Any]
    images: Mapping[str, Path] = field(default_factory=dict, repr=False)
    truths: Mapping[str, Path] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(
        folder: Path, images: Mapping[str, Path] | None = None, truths: Mapping[str, Path] | None = None
    ) -> "LabelRun":
        """Open a finished label run.

        Parameters
        ----------
        folder : Path
        images, truths : mapping of str to Path, optional
            Images and true masks by stem.

        Raises
        ------
        InputError
            The folder holds no finished run, or files that are damaged or do not fit each other.
        """
        path = LAYOUT.summary(folder)
        try:
            summary = read_summary(path, _REMEDY)
        except OSError as error:
            raise InputError(
                f"{folder}: holds no finished label run ({path.name}: {error.strerror}); "
                "give the --out of label"
            ) from error
        if not _is_summary(summary):
            raise InputError(f"{path}: not as a label run writes it; {_REMEDY}")
        run = LabelRun(folder, summary, images or {}, truths or {})
        _ = run.window_config, run.rows, run._archived  # fail here rather than at the first use
        return run

    @property
    def path(self) -> Path:
        """Path of label.json."""
        return LAYOUT.summary(self.folder)

    @property
    def title(self) -> str:
        """Numbers of the run and its label maker, for a heading."""
        title = f"{self.summary['images']} images, {self.summary['targets']} targets, {self.config.maker}"
        return title + (f", {self.config.trials} trials" if self.config.trials else "")

    @property
    def seed(self) -> int:
        """Random seed of the run."""
        seed: int = self.summary["settings"]["seed"]
        return seed

    @cached_property
    def config(self) -> LabelConfig:
        """Settings of the run. Raises InputError for those of another version."""
        try:
            return LabelConfig.from_settings(self.summary["settings"])
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    @cached_property
    def window_config(self) -> LabelConfig:
        """Settings of the run as far as this version knows them: those that its windows depend on."""
        try:
            return LabelConfig.from_earlier(self.summary["settings"])
        except InputError as error:
            raise InputError(f"{self.path}: {error}; {_REMEDY}") from error

    @cached_property
    def rows(self) -> Mapping[str, Sequence[TargetRow]]:
        """Targets of every labeled image by its stem, in the order of the run."""
        return _read_rows(self.folder, self.summary)

    def targets(self) -> Iterator[Target]:
        """Yield a reference to each target, in the order of the run."""
        for stem, own in self.rows.items():
            yield from (Target(stem, index) for index in range(len(own)))

    def windows(self, stem: str, shape: tuple[int, int]) -> list[Window]:
        """Return the windows in which the targets of an image of this (height, width) were labeled."""
        return [
            window_of(shape, row.point, self.window_config, self.seed, stem, index)
            for index, row in enumerate(self.rows[stem])
        ]

    @cached_property
    def _archived(self) -> Mapping[str, Path] | None:
        """Masks in the run's archives by stem; None where each image has files of its own."""
        shards = self.folder / SHARDS
        full = shards.is_dir() and any(shards.glob(f"*{ARCHIVE_SUFFIX}"))
        return find_files(shards) if full else None

    def mask(self, stem: str) -> Path:
        """Return the path of an image's mask: 8 bit, 0 or 255."""
        if self._archived is None:
            return mask_path(self.folder, stem)
        return self._archived.get(stem, self.folder / SHARDS / (key_of(stem) + MASK_PART))

    def tpm(self, stem: str) -> Path:
        """Return the path of an image's TPM, see `read_tpm`."""
        if self._archived is None:
            return tpm_path(self.folder, stem)
        mask = self.mask(stem)
        return mask.with_name(mask.name.removesuffix(MASK_PART) + TPM_PART)

    def masks(self) -> Mapping[str, Path]:
        """Return all masks by stem. Raises InputError where there is none."""
        return find_files(self.folder / MASKS) if self._archived is None else self._archived

    @property
    def skipped(self) -> list[Skipped]:
        """Inputs that the run left out."""
        return [Skipped(**item) for item in self.summary.get("skipped", ())]


def _is_summary(summary: Mapping[str, Any]) -> bool:
    """Check that what is read of label.json has its form; versions before may lack all but the settings."""
    settings = summary.get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("seed"), int):
        return False
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


def _read_rows(folder: Path, summary: Mapping[str, Any]) -> dict[str, list[TargetRow]]:
    """Read points.csv, and targets.csv where there is one (there was none at first)."""
    points = load_points(folder / POINTS)
    path = folder / TARGETS
    facts: dict[str, list[tuple[bool, float, bool]]] = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for line in csv.DictReader(file):
                own = line["estimated"] == "1", float(line["confidence"] or "nan"), line.get(CORRECTED) == "1"
                facts.setdefault(line["image"], []).append(own)
    except FileNotFoundError:
        estimated = summary.get("estimated_categories") != 0
        return {stem: [TargetRow(point, estimated) for point in own] for stem, own in points.items()}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of targets ({error!r}); {_REMEDY}") from error
    wrong = [stem for stem, own in points.items() if len(facts.get(stem, ())) != len(own)]
    if wrong:
        raise InputError(f"{path}: does not fit {POINTS} ({wrong[0]}); {_REMEDY}")
    return {
        stem: [
            TargetRow(point, estimated, confidence=confidence, corrected=by_hand)
            for point, (estimated, confidence, by_hand) in zip(of_image, facts.get(stem, ()), strict=True)
        ]
        for stem, of_image in points.items()
    }


def totals_of(records: Iterable[ImageRecord]) -> Totals:
    """Sum over the records of a run."""
    totals = Totals()
    for record in records:
        totals.add(record)
    return totals
