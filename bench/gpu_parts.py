"""Measurements of the suite `gpu`: what each of its parts runs on a CUDA device, or on a recorded one."""

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclc_gpu.bench.compare import Row
from mclc_gpu.bench.dataset import Context, Frames, has_pydensecrf
from mclc_gpu.bench.host import Clock, label
from mclc_gpu.bench.limits import (
    Captured,
    Work,
    bytes_peak,
    captured,
    component_work,
    crf_work,
    fma_kernel,
    slic_work,
    trial_steps,
    trial_work,
)
from mclc_gpu.bench.ptx.launch import emulated
from mclc_gpu.bench.recorder import Record
from mclc_gpu.bench.reference import ReferencePool, baselines, make_item
from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.synthetic import scene
from mclc_gpu.distributed import Ranks
from mclc_gpu.kernels.color import rgb_to_lab
from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import ComponentConfig, CrfConfig, TrialConfig
from mclc_gpu.kernels.crf import dense_crf, dense_crf_images, window_colors
from mclc_gpu.kernels.noise import add_noise
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.slic import kmeans, slic
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.config import LabelConfig, LabelOptions, preset
from mclc_gpu.labels.pipeline import label_targets, place_targets, warm_up
from mclc_gpu.labels.run import label_dataset
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.train.config import TrainConfig
from mclc_gpu.train.data import open_training_set, plan_epoch
from mclc_gpu.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
ABSENT = "not measured: no CUDA device"
PEER_CORES = 2
_CPU = torch.device("cpu")
_INTERVAL, _COMPACTNESS = 20, 10.0  # mean side of a segment in pixels


@dataclass
class Session:
    """Device and frames of one part.

    Attributes
    ----------
    context : Context
        Frames; its device is the CUDA device, or the recorded one.
    seconds : float
        Time in which the part has to end.
    record : Record or None
        Of the recorded device; None on a CUDA device.
    """

    context: Context
    seconds: float
    record: Record | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device:
        """The CUDA device, or the recorded one."""
        return self.context.device

    @property
    def frames(self) -> Frames:
        """Frames of the context."""
        return self.context.frames

    @property
    def left(self) -> float:
        """Seconds until the part has to end."""
        return self.started + self.seconds - time.perf_counter()

    def of(self, usual: int, quick: int) -> int:
        """Choose an amount of work."""
        return self.context.of(usual, quick)

    def seconds_of(self, work: Callable[[], object], most: float = 2.0) -> float | None:
        """Return the median wall-clock time of some work after a warm-up; None where it is recorded."""
        if self.record is not None:
            self.record.clear()
            work()
            return None
        runs: list[float] = []
        end = time.perf_counter() + min(most, self.left)
        while len(runs) < 3 or (time.perf_counter() < end and len(runs) < 50):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            work()
            torch.cuda.synchronize(self.device)
            runs.append(time.perf_counter() - start)
        return statistics.median(runs[1:])

    def counts(self) -> str:
        """Describe what was recorded since the last measurement; "" on a CUDA device."""
        if self.record is None:
            return ""
        record = self.record
        kernels = Counter(launch.kernel for launch in record.launches)
        launched = ", ".join(f"{name} x {number}" for name, number in kernels.items()) or "none"
        return (
            f"{ABSENT}; launches: {launched}; copies: {len(record.uploads) + len(record.downloads)}; "
            f"waits: {record.waits.total()}"
        )


def row(
    work: str, value: float | None = None, unit: str = "", note: str = "", **more: float | str | None
) -> Row:
    """Return a row of the suite's table; see `mclc_gpu.bench.gpu.COLUMNS`."""
    empty: Row = {"share": None, "bound": "", "peer": None, "ratio": None}
    return {"work": work, "value": value, "unit": unit, **empty, **more, "note": note}


def rate_row(
    session: Session,
    work: str,
    amount: float,
    unit: str,
    seconds: float | None,
    peer: tuple[str, float] | None = None,
    note: str = "",
) -> Row:
    """Return a row with a rate, and the rate of a peer on the CPU with its name."""
    rate = None if seconds is None else amount / seconds
    notes = [note] if note else []
    notes += [session.counts()] if session.record is not None else []
    if peer is None:
        return row(work, rate, f"{unit}/s", "; ".join(notes))
    notes.append(f"CPU: {peer[0]}")
    ratio = None if rate is None else rate / peer[1]
    return row(work, rate, f"{unit}/s", "; ".join(notes), peer=peer[1], ratio=ratio)


