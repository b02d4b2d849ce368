"""Operations that launch the Triton kernels, small enough for the emulator of their PTX.

A case is a call of a public operation, which chooses shapes and warps as it does on a GPU.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import triton

import mclc_gpu.kernels
from mclc_gpu.kernels.color import rgb_to_lab
from mclc_gpu.kernels.components import vote_components
from mclc_gpu.kernels.config import CONNECTIVITY, NOISES, ComponentConfig, CrfConfig, TrialConfig
from mclc_gpu.kernels.crf import crf_masks, dense_crf
from mclc_gpu.kernels.masks import window_maps
from mclc_gpu.kernels.noise import add_noise
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.kernels.slic import enforce_connectivity, kmeans, slic
from mclc_gpu.kernels.trials import run_trials

# A window of each class: the numbers of their pixels lie between two powers of two, from 32 to 4096.
SHAPES = ((5, 6), (8, 8), (9, 13), (15, 17), (22, 21), (32, 31), (44, 45), (64, 63))
Result = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A call with a backend, the name for reports, and the greatest difference between the backends."""

    name: str
    call: Callable[[str], Result]
    tolerance: float = 0.0

    def differences(self, expected: Result, result: Result) -> list[float]:
        """Return the greatest difference of each tensor that differs by more than the tolerance."""
        apart = []
        for a, b in zip(expected, result, strict=True):
            same = torch.equal(a, b) if not self.tolerance else torch.allclose(a, b, 0, self.tolerance)
            if not same:
                apart.append(float((a.double() - b.double()).abs().max()))
        return apart


def functions() -> dict[str, Any]:
    """Return all functions of the package that Triton compiles, by module and name."""
    found = {}
    for module in pkgutil.iter_modules(mclc_gpu.kernels.__path__):
        if module.name.endswith("_triton"):
            own = vars(importlib.import_module(f"mclc_gpu.kernels.{module.name}"))
            found |= {
                f"{module.name}.{name}": function
                for name, function in own.items()
                if isinstance(function, triton.JITFunction)
                if function.fn.__module__ == f"mclc_gpu.kernels.{module.name}"
            }
    return found


def kernels() -> dict[str, Any]:
    """Return all Triton kernels of the package by name, those that are launched: ``*_kernel``."""
    return {name: function for name, function in functions().items() if name.endswith("_kernel")}


