"""Multi-subspace learning with a patch tensor in space and time: single frames and sequences."""

from dataclasses import dataclass

import torch

from mclc_gpu.classical.lowrank import State, iterate, largest, no_convergence, shrink_singular_values, soft
from mclc_gpu.classical.patches import PatchGrid, PatchMethod

_TINY, _EPS = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).eps

# Of the dictionary.
_FIRST_PENALTY, _FIRST_GROWTH, _FIRST_MOST_PENALTY = 1e-4, 1.2, 1e10
_FIRST_TOLERANCE, _FIRST_MOST = 1e-8, 800
_STEEP, _STEEPEST = 50.0, 20.0  # drops between neighboring singular values that end a subspace

# Of the representation.
_PENALTY, _GROWTH, _MOST_PENALTY = 1e-4, 1.1, 1e8
_TOLERANCE, _MOST = 1e-4, 200
_REWEIGHTINGS, _THRESHOLDINGS = 3, 2


@dataclass(frozen=True)
class MSLSTIPT(PatchMethod):
    """Multiple subspace learning and spatial-temporal patch tensor (Sun et al., "Infrared dim and small
    target detection via multiple subspace learning and spatial-temporal patch-tensor model", IEEE TGRS 59(5),
    2021, doi:10.1109/TGRS.2020.3022069).

    The patches of consecutive frames are the lateral slices of a tensor D. Its low-rank part by tensor robust
    PCA gives a dictionary A of several subspaces, in which the background is represented: minimizes the
    weighted Schatten p-norm of Z plus L |T|_1 with A * Z + T = D by ADMM, * being the product of the t-SVD
    and L weight / sqrt(side * max(side, number of patches)).

    Patch and parameters are those of the authors' published program for sliding windows, but for these
    differences. The paper solves 6 frames of a sequence together; here it is 1 unless `frames` says
    otherwise, since images of a folder need not be a sequence. Patches become lateral slices by
    transposition; the program reshapes the array, which mixes their columns. Where patches overlap, a pixel's
    value is their mean. Negative target values, which are dark, become 0.

    Attributes
    ----------
    weight, patch, step
        See `PatchMethod`.
    frames : int, 1..64
        Consecutive frames of a sequence that are solved together. The last ones of a sequence may be fewer.
    rank_weight : float > 0
        Of the Schatten norm, divided by the side of a patch.
    power : float, above 0, below 1
        p of the Schatten norm.
    """

    patch: int = 100
    step: int = 100
    frames: int = 1
    rank_weight: float = 1e-4
    power: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.frames <= 64:
            raise ValueError(f"frames must be in 1..64, got {self.frames}")
        if not 0 < self.rank_weight < 1e6:
            raise ValueError(f"rank_weight must be above 0 and below 1e6, got {self.rank_weight}")
        if not 0 < self.power < 1:
            raise ValueError(f"power must be above 0 and below 1, got {self.power}")

    def length(self) -> int:
        """Return the number of consecutive frames that are solved together."""
        return self.frames

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        """Return gray levels of the targets; see `Method.saliency`."""
        grid = PatchGrid.of(images, self.patch, self.step)
        patches = grid.cut(images.double() / 255)
        tensors = patches if self.frames == 1 else patches.flatten(0, 1)[None]
        data = tensors.permute(0, 3, 2, 1)
        atoms = dictionary(data)
        targets = separate(data, atoms, self.weight, self.rank_weight * self.patch, self.power)
        joined = grid.join(targets.permute(0, 3, 2, 1).reshape(patches.shape))
        return (255 * joined).clamp(min=0).float()


