"""Monte Carlo trials refuse settings, images and windows that cannot be used."""

import numpy as np
import pytest
import torch

from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.packed import WINDOW_COLUMNS, PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "SLIC"}, "method must be one of"),
        ({"connectivity": "none"}, "connectivity must be one of"),
        ({"noise": "speckle"}, "noise 'speckle': use one of none, salt"),
        ({"intensity": 1.5}, "intensity must be in"),
        ({"clusters": 0}, "clusters must be in"),
        ({"clusters": 4097}, "clusters must be in"),
        ({"compactness": 0.0}, "compactness must be positive"),
        ({"compactness": float("nan")}, "compactness must be positive"),
        ({"compactness": float("inf")}, "compactness must be positive"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"tolerance": float("inf")}, "tolerance must be at least 0"),
        ({"min_size_factor": -0.5}, "min_size_factor must be at least 0"),
        ({"max_size_factor": float("nan")}, "max_size_factor must be at least 0"),
    ],
    ids=str,
)
def test_config_refuses(settings: dict, message: str) -> None:
    with pytest.raises(match=message):
        TrialConfig(**settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ([np.zeros((4, 4, 4), np.uint8)], r"must be \[H, W\] or \[H, W, 3\]"),
        ([np.zeros(4, np.uint8)], r"must be \[H, W\] or \[H, W, 3\]"),
        ([np.zeros((0, 4), np.uint8)], "not empty"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint16)], "all uint8 or all of another"),
        ([np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.uint8)], "all uint8 or all of another"),
        ([np.zeros((4, 4), bool)], "all uint8 or all of another"),
        ([np.zeros((4, 4), np.complex64)], "all uint8 or all of another"),
        ([np.array([[1.0, np.nan]])], "NaN or infinite"),
        ([np.array([[1.0, 1e300]])], "NaN or infinite"),
    ],
)
def test_pack_refuses(images: list[np.ndarray], message: str) -> None:
    with pytest.raises(match=message):
        PackedImages.pack(images)


def test_pack_is_planar() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, shape).astype(np.uint8) for shape in [(3, 4), (5, 2, 3)]]
    packed = PackedImages.pack(images)
    assert packed.table.tolist() == [[0, 3, 4, 1, 4, 0], [12, 5, 2, 3, 2, 10]]
    assert packed.data.dtype == torch.uint8
    assert (packed.data[12:].reshape(3, 5, 2).permute(1, 2, 0).numpy() == images[1]).all()
    assert PackedImages.pack([images[0].astype(np.uint16)]).data.dtype == torch.float32


GOOD = Windows.pack([(0, 2, 3, 5, 6, 4, 5, 0)])


def changed(column: str, value: int) -> Windows:
    return GOOD.replace(**{column: torch.tensor([value])})


