"""Files inside tar archives, addressed by paths: FOLDER/000001.tar/NAME is the member NAME of that archive.

A set too large for one file per image lies in archives as WebDataset has them: uncompressed, the files of one
image next to each other under one key, which is the image's name up to the first dot.
"""

import io
import mmap
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.errors import InputError

ARCHIVE_SUFFIX = ".tar"
MASK_PART, TPM_PART = ".mask.png", ".tpm.png"  # what follows an image's key in archives of labels
_ARCHIVES_KNOWN = 4096  # whose tables of members are kept in memory


def read_file(path: Path) -> bytes:
    """Content of a file, or of a member of an archive.

    Raises OSError for a file that cannot be read, InputError for an archive that cannot.
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
    """Whether a path is that of a member of an archive."""
    return path.parent.suffix == ARCHIVE_SUFFIX and path.parent.is_file()


def is_file(path: Path) -> bool:
    """Whether there is such a file, or such a member of an archive."""
    return path.name in members_of(path.parent) if in_archive(path) else path.is_file()


def members_of(archive: Path) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of each regular file in an archive, by its name without folders.

    Raises InputError for a file that is no uncompressed tar archive, or that holds a name twice.
    """
    status = archive.stat()
    return _members(archive, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_ARCHIVES_KNOWN)
def _members(archive: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """`members_of` an archive in one state of it."""
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
    # Of a map no more can be read than there is, whatever length a damaged header claims.
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
    """Write named files into an archive, which appears whole or not at all; equal files give equal bytes."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def key_of(stem: str) -> str:
    """An image's key in an archive: its stem, without the dots that would end the key."""
    return stem.replace("%", "%25").replace(".", "%2E")


def stem_of_mask(name: str) -> str:
    """The stem of the image whose mask has this name in an archive."""
    return unquote(name.removesuffix(MASK_PART), errors="surrogateescape")
