"""Output folders of long commands: lock, journal for resuming, provenance and progress."""

import errno
import json
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from tqdm import tqdm

from mclc_gpu.data.files import (
    ARCHIVE_SUFFIX,
    atomic_path,
    fingerprint_of,
    package_version,
    read_json,
    remove_leftovers,
    write_json,
)
from mclc_gpu.errors import InputError


@contextmanager
def locked(
    out: Path, kind: str, on_main: Callable[[Callable[[], None]], None] | None = None
) -> Iterator[None]:
    """Keep every other run of this kind out of a folder, which is made. The lock of a killed run is free.

    Whoever holds it may ask for it again. `on_main`: runs a function on the first
    of several processes, for all of which that one holds the lock (`Ranks.on_main`).

    Raises:
        InputError: Another run is at work in the folder, or it cannot be written.
    """
    path = out / f".{kind}.lock"
    lock = FileLock(path, timeout=0, is_singleton=True)

    def acquire() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            # The run before may have removed the file between our opening it and our locking it.
            while not path.exists():
                lock.release()
                lock.acquire()
        except Timeout:
            raise InputError(
                f"{out}: another {kind} run is at work there; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise unwritable(out, error) from error

    if on_main is None:
        acquire()
    else:
        on_main(acquire)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)  # while it is held: whoever comes later makes a new one
        lock.release()


def unwritable(out: Path, error: OSError) -> InputError:
    """What to say of an output folder that cannot be written."""
    return InputError(f"{out}: cannot be written ({error.strerror}); choose another --out")


_OTHERWISE = "use --overwrite or another --out"


