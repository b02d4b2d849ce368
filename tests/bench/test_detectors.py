"""The table of training recipes: run on a few frames, continued, and bad input."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mclc_gpu.bench import detectors
from mclc_gpu.bench.detectors import PARTS, changed, main, parsed_variant
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.train.config import TrainConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, 10, 0, size=(64, 64), test_share=0.2)
    return root


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    common = [
        "--set",
        str(data),
        "--clicks",
        "masks",
        "--mpixels",
        "0.1",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    return [*common, "--seeds", "2", "--folds", "2", *more]


def test_recipes_are_trained_once_and_tabled(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    more = ["--part", "full recipe", "--variant", "one stage: stages=64:1; warmup=0"]
    assert main(arguments(data, out, *more)) == 0
    shown = capsys.readouterr().out
    rows = list(csv.DictReader((out / "detectors.csv").open()))
    assert [(row["recipe"], row["seeds"]) for row in rows] == [
        ("full recipe", "2 of 2"),
        ("one stage", "2 of 2"),
    ]
    cells = sorted((out / "cells" / f"{data.name}-masks").glob("*.json"))
    contents = [json.loads(path.read_text()) for path in cells]
    assert len(contents) == 4
    for content in contents:
        names = set(content["settings"]["train"]), set(content["settings"]["score"])
        assert not names[0] & names[1]
        assert len(names[0]) == len(names[1]) == 4
        assert set(content["single"]) == set(content["flips"]) == {"iou", "niou", "pd", "fa"}
        assert len(content["curve"]["iou"]) == 21
    one = [content for content in contents if content["settings"]["training"]["warmup"] == 0]
    assert {content["settings"]["training"]["stages"] for content in one} == {"64:1"}
    assert {content["settings"]["training"]["seed"] for content in one} == {0, 1}
    assert "| full recipe |" in shown.replace("  ", "")
    assert (out / "curves.png").exists()
    before = (out / "detectors.md").read_text()
    monkeypatch.setattr(detectors, "train_detector", None)  # nothing is trained again
    assert main(arguments(data, out, *more)) == 0
    assert (out / "detectors.md").read_text() == before
    for path, content, iou in zip(cells, contents, (0.1, 0.1, 0.5, 0.7), strict=True):
        path.write_text(json.dumps({**content, "single": {"iou": iou, "niou": None, "pd": 0.9, "fa": 2e-5}}))
    assert main(arguments(data, out, *more)) == 0
    last = (out / "detectors.md").read_text().split("| one stage ")[1]
    scores = [cell.strip() for cell in last.split("|")[3:6]]
    assert scores == ["60.0 ± 14.1", "90.0 ± 0.0", "20.0 ± 0.0"]


def test_every_part_changes_the_recipe():
    full = TrainConfig("acm", schedule="fast", mpixels=1.0)
    settings = {name: changed(full, changes).settings() for name, changes in PARTS.items()}
    assert len({json.dumps(one) for one in settings.values()}) == len(PARTS)
    for name, changes in PARTS.items():
        differing = {
            key for key, value in settings[name].items() if settings["full recipe"].get(key) != value
        }
        assert set(changes) <= differing <= {*changes, "lr"}


def test_variants_of_the_command_line():
    assert parsed_variant("a b: seed=3, freeze=1,optimizer=adam") == (
        "a b",
        {"seed": 3, "freeze": 1.0, "optimizer": "adam"},
    )
    assert parsed_variant("x: stages=64:.5,128:.5; prior=-2") == (
        "x",
        {"stages": "64:.5,128:.5", "prior": -2.0},
    )
    assert parsed_variant("x: amp=False") == ("x", {"amp": False})
    assert parsed_variant("x: amp=True") == ("x", {"amp": True})
    full = TrainConfig("acm", schedule="fast")
    assert changed(full, {"prior": -2.0, "lr": 0.1}) == replace(
        full, lr=0.1, fast=replace(full.fast, prior=-2.0)
    )
    for text in ("x", "x:", ": lr=1", "x: lr=a", "x: lr", "x: amp=no"):
        with pytest.raises(InputError, match="--variant"):
            parsed_variant(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--part", "everything"], "--part 'everything'"),
        (["--variant", "x: speed=3"], "speed: no setting of training"),
        (["--folds", "5"], "too few for 5 folds"),
        (["--folds", "1"], "--folds is 1"),
        (["--clicks", "clicks.csv"], "clicks.csv"),
    ],
)
def test_bad_input(data, tmp_path, capsys, more, message):
    more = more if "--clicks" in more or "--variant" in more else [*more]
    main_arguments = arguments(data, tmp_path / "out", *more)
    code = main(main_arguments)
    shown = capsys.readouterr()
    assert message in shown.err
    assert code == 2 or "not measured" in shown.out
