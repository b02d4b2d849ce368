"""Labels in the formats of other tools: read back, and masks to the pixel."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from brushes import decoded
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.draw import polygon2mask

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.exports import EXPORTS, ExportedImage, ExportedTarget, export
from mclc_gpu.data.masks import BoxedMask, coco_counts, label_studio_rle, outline
from mclc_gpu.data.points import read_points
from mclc_gpu.errors import InputError

SHAPE = 23, 31
MASKS = arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))).filter(np.any)
PLACES = st.tuples(st.integers(0, SHAPE[0] - 8), st.integers(0, SHAPE[1] - 8))


def in_image(mask: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    whole = np.zeros(SHAPE, bool)
    whole[place[0] : place[0] + mask.shape[0], place[1] : place[1] + mask.shape[1]] = mask
    return whole


def filled(corners: np.ndarray, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Rasterize corners counted from the image's edge."""
    return polygon2mask(shape, corners[:, ::-1] - 0.5)


@given(MASKS, PLACES)
def test_an_outline_holds_the_pixels_of_its_mask_and_no_others(mask: np.ndarray, place) -> None:
    assert np.array_equal(filled(np.array(outline(BoxedMask.of(mask, *place)))), in_image(mask, place))


@given(MASKS, PLACES)
def test_run_lengths_give_the_mask_back(mask: np.ndarray, place) -> None:
    boxed, whole = BoxedMask.of(mask, *place), in_image(mask, place)
    assert boxed.area == whole.sum()
    assert np.array_equal(in_image(boxed.pixels(), (boxed.top, boxed.left)), whole)
    assert BoxedMask.of_json(boxed.json(), SHAPE) == boxed
    counts = coco_counts(boxed, SHAPE)
    assert np.array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(SHAPE[::-1]).T, whole)


@given(MASKS, PLACES)
def test_brush_masks_of_label_studio_are_exact(mask: np.ndarray, place) -> None:
    values = decoded(label_studio_rle(BoxedMask.of(mask, *place), SHAPE)).reshape(*SHAPE, 4)
    assert np.array_equal(values, np.where(in_image(mask, place), 255, 0)[:, :, None].repeat(4, 2))


def test_brush_masks_may_have_runs_longer_than_their_largest_length() -> None:
    boxed = BoxedMask.of(np.ones((3, 2), bool), 260, 7)
    values = decoded(label_studio_rle(boxed, (300, 301))).reshape(300, 301, 4)[:, :, 0]
    assert np.argwhere(values).tolist() == [[y, x] for y in (260, 261, 262) for x in (7, 8)]


@pytest.mark.parametrize(
    "change",
    [
        {"top": -1}, {"left": 30}, {"runs": [1, 4]}, {"runs": [6]}, {"height": 0, "runs": []}, {"width": 2.0},
        {"runs": [True, 5]}, {"runs": "x"}, {"more": 1},
    ],
)  # fmt: skip
def test_masks_from_outside_are_checked(change: dict) -> None:
    good = {"top": 2, "left": 3, "height": 2, "width": 3, "runs": [1, 5]}
    assert BoxedMask.of_json(good, SHAPE).area == 5
    with pytest.raises(InputError):
        BoxedMask.of_json(good | change, SHAPE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], list[ExportedImage]]:
    """Labels of two images, one without a target, in all formats."""
    folder = tmp_path_factory.mktemp("exports")
    images = {name: folder / f"{name}.png" for name in ("a", "b b")}
    for path in images.values():
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(path)
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    masks = BoxedMask.of(ring, 4, 6), BoxedMask.of(np.array([[1, 0], [0, 1]], bool), 21, 0)
    points = Point(7.25, 5.5), Point(0.0, 22.125)
    targets = [ExportedTarget(point, mask, 0.5) for point, mask in zip(points, masks, strict=True)]
    labels = [ExportedImage("a", "a.png", SHAPE, targets), ExportedImage("b b", "b b.png", SHAPE, [])]
    for name in EXPORTS:
        export(name, folder / "out", labels)
    return folder / "out", images, labels


@pytest.mark.parametrize(
    ("name", "supervision"),
    [
        ("coco.json", "point"), ("coco.json", "box"), ("labelme", "box"), ("cvat.xml", "point"),
        ("cvat.xml", "box"), ("label-studio.json", "point"), ("label-studio.json", "box"),
        ("yolo-boxes", "box"), ("yolo-polygons", "box"), ("labelme", "point"),
    ],
)  # fmt: skip
def test_what_is_written_is_read(written, name: str, supervision: str) -> None:
    out, images, labels = written
    points, skipped = read_points(out / name, images, supervision)
    for image in labels:
        found = points.get(image.stem, [])
        assert len(found) == len(image.targets), (skipped, name)
        for point, target in zip(found, image.targets, strict=True):
            mask = target.mask
            if supervision == "box":
                box = mask.left, mask.top, mask.left + mask.width - 1, mask.top + mask.height - 1
                assert point.box == box
            else:
                assert (point.x, point.y) == pytest.approx((target.point.x, target.point.y), abs=1e-9)


def test_masks_are_exact_in_every_format(written) -> None:
    out, _, (image, _) = written
    masks = [in_image(t.mask.pixels(), (t.mask.top, t.mask.left)) for t in image.targets]
    coco = json.loads((out / "coco.json").read_text())["annotations"]
    labelme = json.loads((out / "labelme" / "a.json").read_text())["shapes"]
    yolo = [line.split()[1:] for line in (out / "yolo-polygons" / "a.txt").read_text().splitlines()]
    cvat = list(ET.parse(out / "cvat.xml").getroot().iter("mask"))
    for number, mask in enumerate(masks):
        counts = coco[number]["segmentation"]["counts"]
        assert np.array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(SHAPE[::-1]).T, mask)
        assert np.array_equal(filled(np.array(labelme[2 * number]["points"])), mask)
        shares = np.array(yolo[number], float).reshape(-1, 2) * SHAPE[::-1]
        assert np.array_equal(filled(np.round(shares, 6)), mask)
        about = cvat[number].attrib
        runs = [int(run) for run in about["rle"].split(",")]
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(
            int(about["height"]), int(about["width"])
        )
        assert np.array_equal(in_image(inside, (int(about["top"]), int(about["left"]))), mask)
