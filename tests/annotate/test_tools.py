"""The protocols of X-AnyLabeling and Label Studio: masks arrive to the pixel."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from annotating import client_of
from brushes import decoded
from skimage.draw import polygon2mask
from starlette.testclient import TestClient

from mclc_gpu.annotate.tools import MODEL
from mclc_gpu.data.annotations import Point, box_target
from mclc_gpu.data.images import read_image
from mclc_gpu.data.names import find_files
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.labels.pipeline import label_images

CONFIG = """<View><Image name="img" value="$image"/><KeyPointLabels name="kp" toName="img"><Label value="t"/>
</KeyPointLabels><BrushLabels name="brush" toName="img"><Label value="ship"/><Label value="t"/></BrushLabels>
</View>"""


def masks_of(image: np.ndarray, points: list[Point]) -> list[np.ndarray]:
    """Return the masks of the label pipeline, of the image's size."""
    masks = []
    for label in label_images([image], [points], names=["image"], device="cpu"):
        masks.append(np.zeros(image.shape[:2], bool))
        masks[-1][label.window.area] = label.mask
    return masks


def any_labeling(client: TestClient, path: Path, *marks: dict, **more: object) -> dict:
    image = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    content = {
        "model": MODEL,
        "image": image,
        "params": {"marks": list(marks), "epsilon_factor": 0.001},
    } | more
    answer = client.post("/v1/predict", json=content, headers={"Token": ""})
    assert answer.status_code == 200, answer.text
    return answer.json()


def clicked(frames: Path) -> list[tuple[Path, np.ndarray, list[Point]]]:
    """Return path, pixels and clicks of each frame."""
    images, masks = find_files(frames / "images"), find_files(frames / "masks")
    points, _ = simulate_points(masks, images, jitter=1.0)
    return [
        (path, read_image(path), [Point(p.x, p.y) for p in points[name]]) for name, path in images.items()
    ]


def test_any_labeling_gets_polygons_around_the_pixels_of_each_mask(client: TestClient, frames: Path) -> None:
    assert client.get("/health").json()["status"] == "UP"
    assert list(client.get("/v1/models").json()["data"]) == [MODEL]
    for path, image, points in clicked(frames):
        for point in points:
            mark = {"type": "point", "label": 1, "data": [point.x + 0.5, point.y + 0.5]}
            (shape,) = any_labeling(client, path, mark)["data"]["shapes"]
            assert shape["points"][0] == shape["points"][-1]
            found = polygon2mask(image.shape[:2], np.array(shape["points"])[:, ::-1] - 0.5)
            assert np.array_equal(found, masks_of(image, [point])[0])


def test_any_labeling_marks_of_all_kinds(client: TestClient, frames: Path) -> None:
    path, image, _ = clicked(frames)[0]
    marks = [
        {"type": "rectangle", "label": 1, "data": [10.2, 30.9, 19.8, 22.1]},
        {"type": "point", "label": 1, "data": [40.5, 40.5]},
        {"type": "point", "label": 1, "data": [42.5, 41.5]},
        {"type": "point", "label": 0, "data": [50.5, 45.5]},
    ]
    shapes = any_labeling(client, path, *marks)["data"]["shapes"]
    points = [box_target(10, 22, 19, 30), Point(40, 40, seeds=((42, 41),)), Point(50, 45)]
    expected = masks_of(image, points)[:2]
    for shape, mask in zip(shapes, expected, strict=True):
        found = polygon2mask(image.shape[:2], np.array(shape["points"])[:, ::-1] - 0.5)
        assert np.array_equal(found, mask)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "other"}, "MODEL_NOT_FOUND"),
        ({"image": "data:image/png;base64,AAAA"}, "INVALID_IMAGE"),
        ({"image": "?"}, "INVALID_IMAGE"),
        ({"image": None}, "INVALID_IMAGE"),
        ({"params": {}}, "INFERENCE_ERROR"),
        ({"params": {"marks": [{"type": "point", "data": [99, 5]}]}}, "INFERENCE_ERROR"),
        ({"params": {"marks": [{"type": "point", "data": ["a", 5]}]}}, "INFERENCE_ERROR"),
        ({"params": {"marks": [{"type": "circle", "data": [5, 5]}]}}, "INFERENCE_ERROR"),
        ({"params": {"marks": [{"type": "point", "label": 0, "data": [5, 5]}]}}, "INFERENCE_ERROR"),
    ],
)
def test_any_labeling_is_told_what_is_wrong(
    client: TestClient, frames: Path, change: dict, code: str
) -> None:
    path = clicked(frames)[0][0]
    answer = any_labeling(client, path, {"type": "point", "data": [5.5, 5.5]}, **change)
    assert (answer["success"], answer["error"]["code"]) == (False, code)
    assert "\n" not in answer["error"]["message"]


def test_a_deep_image_keeps_its_bits(client: TestClient, tmp_path: Path) -> None:
    pixels = np.full((40, 40), 20000, np.uint16)
    pixels[20:23, 20:24] += 90
    np.save(tmp_path / "a.npy", pixels)
    (shape,) = any_labeling(client, tmp_path / "a.npy", {"type": "point", "data": [21.5, 21.5]})["data"][
        "shapes"
    ]
    assert shape["points"] == [[20, 20], [24, 20], [24, 23], [20, 23], [20, 20]]


