"""Training sets: unusable samples, statistics, and equal batches from memory and from files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.errors import InputError
from mclc_gpu.train.data import open_training_set, plan_epoch

CPU = torch.device("cpu")


def write(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> Sample:
    sample = Sample(name, folder / f"{name}.png", folder / f"{name}_mask.png")
    Image.fromarray(image).save(sample.image)
    Image.fromarray(mask.astype(np.uint8) * 255).save(sample.mask)
    return sample


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Seven images of several sizes, one of 16 bit and one in color, one without a target."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(7):
        shape = (20 + 3 * i, 41 - 4 * i)
        image = rng.integers(0, 256, (*shape, 3) if i == 1 else shape).astype(np.uint8)
        image = image.astype(np.uint16) * 97 if i == 2 else image
        mask = np.zeros(shape, bool)
        mask[i : i + 2, 5:8] = i != 3
        made.append(write(tmp_path, f"frame{i}", image, mask))
    return made


@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_crops_are_the_resident_ones(samples: list[Sample], channels: int) -> None:
    resident = open_training_set(samples, channels, CPU)
    streamed = open_training_set(samples, channels, CPU, budget=100)
    assert resident.packed is not None
    assert streamed.packed is None
    assert (streamed.mean, streamed.std, streamed.digest) == (resident.mean, resident.std, resident.digest)
    plan = plan_epoch(7, 40, 0, 0)
    pairs = list(zip(resident.batches(plan, 6, 24), streamed.batches(plan, 6, 24), strict=True))
    assert len(pairs) == 7
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    images, truth = pairs[0][0]
    assert images.shape == (6, channels, 24, 24)
    assert truth.shape == (6, 1, 24, 24)
    assert set(truth.unique().tolist()) == {0.0, 1.0}


def test_images_are_normalised_to_the_whole_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (30, 30)).astype(np.uint8) for _ in range(3)]
    made = [write(tmp_path, f"f{i}", frame, np.eye(30, dtype=bool)) for i, frame in enumerate(frames)]
    data = open_training_set(made, 1, CPU)
    assert data.mean == pytest.approx(np.mean(frames))
    assert data.std == pytest.approx(np.std(frames))
    images, _ = next(data.batches(plan_epoch(3, 3, 0, 0), 3, 30))  # whole images
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_images_of_one_level_are_not_divided_by_zero(tmp_path: Path) -> None:
    data = open_training_set(
        [write(tmp_path, "flat", np.full((9, 9), 7, np.uint8), np.eye(9, dtype=bool))], 1, CPU
    )
    assert (data.mean, data.std) == (7.0, 1.0)


def test_unusable_samples_are_reported_and_left_out(samples: list[Sample], tmp_path: Path) -> None:
    samples[4].image.write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(samples[5].mask)
    data = open_training_set(samples, 1, CPU)
    assert [sample.name for sample in data.samples] == [f"frame{i}" for i in (0, 1, 2, 3, 6)]
    assert [Path(item.file).stem for item in data.skipped] == ["frame4", "frame5"]
    assert data.skipped[1].why.endswith("masks are not resized")
    assert data.targets == 4


def test_a_set_that_teaches_nothing_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the 1 masks has a target"):
        open_training_set([samples[3]], 1, CPU)
    missing = Sample("gone", tmp_path / "gone.png", tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"gone\.png: .*no such file"):
        open_training_set([missing], 1, CPU)
    with pytest.raises(InputError, match="no images"):
        open_training_set([], 1, CPU)


def test_the_digest_tells_sets_apart(samples: list[Sample]) -> None:
    digests = {open_training_set(own, 1, CPU).digest for own in (samples, samples[1:], samples[::-1])}
    Image.fromarray(np.eye(20, 41, dtype=bool)).save(samples[0].mask)
    digests.add(open_training_set(samples, 1, CPU).digest)
    assert len(digests) == 4


def test_a_file_that_vanishes_ends_a_streamed_epoch(samples: list[Sample]) -> None:
    data = open_training_set(samples, 1, CPU, budget=100)
    samples[6].image.unlink()
    with pytest.raises(InputError, match=r"frame6\.png: no such file"):
        list(data.batches(plan_epoch(7, 7, 0, 0), 2, 16))


def test_work_ahead_is_bounded_and_in_order() -> None:
    begun: list[int] = []
    results = prefetch_map(lambda item: begun.append(item) or 2 * item, range(1000))
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert len(begun) < 50
    results.close()
    assert len(begun) < 50
