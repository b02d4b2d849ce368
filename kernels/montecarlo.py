"""Monte Carlo trials with the paper's stop rule: a target is done when its TPM hardly changes any more."""

import torch

from mclc_gpu.kernels.trials import PackedImages, Seeds, TrialConfig, run_trials

_ROUND = 16  # trials between two looks at the stop rule; the result does not depend on it


def run_until_stable(
    images: PackedImages,
    windows: torch.Tensor,
    keys: torch.Tensor,
    config: TrialConfig,
    max_trials: int,
    change: float,
    *,
    seeds: Seeds | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trials of every target until one more trial changes its TPM by less than `change`.

    With S_k the counts after k trials, over the number of the target's marks, and TPM_k = S_k / k, a target
    stops at the first k >= 2 for which ||TPM_k - TPM_(k-1)|| < change (L2 norm over the window), at the
    latest at `max_trials`. The sums behind the comparison are exact integers, so a target stops at the same
    trial whatever the batch or the device.

    Parameters
    ----------
    images, windows, keys, config, seeds, backend
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
    sizes = windows[:, 3] * windows[:, 4]
    offsets = torch.zeros(len(windows) + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(sizes, 0)
    device = images.data.device
    counts = torch.zeros(int(offsets[-1]), dtype=torch.int32, device=device)
    owner = torch.repeat_interleave(torch.arange(len(windows)), sizes)
    trials = torch.zeros(len(windows), dtype=torch.int64)
    marks = 1 + (torch.zeros_like(trials) if seeds is None else seeds.offsets.diff())
    active = torch.arange(len(windows))
    done = 0
    while len(active) and done < max_trials:
        number = min(_ROUND, max_trials - done)
        result = run_trials(
            images,
            windows[active],
            keys[active],
            config,
            number,
            seeds=None if seeds is None else seeds.of(active),
            first_trial=done,
            keep_masks=True,
            backend=backend,
        )
        assert result.masks is not None
        pixels = torch.nonzero(torch.isin(owner, active))[:, 0].to(device)
        segment = torch.repeat_interleave(torch.arange(len(active)), sizes[active]).to(device)
        before = counts[pixels].long()
        after = before + torch.cumsum(result.masks.long(), 0)
        k = torch.arange(done + 1, done + number + 1, device=device)[:, None]
        # TPM_k - TPM_(k-1) = ((k - 1) m_k - S_(k-1)) / (k (k - 1)), m_k the mask of trial k.
        difference = (k - 1) * result.masks.long() - (after - result.masks)
        squares = torch.zeros(number, len(active), dtype=torch.int64, device=device)
        squares.index_add_(1, segment, difference * difference)
        limit = change * (k * (k - 1) * marks[active].to(device)).double()
        stable = (squares.double().sqrt() < limit) & (k >= 2)
        last = torch.where(stable.any(0), stable.int().argmax(0), number - 1)
        counts[pixels] = after.gather(0, last[segment][None])[0].int()
        trials[active] = done + 1 + last.cpu()
        active = active[~stable.any(0).cpu()]
        done += number
    return counts, offsets, trials
