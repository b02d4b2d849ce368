"""The bench command on very little work, its arithmetic, missing baselines, and bad input."""

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.bench import dataset, plan
from mclc_gpu.bench.compare import Absent, Benchmark, Contender, Result, measure, rounded
from mclc_gpu.bench.reference import PlainCrops, baselines
from mclc_gpu.bench.suites import BENCHMARKS, GROWING
from mclc_gpu.cli.main import main
from mclc_gpu.data.synthetic import write_dataset


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        argv = ["mclc-gpu", "bench", "--quick", "--suite", "label", "slic", "crf", "--device", "cpu"]
        patch.setattr("sys.argv", [*argv, "--out", str(folder)])
        assert main() == 0
    return folder


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "bench.json").read_text())


def test_the_summary_has_machine_work_and_every_run(summary: dict[str, Any]) -> None:
    assert summary["command"].startswith("mclc-gpu bench --quick --suite label slic crf --device cpu --out ")
    assert {"date", "commit", "processor", "os", "device", "seconds"} <= summary.keys()
    assert (summary["cores"] >= 1, summary["threads"] >= 1, summary["memory_bytes"] > 1 << 28) == (True,) * 3
    assert summary["versions"]["numpy"] == np.__version__
    assert summary["frames"] == "synthetic frames of 64x64: 6 images, 10 targets"
    assert list(summary["suites"]) == ["label", "slic", "crf"]
    for benchmark in (result for own in summary["suites"].values() for result in own):
        names = [contender["name"] for contender in benchmark["contenders"]]
        assert names[0].startswith("mclc-gpu")
        for contender in benchmark["contenders"]:
            assert min(contender["seconds"]) > 0
            assert contender["median_s"] == statistics.median(contender["seconds"])


@pytest.mark.slow
def test_training_is_measured(tmp_path: Path) -> None:
    argv = ["bench", "--quick", "--suite", "train", "--device", "cpu", "--out", str(tmp_path)]
    assert main(argv) == 0
    train = json.loads((tmp_path / "bench.json").read_text())["suites"]["train"]
    assert [{c["name"] for c in benchmark["contenders"]} for benchmark in train] == [
        {"mclc-gpu", "DataLoader loop"}
    ] * 2


def test_ratios_are_quotients_of_the_medians(summary: dict[str, Any], out: Path) -> None:
    with (out / "bench.csv").open(newline="") as file:
        rows = {(row["work"], row["who"]): row for row in csv.DictReader(file)}
    checked = 0
    for benchmark in (result for own in summary["suites"].values() for result in own):
        rate = {c["name"]: c["amount"] / c["median_s"] for c in benchmark["contenders"]}
        others = [c["name"] for c in benchmark["contenders"] if not c["own"]]
        for own, ratios in benchmark["ratios"].items():
            assert ratios == pytest.approx({other: rate[own] / rate[other] for other in others})
            if others:
                fastest = max(rate[other] for other in others)
                assert float(rows[benchmark["work"], own]["ratio"]) == pytest.approx(rate[own] / fastest)
                checked += 1
    assert checked >= 8


