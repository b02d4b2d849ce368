"""Monte Carlo trials: K noisy clusterings of every target in one batched launch (paper, eq. 7 and 9)."""

from dataclasses import dataclass

import numpy as np
import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.packed import Marks, PackedImages, StartGrids, Windows
from mclc_gpu.kernels.slic import grid_centers, window_steps


@dataclass(frozen=True, eq=False)
class TrialCounts:
    """Number of trials that clustered each window pixel with the click, and with each further mark.

    Attributes
    ----------
    counts : Tensor [pixels of all windows], int32
        0 .. trials * (1 + marks of the target); window t in row-major order at offsets[t] : offsets[t + 1].
    offsets : Tensor [targets + 1], int64, on the CPU
    trials : int
    masks : Tensor [trials, pixels of all windows], uint8, or None
        Each trial's mask, or with further marks its counts, if requested.
    """

    counts: torch.Tensor
    offsets: torch.Tensor
    trials: int
    masks: torch.Tensor | None


def start_grids(windows: Windows, clusters: int) -> StartGrids:
    """Place the start centers of about `clusters` clusters in every window."""
    shapes, index = torch.unique(windows.shapes, dim=0, return_inverse=True)
    centers, rows, first = [], [], 0
    for height, width in shapes.tolist():
        ys, xs, step_y, step_x = grid_centers(height, width, clusters)
        centers.append(np.stack([ys, xs], axis=1))
        reach_y, reach_x = (2 * step for step in window_steps(height, width, len(ys)))
        rows.append((first, len(ys), reach_y, reach_x, max(step_y, step_x)))
        first += len(ys)
    table = torch.tensor(rows, dtype=torch.int64)[index]
    return StartGrids(torch.from_numpy(np.concatenate(centers)).float(), table)


def run_trials(
    images: PackedImages,
    windows: Windows,
    keys: torch.Tensor,
    config: TrialConfig,
    trials: int,
    *,
    marks: Marks | None = None,
    first_trial: int = 0,
    keep_masks: bool = False,
    backend: str | None = None,
) -> TrialCounts:
    """Cluster every window under independent noises; count each pixel's trials in the click's segment.

    A target with further marks counts the segment of the click and of every mark, so that a segment weighs as
    many times as it holds marks.

    The counts of a target depend on the images, its window, its key and the config alone: not on the other
    targets, their order, the batch, the backend (except for near ties in the last bit) or the number of
    devices.

    Parameters
    ----------
    images : PackedImages
    windows : Windows
        One for each target.
    keys : Tensor [targets], int64, on the CPU
        Key of each target's image, from the run's seed and the image's name.
    config : TrialConfig
    trials : int >= 1
        K of eq. 9.
    marks : Marks, optional
        Default: the clicks alone.
    first_trial : int >= 0
        Number of the first trial: counts of trials 0..49 and 50..99 add up to those of 0..99.
    keep_masks : bool
        Also return each trial's mask.
    backend : {"triton", "cpu"}, optional
        Default: by the device of `images`.

    Raises
    ------
    ValueError
        A window outside its image or larger than 64 pixels, wrong shapes or dtypes, trials below 1.
    RuntimeError
        The requested backend cannot run here.

    References
    ----------
    Li et al., ICCV 2023, arXiv:2304.04442 (Monte Carlo linear clustering).

    Examples
    --------
    >>> import numpy as np, torch
    >>> from mclc_gpu.kernels.config import TrialConfig
    >>> from mclc_gpu.kernels.packed import PackedImages, Windows
    >>> from mclc_gpu.kernels.trials import run_trials
    >>> image = np.full((12, 12), 40, np.uint8)
    >>> image[5:7, 5:7] = 200
    >>> windows = Windows.pack([(0, 0, 0, 12, 12, 5, 5, 0)])
    >>> result = run_trials(PackedImages.pack([image]), windows, torch.tensor([0]), TrialConfig(), trials=20)
    >>> int(result.counts.reshape(12, 12)[5, 5])
    20
    """
    if trials < 1 or first_trial < 0 or first_trial + trials > 2**31:
        raise ValueError(
            f"trials must be at least 1, first_trial at least 0, their sum at most 2^31: "
            f"got {trials} and {first_trial}"
        )
    device = images.data.device
    backend = resolve(backend, images.data)
    keys = keys.cpu().contiguous()
    windows.check(images)
    if keys.shape != (len(windows),) or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [{len(windows)}], got {keys.dtype} {list(keys.shape)}")
    marks = Marks.pack([()] * len(windows)) if marks is None else marks
    marks.check(windows)
    total = int(windows.offsets[-1])
    counts = torch.zeros(total, dtype=torch.int32, device=device)
    masks = torch.zeros((trials if keep_masks else 0, total), dtype=torch.uint8, device=device)
    if len(windows):
        targets = images, windows, keys, start_grids(windows, config.clusters), marks
        if backend == "triton":
            from mclc_gpu.kernels import trials_triton

            trials_triton.run(*targets, config, first_trial, trials, counts, masks)
        else:
            from mclc_gpu.kernels import trials_cpu

            trials_cpu.run(*targets, config, first_trial, trials, counts, masks)
    return TrialCounts(counts, windows.offsets, trials, masks if keep_masks else None)


