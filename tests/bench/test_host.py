"""The recorder in the place of a CUDA device, and the suite that counts the work of the host with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from compiling import run_compiling

from mclc_gpu.bench.recorder import recorded_device

_RECORDS = """
import numpy as np, torch
from mclc_gpu.bench.recorder import DEVICE, recorded_device
from mclc_gpu.kernels.backend import download, launching, processors, synchronize, upload
from mclc_gpu.kernels.noise import add_noise

def refused(work):
    try:
        work()
    except (RuntimeError, TypeError, ValueError):
        return True
    return False

with recorded_device() as record:
    a, b = upload(DEVICE, torch.arange(6.0), torch.tensor([1, 2]))
    assert (a.device, b.is_cuda, (a * 2)[2:4].device) == (DEVICE, True, DEVICE)
    fetched = download(a, b)
    assert (record.uploads, record.downloads, sum(record.waits.values())) == ([48], [48], 0)
    assert [part.tolist() for part in fetched()] == [[0, 1, 2, 3, 4, 5], [1, 2]]
    assert record.waits == {"event": 1}

    record.clear()
    assert bool(a.sum() > 3) and int(b.max()) == 2 and a.tolist()[1] == 1 and len(a.cpu()) == 6
    assert (record.waits.total(), len(record.downloads), record.operations["sum"]) == (4, 4, 1)
    record.clear()
    torch.zeros(3).to(DEVICE), torch.tensor([1, 2], device=DEVICE), a[torch.tensor([0])]
    assert (record.uploads, record.waits.total()) == ([12, 16, 8], 3)
    record.clear()
    a.nonzero(), a[a > 2], torch.repeat_interleave(b, b), synchronize(DEVICE)
    assert record.waits.total() == 4
    record.clear()
    a[1:].view(5, 1).shape, torch.empty(5, device=DEVICE), a.numel()
    assert not record.operations and not record.waits
    assert refused(lambda: a + torch.ones(6)) and refused(a.numpy) and refused(lambda: np.asarray(a))

    values, target = torch.ones(1, 3, 4, 4).to(DEVICE), torch.zeros(1, dtype=torch.int64).to(DEVICE)
    record.clear()
    for _ in range(2):
        with launching(DEVICE):
            add_noise(values, target, target, 0)
    assert [launch.kernel for launch in record.launches] == ["noise"] * 2
    assert (len(record.compiled), processors(DEVICE)) == (1, 132)
    assert refused(lambda: add_noise(values, target.cpu(), target, 0))
"""


def test_copies_waits_and_launches_are_recorded() -> None:
    run_compiling("-c", _RECORDS)


def test_interpreted_kernels_are_not_recorded() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), recorded_device():
        pass


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Return what the suite prints and writes for little work."""
    out = tmp_path_factory.mktemp("host")
    shown = run_compiling(
        "-m", "mclc_gpu", "bench", "--suite", "host", "--quick", "--out", str(out), MCLC_NUAA=""
    )
    return shown, json.loads((out / "host.json").read_text())


def test_the_suite_writes_times_and_counts_of_both_presets(quick: tuple[str, dict[str, Any]]) -> None:
    shown, written = quick
    for name in ("default", "paper"):
        costs = written[name]
        stages = costs["host_ms"]
        assert list(stages) == ["place", "cluster", "refine", "compose", "total"]
        assert 0 < max(stages.values()) == stages["total"]
        assert costs["launches"] == sum(costs["by_kernel"].values()) > 0
        assert costs["waits"] == sum(costs["by_wait"].values())
        assert costs["upload_bytes"] > 0 < costs["download_bytes"]
        assert costs["variants"] >= len(costs["by_kernel"])
    assert written["frames"].startswith("synthetic frames")
    assert "| upload bytes" in shown


_COUNTS = """
import json, sys, torch
from pathlib import Path
from mclc_gpu.bench.dataset import open_context
from mclc_gpu.bench.host import HostScale, host_suite

folders = [Path(argument) for argument in sys.argv[1:]] or [None] * 3
with open_context(*folders, torch.device("cpu"), False) as context:
    print(json.dumps(host_suite(context.frames, HostScale(repeats=1, chunks=8, sampled=0))))
"""
# At most, for a chunk of images of which every class of windows is part.
MOST = {"upload_bytes": 3_000_000, "launches": 6, "waits": 3, "unready": 0}


def check_counts(costs: dict[str, dict[str, Any]]) -> None:
    for name, own in costs.items():
        assert {what: own[what] for what, most in MOST.items() if own[what] > most} == {}, (name, own)


def test_a_chunk_needs_few_bytes_launches_and_waits_and_no_new_variant() -> None:
    check_counts(json.loads(run_compiling("-c", _COUNTS)))


@pytest.mark.slow
def test_so_does_a_real_data_set(nuaa: Path) -> None:
    folders = (nuaa / "images", nuaa / "masks", nuaa / "splits" / "train.txt")
    check_counts(json.loads(run_compiling("-c", _COUNTS, *map(str, folders))))