# ---------------------------------------------------------------- agreement with the CPU backend


def agreement(session: Session) -> Iterator[Row]:
    """Compare TPMs and masks with those of the CPU backend; without a device an emulator runs the kernels."""
    frames = session.frames
    few = frames if session.record is None else frames.chosen(range(min(2, len(frames.images))))
    floats = Frames(few.names, [image * np.float32(3.5) for image in few.images], few.truth)
    trials = 20 if session.record is None else 2
    cases = [
        ("preset default", few, preset("default")),
        (f"preset paper, K = {trials}", few, preset("paper", trials=trials)),
        ("preset default, float images", floats, preset("default")),
        (f"preset paper, K = {trials}, float images", floats, preset("paper", trials=trials)),
    ]
    for name, data, config in cases:
        if session.left < 0:
            yield row(f"TPMs and masks, {name}", note="left out: no time")
            continue
        placed, _ = place_targets(data.images, data.points(0), data.names, config, 0)
        with nullcontext() if session.record is None else emulated():
            own = label_targets(data.images, placed, config, session.device)
        work = f"TPMs and masks, {name}, {len(placed)} targets"
        other = label_targets(data.images, placed, config, _CPU)
        pairs = list(zip(own, other, strict=True))
        differ = sum(int((a.levels != b.levels).sum()) for a, b in pairs)  # 16 bits, as in files
        masks = sum(int((a.mask != b.mask).sum()) for a, b in pairs)
        largest = max(float(np.abs(a.tpm - b.tpm).max()) for a, b in pairs)
        total = sum(a.tpm.size for a in own)
        note = f"TPMs differ by up to {largest:.2g}; {masks} pixels of masks" if differ or masks else "equal"
        if session.record is None:
            yield row(work, float(differ), f"of {total} pixels differ", note)
        else:
            yield row(work, note=f"{note} where an emulator runs the PTX; {ABSENT}")


# ---------------------------------------------------------------- kernels


def peaks(session: Session) -> tuple[float, float] | None:
    """Measure multiply-adds per second in float32, and bytes per second of a copy; None where recorded."""
    programs, block, rounds = session.of(132 * 64, 2), 256, session.of(4096, 4)
    out = torch.empty(programs * block, device=session.device)
    seconds = session.seconds_of(lambda: fma_kernel[(programs,)](out, rounds, BLOCK=block, num_warps=8), 0.5)
    if seconds is None:
        return None
    return programs * block * rounds * 8 / seconds, bytes_peak(session.device, 1 << 27)


@dataclass(frozen=True)
class Workload:
    """An operation, and the least work that it needs, computed when asked for; None where not counted."""

    name: str
    run: Callable[[], object]
    least: Callable[[], Work] | None = None


