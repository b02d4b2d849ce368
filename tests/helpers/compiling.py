"""Commands in a process that can compile Triton kernels: the interpreter, on in the tests, cannot."""

import os
import subprocess
import sys
from pathlib import Path


def run_compiling(*command: str, **variables: str) -> str:
    """Run Python with some arguments and environment variables; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), **variables}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
