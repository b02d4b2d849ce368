"""Infrared patch-image model: a low-rank background and sparse targets, by accelerated proximal gradient."""

from dataclasses import dataclass

import torch

from mclc_gpu.classical.lowrank import (
    State,
    iterate,
    norm,
    per_image,
    shrink_singular_values,
    singular_values,
    soft,
)
from mclc_gpu.classical.patches import PatchMethod

_DECAY = 0.9  # of the penalty from step to step
_LEAST = 0.005  # times the fourth singular value: the penalty does not fall below it
_STEADY = 10  # steps of equal rank that end the iteration
_FEW = 20  # if the number of target pixels changed by fewer
_MOST_RANK = 0.3  # of the full rank, above which the iteration ends
_TOLERANCE, _MOST = 1e-6, 1000


@dataclass(frozen=True)
class IPI(PatchMethod):
    """Infrared patch-image model (Gao et al., "Infrared patch-image model for small target detection in a
    single image", IEEE TIP 22(12), 2013, doi:10.1109/TIP.2013.2281420).

    The columns of a matrix D are the patches of the image. Minimizes |B|_* + L |T|_1 + |D - B - T|^2 / (2 mu)
    with accelerated proximal gradient, where mu falls from the second singular value of D, and L is weight /
    sqrt(longer side of the image). A pixel's target value is the median over its patches.

    Patch, step, L, the course of mu and the ends of the iteration are those of the authors' published
    program, which also ends where the rank stays the same for ten steps. It leaves the pixels behind the last
    whole step without result; here a last patch ends at the image's last pixel. Negative target values, which
    are dark, become 0.

    Attributes
    ----------
    weight, patch, step
        See `PatchMethod`.
    """

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return gray levels of the targets; see `Method.saliency`."""
        weight = self.weight / max(images.shape[1:]) ** 0.5
        return self.patch_image_targets(images, lambda data: separate(data, weight))


def separate(data: torch.Tensor, weight: float) -> torch.Tensor:
    """Separate the sparse part of matrices D by min |B|_* + weight |T|_1 with B + T close to D.

    Parameters
    ----------
    data : Tensor [B, m, n], float64
        D.
    weight : float > 0

    Returns
    -------
    Tensor [B, m, n]
        T.
    """
    spectrum = singular_values(data)
    last = spectrum.shape[1] - 1
    zeros, none = torch.zeros_like(data), torch.zeros_like(spectrum[:, 0])
    state = {
        "data": data,
        "background": zeros,
        "background_before": zeros,
        "target": zeros,
        "target_before": zeros,
        "momentum": none + 1,
        "momentum_before": none + 1,
        "penalty": spectrum[:, min(1, last)],
        "least_penalty": _LEAST * spectrum[:, min(3, last)],
        "rank": none,
        "steady": none,
        "pixels": none,
    }

    def step(number: int, now: State) -> tuple[State, torch.Tensor]:
        inertia = per_image((now["momentum_before"] - 1) / now["momentum"], data)
        background = now["background"] + inertia * (now["background"] - now["background_before"])
        target = now["target"] + inertia * (now["target"] - now["target_before"])
        half_residual = 0.5 * (background + target - now["data"])
        threshold = 0.5 * now["penalty"]
        new_background, values = shrink_singular_values(
            background - half_residual, lambda s: (s - threshold[:, None]).clamp(min=0)
        )
        new_target = soft(target - half_residual, weight * per_image(threshold, data))

        change = new_background + new_target - background - target
        slope = torch.hypot(
            norm(2 * (background - new_background) + change), norm(2 * (target - new_target) + change)
        )
        size = torch.hypot(norm(new_background), norm(new_target))
        rank = (values > 0).sum(1).to(data.dtype)
        pixels = (new_target != 0).sum((1, 2)).to(data.dtype)
        same = rank == now["rank"]
        steady = torch.where(same, now["steady"] + 1, 0.0)
        done = slope <= _TOLERANCE * 2 * size.clamp(min=1)
        done |= (steady > _STEADY) & ((pixels - now["pixels"]).abs() < _FEW)
        done |= rank > _MOST_RANK * spectrum.shape[1]
        return {
            "data": now["data"],
            "background": new_background,
            "background_before": now["background"],
            "target": new_target,
            "target_before": now["target"],
            "momentum": 0.5 * (1 + (1 + 4 * now["momentum"] ** 2).sqrt()),
            "momentum_before": now["momentum"],
            "penalty": torch.maximum(_DECAY * now["penalty"], now["least_penalty"]),
            "least_penalty": now["least_penalty"],
            "rank": rank,
            "steady": steady,
            "pixels": torch.where(same, now["pixels"], pixels),
        }, done

    return iterate(state, step, _MOST)["target"]
