"""Files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RANDOM, _MARK = 8, ".tmp"  # random bytes in a temporary name, and what follows them


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there becomes `path` when the block ends well.

    The block must create the file and close it. When the block raises, the temporary file is removed and an
    older `path` stays as it was. The temporary path lies in the same folder (created when missing), because a
    rename is atomic only within one file system, and ends in the same suffix, because image writers choose
    the format by it; its name starts with a dot, so that no reader of the folder takes it for data. Several
    processes may write the same `path`: each result is whole, the last to finish stays. Raises OSError that
    names `path`, not the temporary file, when the folder cannot be written, the disk is full or the block
    created nothing.
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
        # Image writers raise it without a number.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(final)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `atomic_path` in a folder that no process writes to now."""
    for path in folder.glob(f".{'[0-9a-f]' * 2 * _RANDOM}{_MARK}*"):
        path.unlink(missing_ok=True)
