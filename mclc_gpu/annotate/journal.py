"""Append-only file of everything that annotators did in a folder; what is in it survives a kill."""

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mclc_gpu.errors import InputError
from mclc_gpu.runs import Record, decode_record, encode_record

JOURNAL = "annotate.jsonl"
_HEAD = {"format": "mclc-gpu annotate", "version": 1}


class EditJournal:
    """Journal of one folder: a line of JSON with a checksum for each record, on disk before `append` returns.

    A last line that a kill cut short is dropped when the file is opened; it was not confirmed to anybody.

    Parameters
    ----------
    out : Path
        Folder of the session, locked by this process.

    Raises
    ------
    InputError
        The file cannot be written, is damaged, or was written by another version.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            _sync_folder(out)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        self._size = 0
        self.records: list[Record] = []
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        """Read the records, and cut off a torn last line."""
        with self.path.open("rb") as file:
            lines = file.readlines()
        for number, line in enumerate(lines, 1):
            record = decode_record(line)
            if record is None:
                if number < len(lines):
                    raise InputError(
                        f"{self.path}: line {number} is damaged; restore the file, or choose another --out"
                    )
                break
            if number == 1 and record != _HEAD:
                raise InputError(f"{self.path}: written by another version; choose another --out")
            self._size += len(line)
            self.records.append(record)
        try:
            os.ftruncate(self._file, self._size)
            if not self._size:
                self.append([_HEAD])
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        del self.records[:1]

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records and wait until they are on disk; all of them or, where that fails, none.

        Raises
        ------
        OSError
            The disk is full or fails; names the journal.
        """
        content = b"".join(map(encode_record, records))
        try:
            view = memoryview(content)
            while view:
                written = os.write(self._file, view)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view = view[written:]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._size += len(content)

    def take(self) -> Iterator[Record]:
        """Yield the records that were in the file when it was opened, and forget them."""
        records, self.records = self.records, []
        yield from records

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
