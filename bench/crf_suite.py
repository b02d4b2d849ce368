"""Contests of the dense CRF by window size, up to whole images, against pydensecrf on all cores.

This package's Gaussian kernels are exact, so its cost grows with the square of a window's pixels; the
permutohedral lattice of pydensecrf approximates them at a cost that grows with the pixels.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mclc_gpu.bench.contest import Contest, Contestant, clocked
from mclc_gpu.bench.cpu_reference import dense_crf as reference_crf
from mclc_gpu.bench.ground import Ground, has_pydensecrf, without_pydensecrf
from mclc_gpu.data.synthetic import scene
from mclc_gpu.kernels.crf import dense_crf_images

# Side of the windows, and how many of them make up a run.
SIZES = {"16": (16, 512), "32": (32, 256), "64": (64, 64), "128": (128, 8), "256": (256, 2)}

_REMARK = (
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
    return Contest(work, "windows", contestants, ground.time(3), without_pydensecrf(), _REMARK)


CONTESTS: dict[str, Callable[[Ground], Contest]] = {
    name: partial(windows, side=side, count=count) for name, (side, count) in SIZES.items()
}
