"""Tar archives as folders of images, and label runs that write archives."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.cli.main import main
from mclc_gpu.data.files import is_file, key_of, members_of, read_file, stem_of_mask, write_archive
from mclc_gpu.data.images import image_size, read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.labels import run as labelrun
from mclc_gpu.labels.folder import LabelRun, mask_path, read_tpm, tpm_path, write_shard


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    made = {f"scene.{i}": rng.integers(0, 255, (7 + i, 9), dtype=np.uint8) for i in range(5)}
    folder = tmp_path / "frames"
    for number, names in enumerate((list(made)[:3], list(made)[3:])):
        files = [(f"{name}.png", png(made[name])) for name in names]
        write_archive(folder / f"{number}.tar", [*files, (f"{number}.txt", b"no image")])
    return folder, made


def test_images_in_archives_are_those_of_the_folder(frames):
    folder, made = frames
    files = find_files(folder)
    assert list(files) == sorted(made)
    for stem, path in files.items():
        assert str(path).startswith(str(folder))
        assert is_file(path)
        np.testing.assert_array_equal(read_image(path), made[stem])
        assert image_size(path) == made[stem].shape


def test_equal_files_give_equal_archives(tmp_path):
    for name in ("a", "b"):
        write_archive(tmp_path / f"{name}.tar", [("x" * 150, b"1"), ("y", b"")])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert [size for _, size in members_of(tmp_path / "a.tar").values()] == [1, 0]
    assert read_file(tmp_path / "a.tar" / ("x" * 150)) == b"1"


def test_an_archive_that_changes_is_read_again(tmp_path):
    for content in (b"one", b"three"):
        write_archive(tmp_path / "a.tar", [("x", content)])
        assert read_file(tmp_path / "a.tar" / "x") == content


@pytest.mark.parametrize("stem", ["plain", "with.dots.1", "100%", "%2E", "ünï", "\udcff"])
def test_keys_have_no_dots_and_lead_back_to_the_stem(stem):
    assert "." not in key_of(stem)
    assert stem_of_mask(key_of(stem) + ".mask.png") == stem


def test_damaged_archives_are_named(frames):
    folder, _ = frames
    path = find_files(folder)["scene.2"]
    whole = path.parent.read_bytes()
    path.parent.write_bytes(whole[: members_of(path.parent)["scene.2.png"][0] + 20])
    with pytest.raises(InputError, match=r"scene\.2\.png: .*0\.tar: no whole uncompressed tar archive"):
        read_image(path)
    path.parent.write_bytes(b"no archive" * 100)
    with pytest.raises(InputError, match=r"0\.tar: no whole uncompressed tar archive"):
        find_files(folder)


def test_a_name_twice_and_a_missing_member(tmp_path):
    write_archive(tmp_path / "a.tar", [("x.png", b"1"), ("x.png", b"2")])
    with pytest.raises(InputError, match=r"a\.tar: holds x\.png twice"):
        find_files(tmp_path)
    write_archive(tmp_path / "a.tar", [("x.png", b"1")])
    with pytest.raises(InputError, match=r"y\.png: no such file"):
        read_image(tmp_path / "a.tar" / "y.png")


def test_files_in_folders_of_an_archive_are_found(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./deep/x.png", "./deep/.hidden.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(np.zeros((3, 3), np.uint8)))
            tar.addfile(member, io.BytesIO(png(np.zeros((3, 3), np.uint8))))
    assert [read_image(path).shape for path in find_files(tmp_path).values()] == [(3, 3)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same labels as files and as archives; one image cannot be read."""
    root = tmp_path_factory.mktemp("runs")
    write_dataset(root / "data", 11, 0, size=(64, 80), test_share=0)
    (root / "data" / "images" / "synthetic_00003.png").write_bytes(b"no image")
    assert label(root, "files") == 0
    assert label(root, "shards", "--shards", "4") == 0
    return root


def label(root, out, *more):
    data = root / "data"
    words = ["--images", data / "images", "--points-from-masks", data / "masks", "--out", root / out, *more]
    return main(["label", *map(str, words)])


def test_archives_hold_the_files_of_a_run(runs):
    store = LabelRun.open(runs / "shards")
    assert sorted(path.name for path in (runs / "shards" / "shards").iterdir()) == [
        f"00000{i}.tar" for i in range(3)
    ]
    assert not (runs / "shards" / "masks").exists()
    stems = find_files(runs / "files" / "masks")
    assert list(store.masks()) == list(stems)
    for stem in stems:
        assert read_file(store.mask(stem)) == mask_path(runs / "files", stem).read_bytes()
        assert read_file(store.tpm(stem)) == tpm_path(runs / "files", stem).read_bytes()
        assert read_tpm(store.tpm(stem)).shape == read_mask(store.mask(stem)).shape
    for name in ("points.csv", "targets.csv", "overview.png"):
        assert (runs / "shards" / name).read_bytes() == (runs / "files" / name).read_bytes()


def test_archives_and_files_are_read_alike_by_score_and_show(runs, tmp_path, capsys):
    said = []
    images = runs / "data" / "images"
    for out, folder in (("files", "masks"), ("shards", "shards")):
        words = ["--pred", runs / out / folder, "--truth", runs / "data" / "masks"]
        assert main(["score", *map(str, words), "--report", str(tmp_path / f"{out}.html")]) == 0
        words = ["--labels", runs / out, "--images", images, "--out", tmp_path / f"{out}.png"]
        assert main(["show", *map(str, words)]) == 0
        said.append(capsys.readouterr().out.replace(str(tmp_path / out), ""))
    assert said[0] == said[1]
    assert "10" in said[0]


def test_an_interrupted_run_makes_the_same_archives(runs, monkeypatch):
    with monkeypatch.context() as patch:

        def stop_at_the_third(out, number, images):
            if number == 2:
                raise KeyboardInterrupt
            write_shard(out, number, images)

        patch.setattr(labelrun, "write_shard", stop_at_the_third)
        assert label(runs, "again", "--shards", "4") == 130
    shards = runs / "again" / "shards"
    assert len(list(shards.iterdir())) == 2
    (shards / "000001.tar").unlink()  # lost although the journal says done
    assert label(runs, "again", "--shards", "4", "--resume") == 0
    assert json.loads((runs / "again" / "label.json").read_text())["resumed_images"] == 4
    for path in (runs / "shards" / "shards").iterdir():
        assert (shards / path.name).read_bytes() == path.read_bytes()


def test_other_archives_are_not_resumed(runs, capsys):
    assert label(runs, "files", "--shards", "4", "--resume") == 2
    assert "other settings or inputs" in capsys.readouterr().err
    assert label(runs, "new", "--shards", "-1") == 2
    assert "shards -1: use 1 or more" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_network")
def test_a_detector_learns_from_archives(runs, tmp_path):
    curves = []
    for name, more in (("files", ()), ("shards", ("--shards", "3"))):
        data = runs / "data"
        words = ["--images", data / "images", "--points-from-masks", data / "masks", "--out", tmp_path / name]
        words += [
            "--network",
            "tiny",
            "--schedule",
            "paper",
            "--epochs",
            "1",
            "--batch-size",
            "4",
            "--size",
            "32",
        ]
        assert main(["train", *map(str, words), *more]) == 0
        curves.append((tmp_path / name / "metrics.csv").read_text())
    assert curves[0] == curves[1]
    assert not (tmp_path / "shards" / "labels" / "masks").exists()
