"""Pixels that a page gets: real values, in tiles of several levels."""

from pathlib import Path

import numpy as np
import pytest
from annotating import client_of, edit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mclc_gpu.annotate.frames import TILE, Frame, Recent, pooled
from mclc_gpu.data.annotations import Point
from mclc_gpu.labels.pipeline import label_images


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 5))
def test_pooling_takes_all_pixels_of_a_block(pixels: np.ndarray, block: int) -> None:
    rows, columns = -(-pixels.shape[0] // block), -(-pixels.shape[1] // block)
    for pool in ("max", "min"):
        expected = [
            [
                getattr(pixels[r * block : (r + 1) * block, c * block : (c + 1) * block], pool)()
                for c in range(columns)
            ]
            for r in range(rows)
        ]
        assert np.array_equal(pooled(pixels, block, pool), expected)
    assert pooled(pixels, 1, "mean").tolist() == pixels.tolist()


def test_means_are_those_of_blocks() -> None:
    color = np.arange(4 * 4 * 3, dtype=np.float32).reshape(4, 4, 3)
    assert pooled(color, 2, "mean").tolist() == color.reshape(2, 2, 2, 2, 3).mean((1, 3)).tolist()
    assert pooled(np.array([[1, 2]], np.uint8), 2, "mean").tolist() == [[2]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiles_hold_the_values_of_the_file(open_session, tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (TILE + 40, 2 * TILE + 1)).astype(dtype)
    np.save(folder / "a.npy", pixels)
    client = client_of(open_session(images=folder))
    about = client.get("/api/images/0").json()
    assert (about["dtype"], about["levels"], about["width"]) == (dtype, 3, 2 * TILE + 1)
    assert (about["min"], about["max"]) == (pixels.min(), pixels.max())
    whole = np.zeros_like(pixels)
    for row in range(2):
        for column in range(3):
            answer = client.get(f"/api/images/0/tiles/0/{row}/{column}")
            shape = int(answer.headers["x-height"]), int(answer.headers["x-width"])
            tile = np.frombuffer(answer.content, np.dtype(dtype).newbyteorder("<")).reshape(shape)
            whole[row * TILE : row * TILE + shape[0], column * TILE : column * TILE + shape[1]] = tile
    assert np.array_equal(whole, pixels)
    answer = client.get("/api/images/0/tiles/2/0/0?pool=min")
    least = np.frombuffer(answer.content, np.dtype(dtype).newbyteorder("<"))
    assert np.array_equal(least, pooled(pixels, 4, "min").ravel())
    headers = {"If-None-Match": answer.headers["etag"]}
    assert client.get("/api/images/0/tiles/2/0/0?pool=min", headers=headers).status_code == 304


def test_a_dim_target_of_a_14_bit_frame_is_labeled(open_session, tmp_path: Path) -> None:
    """A target 8 levels above a background that spans 14 bits, invisible in 8 bits."""
    folder = tmp_path / "deep"
    folder.mkdir()
    draw = np.random.default_rng(0)
    pixels = np.tile(np.linspace(0, 16383, 96), (96, 1)).astype(np.uint16)
    pixels[:, 40:60] = 9000 + draw.integers(0, 3, (96, 20))
    pixels[50:53, 48:51] += 40
    np.save(folder / "a.npy", pixels)
    assert np.ptp((pixels[45:58, 42:58].astype(float) * 255 / 16383).round()) <= 1
    client = client_of(open_session(images=folder))
    (target,) = edit(client, 0, {"op": "add", "x": 49, "y": 51})["targets"]
    (label,) = label_images([pixels], [[Point(49, 51)]], names=["a"], device="cpu")
    assert target["mask"] == {"top": 50, "left": 48, "height": 3, "width": 3, "runs": [0, 9]}
    assert target["area"] == label.mask.sum() == 9


def test_a_changed_file_is_read_again(open_session, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros((9, 9), np.uint8))
    client = client_of(open_session(images=folder))
    assert client.get("/api/images/0").json()["max"] == 0
    edit(client, 0, {"op": "add", "x": 4, "y": 4})
    pixels = np.zeros((9, 10), np.uint8)
    pixels[4, 3:6] = 200
    np.save(folder / "a.npy", pixels)
    about = client.get("/api/images/0").json()
    assert (about["max"], about["width"]) == (200, 10)
    assert about["targets"][0]["mask"] == {"top": 4, "left": 3, "height": 1, "width": 3, "runs": [0, 3]}


def test_what_was_used_last_is_kept() -> None:
    recent: Recent[bytes] = Recent(10, len)
    made = []

    def get(key: str, size: int) -> bytes:
        return recent.get(key, lambda: made.append(key) or b"x" * size)

    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4), ("d", 99), ("d", 99)):
        assert len(get(key, size)) == size
    assert made == ["a", "b", "c", "b", "d"]


def test_percentiles_of_a_frame() -> None:
    frame = Frame(np.arange(10001, dtype=np.float32).reshape(1, -1), "")
    assert frame.percentiles == {0.1: 10, 1: 100, 50: 5000, 99: 9900, 99.9: pytest.approx(9990)}
