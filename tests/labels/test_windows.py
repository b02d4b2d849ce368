"""Windows: the published extents, clipping at borders, and draws that depend on nothing but their key."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mclc_gpu.data.annotations import CATEGORIES, Point
from mclc_gpu.errors import InputError
from mclc_gpu.labels.windows import (
    HALF_EXTENTS,
    Annotated,
    Window,
    centered_window,
    centered_windows,
    draw_window,
    name_key,
    published_window,
    published_windows,
    random_words,
)

FAR = 500  # a click this far inside a 1001 x 1001 image has its whole window inside


def _extents(window: Window) -> tuple[int, int, int, int]:
    return (
        window.click_row,
        window.height - window.click_row,
        window.click_column,
        window.width - window.click_column,
    )


@pytest.mark.parametrize(
    ("category", "sides"),
    [
        ("point", ({3, 4, 5}, {3, 4, 5}, {3, 4, 5}, {3})),
        ("spot", ({10, 11},) * 4),
        ("extended", (set(range(15, 26)),) * 4),
    ],
)
def test_every_published_extent_is_drawn_and_no_other(category: str, sides: tuple[set[int], ...]) -> None:
    drawn = [_extents(draw_window(1001, 1001, FAR, FAR, category, seed, "a", 0)) for seed in range(400)]
    assert tuple(set(side) for side in zip(*drawn, strict=True)) == sides


def test_extents_are_uniform_and_independent() -> None:
    drawn = [_extents(draw_window(1001, 1001, FAR, FAR, "spot", 0, "a", target)) for target in range(3200)]
    counts = [drawn.count(cell) for cell in set(drawn)]
    # 16 equally likely cells of 200; five standard deviations of a count are 68.
    assert len(counts) == 16
    assert max(abs(count - 200) for count in counts) < 68


def test_window_is_where_the_click_says() -> None:
    window = draw_window(
        1001, 1001, x=300, y=700, category="extended", seed=3, image_name="a", target_index=1
    )
    assert (window.top + window.click_row, window.left + window.click_column) == (700, 300)
    assert (window.bottom - window.top, window.right - window.left) == (window.height, window.width)


@pytest.mark.parametrize(("x", "column"), [(99.5, 100), (100.49, 100), (100.5, 101), (101.5, 102)])
def test_clicks_round_half_up(x: float, column: int) -> None:
    window = draw_window(1001, 1001, x, x, "spot", 0, "a", 0)
    assert window.left + window.click_column == column
    assert window.top + window.click_row == column


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    x=st.floats(-100, 100),
    y=st.floats(-100, 100),
    category=st.sampled_from(sorted(HALF_EXTENTS)),
    seed=st.integers(-(2**70), 2**70),
    target=st.integers(0, 2**40),
)
def test_window_lies_in_the_image_and_contains_the_click(
    height: int, width: int, x: float, y: float, category: str, seed: int, target: int
) -> None:
    window = draw_window(height, width, x, y, category, seed, "a", target)
    assert 0 <= window.top < window.bottom <= height
    assert 0 <= window.left < window.right <= width
    assert 0 <= window.click_row < window.height
    assert 0 <= window.click_column < window.width
    assert window.top + window.click_row == min(max(math.floor(y + 0.5), 0), height - 1)
    assert window.left + window.click_column == min(max(math.floor(x + 0.5), 0), width - 1)


@pytest.mark.parametrize("row", [0, 99])
@pytest.mark.parametrize("column", [0, 199])
def test_corner_window_keeps_the_sides_that_are_inside(row: int, column: int) -> None:
    whole = draw_window(1001, 1001, FAR, FAR, "point", 5, "a", 2)
    up, down, left, right = _extents(whole)
    corner = draw_window(100, 200, column, row, "point", 5, "a", 2)
    assert _extents(corner) == (
        min(up, row),
        min(down, 100 - row),
        min(left, column),
        min(right, 200 - column),
    )


def test_draws_do_not_depend_on_order() -> None:
    keys = [(seed, name, target) for seed in range(3) for name in ("a", "b") for target in range(3)]

    def draw(key: tuple[int, str, int]) -> Window:
        return draw_window(1001, 1001, FAR, FAR, "extended", *key)

    forward = {key: draw(key) for key in keys}
    backward = {key: draw(key) for key in reversed(keys)}
    assert forward == backward
    assert len(set(forward.values())) == len(keys)


def test_name_key_separates_seeds_and_names() -> None:
    keys = {
        name_key(seed, name)
        for seed in (-1, 0, 1, 11, 2**64)
        for name in ("", "1", "a", "1/a", "ä", "\udcff")
    }
    assert len(keys) == 30
    assert all(0 <= key < 2**64 for key in keys)


def test_golden_values() -> None:
    # A change here changes every label that was ever made with a given seed.
    assert name_key(0, "Misc_1") == 7967720223167754391
    assert draw_window(256, 256, 100.5, 50.2, "extended", 0, "Misc_1", 0) == Window(26, 85, 39, 38, 24, 16)
    assert draw_window(256, 200, 199, 3, "spot", 7, "Misc_2", 3) == Window(0, 189, 13, 11, 3, 10)


@pytest.mark.parametrize(
    ("height", "width", "x", "category", "word"),
    [
        (100, 100, 5.0, "blob", "'blob'"),
        (100, 100, 5.0, "", "unknown category"),
        (100, 100, math.nan, "spot", "nan"),
        (100, 100, math.inf, "spot", "inf"),
        (0, 100, 5.0, "spot", "0 x 100"),
    ],
)
def test_bad_input_is_named(height: int, width: int, x: float, category: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        draw_window(height, width, x, 5.0, category, 0, "Misc_1", 0)
    assert "Misc_1: target 0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_windows_at_once_are_those_of_each_target() -> None:
    rng = np.random.default_rng(5)
    points, shapes = [], []
    for n in range(600):
        height, width = rng.integers(1, 90, 2).tolist()
        x, y = rng.uniform(-0.5, width - 0.5), rng.uniform(-0.5, height - 0.5)
        category = CATEGORIES[int(rng.integers(3))]
        seeds = ((x / 2, y / 2), (x / 3, y)) if n % 7 == 0 else ()
        box = (x / 2, y / 2, x, y) if n % 11 == 0 else None
        points.append(Point(round(x) if n % 2 else x, y, category, seeds, box))
        shapes.append((height, width))
    keys = rng.integers(0, 2**64, len(points), np.uint64)
    numbers = rng.integers(0, 2**31, len(points))
    targets = Annotated(points, np.array(shapes), keys, numbers)
    rows = list(zip(shapes, points, keys.tolist(), numbers.tolist(), strict=True))
    assert published_windows(targets).tolist() == [list(published_window(*row).row) for row in rows]
    centered = [list(centered_window(shape, point, 9).row) for shape, point, _, _ in rows]
    assert centered_windows(targets, 9).tolist() == centered


def test_random_words_are_those_of_numpy() -> None:
    keys = np.array([0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
    numbers = np.array([0, 5, 2**31 - 1, 1, 77])
    expected = [
        np.random.Philox(key=key | number << 64).random_raw(4).tolist()
        for key, number in zip(keys.tolist(), numbers.tolist(), strict=True)
    ]
    assert random_words(keys, numbers).tolist() == expected


def test_many_windows_name_what_is_wrong_with_one() -> None:
    points = [Point(4, 4, "spot"), Point(float("nan"), 4, "spot")]
    targets = Annotated(points, np.full((2, 2), 9), np.zeros(2, np.uint64), np.zeros(2, np.int64))
    with pytest.raises(InputError, match="not a position"):
        published_windows(targets)
