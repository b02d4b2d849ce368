"""Benchmarks of labeling, SLIC, the dense CRF and training, by suite, and of cost over growing work."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from mclc_gpu.bench import untrained
from mclc_gpu.bench.compare import Absent, Benchmark, Contender, clocked
from mclc_gpu.bench.dataset import REFERENCE, Context, has_pydensecrf, without_pydensecrf
from mclc_gpu.bench.reference import (
    Baseline,
    Item,
    PlainCrops,
    baselines,
    cluster_alone,
    dense_crf,
    make_item,
)
from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.synthetic import scene
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.crf import dense_crf_images
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.slic import slic
from mclc_gpu.kernels.trials import run_trials
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.pipeline import (
    TargetMask,
    by_image,
    cluster_targets,
    compose,
    refine_targets,
    warm_up,
)
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.windows import PlacedTargets, Window, nearest_pixel
from mclc_gpu.networks.zoo import build
from mclc_gpu.train.config import TrainConfig
from mclc_gpu.train.data import TrainingSet, open_training_set, plan_epoch
from mclc_gpu.train.losses import detector_loss
from mclc_gpu.train.trainer import Trainer, make_optimizer

INTERVAL, COMPACTNESS = 20, 10.0  # mean side of a segment in pixels
# Height and width of a single image, and the time budget in seconds.
SINGLE = {
    "320x240": (240, 320, 2.0),
    "640x512": (512, 640, 3.0),
    "1024x1024": (1024, 1024, 6.0),
    "2048x2048": (2048, 2048, 15.0),
    "4096x4096": (4096, 4096, 25.0),
}
BATCHES = {"64 of 320x240": (240, 320, 64, 5.0), "16 of 640x512": (512, 640, 16, 5.0)}
HOW_TO_GET = {
    "OpenCV": "pip install opencv-contrib-python-headless, in place of opencv-python-headless",
    "fast-slic": "pip install 'cython<3' setuptools && pip install --no-build-isolation fast-slic",
    "cuda-slic": "pip install cuda-slic cupy",
}
_REMARK = (
    "SLIC: scikit-image gives the same segments as mclc-gpu; OpenCV and fast-slic compute others, with "
    "colors in 8 bits, and fast-slic in 16-bit integers from every third row at a time. The images are "
    "synthetic. The baselines segment batches one image at a time in a process per core."
)
_DRAWN = 1024  # larger images repeat one of this size, which is drawn in a tenth of the time
_kept: list[np.ndarray] = []  # in a process of the pool, the images of the current benchmark


def single(context: Context, height: int, width: int, seconds: float) -> Benchmark:
    """Segment one image."""
    height, width = context.of(height, height // 8), context.of(width, width // 8)
    frame = scene(0, 0, size=(min(height, _DRAWN), min(width, _DRAWN))).image
    image = _color(np.tile(frame, (-(-height // _DRAWN), -(-width // _DRAWN))))
    segments = _segments(height, width)
    own = _own(image[None], segments, context.device)
    contenders = [Contender("mclc-gpu", clocked(own, context.device), 1, own=True)]
    for name, baseline in _baselines(context.device).items():
        baseline(image[:48, :64].copy(), 8, COMPACTNESS)
        run = clocked(partial(baseline, image, segments, COMPACTNESS), context.device)
        contenders.append(Contender(name, run, 1))
    work = f"SLIC, 1 image of {width}x{height}"
    return Benchmark(work, "images", contenders, context.time(seconds), _absent(context.device), _REMARK)


def batch(context: Context, height: int, width: int, count: int, seconds: float) -> Benchmark:
    """Segment images of one size at once."""
    height, width, count = (
        context.of(height, height // 8),
        context.of(width, width // 8),
        context.of(count, 2),
    )
    made = [_color(scene(0, index, size=(height, width)).image) for index in range(count)]
    images, segments = np.stack(made), _segments(height, width)
    own = _own(images, segments, context.device)
    contenders = [Contender("mclc-gpu", clocked(own, context.device), count, own=True)]
    for name in baselines():

        def run(name: str = name) -> float:
            context.pool.each(_keep, images, name)
            return context.pool.seconds(partial(_segment_kept, name, segments), range(count))

        contenders.append(Contender(name, run, count))
    work = f"SLIC, {count} images of {width}x{height}"
    return Benchmark(work, "images", contenders, context.time(seconds), _absent(context.device), _REMARK)


_SLIC_BENCHMARKS: dict[str, Callable[[Context], Benchmark]] = {
    **{
        name: partial(single, height=height, width=width, seconds=seconds)
        for name, (height, width, seconds) in SINGLE.items()
    },
    **{
        name: partial(batch, height=height, width=width, count=count, seconds=seconds)
        for name, (height, width, count, seconds) in BATCHES.items()
    },
}


def _keep(images: np.ndarray, name: str) -> None:
    """Store the images in a process of the pool and load the baseline before the clock starts."""
    _kept[:] = images
    _segment_kept(name, 4, 0)


def _segment_kept(name: str, segments: int, index: int) -> None:
    baselines()[name](_kept[index], segments, COMPACTNESS)


def _own(images: np.ndarray, segments: int, device: torch.device) -> Callable[[], object]:
    def run(images: np.ndarray = images) -> np.ndarray:
        planar = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        return slic(planar, segments, COMPACTNESS).cpu().numpy()

    run(images[:, :48, :64])
    return run


def _segments(height: int, width: int) -> int:
    return max(4, height * width // INTERVAL**2)


def _color(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3], which all baselines accept."""
    return np.ascontiguousarray(np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image)


