"""Files that a session writes: those of `mclc-gpu label`, and those of other tools."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from annotating import client_of, edit, mask_of

from mclc_gpu.annotate.jobs import tune_session, write_labels
from mclc_gpu.cli.main import main
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.exports import EXPORTS
from mclc_gpu.data.images import read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.simulate import simulate_points
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import OUTLINES
from mclc_gpu.labels.config import changed
from mclc_gpu.labels.folder import LabelRun
from mclc_gpu.labels.pipeline import label_images


def silent(done: int, total: int) -> None:
    assert done <= total


def click_all(client, frames: Path) -> dict:
    """Click the targets of all frames; return their points by name."""
    images, masks = find_files(frames / "images"), find_files(frames / "masks")
    points, _ = simulate_points(masks, images, jitter=1.0)
    for index, name in enumerate(images):
        for point in points[name]:
            edit(client, index, {"op": "add", "x": point.x, "y": point.y})
    return points


def test_labels_of_a_session_are_those_of_the_command(open_session, frames: Path, tmp_path: Path) -> None:
    session = open_session()
    click_all(client_of(session), frames)
    write_labels(session, (), silent)
    out, other = session.out, tmp_path / "by-command"
    argv = ["label", "--images", frames / "images", "--points", out / "clicks.csv", "--out", other]
    assert main([*map(str, argv), "--device", "cpu"]) == 0
    files = ["points.csv", "targets.csv", "overview.png"]
    files += [str(path.relative_to(other)) for path in (*other.glob("masks/*"), *other.glob("tpm/*"))]
    assert len(files) > 3
    for name in files:
        assert (out / name).read_bytes() == (other / name).read_bytes(), name


def test_corrected_masks_are_in_the_files(open_session, frames: Path) -> None:
    session = open_session()
    client = client_of(session)
    click_all(client, frames)
    target = client.get("/api/images/1").json()["targets"][0]
    drawn = {"top": 2, "left": 3, "height": 2, "width": 3, "runs": [1, 5]}
    edit(client, 1, {"op": "mask", "id": target["id"], "mask": drawn, "how": "brush"})
    write_labels(session, (), silent)
    name, run = session.names[1], LabelRun.open(session.out)
    shown = client.get("/api/images/1").json()["targets"]
    written = read_mask(session.out / "masks" / f"{name}.png")
    assert np.array_equal(written, np.any([mask_of(one, written.shape) for one in shown], axis=0))
    assert [row.corrected for row in run.rows[name]] == [True] + [False] * (len(shown) - 1)
    assert json.loads((session.out / "label.json").read_text())["corrected_masks"] == 1
    rows = list(csv.DictReader((session.out / "targets.csv").open()))
    assert [(row["image"], row["area"], row["confidence"]) for row in rows if row["corrected"] == "1"] == [
        (name, "5", "1.0")
    ]


def test_an_image_without_targets_that_is_done_has_an_empty_mask(open_session, frames: Path) -> None:
    session = open_session()
    edit(client_of(session), 2, {"op": "done", "done": True})
    write_labels(session, (), silent)
    assert not read_mask(session.out / "masks" / f"{session.names[2]}.png").any()
    assert len(list((session.out / "masks").iterdir())) == 1


def test_the_report_links_to_the_page(open_session, frames: Path) -> None:
    session = open_session()
    click_all(client_of(session), frames)
    write_labels(session, (), silent, "http://127.0.0.1:8765/")
    page = (session.out / "report.html").read_text()
    assert f'<a href="http://127.0.0.1:8765/#{session.names[0]}%3A0">{session.names[0]}:0</a>' in page


def test_nothing_to_write_or_to_tune_is_said(open_session) -> None:
    session = open_session()
    with pytest.raises(InputError, match="nothing is annotated"):
        write_labels(session, (), silent)
    with pytest.raises(InputError, match="no mask was corrected"):
        tune_session(session, silent)


def test_files_that_no_session_wrote_stay(open_session, tmp_path: Path) -> None:
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "mine.png").write_bytes(b"mine")
    session = open_session()
    edit(client_of(session), 0, {"op": "add", "x": 20, "y": 20})
    with pytest.raises(InputError, match="was not written by a label run"):
        write_labels(session, (), silent)
    assert (tmp_path / "out" / "masks" / "mine.png").read_bytes() == b"mine"


def test_every_format_is_written(open_session, frames: Path) -> None:
    session = open_session()
    click_all(client_of(session), frames)
    message = write_labels(session, list(EXPORTS), silent)
    assert all(name in message for name in EXPORTS)
    assert {path.name for path in (session.out / "exports").iterdir()} == {
        "coco.json", "yolo-boxes", "yolo-polygons", "labelme", "label-studio.json", "cvat.xml",
    }  # fmt: skip


def test_exports_are_of_the_labels_that_are_written(open_session, frames: Path) -> None:
    session = open_session()
    client = client_of(session)
    click_all(client, frames)

    def change(done: int, total: int) -> None:
        if done == 1:  # the labels are written, the exports are not yet
            edit(client, 0, {"op": "add", "x": 1, "y": 1})

    name = session.names[0]
    count = len(session.state.image(name).targets)
    write_labels(session, ["yolo-boxes"], change)
    file = session.out / "exports" / "yolo-boxes" / f"{name}.txt"
    assert len(file.read_text().splitlines()) == count
    edit(client, 0, *({"op": "delete", "id": number} for number in session.state.image(name).targets))
    write_labels(session, ["yolo-boxes"], silent)
    assert not file.exists()
    assert len(list(file.parent.iterdir())) == len(session.state.points(session.names))


def test_tuning_starts_at_the_settings_of_the_session(open_session, frames: Path, monkeypatch) -> None:
    session = open_session()
    client = client_of(session)
    click_all(client, frames)
    session.change_settings(polarity="auto")
    started = []

    def tuned(options, start) -> dict:
        started.append(start)
        session.change_settings(outline=other)  # by somebody, during the search
        facts = {"images": 1, "before": {"iou": 0.5}, "after": {"iou": 0.6}}
        return {**facts, "tuned_kept": True, "changes": {"components.polarity": ["auto", "dark"]}}

    other = next(one for one in OUTLINES if one != session.config.components.outline)
    monkeypatch.setattr("mclc_gpu.annotate.jobs.tune_labels", tuned)
    first, *_ = client.get("/api/images/0").json()["targets"]
    drawn = {"top": 2, "left": 3, "height": 2, "width": 3, "runs": [0, 6]}
    edit(client, 0, {"op": "mask", "id": first["id"], "mask": drawn})
    before = session.config
    assert "new settings" in tune_session(session, silent)
    assert started == [before]
    assert session.config == changed(before, components={"polarity": "dark", "outline": other})
    shown = [client.get(f"/api/images/{index}").json()["targets"] for index in range(4)]
    assert shown[0][0]["mask"] == drawn
    expected = label_images(
        [session.frames.frame(name).pixels for name in session.names],
        [[Point(one["x"], one["y"]) for one in own] for own in shown],
        session.config,
        names=session.names,
        device="cpu",
    )
    assert [one["area"] for own in shown for one in own][1:] == [int(one.mask.sum()) for one in expected][1:]


def test_tuning_of_a_config_measures_that_config(open_session, frames: Path, monkeypatch) -> None:
    session = open_session()
    client = client_of(session)
    click_all(client, frames)
    session.change_settings(polarity="dark")
    first = client.get("/api/images/0").json()["targets"][0]
    drawn = {"top": 2, "left": 3, "height": 2, "width": 3, "runs": [0, 6]}
    edit(client, 0, {"op": "mask", "id": first["id"], "mask": drawn})
    monkeypatch.setattr("mclc_gpu.annotate.jobs._BUDGET", 2)
    assert "1 images" in tune_session(session, silent)
    summary = json.loads((session.out / "tune" / "search" / "tune.json").read_text())
    assert summary["settings"]["config"]["components"]["polarity"] == "dark"
    assert session.config.components.polarity == "dark"
