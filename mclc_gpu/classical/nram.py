"""Non-convex rank approximation with a weighted l1 norm of targets and an l2,1 norm of edges."""

from dataclasses import dataclass

import torch

from mclc_gpu.classical.lowrank import State, iterate, norm, shrink_singular_values, soft
from mclc_gpu.classical.patches import PatchMethod

_PENALTY, _GROWTH = 3.0, 1.1  # at first, times the root of the longer side; from step to step
_GAMMA = 2e-3  # of the rank surrogate
_EDGES = 3.0  # weight of the edges, over the root of the shorter side
# Weights of the l1 norm are _SPARSITY * root of the shorter side / (|T| + _FAINT).
_SPARSITY, _FAINT = 0.4, 0.04
_TOLERANCE, _MOST = 1e-7, 1000
_INNER_TOLERANCE, _INNER_MOST = 1e-6, 100


@dataclass(frozen=True)
class NRAM(PatchMethod):
    """Non-convex rank approximation minimization (Zhang et al., "Infrared small target detection via
    non-convex rank approximation minimization joint l2,1 norm", Remote Sensing 10(11), 2018,
    doi:10.3390/rs10111821).

    The columns of a matrix D are the patches of the image. Minimizes sum (1 + g) s / (g + s) over the
    singular values s of B, plus L |W * T|_1 + E |edges|_2,1 with B + T + edges = D, by ADMM with
    difference-of-convex programming for B; L is weight / sqrt(shorter side of D), and W is renewed from T in
    every step.

    Patch, step and parameters are those of the authors' published program; the steps are those of the paper,
    where the program renews W within a step and does not divide the threshold of negative values by the
    penalty. A pixel's target value is the median over its patches; the program keeps that of the last patch.
    Negative target values, which are dark, become 0.

    Attributes
    ----------
    weight, patch, step
        See `PatchMethod`.
    """

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return gray levels of the targets; see `Method.saliency`."""
        return self.patch_image_targets(images, lambda data: separate(data, self.weight))


def separate(data: torch.Tensor, factor: float) -> torch.Tensor:
    """Separate the sparse part of matrices from a background of low rank and sparse columns.

    Parameters
    ----------
    data : Tensor [B, m, n], float64
    factor : float > 0
        Of the weight of sparsity.

    Returns
    -------
    Tensor [B, m, n]
    """
    long, short = max(data.shape[1:]), min(data.shape[1:])
    weight, edges = factor / short**0.5, _EDGES / short**0.5
    zeros = torch.zeros_like(data)
    state = {
        "data": data,
        "size": norm(data),
        "target": zeros,
        "edges": zeros,
        "multiplier": zeros,
        "weights": torch.ones_like(data),
        "values": torch.zeros(len(data), short, dtype=data.dtype, device=data.device),
    }

    def step(number: int, now: State) -> tuple[State, torch.Tensor]:
        penalty = _PENALTY * long**0.5 * _GROWTH**number
        shifted = now["data"] - now["multiplier"] / penalty
        background, values = shrink_singular_values(
            shifted - now["target"] - now["edges"], lambda s: shrink_rank(s, now["values"], penalty)
        )
        target = soft(shifted - background - now["edges"], weight / penalty * now["weights"])
        new_edges = shrink_columns(shifted - background - target, edges / penalty)
        residual = background + target + new_edges - now["data"]
        return {
            "data": now["data"],
            "size": now["size"],
            "target": target,
            "edges": new_edges,
            "multiplier": now["multiplier"] + penalty * residual,
            "weights": _SPARSITY * short**0.5 / (target.abs() + _FAINT),
            "values": values,
        }, norm(residual) <= _TOLERANCE * now["size"]

    return iterate(state, step, _MOST)["target"]


def shrink_rank(values: torch.Tensor, before: torch.Tensor, penalty: float) -> torch.Tensor:
    """Minimize sum (1 + g) x / (g + x) + penalty / 2 (x - values)^2, linearizing the first term.

    Parameters
    ----------
    values : Tensor [B, k]
    before : Tensor [B, k]
        Where the surrogate is linearized first.
    penalty : float > 0

    Returns
    -------
    Tensor [B, k]
        x >= 0.
    """
    done = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
    for _ in range(_INNER_MOST):
        slope = (1 + _GAMMA) * _GAMMA / (_GAMMA + before) ** 2
        new = torch.where(done, before, (values - slope / penalty).clamp(min=0))
        done = done | ((new - before).square().sum(1, keepdim=True) < _INNER_TOLERANCE)
        before = new
        if bool(done.all()):
            break
    return before


def shrink_columns(matrices: torch.Tensor, threshold: float) -> torch.Tensor:
    """Shrink the length of every column of matrices [B, m, n] by a threshold above 0."""
    lengths = torch.linalg.vector_norm(matrices, dim=1, keepdim=True)
    return matrices * (1 - threshold / lengths.clamp(min=threshold))
