"""Output folders of long commands: lock, journal for resuming, summary, provenance and progress.

While a run is active, its folder holds a lock file and a journal with one line per finished image. A run that
was killed is resumed from its journal. When a run is complete, KIND.json takes the journal's place.
"""

import errno
import json
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

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

Record = dict[str, Any]  # JSON object that a journal holds for a finished image; its key "image" is the stem

_REMEDY = "use --overwrite or another --out"


@contextmanager
def locked(
    out: Path, kind: str, on_main: Callable[[Callable[[], None]], None] | None = None
) -> Iterator[None]:
    """Create a folder and hold an exclusive lock on it; the system releases the locks of dead processes.

    A process that holds the lock may acquire it again.

    Parameters
    ----------
    out : Path
    kind : str
        Kind of the run; runs of different kinds do not exclude each other.
    on_main : callable, optional
        Runs a function on rank 0 alone (`Ranks.on_main`), which then holds the lock for all processes.

    Raises
    ------
    InputError
        Another run is active in the folder, or the folder cannot be written.
    """
    # Only what takes locks needs the package: measurements on a GPU do without.
    from filelock import FileLock, Timeout

    path = out / f".{kind}.lock"
    lock = FileLock(path, timeout=0, is_singleton=True)

    def acquire() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            # An ending run may have removed the file between our opening and our locking it.
            while not path.exists():
                lock.release()
                lock.acquire()
        except Timeout:
            raise InputError(
                f"{out}: another {kind} run is active there; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise _unwritable(out, error) from error

    if on_main is None:
        acquire()
    else:
        on_main(acquire)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)  # before the release: a later run creates a new file
        lock.release()


def _unwritable(out: Path, error: OSError) -> InputError:
    return InputError(f"{out}: cannot be written ({error.strerror}); choose another --out")