def _baselines(device: torch.device) -> dict[str, Baseline]:
    found = baselines()
    if device.type == "cuda" and importlib.util.find_spec("cuda_slic"):
        segment = importlib.import_module("cuda_slic.slic").slic
        found["cuda-slic"] = lambda image, n, compactness: segment(
            image, n_segments=n, compactness=compactness, max_iter=10
        )
    return found


def _absent(device: torch.device) -> tuple[Absent, ...]:
    present = _baselines(device)
    missing = {name: f"not installed: {how}" for name, how in HOW_TO_GET.items() if name not in present}
    if device.type == "cpu":
        missing["cuda-slic"] = "runs on CUDA devices only"
    return tuple(Absent(name, why) for name, why in missing.items())


# Side of the windows, and their number in a run.
SIZES = {"16": (16, 512), "32": (32, 256), "64": (64, 64), "128": (128, 8), "256": (256, 2)}

_CRF_REMARK = (
    "Dense CRF: mclc-gpu sums over all pairs of a window's pixels, pydensecrf approximates these sums. "
    "The windows are synthetic."
)


def windows(context: Context, side: int, count: int) -> Benchmark:
    """Run one mean-field step in `count` windows of synthetic frames, from a blob around the center."""
    count = context.of(count, 2)
    side = context.of(side, side // 4)
    shape = (max(side, 64),) * 2
    frames = [scene(0, index, size=shape).image[:side, :side] for index in range(min(count, 16))]
    images = np.stack([frames[index % len(frames)] for index in range(count)])
    away = np.hypot(*np.mgrid[:side, :side] - (side - 1) / 2)
    probability = np.exp(-0.5 * (away / (side / 8)) ** 2).astype(np.float32)
    potential = torch.from_numpy(np.tile(probability, (count, 1, 1))).to(context.device)
    colors = torch.from_numpy(images[:, None]).to(context.device)
    dense_crf_images(potential[:, :8, :8].contiguous(), colors[:, :, :8, :8])

    def own() -> object:
        return dense_crf_images(potential, colors)

    contenders = [Contender("mclc-gpu", clocked(own, context.device), count, own=True)]
    if has_pydensecrf():
        crops = [np.repeat(image[:, :, None], 3, axis=2) for image in images]
        run = partial(context.pool.seconds, dense_crf, crops, [probability] * count)
        contenders.append(Contender("pydensecrf", run, count))
    work = f"dense CRF, {count} windows of {side}x{side}"
    return Benchmark(work, "windows", contenders, context.time(3), without_pydensecrf(), _CRF_REMARK)


_CRF_BENCHMARKS: dict[str, Callable[[Context], Benchmark]] = {
    name: partial(windows, side=side, count=count) for name, (side, count) in SIZES.items()
}

# K of this package, and of the reference, whose rate does not depend on K and whose rounds take seconds.
TRIALS, REFERENCE_TRIALS = 50, 10


def clustering(context: Context) -> Benchmark:
    """Run K trials: noise, SLIC with connectivity enforcement, and the segment under the click."""
    trials = context.of(TRIALS, 2)
    config = preset("paper", trials=trials)
    placed = _placed(context, config)
    warm_up(config, context.device)

    def own() -> object:
        return cluster_targets(context.frames.images, placed, config, context.device)

    contenders = [Contender("mclc-gpu", clocked(own, context.device), trials * len(placed), own=True)]
    items, absent = _items(context)
    if items:
        fewer = min(trials, REFERENCE_TRIALS)
        run = partial(context.pool.seconds, partial(cluster_alone, trials=fewer), items)
        contenders.append(Contender("scikit-image", run, fewer * len(placed)))
    work = f"noise and SLIC, {len(placed)} targets, K = {trials}"
    return Benchmark(work, "trials", contenders, context.time(8), absent)


def refining(context: Context) -> Benchmark:
    """Refine the target probability maps of the same windows to masks by the dense CRF."""
    config = preset("paper", trials=context.of(TRIALS, 2))
    placed = _placed(context, config)
    warm_up(config, context.device)
    groups = cluster_targets(context.frames.images, placed, config, context.device)

    def own() -> list[TargetMask]:
        return list(refine_targets(placed, groups, config))

    contenders = [Contender("mclc-gpu", clocked(own, context.device), len(placed), own=True)]
    items, absent = _items(context)
    if items and has_pydensecrf():
        crops = [items[p.image].image[p.window.area] for p in placed]
        maps = [target.tpm for target in own()]
        run = partial(context.pool.seconds, dense_crf, crops, maps)
        contenders.append(Contender("pydensecrf", run, len(placed)))
    work = f"dense CRF, {len(placed)} targets"
    return Benchmark(work, "targets", contenders, context.time(5), absent or without_pydensecrf())


def pipeline(context: Context) -> Benchmark:
    """Label images from clicks with given categories, by both presets."""
    trials = context.of(TRIALS, 2)
    configs = {"paper": preset("paper", trials=trials), "default": preset("default")}
    contenders = []
    for name, config in configs.items():
        warm_up(config, context.device)
        run = clocked(_labelling(context, config), context.device)
        contenders.append(Contender(f"mclc-gpu, preset {name}", run, context.targets, own=True))
    items, absent = _items(context)
    if items and has_pydensecrf():

        def reference() -> float:
            return context.pool.label(items, trials).seconds["total"]

        contenders.append(Contender(REFERENCE, reference, context.targets))
    work = f"whole pipeline, {context.targets} targets, paper's K = {trials}"
    remark = (
        "Whole pipeline: from images and clicks in memory to masks. Preset default runs no trials and no CRF."
    )
    return Benchmark(work, "targets", contenders, context.time(28), absent or without_pydensecrf(), remark)


_LABEL_BENCHMARKS: dict[str, Callable[[Context], Benchmark]] = {
    "clustering": clustering,
    "refining": refining,
    "pipeline": pipeline,
}


def _placed(context: Context, config: LabelConfig) -> PlacedTargets:
    frames = context.frames
    return place_targets(frames.images, frames.points(0), frames.names, config, 0, context.device)[0]


def _labelling(context: Context, config: LabelConfig) -> Callable[[], object]:
    frames, device = context.frames, context.device

    def label() -> list[np.ndarray]:
        placed = _placed(context, config)
        targets = refine_targets(placed, cluster_targets(frames.images, placed, config, device), config)
        both = zip(frames.images, by_image(targets, len(frames.images)), strict=True)
        return [compose(image.shape[:2], found)[0] for image, found in both]

    return label


def _items(context: Context) -> tuple[list[Item], tuple[Absent, ...]]:
    """Convert the frames for the reference, with the windows that the paper's preset clusters."""
    frames = context.frames
    try:
        each = zip(frames.names, frames.images, frames.points(0), strict=True)
        return [make_item(name, image, points, 0) for name, image, points in each], ()
    except InputError as error:
        return [], (Absent(REFERENCE, f"cannot take these images: {error}"),)


Batch = tuple[torch.Tensor, torch.Tensor]
BASELINE = "DataLoader loop"


def baseline_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Yield batches of the DataLoader baseline on the device, without end."""
    files = [(sample.image, sample.mask) for sample in data.samples]
    loader = DataLoader(
        PlainCrops(files, data.mean, data.std, config.size, config.batch_size),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=min(os.cpu_count() or 1, 8),
        persistent_workers=True,
        # Workers forked from a process with threads, as this one is, may hang at exit.
        multiprocessing_context="spawn",
        pin_memory=data.device.type == "cuda",
    )
    while True:
        for images, truth in loader:
            yield images.to(data.device, non_blocking=True), truth.to(data.device, non_blocking=True)


def own_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Yield batches of this package, without end."""
    epoch = 0
    while True:
        plan = plan_epoch(len(data.samples), 8 * config.batch_size, config.seed, epoch)
        yield from data.batches(plan, config.batch_size, config.size)
        epoch += 1


def baseline_step(data: TrainingSet, config: TrainConfig) -> Callable[[Batch], object]:
    """Return a function that runs one training step of the baseline."""
    network = build(config.network).to(data.device)
    optimizer = make_optimizer(config.resolved(), network)

    def step(batch: Batch) -> float:
        images, truth = batch
        loss = detector_loss(network(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _steps(step: Callable[[Batch], object], batches: Iterator[Batch], count: int) -> None:
    for batch in islice(batches, count):
        step(batch)


def _own_step(trainer: Trainer, batch: Batch) -> torch.Tensor:
    return trainer.step(*batch)


def _nothing(batch: Batch) -> None:
    del batch


def data_alone(context: Context) -> Benchmark:
    """Load batches without the network."""
    data, config = _opened(context)
    # Many, so that batches that workers had ready before the clock started hardly count.
    steps = context.of(30, 4)
    contenders = []
    both = (("mclc-gpu", own_batches(data, config)), (BASELINE, _started(baseline_batches(data, config))))
    for name, batches in both:
        run = clocked(partial(_steps, _nothing, batches, steps), context.device)
        contenders.append(Contender(name, run, steps, own=name != BASELINE))
    return Benchmark(f"data alone, {_batch_of(config)}", "steps", contenders, context.time(6))


def training(context: Context) -> Benchmark:
    """Run whole training steps: batch, forward and backward pass, optimizer.

    The baseline's workers prefetch during this package's turn, which favors the baseline a little.
    """
    data, config = _opened(context)
    steps = context.of(20 if context.device.type == "cuda" else 1, 1)
    configs = {"mclc-gpu": config}
    if context.device.type == "cuda":
        configs["mclc-gpu, bfloat16"] = replace(config, amp=True)
    contenders = []
    for name, own in configs.items():
        trainer = Trainer(own, data, Ranks(data.device))
        work = partial(_steps, partial(_own_step, trainer), own_batches(data, own), steps)
        contenders.append(Contender(name, clocked(work, context.device), steps, own=True))
    baseline = partial(_steps, baseline_step(data, config), _started(baseline_batches(data, config)), steps)
    contenders.append(Contender(BASELINE, clocked(baseline, context.device), steps))
    return Benchmark(f"training {config.network}, {_batch_of(config)}", "steps", contenders, context.time(12))


_TRAIN_BENCHMARKS: dict[str, Callable[[Context], Benchmark]] = {"data": data_alone, "training": training}


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Return the batches after the first, which starts the workers."""
    next(batches)
    return batches


def _opened(context: Context) -> tuple[TrainingSet, TrainConfig]:
    samples = [Sample(name, image, mask) for name, (image, mask) in context.pairs.items()]
    config = TrainConfig("acm", "paper", size=context.of(256, 32), batch_size=context.of(16, 2))
    return open_training_set(samples, config.channels, context.device), config


def _batch_of(config: TrainConfig) -> str:
    return f"{config.batch_size} crops of {config.size}x{config.size}"


# Benchmarks by suite and name, each built when its turn comes.
BENCHMARKS: dict[str, Mapping[str, Callable[[Context], Benchmark]]] = {
    "label": _LABEL_BENCHMARKS,
    "slic": _SLIC_BENCHMARKS,
    "crf": _CRF_BENCHMARKS,
    "train": _TRAIN_BENCHMARKS,
    "classical": untrained.BENCHMARKS,
}


# Targets, trials and side of the windows: one of the three grows, the others keep these values.
_BASE = {"targets": 32, "K": 20, "side": 21}
GROWING = {"targets": (4, 16, 64, 256), "K": (1, 5, 100, 500), "side": (6, 11, 42, 63)}
_BASELINE_SIZE = 1_500_000  # trials x pixels that the baseline clusters in about a second
_SECONDS = 1.0


def cost(context: Context, grows: str | None, value: int) -> Benchmark:
    """Run noise and SLIC with the quantity `grows` at a value and the others, or with None all, as usual."""
    usual = {"targets": 4, "K": 2, "side": 8} if context.quick else _BASE
    quantities = usual | ({grows: value} if grows else {})
    targets, trials, side = (quantities[name] for name in ("targets", "K", "side"))
    crops, clicks = _crops(context, targets, side)
    images = PackedImages.pack(crops, context.device)
    rows = [(t, 0, 0, *crop.shape[:2], *clicks[t], 0) for t, crop in enumerate(crops)]
    windows, keys = Windows.pack(rows), torch.arange(targets)
    size = trials * sum(crop.shape[0] * crop.shape[1] for crop in crops)

    def own() -> object:
        return run_trials(images, windows, keys, TrialConfig(), trials)

    contenders = [Contender("mclc-gpu", clocked(own, context.device), trials * targets, own=True)]
    absent: tuple[Absent, ...] = ()
    if crops[0].dtype != np.uint8:
        absent = (Absent("scikit-image", "cannot take these images: not 8 bits"),)
    elif size <= _BASELINE_SIZE:
        items = [_item(t, crop, clicks[t]) for t, crop in enumerate(crops)]
        run = partial(context.pool.seconds, partial(cluster_alone, trials=trials), items)
        contenders.append(Contender("scikit-image", run, trials * targets))
    text = ", ".join(f"{name} = {quantity}" for name, quantity in quantities.items())
    return Benchmark(
        f"noise and SLIC, {text}", "trials", contenders, context.time(_SECONDS), absent, size=size
    )


COST: dict[str, Callable[[Context], Benchmark]] = {
    "base": partial(cost, grows=None, value=0),
    **{
        f"{name} {value}": partial(cost, grows=name, value=value)
        for name, values in GROWING.items()
        for value in values
    },
}


def _crops(context: Context, targets: int, side: int) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Crop square windows around targets of the frames, starting over where there are too few targets."""
    frames = context.frames
    clicks = [(image, p) for image, own in zip(frames.images, frames.points(0), strict=True) for p in own]
    crops, places = [], []
    for number in range(targets):
        image, point = clicks[number % len(clicks)]
        height, width = image.shape[:2]
        row, column = nearest_pixel(point.x, point.y, height, width)
        top, left = (
            min(max(center - side // 2, 0), max(length - side, 0))
            for center, length in ((row, height), (column, width))
        )
        crops.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
        places.append((row - top, column - left))
    return crops, places


def _item(number: int, crop: np.ndarray, click: tuple[int, int]) -> Item:
    rgb = np.repeat(crop[:, :, None], 3, axis=2) if crop.ndim == 2 else crop
    height, width = crop.shape[:2]
    window = Window(0, 0, height, width, *click)
    return Item(str(number), np.ascontiguousarray(rgb), (window,))