def test_the_cost_is_plotted_over_the_work(summary: dict[str, Any], out: Path) -> None:
    works = {benchmark["work"]: benchmark["size"] for benchmark in summary["cost"]}
    assert works["noise and SLIC, targets = 16, K = 2, side = 8"] == 16 * 2 * 64
    assert works["noise and SLIC, targets = 4, K = 500, side = 8"] == 4 * 500 * 64
    assert works["noise and SLIC, targets = 4, K = 2, side = 63"] == 4 * 2 * 63 * 63
    with (out / "cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["who"] for row in rows} == {"mclc-gpu", "scikit-image"}
    assert {row["grows"] for row in rows} == {"base", *GROWING}
    assert np.asarray(Image.open(out / "cost.png").convert("L")).std() > 5


def test_missing_baselines_are_named_with_how_to_install_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {"scikit-image": baselines()["scikit-image"]}
    monkeypatch.setitem(BENCHMARKS, "slic", {"single": BENCHMARKS["slic"]["320x240"]})
    monkeypatch.setattr("mclc_gpu.bench.suites.baselines", lambda: only)
    monkeypatch.setattr(dataset, "has_pydensecrf", lambda: False)
    monkeypatch.setattr("mclc_gpu.bench.suites.has_pydensecrf", lambda: False)
    chosen = ["--suite", "slic", "crf", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", *chosen]) == 0
    shown = capsys.readouterr().out
    for name, how in (
        ("OpenCV", "pip install opencv-contrib-python-headless"),
        ("fast-slic", "pip install --no-build-isolation fast-slic"),
        ("cuda-slic", "CUDA devices"),
        ("scikit-image + pydensecrf", "make reference"),
    ):
        (line,) = [line for line in shown.splitlines() if line.startswith(f"Not measured: {name}: ")]
        assert how in line
    summary = json.loads((tmp_path / "bench.json").read_text())
    (single,) = summary["suites"]["slic"]
    assert {item["name"] for item in single["absent"]} == {"OpenCV", "fast-slic", "cuda-slic"}
    assert all(result["ratios"] == {"mclc-gpu": {}} for result in summary["suites"]["crf"])
    assert not (tmp_path / "cost.png").exists()


def test_limits_are_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = {"kernel": "peak", "operations": 2.5e11, "bound": None}
    monkeypatch.setattr("mclc_gpu.bench.limits.roofline", lambda device: [peak])
    chosen = ["bench", "--suite", "limits", "--device", "cpu", "--out", str(tmp_path)]
    registers = {"kernel": "trials", "shape": "64 pixels", "registers": 62, "failure": None}
    monkeypatch.setattr("mclc_gpu.bench.resources.resources", lambda: [registers])
    assert main(chosen) == 0
    shown = capsys.readouterr().out
    assert "| peak   |   2.50e+11 |" in shown
    assert "| kernel | shape     | registers |\n" in shown
    assert (tmp_path / "roofline.csv").read_text() == "kernel,operations,bound\npeak,250000000000.0,\n"
    assert json.loads((tmp_path / "bench.json").read_text())["limits"]["resources"] == [registers]

    def interpreted() -> None:
        raise RuntimeError("decorated for the interpreter")

    monkeypatch.setattr("mclc_gpu.bench.resources.resources", interpreted)
    assert main(chosen) == 2
    assert capsys.readouterr().err.endswith("mclc-gpu: error: decorated for the interpreter\n")


def _benchmark(seconds: dict[str, list[float]], budget: float = 0.0) -> Benchmark:
    """Return a benchmark whose contenders report these times; the first is this package's."""
    runs = {name: iter(values) for name, values in seconds.items()}
    contenders = [
        Contender(name, lambda own=own: next(own), 10, own=not place)
        for place, (name, own) in enumerate(runs.items())
    ]
    return Benchmark("work", "things", contenders, budget, [Absent("gone", "not installed")])


def test_first_runs_warm_up_except_for_baselines_without_time() -> None:
    result = measure(_benchmark({"own": [9.0, 1.0], "baseline": [4.0]}))
    assert [row["rate"] for row in result.rows()] == [10, 2.5]
    runs = {"own": [9.0, 1.0, 2.0, 6.0], "baseline": [9.0, 4.0, 8.0], "other": [9.0, 9.0, 9.0]}
    result = Result(_benchmark(runs))
    result.first_round()
    result.next_round()
    assert [result.rate(baseline) for baseline in result.measured] == [10 / 1.5, 10 / 6.5, 10 / 9]
    result.next_round()
    rows = {row["who"]: row for row in result.rows()}
    assert (rows["own"]["rate"], rows["own"]["slowest"], rows["own"]["fastest"]) == (5, 10 / 6, 10)
    assert (rows["own"]["ratio"], rows["baseline"]["ratio"], rows["other"]["ratio"]) == (3, 1, 6 / 9)
    assert result.as_dict()["ratios"] == {"own": {"baseline": 3, "other": 4.5}}
    assert result.as_dict()["absent"] == [{"name": "gone", "why": "not installed"}]


def test_a_baseline_that_fails_is_reported_and_left_out() -> None:
    benchmark = _benchmark({"own": [1.0, 2.0, 3.0], "baseline": []})
    result = Result(benchmark)
    result.first_round()
    result.next_round()
    assert result.absent[1] == Absent("baseline", "failed: StopIteration: ")
    assert [row["who"] for row in result.rows()] == ["own"]
    with pytest.raises(StopIteration):
        Result(_benchmark({"own": [], "baseline": [1.0]})).first_round()


def test_a_fast_contender_runs_several_times_a_round() -> None:
    benchmark = _benchmark({"own": [0.01] * 9, "baseline": [1.0] * 9})
    result = Result(benchmark)
    result.first_round()
    result.next_round()
    assert {name: len(runs) for name, runs in result.rounds.items()} == {"own": 2 + 5, "baseline": 2}


def test_training_on_fewer_images_than_a_batch_goes_round() -> None:
    assert len(PlainCrops([(Path("image"), Path("mask"))] * 3, 0.0, 1.0, 32, 16)) == 16


def test_a_plan_scales_the_measured_rates() -> None:
    seconds = {"read": 2.0, "cluster": 6.0, "refine": 3.0, "write": 1.0, "total": 10.0}
    made = plan.make_plan(plan.Rates(100, 150, seconds, 5_000, 400, 8_192, None), 360_000)
    assert made.hours == pytest.approx(
        {"read": 2, "cluster": 6, "refine": 3, "write": 1, "sum": 12, "overlapped": 9, "measured": 10}
    )
    assert (made.bound, made.devices, made.files) == ("device", 4.5, 720_000)
    assert (made.read_bytes, made.written_bytes, made.written_blocks) == (18e6, 1.44e6, 29_491_200)
    slow_disk = plan.make_plan(plan.Rates(100, 150, seconds | {"write": 20.0}, 0, 0, 0, None), 100)
    assert (slow_disk.bound, slow_disk.devices) == ("write", 9 / 20)
    assert slow_disk.hours["overlapped"] == pytest.approx(20 / 3600)


def test_a_plan_of_ones_own_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PRESETS", ("default",))  # the other one would only take time
    write_dataset(tmp_path, 4, 0, size=(48, 64))
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    listed = ["--list", str(tmp_path / "splits" / "train.txt")]
    out = tmp_path / "out"
    chosen = ["--plan", "1000000", "--quick", "--device", "cpu", "--out", str(out)]
    assert main(["bench", *folders, *listed, *chosen]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Plan for 1,000,000 images of 0.003 megapixels")
    assert "2 images" in shown
    assert [path.name for path in out.iterdir()] == ["plan.json"]
    summary = json.loads((out / "plan.json").read_text())
    rates, made = summary["rates"]["default"], summary["plans"]["default"]
    assert rates["images"] == 2
    assert made["hours"]["measured"] == pytest.approx(rates["seconds"]["total"] * 500_000 / 3600)
    assert made["written_bytes"] == 500_000 * rates["written_bytes"] > 0
    assert "2,000,000 PNG files" in shown
    assert rounded(made["hours"]["measured"]) in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--suite", "speed"], "--suite speed: use one of label"),
        (["--images", "nowhere"], "--images and --masks belong together"),
        (["--list", "names.txt"], "--list names.txt only applies with --images"),
        (["--images", "nowhere", "--masks", "nowhere"], "nowhere: cannot be read as a folder"),
        (["--plan", "0"], "--plan 0: give 1 image or more"),
        (["--device", "tpu"], "device must be"),
        (["--images", "frames", "--masks", "frames", "--out", "frames"], "choose another --out"),
        (["--out", __file__], "not a folder"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["bench", "--quick", *more])
    except SystemExit as left:
        code = left.code
    assert code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "bench-out").exists()


def test_images_without_targets_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (32, 32)).save(tmp_path / folder / "a.png")
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    assert main(["bench", *folders, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"mclc-gpu: error: {tmp_path / 'masks'}: no mask holds a target; check the folder\n"
    )


def test_numbers_are_shown_with_three_digits() -> None:
    cells = [2e7, 1234.5, 12.345, 1.2345, 0.12345, 0.00012345, 0.0, math.nan, None, 12345, "text"]
    assert [rounded(cell) for cell in cells] == [
        *("2.00e+07", "1,234", "12.3", "1.23", "0.123", "1.23e-04", "0.000", "", "", "12,345", "text")
    ]
