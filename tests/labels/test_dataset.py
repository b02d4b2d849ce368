"""The Python interface of a label run: its result, its report and its lock."""

from dataclasses import replace

import numpy as np
import pytest

from mclc_gpu import InputError, LabelOptions, LabelRun, label_dataset
from mclc_gpu.cli.main import main
from mclc_gpu.data.annotations import SUPERVISIONS
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.labels import folder


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> LabelOptions:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 5, 2, size=(64, 72))
    (root / "images" / "synthetic_00003.png").write_bytes(b"no image")
    images, masks = root / "images", root / "masks"
    return LabelOptions(
        images=images, points_from_masks=masks, out=root / "run", device="cpu", overwrite=True
    )


def test_rows_of_the_journal_are_those_of_the_tables(options):
    seen = []

    def report(run: LabelRun) -> None:
        # Rows in the order of the run; each access reads one line of the journal.
        seen.extend((stem, run.rows[stem]) for stem in run.rows)
        assert not list(options.out.glob("*.jsonl"))

    run = label_dataset(options, report=report)
    assert [stem for stem, _ in seen] == list(run.rows)
    for stem, own in seen:
        for journaled, read in zip(own, run.rows[stem], strict=True):
            assert (journaled.point, journaled.estimated) == (read.point, read.estimated)
            assert np.isclose(journaled.confidence, read.confidence, equal_nan=True)
            assert journaled.area
            assert read.area is None
    assert run.summary["targets"] == sum(len(own) for _, own in seen) == len(list(run.targets()))
    assert run.summary == LabelRun.open(options.out).summary
    assert [item.file for item in run.skipped] == [str(options.points_from_masks / "synthetic_00003.png")]


def test_the_command_does_not_read_its_tables(options, monkeypatch, tmp_path):
    def forbidden(*_):
        raise AssertionError("the tables are read by the process that wrote them")

    monkeypatch.setattr(folder, "_read_rows", forbidden)
    argv = ["label", "--images", options.images, "--points-from-masks", options.points_from_masks]
    assert main([*map(str, argv), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert (tmp_path / "run" / "overview.png").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_the_folder_is_locked_until_the_report_is_written(options):
    def report(run: LabelRun) -> None:
        assert (run.folder / ".label.lock").exists()

    label_dataset(options, report=report)
    assert not (options.out / ".label.lock").exists()


def test_a_complete_run_is_reported_again(options):
    first = label_dataset(options)
    seen = []
    again = label_dataset(replace(options, overwrite=False, resume=True), report=seen.append)
    assert [run.summary for run in seen] == [first.summary] == [again.summary]
    assert list(seen[0].rows) == list(first.rows)


def test_unusable_options_are_named(options, tmp_path):
    for change, words in (
        ({"points_from_masks": None}, "give points or points_from_masks"),
        ({"points_from_masks": None, "points": tmp_path / "p.csv", "jitter": 1.0}, "jitter 1 only applies"),
        ({"out": options.images}, "is an input"),
        ({"device": "tpu"}, "tpu"),
    ):
        with pytest.raises(InputError, match=words):
            label_dataset(replace(options, **change))
    with pytest.raises(InputError, match="shards -1"):
        replace(options, shards=-1)


def test_every_supervision_is_an_option():
    assert LabelOptions.__dataclass_fields__["supervision"].metadata["choices"] == SUPERVISIONS
