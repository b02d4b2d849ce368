"""Measure the server of `annotate`: clicks of one annotator, many at once, a huge frame and many frames.

    python -m mclc_gpu.bench.annotate --images DIR --masks DIR --out DIR [--clicks 1000] [--clients 20]
        [--seconds 20] [--side 8192] [--frames 10000]

The server runs in a process of its own on one CPU core. Clicks are simulated from the true masks with a
jitter of 1 px; server time is that from the arrival of the request to its answer, journal on disk and all, as
the answer states it. `disk_ms` is the time of the disk alone. Writes
DIR/annotate.json.
"""

import argparse
import http.client
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclc_gpu.bench.compare import circumstances
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import write_json
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.errors import InputError

_JITTER = 1.0  # pixels, of the simulated clicks
_WARM = 20  # clicks before the measured ones
_TARGET_MS = 10.0


class Client:
    """One browser: a connection that is kept open."""

    def __init__(self, port: int, name: str) -> None:
        self.name, self.port = name, port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def get(self, path: str) -> bytes:
        """Return the answer to a GET request. Raises RuntimeError if it is refused."""
        return self._ask("GET", path, None)

    def post(self, path: str, **content: Any) -> dict[str, Any]:
        """Return the answer to a POST request. Raises RuntimeError if it is refused."""
        answer: dict[str, Any] = json.loads(self._ask("POST", path, {"client": self.name, **content}))
        return answer

    def edit(self, index: int, **edit: Any) -> dict[str, Any]:
        """Make one edit of an image."""
        return self.post(f"/api/images/{index}/edits", edits=[edit])

    def _ask(self, method: str, path: str, content: Any) -> bytes:
        self.connection.request(method, path, None if content is None else json.dumps(content))
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
        return body


