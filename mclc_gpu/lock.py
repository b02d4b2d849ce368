"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mclc_gpu.errors import InputError

if TYPE_CHECKING:  # it imports PyTorch, which scores do without
    from mclc_gpu.distributed import Ranks


@contextmanager
def locked(out: Path, kind: str, ranks: "Ranks | None" = None) -> Iterator[None]:
    """Keep every other run of this kind out of a folder, which is made. The lock of a killed run is free.

    Whoever holds it may ask for it again. `ranks`: the processes of this run, for all of which the first
    holds the lock.

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

    if ranks is None:
        acquire()
    else:
        ranks.on_main(acquire)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)  # while it is held: whoever comes later makes a new one
        lock.release()


def unwritable(out: Path, error: OSError) -> InputError:
    """What to say of an output folder that cannot be written."""
    return InputError(f"{out}: cannot be written ({error.strerror}); choose another --out")
