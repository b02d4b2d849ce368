"""Targets pasted into crops: what a stamp holds, where it lands, and that it changes nothing else."""

import numpy as np
import pytest
import torch

from mclc_gpu.train.pasting import DRAWS, SIDE, StampCollector, Stamps, paste

CPU = torch.device("cpu")


def stamps_of(levels: np.ndarray, mask: np.ndarray) -> Stamps | None:
    collector = StampCollector()
    collector.add(levels, mask)
    return collector.stamps(CPU)


def one_target(top: int = 20, left: int = 30, bright: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A frame of level 50 with an L-shaped target that is brighter by `bright`."""
    mask = np.zeros((64, 80), bool)
    mask[top : top + 4, left] = mask[top + 3, left : left + 3] = True
    levels = np.full((1, 64, 80), 50, np.uint8)
    levels[0, mask] += np.uint8(bright)
    return levels, mask


def test_a_stamp_is_the_contrast_of_the_target_faded_out():
    levels, mask = one_target()
    stamps = stamps_of(levels, mask)
    assert stamps is not None
    assert len(stamps) == 1
    change, own = stamps.change[0, 0].float(), stamps.mask[0]
    assert own.sum() == mask.sum()
    assert change[own].min() > 40
    assert change[own].max() <= 60
    assert change[~own].abs().max() == 0  # the background is flat


@pytest.mark.parametrize(("top", "left"), [(0, 0), (60, 77), (0, 77)])
def test_targets_on_the_border_have_stamps(top, left):
    levels, mask = one_target(top, left)
    stamps = stamps_of(levels, mask)
    assert stamps is not None
    assert stamps.mask.sum() == mask.sum()


def test_large_targets_and_those_without_background_have_none():
    mask = np.zeros((64, 64), bool)
    mask[5:45, 5:45] = True
    assert stamps_of(np.zeros((1, 64, 64), np.uint8), mask) is None
    assert stamps_of(np.zeros((1, 4, 4), np.uint8), np.ones((4, 4), bool)) is None
    assert stamps_of(np.zeros((1, 64, 64), np.uint8), np.zeros((64, 64), bool)) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_pasted_targets_agree_with_their_masks(dtype):
    stamps = stamps_of(*one_target())
    assert stamps is not None
    crops = torch.zeros(40, 2, 48, 48, dtype=dtype)
    crops[:, 0] = 90
    draws = torch.from_numpy(np.random.default_rng(3).random((40, DRAWS)))
    pasted = paste(crops.clone(), stamps, draws, share=0.5)
    assert pasted.dtype == dtype
    used = pasted[:, 1].flatten(1).sum(1)
    assert torch.equal(used > 0, draws[:, 0] < 0.5)
    assert set(used.tolist()) == {0, 6}
    changed = pasted[:, 0] != 90
    assert torch.equal(changed, pasted[:, 1] > 0)
    rise = pasted[:, 0][changed].float() - 90
    assert rise.min() > 40 * np.exp(-0.5) - 1
    assert rise.max() <= 60 * np.exp(0.5) + 1
    assert len({tuple(torch.nonzero(one).flatten().tolist()) for one in pasted[:, 1] if one.any()}) > 10


def test_a_crop_with_a_target_there_keeps_it_and_levels_stay_in_range():
    stamps = stamps_of(*one_target(bright=200))
    assert stamps is not None
    crops = torch.full((2, 2, SIDE, SIDE), 150, dtype=torch.uint8)
    crops[:, 1] = 0
    crops[1, 1, 3, 4] = 1
    draws = torch.zeros(2, DRAWS, dtype=torch.float64)
    pasted = paste(crops.clone(), stamps, draws, share=1.0)
    assert torch.equal(pasted[1], crops[1])
    assert pasted[0, 0].max() == 255
    assert pasted[0, 1].sum() == 6


def test_small_crops_and_a_share_of_zero_change_nothing():
    stamps = stamps_of(*one_target())
    assert stamps is not None
    draws = torch.zeros(3, DRAWS, dtype=torch.float64)
    for side, share in ((SIDE - 1, 1.0), (64, 0.0)):
        crops = torch.randint(0, 256, (3, 2, side, side), dtype=torch.uint8)
        assert torch.equal(paste(crops.clone(), stamps, draws, share), crops)
