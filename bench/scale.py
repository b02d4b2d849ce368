"""Label a large synthetic set twice, undisturbed and killed on the way, and compare files and memory.

    python -m mclc_gpu.bench.scale --count 100000 --out DIR [--shards 1000] [--kills 2] [--processes 1]

Writes DIR/data (frames; most are hard links to a few different ones under names of their own, which key the
noise), DIR/undisturbed and DIR/killed (label runs), DIR/scale.csv (resident memory of every run over time),
DIR/scale.png (the same over finished images) and DIR/scale.json.
"""

import argparse
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from mclc_gpu.bench.compare import Row, machine, versions, write_rows
from mclc_gpu.data.files import atomic_path, write_json
from mclc_gpu.data.images import read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import write_points
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.labels.folder import LAYOUT

_DIFFERENT = 500  # frames with content of their own
_SIZE = (96, 128)
_INTERVAL = 0.5  # seconds between two readings of a run
_COMPARED = ("masks/*.png", "tpm/*.png", "shards/*.tar", "points.csv", "targets.csv", "overview.png")


@dataclass(frozen=True)
class Reading:
    """Seconds since a run began, its finished images, and its resident memory in MiB."""

    run: str
    seconds: float
    images: int
    memory: float

    def row(self) -> Row:
        return vars(self).copy()


def write_frames(root: Path, count: int, different: int = _DIFFERENT) -> None:
    """Write frames to root/images and clicks to root/points.csv; existing frames stay."""
    source = root / "source"
    if not (source / "images").exists():
        write_dataset(source, min(different, count), 0, size=_SIZE, test_share=0)
    images, masks = find_files(source / "images"), find_files(source / "masks")
    points = {stem: points_from_mask(read_mask(masks[stem])) for stem in images}
    (root / "images").mkdir(exist_ok=True)
    clicks = {}
    for number, stem in enumerate(itertools.islice(itertools.cycle(images), count)):
        name = f"frame_{number:07d}"
        link = root / "images" / f"{name}.png"
        if not link.exists():
            os.link(images[stem], link)
        clicks[name] = points[stem]
    write_points(root / "points.csv", clicks)


def command(data: Path, out: Path, options: Sequence[str], processes: int) -> list[str]:
    """Return the command line that labels the frames."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    where = ["--images", data / "images", "--points", data / "points.csv", "--out", out]
    return [
        sys.executable, *(start if processes > 1 else []), "-m", "mclc_gpu", "label", *map(str, where),
        "--no-report", *options,
    ]  # fmt: skip


def follow(name: str, arguments: Sequence[str], out: Path, stop_at: int | None = None) -> list[Reading]:
    """Run a label command to its end, or kill it once `stop_at` images are journaled.

    Raises
    ------
    RuntimeError
        The command failed by itself.
    """
    start = time.perf_counter()
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
    readings = []
    journals = _JournalLines(out)
    try:
        while process.poll() is None:
            time.sleep(_INTERVAL)
            done = journals.count()
            readings.append(Reading(name, time.perf_counter() - start, done, _memory(process.pid)))
            if stop_at is not None and done >= stop_at:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return readings
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{name}: exit code {process.returncode} of {' '.join(arguments)}")
    return readings


class _JournalLines:
    """Counts the lines of a run's journals by reading what is new."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.read: dict[Path, tuple[int, int]] = {}

    def count(self) -> int:
        """Return the number of journaled images, while their journals exist."""
        for path in LAYOUT.journals(self.out):
            offset, lines = self.read.get(path, (0, 0))
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    new = file.read()
            except FileNotFoundError:
                continue
            self.read[path] = offset + len(new), lines + new.count(b"\n")
        return sum(max(lines - 1, 0) for _, lines in self.read.values())  # the first is the fingerprint


def _memory(pid: int) -> float:
    """Return the resident memory of a process and its descendants in MiB."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text(encoding="ascii")
            children = Path(f"/proc/{one}/task/{one}/children").read_text(encoding="ascii")
        except OSError:
            continue  # it has just ended
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        waiting += map(int, children.split())
    return total / 1024


def digests(out: Path) -> dict[str, str]:
    """Return a digest of every file of a finished run that does not hold times."""
    return {
        str(path.relative_to(out)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for pattern in _COMPARED
        for path in sorted(out.glob(pattern))
    }


def growth(readings: Sequence[Reading], count: int) -> float:
    """Return the rise of memory from a quarter of the images to the last, by least squares, in MiB."""
    shown = [reading for reading in readings if count / 4 <= reading.images < count]
    if len(shown) < 2:
        return float("nan")
    x = torch.tensor([[reading.images / count, 1.0] for reading in shown], dtype=torch.float64)
    y = torch.tensor([[reading.memory] for reading in shown], dtype=torch.float64)
    return float(torch.linalg.lstsq(x, y).solution[0, 0]) * 0.75


def plot(readings: Sequence[Reading], path: Path) -> None:
    """Plot memory over finished images, a line per run."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, own in itertools.groupby(readings, lambda reading: reading.run):
        shown = list(own)
        axes.plot([reading.images for reading in shown], [reading.memory for reading in shown], label=name)
    axes.set(xlabel="finished images", ylabel="resident memory in MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _runs(options: argparse.Namespace) -> Iterator[list[Reading]]:
    """Yield the readings of the undisturbed run, then of each part of the killed one."""
    data, own = options.out / "data", ["--shards", str(options.shards)] if options.shards else []
    out = options.out / "undisturbed"
    yield follow("undisturbed", command(data, out, [*own, "--overwrite"], 1), out)
    out = options.out / "killed"
    for number in range(options.kills + 1):
        more = ["--overwrite"] if number == 0 else ["--resume"]
        last = number == options.kills
        stop_at = None if last else options.count * (number + 1) // (options.kills + 1)
        name = f"resumed after kill {number}" if number else "killed"
        yield follow(name, command(data, out, [*own, *more], options.processes), out, stop_at)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print a summary; return 1 when the two runs differ."""
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=100_000, help="frames (100000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--shards", type=int, default=0, help="as for mclc-gpu label (0)")
    parser.add_argument("--kills", type=int, default=2, help="of the second run (2)")
    parser.add_argument("--processes", type=int, default=1, help="of the second run, by torchrun (1)")
    options = parser.parse_args(arguments)
    write_frames(options.out / "data", options.count)
    readings = [reading for run in _runs(options) for reading in run]
    write_rows(options.out / "scale.csv", [reading.row() for reading in readings])
    plot(readings, options.out / "scale.png")
    one, other = digests(options.out / "undisturbed"), digests(options.out / "killed")
    undisturbed = [reading for reading in readings if reading.run == "undisturbed"]
    summary = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "frames": options.count,
        "shards": options.shards,
        "kills": options.kills,
        "processes": options.processes,
        "files": len(one),
        "equal": one == other,
        "seconds_undisturbed": undisturbed[-1].seconds,
        "peak_mib": max(reading.memory for reading in readings),
        "growth_mib": growth(undisturbed, options.count),
    }
    write_json(options.out / "scale.json", summary)
    for name, value in summary.items():
        print(f"{name:20} {value}")
    return 0 if summary["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
