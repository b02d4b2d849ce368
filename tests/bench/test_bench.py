"""The bench command end to end on very little work, its arithmetic, peers that are missing, and bad input."""

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.bench import command as cost
from mclc_gpu.bench import dataset as ground
from mclc_gpu.bench import peers as slic_peers
from mclc_gpu.bench import plan
from mclc_gpu.bench.compare import Absent, Contest, Contestant, Result, measure, rounded
from mclc_gpu.bench.peers import PlainCrops
from mclc_gpu.bench.suites import SUITES
from mclc_gpu.cli.main import main
from mclc_gpu.data.synthetic import write_dataset


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mclc-gpu", "bench", "--quick", "--device", "cpu", "--out", str(folder)])
        assert main() == 0
    return folder


@pytest.fixture(scope="module")
def account(out: Path) -> dict[str, Any]:
    return json.loads((out / "bench.json").read_text())


def test_the_account_tells_machine_work_and_every_run(account: dict[str, Any]) -> None:
    assert account["command"].startswith("mclc-gpu bench --quick --device cpu --out ")
    assert {"date", "commit", "processor", "os", "device", "seconds"} <= account.keys()
    assert (account["cores"] >= 1, account["threads"] >= 1, account["memory_bytes"] > 1 << 28) == (True,) * 3
    assert account["versions"]["numpy"] == np.__version__
    assert account["frames"] == "synthetic frames of 64x64: 6 images, 10 targets"
    assert list(account["suites"]) == ["label", "slic", "crf", "train"]
    for contest in (result for own in account["suites"].values() for result in own):
        names = [contestant["name"] for contestant in contest["contestants"]]
        assert names[0].startswith("mclc-gpu")
        for contestant in contest["contestants"]:
            assert min(contestant["seconds"]) > 0
            assert contestant["median_s"] == statistics.median(contestant["seconds"])


def test_ratios_are_quotients_of_the_medians(account: dict[str, Any], out: Path) -> None:
    with (out / "bench.csv").open(newline="") as file:
        rows = {(row["work"], row["who"]): row for row in csv.DictReader(file)}
    checked = 0
    for contest in (result for own in account["suites"].values() for result in own):
        rate = {c["name"]: c["amount"] / c["median_s"] for c in contest["contestants"]}
        peers = [c["name"] for c in contest["contestants"] if not c["own"]]
        for own, ratios in contest["ratios"].items():
            assert ratios == pytest.approx({peer: rate[own] / rate[peer] for peer in peers})
            if peers:
                fastest = max(rate[peer] for peer in peers)
                assert float(rows[contest["work"], own]["ratio"]) == pytest.approx(rate[own] / fastest)
                checked += 1
    assert checked >= 8


