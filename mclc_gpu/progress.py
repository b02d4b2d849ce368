"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

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
