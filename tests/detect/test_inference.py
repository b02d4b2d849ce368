"""Tiles, batches and gray levels: input of a detector, and assembly of its output."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mclc_gpu.detect.checkpoint import Normalization
from mclc_gpu.detect.config import AUGMENTATIONS
from mclc_gpu.detect.inference import Predictor, probability, to_input
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector, Logits
from mclc_gpu.networks.zoo import build

PLAIN = Normalization(0.0, 1.0)


class Local(Detector):
    """Looks `reach` pixels far in every direction, and counts what it is asked."""

    def __init__(self, reach: int = 4, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.reach = reach
        self.weight = nn.Parameter(torch.full((1, in_channels, 2 * reach + 1, 2 * reach + 1), 0.05))
        self.seen: list[tuple[int, ...]] = []

    def segment(self, x: torch.Tensor) -> Logits:
        self.seen.append(tuple(x.shape))
        # Zeros at the border: a tile's own edge shows, unless it is left out.
        return Logits((F.conv2d(x, self.weight, padding=self.reach),))


class Position(Detector):
    """Answers with the horizontal position inside what it is shown, whatever that is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def segment(self, x: torch.Tensor) -> Logits:
        logits = torch.linspace(-3, 3, x.shape[3]).expand(len(x), 1, *x.shape[2:])
        return Logits((logits + self.weight,))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 200), (61, 150), (20, 129), (17, 5)])
@pytest.mark.parametrize("overlap", [16, 24, 32])
def test_tiles_answer_as_the_whole_image_does(size, overlap):
    network, images = Local(reach=4).eval(), noise(2, 1, *size)
    whole = probability(network, images, tile=1024, overlap=overlap)
    tiled = probability(network, images, tile=64, overlap=overlap)
    assert tiled.shape == (2, *size)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_a_network_that_looks_farther_than_the_overlap_is_cut_off():
    network, images = Local(reach=12).eval(), noise(1, 1, 64, 200)
    whole = probability(network, images, tile=1024, overlap=16)
    tiled = probability(network, images, tile=64, overlap=16)
    assert (tiled - whole).abs().max() > 1e-3


@pytest.mark.parametrize("batch_pixels", [1, 3 * 64 * 64, 1 << 20])
def test_all_tiles_have_one_size_and_run_together(batch_pixels):
    network = Local().eval()
    probability(network, noise(2, 1, 100, 150), tile=64, overlap=16, batch_pixels=batch_pixels)
    assert {shape[1:] for shape in network.seen} == {(1, 64, 64)}
    assert sum(shape[0] for shape in network.seen) == 2 * 2 * 3
    assert max(shape[0] for shape in network.seen) == min(max(batch_pixels // 4096, 1), 12)


def test_tiles_are_blended_without_a_seam():
    # Neighboring tiles disagree as much as they can where they meet: at 1/4 and 3/4 of the overlap alone one
    # of them counts, and in between no step is larger than the ramp's.
    found = probability(Position().eval(), torch.zeros(1, 1, 8, 112), tile=64, overlap=16)[0, 0]
    alone = torch.sigmoid(torch.linspace(-3, 3, 64))
    torch.testing.assert_close(found[:52], alone[:52])
    torch.testing.assert_close(found[60:], alone[12:])
    assert float(found[52:60].diff().abs().max()) < 0.18


def test_without_overlap_tiles_lie_side_by_side():
    found = probability(Position().eval(), torch.zeros(1, 1, 3, 128), tile=64, overlap=0)[0, 0]
    torch.testing.assert_close(found, torch.sigmoid(torch.linspace(-3, 3, 64)).repeat(2))


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (64, 33), (64, -1)])
def test_tiles_out_of_range(tile, overlap):
    with pytest.raises(ValueError, match=f"tile {tile}, overlap {overlap}"):
        probability(Local().eval(), noise(1, 1, 8, 8), tile, overlap)


@pytest.mark.parametrize("name", ["acm", "resunet-slim"])
@pytest.mark.parametrize("amp", [False, True])
def test_real_networks_on_images_of_several_sizes(name, amp):
    torch.manual_seed(0)
    network = build(name)
    predictor = Predictor(network, Normalization(100.0, 20.0), tile=64, overlap=16, amp=amp)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((40, 50), (70, 33), (40, 50, 3), (1, 1))]
    together = predictor.probabilities(images)
    assert network.training  # as it was before
    for image, found in zip(images, together, strict=True):
        assert found.shape == image.shape[:2]
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1
        (alone,) = predictor.probabilities([image])
        np.testing.assert_allclose(alone, found, atol=0.02 if amp else 1e-5)
    assert predictor.probabilities([]) == []


def test_images_of_equal_size_run_together_and_keep_their_order():
    network = Local()
    images = [np.full((8, 8 + index % 2), 10 * index, np.uint8) for index in range(5)]
    every = Predictor(network, Normalization(0.0, 255.0)).probabilities(images)
    assert sorted(shape[0] for shape in network.seen) == [2, 3]
    middles = [float(found[4, 4]) for found in every]
    assert middles == sorted(middles)
    assert len(set(middles)) == 5


def test_input_is_gray_levels_less_the_mean_over_the_deviation():
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    np.testing.assert_allclose(to_input(gray, 1, Normalization(100, 50)), [[[-2, 0], [2, 3.1]]])
    assert to_input(gray, 3, PLAIN).shape == (3, 2, 2)
    deep = to_input(np.array([[1000, 1500], [2000, 3000]], np.uint16), 1, PLAIN)
    np.testing.assert_allclose(deep, [[[0, 63.75], [127.5, 255]]])
    assert deep.dtype == np.float32


def test_a_diverged_network_is_named():
    network = Local()
    with torch.no_grad():
        network.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        Predictor(network, PLAIN).probabilities([np.zeros((8, 8), np.uint8)])


def test_flips_are_averaged():
    image = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    sided = Predictor(Position(), PLAIN).probabilities([image])[0]
    assert sided[0, 0] < 0.1
    assert sided[0, -1] > 0.9
    np.testing.assert_allclose(
        Predictor(Position(), PLAIN, tta="flips").probabilities([image])[0], 0.5, atol=1e-6
    )
    # A network of one direction: the mean is that of its answers to the mirrored images, mirrored back.
    network = Local(reach=2)
    with torch.no_grad():
        network.weight.copy_(torch.linspace(-0.002, 0.004, 25).view(1, 1, 5, 5))
    plain = Predictor(network, PLAIN)
    views = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    expected = np.mean([plain.probabilities([image[::a, ::b]])[0][::a, ::b] for a, b in views], axis=0)
    found = Predictor(network, PLAIN, tta="flips", tile=16, overlap=8).probabilities([image])[0]
    assert np.abs(found - plain.probabilities([image])[0]).max() > 0.01
    np.testing.assert_allclose(
        found, Predictor(network, PLAIN, tta="flips").probabilities([image])[0], atol=1e-5
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_augmentations_are_found_by_name(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "half", lambda run, images: run(images) / 2)
    image = np.full((8, 8), 9, np.uint8)
    plain, halved = (
        Predictor(Position(), PLAIN, tta=name).probabilities([image])[0] for name in ("none", "half")
    )
    np.testing.assert_allclose(halved, plain / 2)
    with pytest.raises(InputError, match="tta 'thirds': use one of none, flips, half"):
        Predictor(Position(), PLAIN, tta="thirds").probabilities([image])