@contextmanager
def server(images: Path, out: Path) -> Iterator[int]:
    """Run the server on one core; yield its port."""
    argv = [sys.executable, "-m", "mclc_gpu", "annotate", "--images", str(images), "--out", str(out)]
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen(
        [*argv, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        try:
            if "open http" not in lines[1]:
                raise RuntimeError("the server did not start")
            yield int(lines[1].rstrip("/\n").rpartition(":")[2])
        finally:
            process.terminate()


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    values = np.array(milliseconds)
    found = {"median": np.median(values), "p99": np.percentile(values, 99), "max": values.max()}
    return {name: round(float(value), 2) for name, value in found.items()}


def measure_clicks(port: int, points: Sequence[Sequence[Sequence[Point]]], count: int) -> dict[str, Any]:
    """Click targets of one frame after another, as one annotator does.

    `points`: of each pass over the frames, the targets of each frame. A frame that is clicked once more is
    cleared before.
    """
    warm = min(_WARM, count)
    server_ms: list[float] = []
    whole_ms: list[float] = []
    opened_ms: list[float] = []
    with closing(Client(port, "one")) as client:
        for turn, of_images in enumerate(points):
            for index, own in enumerate(of_images):
                if len(server_ms) >= count + warm:
                    break
                client.post(f"/api/images/{index}/open")
                start = time.perf_counter()
                shown = json.loads(client.get(f"/api/images/{index}"))
                opened_ms.append((time.perf_counter() - start) * 1e3)
                if turn:
                    for target in shown["targets"]:
                        client.edit(index, op="delete", id=target["id"])
                for point in own:
                    start = time.perf_counter()
                    answer = client.edit(index, op="add", x=point.x, y=point.y)
                    whole_ms.append((time.perf_counter() - start) * 1e3)
                    server_ms.append(answer["ms"])
    measured = server_ms[warm:]
    return {
        "clicks": len(measured),
        "server_ms": quantiles(measured),
        "round_trip_ms": quantiles(whole_ms[warm:]),
        "open_image_ms": quantiles(opened_ms),
        f"share_below_{_TARGET_MS:g}_ms": float(np.mean(np.array(measured) < _TARGET_MS)),
    }


def measure_crowd(port: int, count: int, clients: int, seconds: float) -> dict[str, Any]:
    """Click at random places by many annotators at once; compare what is there with what was confirmed."""
    end = time.monotonic() + seconds
    confirmed: set[tuple[int, float, float]] = set()
    milliseconds: list[float] = []
    errors: list[str] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        with closing(Client(port, f"c{number}")) as client:
            click(random.Random(number), client)

    def click(draw: random.Random, client: Client) -> None:
        while time.monotonic() < end:
            index, x, y = draw.randrange(count), draw.uniform(0, 60), draw.uniform(0, 60)
            try:
                start = time.perf_counter()
                client.edit(index, op="add", x=x, y=y)
                passed = (time.perf_counter() - start) * 1e3
            except (RuntimeError, OSError) as error:
                with lock:
                    errors.append(str(error))
                return
            with lock:
                confirmed.add((index, x, y))
                milliseconds.append(passed)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(Client(port, "check")) as client:
        there = {
            (index, target["x"], target["y"])
            for index in {index for index, _, _ in confirmed}
            for target in json.loads(client.get(f"/api/images/{index}"))["targets"]
        }
    return {
        "clients": clients,
        "seconds": seconds,
        "clicks": len(confirmed),
        "clicks_per_s": round(len(confirmed) / seconds, 1),
        "round_trip_ms": quantiles(milliseconds) if milliseconds else None,
        "lost": len(confirmed - there),
        "errors": errors[:5],
    }


def measure_disk(folder: Path) -> dict[str, float]:
    """Measure how long it takes until a line that was appended to a file is on disk."""
    milliseconds = []
    with (folder / "lines").open("ab", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 200)
            start = time.perf_counter()
            os.fsync(file.fileno())
            milliseconds.append((time.perf_counter() - start) * 1e3)
    return quantiles(milliseconds)


def measure_large(folder: Path, side: int) -> dict[str, Any]:
    """Open a frame of 16 bits, get its overview and a tile, and click in it."""
    images = folder / "large"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(900, 1100, (side, side), dtype=np.uint16)
    middle = side // 2
    pixels[middle : middle + 3, middle : middle + 4] = 2500
    np.save(images / "large.npy", pixels)
    found: dict[str, Any] = {"side": side}
    with server(images, folder / "large-out") as port, closing(Client(port, "one")) as client:

        def timed(name: str, path: str) -> bytes:
            start = time.perf_counter()
            body = client.get(path)
            found[f"{name}_ms"] = round((time.perf_counter() - start) * 1e3, 1)
            return body

        levels = json.loads(timed("open", "/api/images/0"))["levels"]
        timed("overview", f"/api/images/0/tiles/{levels - 1}/0/0")
        timed("tile", f"/api/images/0/tiles/0/{middle // 512}/{middle // 512}")
        answers = [client.edit(0, op="add", x=middle + 1, y=middle + dy) for dy in (0.5, 1, 1.5, 2, 2.5)]
        found["click_server_ms"] = [answer["ms"] for answer in answers]
        found["area"] = answers[0]["targets"][0]["area"]
    return found


def measure_many(folder: Path, frames: int) -> dict[str, Any]:
    """Open a folder of very many frames: what the page asks for at first."""
    images = folder / "many"
    images.mkdir()
    np.save(images / "000000.npy", np.zeros((64, 64), np.uint8))
    for number in range(1, frames):
        os.link(images / "000000.npy", images / f"{number:06d}.npy")
    start = time.perf_counter()
    with server(images, folder / "many-out") as port:
        began = time.perf_counter() - start
        start = time.perf_counter()
        with closing(Client(port, "one")) as client:
            for path in ("/", "/api/session", "/api/images", "/api/images/0", "/api/images/0/tiles/0/0/0"):
                client.get(path)
        return {
            "frames": frames,
            "server_start_s": round(began, 2),
            "first_requests_s": round(time.perf_counter() - start, 3),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("images", "masks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, value in (
        ("clicks", 1000),
        ("clients", 20),
        ("seconds", 20),
        ("side", 8192),
        ("frames", 10000),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(argv)
    images, masks = find_images_and_masks(options.images, options.masks)
    passes = [simulate_points(masks, images, jitter=_JITTER, seed=seed)[0] for seed in range(3)]
    if not passes[0]:
        raise InputError(f"{options.masks}: no mask of an image in {options.images}; check the folders")
    points = [[own.get(name, []) for name in images] for own in passes]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        with server(options.images, folder / "clicks") as port:
            clicks = measure_clicks(port, points, options.clicks)
        with server(options.images, folder / "crowd") as port:
            crowd = measure_crowd(port, len(images), options.clients, options.seconds)
        summary = {
            **circumstances(torch.device("cpu"), shlex.join(["mclc_gpu.bench.annotate", *sys.argv[1:]])),
            "clicks": clicks,
            "disk_ms": measure_disk(folder),
            "crowd": crowd,
            "large": measure_large(folder, options.side),
            "many": measure_many(folder, options.frames),
        }
    write_json(options.out / "annotate.json", summary)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