@dataclass(frozen=True)
class Layout:
    """What one kind of run writes into its output folder.

    Attributes:
        kind: Name of the command; `kind`.json is the run's account.
        folders: Folders of PNG files, one per image, or of archives.
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


def read_account(path: Path, mend: str) -> dict[str, Any]:
    """What a finished run, of this version or an earlier one, wrote of itself.

    Raises InputError where that was changed since, and as `read_json` does.
    """
    account = read_json(path, mend)
    if "digest" in account and account["digest"] != _digest_of(account):
        raise InputError(f"{path}: damaged, it was changed since the run; {mend}")
    return account


class Noted(Mapping[str, dict[str, Any]]):
    """What journals noted of each finished image, by its stem, the last word on each.

    Only the places in the files are in memory. The files must stay as they were when this was made.
    """

    def __init__(self, paths: Iterable[Path], fingerprint: str) -> None:
        """Raises InputError for journals of another run, and for damaged ones."""
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[int, int]] = {}
        try:
            for path in paths:
                if path.exists():
                    self._take(path, fingerprint)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> "Noted":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, path: Path, fingerprint: str) -> None:
        file = path.open("rb")
        self._files.append(file)
        offset = 0
        torn = False  # a torn last line belongs to an image that was not finished
        for number, line in enumerate(file):
            if torn:
                raise InputError(f"{path}: line {number} is damaged; use --overwrite or another --out")
            entry = _entry(line)
            torn = entry is None
            if number == 0 and entry is not None and entry.get("fingerprint") != fingerprint:
                raise InputError(
                    f"{path.parent}: was begun with other settings or inputs; "
                    "use --overwrite or another --out"
                )
            if number and entry is not None:
                self._places[entry["image"]] = len(self._files) - 1, offset
            offset += len(line)

    def line(self, stem: str) -> bytes:
        """What was noted, as it stands in the journal."""
        number, offset = self._places[stem]
        self._files[number].seek(offset)
        return self._files[number].readline()

    def __getitem__(self, stem: str) -> dict[str, Any]:
        noted = _entry(self.line(stem))
        assert noted is not None  # it was whole when its place was found
        return noted

    def __contains__(self, stem: object) -> bool:
        return stem in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Journal:
    """Appends a line per finished image; the first line is the fingerprint of the run.

    Every line ends with a checksum: what a kill or a full disk left of one is told from a whole one.
    """

    def __init__(self, layout: Layout, out: Path, fingerprint: str, rank: int = 0) -> None:
        """The journal of a process of a run that was opened."""
        self.path = layout.journal(out, rank)
        self.fingerprint = fingerprint
        self.file: int | None = None

    @staticmethod
    def open(layout: Layout, out: Path, fingerprint: str, resume: bool, overwrite: bool) -> Noted:
        """Start or take up a run in a folder; what all its processes noted goes into the first one's journal.

        Returns:
            What was noted of each finished image; a record is a dict with the key "image". To be closed.

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
            if overwrite:
                # Of no run: whoever resumes what is half cleared is told so.
                _write(path, "", ())
                _clear(layout, out)
            with Noted(layout.journals(out) if resume else (), fingerprint) as noted:
                _write(path, fingerprint, map(noted.line, noted))
            for merged in layout.journals(out)[1:]:
                merged.unlink()
            _tidy(layout, out)
        except OSError as error:
            raise unwritable(out, error) from error
        return Noted([path], fingerprint)

    @staticmethod
    def completed(layout: Layout, out: Path, fingerprint: str) -> dict[str, Any] | None:
        """Summary of a run that is complete in this folder; None while there is none.

        Raises:
            InputError: The complete run is another one, or its account is damaged.
        """
        path = layout.summary(out)
        if layout.journal(out).exists() or not path.exists():
            return None
        summary = read_account(path, _OTHERWISE)
        if "digest" not in summary:
            raise InputError(f"{path}: damaged, or of another version; {_OTHERWISE}")
        if summary.get("fingerprint") != fingerprint:
            raise InputError(
                f"{out}: holds a {layout.kind} run with other settings or inputs; "
                "use --overwrite or another --out"
            )
        _tidy(layout, out)  # it may have been killed while it was reported on
        return summary

    def append(self, record: Mapping[str, Any]) -> None:
        """Note an image. Raises OSError that names the journal."""
        assert self.file is not None
        line = _line(record)
        try:
            # Not through a buffer, which would try again what failed, and fail, when it is closed.
            if os.write(self.file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __enter__(self) -> "Journal":
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if not os.fstat(self.file).st_size:
            self.append({"fingerprint": self.fingerprint})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            os.close(self.file)


def close_run(layout: Layout, out: Path, summary: dict[str, Any]) -> None:
    """Write the account of a run that is finished, and remove its journals."""
    summary["digest"] = _digest_of(summary)
    write_json(layout.summary(out), summary)
    # The first one last: while it is there the run counts as unfinished, and the others are found.
    for path in reversed(layout.journals(out)):
        path.unlink(missing_ok=True)


def _digest_of(summary: Mapping[str, Any]) -> str:
    """By which a damaged account is told from a whole one."""
    return fingerprint_of({name: value for name, value in summary.items() if name != "digest"})


def _write(path: Path, fingerprint: str, lines: Iterable[bytes]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_line({"fingerprint": fingerprint}))
        file.writelines(lines)


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line of a journal says; None when it is damaged."""
    content, _, check = line.rpartition(b"\t")
    if not content or check != _check(content):
        return None
    entry: dict[str, Any] = json.loads(content)
    return entry


def _line(entry: Mapping[str, Any]) -> bytes:
    content = json.dumps(entry).encode()
    return content + b"\t" + _check(content)


def _check(content: bytes) -> bytes:
    return b"%08x\n" % zlib.crc32(content)


def _refuse_foreign(layout: Layout, out: Path) -> None:
    """Someone's true masks may lie in a folder `masks` as well."""
    for name in (*layout.folders, *layout.files):
        path = out / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise InputError(
                f"{path}: was not written by a {layout.kind} run and stays; choose another --out"
            )


def _tidy(layout: Layout, out: Path) -> None:
    """Remove what killed processes left."""
    for folder in (out, *(out / name for name in layout.folders)):
        remove_leftovers(folder)


def _clear(layout: Layout, out: Path) -> None:
    """Remove an earlier run's files, but for the first process's journal."""
    for folder in layout.folders:
        for pattern in ("*.png", f"*{ARCHIVE_SUFFIX}"):
            for path in (out / folder).glob(pattern):
                path.unlink()
    for path in (*(out / name for name in layout.files), layout.summary(out), *layout.journals(out)[1:]):
        path.unlink(missing_ok=True)


def provenance(device: str) -> dict[str, Any]:
    """Versions, and the name of the device, for the JSON file that a run leaves behind."""
    return {
        "version": package_version(),
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "numpy": version("numpy"),
        },
        "device": device,
    }


_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts items to stderr; a context manager. `done` of `total` items are behind us at the start."""

    def __init__(
        self, what: str, total: int, unit: str = "image", done: int = 0, silent: bool = False
    ) -> None:
        self.what, self.total, self.unit, self.count, self.silent = what, total, unit, done, silent
        shown = sys.stderr.isatty() and not silent
        self.bar = tqdm(total=total, initial=done, desc=what, unit=unit) if shown else None
        self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def advance(self, items: int, note: str = "") -> None:
        """Count `items` more; `note` tells how it goes."""
        self.count += items
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(items)
        elif not self.silent and time.monotonic() - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            line = f"{self.what}: {self.count} of {self.total} {self.unit}s"
            print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
