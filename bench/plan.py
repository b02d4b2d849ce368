"""Plan the labeling of N images from rates measured on a few: hours by stage, disk space, memory."""

import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mclc_gpu.bench.compare import circumstances, machine, markdown, rounded
from mclc_gpu.bench.config import BenchOptions
from mclc_gpu.bench.dataset import open_context
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.files import write_json
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.labels.config import LabelOptions, preset
from mclc_gpu.labels.run import STAGES, Inputs, label_dataset

PLAN = "plan.json"  # in the output folder
PRESETS = ("default", "paper")
COMPUTE, FILES = ("cluster", "refine"), ("read", "write")
_RUNS, _LEAST_IMAGES = 3, 512
_NIGHT = 10  # hours


@dataclass(frozen=True)
class Rates:
    """Measured rates of one process of `label`.

    Attributes
    ----------
    images, targets : int
        Number labeled.
    seconds : mapping of str to float
        Of each stage, by its own clock, and "total", that of the whole run without start-up.
    read_bytes : int
        Of the image files.
    written_bytes, written_blocks : int
        Of masks and TPMs: their lengths, and what they occupy on this disk, in bytes.
    memory_bytes : int or None
        Largest resident memory of the process; None where the system does not tell.
    """

    images: int
    targets: int
    seconds: Mapping[str, float]
    read_bytes: int
    written_bytes: int
    written_blocks: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Plan:
    """Rates scaled to `images` images.

    Attributes
    ----------
    images : int
    hours : dict of str to float
        Of each stage; of all one after another ("sum"); with all stages at once on resources of their own
        ("overlapped": the slowest stage's, with cluster and refine as one); and at the measured rate of the
        whole run ("measured").
    bound : str
        What sets the overlapped time: "read", "device" (cluster and refine) or "write".
    devices : float
        Number of devices like this one that label as fast as this machine reads and writes.
    read_bytes, written_bytes, written_blocks : float
        On disk.
    files : int
        Number of files written.
    """

    images: int
    hours: dict[str, float]
    bound: str
    devices: float
    read_bytes: float
    written_bytes: float
    written_blocks: float
    files: int


def make_plan(rates: Rates, images: int) -> Plan:
    """Scale measured rates to a number of images."""
    scale = images / rates.images
    hours = {name: seconds * scale / 3600 for name, seconds in rates.seconds.items() if name in STAGES}
    device = sum(hours[name] for name in COMPUTE)
    lanes = {"read": hours["read"], "device": device, "write": hours["write"]}
    bound = max(lanes, key=lambda name: lanes[name])
    files = max(hours[name] for name in FILES)
    return Plan(
        images=images,
        hours={
            **hours,
            "sum": sum(hours.values()),
            "overlapped": lanes[bound],
            "measured": rates.seconds["total"] * scale / 3600,
        },
        bound=bound,
        devices=device / files if files else math.inf,
        read_bytes=rates.read_bytes * scale,
        written_bytes=rates.written_bytes * scale,
        written_blocks=rates.written_blocks * scale,
        files=2 * images,
    )


