"""The benchmark of scale on a few frames: its counts and comparisons."""

import json
import math

import pytest

from mclc_gpu.bench.scale import Reading, digests, growth, main, write_frames
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import load_points


def test_growth_is_that_of_a_line():
    readings = [Reading("run", float(i), 10 * i, 500 + 0.3 * i) for i in range(100)]
    assert growth(readings, 1000) == pytest.approx(0.3 * 75)
    flat = [Reading("run", float(i), 10 * i, 500 if i > 20 else 0) for i in range(100)]
    assert growth(flat, 1000) == pytest.approx(0, abs=1e-6)
    assert math.isnan(growth(readings[:10], 1000))


def test_frames_beyond_the_different_ones_are_links(tmp_path):
    write_frames(tmp_path, 7, different=3)
    write_frames(tmp_path, 7, different=3)
    files = find_files(tmp_path / "images")
    assert len({path.stat().st_ino for path in files.values()}) == 3
    points = load_points(tmp_path / "points.csv")
    assert list(points) == list(files)
    assert points["frame_0000000"] == points["frame_0000003"] == points["frame_0000006"]
    assert any(points.values())


@pytest.mark.slow
def test_both_runs_are_compared(tmp_path, capsys):
    assert main(["--count", "9", "--kills", "0", "--shards", "4", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "scale.json").read_text())
    assert summary["equal"] is True
    assert summary["files"] == 3 + 3  # archives, tables, image
    assert summary["peak_mib"] > 0
    assert "equal                True" in capsys.readouterr().out
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    before = digests(tmp_path / "killed")
    archive = tmp_path / "killed" / "shards" / "000002.tar"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    assert digests(tmp_path / "killed") != before
