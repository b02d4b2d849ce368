"""Images that are held out, and those that are in training and validation."""

import shutil
from pathlib import Path

from training_data import write_frames

from mclc_gpu.data.datasets import Sample
from mclc_gpu.train.heldout import hold_out, in_both


def samples(count: int, first: int = 0) -> list[Sample]:
    return [Sample(f"{n:03}", Path(f"{n:03}.png"), Path("mask")) for n in range(first, first + count)]


def test_a_share_is_held_out_and_the_rest_is_trained_on() -> None:
    everything = samples(200)
    train, held = hold_out(everything, 0.1)
    assert len(held) == 20
    assert sorted([*train, *held], key=lambda one: one.name) == everything
    names = [int(one.name) for one in held]
    assert names == sorted(names)
    assert 40 < sum(names) / len(names) < 160, "not those of one end"
    assert hold_out(everything[::-1], 0.1)[1] == held[::-1]


def test_few_images_are_all_trained_on() -> None:
    assert hold_out(samples(19), 0.1) == (samples(19), [])
    assert len(hold_out(samples(20), 0.01)[1]) == 1
    assert hold_out(samples(40), 0.0)[1] == []


def test_images_in_training_and_validation_are_found_by_path_and_by_content(tmp_path: Path) -> None:
    train = write_frames(tmp_path / "a", 3)
    other = write_frames(tmp_path / "b", 3, seed=1)
    copied = Sample("copy", other[1].image, other[1].mask)
    shutil.copy(train[1].image, copied.image)
    assert in_both(train, [train[0], copied, other[2]]) == ["frame0", "copy"]
    assert in_both(train, [other[0], Sample("gone", tmp_path / "frame0.png", tmp_path / "m")]) == []
