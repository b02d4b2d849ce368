"""Ahead-of-time compilation in a process of its own: the interpreter, on in the tests, cannot compile."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SCRIPT = """
import json, sys
from mclc_gpu.bench.resources import inner_loops, resources
print(json.dumps([table(sys.argv[2:], sys.argv[1].split(",")) for table in (resources, inner_loops)]))
"""


def compiled_rows(
    *kernels: str, architectures: Sequence[str] = ("sm_80", "sm_90")
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the resource report and of the inner loops, for some kernels.

    Prints the report, and fails unless every kernel compiles and keeps its values in registers.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _SCRIPT, ",".join(kernels), *architectures]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, loops = json.loads(done.stdout)
    assert {row["kernel"] for row in rows} == set(kernels)
    for row in rows:
        print(*row.values())
        assert row["failure"] is None, row
        assert row["spills"] == 0, row
        assert row["registers"] > 0, row
    return rows, loops
