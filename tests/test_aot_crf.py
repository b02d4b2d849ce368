"""The kernel of the dense CRF compiles ahead of time for A100 and H100, and keeps everything in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert len(table) == 8
    for name, used in table.items():
        print(f"{name}: {used}")
        assert used["spills"] == 0, name
        # 20 warps of 32 threads fit 65,536 registers: five programs at a time hide what loads cost.
        assert 0 < used["registers"] <= 102, name
