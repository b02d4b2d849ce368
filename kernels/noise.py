"""Counter-based noise: eq. 7 of the paper, drawn the same on every backend, in any batch and any order.

Each (pixel, trial, target) owns one Philox 4x32-10 block: counter = (pixel, trial, target, 0), key = a 64-bit
number made from the run's seed and the image's name. Word c of the block belongs to channel c. Uniform
numbers are the upper 24 bits of a word; normal numbers are the inverse normal distribution of those, computed
with IEEE additions, multiplications and square roots alone.

`NOISES` holds the kinds by name: "none"; "salt" and "pepper" replace a value by the upper or lower end of the
range with probability `intensity`; "gaussian" adds a normal number of standard deviation
intensity (high - low) and clips. `Noise` says what a kind consists of; CONTRIBUTING.md shows how to add one.

References
----------
Salmon et al., SC 2011, doi:10.1145/2063384.2063405 (Philox); Giles, GPU Computing Gems, 2011 (inverse error
function).
"""

import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.config import NOISES, Noise, check_noise

__all__ = ["NOISES", "Noise", "add_noise", "threshold"]

UNIFORM_BITS = 24


def threshold(intensity: float) -> int:
    """Return a probability as a bound on 24-bit uniform integers."""
    return round(intensity * (1 << UNIFORM_BITS))


def add_noise(
    windows: torch.Tensor,
    keys: torch.Tensor,
    targets: torch.Tensor,
    trial: int,
    *,
    kind: str = "salt",
    intensity: float = 0.05,
    shared: bool = False,
    low: float = 0.0,
    high: float = 255.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Return the noisy windows of one trial (paper, eq. 7).

    Parameters
    ----------
    windows : Tensor [B, C, H, W], float32
        C = 1 or 3 channels, values in low..high.
    keys : Tensor [B], int64
        Key of each window's image (seed and name).
    targets : Tensor [B], int64
        Index of the window's target within its image, 0 .. 2^31 - 1.
    trial : int
        Trial number, 0 .. 2^31 - 1.
    kind : str
        Name in `NOISES`: "none", "salt", "pepper", "gaussian" or a registered one.
    intensity : float in 0..1
        Salt and pepper: share of values replaced. Gaussian: standard deviation as a share of high - low.
    shared : bool
        Draw once per pixel for all channels instead of once per channel.
    low, high : float
        Range of values.
    backend : {"triton", "cpu"}, optional
        Default: by the tensors' device.

    Returns
    -------
    Tensor [B, C, H, W], float32

    Raises
    ------
    ValueError
        Wrong shape or dtype, unknown kind, intensity, trial or target out of range.
    RuntimeError
        The requested backend cannot run here.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.kernels.noise import add_noise
    >>> index = torch.zeros(1, dtype=torch.int64)
    >>> salted = add_noise(torch.zeros(1, 1, 64, 64), index, index, trial=0, intensity=0.25)
    >>> sorted(salted.unique().tolist()), round(float((salted > 0).float().mean()), 2)
    ([0.0, 255.0], 0.26)
    """
    check_noise(kind, intensity)
    if windows.ndim != 4 or windows.shape[1] not in (1, 3) or windows.dtype != torch.float32:
        raise ValueError(
            f"windows must be float32 [B, 1 or 3, H, W], got {windows.dtype} {list(windows.shape)}"
        )
    for name, tensor in (("keys", keys), ("targets", targets)):
        if tensor.shape != windows.shape[:1] or tensor.dtype != torch.int64:
            raise ValueError(
                f"{name} must be int64 [{windows.shape[0]}], got {tensor.dtype} {list(tensor.shape)}"
            )
    if not 0 <= trial < 2**31:
        raise ValueError(f"trial must be in 0..2^31 - 1, got {trial}")
    windows, keys, targets = windows.contiguous(), keys.contiguous(), targets.contiguous()
    out = torch.empty_like(windows)
    if windows.numel() == 0:
        return out
    if bool(((targets < 0) | (targets >= 2**31)).any()):
        raise ValueError(f"targets must be in 0..2^31 - 1, got {targets.min()}..{targets.max()}")
    settings = (intensity, threshold(intensity), shared, low, high)
    backend = resolve(backend, windows, keys, targets)
    disturb = NOISES[kind].function(backend)
    if backend == "triton":
        from mclc_gpu.kernels import noise_triton

        noise_triton.launch(windows, keys, targets, trial, out, disturb, *settings)
    else:
        from mclc_gpu.kernels import noise_cpu

        noise_cpu.launch(windows, keys, targets, trial, out, disturb, *settings)
    return out
