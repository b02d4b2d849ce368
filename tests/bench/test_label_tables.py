"""The label tables: their rows, numbers recomputed independently, the printed values, and bad input."""

import csv
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclc_gpu.bench import label_tables
from mclc_gpu.bench.compare import markdown, shown, write_rows
from mclc_gpu.bench.dataset import Frames
from mclc_gpu.bench.label_sets import Measured, Sample, best_candidates
from mclc_gpu.bench.label_tables import SWEEPS, Setting, Sweep, measure, plot_sweep
from mclc_gpu.bench.reference import Item, Outcome
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import LabelConfig, preset
from mclc_gpu.labels.pipeline import compose, label_images
from mclc_gpu.labels.windows import draw_window, name_key
from mclc_gpu.score.metrics import Scores

SEEDS, TRIALS = 2, 4
_SECONDS = 0.25  # that the stand-in for the reference claims to take
Call = tuple[Sequence[Item], int, str, int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 6, 0, size=(80, 80))
    return root


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Replace the CPU reference by empty masks in a known time; return its calls."""
    calls: list[Call] = []

    def run(items: Sequence[Item], trials: int, refine: str, workers: int | None, seed: int) -> Outcome:
        assert workers is None
        calls.append((items, trials, refine, seed))
        masks = {item.name: np.zeros(item.image.shape[:2], np.bool_) for item in items}
        return Outcome(masks, 0, {"total": _SECONDS})

    monkeypatch.setattr(label_tables, "run", run)
    return calls


def _arguments(data: Path, out: Path, *more: str) -> list[str]:
    paths = ["--images", str(data / "images"), "--masks", str(data / "masks"), "--out", str(out)]
    return [*paths, "--seeds", str(SEEDS), "--trials", str(TRIALS), "--device", "cpu", *more]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _names(data: Path) -> list[str]:
    return sorted(path.stem for path in (data / "images").iterdir())


def _ious(data: Path, config: LabelConfig, supervision: str, jitter: float) -> list[float]:
    """Return the IoU of each seed over all images, counted in pixels from the public function's masks."""
    names = _names(data)
    images = [read_image(data / "images" / f"{name}.png") for name in names]
    truths = [read_mask(data / "masks" / f"{name}.png") for name in names]
    ious = []
    for seed in range(SEEDS):
        points = [
            points_from_mask(
                truth,
                supervision=supervision,
                jitter=jitter,
                rng=np.random.default_rng(name_key(seed, name)),
            )
            for name, truth in zip(names, truths, strict=True)
        ]
        targets = label_images(images, points, config, device="cpu", seed=seed, names=names)
        both = either = 0
        for index, truth in enumerate(truths):
            mask, _ = compose(truth.shape, [target for target in targets if target.image == index])
            both += int((mask & truth).sum())
            either += int((mask | truth).sum())
        ious.append(both / either)
    return ious


def _check_iou(row: dict[str, str], ious: list[float]) -> None:
    assert float(row["iou"]) == pytest.approx(statistics.fmean(ious), abs=1e-12)
    assert float(row["iou_sd"]) == pytest.approx(statistics.stdev(ious), abs=1e-12)


