"""Synthetic frames are repeatable and have the stated truth."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.synthetic import AREAS, FULL_SCALE, TRUTH_FRACTION, Scene, scene, write_dataset
from mclc_gpu.errors import InputError

EIGHT = np.ones((3, 3))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(5, index, size=(120, 160)) for index in range(60)]


def box(x: float, y: float, shape: tuple[int, int], half: int = 12) -> tuple[slice, slice]:
    rows, columns = (
        (max(round(c) - half, 0), min(round(c) + half + 1, n)) for c, n in zip((y, x), shape, strict=True)
    )
    return slice(*rows), slice(*columns)


def test_a_frame_depends_on_its_own_seed_and_index_alone() -> None:
    first = scene(3, 7)
    scene(3, 8)
    again = scene(3, 7)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.targets == again.targets
    assert (scene(3, 8).image != first.image).any()
    assert (scene(4, 7).image != first.image).any()


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
@pytest.mark.parametrize("size", [(16, 16), (61, 113), (300, 47)])
def test_size_and_type(bits: int, dtype: type, size: tuple[int, int]) -> None:
    made = scene(0, 1, size=size, bits=bits, targets=["spot"])
    assert made.image.shape == size
    assert made.image.dtype == dtype
    assert made.mask.shape == size
    assert made.mask.dtype == np.bool_
    assert made.image.max() <= FULL_SCALE[bits]


def test_sixteen_bits_resolve_what_eight_bits_round() -> None:
    eight, sixteen = (scene(2, 0, bits=bits) for bits in (8, 16))
    np.testing.assert_array_equal(eight.mask, sixteen.mask)
    np.testing.assert_allclose(sixteen.image / 16383, eight.image / 255, atol=0.51 / 255)
    assert len(np.unique(sixteen.image)) > 256


def test_targets_are_the_components_of_the_mask(scenes: list[Scene]) -> None:
    for made in scenes:
        labels, count = ndimage.label(made.mask, structure=EIGHT)
        assert count == len(made.targets)
        found = ndimage.center_of_mass(made.mask, labels, range(1, count + 1))
        areas = np.bincount(labels.ravel())[1:]
        stated = sorted((target.y, target.x, target.area) for target in made.targets)
        actual = sorted((y, x, area) for (y, x), area in zip(found, areas, strict=True))
        np.testing.assert_allclose(actual, stated)
        for target in made.targets:
            low, high = AREAS[target.category]
            assert low <= target.area <= high


def test_every_category_and_the_border_occur(scenes: list[Scene]) -> None:
    categories = [target.category for made in scenes for target in made.targets]
    assert set(categories) == set(AREAS)
    rims = [np.concatenate([m[0], m[-1], m[:, 0], m[:, -1]]).any() for m in (made.mask for made in scenes)]
    assert 1 <= sum(rims) <= len(scenes) / 2


def test_targets_asked_for_are_given_in_order() -> None:
    wanted = ["extended", "point", "point", "spot", "extended", "spot"]
    assert [target.category for target in scene(1, 1, targets=wanted).targets] == wanted
    empty = scene(1, 1, targets=[])
    assert empty.targets == ()
    assert not empty.mask.any()


def test_the_frame_without_targets_is_the_same() -> None:
    full, empty = scene(9, 4, targets=["spot", "extended"]), scene(9, 4, targets=[])
    far = ~ndimage.binary_dilation(full.mask, iterations=40)
    assert far.any()
    np.testing.assert_array_equal(full.image[far], empty.image[far])


@pytest.mark.parametrize("snr", [5.0, 12.0])
@pytest.mark.parametrize("category", list(AREAS))
def test_stated_snr_and_truth_fraction(category: str, snr: float) -> None:
    """Compare peak and contrast with the frame without target, at 16 bits."""
    for index in range(12):
        full = scene(11, index, size=(96, 96), bits=16, targets=[category], snr=snr)
        bare = scene(11, index, size=(96, 96), bits=16, targets=[]).image.astype(float)
        (target,) = full.targets
        light = full.image - bare
        sigma = bare[box(target.x, target.y, bare.shape)].std()
        # The box lies around the center that was drawn, which differs a little from the truth's centroid.
        assert light.max() / sigma == pytest.approx(target.snr, rel=0.25)
        assert target.snr == pytest.approx(snr)
        rounding = 1.5
        assert light[full.mask].min() >= TRUTH_FRACTION * light.max() - rounding
        assert light[~full.mask].max() <= TRUTH_FRACTION * light.max() + rounding


def test_a_target_without_room_states_the_snr_it_has() -> None:
    made = scene(0, 0, targets=["spot"], snr=1e6)
    assert 0 < made.targets[0].snr < 1e5
    assert made.image[made.mask].max() >= 250


@pytest.mark.parametrize("bits", [8, 16])
def test_dataset_on_disk_is_what_scene_draws(tmp_path: Path, bits: int) -> None:
    write_dataset(tmp_path, 5, 8, size=(40, 50), bits=bits, test_share=0.4)
    names = [f"synthetic_{index:05d}" for index in range(5)]
    for index, name in enumerate(names):
        made = scene(8, index, size=(40, 50), bits=bits)
        image = read_image(tmp_path / "images" / f"{name}.png")
        assert image.dtype == made.image.dtype
        np.testing.assert_array_equal(image, made.image)
        np.testing.assert_array_equal(read_mask(tmp_path / "masks" / f"{name}.png"), made.mask)
        assert set(np.unique(np.asarray(Image.open(tmp_path / "masks" / f"{name}.png")))) <= {0, 255}
    assert (tmp_path / "splits" / "train.txt").read_text().split() == names[:3]
    assert (tmp_path / "splits" / "test.txt").read_text().split() == names[3:]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [f"{name}.png" for name in names] * 2 + ["train.txt", "test.txt"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seed": -1}, "seed -1"),
        ({"index": -2}, "index -2"),
        ({"size": (15, 40)}, "15x40"),
        ({"bits": 12}, "bits 12"),
        ({"targets": ["plane"]}, "'plane'"),
        ({"snr": 0.0}, "snr 0.0"),
        ({"snr": float("nan")}, "snr nan"),
        ({"size": (16, 16), "targets": ["spot"] * 30}, "no room for a target of category 'spot' in 16x16"),
    ],
)
def test_bad_input_is_named(arguments: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        scene(**{"seed": 0, "index": 0, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arguments", "said"), [((0, 0, 0.5), "count 0"), ((3, 0, 1.5), "test_share 1.5")])
def test_bad_dataset_is_named(tmp_path: Path, arguments: tuple[int, int, float], said: str) -> None:
    count, seed, share = arguments
    with pytest.raises(InputError, match=said):
        write_dataset(tmp_path, count, seed, test_share=share)
    assert list(tmp_path.iterdir()) == []