def keep_apart(option: str, written: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise InputError if a command would write where one of its inputs lies.

    Parameters
    ----------
    option : str
        Option that names the output, such as "--out".
    written : iterable of Path
        Files and folders to be written, and folders in which a file is to be written.
    inputs : iterable of Path or None
        Input files and folders; None stands for an option that was not given.
    """
    places = {path.resolve() for path in written}
    for path in inputs:
        if path is not None and path.resolve() in places:
            raise InputError(f"{path}: is an input, and {option} would write there; choose another {option}")


@dataclass(frozen=True)
class RunLayout:
    """Files that one kind of run writes into its output folder.

    Attributes
    ----------
    kind : str
        Name of the command; KIND.json is the summary of a complete run.
    folders : tuple of str
        Folders of PNG files, one per image, or of archives.
    files : tuple of str
        Other files.
    """

    kind: str
    folders: tuple[str, ...]
    files: tuple[str, ...]

    def journal(self, out: Path, rank: int = 0) -> Path:
        """Return the path of one process's journal of an unfinished run."""
        return out / (f"{self.kind}.partial.{rank}.jsonl" if rank else f"{self.kind}.partial.jsonl")

    def journals(self, out: Path) -> list[Path]:
        """Return the paths of the journals of all processes, rank 0 first."""
        return [self.journal(out), *sorted(out.glob(f"{self.kind}.partial.*.jsonl"))]

    def summary(self, out: Path) -> Path:
        """Return the path of the summary of a complete run."""
        return out / f"{self.kind}.json"

    def places(self, out: Path) -> list[Path]:
        """Return the folder and the paths in it that a run writes, for `keep_apart`."""
        return [out, *(out / name for name in (*self.folders, *self.files))]


class JournalEntries(Mapping[str, Record]):
    """Records of finished images in journals, by image stem; the last record of an image counts.

    Only offsets into the files are kept in memory; the files must not change meanwhile.

    Parameters
    ----------
    paths : iterable of Path
        Journals; missing files are passed over.
    fingerprint : str
        Fingerprint of the run that the journals must belong to.

    Raises
    ------
    InputError
        A journal is damaged or belongs to another run. A torn last line is no damage: the run was killed
        while it wrote the line.
    """

    def __init__(self, paths: Iterable[Path], fingerprint: str) -> None:
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        with ExitStack() as stack:
            for path in paths:
                if path.exists():
                    self._index(path, stack.enter_context(path.open("rb")), fingerprint)
            self._open_files = stack.pop_all()

    def _index(self, path: Path, file: BinaryIO, fingerprint: str) -> None:
        offset = 0
        torn = False
        for number, line in enumerate(file):
            if torn:
                raise InputError(f"{path}: line {number} is damaged; {_REMEDY}")
            entry = decode_record(line)
            torn = entry is None
            if number == 0 and entry is not None and entry.get("fingerprint") != fingerprint:
                raise InputError(f"{path.parent}: was begun with other settings or inputs; {_REMEDY}")
            if number and entry is not None:
                self._places[entry["image"]] = file, offset
            offset += len(line)

    def line(self, stem: str) -> bytes:
        """Return the encoded record of an image."""
        file, offset = self._places[stem]
        file.seek(offset)
        return file.readline()

    def close(self) -> None:
        """Close the files."""
        self._open_files.close()

    def __enter__(self) -> "JournalEntries":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getitem__(self, stem: str) -> Record:
        record = decode_record(self.line(stem))
        assert record is not None  # it was whole when it was indexed
        return record

    def __contains__(self, stem: object) -> bool:
        return stem in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Journal:
    """Append-only file of one process with a record per finished image; a context manager.

    The first line holds the fingerprint of the run. Every line ends with a checksum, so that a line that a
    kill or a full disk cut short, and any later damage, is detected.

    Parameters
    ----------
    layout : RunLayout
    out : Path
        Folder of a run that `open_run` has started or resumed.
    fingerprint : str
        Digest of the settings and inputs, see `mclc_gpu.data.files.fingerprint_of`.
    rank : int
        Number of this process.
    """

    def __init__(self, layout: RunLayout, out: Path, fingerprint: str, rank: int = 0) -> None:
        self.path = layout.journal(out, rank)
        self.fingerprint = fingerprint
        self.file: int | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Append the record of a finished image; OSError, if any, names the journal."""
        assert self.file is not None
        line = encode_record(record)
        try:
            # Unbuffered: closing a buffered file would write again what has failed, and fail again.
            if os.write(self.file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __enter__(self) -> "Journal":
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if not os.fstat(self.file).st_size:
            self.append({"fingerprint": self.fingerprint})
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            os.close(self.file)


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of a journal, which ends with a checksum."""
    content = json.dumps(record).encode()
    return content + b"\t" + _checksum(content)


def decode_record(line: bytes) -> Record | None:
    """Return the record in a line of a journal; None if the line is damaged."""
    content, _, checksum = line.rpartition(b"\t")
    if not content or checksum != _checksum(content):
        return None
    record: Record = json.loads(content)
    return record


def _checksum(content: bytes) -> bytes:
    return b"%08x\n" % zlib.crc32(content)


def open_run(layout: RunLayout, out: Path, fingerprint: str, resume: bool, overwrite: bool) -> JournalEntries:
    """Start or resume a run in a folder, and merge the journals of all its processes into that of rank 0.

    Parameters
    ----------
    layout : RunLayout
    out : Path
        Created when missing.
    fingerprint : str
        Digest of the settings and inputs of the run.
    resume, overwrite : bool
        Continue, or remove, an earlier run in the folder.

    Returns
    -------
    JournalEntries
        Records of the images that are finished; to be closed.

    Raises
    ------
    InputError
        The folder cannot be written, or holds another run or files that no run wrote.
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
            # No run has this fingerprint: a folder that was cleared only in part cannot be resumed.
            _write_journal(path, "", ())
            _clear(layout, out)
        with JournalEntries(layout.journals(out) if resume else (), fingerprint) as entries:
            _write_journal(path, fingerprint, map(entries.line, entries))
        for merged in layout.journals(out)[1:]:
            merged.unlink()
        _remove_temporary(layout, out)
    except OSError as error:
        raise _unwritable(out, error) from error
    return JournalEntries([path], fingerprint)


def completed_run(layout: RunLayout, out: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the summary of the run if it is complete in this folder, else None.

    Raises
    ------
    InputError
        The complete run in the folder is another one, or its summary is damaged.
    """
    path = layout.summary(out)
    if layout.journal(out).exists() or not path.exists():
        return None
    summary = read_summary(path, _REMEDY)
    if "digest" not in summary:
        raise InputError(f"{path}: damaged, or of another version; {_REMEDY}")
    if summary.get("fingerprint") != fingerprint:
        raise InputError(f"{out}: holds a {layout.kind} run with other settings or inputs; {_REMEDY}")
    _remove_temporary(layout, out)  # the run may have been killed while its report was written
    return summary


def close_run(layout: RunLayout, out: Path, summary: dict[str, Any]) -> None:
    """Write the summary of a complete run, with a digest of it, and remove the journals."""
    summary["digest"] = _digest_of(summary)
    write_json(layout.summary(out), summary)
    # Rank 0's last: while it exists the run counts as unfinished, and the others are found.
    for path in reversed(layout.journals(out)):
        path.unlink(missing_ok=True)


def read_summary(path: Path, remedy: str) -> dict[str, Any]:
    """Read the summary of a complete run of this version or an earlier one.

    Raises
    ------
    InputError
        The file was changed since the run, or is damaged; see `mclc_gpu.data.files.read_json`.
    """
    summary = read_json(path, remedy)
    if "digest" in summary and summary["digest"] != _digest_of(summary):
        raise InputError(f"{path}: damaged, it was changed since the run; {remedy}")
    return summary


def _digest_of(summary: Mapping[str, Any]) -> str:
    return fingerprint_of({name: value for name, value in summary.items() if name != "digest"})


def _write_journal(path: Path, fingerprint: str, lines: Iterable[bytes]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(encode_record({"fingerprint": fingerprint}))
        file.writelines(lines)


def _refuse_foreign(layout: RunLayout, out: Path) -> None:
    """Raise InputError for files that no run wrote, such as true masks in a folder `masks`."""
    for path in layout.places(out)[1:]:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise InputError(
                f"{path}: was not written by a {layout.kind} run and stays; choose another --out"
            )


def _remove_temporary(layout: RunLayout, out: Path) -> None:
    """Remove the temporary files of killed processes."""
    for folder in (out, *(out / name for name in layout.folders)):
        remove_leftovers(folder)


def _clear(layout: RunLayout, out: Path) -> None:
    """Remove the files of an earlier run except the journal of rank 0."""
    for folder in layout.folders:
        for pattern in ("*.png", f"*{ARCHIVE_SUFFIX}"):
            for path in (out / folder).rglob(pattern):
                path.unlink()
    for path in (*(out / name for name in layout.files), layout.summary(out), *layout.journals(out)[1:]):
        path.unlink(missing_ok=True)


def provenance(device: str) -> dict[str, Any]:
    """Return the versions and the device's name, for the summary of a run."""
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
    """Progress on stderr: a bar on a terminal, else a line every ten seconds; a context manager.

    Parameters
    ----------
    what : str
        Name of the work.
    total : int
        Number of items.
    unit : str
        What an item is, singular.
    done : int
        Items that were finished before.
    silent : bool
        Show nothing.
    """

    def __init__(
        self, what: str, total: int, unit: str = "image", done: int = 0, silent: bool = False
    ) -> None:
        self.what, self.total, self.unit, self.count, self.silent = what, total, unit, done, silent
        shown = sys.stderr.isatty() and not silent
        self.bar = None
        if shown:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=what, unit=unit)
        self.last = time.monotonic()

    def advance(self, items: int, note: str = "") -> None:
        """Count `items` more; `note` is a short status to show, such as a loss."""
        self.count += items
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(items)
        elif not self.silent and time.monotonic() - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            line = f"{self.what}: {self.count} of {self.total} {self.unit}s"
            print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
