"""Labeling by several processes: the files of one, whatever was interrupted in between."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mclc_gpu.cli.main import main
from mclc_gpu.data.synthetic import write_dataset

LABEL = ["-m", "mclc_gpu", "label"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FILES = ("masks/*.png", "tpm/*.png", "points.csv", "overview.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 30, 0, size=(64, 80), test_share=0)
    (root / "images" / "synthetic_00007.png").write_bytes(b"no image")
    return root


def command(data: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    given = [
        "--images",
        data / "images",
        "--points-from-masks",
        data / "masks",
        "--out",
        out,
        "--preset",
        "paper",
        "--trials",
        "8",
    ]
    return [sys.executable, *(TORCHRUN if processes > 1 else []), *LABEL, *map(str, given), *more]


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for pattern in FILES for p in sorted(out.glob(pattern))}


def finish(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "labels"
    assert main(command(data, out)[len([sys.executable, "-m", "mclc_gpu"]) :]) == 0
    assert len(content(out)) == 2 * 29 + 2
    return out


def test_two_processes_write_the_files_of_one(data: Path, alone: Path, tmp_path: Path) -> None:
    printed = finish(command(data, tmp_path / "two", processes=2))
    assert printed.count("29 images") == 1
    assert content(tmp_path / "two") == content(alone)
    one, two = (json.loads((out / "label.json").read_text()) for out in (alone, tmp_path / "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in ("images", "targets", "trials", "settings", "fingerprint", "skipped", "estimated_categories"):
        assert one[key] == two[key]
    assert not list((tmp_path / "two").glob("*.jsonl"))


def ranks_of(torchrun: int) -> dict[str, int]:
    """Process numbers of the ranks that torchrun started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue  # it has ended
        names = [name.removeprefix(b"RANK=").decode() for name in variables if name.startswith(b"RANK=")]
        if parent == torchrun and names:
            found[names[0]] = int(path.name)
    return found


@pytest.mark.slow
def test_a_killed_process_ends_the_run_of_two_which_goes_on_in_one(
    data: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    process = subprocess.Popen(
        command(data, out, processes=2), stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "label.partial.jsonl").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        ranks = ranks_of(process.pid)
        os.kill(ranks["1"], signal.SIGKILL)
        assert process.wait(60) != 0
        assert ranks_of(process.pid) == {}
        assert not Path(f"/proc/{ranks['0']}").exists()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finish(command(data, out, "--resume"))
    assert content(out) == content(alone)
    assert not list(out.glob("*.jsonl"))


@pytest.mark.slow
def test_an_error_is_every_process_s(data: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "true.png").write_bytes(b"someone's")
    done = subprocess.run(command(data, tmp_path, processes=2), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "was not written by a label run and stays" in done.stderr
    assert (tmp_path / "masks" / "true.png").read_bytes() == b"someone's"
