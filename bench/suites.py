"""The benchmark suites that `mclc-gpu bench` and pytest-benchmark run."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from mclc_gpu.bench.compare import Absent, Contest, Contestant, clocked
from mclc_gpu.bench.dataset import REFERENCE, Ground, has_pydensecrf, without_pydensecrf
from mclc_gpu.bench.peers import Peer, PlainCrops, peers
from mclc_gpu.bench.reference import Item, cluster_alone, dense_crf, make_item
from mclc_gpu.bench.reference import dense_crf as reference_crf
from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.synthetic import scene
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.crf import dense_crf_images
from mclc_gpu.kernels.slic import slic
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.pipeline import TargetMask, by_image, cluster_targets, compose, refine_targets, warm_up
from mclc_gpu.labels.windows import PlacedTarget, place_targets
from mclc_gpu.networks.zoo import build
from mclc_gpu.train.config import OPTIMIZERS, TrainConfig
from mclc_gpu.train.data import TrainingSet, open_training_set, plan_epoch
from mclc_gpu.train.trainer import Trainer, detector_loss

INTERVAL, COMPACTNESS = 20, 10.0  # mean side of a segment in pixels
# Height and width of a single image, and seconds that the contest may take.
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
    "colours in 8 bits, and fast-slic in 16-bit integers from every third row at a time. The images are "
    "synthetic. Of several the peers take one at a time in a process per core."
)
_DRAWN = 1024  # larger images repeat one of this size, which is drawn in a tenth of the time
_kept: list[np.ndarray] = []  # in a process of the pool, the images of the present contest


def single(ground: Ground, height: int, width: int, seconds: float) -> Contest:
    """One image."""
    height, width = ground.of(height, height // 8), ground.of(width, width // 8)
    frame = scene(0, 0, size=(min(height, _DRAWN), min(width, _DRAWN))).image
    image = _colour(np.tile(frame, (-(-height // _DRAWN), -(-width // _DRAWN))))
    segments = _segments(height, width)
    own = _own(image[None], segments, ground.device)
    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), 1, own=True)]
    for name, peer in _peers(ground.device).items():
        peer(image[:48, :64].copy(), 8, COMPACTNESS)
        run = clocked(partial(peer, image, segments, COMPACTNESS), ground.device)
        contestants.append(Contestant(name, run, 1))
    work = f"SLIC, 1 image of {width}x{height}"
    return Contest(work, "images", contestants, ground.time(seconds), _absent(ground.device), _REMARK)


def batch(ground: Ground, height: int, width: int, count: int, seconds: float) -> Contest:
    """Images of one size at once."""
    height, width, count = ground.of(height, height // 8), ground.of(width, width // 8), ground.of(count, 2)
    made = [_colour(scene(0, index, size=(height, width)).image) for index in range(count)]
    images, segments = np.stack(made), _segments(height, width)
    own = _own(images, segments, ground.device)
    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), count, own=True)]
    for name in peers():

        def run(name: str = name) -> float:
            ground.pool.each(_keep, images, name)
            return ground.pool.seconds(partial(_segment_kept, name, segments), range(count))

        contestants.append(Contestant(name, run, count))
    work = f"SLIC, {count} images of {width}x{height}"
    return Contest(work, "images", contestants, ground.time(seconds), _absent(ground.device), _REMARK)


_SLIC_CONTESTS: dict[str, Callable[[Ground], Contest]] = {
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
    """In a process of the pool: have the images and the peer at hand when the clock starts."""
    _kept[:] = images
    _segment_kept(name, 4, 0)


def _segment_kept(name: str, segments: int, index: int) -> None:
    peers()[name](_kept[index], segments, COMPACTNESS)


def _own(images: np.ndarray, segments: int, device: torch.device) -> Callable[[], object]:
    def run(images: np.ndarray = images) -> np.ndarray:
        planar = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        return slic(planar, segments, COMPACTNESS).cpu().numpy()

    run(images[:, :48, :64])
    return run


def _segments(height: int, width: int) -> int:
    return max(4, height * width // INTERVAL**2)


def _colour(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], as all peers can take it."""
    return np.ascontiguousarray(np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image)


def _peers(device: torch.device) -> dict[str, Peer]:
    found = peers()
    if device.type == "cuda" and importlib.util.find_spec("cuda_slic"):
        segment = importlib.import_module("cuda_slic.slic").slic
        found["cuda-slic"] = lambda image, n, compactness: segment(
            image, n_segments=n, compactness=compactness, max_iter=10
        )
    return found


def _absent(device: torch.device) -> tuple[Absent, ...]:
    present = _peers(device)
    missing = {name: f"not installed: {how}" for name, how in HOW_TO_GET.items() if name not in present}
    if device.type == "cpu":
        missing["cuda-slic"] = "runs on CUDA devices only"
    return tuple(Absent(name, why) for name, why in missing.items())


# Side of the windows, and how many of them make up a run.
SIZES = {"16": (16, 512), "32": (32, 256), "64": (64, 64), "128": (128, 8), "256": (256, 2)}

