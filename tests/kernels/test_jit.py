"""The cache of machine code follows the sources it was compiled from, all of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mclc_gpu.kernels import jit_cpu

CALLEE = "from jit_cpu import compiled\n@compiled()\ndef inner(x):\n    return x + {}\n"
CALLER = """
from callee_cpu import inner
from jit_cpu import compiled
@compiled()
def outer(x):
    return inner(x)
"""
RUN = """
import numba
from caller_cpu import outer
print(outer(10), sum(outer.stats.cache_hits.values()), repr(numba.config.CACHE_DIR))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(Path(jit_cpu.__file__), folder)
    (folder / "callee_cpu.py").write_text(CALLEE.format(1))
    (folder / "caller_cpu.py").write_text(CALLER)
    return folder


def result(package: Path, **variables: str) -> list[str]:
    """Value of outer(10), cache hits and numba's cache folder after the import, from a process of its own."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=package, env=kept | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_change_in_one_file_reaches_callers_in_another(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert result(package, NUMBA_CACHE_DIR=cache) == ["11", "0", repr(cache)]
    assert result(package, NUMBA_CACHE_DIR=cache) == ["11", "1", repr(cache)]
    (package / "callee_cpu.py").write_text(CALLEE.format(2))
    assert result(package, NUMBA_CACHE_DIR=cache) == ["12", "0", repr(cache)]


def test_the_users_cache_folder_is_the_default(package: Path, tmp_path: Path) -> None:
    assert result(package, XDG_CACHE_HOME=str(tmp_path / "xdg")) == ["11", "0", "''"]
    assert list((tmp_path / "xdg" / "mclc-gpu").rglob("caller_cpu.outer*.nbi"))
    assert result(package, HOME=str(tmp_path / "home")) == ["11", "0", "''"]
    assert list((tmp_path / "home" / ".cache" / "mclc-gpu").rglob("caller_cpu.outer*.nbi"))


def test_without_a_folder_to_write_nothing_is_cached(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert result(package, XDG_CACHE_HOME=str(tmp_path / "file"))[:2] == ["11", "0"]
    assert not list(tmp_path.rglob("*.nbi"))


def test_every_kernel_uses_it() -> None:
    kernels = Path(jit_cpu.__file__).parent
    direct = [
        path.name for path in kernels.glob("*.py") if "njit" in path.read_text() and path.name != "jit_cpu.py"
    ]
    assert direct == []
