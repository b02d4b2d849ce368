"""Read the images of a data set by threads, in chunks of bounded memory, and time the stages of the work."""

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
from mclc_gpu.errors import Skipped, attempt

WORKERS = min(os.cpu_count() or 1, 32)  # threads that read, and as many that write


@dataclass(frozen=True)
class Loaded:
    """One image that was read; None with the problem where it could not be."""

    stem: str
    image: np.ndarray | None
    problem: str = ""

    @property
    def bytes(self) -> int:
        """Size of the pixels in memory."""
        return 0 if self.image is None else self.image.nbytes


class Stages:
    """Seconds of each stage.

    Work of threads counts by the share of the stage's threads that were busy: each stage has the wall-clock
    time that it would take alone. Stages overlap, so that together they may exceed the total.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time the work of this thread."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def add(self, stage: str, busy: float) -> None:
        """Count busy seconds of one thread among `WORKERS`."""
        self.seconds[stage] += busy / WORKERS


@dataclass(frozen=True)
class Chunks:
    """Bounds of the images that are labeled together. The labels do not depend on them.

    Attributes
    ----------
    images, bytes : int
        Number of images, and their decoded size, at which a chunk is complete.
    overlap : bool, optional
        Write a chunk and read the next one while another is labeled. Default: on CUDA devices, which label
        while this machine's cores read and write.
    """

    images: int = 256
    bytes: int = 64 << 20
    overlap: bool | None = None


CHUNKS = Chunks()


class Reader:
    """Threads that read images in chunks of bounded size; a context manager.

    Parameters
    ----------
    files : iterable of (str, Path)
        Stem and path of each image, in order.
    stages : Stages
        Takes the seconds of "read".
    prefetch : bool
        Read the next chunk while one is used.
    limits : Chunks, optional
    """

    def __init__(
        self,
        files: Iterable[tuple[str, Path]],
        stages: Stages,
        prefetch: bool,
        limits: Chunks = CHUNKS,
    ) -> None:
        self.files, self.stages, self.prefetch, self.limits = iter(files), stages, prefetch, limits
        self.pool = ThreadPoolExecutor(WORKERS, "read")
        self.waiting: deque[Future[tuple[Loaded, float]]] = deque()
        self.mean = 0.0  # bytes of a recent image
        self.requested, self.taken = 0, 0  # images
        self.held = 0  # bytes of images that were read and not yielded
        self.changed = threading.Condition()
        self.closed = False

    def chunks(self) -> Iterator[list[Loaded]]:
        """Yield the images in order, in chunks of bounded size."""
        chunk: list[Loaded] = []
        size = 0
        while True:
            self._fill(0 if self.prefetch else len(chunk))
            if not self.waiting:
                break
            loaded, busy = self.waiting.popleft().result()
            with self.changed:
                self.held -= loaded.bytes
                self.taken += 1
                self.changed.notify_all()
            self.stages.add("read", busy)
            self.mean += (loaded.bytes - self.mean) / min(len(chunk) + 1, self.limits.images)
            chunk.append(loaded)
            size += loaded.bytes
            if size >= self.limits.bytes or len(chunk) >= self.limits.images:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _fill(self, read: int) -> None:
        """Request a chunk of images, by the size of recent ones, less those that were `read` already."""
        limits = self.limits
        chunk = min(limits.images, int(limits.bytes / self.mean)) if self.mean else WORKERS
        while len(self.waiting) < max(chunk - read, 1):
            following = next(self.files, None)
            if following is None:
                return
            self.waiting.append(self.pool.submit(self._read, self.requested, *following))
            self.requested += 1

    def _read(self, number: int, stem: str, path: Path) -> tuple[Loaded, float]:
        """Read one image once there is room: it may be larger than those before."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self.held < self.limits.bytes or number == self.taken or self.closed
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
    image = attempt(path, lambda: read_image(path))
    loaded = Loaded(stem, None, image.why) if isinstance(image, Skipped) else Loaded(stem, image)
    return loaded, time.perf_counter() - start
