"""Runs the programs of a launch: one after the other, their warps in a chosen order between barriers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import llvmlite.binding as llvm
import numpy as np
import torch

from mclc_gpu.bench.ptx import memory
from mclc_gpu.bench.ptx.memory import AREA_BITS, LANES, Area, Fault, Race, Shadow, Slot
from mclc_gpu.bench.ptx.translate import AT_BARRIER, ENDED, Stack, Translation

ORDERS = ("forwards", "backwards", "shuffled", "interleaved")
_ENDLESS = 1 << 62
_PATIENCE = 1 << 34  # blocks of instructions that a program may run
_ALIGNMENT = 256  # of the tensors' addresses that is kept
_MESSAGES = {
    Fault.OUTSIDE: "an access outside of every tensor",
    Fault.MISALIGNED: "a misaligned access",
    Fault.ALONE: "a warp instruction or barrier that some of the threads do not reach",
}
_RACES = {
    Race.READ_AFTER_WRITE: "reads what another thread wrote, without a barrier between",
    Race.WRITE_AFTER_WRITE: "overwrites what another thread wrote, without a barrier between",
    Race.WRITE_AFTER_READ: "overwrites what another thread read, without a barrier between",
    Race.PROGRAMS: "and another program of the launch access the same memory, and one of them writes",
}

for _function in (memory.load, memory.store, memory.atomic):
    llvm.add_symbol(f"ptx_{_function.__name__}", _function.address)


class MachineError(Exception):
    """A kernel did what no kernel may: the message says where."""


class RaceError(MachineError):
    """The result of a kernel depends on the order in which threads run."""


@dataclass
class Counts:
    """Instructions that the warps of a launch ran.

    Attributes
    ----------
    opcodes : Counter
        By opcode, such as "add.rn.f32".
    lines : Counter
        By source line, such as "trials_triton.py:120".
    """

    opcodes: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.opcodes.total()


class _Arena:
    """Memory of a launch: the tensors that it was given, in a virtual address space."""

    def __init__(self, tensors: Sequence[torch.Tensor], races: bool) -> None:
        spans = sorted({_span(tensor) for tensor in tensors if tensor.numel()})
        pieces: list[tuple[int, int]] = []
        for first, end in spans:
            if pieces and first < pieces[-1][1]:
                pieces[-1] = pieces[-1][0], max(end, pieces[-1][1])
            else:
                pieces.append((first, end))
        self._pieces = pieces
        self.shadows = [_shadow(end - first) for first, end in pieces] if races else []
        self.table = np.zeros((max(1, len(pieces)), Area.LENGTH), np.int64)
        for number, (first, end) in enumerate(pieces):
            virtual = self._virtual(number, first)
            shadow = self.shadows[number].ctypes.data if races else 0
            self.table[number] = virtual, virtual + end - first, first, shadow

    @staticmethod
    def _virtual(number: int, first: int) -> int:
        return ((number + 1) << AREA_BITS) + (1 << (AREA_BITS - 1)) + first % _ALIGNMENT

    def address(self, tensor: torch.Tensor) -> int:
        """Return the virtual address of a tensor."""
        place = tensor.data_ptr()
        for number, (first, end) in enumerate(self._pieces):
            if first <= place < end:
                return self._virtual(number, first) + place - first
        return ((len(self._pieces) + 1) << AREA_BITS) + place % _ALIGNMENT  # empty: nothing may be accessed


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first and the last address of a tensor's elements."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _shadow(size: int) -> np.ndarray:
    return np.full((size, Shadow.LENGTH), -1, np.int32)


class Machine:
    """One launch of a translated kernel.

    Parameters
    ----------
    translation : Translation
    order : str
        Of the warps between barriers: "forwards", "backwards", "shuffled", or "interleaved", where a warp
        also pauses in between.
    races : bool
        Look for races.
    seed : int
        Of the shuffled and interleaved orders.
    """

    def __init__(self, translation: Translation, order: str, races: bool, seed: int) -> None:
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        self._translation, self._order, self._races = translation, order, races
        self._random = np.random.default_rng(seed)
        program = translation.program
        self._warps = program.threads // LANES
        self._runs = np.zeros(max(1, len(program.blocks)), np.int64)
        self._context = np.zeros(Slot.LENGTH, np.int64)
        self._context[Slot.THREADS] = program.threads
        self._sites = np.zeros((Race.LENGTH, max(1, len(translation.sites))), np.int64)
        if races:
            self._context[Slot.RACES] = self._sites.ctypes.data
        self._context[Slot.SITES] = self._sites.shape[1]

    def launch(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[torch.Tensor],
        values: Sequence[object],
        shared: int,
    ) -> Counts:
        """Run all programs.

        Parameters
        ----------
        grid : numbers of programs
        tensors : all tensors that the kernel may access
        values : the kernel's arguments: tensors, and bytes for numbers
        shared : bytes of shared memory

        Raises
        ------
        RaceError, MachineError
        """
        context, arena = self._context, _Arena(tensors, self._races)
        self._areas = arena.table
        context[Slot.AREAS], context[Slot.AREAS_NUMBER] = arena.table.ctypes.data, len(arena.table)
        parameters = np.zeros((max(1, len(values)), 8), np.uint8)
        for row, value in zip(parameters, values, strict=False):
            if isinstance(value, torch.Tensor):
                value = arena.address(value).to_bytes(8, "little")
            assert isinstance(value, bytes)
            row[: len(value)] = np.frombuffer(value, np.uint8)
        context[Slot.PROGRAMS_X : Slot.PROGRAMS_Z + 1] = grid
        area = np.zeros(Area.LENGTH, np.int64)
        context[Slot.SHARED] = area.ctypes.data
        memory_of_program = np.zeros(shared, np.uint8)
        shadow = _shadow(shared if self._races else 0)
        area[:] = 0, shared, memory_of_program.ctypes.data, shadow.ctypes.data
        for number, (z, y, x) in enumerate(np.ndindex(grid[::-1])):
            context[Slot.PROGRAM_X : Slot.PROGRAM_Z + 1] = x, y, z
            context[Slot.PROGRAM] = number
            context[Slot.EPOCH] += 1
            memory_of_program[:] = 0xAB
            shadow[:] = -1
            self._run_program(parameters)
        self._check_races()
        return self._counts()

    def _run_program(self, parameters: np.ndarray) -> None:
        """Run the warps of a program to their end."""
        run, context = self._translation.run, self._context
        stacks = np.zeros((self._warps, 1 + Stack.LENGTH * self._translation.stack_entries), np.int64)
        stacks[:, 1 + Stack.MASK], stacks[:, 1 + Stack.MEETING] = (1 << LANES) - 1, -1
        registers = np.empty((self._warps, self._translation.register_bytes), np.uint8)
        moments = np.zeros((self._warps, 2), np.int64)  # those of the slots MOMENT and EXCHANGE
        fixed = parameters.ctypes.data, context.ctypes.data, self._runs.ctypes.data
        places = [(registers[w].ctypes.data, stacks[w].ctypes.data) for w in range(self._warps)]
        live, waiting = list(range(self._warps)), 0
        ready = self._ordered(live)
        steps = 0
        while ready:
            warp = ready.pop(0)
            context[Slot.FIRST_THREAD] = LANES * warp
            context[Slot.MOMENT : Slot.EXCHANGE + 1] = moments[warp]
            context[Slot.BUDGET] = self._random.integers(1, 8) if self._order == "interleaved" else _PATIENCE
            state = run(*places[warp], *fixed)
            moments[warp] = context[Slot.MOMENT : Slot.EXCHANGE + 1]
            self._check_fault()
            steps += 1
            if state == ENDED:
                live.remove(warp)
            elif state == AT_BARRIER:
                waiting += 1
                moments[warp] += 1
            elif self._order != "interleaved":
                raise MachineError(f"{self._translation.program.name} does not end")
            else:
                ready.insert(int(self._random.integers(0, len(ready) + 1)), warp)
            if not ready and live:
                # All that still run are at the barrier.
                context[Slot.EPOCH] += 1
                waiting, ready = 0, self._ordered(live)

    def _ordered(self, warps: list[int]) -> list[int]:
        if self._order == "backwards":
            return warps[::-1]
        return list(warps) if self._order == "forwards" else self._random.permutation(warps).tolist()

    def _where(self, site: int) -> str:
        instruction = self._translation.sites[site]
        return f"{self._translation.program.name}, {instruction.line}, {instruction.text!r}"

    def _check_fault(self) -> None:
        kind = self._context[Slot.FAULT]
        if kind:
            site, address, thread = (
                int(self._context[slot]) for slot in (Slot.FAULT_SITE, Slot.FAULT_ADDRESS, Slot.FAULT_THREAD)
            )
            number = (address >> AREA_BITS) - 1
            if kind == Fault.OUTSIDE and 0 <= number < len(self._areas):
                start, end = self._areas[number, Area.FIRST], self._areas[number, Area.END]
                detail = f" by thread {thread}, {address - start} bytes into a tensor of {end - start}"
            else:
                detail = f" by thread {thread}, address {address:#x}" if kind != Fault.ALONE else ""
            raise MachineError(f"{self._where(site)}: {_MESSAGES[Fault(kind)]}{detail}")

    def _check_races(self) -> None:
        found = [
            f"{self._where(site)} {_RACES[Race(kind)]}: {self._sites[kind, site]} bytes"
            for kind, site in np.argwhere(self._sites).tolist()
        ]
        if found:
            raise RaceError("\n".join(found))

    def _counts(self) -> Counts:
        counts = Counts()
        for block, runs in zip(self._translation.program.blocks, self._runs.tolist(), strict=False):
            if runs:
                for opcode, number in block.opcodes.items():
                    counts.opcodes[opcode] += number * runs
                for line, number in block.lines.items():
                    counts.lines[line] += number * runs
        return counts
