"""The kernels of the vote of components compile ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_table

_SCRIPT = """
import json
from mclc_gpu.kernels import components_triton, gray_triton
from mclc_gpu.kernels.aot import resources

types = dict.fromkeys("p_scales p_weights p_numbers".split(), "*fp64") | {"p_join": "*u8"}
types |= dict.fromkeys("p_table p_area".split(), "*i32") | dict.fromkeys("p_shares p_tpm".split(), "*fp32")
types |= dict.fromkeys("targets items inversions plane near levels max_area".split(), "i32")
types |= {"p_geometry": "*i64", "p_images": "*i64", "map_pitch": "i64", "p_data": "*fp32"}
table = {}
for pixels, arch in ((64, 90), (4096, 80), (4096, 90)):
    block, levels, warps = components_triton.block_shape(pixels, 64)
    shape = {"PIXELS": block, "LEVELS": levels}
    used = resources(components_triton.components_kernel, types, shape, arch, warps)
    table[f"{pixels} pixels, {warps} warps, sm_{arch}"] = used
table["stretch"] = resources(gray_triton.stretch_kernel, types, {"BLOCK": gray_triton._BLOCK}, 80, 8)
print(json.dumps(table))
"""


def test_components_compile_without_spills() -> None:
    table = compiled_table(_SCRIPT)
    assert len(table) == 4
    for name, used in table.items():
        # 16 warps can have 128 at most.
        assert used["registers"] <= (176 if name.startswith("64") else 128), name
