"""Gray levels, batches, sequences and scales of the maps of untrained detectors, and their thresholds."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mclc_gpu.classical.config import METHODS, MethodOptions
from mclc_gpu.classical.method import Method
from mclc_gpu.classical.predictor import MethodPredictor, make_method, scaled, sequences
from mclc_gpu.classical.rules import threshold_of
from mclc_gpu.classical.tophat import TopHat
from mclc_gpu.data.synthetic import scene
from mclc_gpu.errors import InputError, Skipped


@dataclass(frozen=True)
class Frames(Method):
    """Gray levels above the mean of all frames that run together; of frames of 7 columns NaN."""

    frames: int = 3

    def length(self) -> int:
        return self.frames

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        above = (images - images.mean(0)).clamp(min=0)
        return above / 0 if images.shape[2] == 7 else above


@pytest.fixture(scope="module", params=list(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    return make_method(request.param)


def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = [scene(0, index, size=(48, 60)).image for index in range(3)]
    made += [rng.integers(0, 256, size, np.uint8) for size in ((48, 60), (1, 1), (1, 5), (3, 2), (20, 90))]
    made += [rng.integers(0, 256, (30, 40, 3), np.uint8), rng.integers(900, 1900, (31, 40)).astype(np.uint16)]
    return [*made, rng.normal(0, 1e6, (20, 30)).astype(np.float32)]


def test_every_method_takes_every_image(method):
    images = frames()
    found = MethodPredictor(method).probabilities(images)
    for image, one in zip(images, found, strict=True):
        assert one.shape == image.shape[:2]
        assert one.dtype == np.float32
        assert one.max() in (0, 1)
        assert one.min() >= 0
        (alone,) = MethodPredictor(method).probabilities([image])
        np.testing.assert_allclose(alone, one, atol=2 / 65535)
        np.testing.assert_array_equal(np.round(one * 65535) / np.float32(65535), one)


def test_a_constant_image_holds_nothing(method):
    images = [np.full(size, value, np.uint8) for size in ((40, 50), (1, 1)) for value in (0, 7, 255)]
    for one in MethodPredictor(method).probabilities(images):
        assert not one.any()


def test_gray_levels_are_those_of_a_network():
    image = np.full((20, 20), 1000, np.uint16)
    image[10, 10:12], image[11, 10:12] = 2000, 2000
    (found,) = MethodPredictor(TopHat(), scale="gray").probabilities([image])
    assert found[10, 10] == 1
    color = np.full((20, 20, 3), 50, np.uint8)
    color[10, 10] = 80, 90, 110
    (found,) = MethodPredictor(TopHat(), scale="gray").probabilities([color])
    assert found[10, 10] * 255 == pytest.approx(0.299 * 30 + 0.587 * 40 + 0.114 * 60, abs=0.01)


def test_scales():
    saliency = torch.tensor([[[0.0, 51.0, 204.0]], [[0.0, 0.0, 5e-7]], [[0.0, 1000.0, 510.0]]])
    np.testing.assert_allclose(scaled(saliency)[:, 0], [[0, 0.25, 1], [0, 0, 0], [0, 1, 0.51]], atol=1e-5)
    np.testing.assert_allclose(
        scaled(saliency, 255.0)[:, 0], [[0, 0.2, 0.8], [0, 0, 0], [0, 1, 1]], atol=1e-5
    )
    with pytest.raises(InputError, match="--map-scale gray"):
        MethodPredictor(make_method("mpcm"), scale="gray")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_named(value):
    image = np.zeros((9, 9), np.float32)
    image[4, 4] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        MethodPredictor(TopHat()).probabilities([image])


def test_a_result_that_is_no_number_never_becomes_a_map():
    with pytest.raises(InputError, match="no finite result"):
        MethodPredictor(Frames()).probabilities([np.zeros((8, 7), np.uint8)])


def test_frames_of_a_sequence_run_together():
    names = ["a/1", "a/2", "a/3", "a/4", "b/1", "b/2"]
    predictor = MethodPredictor(Frames(), groups=sequences(names, 3))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 9), np.uint8)
    streamed = list(
        predictor.stream(
            ((name, index), image) for index, (name, image) in enumerate(zip(names, images, strict=True))
        )
    )
    assert [item for item, _ in streamed] == [(name, index) for index, name in enumerate(names)]
    for group in (slice(0, 3), slice(3, 4), slice(4, 6)):
        expected = predictor.probabilities(list(images[group]))
        np.testing.assert_array_equal([found for _, found in streamed[group]], expected)
    assert not streamed[3][1].any()  # a sequence of one frame
    assert streamed[4][1].any()


@pytest.mark.parametrize(("frames", "unsolved"), [(1, "b"), (2, "bc")])
def test_an_image_without_a_result_is_skipped_with_its_name(frames, unsolved):
    images = [np.eye(8, 7 if name == "b" else 9, dtype=np.uint8) for name in "abcd"]
    groups = {"a": 0, "b": 1, "c": 1, "d": 2} if frames > 1 else {}
    predictor = MethodPredictor(Frames(frames), groups=groups)
    found = {
        name: one for (name,), one in predictor.stream(zip([(name,) for name in "abcd"], images, strict=True))
    }
    assert list(found) == list("abcd")
    for name, one in found.items():
        if name in unsolved:
            assert isinstance(one, Skipped)
            assert (one.file, "no finite result" in one.why) == (name, True)
        else:
            assert isinstance(one, np.ndarray)


def test_a_stream_of_single_images_keeps_its_order():
    images = [np.roll(frames()[0], index, axis=1)[:, : 40 + index % 2] for index in range(70)]
    found = list(MethodPredictor(TopHat()).stream(((str(i), i), image) for i, image in enumerate(images)))
    assert [item for item, _ in found] == [(str(i), i) for i in range(70)]
    for (_, one), expected in zip(found, MethodPredictor(TopHat()).probabilities(images), strict=True):
        np.testing.assert_array_equal(one, expected)


def test_thresholds():
    values = np.zeros(1000, np.float32)
    values[:4] = 1, 0.9, 0.5, 0.5
    probability = values.reshape(20, 50)
    mean, deviation = values.astype(float).mean(), values.astype(float).std()

    def threshold(rule: str, probability: np.ndarray = probability, **more: float) -> float:
        return threshold_of(probability, MethodOptions(threshold_rule=rule, **more), fixed=0.3)

    assert threshold("adaptive") == 0.7
    assert threshold("k-sigma", sigmas=4) == pytest.approx(mean + 4 * deviation, abs=1e-6)
    assert threshold("fixed") == 0.3
    for top, marked in ((1, 1), (2, 2), (3, 2), (4, 4), (1000, 4), (5000, 4)):
        limit = threshold("top-n", top=top)
        assert np.count_nonzero(probability > np.float32(limit)) == marked
    broad = np.linspace(0.9, 1, 100, dtype=np.float32).reshape(10, 10)
    assert threshold("adaptive", broad) == pytest.approx(broad.mean() + 0.5 * broad.std(), abs=1e-5)
    nothing = np.zeros((5, 5), np.float32)
    for rule in ("adaptive", "k-sigma", "top-n"):
        assert not (nothing > threshold(rule, nothing)).any()


def test_as_many_pixels_are_marked_as_asked_for():
    rng = np.random.default_rng(0)
    for _ in range(50):
        levels = rng.choice(65536, 400, replace=False).reshape(20, 20)
        probability = (levels / 65535).astype(np.float32)
        for top in (1, 5, 20):
            limit = threshold_of(probability, MethodOptions(threshold_rule="top-n", top=top))
            assert np.count_nonzero(probability > np.float32(limit)) == top


def test_parameters_as_texts():
    assert make_method("tophat", ["element=ring", "radius=2", "inner=1"]) == TopHat("ring", 2, 1)
    for texts, message in (
        (["size=3"], "element=disk, radius=5, inner=3"),
        (["radius"], "radius=5"),
        (["radius=x"], "radius=x"),
        (["radius=0"], "radius must be in 1..64"),
    ):
        with pytest.raises(InputError, match=message):
            make_method("tophat", texts)
    with pytest.raises(InputError, match="method 'hat': use one of tophat"):
        make_method("hat")
