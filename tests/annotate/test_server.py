"""The server of `annotate`: its interface, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from annotating import edit, mask_of
from starlette.testclient import TestClient

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
