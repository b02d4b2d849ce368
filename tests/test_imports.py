"""The direction of imports between the rooms of the project, read from the sources."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("mclc_gpu", "kernels", "networks", "bench")
SOURCES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))

# Folders from the bottom up: a module may import its own folder and the folders before it, no others.
ORDER = [
    "errors",
    "registry",
    "kernels",
    "networks",
    "data",
    "distributed",
    "runs",
    "score",
    "classical",
    "labels",
    "detect",
    "train",
]
ORDER += ["report", "tune", "annotate", "bench", "cli"]
THIRD_PARTY = {"kernels": {"torch", "triton", "numba", "llvmlite", "numpy"}, "networks": {"torch"}}


def folder_of(module: str) -> str:
    """The folder of a project module such as `mclc_gpu.data.images`, or the module's own name at the top."""
    if module == "mclc_gpu":
        return "errors"  # it holds nothing but the path mapping, and names it imports when asked for them
    first = module.split(".")[1]
    return "cli" if first == "__main__" else first


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "mclc_gpu" else ("mclc_gpu", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported name, with whether the import waits for a function to be called.

    `from a.b import c` gives `a.b.c`: whether c is a module or something in a.b, the room is the same.
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{'.' * node.level}{node.module or ''}.{alias.name}", lazy) for alias in node.names)
        yield from imports(node, lazy or isinstance(node, functions))


def fault(path: Path, name: str, lazy: bool) -> str | None:
    """Return the reason why `path` may not import `name`; None if it may."""
    top, here = name.split(".")[0], folder_of(module_of(path))
    if top in {"", "kernels", "networks", "bench"}:
        return f"import it by its full name under mclc_gpu, not as {name}"
    if top != "mclc_gpu":
        allowed = THIRD_PARTY.get(here)
        unknown = allowed is not None and top not in allowed | sys.stdlib_module_names
        return f"{here} may import {sorted(allowed)} only, not {top}" if unknown else None
    there = folder_of(name)
    if path == Path("mclc_gpu/__init__.py"):
        return None if lazy else f"importing mclc_gpu must stay cheap: import {name} when it is asked for"
    if ORDER.index(there) > ORDER.index(here) or {here, there} == {"kernels", "networks"}:
        return f"{here} lies below {there} and may not import {name}"
    for own, other in (("_cpu", "_triton"), ("_triton", "_cpu")):
        if path.stem.endswith(own) and any(part.endswith(other) for part in name.split(".")):
            return f"one backend may not import another: {name}"
    return None


def faults(path: Path, source: str) -> list[str]:
    found = ((name, fault(path, name, lazy)) for name, lazy in imports(ast.parse(source)))
    return [f"{path}: {text}" for _, text in found if text]


def asks_for_hardware(source: str) -> bool:
    """Return True if the source asks whether CUDA is present, under any name of torch."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch.cuda":
            return True
        is_question = isinstance(node, ast.Attribute) and node.attr in {"is_available", "device_count"}
        if is_question and ast.unparse(node.value).split(".")[-1] == "cuda":
            return True
    return False


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    assert faults(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/slic.py", "import skimage"),
        ("kernels/slic.py", "from kernels import backend"),
        ("kernels/slic.py", "def f():\n    from mclc_gpu.data import images"),
        ("kernels/slic.py", "from mclc_gpu import labels"),
        ("kernels/slic.py", "from mclc_gpu.networks import zoo"),
        ("kernels/slic.py", "from . import backend"),
        ("kernels/slic_cpu.py", "from mclc_gpu.kernels import slic_triton"),
        ("kernels/slic_triton.py", "from mclc_gpu.kernels.slic_cpu import assign"),
        ("networks/zoo.py", "import numpy"),
        ("networks/zoo.py", "from mclc_gpu.kernels import slic"),
        ("mclc_gpu/data/images.py", "from mclc_gpu.labels.pipeline import label_images"),
        ("mclc_gpu/data/images.py", "import mclc_gpu.cli.main"),
        ("mclc_gpu/__init__.py", "from mclc_gpu.labels.pipeline import label_images"),
        ("mclc_gpu/labels/run.py", "if TYPE_CHECKING:\n    from mclc_gpu.train.trainer import TrainConfig"),
        ("mclc_gpu/train/fit.py", "from mclc_gpu.bench import compare"),
        ("bench/compare.py", "def f():\n    from mclc_gpu.cli import main"),
        ("mclc_gpu/cli/main.py", "class C:\n    import networks"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(faults(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/slic.py", "import math\nimport torch\nfrom mclc_gpu.errors import InputError"),
        ("kernels/slic.py", "def f():\n    from mclc_gpu.kernels import slic_cpu, slic_triton"),
        (
            "mclc_gpu/train/fit.py",
            "from mclc_gpu.labels.pipeline import crf\nfrom mclc_gpu.networks import zoo",
        ),
        ("mclc_gpu/__init__.py", "def __getattr__(name):\n    from mclc_gpu.labels import pipeline"),
        ("bench/compare.py", "import skimage\nimport mclc_gpu.labels\nfrom mclc_gpu.kernels import slic"),
    ],
)
def test_a_permitted_import_passes(path: str, source: str) -> None:
    assert faults(Path(path), source) == []


def graph() -> dict[str, set[str]]:
    """The modules of the project that each of them imports, lazily or not."""
    modules = {module_of(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for name, _ in imports(ast.parse((ROOT / path).read_text()))}
        # `a.b.c` is the module a.b.c, or c in the module a.b.
        own = {name if name in modules else name.rpartition(".")[0] for name in names if "mclc_gpu" in name}
        edges[module] = own & modules.keys()
    return edges


def test_no_import_runs_in_a_circle() -> None:
    rest = graph()
    # Take away what imports nothing that is left, until nothing can be taken away.
    while free := {module for module, imported in rest.items() if not imported & rest.keys()}:
        rest = {module: imported for module, imported in rest.items() if module not in free}
    assert rest == {}


def test_only_the_backend_module_asks_what_hardware_there_is() -> None:
    assert [str(p) for p in SOURCES if asks_for_hardware((ROOT / p).read_text())] == ["kernels/backend.py"]
    assert asks_for_hardware("import torch as t\nt.cuda.is_available()")
    assert asks_for_hardware("from torch import cuda\ncuda.device_count()")
    assert asks_for_hardware("from torch.cuda import is_available as gpu\ngpu()")
    assert not asks_for_hardware("torch.distributed.is_available()")


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in declared}
    distribution = {"PIL": "pillow", "skimage": "scikit-image", "llvmlite": "numba"}
    distribution |= {"cv2": "opencv-contrib-python-headless"}
    trees = [ast.parse((ROOT / path).read_text()) for path in SOURCES]
    tops = {name.split(".")[0] for tree in trees for name, _ in imports(tree)}
    third_party = {distribution.get(top, top) for top in tops - sys.stdlib_module_names - {"mclc_gpu"}}
    assert third_party - names == set()
    assert third_party >= {"torch", "numba"}


def test_public_names_are_found() -> None:
    import mclc_gpu

    assert all(getattr(mclc_gpu, name).__module__ == home for name, home in mclc_gpu._HOMES.items())


@pytest.mark.parametrize("module", ["mclc_gpu", "mclc_gpu.cli.main", "mclc_gpu.__main__"])
def test_start_up_is_lazy(module: str) -> None:
    heavy = "[m for m in ('torch', 'triton', 'numba', 'skimage', 'scipy') if m in sys.modules]"
    code = f"import sys, {module}; print({heavy})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
