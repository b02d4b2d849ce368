"""The suite `gpu` where there is no CUDA device: every part runs to its end on a recorded one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import run_compiling

from mclc_gpu.bench.gpu import COLUMNS, main, run_part, table
from mclc_gpu.bench.gpu_parts import ABSENT, PARTS
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.networks.zoo import NETWORKS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device: `make gpu-check`")
    out = tmp_path_factory.mktemp("gpu")
    chosen = ["--suite", "gpu", "--quick", "--device", "cpu", "--out", str(out)]
    run_compiling("-m", "mclc_gpu", "bench", *chosen, MCLC_NUAA="")
    return out / "gpu.json"


@pytest.fixture(scope="module")
def summary(written: Path) -> dict[str, Any]:
    return json.loads(written.read_text())


@pytest.mark.slow
def test_every_part_ran_and_nothing_is_claimed(summary: dict[str, Any]) -> None:
    rows = summary["rows"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(PARTS)
    for row in rows:
        assert list(row) == list(COLUMNS)
        assert "failed" not in row["note"], row
        assert (row["value"], row["share"], row["ratio"]) == (None, None, None)
        assert ABSENT in row["note"], row
    assert [row["note"].startswith("equal") for row in rows if row["part"] == "agreement"] == [True] * 4
    works = " ".join(row["work"] for row in rows)
    assert all(f"training {name}" in works for name in NETWORKS)


def test_every_kernel_is_launched_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, 0, size=(64, 64))
    folders = {name: str(tmp_path / name) for name in ("images", "masks")}
    given = {"device": "", **folders, "names": None, "quick": True}
    rows = run_part("kernels", given, 300, tmp_path / "rows.jsonl")
    assert all(ABSENT in str(row["note"]) for row in rows), rows
    works = " ".join(str(row["work"]) for row in rows)
    for kernel in (
        *("prepare", "cluster", "segment", "sums", "components", "assign", "update", "connectivity"),
        *("lab", "noise"),
    ):
        assert f": {kernel}" in works


@pytest.mark.slow
def test_the_table_of_a_file_is_printed(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(written)])
    shown = capsys.readouterr().out
    assert shown.startswith("no CUDA device")
    assert "| part " in shown
    assert "launches: trials" in shown


def test_values_and_shares_are_shown() -> None:
    row = {"part": "kernels", "work": "w", "value": 1.5, "unit": "ms", "share": 0.25, "bound": "bytes"}
    lines = table([{**row, "peer": None, "ratio": None, "note": "n"}]).splitlines()
    assert lines[2] == "| kernels | w    |     1.50 |   ms |         25.0% | bytes | n |"


def test_a_part_that_fails_or_hangs_is_a_row(tmp_path: Path) -> None:
    given = {
        "device": "",
        "images": str(tmp_path / "none"),
        "masks": str(tmp_path),
        "names": None,
        "quick": True,
    }
    (row,) = run_part("tests", given, 60, tmp_path / "rows.jsonl")
    assert (row["part"], row["value"]) == ("tests", None)
    assert "failed with code 1" in str(row["note"])
    assert "none" in str(row["note"])
    (row,) = run_part("tests", given, 5, tmp_path / "rows.jsonl")
    assert row["note"] == "left out: no time"
