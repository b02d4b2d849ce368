"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there becomes `path` when the block ends well.

    The block must create the file and close it. When the block raises, the temporary file is removed and an
    older `path` stays as it was. The temporary path lies in the same folder (created when missing), because a
    rename is atomic only within one file system, and ends in the same suffix, because image writers choose
    the format by it; its name starts with a dot, so that no reader of the folder takes it for data. Several
    processes may write the same `path`: each result is whole, the last to finish stays. Raises OSError when
    the folder cannot be written or the block created nothing.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{secrets.token_hex(8)}.tmp{final.suffix}")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
