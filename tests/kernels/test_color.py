"""sRGB to CIELAB against scikit-image in double precision, and bit for bit between the backends."""

import numpy as np
import pytest
import torch
from aot_table import variants
from devices import BACKENDS, device_of
from skimage.color import rgb2lab

from mclc_gpu.kernels import color_triton
from mclc_gpu.kernels.color import rgb_to_lab
from mclc_gpu.kernels.color_cpu import cube_root, linear_light


def colors(shape: tuple[int, ...]) -> torch.Tensor:
    """Random colors with the corners of the cube and the neighborhood of both curves' kinks among them."""
    rng = np.random.default_rng(sum(shape))
    values = rng.random(shape, np.float32)
    values[rng.random(shape) < 0.1] = rng.choice(np.array([0, 1, 0.04045, 0.0404501, 0.0961], np.float32))
    return torch.from_numpy(values)


def lab_of(image: torch.Tensor, backend: str) -> torch.Tensor:
    return rgb_to_lab(image.to(device_of(backend)), backend).cpu()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_scikit_image(backend: str) -> None:
    image = colors((2, 3, 90, 111))
    ours = lab_of(image, backend).double().permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - rgb2lab(image.double().permute(0, 2, 3, 1).numpy())).max() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_gray_level(backend: str) -> None:
    gray = (torch.arange(256) / 255).reshape(1, 1, 16, 16).expand(-1, 3, -1, -1)
    lightness, a, b = lab_of(gray, backend)[0]
    assert float(torch.stack([a, b]).abs().max()) < 0.01
    assert bool((lightness.flatten().diff() > 0).all())
    assert float(lightness[0, 0]) == pytest.approx(0, abs=1e-3)
    assert float(lightness[-1, -1]) == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 3, 5, 7), (1, 3, 31, 17), (2, 3, 64, 8)], ids=str)
def test_backends_give_the_same_bits(shape: tuple[int, ...]) -> None:
    image = colors(shape)
    ours = [lab_of(image, backend).view(torch.int32) for backend in BACKENDS]
    assert torch.equal(*ours)


VARIANTS = """
import torch
from mclc_gpu.kernels.color import rgb_to_lab
for shape in ((1, 3, 1, 1), (70000, 3, 1, 1), (2, 3, 33, 48)):
    rgb_to_lab(torch.zeros(shape), "triton")
"""


def test_one_variant_serves_all_sizes() -> None:
    assert variants(VARIANTS) == {"lab": 1}


def test_more_images_than_a_second_dimension_of_programs_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]):
            grids.append(grid)
            return lambda *arguments, **options: None

    monkeypatch.setattr(color_triton, "lab_kernel", Recorded())
    image = torch.zeros(70_000, 3, 1, 1)
    color_triton.launch(image, image)
    assert grids == [(70_000,)]


def test_roots_are_accurate() -> None:
    x = np.geomspace(0.008856, 1.1, 5001).astype(np.float32)
    ours = np.array([cube_root(v) for v in x])
    np.testing.assert_allclose(ours, np.cbrt(x.astype(np.float64)), rtol=1e-6)
    v = np.linspace(0.0405, 1, 5001).astype(np.float32)
    ours = np.array([linear_light(value) for value in v])
    np.testing.assert_allclose(ours, ((v.astype(np.float64) + 0.055) / 1.055) ** 2.4, rtol=1e-6)


def test_reads_strided_images_and_keeps_them() -> None:
    image = colors((1, 3, 8, 9))
    turned, before = image.transpose(2, 3), image.clone()
    assert torch.equal(rgb_to_lab(turned), rgb_to_lab(turned.contiguous()))
    assert torch.equal(image, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    assert lab_of(torch.zeros(0, 3, 4, 5), backend).shape == (0, 3, 4, 5)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 4, 5), torch.zeros(1, 1, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.float64)],
    ids=["three axes", "one channel", "double"],
)
def test_refuses_other_images(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="image must be float32"):
        rgb_to_lab(image)


def test_refuses_unknown_backends() -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        rgb_to_lab(torch.zeros(1, 3, 2, 2), "numpy")
