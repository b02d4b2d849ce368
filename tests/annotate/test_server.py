"""The server of `annotate`: its interface, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from annotating import client_of, edit, mask_of
from starlette.testclient import TestClient

from mclc_gpu.annotate.command import session_of
from mclc_gpu.annotate.config import AnnotateOptions
from mclc_gpu.data.images import read_image
from mclc_gpu.data.names import find_files
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.labels.pipeline import label_images


def test_a_click_gives_the_mask_of_the_label_pipeline(client: TestClient, frames: Path) -> None:
    names = client.get("/api/images").json()["names"]
    images, masks = find_files(frames / "images"), find_files(frames / "masks")
    points, _ = simulate_points(masks, images)
    for index, name in enumerate(names):
        image = read_image(images[name])
        for point in points[name]:
            edit(client, index, {"op": "add", "x": point.x, "y": point.y})
        shown = client.get(f"/api/images/{index}").json()["targets"]
        clicks = [type(point)(point.x, point.y) for point in points[name]]
        for target, label in zip(
            shown, label_images([image], [clicks], names=[name], device="cpu"), strict=True
        ):
            whole = np.zeros(image.shape[:2], bool)
            whole[label.window.area] = label.mask
            assert np.array_equal(mask_of(target, image.shape[:2]), whole)
            assert target["confidence"] == pytest.approx(label.confidence, abs=1e-4)
            assert target["area"] == whole.sum()


def test_a_request_that_comes_again_changes_nothing(frames: Path, tmp_path: Path) -> None:
    options = AnnotateOptions(images=frames / "images", out=tmp_path / "out")
    click = {"client": "a", "request": "one", "edits": [{"op": "add", "x": 20, "y": 30}]}
    with session_of(options) as (session, _):
        client = client_of(session)
        first, again = (client.post("/api/images/1/edits", json=click).json() for _ in range(2))
        assert first["added"] == again["added"] == [target["id"] for target in again["targets"]]
        assert first["revision"] == again["revision"]
    with session_of(options) as (session, _):  # as after a kill between the journal and the answer
        client = client_of(session)
        assert client.post("/api/images/1/edits", json=click).json()["added"] == first["added"]
        undo = {"client": "a", "request": "two"}
        answers = [client.post("/api/undo", json=undo).json() for _ in range(2)]
        assert [answer["removed"] for answer in answers] == [first["added"]] * 2
        assert client.post("/api/images/1/edits", json=click).json()["targets"] == []
