"""Runs the PTX of Triton kernels on CPU tensors, or only records their launches."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from mclc_gpu.bench.ptx.machine import Counts, Machine
from mclc_gpu.bench.ptx.syntax import parse
from mclc_gpu.bench.ptx.translate import Translation
from mclc_gpu.kernels import backend as kernels_backend

_TARGET = GPUTarget("cuda", 90, 32)
_NUMBERS = {
    "i1": np.uint8, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8,
    "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "fp32": np.float32, "f32": np.float32,
    "fp64": np.float64, "f64": np.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel.

    Attributes
    ----------
    kernel : str
        Name of the kernel's function.
    grid : (int, int, int)
        Numbers of programs.
    warps : int
        Warps of a program.
    variant : str
        Launches of a kernel with the same variant run the same machine code.
    shared : int
        Bytes of shared memory of a program; 0 if the launch was only recorded.
    counts : Counts
        Instructions that the warps ran; none if the launch was only recorded.
    """

    kernel: str
    grid: tuple[int, int, int]
    warps: int
    variant: str
    shared: int = 0
    counts: Counts = field(default_factory=Counts)


class _Compiled(NamedTuple):
    translation: Translation
    signature: dict[str, str]
    warps: int
    shared: int


class Emulator:
    """Launches of Triton kernels; see `emulated`.

    Attributes
    ----------
    launches : list of Launch
        All launches so far.
    """

    def __init__(self, order: str, races: bool, seed: int, record: bool) -> None:
        self.launches: list[Launch] = []
        self._order, self._races, self._seed, self._record = order, races, seed, record

    @property
    def counts(self) -> Counts:
        """Instructions of all launches."""
        total = Counts()
        for launch in self.launches:
            total.opcodes.update(launch.counts.opcodes)
            total.lines.update(launch.counts.lines)
        return total

    @property
    def variants(self) -> Counter[tuple[str, str]]:
        """Number of launches by kernel and variant."""
        return Counter((launch.kernel, launch.variant) for launch in self.launches)

    def run(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        """Stand for ``triton.JITFunction.run``."""
        options = {"debug": False, **options}
        bound, specialization, extra = _binder(kernel)(*arguments, **options)
        grid = tuple(grid(bound) if callable(grid) else grid)
        x, y, z = (*grid, 1, 1)[:3]
        key = str(specialization), str(sorted((k, str(v)) for k, v in options.items() if k not in bound))
        name, warps = kernel.fn.__name__, int(options.get("num_warps", 4))
        if self._record or warmup:
            if not warmup:
                self.launches.append(Launch(name, (x, y, z), warps, " ".join(key)))
            return
        known = kernel.cache_key, *key
        if known not in _compiled:
            _compiled[known] = _compile(kernel, bound, specialization, extra, options)
        compiled = _compiled[known]
        machine = Machine(compiled.translation, self._order, self._races, self._seed)
        tensors = [value for value in bound.values() if isinstance(value, torch.Tensor)]
        given = [
            bound[name] if kind.startswith("*") else np.array(bound[name], _NUMBERS[kind]).tobytes()
            for name, kind in compiled.signature.items()
            if kind != "constexpr"
        ]
        counts = machine.launch((x, y, z), tensors, given, compiled.shared)
        self.launches.append(Launch(name, (x, y, z), compiled.warps, " ".join(key), compiled.shared, counts))


# By the hash of the sources and the variant.
_compiled: dict[tuple[str, ...], _Compiled] = {}


@cache
def _backend() -> Any:
    return make_backend(_TARGET)


@cache
def _binder(kernel: Any) -> Any:
    """Return the function that binds a launch's arguments and says what Triton specializes them for."""
    return create_function_from_signature(kernel.signature, kernel.params, _backend())


def _compile(kernel: Any, bound: Any, specialization: Any, extra: Any, options: Any) -> _Compiled:
    parsed, signature, constants, attributes = kernel._pack_args(
        _backend(), options, bound, specialization, extra
    )
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=_TARGET, options=parsed.__dict__)
    meta = compiled.metadata
    return _Compiled(Translation(parse(compiled.asm["ptx"])), signature, meta.num_warps, meta.shared)


@contextmanager
def emulated(
    order: str = "forwards", *, races: bool = False, seed: int = 0, record: bool = False
) -> Iterator[Emulator]:
    """Run all Triton kernels as PTX on the CPU; ``backend="triton"`` then takes CPU tensors.

    A kernel is specialized for its arguments as Triton's launcher does it, compiled for sm_90 and translated
    to instructions of this computer. What approximate instructions give may differ from a GPU's last bits.

    Parameters
    ----------
    order : {"forwards", "backwards", "shuffled", "interleaved"}
        Order of a program's warps between its barriers; interleaved ones also take turns in between.
    races : bool
        Fail if two threads access a byte, one of them to change it, and nothing orders them.
    seed : int
        Of the orders that are random.
    record : bool
        Note the launches instead of running them: what the operations return is then meaningless.

    Raises
    ------
    RuntimeError
        Kernels are interpreted (TRITON_INTERPRET=1).
    MachineError, RaceError
        Raised by a launch: an access outside of all tensors, misaligned or racing.
    UnknownInstruction
        Raised by a launch.

    Examples
    --------
    >>> from mclc_gpu.bench.ptx.launch import emulated
    >>> from mclc_gpu.kernels.color import rgb_to_lab
    >>> with emulated(races=True) as emulator:
    ...     lab = rgb_to_lab(torch.rand(1, 3, 8, 8), backend="triton")
    >>> emulator.counts.opcodes["st.global.b32"] > 0
    True
    """
    if kernels_backend.interpreted():
        raise RuntimeError("kernels are interpreted: emulate them in a process without TRITON_INTERPRET=1")
    emulator = Emulator(order, races, seed, record)

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        emulator.run(kernel, *arguments, grid=grid, warmup=warmup, **options)

    with (
        patch.object(triton.JITFunction, "run", run),
        patch.object(kernels_backend, "interpreted", lambda: True),
    ):
        yield emulator
