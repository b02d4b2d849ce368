"""The Triton kernels compile ahead of time for A100 and H100, and keep everything in registers."""

import pytest
from aot_table import compiled_table

from mclc_gpu.kernels import aot, backend, connectivity_triton

_SCRIPT = """
import json
from mclc_gpu.kernels import connectivity_triton, slic_triton
from mclc_gpu.kernels.aot import resources

types = dict.fromkeys("p_order p_labels p_active p_changed p_unreached p_counts p_moved".split(), "*i32")
types |= dict.fromkeys("p_features p_centres".split(), "*fp32") | {"p_first": "*i64"}
types |= dict.fromkeys("height width min_size max_size n_centres".split(), "i32")
types |= dict.fromkeys("cell_y cell_x cells_y cells_x".split(), "i32")
types |= dict.fromkeys("weight tolerance".split(), "fp32") | dict.fromkeys("p_state p_queue".split(), "*i16")
tile = {"TILE_Y": slic_triton._TILE_Y, "TILE_X": slic_triton._TILE_X}
launches = {"connectivity": (connectivity_triton.connectivity_kernel, {"LANES": 32}, 1)}
for channels, up in ((1, 1), (3, 4)):
    block = {"CHANNELS_UP": up, "BLOCK": slic_triton._UPDATE_BLOCK}
    launches[f"assign, {channels} channels"] = (slic_triton.assign_kernel, {"CHANNELS": channels, **tile}, 4)
    launches[f"update, {channels} channels"] = (slic_triton.update_kernel, {"CHANNELS": channels, **block}, 4)
table = {
    f"{name}, sm_{arch}": resources(kernel, types, constants, arch, num_warps)
    for arch in (80, 90)
    for name, (kernel, constants, num_warps) in launches.items()
}
print(json.dumps(table))
"""


def test_kernels_compile_without_spills() -> None:
    table = compiled_table(_SCRIPT)
    assert len(table) == 10
    for name, used in table.items():
        assert used["registers"] <= 128, name


@pytest.mark.skipif(not backend.interpreted(), reason="kernels are compiled on this machine")
def test_interpreted_kernel_is_refused() -> None:
    with pytest.raises(RuntimeError, match="without TRITON_INTERPRET"):
        aot.resources(connectivity_triton.connectivity_kernel, {}, {}, 90)
