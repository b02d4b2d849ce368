"""The predict command on files, as a user runs it, with a detector whose answers are known."""

import csv
import json
import os

import numpy as np
import pytest
import tifffile
import torch
from bright import bright_checkpoint, probability_of, write_scene
from PIL import Image

from mclc_gpu import runs as journal
from mclc_gpu.cli.main import main
from mclc_gpu.data.images import MASK_COLOR, read_mask, read_probability
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import read_points
from mclc_gpu.detect import predict as predictrun
from mclc_gpu.detect.checkpoint import Normalization, save_checkpoint
from mclc_gpu.detect.predict import Detection, find_detections, overlay
from mclc_gpu.networks.zoo import build


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr("mclc_gpu.detect.opening.load_checkpoint", bright_checkpoint)


@pytest.fixture
def data(tmp_path):
    images = tmp_path / "images"
    write_scene(images, "a", {(5, 6, 3, 3): 200, (6, 7, 1, 1): 240, (30, 40, 2, 2): 130})
    write_scene(images, "b.x", {(0, 0, 1, 2): 255, (28, 19, 2, 1): 140}, size=(30, 20))
    write_scene(images, "empty", {})
    deep = np.full((16, 16), 1000, np.uint16)
    deep[8, 9] = 3000
    Image.fromarray(deep).save(images / "deep.png")
    (tmp_path / "best.pt").write_bytes(b"weights")
    return tmp_path


def run(data, *more: object) -> int:
    argv = ["predict", "--checkpoint", data / "best.pt", "--images", data / "images", "--out", data / "out"]
    return main([str(word) for word in [*argv, *more]])


def files_of(out) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*.*"))
        if path.is_file() and path.name != "predict.json"
    }


def table_of(out) -> list[list[str]]:
    with (out / "detections.csv").open(newline="") as file:
        return list(csv.reader(file))


