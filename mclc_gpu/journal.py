"""The journal of a label run: what is finished, so that an interrupted run can be resumed."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mclc_gpu.data.atomic import atomic_path, remove_leftovers
from mclc_gpu.data.points import Point
from mclc_gpu.errors import InputError

JOURNAL = "label.partial.jsonl"
SUMMARY = "label.json"
FOLDERS = ("masks", "tpm")
FILES = ("points.csv", "overview.png")


@dataclass(frozen=True)
class Record:
    """One finished image: the points that were used (None: the image could not be), and what was left out."""

    image: str
    points: list[Point] | None
    skipped: list[str]
    trials: int = 0
    estimated: int = 0


def package_version() -> str:
    """Version of the installed package; "checkout" without installation."""
    try:
        return version("mclc-gpu")
    except PackageNotFoundError:
        return "checkout"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def fingerprint_of(settings: Mapping[str, Any], points: Mapping[str, Sequence[Point]]) -> str:
    """A digest of what a run's output depends on, but for the images' content."""
    text = json.dumps(
        [settings, {stem: [(p.x, p.y, p.category) for p in own] for stem, own in points.items()}]
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Journal:
    """Appends a line per finished image; the first line tells which settings and points the run has."""

    def __init__(self, path: Path, records: dict[str, Record], fingerprint: str) -> None:
        self.path = path
        self.records = records
        self.fingerprint = fingerprint
        self.file: TextIO | None = None

    @staticmethod
    def open(
        out: Path,
        settings: Mapping[str, Any],
        points: Mapping[str, Sequence[Point]],
        resume: bool,
        overwrite: bool,
    ) -> "Journal":
        """Start or take up a run in a folder.

        Raises:
            InputError: The folder cannot be written, or holds another run or files that no run wrote.
        """
        path, summary = out / JOURNAL, out / SUMMARY
        fingerprint = fingerprint_of(settings, points)
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not (path.exists() or summary.exists()):
                _refuse_foreign(out)
            elif not (resume or overwrite):
                raise InputError(
                    f"{out}: holds an earlier run's labels; use --resume, --overwrite or another --out"
                )
            records = _read(path, fingerprint, out) if resume and path.exists() else {}
            with atomic_path(path) as temporary:
                lines = [
                    json.dumps({"fingerprint": fingerprint}),
                    *(_line(record) for record in records.values()),
                ]
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
            if overwrite:
                _clear(out)
            for folder in (out, *(out / name for name in FOLDERS)):
                folder.mkdir(exist_ok=True)
                remove_leftovers(folder)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
        return Journal(path, records, fingerprint)

    @staticmethod
    def completed(
        out: Path, settings: Mapping[str, Any], points: Mapping[str, Sequence[Point]]
    ) -> dict[str, Any] | None:
        """Summary of a run that is complete in this folder; None while there is none.

        Raises:
            InputError: The complete run is another one.
        """
        if (out / JOURNAL).exists() or not (out / SUMMARY).exists():
            return None
        try:
            summary: dict[str, Any] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        except ValueError:
            return None
        if summary.get("fingerprint") != fingerprint_of(settings, points):
            raise InputError(
                f"{out}: holds labels of other settings or points; use --overwrite or another --out"
            )
        return summary

    def finished(self, complete: Callable[[str], bool]) -> dict[str, Record]:
        """Records of the images that need no more work: unusable ones, and those whose files are complete."""
        return {stem: r for stem, r in self.records.items() if r.points is None or complete(stem)}

    def append(self, record: Record) -> None:
        assert self.file is not None
        self.file.write(_line(record) + "\n")
        self.file.flush()

    def remove(self) -> None:
        self.path.unlink()

    def __enter__(self) -> "Journal":
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()


def _line(record: Record) -> str:
    return json.dumps(asdict(record))


def _read(path: Path, fingerprint: str, out: Path) -> dict[str, Record]:
    """Records of a journal; a torn last line belongs to an image that was not finished."""
    records: dict[str, Record] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            if number + 1 < len(lines):
                raise InputError(
                    f"{path}: line {number + 1} is damaged; use --overwrite or another --out"
                ) from None
            break
        if number == 0:
            if entry.get("fingerprint") != fingerprint:
                raise InputError(
                    f"{out}: was begun with other settings or points; use --overwrite or another --out"
                )
            continue
        points = None if entry["points"] is None else [Point(**point) for point in entry["points"]]
        records[entry["image"]] = Record(**{**entry, "points": points})
    return records


def _refuse_foreign(out: Path) -> None:
    """Someone's true masks may lie in a folder `masks` as well."""
    for name in (*FOLDERS, *FILES):
        path = out / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise InputError(f"{path}: was not written by a label run and stays; choose another --out")


def _clear(out: Path) -> None:
    """Remove an earlier run's files, but for its journal."""
    for folder in FOLDERS:
        for path in (out / folder).glob("*.png"):
            path.unlink()
    for name in (*FILES, SUMMARY):
        (out / name).unlink(missing_ok=True)
