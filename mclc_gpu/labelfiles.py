"""A finished label run as it lies on disk, read for a look at all of its targets."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mclc_gpu.data.points import Point, load_points
from mclc_gpu.errors import InputError
from mclc_gpu.journal import read_account
from mclc_gpu.kernels.trials import MAX_WINDOW
from mclc_gpu.labelrun import LAYOUT
from mclc_gpu.labelstore import LabelStore
from mclc_gpu.windows import Window, around, place_window

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
        summary = read_account(path, "label again")
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
