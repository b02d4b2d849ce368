"""Crops against a plain loop over pixels, and the distribution of their positions."""

import numpy as np
import pytest
import torch

from mclc_gpu.train.data import TARGET_SHARE, Packed, Plan, cut, pack, plan_epoch

SIZES = [(20, 31), (7, 9), (16, 16), (1, 40), (33, 5)]


def frames(channels: int = 1, dtype: type = np.uint8) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = []
    for number, (height, width) in enumerate(SIZES):
        levels = rng.integers(0, 256, (channels, height, width)).astype(dtype)
        mask = np.zeros((height, width), bool)
        if number != 2:  # an image without a target
            mask[height // 2, width - 2 : width] = True
        made.append((levels, mask))
    return made


def reference(levels: np.ndarray, mask: np.ndarray, top: int, left: int, flips: list[bool], size: int):
    """The crop by numpy's own padding, flipping and transposing."""
    planes = np.concatenate([levels, mask[None].astype(levels.dtype)])
    pad = 3 * size
    planes = np.pad(planes, ((0, 0), (pad, pad), (pad, pad)), mode="symmetric")
    crop = planes[:, pad + top : pad + top + size, pad + left : pad + left + size]
    crop = crop[:, ::-1] if flips[0] else crop
    crop = crop[:, :, ::-1] if flips[1] else crop
    return crop.transpose(0, 2, 1) if flips[2] else crop


def corner(packed: Packed, plan: Plan, i: int, size: int) -> tuple[int, int]:
    """Compute the start of crop i in Python."""
    image, draws = int(plan.image[i]), plan.draws[i].tolist()
    height, width, count = (int(t[image]) for t in (packed.height, packed.width, packed.count))
    ranges = [[min(0, n - size), max(0, n - size)] for n in (height, width)]
    if count and draws[0] < TARGET_SHARE:
        pixel = int(packed.targets[int(packed.first[image]) + int(draws[1] * count)])
        for own, place in zip(ranges, divmod(pixel, width), strict=True):
            own[:] = max(own[0], place - size + 1), min(own[1], place)
    top, left = (
        low + int(draw * (high - low + 1)) for (low, high), draw in zip(ranges, draws[2:], strict=True)
    )
    return top, left


@pytest.mark.parametrize("size", [1, 8, 16, 24])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.float16)])
def test_crops_are_those_of_a_plain_loop(size: int, channels: int, dtype: type) -> None:
    made = frames(channels, dtype)
    packed, plan = pack(made), plan_epoch(len(made), 60, 3, 4)
    crops = cut(packed, plan, size)
    assert crops.shape == (60, channels + 1, size, size)
    assert crops.dtype == packed.planes.dtype
    for i, crop in enumerate(crops.numpy()):
        top, left = corner(packed, plan, i, size)
        levels, mask = made[int(plan.image[i])]
        expected = reference(levels, mask, top, left, plan.flips[i].tolist(), size)
        np.testing.assert_array_equal(crop, expected)


def test_crops_do_not_depend_on_the_batch() -> None:
    packed, plan = pack(frames()), plan_epoch(len(SIZES), 20, 0, 0)
    whole = cut(packed, plan, 12)
    parts = torch.cat([cut(packed, plan[start : start + 3], 12) for start in range(0, 20, 3)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_crops_lie_on_targets_as_often_as_promised() -> None:
    mask = np.zeros((200, 200), bool)
    mask[100, 100] = True
    packed = pack([(np.zeros((1, 200, 200), np.uint8), mask)])
    crops = cut(packed, plan_epoch(1, 4000, 0, 0), 20)[:, 1]
    share = crops.flatten(1).any(dim=1).float().mean().item()
    by_chance = (20 / 181) ** 2
    assert share == pytest.approx(TARGET_SHARE + (1 - TARGET_SHARE) * by_chance, abs=0.03)
    rows, columns = crops.nonzero()[:, 1:].unbind(1)
    for places in (rows, columns):  # everywhere in the crop, not in its middle
        counts = torch.bincount(places, minlength=20)
        assert counts.min() > 0.5 * counts.float().mean()


def test_crops_reach_every_place_of_an_image() -> None:
    levels = np.arange(144, dtype=np.uint8).reshape(1, 12, 12)
    packed = pack([(levels, np.zeros((12, 12), bool))])
    crops = cut(packed, plan_epoch(1, 2000, 0, 0), 8)[:, 0]
    # Corners of the crops before flipping: the least level of each.
    corners = crops.flatten(1).min(dim=1).values
    assert set(corners.tolist()) == {12 * row + column for row in range(5) for column in range(5)}


def test_one_wide_image_keeps_the_levels_of_the_others() -> None:
    narrow, wide = frames()[0], frames(dtype=np.float16)[1]
    packed = pack([narrow, wide])
    assert packed.planes.dtype == torch.float16
    np.testing.assert_array_equal(packed.planes[: narrow[0].size].numpy(), narrow[0].ravel())


def test_an_epoch_holds_every_image_before_it_repeats_one() -> None:
    plan = plan_epoch(10, 25, 0, 0)
    assert sorted(plan.image[:10].tolist()) == list(range(10))
    assert sorted(plan.image[10:20].tolist()) == list(range(10))
    assert len(plan) == 25


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def content(seed: int, epoch: int) -> tuple[bytes, ...]:
        plan = plan_epoch(10, 16, seed, epoch)
        return tuple(t.numpy().tobytes() for t in (plan.image, plan.draws, plan.flips))

    assert content(1, 2) == content(1, 2)
    assert len({content(1, 2), content(1, 3), content(2, 2), content(-1, 2)}) == 4
