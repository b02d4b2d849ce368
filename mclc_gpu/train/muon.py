"""Muon: momentum whose steps are made orthogonal, matrix by matrix."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_MOMENTUM = 0.95
_ADAM_RATE = 0.15  # learning rate of the vectors and small weights, as a share of that of the matrices
_ADAM_BETAS = (0.9, 0.99)
_EPSILON = 1e-8
_LEAST = 8  # rows and columns of a matrix; orthogonal steps of smaller ones are mostly noise
# Five rounds with these coefficients bring singular values of 0.01 to 1 into 0.7 to 1.2, see the source.
_ROUNDS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon for the weights of convolutions and linear layers, AdamW for all other parameters.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/; Liu et al., arXiv:2502.16982. The weights of a convolution are
    a matrix of one row per index of the first dimension. Matrices of equal shape take their steps together.

    Parameters
    ----------
    params : iterable of Parameter or dict
        Parameters or groups of them.
    lr : float > 0
        Learning rate of the matrices; that of the other parameters is 0.15 times as high.
    weight_decay : float >= 0
        Decoupled, times the learning rate.
    """

    def __init__(
        self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients; a closure is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            matrices: dict[tuple[int, int], list[Tensor]] = {}
            others: list[Tensor] = []
            for parameter in parameters:
                shape = (len(parameter), parameter[0].numel()) if parameter.ndim > 1 else (0, 0)
                if min(shape) >= _LEAST:
                    matrices.setdefault(shape, []).append(parameter)
                else:
                    others.append(parameter)
            for shape, alike in matrices.items():
                self._orthogonal_step(alike, shape, group["lr"], group["weight_decay"])
            if others:
                self._adam_step(others, _ADAM_RATE * group["lr"], group["weight_decay"])

    def _orthogonal_step(
        self, alike: list[Tensor], shape: tuple[int, int], rate: float, weight_decay: float
    ) -> None:
        gradients = [parameter.grad for parameter in alike if parameter.grad is not None]
        momenta = [self._state(parameter, "momentum") for parameter in alike]
        torch._foreach_mul_(momenta, _MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=_MOMENTUM)  # Nesterov
        steps = orthogonalized(torch.stack([one.reshape(shape) for one in ahead]))
        # Tall matrices take longer steps, so that every output channel moves alike.
        scale = -rate * max(1.0, shape[0] / shape[1]) ** 0.5
        torch._foreach_mul_(alike, 1 - rate * weight_decay)
        pairs = zip(steps, alike, strict=True)
        torch._foreach_add_(alike, [one.reshape(parameter.shape) for one, parameter in pairs], alpha=scale)

    def _adam_step(self, others: list[Tensor], rate: float, weight_decay: float) -> None:
        gradients = [parameter.grad for parameter in others if parameter.grad is not None]
        means = [self._state(parameter, "mean") for parameter in others]
        squares = [self._state(parameter, "square") for parameter in others]
        count = self.state[others[0]]["steps"] = self.state[others[0]].get("steps", 0) + 1
        first, second = _ADAM_BETAS
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        widths = torch._foreach_sqrt(squares)
        torch._foreach_div_(widths, (1 - second**count) ** 0.5)
        torch._foreach_add_(widths, _EPSILON)
        torch._foreach_mul_(others, 1 - rate * weight_decay)
        torch._foreach_addcdiv_(others, means, widths, value=-rate / (1 - first**count))

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        """Return a moving average that belongs to a parameter, zero at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        found: Tensor = state[name]
        return found


def orthogonalized(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices near 1 and keep their singular vectors.

    Newton-Schulz iteration on the Gram matrix, which needs only products.

    Parameters
    ----------
    matrices : Tensor [N, R, C], float32

    Returns
    -------
    Tensor [N, R, C], float32
        Singular values 0.7 to 1.2 where those of a matrix were above a hundredth of its norm.

    Examples
    --------
    >>> import torch
    >>> from mclc_gpu.train.muon import orthogonalized
    >>> values = torch.linalg.svdvals(orthogonalized(torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # Every round multiplies x from the left by a polynomial of its Gram matrix. All are polynomials of the
    # first one, so that the rounds need no product with the wide x.
    gram = x @ x.mT
    identity = torch.eye(len(gram[0]), device=x.device, dtype=x.dtype)
    product = identity.expand_as(gram)
    linear, cubic, fifth = _COEFFICIENTS
    for _ in range(_ROUNDS):
        now = product @ product @ gram
        product = (linear * identity + cubic * now + fifth * now @ now) @ product
    x = product @ x
    return x.mT if tall else x