_CRF_REMARK = (
    "Dense CRF: mclc-gpu sums over all pairs of a window's pixels, pydensecrf approximates these sums. "
    "The windows are synthetic."
)


def windows(ground: Ground, side: int, count: int) -> Contest:
    """One mean-field step in `count` windows of synthetic frames, from a blob around the middle."""
    count = ground.of(count, 2)
    side = ground.of(side, side // 4)
    shape = (max(side, 64),) * 2
    frames = [scene(0, index, size=shape).image[:side, :side] for index in range(min(count, 16))]
    images = np.stack([frames[index % len(frames)] for index in range(count)])
    away = np.hypot(*np.mgrid[:side, :side] - (side - 1) / 2)
    probability = np.exp(-0.5 * (away / (side / 8)) ** 2).astype(np.float32)
    potential = torch.from_numpy(np.tile(probability, (count, 1, 1))).to(ground.device)
    colours = torch.from_numpy(images[:, None]).to(ground.device)
    dense_crf_images(potential[:, :8, :8].contiguous(), colours[:, :, :8, :8])

    def own() -> object:
        return dense_crf_images(potential, colours)

    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), count, own=True)]
    if has_pydensecrf():
        crops = [np.repeat(image[:, :, None], 3, axis=2) for image in images]
        run = partial(ground.pool.seconds, reference_crf, crops, [probability] * count)
        contestants.append(Contestant("pydensecrf", run, count))
    work = f"dense CRF, {count} windows of {side}x{side}"
    return Contest(work, "windows", contestants, ground.time(3), without_pydensecrf(), _CRF_REMARK)


_CRF_CONTESTS: dict[str, Callable[[Ground], Contest]] = {
    name: partial(windows, side=side, count=count) for name, (side, count) in SIZES.items()
}

# K of this package, and of the reference where its rate does not depend on K and a round takes seconds.
TRIALS, REFERENCE_TRIALS = 50, 10


def clustering(ground: Ground) -> Contest:
    """Noise, SLIC with connectivity enforcement and the segment under the click, in K trials."""
    trials = ground.of(TRIALS, 2)
    config = preset("paper", trials=trials)
    placed = _placed(ground, config)
    warm_up(config, ground.device)

    def own() -> object:
        return cluster_targets(ground.frames.images, placed, config, ground.device)

    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), trials * len(placed), own=True)]
    items, absent = _items(ground)
    if items:
        fewer = min(trials, REFERENCE_TRIALS)
        run = partial(ground.pool.seconds, partial(cluster_alone, trials=fewer), items)
        contestants.append(Contestant("scikit-image", run, fewer * len(placed)))
    work = f"noise and SLIC, {len(placed)} targets, K = {trials}"
    return Contest(work, "trials", contestants, ground.time(8), absent)


def refining(ground: Ground) -> Contest:
    """The dense CRF of the same windows, from their target probability maps to masks."""
    config = preset("paper", trials=ground.of(TRIALS, 2))
    placed = _placed(ground, config)
    warm_up(config, ground.device)
    groups = cluster_targets(ground.frames.images, placed, config, ground.device)

    def own() -> list[TargetMask]:
        return refine_targets(placed, groups, config)

    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), len(placed), own=True)]
    items, absent = _items(ground)
    if items and has_pydensecrf():
        crops = [items[p.image].image[p.window.area] for p in placed]
        maps = [target.tpm for target in own()]
        run = partial(ground.pool.seconds, dense_crf, crops, maps)
        contestants.append(Contestant("pydensecrf", run, len(placed)))
    work = f"dense CRF, {len(placed)} targets"
    return Contest(work, "targets", contestants, ground.time(5), absent or without_pydensecrf())


def chain(ground: Ground) -> Contest:
    """From images and clicks to the images' masks, with the category given, by both presets."""
    trials = ground.of(TRIALS, 2)
    configs = {"paper": preset("paper", trials=trials), "default": preset("default")}
    contestants = []
    for name, config in configs.items():
        warm_up(config, ground.device)
        run = clocked(_labelling(ground, config), ground.device)
        contestants.append(Contestant(f"mclc-gpu, preset {name}", run, ground.targets, own=True))
    items, absent = _items(ground)
    if items and has_pydensecrf():

        def reference() -> float:
            return ground.pool.label(items, trials).seconds["total"]

        contestants.append(Contestant(REFERENCE, reference, ground.targets))
    work = f"whole chain, {ground.targets} targets, paper's K = {trials}"
    remark = (
        "Whole chain: from images and clicks in memory to masks. Preset default makes no trials and no CRF."
    )
    return Contest(work, "targets", contestants, ground.time(28), absent or without_pydensecrf(), remark)


_LABEL_CONTESTS: dict[str, Callable[[Ground], Contest]] = {
    "clustering": clustering,
    "refining": refining,
    "chain": chain,
}


