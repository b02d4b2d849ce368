"""Partial sum of the tensor nuclear norm: patch tensors whose first singular values are free."""

from dataclasses import dataclass

import torch

from mclc_gpu.classical.lowrank import (
    State,
    count,
    iterate,
    norm,
    per_image,
    shrink_singular_values,
    singular_values,
    unit_range,
)
from mclc_gpu.classical.patches import PatchGrid, PatchMethod
from mclc_gpu.classical.structure import structure_tensor

_SMOOTHING, _WINDOW = 2.0, 9.0  # standard deviations of the structure tensor, pixels
_RANK_SHARE = 0.1  # singular values of the unfolded tensor below this share of the first do not count
_PENALTY, _GROWTH, _MOST_PENALTY = 2e-3, 1.05, 1e10
_FAINT = 0.01  # gray levels
_TOLERANCE, _MOST = 1e-3, 500


@dataclass(frozen=True)
class PSTNN(PatchMethod):
    """Partial sum of the tensor nuclear norm (Zhang and Peng, "Infrared small target detection based on
    partial sum of the tensor nuclear norm", Remote Sensing 11(4), 2019, doi:10.3390/rs11040382).

    The patches of the image are the frontal slices of a tensor D. Minimizes |B|_PSTNN + L |W * T|_1 with B +
    T = D and T >= 0 by ADMM: of each Fourier slice of B the first N singular values are free, N being counted
    from D. L is weight / sqrt(side * number of patches). The weights W, renewed in every step, fall with T
    and with the strength of corners in the structure tensor, so that edges are no targets.

    Patch, step, penalty and the ends of the iteration are those of the authors' published program, which sets
    the weight to 0.7; 0.6 is the value with which the method is compared in the literature. Where the
    surroundings are flat, and that program divides 0 by 0, is no target. A pixel's value is the mean over its
    patches; the program keeps that of the last patch.

    Attributes
    ----------
    weight, patch, step
        See `PatchMethod`.
    """

    weight: float = 0.6
    patch: int = 40
    step: int = 40

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return gray levels of the targets; see `Method.saliency`."""
        grid = PatchGrid.of(images, self.patch, self.step)
        levels = images.double()
        return grid.join(separate(grid.cut(levels), grid.cut(corners(levels)), self.weight)).float()


def corners(images: torch.Tensor) -> torch.Tensor:
    """Compute the strength of corners in images [B, H, W], each scaled to 0..1."""
    larger, smaller = structure_tensor(images, _SMOOTHING, _WINDOW)
    total = larger + smaller
    strength = torch.where(total > 0, larger * smaller / total.where(total > 0, 1.0), 0.0)
    return unit_range(strength * larger)


def separate(data: torch.Tensor, prior: torch.Tensor, factor: float) -> torch.Tensor:
    """Separate the sparse part of patch tensors.

    Parameters
    ----------
    data : Tensor [B, P, h, w], float64
        Gray levels of P patches.
    prior : Tensor [B, P, h, w], float64
        0 where there is no target, up to 1.
    factor : float > 0
        Of the weight of sparsity.

    Returns
    -------
    Tensor [B, P, h, w]
        >= 0.
    """
    number, height, width = data.shape[1:]
    weight = factor / (max(height, width) * number) ** 0.5
    spectrum = singular_values(data.flatten(2))
    place = torch.arange(min(height, width), device=data.device)
    zeros = torch.zeros_like(data)
    state = {
        "data": data,
        "prior": prior,
        "size": norm(data),
        "kept": (spectrum >= _RANK_SHARE * spectrum[:, :1]).sum(1),
        "target": zeros,
        "multiplier": zeros,
        "weights": torch.ones_like(data),
        "pixels": count(zeros),
    }

    def step(number_of_step: int, now: State) -> tuple[State, torch.Tensor]:
        penalty = min(_PENALTY * _GROWTH**number_of_step, _MOST_PENALTY)
        shifted = now["data"] - now["multiplier"] / penalty
        free = place < now["kept"][:, None, None]
        slices, _ = shrink_singular_values(
            torch.fft.rfft(shifted - now["target"], dim=1),
            lambda s: torch.where(free, s, (s - 1 / penalty).clamp(min=0)),
        )
        background = torch.fft.irfft(slices, n=number, dim=1)
        target = (shifted - background - weight / penalty * now["weights"]).clamp(min=0)
        residual = background + target - now["data"]
        pixels = count(target)
        done = norm(residual) <= _TOLERANCE * now["size"]
        done |= (now["pixels"] > 0) & (pixels == now["pixels"])
        return {
            "data": now["data"],
            "prior": now["prior"],
            "size": now["size"],
            "kept": now["kept"],
            "target": target,
            "multiplier": now["multiplier"] + penalty * residual,
            "weights": per_image(now["kept"], data) / (target + _FAINT) / now["prior"],
            "pixels": pixels,
        }, done

    return iterate(state, step, _MOST)["target"]
