"""The Triton kernels compile ahead of time for A100, H100 and MI300, and keep their values in registers."""

import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from aot_table import ROOT, built, compiled_rows, specialized_numbers

from mclc_gpu.bench.resources import inner_bodies, launches, resident, resources
from mclc_gpu.kernels import backend

_SASS = """
.L_x_1:
        /*0000*/                   FADD R0, R0, 1 ;
.L_x_2:
        /*0010*/               @P0 FMUL R1, R1, R0 ;
        /*0020*/              @!P1 BRA `(.L_x_3) ;
        /*0030*/                   FMUL.FTZ R1, R1, R0 ;
.L_x_3:
        /*0040*/               @P0 BRA `(.L_x_2) ;
        /*0050*/                   BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
"""
RELEASES = [
    line for line in (ROOT / "constraints" / "triton.txt").read_text().split("\n") if line[:1].isdigit()
]
architectures = pytest.mark.parametrize(
    "architecture", ["sm_90", pytest.param("sm_80", marks=pytest.mark.slow)]
)


@architectures
def test_trials(architecture: str) -> None:
    rows, loops = compiled_rows(architecture, "prepare", "cluster", "segment", most_spilled=16)
    # Windows of any size need the same code.
    assert [row["shape"] for row in rows] == ["8x8"] * 3 + ["gaussian"] * 3
    for row in rows:
        assert row["occupancy"] >= 0.25, row
    assert len(loops) == 4


@architectures
def test_clustering(architecture: str) -> None:
    kernels = "range", "features", "centers", "bin", "assign", "update", "connectivity"
    rows, loops = compiled_rows(architecture, *kernels)
    assert (len(rows), len(loops)) == (12, 3)
    for row in rows:
        assert row["registers"] <= 128, row


@architectures
def test_dense_crf(architecture: str) -> None:
    rows, loops = compiled_rows(architecture, "start", "sums")
    # The sums of a pass without values, and of those whose outcome is a mask or a probability.
    assert [row["kernel"] for row in rows] == ["start", "sums", "sums", "start", "sums"]
    assert len(loops) == 3
    for row in rows:
        # 20 warps of 32 threads fit 65,536 registers: five programs at a time hide what loads cost.
        assert row["registers"] <= 102, row
        assert row["programs"] >= 5, row
    for loop in loops:
        assert 10 < loop["instructions"] <= 23, loop


@architectures
def test_components(architecture: str) -> None:
    rows, _ = compiled_rows(architecture, "components", most_spilled=128)
    assert [row["shape"] for row in rows] == ["bytes", "floats"]
    for row in rows:
        assert row["warps"] == 4, row
        assert row["programs"] >= 3, row


@architectures
def test_masks(architecture: str) -> None:
    rows, _ = compiled_rows(architecture, "masks")
    assert [row["shape"] for row in rows] == ["counts", "probabilities"]
    assert all(row["registers"] <= 128 for row in rows)


def folder_of(release: str) -> Path | None:
    """Return the folder of a release of Triton, None for the installed one; skip where it is not at hand."""
    if release == metadata.version("triton"):
        return None
    folder = Path(sys.prefix) / "triton" / release
    if not folder.is_dir():
        pytest.skip(f"Triton {release} is not in {folder}: `make test` puts it there")
    return folder


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_kernel_compiles(release: str, every: bool, tmp_path: Path) -> None:
    made = built(folder_of(release), tmp_path, ("sm_80", "sm_90", "sm_100", "gfx942"), every)
    assert {line.split()[0] for line in made.splitlines()} == {"sm_80", "sm_90", "sm_100", "gfx942"}


def test_no_kernel_is_compiled_anew_for_a_number() -> None:
    # Triton makes a 1 a constant, which has no `.to`, and takes what 16 divides for a case of its own.
    assert specialized_numbers() == ""


def test_oldest_release_is_the_floor() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (floor,) = (item for item in pyproject["project"]["dependencies"] if item.startswith("triton"))
    assert f"{floor.split('>=')[1].split(';')[0]}.0" == RELEASES[0]


@pytest.mark.slow
def test_kernels_for_amd_keep_their_values_in_registers() -> None:
    kernels = (
        "prepare",
        "cluster",
        "segment",
        "assign",
        "update",
        "sums",
        "components",
        "connectivity",
        "lab",
        "noise",
    )
    compiled_rows("gfx942", *kernels, most_spilled=16)


def test_interpreted_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "interpreted", lambda: True)
    for table in (launches, resources):
        with pytest.raises(RuntimeError, match="without TRITON_INTERPRET"):
            table()


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "warps", "programs", "occupancy", "limit"),
    [
        ("sm_80", 32, 0, 4, 16, 1.0, "warps"),
        ("sm_80", 33, 0, 4, 12, 0.75, "registers"),  # 40 registers: 12 warps in each unit
        ("sm_80", 215, 0, 1, 8, 0.125, "registers"),  # two warps in each unit; 9 would fit the sum of units
        ("sm_90", 16, 0, 1, 32, 0.5, "programs"),
        ("sm_80", 32, 40 << 10, 4, 4, 0.25, "shared memory"),
        ("sm_90", 32, 40 << 10, 4, 5, 0.3125, "shared memory"),
        ("gfx942", 128, 0, 4, 4, 0.5, "registers"),
        ("sm_80", 255, 0, 16, 0, 0.0, "registers"),
    ],
)
def test_occupancy(architecture, registers, shared, warps, programs, occupancy, limit) -> None:
    assert resident(architecture, registers, shared, warps) == (programs, occupancy, limit)


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="sm_20"):
        resident("sm_20", 32, 0, 4)


def test_innermost_loops_of_machine_code() -> None:
    (body,) = inner_bodies(_SASS)
    assert body == ["FMUL", "BRA", "FMUL", "BRA"]
