"""The kernels that score masks compile ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_table

_SCRIPT = """
import json
from mclc_gpu.kernels import components_triton, scoring_triton
from mclc_gpu.kernels.aot import resources

types = dict.fromkeys("p_scales p_weights p_shares p_sums p_totals".split(), "*fp64")
types |= dict.fromkeys("p_geometry p_parts p_offsets".split(), "*i64")
types |= dict.fromkeys("p_masks p_join".split(), "*u8") | {"p_scores": "*fp32", "mask_pitch": "i64"}
types |= dict.fromkeys("targets masks plane near max_area".split(), "i32")
table = {}
for arch in (80, 90):
    for pixels, data in ((64, "*u8"), (4096, "*u8"), (4096, "*fp32")):
        block, _, warps = components_triton.block_shape(pixels, 64)
        kernel = scoring_triton.scoring_kernel, types | {"p_data": data}, {"PIXELS": block}
        table[f"{pixels} pixels of {data}, {warps} warps, sm_{arch}"] = resources(*kernel, arch, warps)
    table[f"shares, sm_{arch}"] = resources(scoring_triton.shares_kernel, types, {}, arch, 4)
print(json.dumps(table))
"""


def test_scoring_compiles_without_spills() -> None:
    table = compiled_table(_SCRIPT)
    assert len(table) == 8
    for name, used in table.items():
        # 16 warps can have 128 at most.
        assert used["registers"] <= (80 if name.startswith("64") else 128), name