def targets(
    shapes: tuple[tuple[int, int], ...], channels: int = 1, dtype: type = np.uint8
) -> tuple[PackedImages, Windows]:
    """Return images of spots on noise, and a window of each shape within its image."""
    images, rows = [], []
    for i, (height, width) in enumerate(shapes):
        rng = np.random.default_rng([i, height, width])
        y, x = np.mgrid[: height + 3, : width + 4]
        spot = 120 * np.exp(-((y - height / 2) ** 2 + (x - width / 2) ** 2) / 6)
        image = 60 + rng.normal(0, 4, y.shape) + spot
        if channels == 3:
            image = image[..., None] + rng.normal(0, 2, (*y.shape, 3))
        image = image.clip(0, 255).astype(np.uint8)
        images.append(image if dtype is np.uint8 else (image * 37.5 - 900).astype(dtype))
        rows.append((i, 1, 2, height, width, height // 2, width // 2, i % 5))
    return PackedImages.pack(images), Windows.pack(rows)


def _trials(
    shapes: tuple[tuple[int, int], ...], trials: int, masks: bool, marked: bool, look: dict[str, Any],
    settings: dict[str, Any], backend: str,
) -> Result:  # fmt: skip
    images, windows = targets(shapes, **look)
    keys = torch.arange(len(shapes)) * 7919 - 3
    marks = Marks.pack([(0, h * w - 1) for h, w in shapes]) if marked else None
    made = run_trials(
        images, windows, keys, TrialConfig(**settings), trials, marks=marks, keep_masks=masks, backend=backend
    )
    return (made.counts, made.masks) if made.masks is not None else (made.counts,)


def trial_case(
    *shapes: tuple[int, int], trials: int = 3, masks: bool = False, marked: bool = False,
    look: dict[str, Any] | None = None, **settings: Any,
) -> Case:  # fmt: skip
    words = [*(f"{h}x{w}" for h, w in shapes), *map(str, settings.values()), *(look or {})]
    call = partial(_trials, shapes, trials, masks, marked, look or {}, settings)
    return Case("trials-" + "-".join(words) + "-masks" * masks + "-marks" * marked, call)


def _components(
    shapes: tuple[tuple[int, int], ...], crowded: bool, look: dict[str, Any], settings: dict[str, Any],
    backend: str,
) -> Result:  # fmt: skip
    images, windows = targets(shapes, **look)
    categories = (torch.arange(len(shapes)) + 2) % 4 - 1
    others = Marks.pack([(0, h * w // 3, h * w - 1) for h, w in shapes]) if crowded else None
    votes = vote_components(
        images, windows, categories, ComponentConfig(**settings), others=others, backend=backend
    )
    values = (getattr(votes, field.name) for field in dataclasses.fields(votes))
    return tuple(value.nan_to_num() for value in values if isinstance(value, torch.Tensor))


def component_case(
    *shapes: tuple[int, int], crowded: bool = False, look: dict[str, Any] | None = None, **settings: Any
) -> Case:
    words = [*(f"{h}x{w}" for h, w in shapes), *map(str, settings.values()), *(look or {})]
    call = partial(_components, shapes, crowded, look or {}, settings)
    return Case("components-" + "-".join(words) + "-crowded" * crowded, call)


def _textures(channels: int, height: int, width: int) -> torch.Tensor:
    """Return two images of waves and noise, uint8 [2, channels, height, width]."""
    values = np.random.default_rng(width).normal(100, 20, (2, channels, height, width))
    values += 60 * np.sin(np.arange(width) / 5)
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


def _slic(channels: int, size: tuple[int, int], settings: dict[str, Any], backend: str) -> Result:
    return (slic(_textures(channels, *size), backend=backend, max_iterations=4, **settings),)


def _kmeans(channels: int, size: tuple[int, int], backend: str) -> Result:
    return (kmeans(_textures(channels, *size), 5, max_iterations=4, backend=backend),)


def _connectivity(backend: str) -> Result:
    rng = np.random.default_rng(3)
    # Narrow images are scanned across their border from the first step.
    images = [torch.from_numpy(rng.integers(0, 3, (3, 9, width)).astype(np.int32)) for width in (20, 2)]
    return tuple(enforce_connectivity(labels, 4, 30, backend=backend) for labels in images)


def _noise(kind: str, channels: int, shared: bool, backend: str) -> Result:
    windows = torch.from_numpy(np.random.default_rng(1).uniform(0, 255, (3, channels, 9, 61))).float()
    keys, index = torch.tensor([1, -5, 1 << 60]), torch.tensor([0, 3, 7])
    return (add_noise(windows, keys, index, 1, kind=kind, intensity=0.2, shared=shared, backend=backend),)


def _lab(backend: str) -> Result:
    return (rgb_to_lab(torch.from_numpy(np.random.default_rng(2).random((2, 3, 40, 31))).float(), backend),)


_CRF_SIZES = torch.tensor([[9, 10], [20, 13], [1, 5]])


def _crf(channels: int, dtype: torch.dtype, settings: dict[str, Any], backend: str) -> Result:
    rng, pixels = np.random.default_rng(channels), int(_CRF_SIZES.prod(1).sum())
    colors = torch.from_numpy(rng.uniform(0, 255, (pixels, channels))).to(dtype)
    potential = torch.from_numpy(rng.random(pixels)).float()
    return (dense_crf(potential, colors, _CRF_SIZES, CrfConfig(**settings), backend=backend),)


def _crf_masks(channels: int, dtype: type, counts: bool, backend: str) -> Result:
    images, windows = targets(SHAPES[1:4], channels, dtype)
    tpm = torch.arange(int(windows.offsets[-1]), dtype=torch.int32) * 7919 % 101
    return (crf_masks(tpm if counts else tpm / 100, images, windows, backend=backend),)


def _maps(counts: bool, several: bool, backend: str) -> Result:
    _, windows = targets(SHAPES)
    votes = torch.arange(len(windows)) % 2 + 1 if several else None
    number = int((windows.sizes * (1 if votes is None else votes)).sum())
    values = torch.arange(number, dtype=torch.int32) * 7919 % 101
    boxes = torch.tensor([[1, height - 1, 0, width - 2] for height, width in SHAPES]) if several else None
    given = {"divisors": torch.full((len(windows),), 100)} if counts else {}
    values = values if counts else values / 101
    return tuple(window_maps(values, windows, 0.5, votes=votes, boxes=boxes, backend=backend, **given))


COLOR, DEEP = {"channels": 3}, {"dtype": np.uint16}
FLOATS = {"channels": 3, "dtype": np.float32}
QUICK = (
    trial_case(*SHAPES),
    trial_case(SHAPES[1], masks=True, marked=True, connectivity="cluster", noise="gaussian"),
    trial_case(SHAPES[1], masks=True, marked=True, connectivity="component", method="kmeans", look=COLOR),
    component_case(*SHAPES),
    component_case(SHAPES[2], look=FLOATS, polarity="auto", levels=20),
    component_case(*SHAPES[2:6], crowded=True, polarity="auto", levels=20, opening=5),
    Case("slic-gray", partial(_slic, 1, (33, 40), {"n_segments": 12})),
    Case(
        "slic-color",
        partial(_slic, 3, (20, 37), {"n_segments": 12, "tolerance": 0.5, "start": "gradient"}),
    ),
    Case("slic-one-row", partial(_slic, 1, (1, 40), {"n_segments": 6})),
    Case("kmeans", partial(_kmeans, 1, (9, 11))),
    Case("connectivity", _connectivity),
    Case("noise-gaussian", partial(_noise, "gaussian", 3, False)),
    Case("noise-salt", partial(_noise, "salt", 1, False)),
    Case("lab", _lab),
    Case("crf-gray", partial(_crf, 1, torch.uint8, {}), 2e-6),
    Case("crf-color", partial(_crf, 3, torch.float32, {"iterations": 2, "normalization": "none"}), 2e-6),
    Case("crf-space", partial(_crf, 1, torch.float32, {"gaussian_compat": 0.0}), 2e-6),
    Case("crf-masks", partial(_crf_masks, 1, np.uint8, True)),
    Case("maps-counts", partial(_maps, True, False)),
    Case("maps-several", partial(_maps, False, True)),
)
# Several warps, trials and targets of a program, so that every barrier has something to keep apart.
BARRIERS = (
    Case("connectivity", _connectivity),
    trial_case(*[SHAPES[1]] * 3, trials=99),
    trial_case(*[SHAPES[5]] * 3, trials=66),
    trial_case(*[SHAPES[5]] * 2, trials=9, connectivity="cluster", method="kmeans", clusters=40),
    component_case(*[SHAPES[1]] * 5),
    component_case(*[SHAPES[5]] * 5),
    component_case(*[SHAPES[1]] * 9, polarity="auto", near=0),
    component_case(*[SHAPES[5]] * 5, crowded=True, polarity="auto", opening=5),
)
WIDE = (
    *(
        trial_case(*SHAPES, trials=2, masks=True, marked=True, connectivity=connectivity, noise=noise)
        for connectivity in CONNECTIVITY
        for noise in NOISES
    ),
    *(trial_case(*SHAPES, trials=19, look=look) for look in (COLOR, DEEP, FLOATS)),
    trial_case(*SHAPES, method="kmeans", clusters=30, tolerance=0.5, shared_noise=True, look=COLOR),
    *(component_case(*SHAPES, look=look, polarity="auto", levels=254) for look in (COLOR, DEEP, FLOATS)),
    component_case(*SHAPES, polarity="dark", near=0, max_area=30),
    *(Case(f"noise-{kind}-shared", partial(_noise, kind, 3, True)) for kind in NOISES),
    Case("slic-large", partial(_slic, 3, (150, 170), {"n_segments": 300})),
    Case("slic-one-segment", partial(_slic, 1, (40, 1), {"n_segments": 1})),
    Case("kmeans-color", partial(_kmeans, 3, (40, 41))),
    Case("crf-masks-color", partial(_crf_masks, 3, np.float32, False)),
    Case("maps-values", partial(_maps, True, True)),
)
