"""The kernel of the dense CRF compiles ahead of time for A100 and H100, and keeps everything in registers."""

from aot_table import compiled_table

_SCRIPT = """
import json
from mclc_gpu.kernels import crf_triton
from mclc_gpu.kernels.aot import resources

types = dict.fromkeys("p_colours p_values p_energy p_after p_out".split(), "*fp32")
types |= dict.fromkeys("p_windows p_items".split(), "*i64")
types |= {"unit": "fp32", "sharper": "fp32", "reach": "i32"}
block = {"QUERIES": crf_triton._QUERIES, "KEYS": crf_triton._KEYS, "BILATERAL": True, "SMOOTH": True}
table = {
    f"{'norms' if norm else 'messages'}, {channels} channels, sm_{arch}": resources(
        crf_triton.sums_kernel, types, block | {"CHANNELS": channels, "NORM": norm}, arch, crf_triton._WARPS,
        enable_fp_fusion=True,
    )
    for arch in (80, 90)
    for channels in (1, 3)
    for norm in (True, False)
}
print(json.dumps(table))
"""


def test_kernel_compiles_without_spills() -> None:
    table = compiled_table(_SCRIPT)
    assert len(table) == 8
    for name, used in table.items():
        # 20 warps of 32 threads fit 65,536 registers: five programs at a time hide what loads cost.
        assert used["registers"] <= 102, name
