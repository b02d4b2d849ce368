"""Contests of the label chain against scikit-image and pydensecrf on all cores: its stages and the whole."""

from collections.abc import Callable
from functools import partial

import numpy as np

from mclc_gpu.bench.contest import Absent, Contest, Contestant, clocked
from mclc_gpu.bench.cpu_reference import Item, cluster_alone, dense_crf, make_item
from mclc_gpu.bench.ground import REFERENCE, Ground, has_pydensecrf, without_pydensecrf
from mclc_gpu.errors import InputError
from mclc_gpu.labelconfig import LabelConfig, preset
from mclc_gpu.labeling import TargetMask, cluster_targets, compose, refine_targets, warm_up
from mclc_gpu.placing import PlacedTarget, place_targets

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


CONTESTS: dict[str, Callable[[Ground], Contest]] = {
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
        of_image: list[list[TargetMask]] = [[] for _ in frames.images]
        for target in targets:
            of_image[target.image].append(target)
        both = zip(frames.images, of_image, strict=True)
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
