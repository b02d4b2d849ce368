"""Losses against plain numpy, and their behavior at the ends of their range."""

import numpy as np
import pytest
import torch

from mclc_gpu.networks.blocks import Logits
from mclc_gpu.train.config import LOSSES, WARM_UP
from mclc_gpu.train.losses import (
    cross_entropy,
    detector_loss,
    edge_target,
    iou_of_images,
    own_sums,
    partial_cross_entropy,
    scale_location,
    soft_iou,
)


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
    area = 32768  # of the prediction in an image; its variance beside the true area of 0 is (area / 2)^2
    weight = ((area / 2) ** 2 + 1) / (area + (area / 2) ** 2 + 1)
    expected |= {"sls": 1 - weight / (area + 1), "partial-bce": entropy / 2}
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


def scale_location_of_one(logits: np.ndarray, t: np.ndarray) -> float:
    """SLS loss of one image [H, W] by its formula, with the ones that are added to areas."""
    p = 1 / (1 + np.exp(-logits))
    both, variance = (p * t).sum(), ((p.sum() - t.sum()) / 2) ** 2
    iou = (both + 1) / (p.sum() + t.sum() - both + 1)
    weight = (min(p.sum(), t.sum()) + variance + 1) / (max(p.sum(), t.sum()) + variance + 1)
    if not t.any():
        return 1 - weight * iou
    rows, columns = np.indices(t.shape)
    y = [((rows + 0.5) / t.shape[0] * m).sum() / m.sum() for m in (p, t)]
    x = [((columns + 0.5) / t.shape[1] * m).sum() / m.sum() for m in (p, t)]
    far, angle = np.hypot(x, y), np.arctan2(y, x)
    return 1 - weight * iou + 1 - far.min() / far.max() + 4 / np.pi**2 * (angle[0] - angle[1]) ** 2


def test_scale_location_is_its_formula() -> None:
    logits, truth = batch()
    truth[2] = 0
    pairs = zip(logits[:, 0].double().numpy(), truth[:, 0].double().numpy(), strict=True)
    expected = np.mean([scale_location_of_one(*pair) for pair in pairs])
    assert scale_location(logits, truth).item() == pytest.approx(expected, rel=1e-5)


def test_scale_location_grows_with_wrong_size_and_place() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 10:13, 20:23] = 1
    larger, moved = torch.zeros_like(truth), truth.roll((3, -4), (2, 3))
    larger[..., 9:14, 19:24] = 1
    same, scaled, shifted, further = (
        scale_location(200 * mask - 100, truth).item()
        for mask in (truth, larger, moved, moved.roll((3, -4), (2, 3)))
    )
    assert same == pytest.approx(0, abs=1e-6)
    assert scaled > 1 - 10 / 26  # more than without a weight
    assert 0 < shifted - 1 + 1 / 19 < further - 1 + 1 / 19


@pytest.mark.parametrize("level", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_at_the_ends(name: str, level: float) -> None:
    for truth in (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)):
        logits = torch.full((2, 1, 8, 8), level, requires_grad=True)
        loss = detector_loss(Logits((logits,)), truth, name)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_another_loss_warms_up() -> None:
    logits, truth = batch()
    early, late = (detector_loss(Logits((logits,)), truth, "sls", epoch=e) for e in (WARM_UP - 1, WARM_UP))
    assert early == iou_of_images(logits, truth)
    assert late == scale_location(logits, truth)
    whole = [soft_iou(logits[i : i + 1], truth[i : i + 1]).item() for i in range(3)]
    assert early.item() == pytest.approx(np.mean(whole), rel=1e-6)
    assert detector_loss(Logits((logits,)), truth, "bce", epoch=0) == cross_entropy(logits, truth)


def test_partial_cross_entropy_leaves_out_what_points_do_not_tell() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 40, 50, generator=generator).requires_grad_()
    truth = torch.zeros(2, 1, 40, 50)
    truth[0, 0, 5, 20] = truth[0, 0, 30, 49] = 1
    loss = partial_cross_entropy(logits, truth)
    loss.backward()
    known = np.ones((40, 50), bool)
    known[:16, 10:31] = known[20:, 39:] = False
    p = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    background = -np.log(1 - np.concatenate([p[0, 0][known], p[1, 0].ravel()])).mean()
    assert loss.item() == pytest.approx(
        (background - np.log(p[0, 0, [5, 30], [20, 49]]).mean()) / 2, rel=1e-5
    )
    assert logits.grad is not None
    counted = torch.from_numpy(known)
    counted[[5, 30], [20, 49]] = True
    assert torch.equal(logits.grad[0, 0] != 0, counted)


def test_partial_cross_entropy_of_a_shared_batch_is_that_of_the_whole() -> None:
    logits, truth = batch()
    others = {}
    partial_cross_entropy(logits[1:], truth[1:], lambda sums: others.setdefault("sums", sums))
    shared = partial_cross_entropy(logits[:1], truth[:1], lambda sums: sums + others["sums"])
    assert shared.item() == pytest.approx(partial_cross_entropy(logits, truth).item(), rel=1e-6)