def test_makers(
    data: Path, tmp_path: Path, reference: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(data, tmp_path, "--only", "makers")
    assert label_tables.main(arguments) == 0
    rows = _rows(tmp_path / "makers.csv")
    monte_carlo = [
        f"MCLC, {method}, {refine}" for refine in ("threshold", "CRF") for method in ("K-means", "SLIC")
    ]
    assert [(row["maker"], row["supervision"], row["category"]) for row in rows] == [
        ("point label alone", "point", "not used"),
        ("GrabCut", "point", "given"),
        ("LCA, K-means", "point", "given"),
        ("LCA, SLIC", "point", "given"),
        *((maker, "point", "given") for maker in monte_carlo),
        ("preset default", "point", "given"),
        *((maker, "point", "estimated") for maker in monte_carlo),
        ("preset default", "point", "not used"),
        ("MCLC, SLIC, CRF", "multi-point", "given"),
        ("MCLC, SLIC, CRF", "scribble", "given"),
        ("MCLC, SLIC, CRF", "box", "not used"),
        *(("preset default", supervision, "not used") for supervision in ("multi-point", "scribble", "box")),
        ("GrabCut", "box", "not used"),
        ("box alone", "box", "not used"),
        ("CPU reference: MCLC, SLIC, CRF", "point", "given"),
    ]
    assert {index: row["printed"] for index, row in enumerate(rows) if row["printed"]} == {
        0: "0.0253",
        3: "0.518",
        5: "0.704",
        7: "0.763",
    }
    _check_iou(rows[5], _ious(data, preset("paper", trials=TRIALS, refine="threshold"), "point", 0.0))
    _check_iou(rows[15], _ious(data, preset("paper", trials=TRIALS), "scribble", 0.0))
    _check_iou(rows[20], _ious(data, preset("grabcut"), "box", 0.0))

    truths = [read_mask(data / "masks" / f"{name}.png") for name in _names(data)]
    targets = sum(len(points_from_mask(truth)) for truth in truths)
    assert float(rows[-1]["targets_per_s"]) == targets / _SECONDS
    assert float(rows[-1]["iou"]) == 0
    for row in rows:
        expected = float(row["targets_per_s"]) / (targets / _SECONDS)
        assert float(row["ratio_to_reference"]) == pytest.approx(expected)

    text = (tmp_path / "tables.md").read_text()
    assert shlex.join(arguments) in text
    assert f"6 images, {targets} targets" in text
    assert f"torch {torch.__version__}" in text
    assert "These values are not for the images measured here." in text
    printed = capsys.readouterr().out
    assert printed.strip() in text
    assert f"{float(rows[3]['iou']):.4f} ± {float(rows[3]['iou_sd']):.4f}" in printed


def test_the_reference_has_the_windows_of_the_published_procedure(
    data: Path, tmp_path: Path, reference: list[Call]
) -> None:
    (tmp_path / "list.txt").write_text("synthetic_00002\nsynthetic_00001")
    chosen = ["--only", "makers", "--list", str(tmp_path / "list.txt")]
    assert label_tables.main(_arguments(data, tmp_path / "out", *chosen)) == 0
    assert [(trials, refine, seed) for _, trials, refine, seed in reference] == [
        (TRIALS, "crf", 0),
        (TRIALS, "crf", 1),
    ]
    for items, _, _, seed in reference:
        assert [item.name for item in items] == ["synthetic_00002", "synthetic_00001"]
        for item in items:
            points = points_from_mask(read_mask(data / "masks" / f"{item.name}.png"))
            assert points
            assert list(item.windows) == [
                draw_window(80, 80, p.x, p.y, str(p.category), seed, item.name, target)
                for target, p in enumerate(points)
            ]


def test_makers_that_cannot_run_are_left_out_and_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> Outcome:
        raise InputError("pydensecrf is not installed")

    monkeypatch.setattr(label_tables, "run", run)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert label_tables.main(_arguments(data, tmp_path, "--only", "makers")) == 0
    rows = _rows(tmp_path / "makers.csv")
    assert {row["ratio_to_reference"] for row in rows} == {""}
    assert not [row for row in rows if row["maker"].startswith(("GrabCut", "CPU reference"))]
    text = (tmp_path / "tables.md").read_text()
    assert "GrabCut (box) is left out: GrabCut needs OpenCV" in text
    assert text.count("CPU reference: MCLC, SLIC, CRF is left out: pydensecrf is not installed") == 1


def test_sweeps(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--only", "deviation, trials"]
    assert label_tables.main(_arguments(data, tmp_path, *chosen)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("deviation.csv", "deviation.png", "trials.csv", "trials.png", "tables.md")
    }
    trials = _rows(tmp_path / "trials.csv")
    assert [(row["refinement"], row["K"]) for row in trials] == [
        (name, count) for name in ("threshold", "CRF") for count in ("1", "2", "5")
    ]
    deviation = _rows(tmp_path / "deviation.csv")
    makers = ["MCLC, category given", "MCLC, category estimated", "preset default, click alone"]
    assert [(row["labels"], row["deviation"]) for row in deviation] == [
        (name, px) for name in makers for px in ("0", "1", "1.5", "2", "3", "4", "5")
    ]
    _check_iou(deviation[11], _ious(data, preset("paper", trials=TRIALS, category="estimate"), "point", 3.0))
    _check_iou(deviation[20], _ious(data, preset("default", category="estimate"), "point", 5.0))
    text = (tmp_path / "tables.md").read_text()
    cells = [f"{float(r['iou']):.4f} ± {float(r['iou_sd']):.4f}" for r in deviation[4::7]]
    (line,) = [line for line in text.splitlines() if line.startswith("| 3 ")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["3", *cells]
    assert f"| {' | '.join(f'labels: {name}' for name in makers)} |" in text
    assert "![Number of trials](trials.png)" in text
    for name in ("deviation", "trials"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5
    assert f"trials: {tmp_path / 'trials.csv'}" in capsys.readouterr().err


def test_every_sweep_varies_what_it_says() -> None:
    settings = {name: sweep.settings(TRIALS) for name, sweep in SWEEPS.items()}
    for setting in settings["noise"]:
        assert (setting.config.trial.noise, setting.config.trial.intensity) == (setting.name, setting.x)
    for setting in settings["clusters"]:
        method = {"SLIC": "slic", "K-means": "kmeans"}[setting.name]
        assert (setting.config.trial.method, setting.config.trial.clusters) == (method, setting.x)
    for setting in settings["trials"]:
        refine = {"CRF": "crf", "threshold": "threshold"}[setting.name]
        assert (setting.config.refine, setting.config.trials) == (refine, setting.x)
    published = preset("paper", trials=TRIALS)
    for name, x in (("noise", 0.05), ("clusters", 9), ("deviation", 0)):
        assert [s.config for s in settings[name] if s.x == x].count(published) == 1
    assert len({setting.config for setting in settings["noise"]}) == len(settings["noise"])


def test_a_target_with_too_small_a_window_is_counted() -> None:
    image = np.random.default_rng(0).integers(0, 99, (40, 40), dtype=np.uint8)
    truth = np.zeros((40, 40), np.bool_)
    truth[0, 0] = truth[20:26, 20:26] = True  # the corner leaves the first a window of at most 5 x 3 pixels
    image[truth] = 250
    setting = Setting("", preset("paper", trials=2, trial={"clusters": 20}))
    sample, placed = measure(Frames(["a"], [image], [truth]), setting, 0, torch.device("cpu"))
    assert (sample.unlabeled, sample.targets, len(placed)) == (1, 1, 1)
    assert sample.of_category[0] == 0
    assert sample.of_category[1] > 0
    assert math.isnan(sample.of_category[2])


def test_means_spreads_and_rates() -> None:
    nan = math.nan
    samples = [
        Sample(0.5, (0.2, nan, 1.0), 10, 2.0, 1),
        Sample(0.7, (0.4, nan, 0.0), 10, 1.0),
        Sample(0.9, (0.6, nan, 0.5), 10, 10.0),
    ]
    measured = Measured(samples)
    assert measured.iou == pytest.approx(0.7)
    assert measured.spread == pytest.approx(0.2)
    numbers = {"iou": 0.7, "iou_sd": 0.2, "iou_point": 0.4, "iou_spot": nan, "iou_extended": 0.5}
    numbers |= {"targets_per_s": 5.0, "unlabelled": 1 / 3}
    assert measured.numbers() == pytest.approx(numbers, nan_ok=True)
    assert math.isnan(Measured(samples[:1]).spread)


def test_a_plot_shows_means_and_spreads() -> None:
    def result(name: str, x: float, *ious: float) -> tuple[Setting, Measured]:
        samples = [Sample(iou, (math.nan,) * 3, 1, 1.0) for iou in ious]
        return Setting(name, preset("default"), x=x), Measured(samples)

    results = [result("a", 1, 0.4, 0.6), result("a", 10, 0.6, 0.8), result("b", 1, 0.7), result("b", 10, 0.8)]
    sweep = Sweep(lambda trials: [], "T", "K", "L", "K", log=True)
    (axes,) = plot_sweep(sweep, results).axes
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_title("left")) == ("log", "K", "T")
    assert axes.get_legend().get_title().get_text() == "L"
    assert axes.get_legend_handles_labels()[1] == ["a", "b"]
    lines, bars = zip(*((c.lines[0], c.lines[2][0]) for c in axes.containers), strict=True)
    assert [line.get_xydata().tolist() for line in lines] == [[[1, 0.5], [10, 0.7]], [[1, 0.7], [10, 0.8]]]
    ends = [[[y for _, y in segment] for segment in bar.get_segments()] for bar in bars]
    s = 0.1 * math.sqrt(2)
    expected = [[[0.5 - s, 0.5 + s], [0.7 - s, 0.7 + s]], [[0.7, 0.7], [0.8, 0.8]]]
    np.testing.assert_allclose(ends, expected)


def test_tables_and_their_cells(tmp_path: Path) -> None:
    assert markdown(["a", "bb"], [["long", "1"]]) == "| a    | bb |\n| ---- | -: |\n| long |  1 |"
    assert [shown(cell, 2) for cell in (1234.567, 2, "x", None, math.nan)] == [
        "1,234.57",
        "2.00",
        "x",
        "",
        "",
    ]
    write_rows(tmp_path / "t.csv", [{"a": 0.1, "b": None}, {"a": math.nan, "b": "x,y"}])
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n0.1,\n,"x,y"\n'


def _write_clicks(folder: Path, data: Path) -> dict[str, list[Point]]:
    """Write single-pixel images with a click two pixels to the right of each target's; return the clicks."""
    folder.mkdir()
    clicks = {}
    for name in _names(data):
        truth = read_mask(data / "masks" / f"{name}.png")
        clicks[name] = [Point(min(p.x + 2, truth.shape[1] - 1), p.y) for p in points_from_mask(truth)]
        marks = np.zeros_like(truth)
        for click in clicks[name]:
            marks[int(click.y), int(click.x)] = True
        Image.fromarray(marks).save(folder / f"{name}.png")
    return clicks


def test_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = [tmp_path / "NUDT-SIRST", tmp_path / "own"]
    for seed, root in enumerate(roots):
        write_dataset(root, 6, seed, size=(80, 80), test_share=0.5)
        clicks = _write_clicks(root / "clicks", root)
    sets = [part for root in roots for part in ("--set", str(root))]
    more = ["--clicks", "clicks, 2", "--seeds", "2", "--trials", str(TRIALS), "--device", "cpu"]
    assert label_tables.main([*sets, *more, "--split", "test", "--out", str(tmp_path / "out")]) == 0
    rows = _rows(tmp_path / "out" / "sets.csv")
    assert [(row["set"], row["clicks"], row["published"], row["edgsp"]) for row in rows] == [
        ("NUDT-SIRST", "clicks", "0.602", "0.955"),
        ("NUDT-SIRST", "jitter 2 px", "0.602", "0.955"),
        ("own", "clicks", "", ""),
        ("own", "jitter 2 px", "", ""),
    ]
    for row in rows:
        assert (row["default_iou_sd"] == "") == (row["clicks"] == "clicks")
        assert row["paper_iou_sd"] != ""
        assert 0 < float(row["default_iou"]) <= float(row["default_oracle"]) <= 1
        assert 0 < float(row["default_confidence"]) <= 1
    names = _names(roots[1])[3:]
    images = [read_image(roots[1] / "images" / f"{name}.png") for name in names]
    scores = Scores()
    targets = label_images(images, [clicks[name] for name in names], device="cpu", names=names)
    for index, name in enumerate(names):
        mask, _ = compose((80, 80), [target for target in targets if target.image == index])
        scores.update(mask, read_mask(roots[1] / "masks" / f"{name}.png"))
    found = scores.compute()
    assert float(rows[2]["default_iou"]) == pytest.approx(found.iou)
    assert float(rows[2]["default_pd"]) == pytest.approx(found.pd)
    assert float(rows[2]["default_niou"]) == pytest.approx(found.niou)
    assert (tmp_path / "out" / "tables.md").read_text().count("| own ") == 2
    assert capsys.readouterr().out.count("| NUDT-SIRST |") == 2


def test_the_best_candidate_is_chosen_by_the_truth() -> None:
    image = np.full((40, 40), 20, np.uint8)
    image[15:25, 15:25] = 60
    image[18:22, 18:22] = 200
    core, body = image == 200, image >= 60
    for truth in (core, body):
        best = best_candidates(
            Frames(["a"], [image], [truth]), [[Point(19, 19)]], preset("default"), torch.device("cpu")
        )
        assert best == 1
    both = np.zeros_like(core)
    both[18:22, 18:26] = True  # no gray level separates it
    frames = Frames(["a"], [image], [both])
    assert best_candidates(frames, [[Point(19, 19)]], preset("default"), torch.device("cpu")) == 0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "a", "--images", "b", "--masks", "c"], "exclude each other"),
        (["--images", "b"], "no data set is named"),
        ([], "no data set is named"),
    ],
)
def test_either_several_sets_or_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert label_tables.main(["--out", str(tmp_path), "--device", "cpu", *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--presets", "default,grabcut"], "--presets 'grabcut': use some of default, paper"),
        (["--clicks", ","], "--clicks is empty"),
        (["--clicks", "nowhere"], "nowhere"),
        (["--set", "nowhere", "--clicks", "0"], "nowhere"),
    ],
)
def test_bad_sets(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert label_tables.main(["--set", str(data), "--out", str(out), "--device", "cpu", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "makers,prices"], "--only 'prices': use some of makers, noise, clusters"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--trials", "0"], "--trials is 0"),
        (["--device", "tpu"], "device must be"),
        (["--images", "nowhere"], "nowhere"),
        (["--list", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert label_tables.main(_arguments(data, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_masks_without_targets(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("L", (80, 80)).save(tmp_path / "masks" / "synthetic_00000.png")
    (tmp_path / "list.txt").write_text("synthetic_00000")
    more = ["--masks", str(tmp_path / "masks"), "--list", str(tmp_path / "list.txt")]
    assert label_tables.main(_arguments(data, tmp_path / "out", *more)) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'masks'}: no mask holds a target; check the folder\n"
