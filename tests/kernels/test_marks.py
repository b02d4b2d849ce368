"""Targets marked by several pixels: each mark counts its segment, on both backends."""

import numpy as np
import pytest
import torch
from devices import device_of, on_cpu

from mclc_gpu.kernels.config import TrialConfig
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials, run_until_stable

SHAPES = [(8, 9), (12, 7), (1, 14), (10, 10)]
MARKS = [[3, 70, 3], [], [13, 0], [99, 55, 44, 0, 12]]
KEYS = torch.tensor([11, 12, 13, 14])


def packed(device: torch.device | str = "cpu") -> tuple[PackedImages, Windows]:
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]
    rows = [(i, 0, 0, *shape, shape[0] // 2, shape[1] // 2, i) for i, shape in enumerate(SHAPES)]
    return PackedImages.pack(images, device), Windows.pack(rows)


@pytest.mark.parametrize(
    ("backend", "connectivity"),
    [
        *(("cpu", connectivity) for connectivity in ("enforce", "component", "cluster")),
        ("triton", "enforce"),
        pytest.param("triton", "component", marks=pytest.mark.slow),
        pytest.param("triton", "cluster", marks=pytest.mark.slow),
    ],
)
def test_every_mark_counts_its_segment(backend: str, connectivity: str) -> None:
    trials, iterations = (20, 10) if backend == "cpu" else (1, 2)  # the interpreter is slow
    images, windows = packed()
    there, _ = packed(device_of(backend))
    config = TrialConfig(connectivity=connectivity, max_iterations=iterations)
    marks = Marks.pack(MARKS)
    result = on_cpu(
        run_trials(there, windows, KEYS, config, trials, marks=marks, keep_masks=True, backend=backend)
    )
    assert result.masks is not None
    total = run_trials(images, windows, KEYS, config, trials, keep_masks=True, backend="cpu").masks
    assert total is not None
    offsets = result.offsets.tolist()
    for place in range(max(map(len, MARKS))):
        row, column = windows.click_row.clone(), windows.click_column.clone()
        for t, own in enumerate(MARKS):
            if place < len(own):
                width = SHAPES[t][1]
                row[t], column[t] = own[place] // width, own[place] % width
        clicked = windows.replace(click_row=row, click_column=column)  # the clusters stay as they are
        one = run_trials(images, clicked, KEYS, config, trials, keep_masks=True, backend="cpu").masks
        assert one is not None
        for t, own in enumerate(MARKS):
            if place < len(own):
                total[:, offsets[t] : offsets[t + 1]] += one[:, offsets[t] : offsets[t + 1]]
    assert torch.equal(result.masks, total)
    assert torch.equal(result.masks.sum(0, dtype=torch.int32), result.counts)


def test_targets_without_marks_stay_as_they_were() -> None:
    images, windows = packed()
    marked = run_trials(images, windows, KEYS, TrialConfig(), 20, marks=Marks.pack(MARKS))
    without = run_trials(images, windows, KEYS, TrialConfig(), 20)
    inside = slice(int(without.offsets[1]), int(without.offsets[2]))
    assert torch.equal(marked.counts[inside], without.counts[inside])
    assert bool((marked.counts >= without.counts).all())
    assert not torch.equal(marked.counts, without.counts)


def test_stop_rule_keeps_the_marks_of_the_targets_still_running() -> None:
    images, windows = packed()
    marks = Marks.pack(MARKS)
    counts, offsets, trials = run_until_stable(
        images, windows, KEYS, TrialConfig(), 60, 0.02, marks=marks, backend="cpu"
    )
    assert len(trials.unique()) > 1
    for t, number in enumerate(trials.tolist()):
        one = slice(t, t + 1)
        own = marks[torch.tensor([t])]
        alone = run_trials(images, windows[one], KEYS[one], TrialConfig(), number, marks=own)
        assert torch.equal(alone.counts, counts[offsets[t] : offsets[t + 1]])


def test_chosen_marks() -> None:
    chosen = Marks.pack(MARKS)[torch.tensor([3, 1, 0])]
    assert chosen.offsets.tolist() == [0, 5, 5, 8]
    assert chosen.pixels.tolist() == [99, 55, 44, 0, 12, 3, 70, 3]
    assert Marks.pack([]).offsets.tolist() == [0]


@pytest.mark.parametrize(
    "marks",
    [[[0], [0]], [[72], [], [], []], [[], [], [], [-1]], [[1] * 255, [], [], []]],
    ids=lambda m: str(m)[:20],
)
def test_bad_marks_are_refused(marks: list[list[int]]) -> None:
    images, windows = packed()
    with pytest.raises(ValueError, match="mark"):
        run_trials(images, windows, KEYS, TrialConfig(), 2, marks=Marks.pack(marks))
