"""Scores of a detector whose output is known, in memory and on files; its report."""

import json

import numpy as np
import pytest
from bright import bright_checkpoint, bright_predictor, probability_of, write_scene
from PIL import Image

from mclc_gpu.cli.main import main
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.detect.evaluate import Case, score_files, score_network
from mclc_gpu.errors import InputError
from mclc_gpu.report.folder import write_report
from mclc_gpu.report.plots import plot_curves, plot_roc
from mclc_gpu.report.sheets import Extremes, case_sheet
from mclc_gpu.score.config import DNANET
from mclc_gpu.score.metrics import score_image
from mclc_gpu.score.roc import RocScores

TARGET, OTHER, BRIGHT, DIM = (5, 6, 3, 3), (30, 40, 2, 2), 200, 125


@pytest.fixture
def data(tmp_path):
    """a: target found, false alarm of 4 px; b: target too dim; c: nothing; d: 16 bit, found."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_scene(images, "a", {TARGET: BRIGHT, OTHER: 160})
    write_scene(images, "b", {TARGET: DIM}, size=(30, 20))
    write_scene(images, "c", {})
    write_scene(images, "d", {OTHER: 255, (0, 0, 1, 1): 0})
    Image.fromarray(np.array(Image.open(images / "d.png")).astype(np.uint16) * 100).save(images / "d.png")
    for name, size, boxes in [
        ("a", (40, 50), [TARGET]),
        ("b", (30, 20), [TARGET]),
        ("c", (40, 50), []),
        ("d", (40, 50), [OTHER]),
    ]:
        truth = np.zeros(size, np.uint8)
        for row, column, height, width in boxes:
            truth[row : row + height, column : column + width] = 255
        masks.mkdir(exist_ok=True)
        Image.fromarray(truth).save(masks / f"{name}_pixels0.png")
    return tmp_path


@pytest.fixture
def files(data):
    return find_files(data / "images"), find_files(data / "masks")


def test_a_folder_is_scored_at_one_and_at_all_thresholds(files):
    evaluation = score_files(bright_predictor(), *files)
    result, roc = evaluation.scores.compute(), evaluation.roc.compute()
    assert (result.images, result.targets, result.detected, result.false_alarm_pixels) == (4, 3, 2, 4)
    assert (result.intersection, result.union) == (9 + 4, 9 + 4 + 9 + 4)
    assert result.pixels == 3 * 2000 + 600
    assert [score.name for score in evaluation.scores.images] == ["a", "b", "c", "d"]
    dim = roc.thresholds < probability_of(DIM)
    assert (roc.pd[dim & (roc.thresholds > 0.01)] == 1).all()
    assert roc.pd[np.flatnonzero(~dim)[0]] == 2 / 3
    # The false alarm outlives its threshold nowhere.
    assert (roc.fa[roc.thresholds > probability_of(160) + 1e-6] == 0).all()
    assert evaluation.skipped == []


def test_threshold_and_convention_are_obeyed(files):
    low = score_files(bright_predictor(), *files, threshold=0.4).scores.compute()
    assert (low.detected, low.false_alarm_pixels) == (3, 4)
    high = score_files(bright_predictor(), *files, threshold=0.97).scores.compute()
    assert (high.detected, high.false_alarm_pixels) == (2, 0)
    theirs = score_files(bright_predictor(), *files, convention=DNANET)
    assert theirs.scores.compute().convention == theirs.roc.compute().convention == "dnanet"


def test_images_in_memory_score_as_the_files_do(files):
    images, masks = files
    samples = [(stem, read_image(images[stem]), read_mask(masks[stem])) for stem in images]
    seen: list[Case] = []
    roc = RocScores()
    scores = score_network(bright_predictor(), iter(samples), roc=roc, callback=seen.append)
    by_file = score_files(bright_predictor(), *files)
    assert scores.compute() == by_file.scores.compute()
    np.testing.assert_array_equal(roc.total.at, by_file.roc.total.at)
    assert [case.name for case in seen] == list(images)
    for case, (_, image, truth) in zip(seen, samples, strict=True):
        assert case.image is image
        assert case.truth is truth
        assert case.score == score_image(case.probability > 0.5, truth, case.name)
    with pytest.raises(InputError, match="b: the prediction is 50x40 but the truth 20x30"):
        score_network(bright_predictor(), [("b", samples[0][1], samples[1][2])])


def test_bad_files_are_left_out_and_named(files, data):
    images, masks = files
    images["b"].write_bytes(b"no image")
    Image.new("L", (5, 5)).save(masks["c"])
    del masks["d"]
    evaluation = score_files(bright_predictor(), images, masks)
    assert [score.name for score in evaluation.scores.images] == ["a"]
    reasons = {item.file.split("/")[-1]: item.why for item in evaluation.skipped}
    assert set(reasons) == {"b.png", "c.png", "d.png"}
    assert "5x5" in reasons["c.png"]
    assert "no mask" in reasons["d.png"]


def run(data, *more: object) -> int:
    argv = ["evaluate", "--checkpoint", data / "best.pt"]
    argv += ["--images", data / "images", "--masks", data / "masks"]
    return main([str(word) for word in [*argv, *more]])


@pytest.fixture
def bright(monkeypatch, data):
    (data / "best.pt").write_bytes(b"weights")
    monkeypatch.setattr("mclc_gpu.detect.opening.load_checkpoint", bright_checkpoint)


def test_command(data, bright, capsys, tmp_path):
    numbers, curve, report = tmp_path / "scores.json", tmp_path / "roc.png", tmp_path / "report"
    assert run(data, "--json", numbers, "--roc", curve, "--out", report) == 0
    content = json.loads(numbers.read_text())
    assert content["pd"] == pytest.approx(2 / 3)
    assert content["categories"]["point"]["targets"] == 3
    assert content["skipped"] == 0
    assert len(content["roc"]["fa"]) == len(content["roc"]["thresholds"]) == 273
    assert min(Image.open(curve).size) > 300
    shown = capsys.readouterr().out
    assert "highest F1" in shown
    assert str(report / "report.md") in shown
    names = {"report.md", "images.csv", "scores.json", "roc.png", "worst.png", "best.png"}
    assert {path.name for path in report.iterdir()} == names
    text = (report / "report.md").read_text()
    assert "| 0.5000 |" in text
    assert "| training.lr.first | 0.05 |" in text
    rows = (report / "images.csv").read_text().splitlines()
    assert rows[1] == f"a,{9 / 13:.6f},1,1,4,9,13"
    assert rows[3] == "c,,0,0,0,0,0"
    assert run(data, "--out", report) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(data, "--out", report, "--overwrite", "--threshold", "0.97") == 0
    assert (report / "images.csv").read_text().splitlines()[1] == "a,1.000000,1,1,0,9,9"


def test_command_reports_what_it_left_out(data, bright, capsys):
    (data / "images" / "b.png").write_bytes(b"no image")
    names = data / "list.txt"
    names.write_text("a\nb\nghost\n")
    assert run(data, "--list", names) == 0
    assert run(data, "--list", names, "--strict") == 1
    shown = capsys.readouterr()
    assert "1 images" in shown.out
    assert "ghost" in shown.err
    assert "b.png" in shown.err
    names.write_text("b\n")
    assert run(data, "--list", names) == 2


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--threshold", "1.5"], ["--threshold", "1.5"]),
        (["--threshold", "nan"], ["--threshold", "nan"]),
        (["--tile", "64", "--overlap", "40"], ["--tile 64", "--overlap 40"]),
        (["--device", "tpu"], ["device", "tpu"]),
        (["--masks", "nowhere"], ["nowhere"]),
        (["--list", "missing.txt"], ["missing.txt"]),
    ],
)
def test_bad_arguments_end_with_two_and_one_line(data, bright, capsys, more, named):
    assert run(data, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in named)


def test_a_file_that_is_no_checkpoint_is_named(data, capsys):
    (data / "best.pt").write_bytes(b"no weights")
    assert run(data, "--checkpoint", data / "best.pt") == 2
    assert "best.pt" in capsys.readouterr().err


# Cases


def case(name: str, found: int, wrong: int = 0, size: tuple[int, int] = (200, 300)) -> Case:
    """A target of 10 px at row 20, `found` of them predicted; `wrong` px of false alarm at row 150."""
    truth, probability = np.zeros(size, bool), np.zeros(size, np.float32)
    truth[20, 30:40], probability[20, 30 : 30 + found] = True, 1
    if wrong:
        probability[150, 200 : 200 + wrong] = 1
    score = score_image(probability > 0.5, truth, name)
    return Case(name, np.arange(truth.size, dtype=np.float32).reshape(size), truth, probability, score)


def test_the_worst_and_best_images_are_kept():
    extremes = Extremes(keep=3)
    empty = np.zeros((8, 8), bool)
    extremes(Case("empty", empty, empty, np.zeros((8, 8), np.float32), score_image(empty, empty)))
    for number, found in enumerate((5, 10, 0, 7, 10, 0, 2)):
        extremes(case(f"{found}-{number}", found, wrong=3 * (number == 5)))
    assert [case.name for case in extremes.worst()] == ["0-5", "0-2", "2-6"]
    assert [case.name for case in extremes.best()] == ["10-1", "10-4", "7-3"]
    assert Extremes().worst() == []


def test_a_window_shows_where_it_went_wrong():
    extremes = Extremes()
    extremes(case("alarm", 10, wrong=8))
    (shown,) = extremes.worst()
    assert shown.truth.shape == shown.image.shape == shown.probability.shape == (48, 48)
    assert np.count_nonzero(shown.probability) == 8
    assert not shown.truth.any()
    assert shown.image[0, 0] == 126 * 300 + 180
    whole = Extremes()
    whole(case("found", 10))
    assert np.count_nonzero(whole.best()[0].truth) == np.count_nonzero(whole.worst()[0].truth) == 10
    assert extremes.best()[0].truth.sum() == 10  # the best is shown where it went right
    nothing = Extremes()
    image, probability = case("no target", 0, 4).image, case("no target", 0, 4).probability
    bare = np.zeros(image.shape, bool)
    nothing(Case("no target", image, bare, probability, score_image(probability > 0.5, bare)))
    assert nothing.best()[0].probability.sum() == nothing.worst()[0].probability.sum() == 4
    small = Extremes()
    small(case("small", 3, size=(21, 44)))
    assert small.worst()[0].truth.shape == (21, 44)
    large = Extremes()
    large(case("large", 10, wrong=90))
    assert large.worst()[0].truth.shape == (48, 106)


@pytest.mark.parametrize("cases", [[], [case("a", 4)], [case("b", 4, 30), case("c", 10), case("d", 0)]])
def test_sheet(cases):
    sheet = case_sheet(cases, "Lowest IoU")
    assert sheet.mode == "RGB"
    rows = max(-(-len(cases) // 2), 1)
    assert sheet.size[1] == case_sheet([], "Lowest IoU").size[1] + 180 * (rows - 1)


# Reports


def test_a_curve_without_targets_is_drawn(tmp_path):
    roc = RocScores()
    plot_roc(roc.compute(), tmp_path / "none.png")
    roc.update(np.full((8, 8), 0.3, np.float32), np.zeros((8, 8), bool))
    plot_roc(roc.compute(), tmp_path / "empty.png", "title")
    assert Image.open(tmp_path / "empty.png").size == Image.open(tmp_path / "none.png").size


def test_curves_of_a_training_run(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("epoch,lr,loss,iou,fa\n1,0.05,0.9,,\n2,0.04,0.7,0.3,0.0001\n3,0.01,0.6,0.5,0.00001\n")
    plot_curves(table, tmp_path / "curves.png", "run")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000
    settings = {"a": {"b": 1}, "c": {}}
    path = write_report(tmp_path / "report", title="Run", metrics_csv=table, settings=settings)
    assert {p.name for p in path.parent.iterdir()} == {"report.md", "curves.png"}
    text = path.read_text()
    assert text.startswith("# Run\n")
    assert "| a.b | 1 |" in text
    assert "| c | {} |" in text
    table.write_text("epoch,lr,loss\n")
    for bad in (table, tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InputError, match=str(bad)):
            plot_curves(bad, tmp_path / "curves.png")
