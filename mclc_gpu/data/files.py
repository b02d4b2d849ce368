"""Atomic files, JSON, CSV, tar archives of PNG files, and reading by threads."""

import csv
import errno
import hashlib
import io
import json
import mmap
import os
import secrets
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

from mclc_gpu.errors import InputError

_RANDOM, _MARK = 8, ".tmp"  # number of random bytes in a temporary name, and what follows them


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all.

    The temporary path lies in the same folder (created when missing), because a rename is atomic only within
    one file system, and ends in the same suffix, because image writers choose the format by it; its name
    starts with a dot, so that no reader of the folder takes it for data. If several processes write the same
    `path`, each result is whole and the last to finish stays.

    Parameters
    ----------
    path : Path or str

    Yields
    ------
    Path
        Temporary path, which the block must create and close. It is renamed to `path` at the end of the
        block. If the block raises, it is removed and an older `path` stays as it was.

    Raises
    ------
    OSError
        The folder cannot be written, the disk is full or the block created nothing; names `path`, not the
        temporary file.
    """
    final = Path(path)
    temporary = final.with_name(f".{secrets.token_hex(_RANDOM)}{_MARK}{final.suffix}")
    try:
        if not final.parent.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        # Image writers raise OSError without a number.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(final)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder that no process writes to now."""
    for path in folder.rglob(f".{'[0-9a-f]' * 2 * _RANDOM}{_MARK}*"):
        path.unlink(missing_ok=True)


def package_version() -> str:
    """Return the version of the installed package; "checkout" without installation."""
    try:
        return version("mclc-gpu")
    except PackageNotFoundError:
        return "checkout"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    Parameters
    ----------
    path : Path
    remedy : str
        What the user can do about a damaged file, for the error message.

    Raises
    ------
    InputError
        The file holds no JSON object.
    OSError
        The file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object; {remedy}")
    return content


def write_csv(path: Path | str, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table atomically, row by row as `rows` yields them.

    Parameters
    ----------
    path : Path or str
    columns : sequence of str
        Header.
    rows : iterable of iterables
        Cells in the order of `columns`. None and NaN become empty cells; floats keep full precision.

    Raises
    ------
    OSError
        The file cannot be written; names `path`.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        # NaN alone differs from itself.
        table.writerows(["" if cell != cell else cell for cell in row] for row in rows)


def fingerprint_of(*content: Any) -> str:
    """Return a digest of JSON content, such as the settings and inputs that a run's output depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in content:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch_map(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Map a function over items by threads, in order and with bounded memory.

    Parameters
    ----------
    make : callable
        Called once per item, by one of up to 16 threads.
    items : iterable
        Consumed only as far as needed.

    Yields
    ------
    object
        Results in the order of `items`; at most one more than there are threads exist at a time. An
        exception of `make` is raised at the result's turn.
    """
    workers = min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # A caller that stops early, or an error, must not wait for results that nobody will use.
            for future in waiting:
                future.cancel()


ARCHIVE_SUFFIX = ".tar"
MASK_PART, TPM_PART = ".mask.png", ".tpm.png"  # follow an image's key in archives of labels
_KNOWN_ARCHIVES = 4096  # number of archives whose tables of members are kept in memory


def read_file(path: Path) -> bytes:
    """Read a file, or the member MEMBER of an archive ARCHIVE.tar at the path ARCHIVE.tar/MEMBER.

    Raises
    ------
    OSError
        The file cannot be read.
    InputError
        The archive cannot be read.
    """
    if not in_archive(path):
        return path.read_bytes()
    members = members_of(path.parent)
    if path.name not in members:
        raise FileNotFoundError(2, "No such file in the archive", str(path))
    offset, size = members[path.name]
    with path.parent.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def in_archive(path: Path) -> bool:
    """Return whether a path is that of a member of an archive."""
    return path.parent.suffix == ARCHIVE_SUFFIX and path.parent.is_file()


def is_file(path: Path) -> bool:
    """Return whether there is such a file, or such a member of an archive."""
    return path.name in members_of(path.parent) if in_archive(path) else path.is_file()


def members_of(archive: Path) -> dict[str, tuple[int, int]]:
    """Return the offset and size in bytes of each regular file in an archive, by its name without folders.

    Raises
    ------
    InputError
        The file is no uncompressed tar archive, or holds a name twice.
    """
    status = archive.stat()
    return _members(archive, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_KNOWN_ARCHIVES)
def _members(archive: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """Return `members_of` an archive as it was when it was last changed."""
    del changed, size
    try:
        return _table(archive)
    except (InputError, OSError):
        raise
    # tarfile raises nearly anything on damaged bytes (ValueError, OverflowError, ...), documented nowhere.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive}: no whole uncompressed tar archive ({reason}); make it again") from error


def _table(archive: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    # A memory map cannot be read beyond its end, whatever length a damaged header claims.
    with (
        archive.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        tarfile.open(fileobj=content, mode="r:") as tar,
    ):
        for member in tar:
            if member.size < 0 or member.offset_data + member.size > len(content):
                raise ValueError(f"{member.name!r} does not end in it")
            name = PurePosixPath(member.name).name
            if not member.isfile() or name.startswith("."):
                continue
            if name in found:
                raise InputError(f"{archive}: holds {name} twice; keep one")
            found[name] = member.offset_data, member.size
    return found


def write_archive(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, given as (name, content), into an archive atomically; equal files give equal bytes."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def key_of(stem: str) -> str:
    """Return an image's key in an archive, which a dot would end: its name with dots and slashes escaped."""
    return stem.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")


def stem_of_mask(name: str) -> str:
    """Return the stem of the image whose mask has this name in an archive."""
    return unquote(name.removesuffix(MASK_PART), errors="surrogateescape")
