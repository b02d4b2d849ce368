"""Registers, spills and occupancy of every Triton kernel, compiled ahead of time without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from mclc_gpu.bench.compare import Row
from mclc_gpu.kernels import (
    color_triton,
    components_triton,
    connectivity_triton,
    crf_triton,
    noise_triton,
    slic_triton,
    trials_triton,
)
from mclc_gpu.kernels import (
    color_triton as gray_triton,
)
from mclc_gpu.kernels.backend import interpreted

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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


def machine_code(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    architecture: str,
    num_warps: int = 4,
    enable_fp_fusion: bool = False,
) -> Machine:
    """Compile a kernel for one architecture.

    Parameters
    ----------
    kernel : function decorated with ``triton.jit``
        Decorated outside Triton's interpreter, so in a process without ``TRITON_INTERPRET=1``.
    signature : dict
        Type of each argument by name, for example ``{"p_x": "*fp32", "size": "i32"}``. It may name more than
        the kernel has, and leave out those in `constexprs`.
    constexprs : dict
        Value of each ``tl.constexpr`` argument by name.
    architecture : str
        "sm_80" (A100), "sm_90" (H100, H200), or of AMD for example "gfx942" (MI300).
    num_warps, enable_fp_fusion
        Launch options.

    Raises
    ------
    RuntimeError
        The kernel was decorated for the interpreter.
    """
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            "kernel is interpreted: compile ahead of time in a process without TRITON_INTERPRET=1"
        )
    types = {name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs)
    options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
    nvidia = architecture.startswith("sm_")
    target = GPUTarget("cuda", int(architecture[3:]), 32) if nvidia else GPUTarget("hip", architecture, 64)
    compiled = triton.compile(source, target=target, options=options)
    shared = compiled.metadata.shared
    if not nvidia:
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


def _types(**names: str) -> dict[str, str]:
    """Type of each name, from the names of each type."""
    return {name: kind for kind, listed in names.items() for name in listed.split()}


# Of the kernels' arguments by name, without the constants; a kernel that uses a name otherwise says so.
_TYPES = _types(
    fp32="p_features p_centres p_grid p_windows p_out p_image p_colours p_values p_energy p_after p_shares"
    " p_tpm sigma scale tolerance weight low high unit sharper",
    fp64="p_scales p_weights p_numbers",
    i64="p_geometry p_items p_first p_images p_parts p_offsets p_keys p_targets mask_pitch map_pitch",
    i32="p_order p_labels p_active p_changed p_unreached p_counts p_moved p_marks p_table p_area trial plane"
    " bound height width min_size max_size n_centres cell_y cell_x cells_y cells_x items state_size"
    " queue_size first_trial iterations reach targets masks inversions near levels max_area",
    i16="p_state p_queue",
    u8="p_data p_masks p_join",
)


@dataclass(frozen=True)
class Loop:
    """An inner loop, known as the innermost one with the most instructions of one kind.

    `per` units are dealt with in each round of a thread.
    """

    name: str
    opcode: str
    unit: str
    per: int


@dataclass(frozen=True)
class Launch:
    """A kernel at one block shape."""

    kernel: str
    shape: str
    function: Any
    constants: dict[str, Any]
    warps: int
    loops: tuple[Loop, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    fusion: bool = False

    def compile(self, architecture: str) -> Machine:
        """Machine code for "sm_80", "sm_90", "gfx942" or another."""
        types = {
            name: ("*" if name.startswith("p_") else "") + kind
            for name, kind in (_TYPES | self.types).items()
        }
        return machine_code(self.function, types, self.constants, architecture, self.warps, self.fusion)


def launches() -> list[Launch]:
    """Of all kernels, the smallest and the largest usual block shape, and those between of the trials."""
    return [*_trials(), *_crf(), *_slic(), *_connectivity(), *_components(), *_pixelwise()]


def _trials() -> list[Launch]:
    constants = {"CENTRES": 16, "KIND": noise_triton.SALT.value, "SHARED": False, "OWN_RANGE": False}
    constants |= {"WINDOWED": True, "CONNECTIVITY": trials_triton.ENFORCE.value, "MASKS": False}
    made = []
    for pixels in (64, 256, 512, 1024, 4096):
        block, lanes, warps = trials_triton.block_shape(pixels, 100)
        each = block // (32 * warps)
        loops = (
            Loop("assign", "FSETP", "pixel and centre", each),
            Loop("update", "SHFL", "pixel and centre", each),
            Loop("connectivity", "PLOP3", "step of a lane", 1),
        )
        shape = {"PIXELS": block, "LANES": lanes}
        made.append(
            Launch("trials", f"{pixels} pixels", trials_triton.trials_kernel, constants | shape, warps, loops)
        )
    return made


def _crf() -> list[Launch]:
    queries, keys, warps = crf_triton._QUERIES, crf_triton._KEYS, crf_triton._WARPS
    block = {"QUERIES": queries, "KEYS": keys, "BILATERAL": True, "SMOOTH": True}
    loops = (Loop("pairs", "MUFU", "pair of pixels", queries * keys // (32 * warps)),)
    return [
        Launch(
            "crf", f"{'row sums' if norm else 'messages'}, {channels} channels", crf_triton.sums_kernel,
            block | {"CHANNELS": channels, "NORM": norm}, warps, loops, {"p_windows": "i64"}, fusion=True,
        )
        for channels in (1, 3)
        for norm in (True, False)
    ]  # fmt: skip


def _slic() -> list[Launch]:
    tile_y, tile_x = slic_triton._TILE_Y, slic_triton._TILE_X
    warps = slic_triton._ASSIGN_WARPS
    loops = (Loop("assign", "FSETP", "pixel and centre", tile_y * tile_x // (32 * warps)),)
    made = []
    for channels, up in ((1, 1), (3, 4)):
        tile = {"CHANNELS": channels, "TILE_Y": tile_y, "TILE_X": tile_x}
        block = {"CHANNELS": channels, "CHANNELS_UP": up, "BLOCK": slic_triton._UPDATE_BLOCK}
        shape = f"{channels} channels"
        made.append(Launch("slic assign", shape, slic_triton.assign_kernel, tile, warps, loops))
        made.append(Launch("slic update", shape, slic_triton.update_kernel, block, 4))
    return made


def _connectivity() -> list[Launch]:
    loops = (Loop("connectivity", "PLOP3", "step of a lane", 1),)
    kernel = connectivity_triton.connectivity_kernel
    return [Launch("connectivity", "32 images", kernel, {"LANES": 32}, 1, loops)]


def _components() -> list[Launch]:
    made = []
    for pixels in (64, 4096):
        block, levels, warps = components_triton.block_shape(pixels, 64)
        shape = {"PIXELS": block, "LEVELS": levels}
        types = {"p_data": "fp32"}
        kernel = components_triton.components_kernel
        made.append(Launch("components", f"{pixels} pixels", kernel, shape, warps, (), types))
    return made


def _pixelwise() -> list[Launch]:
    noise = {"CHANNELS": 3, "KIND": noise_triton.SALT.value, "SHARED": False, "BLOCK": noise_triton._BLOCK}
    color, stretch = {"BLOCK": color_triton._BLOCK}, {"BLOCK": gray_triton._BLOCK}
    types = {"p_data": "fp32"}
    return [
        Launch("noise", "512 pixels", noise_triton.noise_kernel, noise, 4, (), {"bound": "i64"}),
        Launch("color", "512 pixels", color_triton.lab_kernel, color, 4),
        Launch("gray", "2048 pixels", gray_triton.stretch_kernel, stretch, 8, (), types),
    ]


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)([^;]*);")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BRANCH = re.compile(r"\((\.L_x_\d+)\)")


def inner_bodies(assembly: str) -> list[list[str]]:
    """All innermost loops of a disassembled kernel, as the names of their instructions without modifiers.

    A loop lies between a branch backwards and where it leads.
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
    """What programs share on one processor (a GPU has a hundred or so), from the makers' manuals.

    A processor has four units; a warp stays in one.
    """

    registers: int  # of a unit, 32 bits of one thread
    step: int  # registers per thread that are given out together
    warps: int  # of a unit
    programs: int
    shared: int  # bytes
    kept: int  # bytes of shared memory per program that go to the system
    threads: int  # of a warp


