"""Vote of components refuses settings and windows that cannot be used."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from mclc_gpu.kernels.components import component_windows, vote_components
from mclc_gpu.kernels.config import ComponentConfig, ScoreWeights
from mclc_gpu.kernels.packed import PackedImages, Windows

IMAGES = PackedImages.pack([np.zeros((80, 90), np.uint8), np.zeros((5, 7), np.uint8)])
WINDOW = Windows.pack([(0, 2, 3, 5, 6, 4, 5, 0)])
UNKNOWN = torch.tensor([-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0}, r"radius must be a whole number in 1\.\.31, got 0"),
        ({"radius": 32}, "radius must be"),
        ({"near": -1}, "near must be"),
        ({"near": 2.5}, r"near must be a whole number in 0\.\.31, got 2\.5"),
        ({"levels": 0}, "levels must be"),
        ({"levels": 255}, r"levels must be a whole number in 1\.\.254"),
        ({"levels": float("nan")}, "levels must be"),
        ({"max_area": 0}, "max_area must be"),
        ({"max_area": 4097}, "max_area must be"),
        ({"polarity": "cold"}, "polarity must be one of"),
        ({"dark_margin": -1.0}, "dark_margin must be at least 0"),
        ({"dark_margin": float("nan")}, "dark_margin must be at least 0"),
        ({"category_weight": -0.1}, "category_weight must be at least 0"),
        ({"category_weight": float("inf")}, "category_weight must be at least 0"),
        ({"core": float("inf")}, "core must be a finite number"),
        ({"body": float("nan")}, "body must be a finite number"),
    ],
    ids=str,
)
def test_config_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComponentConfig(**settings)


@pytest.mark.parametrize("name", [field.name for field in fields(ScoreWeights)])
def test_weights_are_finite(name: str) -> None:
    with pytest.raises(ValueError, match=f"the weight {name} must be a finite number, got nan"):
        ScoreWeights(**{name: float("nan")})


@pytest.mark.parametrize(
    ("clicks", "radius", "message"),
    [
        (torch.tensor([0, 1, 1]), 31, "clicks must be int64"),
        (torch.tensor([[0, 1]]), 31, "clicks must be int64"),
        (torch.tensor([[0.0, 1.0, 1.0]]), 31, "clicks must be int64"),
        (torch.tensor([[2, 1, 1]]), 31, r"an image outside 0\.\.1"),
        (torch.tensor([[-1, 1, 1]]), 31, r"an image outside 0\.\.1"),
        (torch.tensor([[1, 4, 6], [1, 5, 6]]), 31, r"click 1 .* \[1, 5, 6\] must lie in its image of 5 x 7"),
        (torch.tensor([[0, 0, -1]]), 31, "click 0 .* must lie in its image"),
        (torch.tensor([[0, 1, 1]]), 40, "radius must be"),
    ],
)
def test_windows_refuse(clicks: torch.Tensor, radius: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        component_windows(IMAGES, clicks, radius)


def test_windows_are_clipped() -> None:
    clicks = torch.tensor([[0, 40, 50], [0, 0, 0], [0, 79, 88], [1, 2, 6]])
    assert component_windows(IMAGES, clicks).table.tolist() == [
        [0, 9, 19, 63, 63, 31, 31, 0],
        [0, 0, 0, 32, 32, 0, 0, 0],
        [0, 48, 57, 32, 33, 31, 31, 0],
        [1, 0, 0, 5, 7, 2, 6, 0],
    ]
    assert component_windows(IMAGES, clicks, 1)[2:3].table.tolist() == [[0, 78, 87, 2, 3, 1, 1, 0]]


@pytest.mark.parametrize(
    ("windows", "categories", "message"),
    [
        (WINDOW.replace(image=torch.tensor([2])), UNKNOWN, "a window names an image"),
        (WINDOW.replace(click_row=torch.tensor([5])), UNKNOWN, "window 0 .*click_row"),
        (WINDOW, torch.tensor([-1, 0]), r"categories must be int64 \[1\]"),
        (WINDOW, torch.tensor([0], dtype=torch.int32), r"categories must be int64 \[1\]"),
        (WINDOW, torch.tensor([3]), r"category 0 must be in -1\.\.2, got 3"),
        (WINDOW, torch.tensor([-2]), "category 0 must be in"),
    ],
)
def test_vote_refuses(windows: Windows, categories: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vote_components(IMAGES, windows, categories, ComponentConfig())


def test_backends_are_obeyed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        vote_components(IMAGES, WINDOW, UNKNOWN, ComponentConfig(), backend="numpy")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="needs CUDA tensors"):
        vote_components(IMAGES, WINDOW, UNKNOWN, ComponentConfig(), backend="triton")


@pytest.mark.parametrize("polarity", ["bright", "auto"])
def test_no_targets(polarity: str) -> None:
    config = ComponentConfig(polarity=polarity)
    windows = component_windows(IMAGES, torch.zeros((0, 3), dtype=torch.int64))
    votes = vote_components(IMAGES, windows, UNKNOWN[:0], config)
    assert len(windows) == 0
    assert votes.offsets.tolist() == [0]
    for values in (
        votes.tpm,
        votes.confidence,
        votes.area,
        votes.score,
        votes.dark,
        votes.flat,
    ):
        assert values.shape == (0,)
