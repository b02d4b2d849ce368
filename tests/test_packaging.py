"""The package as users get it: installed in each way, or run from a checkout.

Builds and installs use the running environment's setuptools and dependencies, so that nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [folder for folder in ("kernels", "networks", "bench") if any((ROOT / folder).glob("*.py"))]
# Names that only mclc_gpu may own; as top-level names they belong to others.
NOT_TOP_LEVEL = ["kernels", "networks", "bench", "tests"]
# Folders of a checkout that are no part of the package, nor are namespaces of it.
NOT_IN_PACKAGE = ["mclc_gpu.tests", "mclc_gpu.docs", "mclc_gpu.constraints", "mclc_gpu.mclc_gpu"]
MODULES = sorted(
    ".".join(["mclc_gpu", *path.relative_to(ROOT / base).with_suffix("").parts])
    for base, folder in [("mclc_gpu", "mclc_gpu"), *((".", folder) for folder in FOLDERS)]
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)
PROBE = f"""
import importlib.util, json, mclc_gpu
found = {{name: importlib.util.find_spec(name) for name in {[*MODULES, *NOT_TOP_LEVEL, *NOT_IN_PACKAGE]}}}
print(json.dumps({{name: spec and (spec.origin or list(spec.submodule_search_locations)[0])
                  for name, spec in found.items()}}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; without PYTHONPATH, it sees what is installed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def locate(python: Path, cwd: Path) -> dict[str, Path | None]:
    """Return where `python` in `cwd` finds each module, and each name that must not be one."""
    found = json.loads(run(python, "-c", PROBE, cwd=cwd))
    return {name: origin and Path(origin).resolve() for name, origin in found.items()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, because building leaves files behind."""
    copy = tmp_path_factory.mktemp("sources") / "checkout"
    for folder in ["mclc_gpu", "tests", "docs", "constraints", *FOLDERS]:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ["pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "CONTRIBUTING.md", "LICENSE"]:
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def archives(checkout: Path) -> tuple[Path, Path]:
    """The source archive, and the wheel built from it."""
    out = checkout.parent / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=checkout.parent)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Python of a new environment that has this one's packages, except those installed for development.

    A folder named in a .pth file has its own .pth files ignored, so an editable mclc_gpu stays unseen.
    """
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "outer.pth").write_text("\n".join(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))
    return tmp_path / "venv" / "bin" / "python"


def install(python: Path, *arguments: str | Path, cwd: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
    run(*pip, "--quiet", "--no-build-isolation", "--no-deps", "--no-index", *arguments, cwd=cwd)


def check(found: dict[str, Path | None], home: Path) -> None:
    """Every module lies in `home`, and none of it is reached by a top-level name."""
    astray = {name: found[name] for name in MODULES if home not in (found[name] or Path()).parents}
    assert astray == {}
    taken = {name: found[name] for name in NOT_TOP_LEVEL if home in (found[name] or Path()).parents}
    assert taken == {}
    assert [name for name in NOT_IN_PACKAGE if found[name]] == []


@pytest.mark.parametrize("way", ["folder", "wheel", "editable"])
def test_install(way: str, python: Path, checkout: Path, archives: tuple[Path, Path], tmp_path: Path) -> None:
    what = {"folder": ["."], "wheel": [archives[1]], "editable": ["--editable", "."]}[way]
    install(python, *what, cwd=checkout)
    check(locate(python, tmp_path), checkout if way == "editable" else tmp_path / "venv")
    assert "usage: mclc-gpu" in run(python.parent / "mclc-gpu", "--help", cwd=tmp_path)
    assert "usage: mclc-gpu" in run(python, "-m", "mclc_gpu", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_every_module_of_the_wheel_imports(
    python: Path, archives: tuple[Path, Path], checkout: Path, tmp_path: Path
) -> None:
    install(python, archives[1], cwd=checkout)
    run(python, "-c", "\n".join(f"import {name}" for name in MODULES), cwd=tmp_path)


def test_bare_checkout(python: Path, checkout: Path) -> None:
    found = locate(python, checkout)
    assert {name: found[name] for name in MODULES if checkout not in (found[name] or Path()).parents} == {}
    assert [name for name in NOT_IN_PACKAGE if found[name]] == []
    assert "usage: mclc-gpu" in run(python, "-m", "mclc_gpu", "--help", cwd=checkout)


def test_wheel_holds_the_sources_and_nothing_else(archives: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(archives[1]).namelist()
    package = {name for name in names if ".dist-info/" not in name}
    assert {name for name in package if not name.startswith("mclc_gpu/")} == set()
    data = {"mclc_gpu/py.typed", "mclc_gpu/report/page.html", "mclc_gpu/annotate/napari.yaml"}
    data |= {f"mclc_gpu/annotate/page/{path.name}" for path in (ROOT / "mclc_gpu/annotate/page").iterdir()}
    assert {name for name in package if not name.endswith(".py")} == data
    modules = {name.removesuffix(".py").replace("/", ".") for name in package}
    assert set(MODULES) <= modules
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_source_archive_can_be_tested(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*.py")}
    constraints = {"constraints/test.txt", "constraints/pydensecrf.txt"}
    assert (
        tests | constraints | {"Makefile", "README.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"}
        <= names
    )
    assert not [name for name in names if name.endswith((".pt", ".pyc"))]
