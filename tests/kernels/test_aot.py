"""The Triton kernels compile ahead of time for A100, H100 and MI300, and keep everything in registers."""

import pytest
from aot_table import compiled_rows

from mclc_gpu.bench import resources as aot
from mclc_gpu.bench.resources import inner_bodies, resident, resources
from mclc_gpu.kernels import backend, connectivity_triton

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


def test_kernels_compile_without_spills() -> None:
    rows, loops = compiled_rows("connectivity", "slic assign", "slic update")
    assert len(rows) == 10
    assert len(loops) == 6
    for row in rows:
        assert row["registers"] <= 128, row


def test_kernels_compile_for_amd() -> None:
    rows, loops = compiled_rows("connectivity", "color", architectures=["gfx942"])
    assert [row["kernel"] for row in rows] == ["connectivity", "color"]
    assert loops == []


@pytest.mark.skipif(not backend.interpreted(), reason="kernels are compiled on this machine")
def test_interpreted_kernel_is_refused() -> None:
    with pytest.raises(RuntimeError, match="without TRITON_INTERPRET"):
        aot.machine_code(connectivity_triton.connectivity_kernel, {}, {}, "sm_90")
    with pytest.raises(RuntimeError, match="without TRITON_INTERPRET"):
        resources()


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