def run_plan(options: BenchOptions, command: str = "mclc-gpu bench") -> dict[str, Any]:
    """Measure the stages, print the plan for `options.plan` images, write it to plan.json and return it."""
    images, device, quick = options.plan or 1, pick_device(options.device), options.quick
    print("plan: labeling", file=sys.stderr, flush=True)
    with open_context(options.images, options.masks, options.list, device, quick) as context:
        files = {name: image for name, (image, _) in context.pairs.items()}
        points = dict(zip(context.frames.names, context.frames.points(0), strict=True))
        sizes = [image.shape[:2] for image in context.frames.images]
        repeats, runs = (1, 1) if quick else (-(-_LEAST_IMAGES // len(files)), _RUNS)
        rates = {name: _measured(files, points, name, str(device), repeats, runs) for name in PRESETS}
        source = context.source
    plans = {name: make_plan(own, images) for name, own in rates.items()}
    summary = {
        **circumstances(device, command),
        "frames": source,
        "rates": {name: asdict(own) for name, own in rates.items()},
        "plans": {name: asdict(own) for name, own in plans.items()},
    }
    write_json(options.out / PLAN, summary)
    pixels = statistics.fmean(height * width for height, width in sizes)
    print(f"Plan for {images:,} images of {pixels / 1e6:.3f} megapixels on average, like {source}.")
    print(f"Rates measured with one process on {machine(device)}.\n")
    print(_table(rates, plans))
    for name in PRESETS:
        trials = preset(name).trials
        print(f"\n{name}, K = {trials}:" if trials else f"\n{name}:")
        print(_text(rates[name], plans[name], device.type))
    print(f"\nwritten to {options.out / PLAN}")
    return summary


def _measured(
    files: Mapping[str, Path],
    points: Mapping[str, Sequence[Point]],
    name: str,
    device: str,
    repeats: int,
    runs: int,
) -> Rates:
    """Label the files, each `repeats` times, in a process of its own; return the run of the median total."""
    pairs = [(f"{stem}_{n}", stem) for n in range(repeats) for stem in files]
    images = {copy: files[stem] for copy, stem in pairs}
    clicks = {copy: points[stem] for copy, stem in pairs}
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="mclc-gpu-plan-") as folder:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as pool:
                asked = pool.submit(_labelled, images, clicks, Path(folder) / "out", name, device)
                summary, memory = asked.result()
            written = [path.stat() for path in Path(folder, "out").glob("*/*.png")]
        found.append(
            Rates(
                images=summary["images"],
                targets=summary["targets"],
                seconds={stage: summary["seconds"][stage] for stage in (*STAGES, "total")},
                read_bytes=sum(path.stat().st_size for path in images.values()),
                written_bytes=sum(status.st_size for status in written),
                written_blocks=sum(512 * status.st_blocks for status in written),
                memory_bytes=memory,
            )
        )
    return sorted(found, key=lambda rates: rates.seconds["total"])[len(found) // 2]


def _labelled(
    images: Mapping[str, Path], points: Mapping[str, Sequence[Point]], out: Path, name: str, device: str
) -> tuple[dict[str, Any], int | None]:
    """Label in this process; return the summary and the largest memory that the process had."""
    options = LabelOptions(images=out.parent, out=out, config=preset(name), device=device)
    summary = label_dataset(options, Inputs(images, points)).summary
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return summary, None
    peaks = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")]
    return summary, peaks[0] if peaks else None


def _table(rates: Mapping[str, Rates], plans: Mapping[str, Plan]) -> str:
    header = ["stage", *(f"{name}, {what}" for name in plans for what in ("ms/image", "hours"))]
    names = {
        **{stage: stage for stage in STAGES},
        "sum": "one after another",
        "overlapped": "overlapped, nothing shared",
        "measured": "as it ran here",
    }
    lines = []
    for row, text in names.items():
        cells = []
        for plan in plans.values():
            cells += [rounded(3.6e6 * plan.hours[row] / plan.images), rounded(plan.hours[row])]
        lines.append([text, *cells])
    return markdown(header, lines)


def _text(rates: Rates, plan: Plan, kind: str) -> str:
    """Explain the numbers line by line."""
    device = sum(rates.seconds[stage] for stage in COMPUTE)
    longest = {"read": "read", "device": "cluster and refine", "write": "write"}[plan.bound]
    what = "GPU" if kind == "cuda" else "processor"
    if plan.devices <= 1:
        feed = f"cluster and refine keep pace with reading and writing: a second {what} would wait for files"
    else:
        feed = (
            "to keep pace with reading and writing here, cluster and refine need "
            f"{math.ceil(plan.devices)} {what}s like this one"
        )
    machines = max(1, math.ceil(plan.hours["measured"] / _NIGHT))
    lines = [
        f"longest: {longest}, {rounded(plan.hours['overlapped'])} of {rounded(plan.hours['sum'])} hours"
        + (", but here all stages share the processor" if kind == "cpu" else ""),
        feed,
        f"cluster and refine: {rounded(1e3 * device / rates.targets)} ms a target, at "
        f"{rates.targets / rates.images:.2f} targets an image",
        f"machines like this one to be done in {_NIGHT} hours: {machines}",
        f"disk: {_bytes(plan.read_bytes)} to read; to write {plan.files:,} PNG files of "
        f"{_bytes(plan.written_bytes)}, {_bytes(plan.written_blocks)} in this disk's blocks",
    ]
    if rates.memory_bytes is not None:
        lines.append(f"memory: {_bytes(rates.memory_bytes)} at most, measured with {rates.images:,} images")
    return "\n".join(f"  {text}" for text in lines)


def _bytes(count: float) -> str:
    power = min(int(math.log10(max(count, 1)) / 3), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
