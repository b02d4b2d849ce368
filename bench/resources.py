"""What every Triton kernel takes of a GPU, compiled ahead of time: no GPU is needed."""

from collections.abc import Sequence
from typing import NamedTuple

from triton.errors import TritonError

from mclc_gpu.bench.launches import Launch, launches
from mclc_gpu.bench.sass import inner_bodies
from mclc_gpu.bench.tables import Row
from mclc_gpu.kernels.backend import interpreted


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
    return [_row(launch, architecture) for launch in _chosen(kernels) for architecture in architectures]


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


def _row(launch: Launch, architecture: str) -> Row:
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
