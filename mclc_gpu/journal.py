"""The journal of a bulk run: what is finished, so that an interrupted run can be resumed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mclc_gpu.data.atomic import atomic_path, remove_leftovers
from mclc_gpu.errors import InputError


@dataclass(frozen=True)
class Layout:
    """What one kind of run writes into its output folder.

    Attributes:
        kind: Name of the command; `kind`.json is the run's account.
        folders: Folders of PNG files, one per image.
        files: Other files.
    """

    kind: str
    folders: tuple[str, ...]
    files: tuple[str, ...]

    def journal(self, out: Path, rank: int = 0) -> Path:
        """The journal of an unfinished run; of several processes each has its own, by its rank."""
        return out / (f"{self.kind}.partial.{rank}.jsonl" if rank else f"{self.kind}.partial.jsonl")

    def journals(self, out: Path) -> list[Path]:
        """The journals of all processes, rank 0's first."""
        return [self.journal(out), *sorted(out.glob(f"{self.kind}.partial.*.jsonl"))]

    def summary(self, out: Path) -> Path:
        """The account of a finished run."""
        return out / f"{self.kind}.json"

    def keep_apart(self, out: Path, inputs: Iterable[Path | None]) -> None:
        """Refuse inputs where a run writes: they would be overwritten, or hold its own files the next time.

        Raises:
            InputError: One of `inputs` (None: not given) is `out` or lies at one of its places.
        """
        here = out.resolve()
        written = {here, *(here / name for name in (*self.folders, *self.files))}
        for path in inputs:
            if path is not None and path.resolve() in written:
                raise InputError(f"{path}: lies where --out {out} writes; choose another --out")


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


def fingerprint_of(content: Any) -> str:
    """A digest of what a run's output depends on, but for the images' content; any JSON."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


class Journal:
    """Appends a line per finished image; the first line is the fingerprint of the run."""

    def __init__(self, layout: Layout, out: Path, fingerprint: str, rank: int = 0) -> None:
        """The journal of a process of a run that was opened."""
        self.path = layout.journal(out, rank)
        self.fingerprint = fingerprint
        self.file: TextIO | None = None

    @staticmethod
    def open(
        layout: Layout, out: Path, fingerprint: str, resume: bool, overwrite: bool
    ) -> dict[str, dict[str, Any]]:
        """Start or take up a run in a folder; what all its processes noted goes into the first one's journal.

        Returns:
            What was noted of each finished image, by its stem; a record is a dict with the key "image".

        Raises:
            InputError: The folder cannot be written, or holds another run or files that no run wrote.
        """
        path = layout.journal(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not (path.exists() or layout.summary(out).exists()):
                _refuse_foreign(layout, out)
            elif not (resume or overwrite):
                raise InputError(
                    f"{out}: holds an earlier {layout.kind} run; use --resume, --overwrite or another --out"
                )
            records: dict[str, dict[str, Any]] = {}
            for noted in layout.journals(out) if resume else ():
                records |= _read(noted, fingerprint, out) if noted.exists() else {}
            with atomic_path(path) as temporary:
                lines = [json.dumps({"fingerprint": fingerprint}), *map(json.dumps, records.values())]
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
            for noted in layout.journals(out)[1:]:
                noted.unlink()
            if overwrite:
                _clear(layout, out)
            for folder in (out, *(out / name for name in layout.folders)):
                folder.mkdir(exist_ok=True)
                remove_leftovers(folder)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
        return records

    @staticmethod
    def completed(layout: Layout, out: Path, fingerprint: str) -> dict[str, Any] | None:
        """Summary of a run that is complete in this folder; None while there is none.

        Raises:
            InputError: The complete run is another one.
        """
        if layout.journal(out).exists() or not layout.summary(out).exists():
            return None
        try:
            summary: dict[str, Any] = json.loads(layout.summary(out).read_text(encoding="utf-8"))
        except ValueError:
            return None
        if summary.get("fingerprint") != fingerprint:
            raise InputError(
                f"{out}: holds a {layout.kind} run with other settings or inputs; "
                "use --overwrite or another --out"
            )
        return summary

    def append(self, record: Mapping[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def __enter__(self) -> "Journal":
        self.file = self.path.open("a", encoding="utf-8")
        if not self.file.tell():
            self.append({"fingerprint": self.fingerprint})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()


def close_run(layout: Layout, out: Path) -> None:
    """Remove the journals of a run whose summary is written."""
    for path in layout.journals(out):
        path.unlink(missing_ok=True)


def _read(path: Path, fingerprint: str, out: Path) -> dict[str, dict[str, Any]]:
    """Records of a journal; a torn last line belongs to an image that was not finished."""
    records: dict[str, dict[str, Any]] = {}
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
                    f"{out}: was begun with other settings or inputs; use --overwrite or another --out"
                )
            continue
        records[entry["image"]] = entry
    return records


def _refuse_foreign(layout: Layout, out: Path) -> None:
    """Someone's true masks may lie in a folder `masks` as well."""
    for name in (*layout.folders, *layout.files):
        path = out / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise InputError(
                f"{path}: was not written by a {layout.kind} run and stays; choose another --out"
            )


def _clear(layout: Layout, out: Path) -> None:
    """Remove an earlier run's files, but for its journal."""
    for folder in layout.folders:
        for path in (out / folder).glob("*.png"):
            path.unlink()
    for path in (*(out / name for name in layout.files), layout.summary(out)):
        path.unlink(missing_ok=True)
