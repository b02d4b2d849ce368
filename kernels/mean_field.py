"""Steps of mean field on torch tensors that the backends of the dense CRF share, and extremes of windows."""

import functools
from collections.abc import Callable

import numpy as np
import torch

MAX_PIXELS = 1 << 22
_PIECE = 1 << 13  # pixels: with a few classes less than torch shares between threads


def in_pieces(function: Callable[..., torch.Tensor], *values: torch.Tensor) -> torch.Tensor:
    """Apply a function that works pixel by pixel to tensors [..., pixels].

    On the CPU it is applied in pieces too small for torch to share between its threads: on a busy machine
    these wait for one another many times longer than they work.

    Parameters
    ----------
    function : callable
        Takes as many tensors as there are values and returns one, of the same last dimension.
    *values : Tensor [..., pixels]

    Returns
    -------
    Tensor [..., pixels]
    """
    if values[0].device.type != "cpu":
        return function(*values)
    pieces = zip(*(value.split(_PIECE, -1) for value in values), strict=True)
    return torch.cat([function(*piece) for piece in pieces], -1)


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the softmax [classes, ...] of logits [classes - 1, ...] relative to the first class."""
    # On the CPU torch's own softmax rounds by the place in the batch; exp, + and / do not.
    every = torch.cat([torch.zeros_like(logits[:1]), logits])
    powers = torch.exp(every - every.amax(0))
    return powers / functools.reduce(torch.add, powers)


def differences(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of each class but the first minus that of the first, [classes - 1, ...].

    Mean field needs no more of Q than these, because softmax ignores what all classes receive alike.
    """
    if len(logits) == 1:
        return torch.tanh(logits / 2)
    probabilities = in_pieces(class_probabilities, logits)
    return probabilities[1:] - probabilities[:1]


def relative_to(values: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Return values / top for values in 0..top; zeros where top is 0."""
    return values / top.clamp(min=torch.finfo(torch.float32).tiny)


def of_window(values: torch.Tensor, sizes: torch.Tensor, reduce: str) -> torch.Tensor:
    """Return for every pixel the extreme value of its window.

    Parameters
    ----------
    values : Tensor [pixels of all windows], float32
    sizes : Tensor [windows], int64, on the CPU
        Pixels of each window.
    reduce : {"amax", "amin"}
    """
    if values.device.type == "cpu":
        # In one thread: see `in_pieces`.
        extreme = np.maximum if reduce == "amax" else np.minimum
        found = extreme.reduceat(values.numpy(), (torch.cumsum(sizes, 0) - sizes).numpy())
        return torch.from_numpy(np.repeat(found, sizes.numpy()))
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(values.device)
    empty = torch.zeros(len(sizes), device=values.device)
    return empty.scatter_reduce(0, owner, values, reduce, include_self=False)[owner]
