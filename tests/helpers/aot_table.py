"""Ahead-of-time compilation in a process of its own: the interpreter, on in the tests, cannot compile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SCRIPT = """
import json, sys
from mclc_gpu.bench.resources import inner_loops, resources
print(json.dumps([table([sys.argv[1]], sys.argv[2:]) for table in (resources, inner_loops)]))
"""


def compiled_rows(
    architecture: str, *kernels: str, most_spilled: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of `resources` and of `inner_loops` for some kernels, and print the former.

    Fails unless every kernel compiles and keeps its values in registers, but for `most_spilled` bytes.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _SCRIPT, architecture, *kernels]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, loops = json.loads(done.stdout)
    assert {row["kernel"] for row in rows} == set(kernels)
    for row in rows:
        print(*row.values())
        assert row["failure"] is None, row
        assert row["spills"] <= most_spilled, row
        assert row["registers"] > 0, row
    return rows, loops
