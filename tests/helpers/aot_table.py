"""Ahead-of-time compilation in a process of its own: the interpreter, on in the tests, cannot compile."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TABLES = """
import json, sys
from mclc_gpu.bench.resources import inner_loops, resources
print(json.dumps([table([sys.argv[1]], sys.argv[2:]) for table in (resources, inner_loops)]))
"""
_VARIANTS = """
import json, sys
from collections import Counter
from mclc_gpu.bench.resources import recorded
with recorded("") as launches:
    exec(sys.argv[1])
print(json.dumps(Counter(launch.kernel for launch in launches)))
"""
_BUILD = """
import sys
from aot_table import build
build(sys.argv[2:], sys.argv[1] == "True")
"""
_NUMBERS = """
from mclc_gpu.bench.resources import launches
for launch in launches():
    for p in launch.function.params:
        number = launch.signature[p.name] in ("i32", "i64", "constexpr")
        if number and not (p.is_constexpr or p.do_not_specialize):
            print(launch.kernel, p.name)
"""
# Releases of Triton before 3.6 link code for AMD by a tool of ROCm; code that compiles is not linked here.
_LINKER = """#!/bin/sh
[ "$1" = --version ] && exit
while [ "$1" != -o ]; do shift; done
: > "$2"
"""


def compiled_rows(
    architecture: str, *kernels: str, most_spilled: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of `resources` and of `inner_loops` for some kernels, and print the former.

    Fails unless every kernel compiles and keeps its values in registers, but for `most_spilled` bytes.
    """
    done = _python(_TABLES, architecture, *kernels)
    assert done.returncode == 0, done.stderr
    rows, loops = json.loads(done.stdout)
    assert {row["kernel"] for row in rows} == set(kernels)
    for row in rows:
        print(*row.values())
        assert row["failure"] is None, row
        assert row["spills"] <= most_spilled, row
        assert row["registers"] > 0, row
    return rows, loops


def variants(script: str) -> dict[str, int]:
    """Return how many variants of each kernel a script needs that calls operations with backend="triton".

    Their tensors are on the CPU, and no kernel runs.
    """
    done = _python(_VARIANTS, script)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def specialized_numbers() -> str:
    """Return kernels and names of the integer arguments for whose values Triton compiles a kernel anew."""
    done = _python(_NUMBERS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(triton: Path | None, folder: Path, architectures: Sequence[str], every: bool) -> str:
    """Compile all kernels by the Triton in a folder, or the installed one; return the names of the kernels.

    Each kernel is compiled for each architecture: in every shape, or in one shape, another for the next
    architecture.
    """
    linker = folder / "ld.lld"
    linker.write_text(_LINKER)
    linker.chmod(0o755)
    done = _python(_BUILD, str(every), *architectures, paths=[triton] if triton else [], lld=str(linker))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def build(architectures: Sequence[str], every: bool) -> None:
    """Do what `built` says in this process, and print each launch before it is compiled."""
    from mclc_gpu.bench.resources import Launch, launches

    kernels: dict[str, list[Launch]] = {}
    for launch in launches():
        kernels.setdefault(launch.kernel, []).append(launch)
    for number, architecture in enumerate(architectures):
        for own in kernels.values():
            for launch in own if every else [own[number % len(own)]]:
                print(architecture, launch.kernel, launch.shape, flush=True)
                launch.build(architecture)


def _python(
    script: str, *arguments: str, paths: Sequence[Path] = (), lld: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script in a process in which kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*paths, ROOT, Path(__file__).parent]))
    if lld:
        environment["TRITON_HIP_LLD_PATH"] = lld
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True
    )
