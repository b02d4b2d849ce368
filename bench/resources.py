"""Registers, spills and occupancy of every Triton kernel, compiled ahead of time without a GPU."""

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from mclc_gpu.bench.compare import Row
from mclc_gpu.kernels import backend
from mclc_gpu.kernels.color import rgb_to_lab
from mclc_gpu.kernels.components import vote_components
from mclc_gpu.kernels.config import ComponentConfig, TrialConfig
from mclc_gpu.kernels.crf import crf_masks, dense_crf
from mclc_gpu.kernels.masks import window_maps
from mclc_gpu.kernels.noise import add_noise
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.slic import enforce_connectivity, slic
from mclc_gpu.kernels.trials import run_trials

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.int64: "i64", torch.int32: "i32",
    torch.int16: "i16", torch.uint8: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A kernel in machine code.

    Attributes
    ----------
    registers : int
        Per thread.
    spills : int
        Bytes of stack per thread.
    shared : int
        Bytes per program.
    assembly : str
        NVIDIA: what ``nvdisasm`` prints; AMD: what LLVM prints.
    """

    registers: int
    spills: int
    shared: int
    assembly: str


@dataclass(frozen=True)
class Launch:
    """A kernel as one of the package's operations launches it.

    Attributes
    ----------
    kernel : str
        Name of its function, without "_kernel".
    shape : str
        What it was launched for.
    function : function decorated with ``triton.jit``
        Decorated outside Triton's interpreter, so in a process without ``TRITON_INTERPRET=1``.
    signature : dict
        Type of each argument by name, for example ``{"p_x": "*fp32", "size": "i32"}``.
    constants : dict
        Value by name of each ``tl.constexpr`` argument, and of each integer that Triton makes a constant.
    aligned : tuple of str
        Arguments that Triton takes for multiples of 16 (pointers: of 16 bytes).
    warps, fusion
        Launch options ``num_warps`` and ``enable_fp_fusion``.
    """

    kernel: str
    shape: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    warps: int = 4
    fusion: bool = True

    def build(self, architecture: str) -> Any:
        """Compile for "sm_80" (A100), "sm_90" (H100), "sm_100" (B200), "gfx942" (MI300) or another."""
        places = (self.function.arg_names.index(name) for name in self.aligned)
        attributes = {(place,): [["tt.divisibility", 16]] for place in places}
        source = ASTSource(self.function, self.signature, self.constants, attributes)
        options = {"num_warps": self.warps, "enable_fp_fusion": self.fusion}
        if architecture.startswith("sm_"):
            target = GPUTarget("cuda", int(architecture[3:]), 32)
        else:
            target = GPUTarget("hip", architecture, 64)
        return triton.compile(source, target=target, options=options)

    def compile(self, architecture: str) -> Machine:
        """Compile for an architecture, see `build`, and take the code apart."""
        compiled = self.build(architecture)
        shared = compiled.metadata.shared
        if not architecture.startswith("sm_"):
            text = compiled.asm["amdgcn"]
            registers, stack = _number(r"; NumVgprs: (\d+)", text), _number(r"; ScratchSize: (\d+)", text)
            return Machine(registers, stack, shared, text)
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            usage = _output("cuobjdump", "--dump-resource-usage", cubin)
            text = _output("nvdisasm", "-c", cubin)
        return Machine(_number(r"\bREG:(\d+)", usage), _number(r"\bSTACK:(\d+)", usage), shared, text)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the compiler's report"
    return int(found[1])


def _output(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


@contextmanager
def recorded(shape: str) -> Iterator[list[Launch]]:
    """Collect the kernels that operations on CPU tensors launch with ``backend="triton"``; none of them runs.

    What the operations return meanwhile is meaningless. Kernels launched alike are collected once.
    """
    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del grid, warmup
        launch = specialized(kernel, shape, *arguments, **options)
        if launch not in launches:
            launches.append(launch)

    with patch.object(triton.JITFunction, "run", record), patch.object(backend, "interpreted", lambda: True):
        yield launches


def specialized(kernel: Any, shape: str, *arguments: Any, **options: Any) -> Launch:
    """Return a launch as Triton specializes it for the values of its arguments."""
    warps, fusion = options.pop("num_warps", 4), options.pop("enable_fp_fusion", True)
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    special = {p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize)}
    types = {p.name: p.annotation_type for p in kernel.params if p.annotation_type}
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    ones = (name for name in special - types.keys() if type(values[name]) is int and values[name] == 1)
    constants |= dict.fromkeys(ones, 1)
    aligned = (n for n in kernel.arg_names if n in special and n not in constants and _aligned(values[n]))
    types |= {name: _type_of(value) for name, value in values.items() if name not in types | constants}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    name = kernel.fn.__name__.removesuffix("_kernel")
    return Launch(name, shape, kernel, signature, constants, tuple(aligned), warps, fusion)


def _type_of(value: Any) -> str:
    """Return Triton's type of a kernel's argument."""
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _aligned(value: Any) -> bool:
    """Check if an argument is a multiple of 16. Allocations on a device are; parts of them need not be."""
    if isinstance(value, torch.Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return type(value) is int and value % 16 == 0


def launches() -> list[Launch]:
    """List the launches of all operations with the smallest and the largest usual block shapes.

    Raises
    ------
    RuntimeError
        The kernels were decorated for Triton's interpreter (TRITON_INTERPRET=1).
    """
    if backend.interpreted():
        raise RuntimeError("kernels are interpreted: compile them in a process without TRITON_INTERPRET=1")
    made: list[Launch] = []
    for shape, work in _workloads():
        with recorded(shape) as own:
            work()
        # What does not depend on the workload is listed for the first one.
        made += [
            launch for launch in own if replace(launch, shape="") not in (replace(m, shape="") for m in made)
        ]
    return made


def _workloads() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what the launches of some operations are for, and a call that makes them."""
    key = torch.tensor([0])
    for height, width in ((8, 8), (64, 64)):
        window = _window(height, width, np.uint8)
        yield f"{height}x{width}", partial(run_trials, *window, key, TrialConfig(), 100, backend="triton")
    window, other = _window(8, 8, np.float32), TrialConfig(noise="gaussian", connectivity="component")
    yield "gaussian", partial(run_trials, *window, key, other, 100, keep_masks=True, backend="triton")
    for name, dtype in (("bytes", np.uint8), ("floats", np.float32)):
        given = *_window(8, 8, dtype), torch.tensor([-1]), ComponentConfig()
        yield name, partial(vote_components, *given, backend="triton")
    counts, window = torch.zeros(64, dtype=torch.int32), _window(8, 8, np.uint8)
    yield "counts", partial(window_maps, counts, window[1], 0.5, backend="triton")
    yield "probabilities", partial(window_maps, counts.float(), window[1], 0.5, backend="triton")
    yield "counts", partial(crf_masks, counts, *window, backend="triton")
    size = torch.tensor([[8, 8]])
    yield "image", partial(dense_crf, torch.zeros(64), torch.zeros(64, 3), size, backend="triton")
    for channels in (1, 3):
        shape, image = f"{channels} channel{'s' if channels > 1 else ''}", torch.zeros(1, channels, 8, 8)
        once = partial(slic, lab=False, max_iterations=2, enforce_connectivity=False, backend="triton")
        yield shape, partial(once, image, 4)
    many = torch.zeros(1 << 14, 1, 1, dtype=torch.int32)
    yield "many images", partial(enforce_connectivity, many, 1, 1, backend="triton")
    image, index = torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64)
    yield "3 channels", partial(add_noise, image, index, index, 0, backend="triton")
    yield "3 channels", partial(rgb_to_lab, image, "triton")


