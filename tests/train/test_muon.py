"""Muon against a plain version written from its description, parameter by parameter."""

import copy

import pytest
import torch
from torch import nn

from mclc_gpu.train.muon import Muon, orthogonalized


def network() -> nn.Sequential:
    """Weights of every kind: matrices, equal and tall ones, a thin one, vectors."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 16, 1)]
    return nn.Sequential(*layers, nn.Conv2d(16, 8, 3), nn.Conv2d(8, 1, 1))


def plain_step(parameters, gradients, state, lr, decay, count):
    """One step, as the sources write it."""
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        rows = parameter.shape[0]
        if parameter.ndim > 1 and rows >= 8 and parameter[0].numel() >= 8:
            momentum = state.setdefault(index, torch.zeros_like(parameter))
            momentum.mul_(0.95).add_(gradient)
            matrix = (gradient + 0.95 * momentum).reshape(rows, -1)
            x = matrix.mT if rows > matrix.shape[1] else matrix
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
            x = x.mT if rows > matrix.shape[1] else x
            longer = max(1, rows / matrix.shape[1]) ** 0.5
            parameter.mul_(1 - lr * decay).add_(x.reshape(parameter.shape), alpha=-lr * longer)
        else:
            mean, square = state.setdefault(index, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
            mean.lerp_(gradient, 0.1)
            square.mul_(0.99).add_(gradient**2, alpha=0.01)
            width = (square / (1 - 0.99**count)).sqrt() + 1e-8
            parameter.mul_(1 - 0.15 * lr * decay)
            parameter.sub_(0.15 * lr * (mean / (1 - 0.9**count)) / width)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_equal_those_of_the_plain_version(layout):
    fast = network().to(memory_format=layout)
    plain = [parameter.detach().clone() for parameter in network().parameters()]
    optimizer, state = Muon(fast.parameters(), lr=0.02, weight_decay=0.1), {}
    for count in range(1, 5):
        gradients = [torch.randn_like(parameter) for parameter in plain]
        for parameter, gradient in zip(fast.parameters(), gradients, strict=True):
            parameter.grad = gradient.to(memory_format=layout) if gradient.ndim == 4 else gradient.clone()
        optimizer.step()
        plain_step(plain, gradients, state, 0.02, 0.1, count)
    for ours, theirs in zip(fast.parameters(), plain, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (16, 40), (40, 16)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    ours = orthogonalized(matrix)
    assert torch.linalg.svdvals(ours).max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = u.mT @ ours @ v.mT
    assert (diagonal - torch.diag_embed(torch.diagonal(diagonal, dim1=1, dim2=2))).abs().max() < 5e-3


def test_a_loaded_state_continues_alike():
    first = network()
    one = Muon(first.parameters(), lr=0.02)
    gradients = [[torch.randn_like(parameter) for parameter in first.parameters()] for _ in range(3)]

    def step(net, optimizer, own):
        for parameter, gradient in zip(net.parameters(), own, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

    step(first, one, gradients[0])
    second = copy.deepcopy(first)
    other = Muon(second.parameters(), lr=0.02)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for own in gradients[1:]:
        step(first, one, own)
        step(second, other, own)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_single_number_takes_a_step():
    number = nn.Parameter(torch.tensor(1.0))
    number.grad = torch.tensor(2.0)
    Muon([number], lr=0.02).step()
    assert number.item() == pytest.approx(1 - 0.15 * 0.02)


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="closure"):
        Muon(network().parameters(), lr=0.02).step(lambda: 0.0)
