"""Reweighted infrared patch-tensor model: low rank in all three directions of a stack of patches."""

from dataclasses import dataclass
from math import isfinite

import torch

from mclc_gpu.classical.lowrank import (
    State,
    count,
    iterate,
    norm,
    per_image,
    shrink_singular_values,
    unit_range,
)
from mclc_gpu.classical.patches import PatchGrid, PatchMethod
from mclc_gpu.classical.structure import structure_tensor

_SMOOTHING, _WINDOW = 1.2, 2.0  # standard deviations of the structure tensor, pixels
_PENALTY, _DECAY = 5.0, 1.5  # at first, times the standard deviation of the tensor; from step to step
_FAINT = 0.01  # gray levels
_TOLERANCE, _MOST = 1e-7, 500


@dataclass(frozen=True)
class RIPT(PatchMethod):
    """Reweighted infrared patch-tensor model (Dai and Wu, "Reweighted infrared patch-tensor model with both
    nonlocal and local priors for single-frame small target detection", IEEE JSTARS 10(8), 2017,
    doi:10.1109/JSTARS.2017.2700023).

    The patches of the image are the frontal slices of a tensor D. Minimizes the nuclear norms of the three
    unfoldings of B plus L |W * T|_1 with B + T = D and T >= 0 by higher-order robust PCA; L is weight /
    sqrt(shortest side of D). The weights W, renewed in every step, fall with T and grow with the edges of the
    structure tensor, by the factor exp(edge_weight) at the strongest.

    Parameters are those of the authors' published program. A pixel's value is the mean over its patches.

    Attributes
    ----------
    weight, patch, step
        See `PatchMethod`.
    edge_weight : float >= 0
    """

    weight: float = 0.7
    patch: int = 30
    edge_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.edge_weight >= 0 or not isfinite(self.edge_weight):
            raise ValueError(f"edge_weight must be 0 or more, got {self.edge_weight}")

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return gray levels of the targets; see `Method.saliency`."""
        grid = PatchGrid.of(images, self.patch, self.step)
        levels = images.double()
        larger, smaller = structure_tensor(levels, _SMOOTHING, _WINDOW)
        prior = torch.exp(self.edge_weight * unit_range(larger - smaller))
        return grid.join(separate(grid.cut(levels), grid.cut(prior), self.weight)).float()


def separate(data: torch.Tensor, prior: torch.Tensor, factor: float) -> torch.Tensor:
    """Separate the sparse part of patch tensors.

    Parameters
    ----------
    data : Tensor [B, P, h, w], float64
        Gray levels of P patches.
    prior : Tensor [B, P, h, w], float64
        Weight of every pixel's sparsity.
    factor : float > 0
        Of all these weights.

    Returns
    -------
    Tensor [B, P, h, w]
        >= 0.
    """
    weight = factor / min(data.shape[1:]) ** 0.5
    state = {
        "data": data,
        "prior": prior,
        "size": norm(data),
        "penalty": _PENALTY * data.flatten(1).std(1),
        "target": torch.zeros_like(data),
        "multipliers": torch.zeros_like(data)[:, None].repeat(1, 3, 1, 1, 1),
        "weights": prior,
        "pixels": torch.full_like(count(data), data[0].numel()),
    }

    def step(number: int, now: State) -> tuple[State, torch.Tensor]:
        penalty = now["penalty"]
        shift = per_image(penalty, now["multipliers"]) * now["multipliers"]
        room = (now["data"] - now["target"])[:, None] + shift
        backgrounds = torch.stack([shrink_unfolding(room[:, mode], mode, penalty) for mode in range(3)], 1)
        rest = now["data"] - (backgrounds - shift).mean(1)
        target = (rest - per_image(penalty, data) * weight / 3 * now["weights"]).clamp(min=0)
        residuals = backgrounds + (target - now["data"])[:, None]
        pixels = count(target)
        done = norm(residuals.mean(1)) <= _TOLERANCE * now["size"]
        done |= pixels == now["pixels"]
        return {
            "data": now["data"],
            "prior": now["prior"],
            "size": now["size"],
            "penalty": penalty / _DECAY,
            "target": target,
            "multipliers": now["multipliers"] - residuals / per_image(penalty, residuals),
            "weights": now["prior"] / (target + _FAINT),
            "pixels": pixels,
        }, done

    return iterate(state, step, _MOST)["target"]


def shrink_unfolding(tensors: torch.Tensor, mode: int, threshold: torch.Tensor) -> torch.Tensor:
    """Shrink the singular values of one unfolding of tensors [B, P, h, w].

    Parameters
    ----------
    tensors : Tensor [B, P, h, w]
    mode : {0, 1, 2}
        Unfold along P, h or w.
    threshold : Tensor [B]
    """
    front = tensors.movedim(mode + 1, 1)
    shrunk, _ = shrink_singular_values(front.flatten(2), lambda s: (s - threshold[:, None]).clamp(min=0))
    return shrunk.reshape(front.shape).movedim(1, mode + 1)