def _window(height: int, width: int, dtype: type) -> tuple[PackedImages, Windows]:
    """Return an image of one window, packed, and the window."""
    images = PackedImages.pack([np.zeros((height, width), dtype)])
    return images, Windows.pack([(0, 0, 0, height, width, 0, 0, 0)])


@dataclass(frozen=True)
class Loop:
    """An inner loop of a kernel: the innermost one with the most instructions of one kind.

    `tile` names the constants whose product is the number of units that a program handles in each round; a
    thread handles one unit where there are none.
    """

    name: str
    opcode: str
    unit: str
    tile: tuple[str, ...] = ()


_FLOOD = Loop("connectivity", "PLOP3", "step of a lane")
_LOOPS = {
    "cluster": (Loop("update", "REDUX", "pixel and center"),),
    "segment": (_FLOOD,),
    "sums": (Loop("pairs", "MUFU", "pair of pixels", ("QUERIES", "KEYS")),),
    "assign": (Loop("assign", "FSETP", "pixel and center", ("TILE_Y", "TILE_X")),),
    "connectivity": (_FLOOD,),
}


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)([^;]*);")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BRANCH = re.compile(r"\((\.L_x_\d+)\)")


def inner_bodies(assembly: str) -> list[list[str]]:
    """Return the innermost loops of a disassembled kernel, as names of instructions without modifiers.

    A loop lies between a branch backwards and its target.
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := _INSTRUCTION.search(line):
            if found[1] == "BRA" and (target := _BRANCH.search(found[2])):
                branches.append((len(opcodes), target[1]))
            opcodes.append(found[1])
    loops = {(labels[target], place) for place, target in branches if labels[target] <= place}
    inner = [
        loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)
    ]
    return [opcodes[first : last + 1] for first, last in sorted(inner)]


class Processor(NamedTuple):
    """Resources that programs share on one processor of a GPU, from the vendors' manuals.

    A GPU has about a hundred processors; each has four units, and a warp stays in one.
    """

    registers: int  # of a unit, 32 bits of one thread
    step: int  # registers per thread that are given out together
    warps: int  # of a unit
    programs: int
    shared: int  # bytes
    reserved: int  # bytes of shared memory per program that the system keeps
    threads: int  # of a warp


_UNITS = 4


_PROCESSORS = {
    "sm_80": Processor(16384, 8, 16, 32, 164 << 10, 1024, 32),
    "sm_90": Processor(16384, 8, 16, 32, 228 << 10, 1024, 32),
    "sm_100": Processor(16384, 8, 16, 32, 228 << 10, 1024, 32),
    "gfx942": Processor(512 * 64, 8, 8, 32, 64 << 10, 0, 64),
}


def resources(
    architectures: Sequence[str] = ("sm_80", "sm_90", "gfx942"), kernels: Sequence[str] | None = None
) -> list[Row]:
    """Return registers, spills, shared memory and occupancy of the kernels at their usual block shapes.

    Parameters
    ----------
    architectures : sequence of str
        "sm_80" (A100), "sm_90" (H100, H200), "gfx942" (MI300).
    kernels : sequence of str, optional
        Names of kernels, see `Launch`. Default: all. Compiling takes some seconds for each; Triton caches
        the result.

    Returns
    -------
    list of Row, all with these columns
        kernel, shape, architecture (str), warps (int).
        flags (str): the boolean constants that are true.
        registers (int per thread), spills (int, bytes of stack per thread), shared (int, bytes per program).
        programs (int per processor), occupancy (float 0..1, resident warps over the most possible).
        limit (str): the resource that limits the number of programs.
        failure (str or None): why it does not compile; the numbers are then None.

    Raises
    ------
    RuntimeError
        The kernels were decorated for Triton's interpreter (TRITON_INTERPRET=1).
    """
    return [
        _resource_row(launch, architecture) for launch in _chosen(kernels) for architecture in architectures
    ]


def inner_loops(
    architectures: Sequence[str] = ("sm_80", "sm_90"), kernels: Sequence[str] | None = None
) -> list[Row]:
    """Count machine instructions in the inner loops of the kernels, on NVIDIA's architectures.

    Parameters and errors are those of `resources`; other architectures have no rows.

    Returns
    -------
    list of Row, all with these columns
        kernel, shape, architecture, loop (str), instructions (float) per unit (str) and thread.
    """
    rows: list[Row] = []
    for launch in _chosen(kernels):
        loops = _LOOPS.get(launch.kernel, ())
        for architecture in architectures if loops else ():
            if not architecture.startswith("sm_"):
                continue
            bodies = inner_bodies(launch.compile(architecture).assembly)
            for loop in loops:
                body = max(bodies, key=lambda body: body.count(loop.opcode))
                units = math.prod(launch.constants[name] for name in loop.tile) if loop.tile else 0
                rows.append(
                    {
                        "kernel": launch.kernel,
                        "shape": launch.shape,
                        "architecture": architecture,
                        "loop": loop.name,
                        "instructions": len(body) / max(units // (32 * launch.warps), 1),
                        "unit": loop.unit,
                    }
                )
    return rows


def resident(architecture: str, registers: int, shared: int, warps: int) -> tuple[int, float, str]:
    """Return how many programs fit one processor, the share of its warps that they fill, and the limit.

    Raises
    ------
    ValueError
        The architecture is not known.
    """
    if architecture not in _PROCESSORS:
        raise ValueError(f"architecture must be one of {tuple(_PROCESSORS)}, got {architecture!r}")
    p = _PROCESSORS[architecture]
    rounded = -(-max(registers, 1) // p.step) * p.step
    limits = {
        "warps": _UNITS * p.warps // warps,
        "programs": p.programs,
        "registers": _UNITS * (p.registers // (rounded * p.threads)) // warps,
    }
    if shared:
        limits["shared memory"] = p.shared // (shared + p.reserved)
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limits[limit] * warps / (_UNITS * p.warps), limit


def _chosen(kernels: Sequence[str] | None) -> list[Launch]:
    return [launch for launch in launches() if kernels is None or launch.kernel in kernels]


def _cause(error: BaseException) -> str:
    """Describe the first cause of an error, which Triton wraps once for every function being compiled."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _resource_row(launch: Launch, architecture: str) -> Row:
    flags = " ".join(name for name, value in launch.constants.items() if value is True)
    row: Row = {
        "kernel": launch.kernel, "shape": launch.shape, "flags": flags, "architecture": architecture,
        "warps": launch.warps,
    }  # fmt: skip
    numbers = ("registers", "spills", "shared", "programs", "occupancy", "limit")
    try:
        made = launch.compile(architecture)
    except (TritonError, RuntimeError) as error:
        return row | dict.fromkeys(numbers) | {"failure": _cause(error)}
    found = resident(architecture, made.registers, made.shared, launch.warps)
    used = made.registers, made.spills, made.shared, *found
    return row | dict(zip(numbers, used, strict=True)) | {"failure": None}