def workloads(session: Session) -> Iterator[Workload]:
    """Yield the operations of the package with the sizes that they have in a label run."""
    device, frames = session.device, session.frames
    byte = [place for place, image in enumerate(frames.images) if image.dtype == np.uint8]
    own = frames.chosen(byte)
    config = TrialConfig()
    placed, _ = place_targets(own.images, own.points(0), own.names, preset("paper"), 0)
    images = PackedImages.pack(own.images, device)
    windows = Windows.pack((p.image, *astuple(p.window), p.target) for p in placed)
    keys = torch.tensor([p.key for p in placed])
    trials = session.of(100, 2)

    def least_trials() -> Work:
        host = PackedImages.pack(own.images)
        counted = session.of(10, 1)
        steps = trial_steps(host, windows, keys, config, counted)
        stages = trial_work(steps, host, windows, True).values()
        return Work(sum(w.operations for w in stages) * trials / counted, sum(w.bytes for w in stages))

    name = f"trials, {len(placed)} windows, K = {trials}"
    yield Workload(name, lambda: run_trials(images, windows, keys, config, trials), least_trials)
    colors = window_colors(images, windows)
    potential = torch.rand(len(colors), generator=torch.Generator().manual_seed(0)).to(device)
    yield Workload(
        f"dense CRF, {len(placed)} windows",
        lambda: dense_crf(potential, colors, windows.shapes, CrfConfig()),
        lambda: crf_work(windows.shapes, 2 + colors.shape[1], CrfConfig(), torch.device("cuda")),
    )
    rows, columns = windows.top + windows.click_row, windows.left + windows.click_column
    vote = ComponentConfig()
    around = component_windows(images, torch.stack([windows.image, rows, columns], 1), vote.radius)
    unknown = torch.full((len(around),), -1)
    pixels = int(around.sizes.sum())
    yield Workload(
        f"components, {len(around)} windows",
        lambda: vote_components(images, around, unknown, vote),
        lambda: component_work(pixels, len(around), vote.levels, pixels),
    )
    side = session.of(1024, 32)
    image = _images(side, side, 1).to(device)
    segments = max(4, side * side // _INTERVAL**2)
    yield Workload(
        f"slic, {side} x {side}, {segments} segments",
        lambda: slic(image, segments, _COMPACTNESS),
        lambda: slic_work(side, side, segments, 10, 3, True),
    )
    yield Workload(
        f"kmeans, {side} x {side}, {segments} clusters", lambda: kmeans(image, segments, _COMPACTNESS)
    )
    plane = 4 * image.numel()
    yield Workload(
        f"CIELAB, {side} x {side}",
        lambda: rgb_to_lab(image.float()),
        lambda: Work(image.numel() / 3 * 174, 2.0 * plane),
    )
    index = torch.zeros(1, dtype=torch.int64, device=device)
    yield Workload(
        f"noise, {side} x {side}",
        lambda: add_noise(image.float(), index, index, 0),
        lambda: Work(image.numel() / 3 * 89, 2.0 * plane),
    )


def _images(height: int, width: int, count: int) -> torch.Tensor:
    """Return synthetic color images, uint8 [count, 3, height, width], on the CPU."""
    size = max(height, 64), max(width, 64)
    made = [scene(0, index, size=size).image[:height, :width] for index in range(min(count, 4))]
    gray = torch.from_numpy(np.stack([made[index % len(made)] for index in range(count)]))
    return gray[:, None].expand(count, 3, height, width).contiguous()


def kernels(session: Session) -> Iterator[Row]:
    """Time every kernel alone with the launches of real operations; compare with the measured peaks."""
    peak = peaks(session)
    for number, (name, unit) in enumerate((("float32 multiply-adds", "/s"), ("bytes of a copy", "B/s"))):
        value = None if peak is None else peak[number]
        yield row(f"peak, {name}", value, unit, "" if peak else ABSENT)
    for workload in workloads(session):
        if session.left < 0:
            yield row(workload.name, note="left out: no time")
            continue
        try:
            yield from _kernel_rows(session, workload, peak)
        except Exception as error:
            yield row(workload.name, note=failure(error))


def _kernel_rows(session: Session, workload: Workload, peak: tuple[float, float] | None) -> Iterator[Row]:
    workload.run()  # compiles, and lets an operation make a CUDA graph of itself
    with captured() as launches:
        workload.run()
    by_name: dict[str, list[Captured]] = {}
    for launch in launches:
        by_name.setdefault(launch.name, []).append(launch)
    total = 0.0
    for name, own in by_name.items():
        grids = ", ".join(dict.fromkeys(f"{math.prod(launch.grid)}" for launch in own))
        note = f"{len(own)} launches, programs {grids}"
        if peak is None:
            for launch in own:
                launch.kernel[launch.grid](*launch.arguments, **launch.options)
            yield row(f"{workload.name}: {name}", note=f"{ABSENT}; {note}")
            continue
        # Of many launches, such as those of SLIC's iterations, a few stand for all.
        some = own[:: -(-len(own) // 8)]
        measured = sum(launch.milliseconds(session.device) for launch in some) * len(own) / len(some)
        total += measured
        yield row(f"{workload.name}: {name}", measured, "ms", note)
    seconds = session.seconds_of(workload.run)
    least = workload.least() if workload.least else None
    if peak is None or seconds is None:
        yield row(workload.name, note=session.counts())
        return
    note = "with the host's work" + (f"; kernels alone {total:.3g} ms" if total else "")
    if least is None:
        yield row(workload.name, seconds * 1e3, "ms", note)
        return
    floors = {"operations": least.operations / peak[0], "bytes": least.bytes / peak[1]}
    bound = max(floors, key=lambda name: floors[name])
    share = floors[bound] / (total / 1e3 if total else seconds)
    yield row(workload.name, seconds * 1e3, "ms", note, share=share, bound=bound)


# ---------------------------------------------------------------- the label pipeline


def pipeline(session: Session) -> Iterator[Row]:
    """Time labeling, in memory and from files to files, beside the published procedure on two cores."""
    frames, trials = session.frames, session.of(100, 2)
    targets = session.context.targets
    try:
        peer: tuple[str, float] | None = _peer_rate(session, trials)
    except Exception as error:
        peer = None
        yield row("published procedure on the CPU", note=failure(error))
    configs = {"default": preset("default"), f"paper, K = {trials}": preset("paper", trials=trials)}
    for name, config in configs.items():
        warm_up(config, session.device)
        clock = Clock()
        seconds = session.seconds_of(partial(label, frames, config, session.device, clock), 4.0)
        stages = clock.least()
        note = f"{(seconds or 0) * 1e3:.2f} ms" if seconds else ""
        note += "; host: " + ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in stages.items())
        yield rate_row(
            session, f"memory to memory, {name}", targets, "targets", seconds, peer, note.removeprefix("; ")
        )
    for name, config in configs.items():
        try:
            yield _files_row(session, name, config, peer)
        except Exception as error:
            yield row(f"files to files, {name}", note=failure(error))


def _peer_rate(session: Session, trials: int) -> tuple[str, float]:
    """Return name and rate, in targets per second, of the published procedure in two processes."""
    frames = session.frames
    refine = "crf" if has_pydensecrf() else "threshold"
    byte = [place for place, image in enumerate(frames.images) if image.dtype == np.uint8]
    own = frames.chosen(byte[: session.of(len(byte), 2)])
    both = zip(own.names, own.images, own.points(0), strict=True)
    items = [make_item(name, image, points, 0) for name, image, points in both]
    with ReferencePool(PEER_CORES, refine) as pool:
        seconds = pool.label(items, trials).seconds["total"]
    name = "scikit-image" + (" + pydensecrf" if refine == "crf" else " and a threshold")
    return f"{name}, {PEER_CORES} processes", sum(len(item.windows) for item in items) / seconds


def _files_row(session: Session, name: str, config: LabelConfig, peer: tuple[str, float] | None) -> Row:
    pairs = session.context.pairs
    images, masks = (next(iter(pairs.values()))[place].parent for place in (0, 1))
    seconds: list[float] = []
    summary: dict[str, Any] = {}
    if session.record is not None:
        session.record.clear()
    with tempfile.TemporaryDirectory(prefix="mclc-gpu-bench-") as scratch:
        listed = Path(scratch) / "names.txt"
        listed.write_text("".join(f"{stem}\n" for stem in pairs), encoding="utf-8")
        for number in range(session.of(3, 1)):
            options = LabelOptions(
                images=images, points_from_masks=masks, list=listed, out=Path(scratch) / f"out{number}",
                device="cuda", config=config,
            )  # fmt: skip
            start = time.perf_counter()
            summary = label_dataset(options).summary
            seconds.append(time.perf_counter() - start)
    stages = ", ".join(f"{stage} {value:.2f} s" for stage, value in summary["seconds"].items())
    taken = None if session.record is not None else min(seconds)
    targets = int(summary["targets"])
    return rate_row(session, f"files to files, {name}", targets, "targets", taken, peer, stages)


# ---------------------------------------------------------------- public operations


def operations(session: Session) -> Iterator[Row]:
    """Time `slic`, `kmeans` and the dense CRF of images beside scikit-image and pydensecrf on two cores."""
    device = session.device
    plain = baselines()["scikit-image"]
    for height, width, count in (
        (240, 320, 1),
        (512, 640, 1),
        (1024, 1024, 1),
        (2048, 2048, 1),
        (240, 320, 64),
    ):
        height, width, count = session.of(height, 32), session.of(width, 40), session.of(count, min(count, 2))
        host = _images(height, width, count)
        images, segments = host.to(device), max(4, height * width // _INTERVAL**2)
        work = f"slic, {count} of {width} x {height}"
        try:
            seconds = session.seconds_of(partial(slic, images, segments, _COMPACTNESS))
            peer = None
            if height * width <= 1 << 20 and session.left > 0:
                pixels = np.ascontiguousarray(host[0].permute(1, 2, 0).numpy())
                start = time.perf_counter()
                plain(pixels, segments, _COMPACTNESS)
                # It has one thread: two images at a time on two cores, one image no faster.
                peer = "scikit-image", min(count, PEER_CORES) / (time.perf_counter() - start)
            yield rate_row(session, work, count, "images", seconds, peer)
        except Exception as error:
            yield row(work, note=failure(error))
    side, count = session.of(64, 16), session.of(64, 2)
    away = torch.hypot(*(torch.arange(side) - side / 2.0).expand(2, side, side).clone())
    potential = torch.exp(-0.5 * (away / (side / 8)) ** 2).expand(count, side, side).contiguous().to(device)
    colors = _images(side, side, count)[:, :1].contiguous().to(device)
    work = f"dense CRF, {count} windows of {side} x {side}"
    seconds = session.seconds_of(lambda: dense_crf_images(potential, colors))
    yield rate_row(session, work, count, "windows", seconds)
    images = _images(side, side, count).to(device)
    seconds = session.seconds_of(lambda: kmeans(images, 16, _COMPACTNESS))
    yield rate_row(session, f"kmeans, {count} of {side} x {side}, 16 clusters", count, "images", seconds)


# ---------------------------------------------------------------- training


def training(session: Session) -> Iterator[Row]:
    """Time training steps of every detector; without a CUDA device one small step on the CPU."""
    device = session.device if session.record is None else _CPU
    pairs = session.context.pairs
    samples = [Sample(name, image, mask) for name, (image, mask) in pairs.items()][: session.of(64, 4)]
    for name in NETWORKS:
        for amp in (False, True) if session.record is None else (False,):
            work = f"training {name}" + (", bfloat16" if amp else "")
            if session.left < 0:
                yield row(work, note="left out: no time")
                continue
            try:
                size, batch = session.of(256, 64), session.of(16, 2)
                config = TrainConfig(name, "paper", amp=amp, size=size, batch_size=batch)
                yield _training_row(session, work, config, samples, device)
            except Exception as error:
                yield row(work, note=failure(error))


def _training_row(
    session: Session, work: str, config: TrainConfig, samples: Sequence[Sample], device: torch.device
) -> Row:
    data = open_training_set(list(samples), config.channels, device)
    trainer = Trainer(config, data, Ranks(device))
    plan = plan_epoch(len(data.samples), config.batch_size, config.seed, 0)
    crops, truth = next(iter(data.batches(plan, config.batch_size, config.size)))
    work += f", {config.batch_size} crops of {config.size} x {config.size}"
    if session.record is not None:
        trainer.step(crops, truth)
        return row(work, note=ABSENT)
    trainer.step(crops, truth)
    seconds = session.seconds_of(lambda: trainer.step(crops, truth), 1.5)
    return rate_row(session, work, config.batch_size, "images", seconds)


# ---------------------------------------------------------------- the kernels' tests

_RESULT = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", re.MULTILINE)


def tests(session: Session) -> Iterator[Row]:
    """Run the tests of the kernels on the device, a process for each file; elsewhere only collect them."""
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    if missing or not files:
        why = f"not installed: {', '.join(missing)}" if missing else "no checkout: tests/ is not there"
        yield row("tests of the kernels", note=f"not run: {why}")
        return
    if session.record is not None:
        text, _ = _pytest(["--collect-only", "-q", *map(str, files)], session.left)
        yield row("tests of the kernels", note=f"{ABSENT}; {text.count('::')} tests found")
        return
    # Most of the time is the compilation of kernels, on one core for each process.
    with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
        ran = list(pool.map(lambda file: _pytest(["-v", str(file)], session.left - 5), files))
    for file, (text, in_time) in zip(files, ran, strict=True):
        results = dict(_RESULT.findall(text))
        counted = Counter(results.values())
        note = [f"{number} {name.lower()}" for name, number in counted.items()]
        note += [] if in_time else ["stopped: no time"]
        failed = [name for name, outcome in results.items() if outcome in ("FAILED", "ERROR")]
        note += [f"failed: {name.partition('::')[2]}" for name in failed[:5]]
        work = f"tests of the kernels, {file.stem.removeprefix('test_')}"
        yield row(work, float(counted["PASSED"]), "passed", "; ".join(note) or text.strip()[-300:])


def _pytest(arguments: Sequence[str], seconds: float) -> tuple[str, bool]:
    """Run pytest in a process of its own; return what it prints, and whether it ended in time."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            process.wait(max(seconds, 1))
            in_time = True
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            in_time = False
        output.seek(0)
        return output.read(), in_time


def failure(error: BaseException) -> str:
    """Describe an error in one line."""
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


# Parts in the order in which they run, and the share of the whole time after which each must have ended.
PARTS: dict[str, tuple[Callable[[Session], Iterator[Row]], float]] = {
    "agreement": (agreement, 0.30),
    "kernels": (kernels, 0.22),
    "pipeline": (pipeline, 0.16),
    "operations": (operations, 0.12),
    "training": (training, 0.14),
    "tests": (tests, 1.0),
}
