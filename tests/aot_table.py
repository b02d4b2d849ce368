"""Ahead-of-time compilation in a process of its own: the interpreter, on in the tests, cannot compile."""

import json
import os
import subprocess
import sys
from pathlib import Path


def compiled_table(script: str) -> dict[str, dict[str, int]]:
    """What `script` prints: for each kernel and architecture its registers, spills and shared memory.

    Prints the table, and fails unless every kernel keeps its values in registers.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    for name, used in table.items():
        print(f"{name}: {used}")
        assert used["spills"] == 0, name
        assert used["registers"] > 0, name
    return table
