"""The kernel of the Monte Carlo trials compiles ahead of time for A100 and H100 without register spills."""

from aot_table import compiled_table

_SCRIPT = """
import json
from mclc_gpu.kernels import trials_triton
from mclc_gpu.kernels.aot import resources

types = dict.fromkeys("p_geometry p_items".split(), "*i64") | dict.fromkeys("p_state p_queue".split(), "*i16")
types |= dict.fromkeys("p_grid p_centres".split(), "*fp32") | dict.fromkeys("p_data p_masks".split(), "*u8")
types |= dict.fromkeys("items state_size queue_size first_trial bound iterations".split(), "i32")
types |= dict.fromkeys("sigma scale tolerance".split(), "fp32")
types |= {"p_counts": "*i32", "p_seeds": "*i32", "mask_pitch": "i64"}
constants = {"CENTRES": 16, "KIND": trials_triton.KINDS.index("salt"), "SHARED": False, "OWN_RANGE": False}
constants |= {"WINDOWED": True, "CONNECTIVITY": trials_triton.ENFORCE.value, "MASKS": False}
table = {}
for pixels in (64, 256, 512, 1024, 4096):
    block, lanes, warps = trials_triton.block_shape(pixels, 100)
    shape = {"PIXELS": block, "LANES": lanes}
    for arch in (80, 90):
        used = resources(trials_triton.trials_kernel, types, constants | shape, arch, warps)
        table[f"{pixels} pixels, {warps} warps, sm_{arch}"] = used
print(json.dumps(table))
"""


def test_trials_compile_without_spills() -> None:
    table = compiled_table(_SCRIPT)
    assert len(table) == 10
    for name, used in table.items():
        # Fewer registers mean more programs at a time: see the kernel's window_pixels.
        assert used["registers"] <= {"64": 80, "256": 144, "512": 224}.get(name.split()[0], 240), name
