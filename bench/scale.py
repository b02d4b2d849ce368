"""A large synthetic set labelled twice, undisturbed and killed on the way: equal files, flat memory.

    python -m mclc_gpu.bench.scale --count 100000 --out DIR [--shards 1000] [--kills 2] [--processes 1]

Writes DIR/data (frames; most are hard links to some different ones under names of their own, and names are
what noise is drawn by), DIR/undisturbed and DIR/killed (label runs), DIR/scale.csv (resident memory of every
run over time), DIR/scale.png (the same over images done) and DIR/scale.json.
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
from mclc_gpu.data.images import find_files, read_mask
from mclc_gpu.data.points import write_points
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.labels.folder import LAYOUT

_DIFFERENT = 500  # frames with content of their own
_SIZE = (96, 128)
_INTERVAL = 0.5  # seconds from one look at a run to the next
_COMPARED = ("masks/*.png", "tpm/*.png", "shards/*.tar", "points.csv", "targets.csv", "overview.png")


@dataclass(frozen=True)
class Look:
    """One look at a running process: seconds since it began, images noted, resident memory in MiB."""

    run: str
    seconds: float
    images: int
    memory: float

    def row(self) -> Row:
        return vars(self).copy()


def write_frames(root: Path, count: int, different: int = _DIFFERENT) -> None:
    """Frames in root/images and clicks in root/points.csv; frames that are there already stay."""
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
    """The command line that labels the frames."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    where = ["--images", data / "images", "--points", data / "points.csv", "--out", out]
    return [
        sys.executable, *(start if processes > 1 else []), "-m", "mclc_gpu", "label", *map(str, where),
        "--no-report", *options,
    ]  # fmt: skip


def watch(name: str, arguments: Sequence[str], out: Path, stop_at: int | None = None) -> list[Look]:
    """Run a label command to its end, or kill it when so many images are noted.

    Raises RuntimeError when it fails by itself.
    """
    start = time.perf_counter()
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
    looks = []
    journals = _JournalLines(out)
    try:
        while process.poll() is None:
            time.sleep(_INTERVAL)
            done = journals.count()
            looks.append(Look(name, time.perf_counter() - start, done, _memory(process.pid)))
            if stop_at is not None and done >= stop_at:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return looks
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{name}: exit code {process.returncode} of {' '.join(arguments)}")
    return looks


class _JournalLines:
    """Counts the lines of a run's journals, of which only what is new is read."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.read: dict[Path, tuple[int, int]] = {}

    def count(self) -> int:
        """Images noted so far, as far as their journals still lie there."""
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
    """Resident memory of a process and all below it, MiB."""
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
    """Digest of every file of a finished run that does not hold times."""
    return {
        str(path.relative_to(out)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for pattern in _COMPARED
        for path in sorted(out.glob(pattern))
    }


def growth(looks: Sequence[Look], count: int) -> float:
    """By how much memory rises from a quarter of the images to the last, as a least-squares line, in MiB."""
    shown = [look for look in looks if count / 4 <= look.images < count]
    if len(shown) < 2:
        return float("nan")
    x = torch.tensor([[look.images / count, 1.0] for look in shown], dtype=torch.float64)
    y = torch.tensor([[look.memory] for look in shown], dtype=torch.float64)
    return float(torch.linalg.lstsq(x, y).solution[0, 0]) * 0.75


def plot(looks: Sequence[Look], path: Path) -> None:
    """Memory over images done, a line for each run."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, own in itertools.groupby(looks, lambda look: look.run):
        shown = list(own)
        axes.plot([look.images for look in shown], [look.memory for look in shown], label=name)
    axes.set(xlabel="images noted as finished", ylabel="resident memory in MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _runs(options: argparse.Namespace) -> Iterator[list[Look]]:
    """Looks at the undisturbed run, then at each piece of the one that is killed."""
    data, own = options.out / "data", ["--shards", str(options.shards)] if options.shards else []
    out = options.out / "undisturbed"
    yield watch("undisturbed", command(data, out, [*own, "--overwrite"], 1), out)
    out = options.out / "killed"
    for number in range(options.kills + 1):
        more = ["--overwrite"] if number == 0 else ["--resume"]
        last = number == options.kills
        stop_at = None if last else options.count * (number + 1) // (options.kills + 1)
        name = f"resumed after kill {number}" if number else "killed"
        yield watch(name, command(data, out, [*own, *more], options.processes), out, stop_at)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all and say how it went; 1 when the two runs differ."""
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=100_000, help="frames (100000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--shards", type=int, default=0, help="as for mclc-gpu label (0)")
    parser.add_argument("--kills", type=int, default=2, help="of the second run (2)")
    parser.add_argument("--processes", type=int, default=1, help="of the second run, by torchrun (1)")
    options = parser.parse_args(arguments)
    write_frames(options.out / "data", options.count)
    looks = [look for run in _runs(options) for look in run]
    write_rows(options.out / "scale.csv", [look.row() for look in looks])
    plot(looks, options.out / "scale.png")
    one, other = digests(options.out / "undisturbed"), digests(options.out / "killed")
    undisturbed = [look for look in looks if look.run == "undisturbed"]
    account = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "frames": options.count,
        "shards": options.shards,
        "kills": options.kills,
        "processes": options.processes,
        "files": len(one),
        "equal": one == other,
        "seconds_undisturbed": undisturbed[-1].seconds,
        "peak_mib": max(look.memory for look in looks),
        "growth_mib": growth(undisturbed, options.count),
    }
    write_json(options.out / "scale.json", account)
    for name, value in account.items():
        print(f"{name:20} {value}")
    return 0 if account["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