def error_of(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mclc-gpu: error: ")
    return line


def test_predict_writes_what_it_promises(data, bright, capsys):
    assert run(data) == 0
    out = data / "out"
    images = find_files(data / "images")
    for folder in ("masks", "probability", "overlays"):
        assert set(find_files(out / folder)) == set(images)
    for stem, path in images.items():
        size = Image.open(path).size
        mask, probability, drawn = (Image.open(out / f / f"{stem}.png") for f in predictrun.LAYOUT.folders)
        assert mask.size == probability.size == drawn.size == size
        assert (mask.mode, drawn.mode) == ("L", "RGB")
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
        exact = read_probability(out / "probability" / f"{stem}.png")
        np.testing.assert_array_equal(read_mask(out / "masks" / f"{stem}.png"), exact > 0.5)
    exact = read_probability(out / "probability" / "a.png")
    assert exact[5, 6] == pytest.approx(probability_of(200), abs=1e-5)
    assert exact[0, 0] == pytest.approx(probability_of(20), abs=1e-5)
    assert table_of(out) == [
        ["image", "x", "y", "area", "score"],
        ["a", "7.0", "6.0", "9", "1.0"],
        ["a", "40.5", "30.5", "4", f"{probability_of(130):.4f}"],
        ["b.x", "0.5", "0.0", "2", "1.0"],
        ["b.x", "19.0", "28.5", "2", f"{probability_of(140):.4f}"],
        ["deep", "9.0", "8.0", "1", "1.0"],
    ]
    summary = json.loads((out / "predict.json").read_text())
    assert (summary["images"], summary["detections"], summary["skipped"]) == (4, 5, [])
    assert summary["settings"]["threshold"] == 0.5
    assert summary["checkpoint"]["network"] == "bright"
    assert summary["images_per_s"] == pytest.approx(4 / summary["seconds"]["total"])
    assert not (out / "predict.partial.jsonl").exists()
    assert "4 images, 5 detections" in capsys.readouterr().out


def test_detections_are_points_that_can_be_labeled(data, bright):
    assert run(data) == 0
    points, skipped = read_points(data / "out" / "detections.csv", find_files(data / "images"))
    assert not skipped
    assert {stem: len(own) for stem, own in points.items()} == {"a": 2, "b.x": 2, "deep": 1}
    assert (points["a"][1].x, points["a"][1].y) == (40.5, 30.5)


def test_threshold_and_list_are_obeyed(data, bright):
    names = data / "list.txt"
    names.write_text("b.x.png\na\nghost\n")
    assert run(data, "--threshold", "0.9", "--list", names, "--strict") == 1
    assert [row[:2] for row in table_of(data / "out")[1:]] == [["b.x", "0.5"], ["a", "7.0"]]
    (item,) = json.loads((data / "out" / "predict.json").read_text())["skipped"]
    assert item["file"] == "ghost"


def test_tiles_change_nothing_for_a_detector_that_looks_at_single_pixels(data, bright):
    assert run(data) == 0
    assert run(data, "--out", data / "tiled", "--tile", "16", "--overlap", "4") == 0
    for path in find_files(data / "out" / "probability").values():
        tiled = data / "tiled" / "probability" / path.name
        np.testing.assert_allclose(read_probability(tiled), read_probability(path), atol=2 / 65535)


def test_one_bad_image_does_not_stop_the_rest(data, bright, capsys):
    (data / "images" / "aa.png").write_bytes(b"no image")
    (data / "images" / "z.png").write_bytes(b"")
    assert run(data, "--strict") == 1
    shown = capsys.readouterr()
    skipped = json.loads((data / "out" / "predict.json").read_text())["skipped"]
    assert [os.path.basename(item["file"]) for item in skipped] == ["aa.png", "z.png"]
    assert "empty" in skipped[1]["why"]
    assert "aa.png" in shown.err
    assert "2 inputs skipped" in shown.out
    assert len(find_files(data / "out" / "masks")) == 4
    assert run(data, "--overwrite") == 0
    for path in find_files(data / "images").values():
        path.write_bytes(b"no image")
    capsys.readouterr()
    assert run(data, "--overwrite") == 2
    assert "no image could be used" in error_of(capsys)


def test_an_interrupted_run_resumes_to_the_same_bytes(data, bright, monkeypatch):
    assert run(data, "--out", data / "whole") == 0
    append = journal.Journal.append

    def stop_after_three(self, record):
        append(self, record)
        if self.path.read_text().count("\n") > 3:
            raise KeyboardInterrupt

    (data / "images" / "empty.png").rename(data / "empty.png")
    (data / "images" / "empty.png").write_bytes(b"not copied yet")
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", stop_after_three)
        assert run(data) == 130
    out = data / "out"
    (data / "empty.png").replace(data / "images" / "empty.png")
    with (out / "predict.partial.jsonl").open("a") as file:
        file.write('{"image": "dee')  # torn by the kill
    (out / "overlays" / "a.png").unlink()  # lost although the journal says done
    (out / "masks" / ".0123456789abcdef.tmp.png").write_bytes(b"half a pict")
    assert run(data, "--resume") == 0
    assert json.loads((out / "predict.json").read_text())["resumed_images"] == 1
    assert files_of(out) == files_of(data / "whole")
    before = (out / "predict.json").read_bytes()
    assert run(data, "--resume") == 0
    assert (out / "predict.json").read_bytes() == before


def test_another_runs_folder_is_not_touched_unasked(data, bright, capsys):
    assert run(data) == 0
    before = files_of(data / "out")
    capsys.readouterr()
    for more, message in [
        ([], "--resume"),
        (["--resume", "--threshold", "0.9"], "other settings"),
        (["--resume", "--list", data / "list.txt"], "other settings"),
    ]:
        (data / "list.txt").write_text("a\n")
        assert run(data, *more) == 2
        assert message in error_of(capsys)
    (data / "best.pt").write_bytes(b"other weights")
    assert run(data, "--resume") == 2
    assert "other settings" in error_of(capsys)
    assert files_of(data / "out") == before
    assert run(data, "--overwrite", "--threshold", "0.9") == 0
    assert files_of(data / "out") != before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
@pytest.mark.parametrize("folder", ["masks", "probability", "overlays"])
def test_files_of_others_are_never_replaced(data, bright, capsys, more, folder):
    write_scene(data / "out" / folder, "a", {})
    before = files_of(data)
    assert run(data, *more) == 2
    assert str(data / "out" / folder) in error_of(capsys)
    assert files_of(data) == before


def test_inputs_and_outputs_are_kept_apart(data, bright, capsys):
    write_scene(data / "overlays", "a", {})
    for images, out in ((data / "images", data / "images"), (data / "overlays", data)):
        assert run(data, "--images", images, "--out", out) == 2
        assert "choose another --out" in error_of(capsys)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--threshold", "-0.1"], ["--threshold -0.1"]),
        (["--tile", "0"], ["--tile 0"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--images", "nowhere"], ["nowhere"]),
        (["--list", "missing.txt"], ["missing.txt"]),
    ],
)
def test_bad_arguments_end_with_two_and_one_line(data, bright, capsys, more, parts):
    assert run(data, *more) == 2
    line = error_of(capsys)
    assert all(part in line for part in parts)
    assert not (data / "out").exists()


def test_a_file_that_is_no_checkpoint_is_named(data, capsys):
    assert run(data) == 2
    assert "best.pt" in error_of(capsys)
    assert run(data, "--checkpoint", data / "missing.pt") == 2
    assert "missing.pt" in error_of(capsys)


def test_a_real_network_on_images_of_several_sizes(data):
    torch.manual_seed(0)
    network = build("acm", 3)
    path = data / "acm.pt"
    save_checkpoint(
        path,
        network=network,
        name="acm",
        in_channels=3,
        normalization=Normalization(30.0, 20.0),
        settings={},
        state={},
    )
    write_scene(data / "images", "large", {(50, 60, 4, 4): 255}, size=(150, 140))
    assert run(data, "--checkpoint", path, "--tile", "64", "--overlap", "16") == 0
    sizes = {stem: Image.open(p).size for stem, p in find_files(data / "out" / "probability").items()}
    assert sizes == {stem: Image.open(p).size for stem, p in find_files(data / "images").items()}
    assert json.loads((data / "out" / "predict.json").read_text())["checkpoint"]["network"] == "acm"


def test_detections_of_one_map():
    probability = np.zeros((6, 8), np.float32)
    probability[1, 1], probability[2, 2], probability[2, 3] = 0.6, 0.9, 0.5
    probability[4, 6:8] = 0.7
    assert find_detections(probability, 0.5) == [
        Detection(1.5, 1.5, 2, 0.9),
        Detection(6.5, 4.0, 2, 0.7),
    ]
    assert find_detections(probability, 0.4)[0] == Detection(2.0, 1.67, 3, 0.9)
    assert find_detections(probability, 0.95) == []


def test_overlays_ring_detections_and_leave_them_in_sight():
    mask = np.zeros((20, 20), bool)
    mask[10, 10:12] = True
    image = np.linspace(500, 700, 400).reshape(20, 20)
    drawn, plain = overlay(image, mask), overlay(image, np.zeros_like(mask))
    ring = (drawn == MASK_COLOR).all(axis=2)
    assert not (plain == MASK_COLOR).all(axis=2).any()
    np.testing.assert_array_equal(drawn[~ring], plain[~ring])
    assert np.argwhere(ring).min(axis=0).tolist() == [7, 7]
    assert np.argwhere(ring).max(axis=0).tolist() == [13, 14]
    assert ring.sum() == 7 * 8 - 5 * 6
    assert plain.min() == 0
    assert plain.max() == 255


@pytest.mark.parametrize("kind", ["dead", "hot", "column", "columns", "border", "blinking"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_bad_pixels_hide_no_target_and_are_none(data, bright, kind, dtype):
    rng = np.random.default_rng(0)
    frame = rng.integers(8400, 8600, (64, 96)).astype(dtype)
    frame[19:22, 29:32] += 1000
    low, high = (0, 65535) if dtype == np.uint16 else (-9999, 1e6)
    if kind in ("dead", "hot"):
        frame[50, 80] = low if kind == "dead" else high
    elif kind == "blinking":
        for row, column in rng.integers(3, 17, (8, 2)):
            frame[row * 3, column * 5] = rng.choice([low, high])
    else:
        place = {"column": np.s_[:, 50], "columns": np.s_[:, 50:53], "border": np.s_[-6:]}[kind]
        frame[place] = low
    (data / "frames").mkdir()
    tifffile.imwrite(data / "frames" / "a.tif", frame)
    assert run(data, "--images", data / "frames") == 0
    found = table_of(data / "out")[1:]
    assert [row[:4] for row in found if row[3] != "1"] == [["a", "30.0", "20.0", "9"]]
    if kind not in ("hot", "blinking"):
        assert len(found) == 1