_ROUND = 16  # trials between two looks at the stop rule; the result does not depend on it


def run_until_stable(
    images: PackedImages,
    windows: Windows,
    keys: torch.Tensor,
    config: TrialConfig,
    max_trials: int,
    change: float,
    *,
    marks: Marks | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run trials of every target until one more trial changes its TPM by less than `change`.

    With S_k the counts after k trials, over the number of the target's marks, and TPM_k = S_k / k, a target
    stops at the first k >= 2 for which ||TPM_k - TPM_(k-1)|| < change (L2 norm over the window), at the
    latest at `max_trials`. The sums behind the comparison are exact integers, so a target stops at the same
    trial whatever the batch or the device.

    Parameters
    ----------
    images, windows, keys, config, marks, backend
        See `mclc_gpu.kernels.trials.run_trials`.
    max_trials : int >= 1
    change : float >= 0
        T_F of the paper.

    Returns
    -------
    counts : Tensor [pixels of all windows], int32
    offsets : Tensor [targets + 1], int64, on the CPU
        Window t is counts[offsets[t] : offsets[t + 1]].
    trials : Tensor [targets], int64, on the CPU
        k of each target.

    Raises
    ------
    ValueError, RuntimeError
        As `run_trials`; max_trials below 1, a negative change.
    """
    if max_trials < 1 or not change >= 0:
        raise ValueError(
            f"max_trials must be at least 1 and change at least 0, got {max_trials} and {change}"
        )
    device = images.data.device
    counts = torch.zeros(int(windows.offsets[-1]), dtype=torch.int32, device=device)
    owner = torch.repeat_interleave(torch.arange(len(windows)), windows.sizes)
    trials = torch.zeros(len(windows), dtype=torch.int64)
    most = 1 + (torch.zeros_like(trials) if marks is None else marks.numbers)  # of a pixel in one trial
    active = torch.arange(len(windows))
    done = 0
    while len(active) and done < max_trials:
        number = min(_ROUND, max_trials - done)
        own = windows[active]
        masks = run_trials(
            images,
            own,
            keys[active],
            config,
            number,
            marks=None if marks is None else marks[active],
            first_trial=done,
            keep_masks=True,
            backend=backend,
        ).masks
        assert masks is not None
        pixels = torch.nonzero(torch.isin(owner, active))[:, 0].to(device)
        after = counts[pixels].long() + torch.cumsum(masks.long(), 0)
        segment = torch.repeat_interleave(torch.arange(len(own)), own.sizes).to(device)
        stable = _stable(masks.long(), after, segment, most[active].to(device), done, change)
        last = torch.where(stable.any(0), stable.int().argmax(0), number - 1)
        counts[pixels] = after.gather(0, last[segment][None])[0].int()
        trials[active] = done + 1 + last.cpu()
        active = active[~stable.any(0).cpu()]
        done += number
    return counts, windows.offsets, trials


def _stable(
    masks: torch.Tensor,
    sums: torch.Tensor,
    segment: torch.Tensor,
    most: torch.Tensor,
    done: int,
    change: float,
) -> torch.Tensor:
    """Tell after which trials a target is stable, bool [trials, targets].

    `masks` and `sums` S_k: int64 [trials, pixels], of the trials that follow the first `done`; `segment`: the
    target of each pixel; `most`: greatest count of one trial, [targets].
    """
    k = torch.arange(done + 1, done + len(masks) + 1, device=masks.device)[:, None]
    # TPM_k - TPM_(k-1) = ((k - 1) m_k - S_(k-1)) / (k (k - 1)), m_k the mask of trial k.
    difference = (k - 1) * masks - (sums - masks)
    squares = torch.zeros(len(masks), len(most), dtype=torch.int64, device=masks.device)
    squares.index_add_(1, segment, difference * difference)
    limit = change * (k * (k - 1) * most).double()
    return (squares.double().sqrt() < limit) & (k >= 2)
