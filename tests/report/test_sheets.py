"""The contact sheet: what it draws where."""

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.report.sheets import Legend, Row, draw_sheet, outline_sheet, target_row

MASK, TRUTH, CLICK = (255, 176, 0), (64, 190, 255), (255, 45, 85)
TEXT = "PIL.ImageDraw.ImageDraw.text"


def contact_sheet(rows: list[Row], columns: int = 2, title: str = "", truth: bool = True) -> Image.Image:
    return draw_sheet(rows, Legend(truth=truth), title, columns=columns)


def target(shape: tuple[int, int] = (10, 10), **changes: object) -> dict:
    mask = np.zeros(shape, dtype=bool)
    mask[shape[0] // 3 : 2 * shape[0] // 3 + 1, shape[1] // 3 : 2 * shape[1] // 3 + 1] = True
    given: dict = {
        "name": "scene",
        "image": np.where(mask, 200, 50).astype(np.uint8),
        "tpm": mask.astype(np.float32),
        "mask": mask,
        "click": (shape[1] // 2, shape[0] // 2),
        "truth": mask,
        "category": "spot",
    }
    return given | changes


def make_tile(shape: tuple[int, int] = (10, 10), **changes: object) -> Row:
    return target_row(**target(shape, **changes))


def below_legend(sheet: Image.Image) -> np.ndarray:
    return np.asarray(sheet)[60:]


def places(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of the pixels of exactly this color."""
    return np.argwhere((pixels == color).all(axis=2))


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (7, 5), (22, 21), (64, 64), (65, 13), (200, 300)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_windows_of_any_size_and_type(shape: tuple[int, int], dtype: type) -> None:
    image = target(shape)["image"].astype(dtype)
    one = contact_sheet([make_tile(shape, image=image)])
    reference = contact_sheet([make_tile((10, 10))])
    assert (one.mode, one.size) == ("RGB", reference.size)
    assert len(places(below_legend(one), MASK)) > 0


def test_brightness_is_stretched_whatever_the_range() -> None:
    image = target()["image"]
    eight = contact_sheet([make_tile()])
    sixteen = contact_sheet([make_tile(image=(image * 20.0 + 3000).astype(np.uint16))])
    color = contact_sheet([make_tile(image=np.stack([image] * 3, axis=2))])
    assert eight.tobytes() == sixteen.tobytes() == color.tobytes()


def test_a_flat_window_is_gray() -> None:
    sheet = contact_sheet([make_tile(image=np.full((10, 10), 7, np.uint8))])
    assert len(places(below_legend(sheet), (128, 128, 128))) > 5000


def test_outlines_lie_on_the_mask_and_around_the_truth() -> None:
    pixels = below_legend(contact_sheet([make_tile()]))
    mask, truth = places(pixels, MASK), places(pixels, TRUTH)
    assert (truth.min(axis=0) < mask.min(axis=0)).all()
    assert (truth.max(axis=0) > mask.max(axis=0)).all()
    # The target is 4 of 10 px wide in a panel of 150 px.
    np.testing.assert_array_equal(np.ptp(mask, axis=0) + 1, [60, 60])


def test_a_mask_at_the_windows_border_is_closed_there() -> None:
    corner = np.zeros((10, 10), dtype=bool)
    corner[:3, :3] = True
    mask = places(below_legend(contact_sheet([make_tile(mask=corner, truth=None)])), MASK)
    np.testing.assert_array_equal(np.ptp(mask, axis=0) + 1, [45, 45])
    assert np.count_nonzero(mask[:, 0] == mask[:, 0].min()) == 45


def test_without_truth_no_word_of_it() -> None:
    bare = np.asarray(contact_sheet([make_tile(truth=None)], truth=False))
    assert len(places(bare, TRUTH)) == 0
    assert len(places(np.asarray(contact_sheet([make_tile()])), TRUTH)) > 0


@pytest.mark.parametrize("click", [(2, 7), (5.0, 5.0), (8.5, 1.25), (0, 0)])
def test_the_cross_is_at_the_click(click: tuple[float, float]) -> None:
    sheet = contact_sheet([make_tile(click=click)])
    found = places(below_legend(sheet), CLICK)
    middle = contact_sheet([make_tile(click=(4.5, 4.5))])
    reference = places(below_legend(middle), CLICK)
    moved = (found.min(axis=0) + found.max(axis=0) - reference.min(axis=0) - reference.max(axis=0)) / 2
    np.testing.assert_allclose(moved[::-1], (np.array(click) - 4.5) * 15, atol=1)


def test_the_tpm_goes_from_dark_to_bright() -> None:
    levels = [np.full((10, 10), value, np.float32) for value in (0, 0.25, 0.5, 0.75, 1)]
    means = [
        below_legend(contact_sheet([make_tile(tpm=level)]))[100, 190:310].mean(dtype=float)
        for level in levels
    ]
    assert means == sorted(means)
    assert means[0] < 20
    assert means[-1] > 200


def test_the_caption_tells_area_category_and_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(TEXT, lambda self, at, words, *rest, **options: written.append(words))
    half = target()["mask"].copy()
    half[:, 5:] = False
    empty = np.zeros((10, 10), dtype=bool)
    tiles = [
        make_tile(mask=half),
        make_tile(truth=None, category=None, name="x" * 200),
        make_tile(mask=empty, category="point"),
    ]
    contact_sheet([*tiles, target_row("none", half * 1, half * 1.0, empty, (1, 1), empty)], title="the run")
    expected = [
        "the run",
        "scene",
        "spot,  8 px,  IoU 0.50",
        "16 px",
        "point,  0 px,  IoU 0.00",
        "0 px,  IoU n/a",
    ]
    for words in expected:
        assert words in written
    (long_name,) = (words for words in written if words.startswith("xxx"))
    assert long_name.endswith("x...")
    assert len(long_name) < 100


def test_size_grows_by_rows_and_columns() -> None:
    def size(count: int, columns: int) -> tuple[int, int]:
        return contact_sheet([make_tile()] * count, columns).size

    assert size(1, 2) == size(2, 2)
    assert size(3, 2)[1] > size(2, 2)[1]
    assert size(4, 4)[0] > size(4, 2)[0]
    assert contact_sheet([make_tile()], title="a").height > size(1, 2)[1]


def test_no_targets_still_give_a_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(TEXT, lambda self, at, words, *rest, **options: written.append(words))
    assert contact_sheet([]).size == contact_sheet([make_tile()]).size
    assert "no targets" in written


def test_arrays_are_not_changed() -> None:
    given = target()
    before = {name: np.copy(array) for name, array in given.items() if isinstance(array, np.ndarray)}
    contact_sheet([target_row(**given)])
    for name, old in before.items():
        np.testing.assert_array_equal(given[name], old)


def test_outlines_side_by_side() -> None:
    sheet = outline_sheet()
    assert sheet.size == (4 * 150 + 3 * 6 + 2 * 18, draw_sheet([], Legend()).size[1])
    columns = places(below_legend(sheet), MASK)[:, 1]
    counts = [int(((columns >= left) & (columns < left + 150)).sum()) for left in (18, 174, 330, 486)]
    assert counts[0] == 0 < counts[1] < counts[3]