@pytest.mark.parametrize("table", [GOOD.table[0], GOOD.table[:, :7], GOOD.table.int()], ids=str)
def test_windows_refuse_other_tables(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be int64 \[windows, 8\] on the CPU with columns image, top"):
        Windows(table)


def test_windows_have_named_columns() -> None:
    windows = Windows.pack([(0, 2, 3, 5, 6, 4, 5, 0), (1, 0, 9, 2, 3, 1, 0, 7)])
    assert len(windows) == 2
    assert windows.table.tolist() == torch.stack([getattr(windows, n) for n in WINDOW_COLUMNS], 1).tolist()
    assert windows.shapes.tolist() == [[5, 6], [2, 3]]
    assert windows.sizes.tolist() == [30, 6]
    assert windows.offsets.tolist() == [0, 30, 36]
    assert windows[torch.tensor([1, 1, 0])].target.tolist() == [7, 7, 0]
    assert windows[1:].image.tolist() == [1]
    moved = windows.replace(top=torch.tensor([8, 9]))
    assert (moved.top.tolist(), windows.top.tolist()) == ([8, 9], [2, 0])
    assert len(Windows.pack([])) == 0


@pytest.mark.parametrize(
    ("windows", "keys", "options", "message"),
    [
        (GOOD, torch.tensor([0, 0]), {}, r"keys must be int64 \[1\]"),
        (GOOD, torch.tensor([0], dtype=torch.int32), {}, r"keys must be int64 \[1\]"),
        (changed("image", 1), torch.tensor([0]), {}, "an image outside 0..0"),
        (changed("image", -1), torch.tensor([0]), {}, "an image outside 0..0"),
        (GOOD, torch.tensor([0]), {"trials": 0}, "trials must be at least 1"),
        (GOOD, torch.tensor([0]), {"first_trial": -1}, "first_trial at least 0"),
        (GOOD, torch.tensor([0]), {"first_trial": 2**31 - 1, "trials": 2}, "at most 2"),
        (GOOD, torch.tensor([0]), {"backend": "numpy"}, "backend must be one of"),
    ],
)
def test_run_trials_refuses(windows: Windows, keys: torch.Tensor, options: dict, message: str) -> None:
    images = PackedImages.pack([np.zeros((80, 80), np.uint8)])
    with pytest.raises(ValueError, match=message):
        run_trials(images, windows, keys, TrialConfig(), **{"trials": 1, **options})


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("top", (-1, 76)),
        ("left", (-1, 75)),
        ("height", (0, 65)),
        ("width", (0, 65)),
        ("click_row", (-1, 5)),
        ("click_column", (-1, 6)),
        ("target", (-1, 2**31)),
    ],
)
def test_run_trials_refuses_windows(column: str, values: tuple[int, int]) -> None:
    images = PackedImages.pack([np.zeros((80, 80), np.uint8)])
    for value in values:
        with pytest.raises(ValueError, match=f"window 0 .*{column}.* lie inside its image"):
            run_trials(images, changed(column, value), torch.tensor([0]), TrialConfig(), 1)


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    images = PackedImages.pack([np.zeros((80, 80), np.uint8)])
    with pytest.raises(RuntimeError, match="needs CUDA tensors"):
        run_trials(images, GOOD, torch.tensor([0]), TrialConfig(), 1, backend="triton")


def test_no_windows() -> None:
    empty = run_trials(
        PackedImages.pack([np.zeros((4, 4), np.uint8)]),
        GOOD[:0],
        torch.zeros(0, dtype=torch.int64),
        TrialConfig(),
        5,
        keep_masks=True,
    )
    assert empty.counts.shape == (0,)
    assert empty.masks is not None
    assert empty.masks.shape == (5, 0)
    assert empty.offsets.tolist() == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_packed_windows_are_those_of_the_images(dtype: type) -> None:
    rng = np.random.default_rng(1)
    shapes = (30, 40), (20, 25, 3), (9, 8), (50, 60)
    images = [rng.integers(0, 255, shape).astype(dtype) for shape in shapes]
    places = [(0, 3, 4, 10, 12), (1, 0, 5, 20, 20), (2, 0, 0, 9, 8), (2, 1, 1, 6, 6), (0, 20, 30, 10, 10)]
    windows = Windows.pack([(*place, 1, 2, t) for t, place in enumerate(places)])
    packed, moved = PackedImages.pack_windows(images, windows)
    assert torch.equal(moved.table[:, 1:], windows.table[:, 1:])
    moved.check(packed)
    # Three windows alone, and the third image whole because its two windows have more pixels.
    assert packed.data.numel() == 10 * 12 + 20 * 20 * 3 + 10 * 10 + 9 * 8
    whole = PackedImages.pack(images)
    for source, chosen in ((whole, windows), (packed, moved)):
        read = []
        for image, top, left, height, width, *_ in chosen.table.tolist():
            offset, _, _, channels, pitch, plane = source.table[image].tolist()
            channel, row, column = np.ogrid[:channels, top : top + height, left : left + width]
            read.append(source.data.numpy()[offset + channel * plane + row * pitch + column])
        for (image, top, left, height, width), pixels in zip(places, read, strict=True):
            expected = images[image][top : top + height, left : left + width]
            assert np.array_equal(np.squeeze(pixels.transpose(1, 2, 0)), expected.astype(pixels.dtype))
    assert torch.equal(packed.scales[moved.image], whole.scales[windows.image])
