"""The benchmark of the annotation server on a few frames."""

import json
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="annotate needs uvicorn")

from mclc_gpu.bench.annotate import main, quantiles
from mclc_gpu.data.synthetic import write_dataset


def test_quantiles() -> None:
    assert quantiles([1.0, 2.0, 30.0]) == {"median": 2.0, "p99": 29.44, "max": 30.0}


@pytest.mark.slow
def test_the_whole_benchmark_runs(tmp_path: Path) -> None:
    write_dataset(tmp_path, count=3, seed=0, size=(64, 64))
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    sizes = ["--clicks", "2", "--clients", "3", "--seconds", "1", "--side", "600", "--frames", "20"]
    main([*folders, "--out", str(tmp_path / "out"), *sizes])
    summary = json.loads((tmp_path / "out" / "annotate.json").read_text())
    assert (summary["crowd"]["lost"], summary["crowd"]["errors"]) == (0, [])
    assert summary["crowd"]["clicks"] > 0
    assert summary["large"]["area"] > 0
    assert summary["many"]["frames"] == 20
