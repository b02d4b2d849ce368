"""The stream of a bulk labelling run: files are read ahead, labelled in chunks, and written behind.

With a GPU three things go on at once: threads read and decode the next chunk of images, the device labels
one, and threads encode and write the one before. On the CPU each of the three has all cores in turn: together
they would only take the cores from each other. What is in memory is bounded by the chunks, whatever the size
of the data set.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mclc_gpu.data.images import read_image
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError

_CHUNK_BYTES = 64 << 20
_CHUNK_IMAGES = 256
WORKERS = min(os.cpu_count() or 1, 32)  # threads that read, and as many that write


@dataclass(frozen=True)
class Loaded:
    """One image as it was read; None with the problem where it could not be."""

    stem: str
    image: np.ndarray | None
    problem: str = ""

    @property
    def bytes(self) -> int:
        return 0 if self.image is None else self.image.nbytes


class Stages:
    """Seconds of each stage.

    Those of work done by threads count by the share of the stage's threads that were at it, so that each
    stage's is the wall clock it would take alone. Stages overlap: together they may exceed the total.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time what this thread does."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def add(self, stage: str, busy: float) -> None:
        """Count the seconds of one thread among `WORKERS`."""
        self.seconds[stage] += busy / WORKERS


class Reader:
    """Reads images by threads, for whoever iterates over the chunks; a context manager."""

    def __init__(self, files: Iterable[tuple[str, Path]], stages: Stages, ahead: bool) -> None:
        """`files`: stem and path of each image, in order. `ahead`: read on while a chunk is used."""
        self.files, self.stages, self.ahead = iter(files), stages, ahead
        self.pool = ThreadPoolExecutor(WORKERS, "read")
        self.waiting: deque[Future[tuple[Loaded, float]]] = deque()
        self.mean = 0.0  # bytes of an image, of those read lately
        self.asked, self.taken = 0, 0  # images that were asked for, and handed on
        self.held = 0  # bytes of images that were read and not handed on
        self.changed = threading.Condition()
        self.closed = False

    def chunks(self) -> Iterator[list[Loaded]]:
        """Images in order, in chunks of bounded size."""
        chunk: list[Loaded] = []
        size = 0
        while True:
            self._fill(0 if self.ahead else len(chunk))
            if not self.waiting:
                break
            loaded, busy = self.waiting.popleft().result()
            with self.changed:
                self.held -= loaded.bytes
                self.taken += 1
                self.changed.notify_all()
            self.stages.add("read", busy)
            self.mean += (loaded.bytes - self.mean) / min(len(chunk) + 1, _CHUNK_IMAGES)
            chunk.append(loaded)
            size += loaded.bytes
            if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_IMAGES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _fill(self, read: int) -> None:
        """Ask for a chunk of images, by what the last ones took, less those that were `read` already."""
        chunk = min(_CHUNK_IMAGES, int(_CHUNK_BYTES / self.mean)) if self.mean else WORKERS
        while len(self.waiting) < max(chunk - read, 1):
            following = next(self.files, None)
            if following is None:
                return
            self.waiting.append(self.pool.submit(self._read, self.asked, *following))
            self.asked += 1

    def _read(self, number: int, stem: str, path: Path) -> tuple[Loaded, float]:
        """Read one image, once there is room: those that were asked for may be larger than those before."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self.held < _CHUNK_BYTES or number == self.taken or self.closed
                )  # the next one in any case
            )
        loaded, busy = _read(stem, path)
        with self.changed:
            self.held += loaded.bytes
        return loaded, busy

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.pool.shutdown(cancel_futures=True)


def _read(stem: str, path: Path) -> tuple[Loaded, float]:
    start = time.perf_counter()
    try:
        loaded = Loaded(stem, read_image(path))
    except InputError as error:
        loaded = Loaded(stem, None, Skipped.because(path, error).why)
    return loaded, time.perf_counter() - start
