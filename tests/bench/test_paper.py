"""Tables of the paper on very little work: printed numbers, splits, clicks, kept cells, and bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.bench import paper_cells
from mclc_gpu.bench.paper_cells import Cells, Maker, Source, training_config
from mclc_gpu.bench.paper_sets import PaperSet, open_sets, real_click
from mclc_gpu.bench.printed import DETECTORS, LABEL_IOU, NUAA_86, SETS
from mclc_gpu.cli.main import main
from mclc_gpu.data.datasets import read_list
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError


def bench(out: Path, *more: str) -> int:
    return main(["bench", "--suite", "paper", "--quick", "--device", "cpu", "--out", str(out), *more])


def table(out: Path, number: int) -> list[dict[str, Any]]:
    (only,) = json.loads((out / f"table-{number}.json").read_text())["sets"]
    return only["rows"]


def test_printed_numbers_are_those_of_the_paper() -> None:
    assert DETECTORS["acm-mclc"]["NUAA-SIRST"] == (67.08, 92.01, 19.80)
    assert DETECTORS["uiunet-full"]["NUDT-SIRST-sea"] == (41.88, 55.69, 11.56)
    assert DETECTORS["pstnn"]["IRSTD-1k"].fa == 99.75
    assert {len(row) for row in DETECTORS.values()} == {len(SETS)}
    assert LABEL_IOU["mclc"] == {"NUAA-SIRST": 0.763, "NUDT-SIRST": 0.602}


def write_frames(root: Path, names: list[str]) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for name in names:
            Image.new("L", (4, 4), 255).save(root / folder / f"{name}.png")


def test_both_splits_of_nuaa_are_known(tmp_path: Path) -> None:
    root = tmp_path / "NUAA-SIRST"
    names = [f"Misc_{number}" for number in range(1, 428)]
    write_frames(root, names)
    (root / "train.txt").write_text("\n".join(names[:213]))
    (root / "test.txt").write_text("\n".join(names[213:]))
    (own,) = open_sets([root], "213/214", tmp_path / "out", False)
    (first,) = open_sets([root], "341/86", tmp_path / "out", False)
    assert (own.split, own.comparable, first.split, first.comparable) == ("213/214", True, "341/86", False)
    assert first.test is not None
    train, test = read_list(first.train), read_list(first.test)
    assert sorted(test) == sorted(f"Misc_{number}" for number in NUAA_86)
    assert sorted(train + test) == sorted(names)
    (root / "train.txt").write_text("\n".join(names[:200]))
    with pytest.raises(InputError, match="its lists name 200/214 images, not 213/214; give --split 341/86"):
        open_sets([root], "213/214", tmp_path / "out", False)
    (root / "images" / "Misc_6.png").unlink()
    with pytest.raises(InputError, match="not the 427 of NUAA-SIRST"):
        open_sets([root], "341/86", tmp_path / "out", False)


def test_real_clicks_are_on_the_target_and_off_its_center() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(np.ones((9, 5), bool))
    drawn = np.array([real_click(rows + 10, columns + 20, rng) for _ in range(500)])
    assert (drawn.min(0) >= (20, 10)).all()
    assert (drawn.max(0) <= (24, 18)).all()
    x, y = drawn.std(0)
    # A quarter of half the sides, and the deviation of rounding down, 1 / sqrt(12).
    assert x == pytest.approx(np.hypot(2.5 / 4, 0.29), abs=0.1)
    assert y == pytest.approx(np.hypot(4.5 / 4, 0.29), abs=0.15)


@pytest.fixture
def frames(tmp_path: Path) -> PaperSet:
    root = tmp_path / "frames"
    write_dataset(root, 12, 0, size=(48, 48))
    (one,) = open_sets([root], "213/214", tmp_path / "out", True)
    return one


def test_images_are_added_until_they_have_the_targets(frames: PaperSet) -> None:
    counts = frames.targets
    first, known = frames.subset(3)
    then, left = frames.subset(2, after=3)
    names = read_list(first), read_list(then)
    assert not set(names[0]) & set(names[1])
    assert [*names[0], *names[1]] == list(counts)[: len(names[0]) + len(names[1])]
    assert known == sum(counts[name] for name in names[0]) <= 3
    assert left == sum(counts[name] for name in names[1]) >= 1
    with pytest.raises(InputError, match="no train image with a target is left"):
        frames.subset(1, after=sum(counts.values()))


def test_a_killed_run_goes_on_with_the_cells_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, only = tmp_path / "out", ("--table", "1", "--only", "labels-point", "labels-default")
    label = paper_cells.label_dataset

    def killed(options: Any) -> Any:
        if options.out.name == "labels-default":
            raise KeyboardInterrupt
        return label(options)

    monkeypatch.setattr(paper_cells, "label_dataset", killed)
    assert bench(out, *only) == 130
    (before,) = (out / paper_cells.CELLS).rglob("labels-*.json")
    written = before.stat().st_mtime_ns
    rows = {row["method"]: row for row in table(out, 1)}
    assert rows["clicked pixel"]["labels"] < 20
    assert rows["preset default"]["labels_missing"] == "not run"

    monkeypatch.setattr(paper_cells, "label_dataset", label)
    assert bench(out, *only) == 0
    assert before.stat().st_mtime_ns == written
    rows = {row["method"]: row for row in table(out, 1)}
    assert rows["preset default"]["labels"] > 60
    assert rows["+ CRF"]["labels_missing"] == "not run"
    text = (out / "table-1.md").read_text()
    assert "| + CRF          | point       | not run |" in text


def test_a_detector_is_trained_on_a_few_targets_with_searched_settings(tmp_path: Path) -> None:
    assert bench(tmp_path, "--table", "4", "--only", "acm-default-2-targets-1-searched") == 0
    (row,) = [row for row in table(tmp_path, 4) if "iou" in row]
    assert row["method"].startswith("acm + ")
    assert row["method"].endswith(" s: preset default, searched")
    assert 0 <= row["pd"] <= 100
    assert row["fa"] >= 0
    assert row["labels_missing"] == "not run"
    measured = {path.stem for path in (tmp_path / "cells").glob("*/*.json")}
    assert measured == {"tune-default-1-targets", "acm-default-2-targets-1-searched"}


def test_masks_of_a_network_trained_on_clicks_train_another(
    tmp_path: Path, frames: PaperSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_cells, "SALIENT", ("acm",))
    out, source = tmp_path / "out", Source("acm")
    maker, cells = Maker(frames, out, training_config(frames, None, None), "cpu"), Cells(out)
    detector = maker.detector("resunet-slim", source)
    assert cells.measure(detector)
    assert cells.find(detector) is not None
    labels = maker.labels(source)
    assert cells.find(labels) is not None
    begun = json.loads((maker.folder(labels) / "run" / "config.json").read_text())
    assert begun["settings"]["loss"] == "partial-bce"
    trained = json.loads((maker.folder(detector) / "run" / "config.json").read_text())
    assert trained["sets"][0]["masks"] == str(maker.folder(labels) / "masks")


def test_what_cannot_be_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "frames"
    write_dataset(root, 12, 0, size=(48, 48))
    (root / "splits" / "test.txt").unlink()
    out = tmp_path / "out"
    assert bench(out, "--set", str(root), "--table", "2", "--only", "acm-full") == 0
    rows = table(out, 2)
    assert "no list of test images; add splits/test.txt" in rows[0]["test_missing"]
    assert "acm-full: not measured: " in capsys.readouterr().err
    assert "failed" in (out / "table-2.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "crf", "--table", "1"], "--table only applies with --suite paper; remove it"),
        (["--suite", "paper"], "no data set is named; give --set DIR"),
        (["--suite", "paper", "--quick", "--table", "1", "--only", "none"], "no cell has such a name"),
        (["--suite", "paper", "--quick", "--epochs", "0"], "--epochs 0: use 1 or more"),
        (["--suite", "paper", "--quick", "--epochs", "2", "--mpixels", "3"], "different schedules; give one"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_cells_with_other_settings_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--table", "1", "--only", "labels-point")
    assert bench(tmp_path, *only) == 0
    (path,) = (tmp_path / "cells").rglob("labels-point.json")
    content = json.loads(path.read_text())
    content["settings"]["labels"]["threshold"] = 0.1
    path.write_text(json.dumps(content))
    assert bench(tmp_path, *only) == 2
    assert f"{path}: was measured with other settings or another version" in capsys.readouterr().err
