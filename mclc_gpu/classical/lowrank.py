"""Linear algebra and iteration that the low-rank methods share.

Everything is float64: the methods compare singular values over eight orders of magnitude.
"""

from collections.abc import Callable

import torch

from mclc_gpu.errors import InputError

State = dict[str, torch.Tensor]


def unit_range(values: torch.Tensor) -> torch.Tensor:
    """Scale each element of a batch [B, ...] from its own range to 0..1; a constant one becomes 0."""
    flat = values.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    span = torch.where(high > low, high - low, torch.inf)
    return (values - per_image(low, values)) / per_image(span, values)


def per_image(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shape one number an image [B] so that it combines with a tensor [B, ...]."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def norm(values: torch.Tensor) -> torch.Tensor:
    """Return the Frobenius norm of each element of a batch [B, ...], as [B]."""
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def count(values: torch.Tensor) -> torch.Tensor:
    """Count the elements above 0 in each element of a batch [B, ...], as [B]."""
    return (values.flatten(1) > 0).sum(1)


def largest(*tensors: torch.Tensor) -> torch.Tensor:
    """Return the largest absolute value of each element of a batch in several tensors [B, ...], as [B]."""
    return torch.stack([values.flatten(1).abs().amax(1) for values in tensors]).amax(0)


def soft(values: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    """Shrink values toward 0 by a threshold >= 0, which may be infinite."""
    limit = torch.as_tensor(threshold, dtype=values.dtype, device=values.device)
    return values - torch.minimum(torch.maximum(values, -limit), limit)


def singular_values(matrices: torch.Tensor) -> torch.Tensor:
    """Compute the singular values of matrices [..., m, n] in descending order, as [..., min(m, n)]."""
    values, _ = _eigh(_gram(matrices))
    return values.clamp(min=0).sqrt().flip(-1)


def shrink_singular_values(
    matrices: torch.Tensor, shrink: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace the singular values of each matrix.

    They are the roots of the eigenvalues of the smaller Gram matrix, which costs a fraction of a singular
    value decomposition; only the vectors of the values that stay above 0 enter the product. Singular values
    below 1e-8 of the largest one are rounding errors, also where they are kept: the result is off by as much.

    Parameters
    ----------
    matrices : Tensor [..., m, n], float64 or complex128
    shrink : function of Tensor [..., min(m, n)], float64
        New singular values of those given in descending order, >= 0.

    Returns
    -------
    matrices : Tensor [..., m, n]
    values : Tensor [..., min(m, n)], float64
        The new singular values.

    Raises
    ------
    InputError
        If the decomposition of a matrix does not converge.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.classical.lowrank import shrink_singular_values
    >>> matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    >>> shrunk, values = shrink_singular_values(matrix, lambda s: (s - 0.5).clamp(min=0))
    >>> [round(value, 3) for value in shrunk.diag().tolist()]
    [2.5, 0.5, 0.0]
    """
    tall = matrices.shape[-2] >= matrices.shape[-1]
    squares, vectors = _eigh(_gram(matrices))
    values = squares.clamp(min=0).sqrt().flip(-1)
    new = shrink(values)
    share = torch.where(values > 0, new / values.where(values > 0, 1.0), 0.0)
    kept = (share > 0).reshape(-1, share.shape[-1]).any(0).nonzero()
    last = int(kept[-1]) + 1 if len(kept) else 0
    basis = vectors.flip(-1)[..., :last]
    weights = share[..., None, :last]
    if tall:
        return ((matrices @ basis) * weights) @ basis.mH, new
    return (basis * weights) @ (basis.mH @ matrices), new


def iterate(state: State, step: Callable[[int, State], tuple[State, torch.Tensor]], most: int) -> State:
    """Repeat a step on the images of a batch; those that have converged leave it.

    Parameters
    ----------
    state : dict of str to Tensor [B, ...]
    step : function of (number of the step from 0, state)
        Returns the next state, with the same names, and the images that have converged, [B] bool.
    most : int >= 1
        Steps after which images that have not converged are taken as they are.

    Returns
    -------
    dict of str to Tensor [B, ...]
        State of each image after its own last step.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.classical.lowrank import iterate
    >>> halve = lambda number, state: ({"x": state["x"] / 2}, state["x"] < 3)
    >>> iterate({"x": torch.tensor([1.0, 8.0])}, halve, most=10)["x"]
    tensor([0.5000, 1.0000])
    """
    waiting = torch.arange(len(next(iter(state.values()))), device=next(iter(state.values())).device)
    result: State = {}
    for number in range(most):
        state, done = step(number, state)
        if not result:
            result = {name: torch.empty_like(values) for name, values in state.items()}
        if number == most - 1:
            done = torch.ones_like(done)
        if not bool(done.any()):
            continue
        for name, values in state.items():
            result[name][waiting[done]] = values[done]
        waiting = waiting[~done]
        if not len(waiting):
            break
        state = {name: values[~done] for name, values in state.items()}
    return result


def no_convergence() -> InputError:
    """Return the error of a singular value decomposition that does not converge."""
    return InputError(
        "the singular value decomposition of an image's patches does not converge; change the patch size"
    )


def _gram(matrices: torch.Tensor) -> torch.Tensor:
    if matrices.shape[-2] >= matrices.shape[-1]:
        return matrices.mH @ matrices
    return matrices @ matrices.mH


def _eigh(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose symmetric matrices [..., n, n]; where that fails, each by its singular values."""
    try:
        return torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:
        pass
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    try:
        parts = [torch.linalg.svd(matrix) for matrix in flat]
    except torch.linalg.LinAlgError as error:
        raise no_convergence() from error
    values = torch.stack([part[1].flip(-1) for part in parts]).reshape(matrices.shape[:-1])
    vectors = torch.stack([part[0].flip(-1) for part in parts]).reshape(matrices.shape)
    return values, vectors