def dictionary(data: torch.Tensor) -> torch.Tensor:
    """Learn the dictionary of tensors: U * S of the t-SVD of their low-rank parts, cut to the subspaces.

    Parameters
    ----------
    data : Tensor [B, c, r, P], float64
        Pixel [row, column] of patch p at [column, row, p], 0 to 1.

    Returns
    -------
    Tensor [B, c // 2 + 1, r, k], complex128
        Fourier slices along the columns; k is the largest dimension of a subspace. Atoms of a slice are
        orthogonal.

    Raises
    ------
    InputError
        If a singular value decomposition does not converge.
    """
    columns, rows, number = data.shape[1:]
    weight = 1 / (max(rows, columns) * number) ** 0.5
    zeros = torch.zeros_like(data)
    state = {"data": data, "low": zeros, "sparse": zeros, "multiplier": zeros}

    def step(number_of_step: int, now: State) -> tuple[State, torch.Tensor]:
        penalty = min(_FIRST_PENALTY * _FIRST_GROWTH**number_of_step, _FIRST_MOST_PENALTY)
        shifted = now["data"] - now["multiplier"] / penalty
        slices, _ = shrink_singular_values(
            torch.fft.rfft(shifted - now["sparse"], dim=1), lambda s: (s - 1 / penalty).clamp(min=0)
        )
        low = torch.fft.irfft(slices, n=columns, dim=1)
        sparse = soft(shifted - low, weight / penalty)
        residual = low + sparse - now["data"]
        change = largest(low - now["low"], sparse - now["sparse"], residual)
        multiplier = now["multiplier"] + penalty * residual
        return {
            "data": now["data"],
            "low": low,
            "sparse": sparse,
            "multiplier": multiplier,
        }, change < _FIRST_TOLERANCE

    low = iterate(state, step, _FIRST_MOST)["low"]
    try:
        basis, values, _ = torch.linalg.svd(torch.fft.rfft(low, dim=1), full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise no_convergence() from error
    dimension = subspace_dimension(values, max(rows, number))
    kept = torch.arange(values.shape[-1], device=values.device) < dimension[..., None]
    atoms: torch.Tensor = basis * torch.where(kept, values, 0.0)[..., None, :]
    return atoms[..., : max(1, int(dimension.max()))]


def subspace_dimension(values: torch.Tensor, longer_side: int) -> torch.Tensor:
    """Count the singular values that span the background.

    They end where one is 50 times the next one, and at the latest where the largest of these ratios is more
    than 20 times the mean of the others; else where they are rounding errors. The last two above rounding are
    not compared.

    Parameters
    ----------
    values : Tensor [..., k]
        Descending.
    longer_side : int
        Of the matrices.

    Returns
    -------
    Tensor [...], int64
    """
    rank = (values > longer_side * _EPS * values[..., :1]).sum(-1)
    if values.shape[-1] < 3:
        return rank
    ratios = values[..., :-1] / values[..., 1:].clamp(min=_TINY)
    compared = torch.arange(ratios.shape[-1], device=values.device) < (rank - 2)[..., None]
    ratios = torch.where(compared, ratios, 0.0)
    steep = ratios > _STEEP
    ends = torch.where(steep.any(-1), steep.to(torch.int64).argmax(-1) + 1, rank)
    top, place = ratios.max(-1)
    stands_out = (rank - 2) * top > _STEEPEST * (ratios.sum(-1) - top)
    return torch.where(stands_out & (rank > 2), torch.minimum(ends, place + 1), ends)


def separate(
    data: torch.Tensor, atoms: torch.Tensor, factor: float, rank_weight: float, power: float
) -> torch.Tensor:
    """Separate the sparse part of tensors from a background in the subspaces of a dictionary.

    Parameters
    ----------
    data : Tensor [B, c, r, P], float64
    atoms : Tensor [B, c // 2 + 1, r, k], complex128
        See `dictionary`.
    factor, rank_weight : float > 0
        Of the weights of sparsity and of the Schatten norm.
    power : float, above 0, below 1

    Returns
    -------
    Tensor [B, c, r, P]
    """
    columns, rows, number = data.shape[1:]
    weight = factor / (columns * max(rows, number)) ** 0.5
    zeros = torch.zeros_like(data)
    none = torch.zeros(*atoms.shape[:2], atoms.shape[-1], number, dtype=atoms.dtype, device=atoms.device)
    state = {
        "data": data,
        "atoms": atoms,
        "coefficients": none,
        "copy": none,
        "copy_multiplier": none,
        "fit": zeros,
        "fit_multiplier": zeros,
        "target": zeros,
    }

    def step(number_of_step: int, now: State) -> tuple[State, torch.Tensor]:
        penalty = min(_PENALTY * _GROWTH**number_of_step, _MOST_PENALTY)
        coefficients, _ = shrink_singular_values(
            now["copy"] - now["copy_multiplier"] / penalty,
            lambda s: shrink_power(s, rank_weight / penalty, power),
        )
        shifted = now["data"] + now["fit_multiplier"] / penalty
        target = soft(shifted - now["fit"], weight / penalty)
        projected = now["atoms"].mH @ torch.fft.rfft(shifted - target, dim=1)
        gram = now["atoms"].abs().square().sum(-2)[..., None]  # diagonal, since the atoms are orthogonal
        copy = (coefficients + now["copy_multiplier"] / penalty + projected) / (gram + 1)
        fit = torch.fft.irfft(now["atoms"] @ copy, n=columns, dim=1)
        gap, residual = coefficients - copy, now["data"] - fit - target
        moves = (gap, copy - now["copy"], coefficients - now["coefficients"])
        change = largest(
            residual, target - now["target"], *(torch.fft.irfft(move, n=columns, dim=1) for move in moves)
        )
        return {
            "data": now["data"],
            "atoms": now["atoms"],
            "coefficients": coefficients,
            "copy": copy,
            "copy_multiplier": now["copy_multiplier"] + penalty * gap,
            "fit": fit,
            "fit_multiplier": now["fit_multiplier"] + penalty * residual,
            "target": target,
        }, change < _TOLERANCE

    return iterate(state, step, _MOST)["target"]


def shrink_power(values: torch.Tensor, factor: float, power: float) -> torch.Tensor:
    """Shrink singular values for the weighted Schatten p-norm by generalized soft thresholding.

    The weight of a value x is factor / x^(1/p), renewed from the result.

    Parameters
    ----------
    values : Tensor [..., k]
        >= 0.
    factor : float > 0
    power : float, above 0, below 1

    Returns
    -------
    Tensor [..., k]
        >= 0.
    """
    result = values
    for _ in range(_REWEIGHTINGS):
        weights = factor / (result ** (1 / power) + _EPS)
        bend = 2 * (1 - power) * weights
        threshold = bend ** (1 / (2 - power)) + power * weights * bend ** ((power - 1) / (2 - power))
        above = values > threshold
        shrunk = start = torch.where(above, values, 1.0)
        for _ in range(_THRESHOLDINGS):
            shrunk = start - power * weights * shrunk ** (power - 1)
        result = torch.where(above, shrunk, 0.0)
    return result
