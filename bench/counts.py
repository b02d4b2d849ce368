"""Least operations and bytes of the kernels, counted for real inputs.

An operation is one on a 32-bit number: an addition, product, comparison, choice, shift; a fused multiply-add
where it is allowed. What addresses, loops and loads cost is not counted: it is the overhead to be found.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from mclc_gpu.kernels.color_cpu import float_bits
from mclc_gpu.kernels.crf import CrfConfig
from mclc_gpu.kernels.features_cpu import palette, trial_features
from mclc_gpu.kernels.grid import grid_centres, window_steps
from mclc_gpu.kernels.jit_cpu import compiled
from mclc_gpu.kernels.trials import PackedImages, TrialConfig, trial_grids
from mclc_gpu.kernels.trials_cpu import allocate, assign, restart, settings, update

# Of a pixel and a centre that reaches it (eq. 2, 3): five differences, their squares and sums, one weight;
# a comparison, two choices.
_ASSIGN = {False: 5 + 6 + 4 + 3, True: 5 + 6 + 3}  # fused or not
# Of a pixel: ten rounds of Philox (two products of 64 bits, four exclusive ors); three thresholds, choices.
_NOISE = 10 * (4 + 4) + 3 * 3
# Of a pixel and a subset of replaced channels, once per window: three curves of the linear light, matrix,
# three cube roots, CIELAB.
_COLOUR = 3 * 30 + 15 + 3 * 20 + 6 + 3
# Of a pixel: pixels, rows, columns, three colours of its cluster (eq. 4).
_UPDATE = 6
# Of a pixel: one look in raster order; four neighbours, each compared, chosen and taken into the queue.
_FLOOD = 1 + 4 * 3
# Of a pixel: compared with the click's label and counted.
_COUNT = 2
# Of a pair of pixels: 2^-x as a polynomial on the CPU, one instruction on a GPU.
_POWER = {"cpu": 11, "cuda": 1}


class Work(NamedTuple):
    """Of one kernel or stage."""

    operations: float
    bytes: float


class Steps(NamedTuple):
    """What all trials together go through.

    Attributes
    ----------
    pixels : int
        Trials x pixels.
    pairs : int
        Pixels x centres that reach them, over all assignments.
    updated : int
        Pixels, over all updates.
    """

    pixels: int
    pairs: int
    updated: int


@compiled()
def _replay(
    data: Any, images: Any, windows: Any, keys: Any, grids: Any, centres: Any, settings: Any, trials: Any
) -> Any:
    pixels = pairs = updated = 0
    for t in range(windows.shape[0]):
        image, top, left, h, w, _, _, target = windows[t]
        offset, height, width, channels = images[image]
        first, number, reach_y, reach_x, interval = grids[t]
        p = palette(data[offset:], height, width, channels, top, left, h, w, settings.noise)
        s = allocate(h, w, number)
        far_y = np.float32(reach_y) if settings.windowed else np.float32(np.inf)
        far_x = np.float32(reach_x) if settings.windowed else np.float32(np.inf)
        weight = np.float32(1.0 / (interval * interval))
        for trial in range(trials):
            trial_features(p, np.uint64(keys[t]), trial, target, settings.noise, s.pixels[2:5])
            restart(s, centres[first : first + number])
            pixels += h * w
            for i in range(settings.iterations):
                living = int(s.alive.sum())
                changed = assign(s, h, w, far_y, far_x, weight)
                for k in range(living):
                    extent = float_bits(s.table[k, 6])
                    pairs += ((extent >> 16) + 1) * ((extent & 0xFFFF) + 1)
                if (i > 0 and not changed) or i + 1 == settings.iterations:
                    break
                updated += h * w
                if update(s, h * w) < settings.tolerance * settings.tolerance:
                    break
    return pixels, pairs, updated


def trial_steps(
    images: PackedImages, windows: torch.Tensor, keys: torch.Tensor, config: TrialConfig, trials: int
) -> Steps:
    """Steps of the first trials of every target; arguments as of `mclc_gpu.kernels.trials.run_trials`."""
    centres, grids = trial_grids(windows, config.clusters)
    byte = images.data.dtype == torch.uint8
    return Steps(
        *_replay(
            images.data.cpu().numpy(), images.table.cpu().numpy(), windows.numpy(), keys.numpy(),
            grids.numpy(), centres.numpy(), settings(config, byte), trials,
        )
    )  # fmt: skip


def trial_work(steps: Steps, images: PackedImages, windows: torch.Tensor, fused: bool) -> dict[str, Work]:
    """Of the Monte Carlo pass by stage; windows are read and counts written once."""
    sizes = windows[:, 3] * windows[:, 4]
    channels = images.table.cpu()[windows[:, 0], 3]
    read = int((sizes * channels).sum()) * images.data.element_size()
    colours = 8 * _COLOUR * int(sizes.sum())
    return {
        "noise and colours": Work(_NOISE * steps.pixels + colours, read),
        "assignment": Work(_ASSIGN[fused] * steps.pairs, 0),
        "update": Work(_UPDATE * steps.updated, 0),
        "connectivity, counts": Work((_FLOOD + _COUNT) * steps.pixels, 4 * int(sizes.sum())),
    }


def crf_work(windows: torch.Tensor, features: int, config: CrfConfig, device: torch.device) -> Work:
    """Of the dense CRF with two classes on windows [windows, 2] of height and width.

    A weight is made once for both directions of its pair (`features` are the position's two and one or three
    colours), and is added to two sums in the normalisation and in every iteration; the smoothness kernel is
    separable. Probabilities and colours are read, probabilities written.
    """
    sizes = windows.prod(1).double()
    pairs = float((sizes * (sizes + 1) / 2).sum())
    weight = 2 * features + _POWER[device.type]
    along = np.minimum(windows.numpy(), 2 * np.ceil(7.45 * config.gaussian_sxy) + 1).sum(1)
    smooth = float((sizes.numpy() * along).sum()) * config.iterations
    total = float(sizes.sum())
    return Work(pairs * (weight + 2 + 2 * config.iterations) + smooth, total * (4 + 4 + features - 2))


def slic_work(height: int, width: int, segments: int, iterations: int, channels: int, fused: bool) -> Work:
    """Of SLIC on one image, all iterations with the windows of the start grid, without connectivity."""
    ys, xs, _, _ = grid_centres(height, width, segments)
    step_y, step_x = window_steps(height, width, len(ys))
    rows = np.minimum(ys + 2 * step_y + 1, height) - np.maximum(ys - 2 * step_y, 0)
    columns = np.minimum(xs + 2 * step_x + 1, width) - np.maximum(xs - 2 * step_x, 0)
    pairs = float((rows * columns).sum())
    assign = _ASSIGN[fused] - (3 - channels) * (2 if fused else 3)
    pixels = height * width
    update = (3 + channels) * pixels * (iterations - 1)
    return Work(iterations * pairs * assign + update, pixels * (4 * channels + 4))


def component_work(pixels: int, targets: int, levels: int, data_bytes: int) -> Work:
    """Of the vote of components: each pixel looks at four neighbours for the level at which it joins the
    target (a minimum and a maximum each) and is added to six sums of its level; each level is scored (some
    forty operations). Windows are read, TPMs written."""
    return Work(pixels * (4 * 2 + 6) + targets * levels * 40, data_bytes + 4 * pixels)
