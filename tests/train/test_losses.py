"""Losses against plain numpy, and their behavior at the ends of their range."""

import numpy as np
import pytest
import torch

from mclc_gpu.networks.blocks import Logits
from mclc_gpu.train.config import LOSSES
from mclc_gpu.train.trainer import cross_entropy, detector_loss, edge_target, own_sums, soft_iou


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 1, 9, 11, generator=generator)
    truth = (torch.rand(3, 1, 9, 11, generator=generator) < 0.1).float()
    return logits, truth


def test_soft_iou_is_its_formula_over_the_batch() -> None:
    logits, truth = batch()
    p, t = 1 / (1 + np.exp(-logits.double().numpy())), truth.double().numpy()
    both = (p * t).sum()
    expected = 1 - (both + 1) / (p.sum() + t.sum() - both + 1)
    assert soft_iou(logits, truth).item() == pytest.approx(expected, abs=1e-6)


def test_soft_iou_of_a_shared_batch_is_that_of_the_whole() -> None:
    """Each process adds the others' sums, whose numbers carry no gradient there."""
    logits, truth = batch()
    others = {}
    soft_iou(logits[1:], truth[1:], lambda sums: others.setdefault("sums", sums))
    own = logits[:1].clone().requires_grad_()
    loss = soft_iou(own, truth[:1], lambda sums: sums + others["sums"])
    loss.backward()
    whole = logits.clone().requires_grad_()
    soft_iou(whole, truth).backward()
    torch.testing.assert_close(own.grad, whole.grad[:1])


def test_soft_iou_is_zero_for_the_truth_and_nearly_one_for_its_opposite() -> None:
    _, truth = batch()
    assert soft_iou(200 * truth - 100, truth).item() == pytest.approx(0, abs=1e-6)
    assert soft_iou(100 - 200 * truth, truth).item() > 0.98


def test_a_batch_without_targets_pulls_the_prediction_down() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss = soft_iou(logits, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == pytest.approx(8 / 9)
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_cross_entropy_is_its_formula() -> None:
    logits, truth = batch()
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    t = truth.numpy()
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert cross_entropy(logits, truth).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_summed_in_float32(name: str) -> None:
    logits, truth = torch.zeros(2, 1, 256, 256, dtype=torch.bfloat16), torch.zeros(2, 1, 256, 256)
    loss = detector_loss(Logits((logits,)), truth, name)
    assert loss.dtype == torch.float32
    overlap, entropy = 1 - 1 / 65537, np.log(2)
    expected = {"soft-iou": overlap, "bce": entropy, "soft-iou+bce": overlap + 0.5 * 131072 * entropy / 20}
    assert loss.item() == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_deep_supervision_is_the_mean_of_the_outputs(name: str) -> None:
    first, truth = batch()
    second, _ = batch(1)
    both = detector_loss(Logits((first, second)), truth, name)
    assert both.item() == pytest.approx(
        (LOSSES[name](first, truth, own_sums) + LOSSES[name](second, truth, own_sums)).item() / 2, rel=1e-6
    )


def test_an_edge_adds_its_own_loss() -> None:
    logits, truth = batch()
    edge, _ = batch(2)
    target = edge_target(truth)
    added = detector_loss(Logits((logits,), edge), truth) - detector_loss(Logits((logits,)), truth)
    assert added.item() == pytest.approx((10 * cross_entropy(edge, target) + soft_iou(edge, target)).item())


def test_the_edge_of_a_square_lies_on_both_sides_of_its_outline() -> None:
    truth = torch.zeros(1, 1, 9, 9)
    truth[..., 3:6, 3:6] = 1
    edge = edge_target(truth)[0, 0]
    assert edge.max() == 1
    assert edge[4, 4] == pytest.approx(1e-3)  # the middle
    assert (edge[4, 2:4] == 1).all()  # outside and inside of the left side
    assert edge[0, 0] == pytest.approx(1e-3)