def _placed(ground: Ground, config: LabelConfig) -> list[PlacedTarget]:
    frames = ground.frames
    return place_targets(frames.images, frames.points(0), frames.names, config, 0, ground.device)[0]


def _labelling(ground: Ground, config: LabelConfig) -> Callable[[], object]:
    frames, device = ground.frames, ground.device

    def label() -> list[np.ndarray]:
        placed = _placed(ground, config)
        targets = refine_targets(placed, cluster_targets(frames.images, placed, config, device), config)
        both = zip(frames.images, by_image(targets, len(frames.images)), strict=True)
        return [compose(image.shape[:2], found)[0] for image, found in both]

    return label


def _items(ground: Ground) -> tuple[list[Item], tuple[Absent, ...]]:
    """The frames as the reference takes them, with the windows that the paper's preset clusters."""
    frames = ground.frames
    try:
        each = zip(frames.names, frames.images, frames.points(0), strict=True)
        return [make_item(name, image, points, 0) for name, image, points in each], ()
    except InputError as error:
        return [], (Absent(REFERENCE, f"cannot take these images: {error}"),)


Batch = tuple[torch.Tensor, torch.Tensor]
PEER = "DataLoader loop"


def peer_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Batches of the peer, on the device, without end."""
    files = [(sample.image, sample.mask) for sample in data.samples]
    loader = DataLoader(
        PlainCrops(files, data.mean, data.std, config.size, config.batch_size),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=min(os.cpu_count() or 1, 8),
        persistent_workers=True,
        # Forked from a process with threads, as this one is, workers may hang when they are to end.
        multiprocessing_context="spawn",
        pin_memory=data.device.type == "cuda",
    )
    while True:
        for images, truth in loader:
            yield images.to(data.device, non_blocking=True), truth.to(data.device, non_blocking=True)


def own_batches(data: TrainingSet, config: TrainConfig) -> Iterator[Batch]:
    """Batches of this package, without end."""
    epoch = 0
    while True:
        plan = plan_epoch(len(data.samples), 8 * config.batch_size, config.seed, epoch)
        yield from data.batches(plan, config.batch_size, config.size)
        epoch += 1


def peer_step(data: TrainingSet, config: TrainConfig) -> Callable[[Batch], object]:
    """One step of the peer."""
    network = build(config.network).to(data.device)
    optimizer = OPTIMIZERS[config.optimizer](network.parameters(), lr=config.first_lr)

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


def data_alone(ground: Ground) -> Contest:
    """Batches without the network."""
    data, config = _opened(ground)
    # Many of them, so that what workers had ready before the clock hardly counts.
    steps = ground.of(30, 4)
    contestants = []
    both = (("mclc-gpu", own_batches(data, config)), (PEER, _started(peer_batches(data, config))))
    for name, batches in both:
        run = clocked(partial(_steps, _nothing, batches, steps), ground.device)
        contestants.append(Contestant(name, run, steps, own=name != PEER))
    return Contest(f"data alone, {_batch_of(config)}", "steps", contestants, ground.time(6))


def training(ground: Ground) -> Contest:
    """Whole steps: batch, network forward and backward, optimiser.

    What the workers of the peer read ahead they read in this package's turn, which favours the peer a little.
    """
    data, config = _opened(ground)
    steps = ground.of(20 if ground.device.type == "cuda" else 1, 1)
    configs = {"mclc-gpu": config}
    if ground.device.type == "cuda":
        configs["mclc-gpu, bfloat16"] = replace(config, amp=True)
    contestants = []
    for name, own in configs.items():
        trainer = Trainer(own, data, Ranks(data.device))
        work = partial(_steps, partial(_own_step, trainer), own_batches(data, own), steps)
        contestants.append(Contestant(name, clocked(work, ground.device), steps, own=True))
    peer = partial(_steps, peer_step(data, config), _started(peer_batches(data, config)), steps)
    contestants.append(Contestant(PEER, clocked(peer, ground.device), steps))
    return Contest(f"training {config.network}, {_batch_of(config)}", "steps", contestants, ground.time(12))


_TRAIN_CONTESTS: dict[str, Callable[[Ground], Contest]] = {"data": data_alone, "training": training}


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches after the first, which starts the workers."""
    next(batches)
    return batches


def _opened(ground: Ground) -> tuple[TrainingSet, TrainConfig]:
    samples = [Sample(name, image, mask) for name, (image, mask) in ground.pairs.items()]
    config = TrainConfig("acm", size=ground.of(256, 32), batch_size=ground.of(16, 2))
    return open_training_set(samples, config.channels, ground.device), config


def _batch_of(config: TrainConfig) -> str:
    return f"{config.batch_size} crops of {config.size}x{config.size}"


# Contests by name, each built when its turn comes.
SUITES: dict[str, Mapping[str, Callable[[Ground], Contest]]] = {
    "label": _LABEL_CONTESTS,
    "slic": _SLIC_CONTESTS,
    "crf": _CRF_CONTESTS,
    "train": _TRAIN_CONTESTS,
}