def label_studio(client: TestClient, name: str, *marks: dict, **more: object) -> tuple[int, dict]:
    task = {"id": 1, "data": {"image": f"/data/local-files/?d=set%2F{name}.png"}}
    content = {"tasks": [task], "label_config": CONFIG, "params": {"context": {"result": list(marks)}}} | more
    answer = client.post("/predict", json=content)
    return answer.status_code, answer.json()


def keypoint(point: Point, shape: tuple[int, ...]) -> dict:
    value = {"x": (point.x + 0.5) * 100 / shape[1], "y": (point.y + 0.5) * 100 / shape[0], "width": 0.3}
    return {"type": "keypointlabels", "from_name": "kp", "value": value | {"keypointlabels": ["t"]}}


def test_label_studio_gets_brush_masks_to_the_pixel(open_session, frames: Path) -> None:
    session = open_session()
    with client_of(session) as client:
        assert client.post("/setup", json={"project": "1.2", "schema": CONFIG}).json()["model_version"]
        assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).json() == {"status": "ok"}
        for path, image, points in clicked(frames):
            marks = [keypoint(point, image.shape) for point in points]
            status, answer = label_studio(client, path.stem, *marks)
            assert status == 200
            (whole,) = answer["results"]
            expected = masks_of(image, points)
            for result, mask in zip(whole["result"], expected, strict=True):
                about = [result[key] for key in ("type", "from_name", "to_name", "original_width")]
                assert about == ["brushlabels", "brush", "img", image.shape[1]]
                assert result["value"]["brushlabels"] == ["t"]
                values = decoded(result["value"]["rle"]).reshape(*image.shape[:2], 4)
                assert np.array_equal(values, np.where(mask, 255, 0)[:, :, None].repeat(4, 2))
    assert session.state.images == {}


def test_label_studio_rectangles_and_requests_without_marks(client: TestClient, frames: Path) -> None:
    path, image, _ = clicked(frames)[0]
    height, width = image.shape[:2]
    value = {"x": 1000 / width, "y": 2000 / height, "width": 500 / width, "height": 600 / height}
    box = {"type": "rectanglelabels", "value": value | {"rectanglelabels": ["elsewhere"]}}
    _, answer = label_studio(client, path.stem, box)
    (result,) = answer["results"][0]["result"]
    values = decoded(result["value"]["rle"]).reshape(height, width, 4)[:, :, 0]
    assert np.array_equal(values > 0, masks_of(image, [box_target(10, 20, 14, 25)])[0])
    assert result["value"]["brushlabels"] == ["ship"]
    assert label_studio(client, path.stem)[1] == {"results": [{"result": [], "score": 0.0}]}


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("needs <BrushLabels>", {"label_config": '<View><Image name="img" value="$image"/></View>'}),
        ("not well-formed", {"label_config": "<View>"}),
        ("document type", {"label_config": '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>'}),
        ("no image of this name", {"tasks": [{"data": {"image": "/data/upload/1/../../etc/passwd"}}]}),
        ("no address", {"tasks": [{"data": {}}]}),
        ("tasks: give a list", {"tasks": 5}),
        ("rotated", {"params": {"context": {"result": [{"type": "rectangle", "value": {"rotation": 5}}]}}}),
        ("mark a target by", {"params": {"context": {"result": [{"type": "ellipse", "value": {}}]}}}),
        ("outside", {"params": {"context": {"result": [{"type": "keypoint", "value": {"x": 200, "y": 1}}]}}}),
        ("give numbers", {"params": {"context": {"result": [{"type": "keypoint", "value": {"x": "1"}}]}}}),
    ],
)
def test_label_studio_is_told_what_is_wrong(
    client: TestClient, frames: Path, match: str, change: dict
) -> None:
    path, image, points = clicked(frames)[0]
    status, answer = label_studio(client, path.stem, keypoint(points[0], image.shape), **change)
    assert (status, match in answer["error"], "\n" in answer["error"]) == (422, True, False), json.dumps(
        answer
    )


@pytest.mark.slow
def test_both_tools_get_200_real_masks_to_the_pixel(open_session, nuaa: Path, tmp_path: Path) -> None:
    session = open_session(images=nuaa / "images", out=tmp_path / "real")
    points, _ = simulate_points(find_files(nuaa / "masks"), session.frames.files, jitter=1.0)
    compared = 0
    with client_of(session) as client:
        for name, path in session.frames.files.items():
            image = read_image(path)
            for point in points.get(name, [])[: 200 - compared]:
                (expected,) = masks_of(image, [Point(point.x, point.y)])
                mark = {"type": "point", "label": 1, "data": [point.x + 0.5, point.y + 0.5]}
                (shape,) = any_labeling(client, path, mark)["data"]["shapes"]
                polygon = np.array(shape["points"])[:, ::-1] - 0.5
                assert np.array_equal(polygon2mask(image.shape[:2], polygon), expected), name
                _, answer = label_studio(client, name, keypoint(point, image.shape))
                (result,) = answer["results"][0]["result"]
                values = decoded(result["value"]["rle"]).reshape(*image.shape[:2], 4)[:, :, 3]
                assert np.array_equal(values == 255, expected), name
                compared += 1
    assert compared == 200
