"""What a label run notes of each image, and the tables it makes of that."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.points import Point
from mclc_gpu.labeling import TargetMask

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
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(TARGET_COLUMNS)
        for record in records:
            for number, (point, own) in enumerate(zip(record.points or (), record.targets, strict=True)):
                confidence = "" if own.confidence is None else own.confidence
                place = record.image, number, float(point.x), float(point.y), point.category
                rows.writerow([*place, int(own.estimated), own.area, confidence, own.trials])
