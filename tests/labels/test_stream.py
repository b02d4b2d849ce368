"""The reader of a bulk run: order, memory and errors."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mclc_gpu.errors import InputError
from mclc_gpu.labels import stream
from mclc_gpu.labels.stream import WORKERS, Chunks, Reader, Stages

LIMIT, LARGE = 4000, 1000
LIMITS = Chunks(bytes=LIMIT)


@pytest.fixture
def memory(monkeypatch):
    """Images whose names are their sizes in bytes, and what all of those take that were not handed on."""

    class Memory:
        now, most, lock = 0, 0, threading.Lock()

        def read(self, path):
            size = int(path.name.split(".")[1])
            if not size:
                raise InputError(f"{path}: bad")
            with self.lock:
                self.now += size
                self.most = max(self.most, self.now)
            return np.zeros(size, np.uint8)

    memory = Memory()
    monkeypatch.setattr(stream, "read_image", memory.read)
    return memory


def files(sizes):
    return [(str(n), Path(f"{n}.{size}")) for n, size in enumerate(sizes)]


@pytest.mark.parametrize("ahead", [False, True])
def test_large_images_after_small_ones_are_not_all_read_at_once(memory, ahead):
    sizes = [10] * 300 + [LARGE] * 100 + [10, 0, LARGE] * 50 + [LIMIT * 3] * 3 + [10] * 30
    stages = Stages(["read"])
    got = []
    with Reader(files(sizes), stages, ahead, LIMITS) as reader:
        for chunk in reader.chunks():
            if ahead:
                time.sleep(0.002)  # while one chunk is used the next ones are read
            got += chunk
            memory.now -= sum(item.bytes for item in chunk)
    assert [item.stem for item in got] == [str(n) for n in range(len(sizes))]
    assert [item.bytes for item in got] == sizes
    assert [item.problem for item in got if not item.bytes] == ["bad"] * 50
    # A chunk in use, one's worth waiting, and what each thread may be reading.
    assert memory.most <= 2 * LIMIT + (WORKERS + 1) * 3 * LIMIT
    assert memory.now == 0


def test_a_burst_takes_no_more_than_threads_may_read(memory):
    with Reader(files([10] * 300 + [LARGE] * 100), Stages(["read"]), True, LIMITS) as reader:
        for chunk in reader.chunks():
            time.sleep(0.01)
            memory.now -= sum(item.bytes for item in chunk)
    assert memory.most <= 2 * LIMIT + (WORKERS + 1) * LARGE


@pytest.mark.parametrize("ahead", [False, True])
def test_whoever_stops_early_does_not_wait_for_the_rest(memory, ahead):
    before = threading.active_count()

    def stop():
        with Reader(files([LARGE] * 500), Stages(["read"]), ahead, LIMITS) as reader:
            next(reader.chunks())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert threading.active_count() == before
    assert memory.now < 500 * LARGE