def test_the_cost_is_plotted_over_the_work(account: dict[str, Any], out: Path) -> None:
    works = {contest["work"]: contest["size"] for contest in account["cost"]}
    assert works["noise and SLIC, targets = 16, K = 2, side = 8"] == 16 * 2 * 64
    assert works["noise and SLIC, targets = 4, K = 500, side = 8"] == 4 * 500 * 64
    assert works["noise and SLIC, targets = 4, K = 2, side = 63"] == 4 * 2 * 63 * 63
    with (out / "cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["who"] for row in rows} == {"mclc-gpu", "scikit-image"}
    assert {row["grows"] for row in rows} == {"base", *cost.GROWING}
    assert np.asarray(Image.open(out / "cost.png").convert("L")).std() > 5


def test_missing_peers_are_told_with_the_way_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = slic_peers.peers
    monkeypatch.setitem(SUITES, "slic", {"single": SUITES["slic"]["320x240"]})
    monkeypatch.setattr("mclc_gpu.bench.suites.peers", lambda: {"scikit-image": own()["scikit-image"]})
    monkeypatch.setattr(ground, "has_pydensecrf", lambda: False)
    monkeypatch.setattr("mclc_gpu.bench.suites.has_pydensecrf", lambda: False)
    chosen = ["--suite", "slic", "crf", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", *chosen]) == 0
    told = capsys.readouterr().out
    for name, way in (
        ("OpenCV", "pip install opencv-contrib-python-headless"),
        ("fast-slic", "pip install --no-build-isolation fast-slic"),
        ("cuda-slic", "CUDA devices"),
        ("scikit-image + pydensecrf", "make reference"),
    ):
        (line,) = [line for line in told.splitlines() if line.startswith(f"Not measured: {name}: ")]
        assert way in line
    account = json.loads((tmp_path / "bench.json").read_text())
    (single,) = account["suites"]["slic"]
    assert {item["name"] for item in single["absent"]} == {"OpenCV", "fast-slic", "cuda-slic"}
    assert all(result["ratios"] == {"mclc-gpu": {}} for result in account["suites"]["crf"])
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
    told = capsys.readouterr().out
    assert "| peak   |   2.50e+11 |" in told
    assert "| kernel | shape     | registers |\n" in told
    assert (tmp_path / "roofline.csv").read_text() == "kernel,operations,bound\npeak,250000000000.0,\n"
    assert json.loads((tmp_path / "bench.json").read_text())["limits"]["resources"] == [registers]

    def interpreted() -> None:
        raise RuntimeError("decorated for the interpreter")

    monkeypatch.setattr("mclc_gpu.bench.resources.resources", interpreted)
    assert main(chosen) == 2
    assert capsys.readouterr().err.endswith("mclc-gpu: error: decorated for the interpreter\n")


def _contest(seconds: dict[str, list[float]], budget: float = 0.0) -> Contest:
    """Contestants that claim these times, one after another; the first is this package's."""
    runs = {name: iter(values) for name, values in seconds.items()}
    contestants = [
        Contestant(name, lambda own=own: next(own), 10, own=not place)
        for place, (name, own) in enumerate(runs.items())
    ]
    return Contest("work", "things", contestants, budget, [Absent("gone", "not installed")])


def test_first_runs_warm_up_but_for_peers_without_time() -> None:
    result = measure(_contest({"own": [9.0, 1.0], "peer": [4.0]}))
    assert [row["rate"] for row in result.rows()] == [10, 2.5]
    runs = {"own": [9.0, 1.0, 2.0, 6.0], "peer": [9.0, 4.0, 8.0], "other": [9.0, 9.0, 9.0]}
    result = Result(_contest(runs))
    result.first_round()
    result.run(result.contest.contestants)
    assert [result.rate(peer) for peer in result.taking_part] == [10 / 1.5, 10 / 6.5, 10 / 9]
    result.run(result.contest.contestants)
    rows = {row["who"]: row for row in result.rows()}
    assert (rows["own"]["rate"], rows["own"]["slowest"], rows["own"]["fastest"]) == (5, 10 / 6, 10)
    assert (rows["own"]["ratio"], rows["peer"]["ratio"], rows["other"]["ratio"]) == (3, 1, 6 / 9)
    assert result.as_dict()["ratios"] == {"own": {"peer": 3, "other": 4.5}}
    assert result.as_dict()["absent"] == [{"name": "gone", "why": "not installed"}]


def test_a_peer_that_fails_is_told_and_left_out() -> None:
    contest = _contest({"own": [1.0, 2.0, 3.0], "peer": []})
    result = Result(contest)
    result.first_round()
    result.run(contest.contestants)
    assert result.absent[1] == Absent("peer", "failed: StopIteration: ")
    assert [row["who"] for row in result.rows()] == ["own"]
    with pytest.raises(StopIteration):
        Result(_contest({"own": [], "peer": [1.0]})).first_round()


def test_a_fast_one_runs_several_times_a_round() -> None:
    contest = _contest({"own": [0.01] * 9, "peer": [1.0] * 9})
    result = Result(contest)
    result.first_round()
    result.run(contest.contestants)
    assert {name: len(runs) for name, runs in result.rounds.items()} == {"own": 2 + 5, "peer": 2}


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
    told = capsys.readouterr().out
    assert told.startswith("Plan for 1,000,000 images of 0.003 megapixels")
    assert "2 images" in told
    assert [path.name for path in out.iterdir()] == ["plan.json"]
    account = json.loads((out / "plan.json").read_text())
    rates, made = account["rates"]["default"], account["plans"]["default"]
    assert rates["images"] == 2
    assert made["hours"]["measured"] == pytest.approx(rates["seconds"]["total"] * 500_000 / 3600)
    assert made["written_bytes"] == 500_000 * rates["written_bytes"] > 0
    assert "2,000,000 PNG files" in told
    assert rounded(made["hours"]["measured"]) in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--suite", "speed"], "invalid choice: 'speed'"),
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
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
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