_UNITS = 4


_PROCESSORS = {
    "sm_80": Processor(16384, 8, 16, 32, 164 << 10, 1024, 32),
    "sm_90": Processor(16384, 8, 16, 32, 228 << 10, 1024, 32),
    "gfx942": Processor(512 * 64, 8, 8, 32, 64 << 10, 0, 64),
}


def resources(
    architectures: Sequence[str] = ("sm_80", "sm_90", "gfx942"), kernels: Sequence[str] | None = None
) -> list[Row]:
    """Registers, spills, shared memory and occupancy of every Triton kernel at its usual block shapes.

    Parameters
    ----------
    architectures : sequence of str
        "sm_80" (A100), "sm_90" (H100, H200), "gfx942" (MI300).
    kernels : sequence of str, optional
        Those of `launches` to look at. Default: all. Compiling takes some seconds for each; Triton keeps
        what it compiled.

    Returns
    -------
    list of Row, all with these columns
        kernel, shape, architecture (str), warps (int).
        registers (int per thread), spills (int, bytes of stack per thread), shared (int, bytes per program).
        programs (int per processor), occupancy (float 0..1, resident warps over the most possible).
        limit (str): what keeps more programs away.
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
    """Machine instructions in the inner loops of the kernels, on NVIDIA's architectures.

    Parameters, errors: see `resources`; other architectures have no rows.

    Returns
    -------
    list of Row, all with these columns
        kernel, shape, architecture, loop (str), instructions (float) per unit (str) and thread.
    """
    rows: list[Row] = []
    for launch in _chosen(kernels):
        for architecture in architectures if launch.loops else ():
            if not architecture.startswith("sm_"):
                continue
            bodies = inner_bodies(launch.compile(architecture).assembly)
            for loop in launch.loops:
                body = max(bodies, key=lambda body: body.count(loop.opcode))
                rows.append(
                    {
                        "kernel": launch.kernel,
                        "shape": launch.shape,
                        "architecture": architecture,
                        "loop": loop.name,
                        "instructions": len(body) / loop.per,
                        "unit": loop.unit,
                    }
                )
    return rows


def resident(architecture: str, registers: int, shared: int, warps: int) -> tuple[int, float, str]:
    """Programs at a time on one processor, share of its warps that they fill, and what limits them.

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
        limits["shared memory"] = p.shared // (shared + p.kept)
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limits[limit] * warps / (_UNITS * p.warps), limit


def _chosen(kernels: Sequence[str] | None) -> list[Launch]:
    if interpreted():
        raise RuntimeError("kernels are interpreted: compile them in a process without TRITON_INTERPRET=1")
    return [launch for launch in launches() if kernels is None or launch.kernel in kernels]


def _cause(error: BaseException) -> str:
    """What an error comes from: Triton wraps it once for every function that was being compiled."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _resource_row(launch: Launch, architecture: str) -> Row:
    row: Row = {
        "kernel": launch.kernel, "shape": launch.shape, "architecture": architecture, "warps": launch.warps
    }  # fmt: skip
    numbers = ("registers", "spills", "shared", "programs", "occupancy", "limit")
    try:
        made = launch.compile(architecture)
    except (TritonError, RuntimeError) as error:
        return row | dict.fromkeys(numbers) | {"failure": _cause(error)}
    found = resident(architecture, made.registers, made.shared, launch.warps)
    used = made.registers, made.spills, made.shared, *found
    return row | dict(zip(numbers, used, strict=True)) | {"failure": None}
