"""The journal of a bulk run: what is finished, so that an interrupted run can be resumed."""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mclc_gpu.data.archives import ARCHIVE_SUFFIX
from mclc_gpu.data.atomic import atomic_path, remove_leftovers
from mclc_gpu.errors import InputError
from mclc_gpu.lock import unwritable

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


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises InputError when it holds none, which says `mend`, and OSError when it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}); {mend}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object; {mend}")
    return content


def read_account(path: Path, mend: str) -> dict[str, Any]:
    """What a finished run, of this version or an earlier one, wrote of itself.

    Raises InputError where that was changed since, and as `read_json` does.
    """
    account = read_json(path, mend)
    if "digest" in account and account["digest"] != _digest_of(account):
        raise InputError(f"{path}: damaged, it was changed since the run; {mend}")
    return account


def fingerprint_of(*content: Any) -> str:
    """A digest of what a run's output depends on, but for the images' content; any JSON, in parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in content:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


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
