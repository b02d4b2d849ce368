"""Split lists and pairs in the layouts of the field's releases."""

from pathlib import Path

import pytest

from mclc_gpu.data.datasets import find_split, listed, pair_files, read_list, select
from mclc_gpu.data.names import find_files
from mclc_gpu.errors import InputError


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"a\nb.1\n", id="plain"),
        pytest.param(b"a.png\r\nb.1.png\r\n", id="crlf-suffix"),
        pytest.param(b"\xef\xbb\xbf\n a \n\nb.1", id="bom-blank-lines-no-end"),
        pytest.param(b"images/a.png\nimages\\b.1.bmp\na\n", id="folders-twice"),
    ],
)
def test_lists(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    files = {name: tmp_path / f"{name}.png" for name in ("a", "b.1", "c")}
    chosen, skipped = select(files, read_list(tmp_path / "list.txt"))
    assert (list(chosen), skipped) == (["a", "b.1"], [])


@pytest.mark.parametrize(("content", "message"), [(b"\r\n \n", "names no file"), (b"\xff\xfea", "not UTF-8")])
def test_bad_lists(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"list\.txt: .*{message}"):
        read_list(tmp_path / "list.txt")


def test_missing_list(tmp_path):
    with pytest.raises(InputError, match=r"list\.txt: cannot be read \(No such file"):
        read_list(tmp_path / "list.txt")


def test_select_keeps_the_order_and_reports_what_is_missing():
    files = {name: Path(f"{name}.png") for name in "abc"}
    chosen, skipped = select(files, ["c", "ghost", "a"])
    assert list(chosen.items()) == [("c", files["c"]), ("a", files["a"])]
    assert [item.file for item in skipped] == ["ghost"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("splits/train.txt", "train"),
        ("img_idx/train_IRSTD-1k.txt", "train"),
        ("img_idx/test_NUDT-SIRST-sea.txt", "test"),
        ("img_idx/test.txt", "test"),
        ("train.txt", "train"),
        ("trainval.txt", "train"),
        ("50_50/test.txt", "test"),
    ],
)
def test_find_split(tmp_path, name, split):
    for other in ("splits/val.txt", "readme.txt", "img_idx/val_IRSTD-1k.txt", name):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    assert find_split(tmp_path, split) == tmp_path / name
    with pytest.raises(InputError, match="list"):
        find_split(tmp_path, "test" if split == "train" else "train")


def test_find_split_among_several_goes_by_the_folder(tmp_path):
    for root in ("IRSTD-1k", "other"):
        (tmp_path / root / "img_idx").mkdir(parents=True)
        for name in ("train_IRSTD-1K.txt", "train_NUAA.txt"):
            (tmp_path / root / "img_idx" / name).touch()
    assert find_split(tmp_path / "IRSTD-1k", "train").name == "train_IRSTD-1K.txt"
    with pytest.raises(
        InputError, match=r"several train lists \(img_idx.train_IRSTD-1K\.txt, img_idx.train_NUAA"
    ):
        find_split(tmp_path / "other", "train")


def test_pairs(tmp_path):
    for name in ("images/a.png", "images/b.png", "masks/a_pixels0.png", "masks/z.png", "masks/b.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pairs, skipped = pair_files(find_files(tmp_path / "images"), find_files(tmp_path / "masks"))
    assert pairs == {"a": (tmp_path / "images/a.png", tmp_path / "masks/a_pixels0.png")}
    assert [(item.file, item.why) for item in skipped] == [
        (str(tmp_path / "images/b.png"), "there is no mask of this image")
    ]


def test_nuaa_splits(nuaa):
    images = find_files(nuaa / "images")
    counts = {}
    for split in ("train", "test"):
        chosen, skipped = select(images, read_list(find_split(nuaa, split)))
        assert skipped == []
        counts[split] = set(chosen)
    assert {split: len(names) for split, names in counts.items()} == {"train": 213, "test": 214}
    assert counts["train"] | counts["test"] == set(images)


def test_a_list_that_names_none_of_the_files_is_refused(tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("c\nghost\n")
    chosen, skipped = listed({"a": 1, "c": 3}, names, tmp_path)
    assert (chosen, [item.file for item in skipped]) == ({"c": 3}, ["ghost"])
    assert listed({"a": 1}, None, tmp_path) == ({"a": 1}, [])
    with pytest.raises(InputError, match=r"list.txt: none of its 2 names is in"):
        listed({"a": 1}, names, tmp_path)
