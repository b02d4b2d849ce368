"""Translates a PTX program into a machine function for this computer's CPU, which runs one warp.

The function runs the warp until a barrier or its end. Where threads branch apart, some of them run first, the
others then, and they go on together at the first block that all their ways lead through: see `Stack`.
"""

import ctypes
import hashlib
import inspect
import re
import sys
from enum import IntEnum
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from triton.runtime.cache import get_cache_manager

from mclc_gpu.bench.ptx import accesses, instructions, memory, syntax
from mclc_gpu.bench.ptx.instructions import Writer
from mclc_gpu.bench.ptx.memory import Fault, Slot
from mclc_gpu.bench.ptx.syntax import (
    LANES,
    Instruction,
    Program,
    UnknownInstruction,
    constant,
    every_lane,
    register_width,
    vector_of,
)

# What the function returns.
ENDED, PAUSED, AT_BARRIER = range(3)
_RULES = instructions.RULES | accesses.RULES
_TYPED_POINTERS = llvm.llvm_version_info[0] < 16
_SPECIAL = {
    "%ctaid.x": Slot.PROGRAM_X, "%ctaid.y": Slot.PROGRAM_Y, "%ctaid.z": Slot.PROGRAM_Z,
    "%nctaid.x": Slot.PROGRAMS_X, "%nctaid.y": Slot.PROGRAMS_Y, "%nctaid.z": Slot.PROGRAMS_Z,
    "%tid.x": Slot.FIRST_THREAD, "%ntid.x": Slot.THREADS,
}  # fmt: skip


def pointer_to(kind: str) -> str:
    """Return the type of a pointer to a type in this version's LLVM language."""
    return f"{kind}*" if _TYPED_POINTERS else "ptr"


class Stack(IntEnum):
    """Columns, int64, of an entry of a warp's stack: threads that are at the same place.

    The stack begins with the number of its uppermost entry, which runs; its first entry has all threads.
    Threads that branch apart get entries of their own above the one where they meet again.
    """

    BLOCK = 0  # that comes next; len(blocks) after the end
    MASK = 1  # of the threads
    MEETING = 2  # block where the threads go on as those of the entry below
    LENGTH = 3


class Translation:
    """The machine function of a program.

    Attributes
    ----------
    program : Program
    stack_entries : int
        Greatest number of entries of a warp's stack.
    sites : list of Instruction
        Instructions that the machine's reports number.
    register_bytes : int
        Size of a warp's registers in memory.
    run : function of five addresses
        Of the warp's registers, its stack (see `Stack`), the parameters int64 [n], the context (see `Slot`),
        the int64 [blocks] counts of runs. Returns ENDED, PAUSED or AT_BARRIER.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sites = [instruction for block in program.blocks for instruction in block.instructions]
        self.register_bytes = max(64, sum(map(_bytes_of, _kept(program))))
        self.stack_entries = len(program.blocks) + 2
        self._engine = _load(program)
        address = self._engine.get_function_address("run")
        self.run = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 5)(address)


class _Function:
    """Writes the LLVM module of a program; `Lines` of the instructions."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._lines: list[str] = []
        self._declared: dict[str, str] = {}
        self._names = 0
        self._writer = Writer(self)
        self._slots: dict[str, int] = {}
        place = 0
        for register in _kept(program):
            self._slots[register] = place
            place += _bytes_of(register)
        self._site = -1
        self._meetings = _meetings(program)

    # ---------------------------------------------------------------- what instructions need

    def pointer(self, kind: str) -> str:
        return pointer_to(kind)

    def emit(self, code: str) -> str:
        self._names += 1
        self._lines.append(f"  %v{self._names} = {code}")
        return f"%v{self._names}"

    def do(self, code: str) -> None:
        self._lines.append(f"  {code}")

    def declare(self, function: str, result: str, arguments: str) -> None:
        self._declared[function] = f"declare {result} @{function}({arguments})"

    def get(self, register: str) -> str:
        if register not in self._values:
            self._values[register] = self._special(register) or self._load(register)
        return self._values[register]

    def put(self, register: str, value: str) -> None:
        if self._guard:
            width = register_width(register)
            vector = f"<{LANES} x i{width}>"
            old = self.get(register)
            value = self.emit(f"select <{LANES} x i1> {self._guard}, {vector} {value}, {vector} {old}")
        self._values[register] = value
        self._changed[register] = None

    def active(self) -> str:
        if not self._guard:
            return self._mask
        bits = self.emit(f"bitcast <{LANES} x i1> {self._guard} to i32")
        return self.emit(f"and i32 {bits}, {self._mask}")

    def site(self) -> int:
        return self._site

    # ---------------------------------------------------------------- registers in memory

    def _place(self, register: str) -> tuple[str, str]:
        """Return the type under which a register lies in memory, and a pointer to it."""
        width = register_width(register)
        kind = "i32" if width == 1 else f"<{LANES} x i{width}>"
        address = self.emit(f"add i64 %registers, {self._slots[register]}")
        return kind, self.emit(f"inttoptr i64 {address} to {pointer_to(kind)}")

    def _load(self, register: str) -> str:
        kind, place = self._place(register)
        value = self.emit(f"load {kind}, {pointer_to(kind)} {place}, align 4")
        return self.emit(f"bitcast i32 {value} to <{LANES} x i1>") if kind == "i32" else value

    def _special(self, register: str) -> str:
        """Return a register that the hardware fills; "" for others."""
        lanes = constant(list(range(LANES)), 32)
        if register == "%laneid":
            return lanes
        if register not in _SPECIAL:
            if register_width(register) == 32 and not register[2:].isdigit():
                raise UnknownInstruction
            return ""
        value = self.emit(f"call i64 @parameter(i64 %context, i64 {8 * _SPECIAL[register]})")
        value = self._writer.splat(self.emit(f"trunc i64 {value} to i32"), 32)
        if register == "%tid.x":
            value = self.emit(f"add {vector_of('b32')} {value}, {lanes}")
        return value

    def _save(self) -> None:
        """Write what the block changed, in the threads that ran it, for other blocks."""
        for register in self._changed:
            if register in self._slots:
                value = self._values[register]
                kind, place = self._place(register)
                old = self._load(register)
                vector = f"<{LANES} x i{register_width(register)}>"
                value = self.emit(f"select <{LANES} x i1> {self._lanes}, {vector} {value}, {vector} {old}")
                if kind == "i32":
                    value = self.emit(f"bitcast <{LANES} x i1> {value} to i32")
                self.do(f"store {kind} {value}, {pointer_to(kind)} {place}, align 4")

    # ---------------------------------------------------------------- blocks

    def module(self) -> str:
        """Return the module's text."""
        for number, block in enumerate(self.program.blocks):
            self._block(number, block.instructions)
        end = len(self.program.blocks)
        blocks = " ".join(f"i64 {n}, label %block{n}" for n in range(end))
        wide, mask = pointer_to("<32 x i64>"), pointer_to("i32")
        text = [
            _helpers(),
            "define i32 @run(i64 %registers, i64 %stack, i64 %parameters, i64 %context, i64 %counts) {",
            "  %places = alloca <32 x i64>, align 64",
            f"  %addresses = ptrtoint {wide} %places to i64",
            "  %buffer = alloca [8 x <32 x i64>], align 64",
            f"  %data = ptrtoint {pointer_to('[8 x <32 x i64>]')} %buffer to i64",
            "  %mask = alloca i32",
            "  br label %dispatch",
            "dispatch:",
            f"  %found = call i64 @top(i64 %stack, i64 {8 * Stack.MASK})",
            "  %threads = trunc i64 %found to i32",
            f"  store i32 %threads, {mask} %mask",
            f"  %next = call i64 @top(i64 %stack, i64 {8 * Stack.BLOCK})",
            f"  switch i64 %next, label %end [{blocks}]",
            "end:",
            f"  ret i32 {ENDED}",
            "pause:",
            f"  ret i32 {PAUSED}",
            *self._lines,
            "}",
        ]
        return "\n".join([*text, *self._declared.values()])

    def _block(self, number: int, block: list[Instruction]) -> None:
        self._values: dict[str, str] = {}
        self._changed: dict[str, None] = {}
        self._guard = ""
        self._lines += [f"block{number}:"]
        self._mask = self.emit(f"load i32, {pointer_to('i32')} %mask")
        left = self.emit(f"call i64 @enter(i64 %context, i64 %counts, i64 {8 * number})")
        stop = self.emit(f"icmp slt i64 {left}, 0")
        self.do(f"br i1 {stop}, label %pause{number}, label %body{number}")
        self._lines += [f"pause{number}:"]
        self.do(f"call void @go(i64 %stack, i64 {number})")
        self.do("br label %pause")
        self._lines += [f"body{number}:"]
        self._lanes = self.emit(f"bitcast i32 {self._mask} to <{LANES} x i1>")
        for instruction in block:
            self._site += 1
            self._guard = self._guard_of(instruction)
            if not instruction.ends_block:
                self._write(instruction)
        self._guard = ""
        self._end(number, block[-1] if block else Instruction("", "", (), ()))

    def _guard_of(self, instruction: Instruction) -> str:
        if not instruction.guard:
            return ""
        value = self.get(instruction.guard)
        if instruction.negated:
            value = self.emit(f"xor <{LANES} x i1> {value}, {every_lane(1, 1)}")
        return value

    def _write(self, instruction: Instruction) -> None:
        rule = _RULES.get(instruction.name)
        self._writer.flush = "ftz" in instruction.modifiers
        try:
            if rule is None:
                raise UnknownInstruction
            rule(self._writer, instruction)
        except (UnknownInstruction, KeyError, IndexError, ValueError, StopIteration) as error:
            text = f"the emulator does not know the instruction {instruction.text!r} ({instruction.line})"
            raise UnknownInstruction(text) from error

    # ---------------------------------------------------------------- ways on

    def _end(self, number: int, last: Instruction) -> None:
        """Write the way from a block to the next ones."""
        end = len(self.program.blocks)
        taken = ""
        if last.ends_block and last.guard:
            self._guard = self._guard_of(last)
            taken, self._guard = self.active(), ""
        self._save()
        if last.name == "bra":
            target = self.program.labels[last.operands[-1]]
            if taken:
                self._branch(number, taken, target)
            else:
                self._go(number, target)
        elif last.ends_block and taken:
            raise UnknownInstruction(f"{last.text!r} for some of the threads ({last.line})")
        elif last.name in ("ret", "exit"):
            self._go(number, end)
        elif last.ends_block:
            self._barrier(number, last)
        else:
            self._go(number, number + 1)

    def _go(self, number: int, target: int) -> None:
        """Go on at a block: at once if all threads do."""
        whole = self.emit(f"icmp eq i32 {self._mask}, -1")
        self.do(f"br i1 {whole}, label {self._straight(number, target)}, label %apart{number}")
        self._lines += [f"apart{number}:"]
        self.do(f"call void @go(i64 %stack, i64 {target})")
        self.do("br label %dispatch")

    def _straight(self, number: int, target: int) -> str:
        """Return the label of a block, or of the way to it where there is none."""
        return f"%block{target}" if target < len(self.program.blocks) else f"%apart{number}"

    def _branch(self, number: int, taken: str, target: int) -> None:
        """Go on at `target` in the threads of the mask `taken`, at the next block in the others."""
        stay = self.emit(f"xor i32 {taken}, {self._mask}")
        for kind, mask, block in (("taken", taken, target), ("stay", stay, number + 1)):
            whole = self.emit(f"icmp eq i32 {mask}, -1")
            straight = self._straight(number, block)
            self.do(f"br i1 {whole}, label {straight}, label %not_{kind}{number}")
            self._lines += [f"not_{kind}{number}:"]
        self.do(f"br label %apart{number}")
        self._lines += [f"apart{number}:"]
        self.do(f"call void @split(i64 %stack, i32 {taken}, i64 {target}, i32 {stay}, i64 {number + 1}, "
                f"i64 {self._meetings[number]})")  # fmt: skip
        self.do("br label %dispatch")

    def _barrier(self, number: int, last: Instruction) -> None:
        """Let the warp wait for the others; a warp that is alone goes on."""
        all_threads = len(last.operands) < 2 or last.operands[1] == str(self.program.threads)
        if last.name != "bar" or last.modifiers != ("sync",) or not all_threads:
            raise UnknownInstruction(f"the emulator does not know the barrier {last.text!r} ({last.line})")
        self.do(f"call void @await(i32 {self._mask}, i32 -1, i64 {self.site()}, i64 %context)")
        if self.program.threads > LANES:
            self.do(f"call void @go(i64 %stack, i64 {number + 1})")
            self.do(f"ret i32 {AT_BARRIER}")
            return
        self.do(f"call i64 @count(i64 %context, i64 {8 * Slot.EPOCH}, i64 1)")
        self._go(number, number + 1)


def _bytes_of(register: str) -> int:
    """Return the memory that a warp's register takes: predicates are bits of a word."""
    return max(4, LANES * register_width(register) // 8)


def _kept(program: Program) -> list[str]:
    """Return the registers that must lie in memory: those that a block reads before it writes them all."""
    blocks: dict[str, set[int]] = {}
    early: set[str] = set()
    for number, block in enumerate(program.blocks):
        for instruction in block.instructions:
            for register in instruction.registers:
                seen = number in blocks.setdefault(register, set())
                if not seen and (instruction.guard or register not in instruction.only_written):
                    early.add(register)
            for register in instruction.registers:
                blocks[register].add(number)
    return [register for register, places in blocks.items() if register in early or len(places) > 1]


def _meetings(program: Program) -> list[int]:
    """Return for each block the first one that all ways from it to the end lead through."""
    end = len(program.blocks)
    ways = []
    for number, block in enumerate(program.blocks):
        last = block.instructions[-1] if block.instructions else None
        jumps = {program.labels[last.operands[-1]]} if last and last.name == "bra" else set()
        leaves = {end} if last and last.name in ("ret", "exit") else set()
        stops = last is not None and last.name in ("bra", "ret", "exit") and not last.guard
        ways.append(jumps | leaves | (set() if stops else {number + 1}))
    # Blocks through which every way leads, as bits; to begin with, all.
    through = [(1 << (end + 1)) - 1] * end + [1 << end]
    changed = True
    while changed:
        changed = False
        for number in reversed(range(end)):
            common = (1 << (end + 1)) - 1
            for target in ways[number]:
                common &= through[target]
            common |= 1 << number
            changed |= common != through[number]
            through[number] = common
    return [_nearest(through, number) for number in range(end)]


def _nearest(through: list[int], number: int) -> int:
    """Return the first block on the way from a block, of those in ``through[number]`` but itself."""
    later = [block for block in range(len(through)) if through[number] >> block & 1 and block != number]
    return max(later, key=lambda block: through[block].bit_count())


def _load(program: Program) -> Any:
    """Return an engine that has the function of a program, from Triton's cache if it was compiled before."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=0)
    state = [program.text, _source(), cpu, features, str(llvm.llvm_version_info)]
    cached = get_cache_manager(hashlib.sha256("\0".join(state).encode()).hexdigest())
    name = f"{program.name}.o"
    file = cached.get_file(name)
    if file is None:
        file = cached.put(target.emit_object(llvm.parse_assembly(_Function(program).module())), name)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_path(file))
    engine.finalize_object()
    return engine


@cache
def _source() -> str:
    """Return the text of the modules on which the translation depends."""
    modules = instructions, accesses, memory, syntax, sys.modules[__name__]
    return "".join(inspect.getsource(module) for module in modules)


# Functions of the module that the blocks call; V is a vector of 32 words.
_HELPERS = """
define internal i64 @parameter(i64 %base, i64 %offset) alwaysinline {
  %address = add i64 %base, %offset
  %place = inttoptr i64 %address to I64*
  %value = load i64, I64* %place
  ret i64 %value
}
define internal void @set(i64 %base, i64 %offset, i64 %value) {
  %address = add i64 %base, %offset
  %place = inttoptr i64 %address to I64*
  store i64 %value, I64* %place
  ret void
}
define internal i64 @count(i64 %base, i64 %offset, i64 %step) {
  %before = call i64 @parameter(i64 %base, i64 %offset)
  %after = add i64 %before, %step
  call void @set(i64 %base, i64 %offset, i64 %after)
  ret i64 %after
}
define internal i64 @enter(i64 %context, i64 %counts, i64 %block) {
  %runs = call i64 @count(i64 %counts, i64 %block, i64 1)
  %left = call i64 @count(i64 %context, i64 BUDGET, i64 -1)
  ret i64 %left
}
define internal i64 @entry(i64 %stack) {
  %depth = call i64 @parameter(i64 %stack, i64 0)
  %offset = mul i64 %depth, ENTRY
  %first = add i64 %stack, 8
  %entry = add i64 %first, %offset
  ret i64 %entry
}
define internal i64 @top(i64 %stack, i64 %column) {
  %entry = call i64 @entry(i64 %stack)
  %value = call i64 @parameter(i64 %entry, i64 %column)
  ret i64 %value
}
define internal void @push(i64 %stack, i64 %block, i32 %mask, i64 %meeting) {
  %depth = call i64 @count(i64 %stack, i64 0, i64 1)
  %entry = call i64 @entry(i64 %stack)
  %threads = zext i32 %mask to i64
  call void @set(i64 %entry, i64 BLOCK, i64 %block)
  call void @set(i64 %entry, i64 MASK, i64 %threads)
  call void @set(i64 %entry, i64 MEETING, i64 %meeting)
  ret void
}
define internal void @go(i64 %stack, i64 %block) {
  %entry = call i64 @entry(i64 %stack)
  call void @set(i64 %entry, i64 BLOCK, i64 %block)
  %meeting = call i64 @parameter(i64 %entry, i64 MEETING)
  %there = icmp eq i64 %block, %meeting
  br i1 %there, label %leave, label %end
leave:
  %depth = call i64 @count(i64 %stack, i64 0, i64 -1)
  br label %end
end:
  ret void
}
define internal void @split(i64 %stack, i32 %taken, i64 %target, i32 %stay, i64 %next, i64 %meeting) {
  %none_taken = icmp eq i32 %taken, 0
  br i1 %none_taken, label %all_stay, label %some_taken
all_stay:
  call void @go(i64 %stack, i64 %next)
  ret void
some_taken:
  %none_stay = icmp eq i32 %stay, 0
  br i1 %none_stay, label %all_taken, label %both
all_taken:
  call void @go(i64 %stack, i64 %target)
  ret void
both:
  call void @go(i64 %stack, i64 %meeting)
  %at_once = icmp eq i64 %next, %meeting
  br i1 %at_once, label %first_done, label %first
first:
  call void @push(i64 %stack, i64 %next, i32 %stay, i64 %meeting)
  br label %first_done
first_done:
  %target_at_once = icmp eq i64 %target, %meeting
  br i1 %target_at_once, label %end, label %second
second:
  call void @push(i64 %stack, i64 %target, i32 %taken, i64 %meeting)
  br label %end
end:
  ret void
}
define internal void @fault(i64 %kind, i64 %site, i64 %context) {
  call void @set(i64 %context, i64 FAULT, i64 %kind)
  call void @set(i64 %context, i64 FAULT_SITE, i64 %site)
  call void @set(i64 %context, i64 BUDGET, i64 0)
  ret void
}
define internal void @await(i32 %active, i32 %wanted, i64 %site, i64 %context) {
  %here = and i32 %active, %wanted
  %fine = icmp eq i32 %here, %wanted
  br i1 %fine, label %go, label %stop
stop:
  call void @fault(i64 ALONE, i64 %site, i64 %context)
  br label %go
go:
  ret void
}
define internal void @exchange(i64 %context) {
  %exchange = call i64 @count(i64 %context, i64 EXCHANGE, i64 1)
  ret void
}
define internal void @synchronize(i64 %context) {
  %moment = call i64 @count(i64 %context, i64 MOMENT, i64 1)
  ret void
}
define internal V @gather(V %values, V %lanes) {
  %place = alloca V, align 64
  store V %values, V* %place, align 64
  %base = ptrtoint V* %place to i64
  br label %loop
loop:
  %lane = phi i32 [0, %0], [%following, %loop]
  %result = phi V [zeroinitializer, %0], [%more, %loop]
  %chosen = extractelement V %lanes, i32 %lane
  %wide = zext i32 %chosen to i64
  %offset = mul i64 %wide, 4
  %address = add i64 %base, %offset
  %from = inttoptr i64 %address to I32*
  %value = load i32, I32* %from
  %more = insertelement V %result, i32 %value, i32 %lane
  %following = add i32 %lane, 1
  %done = icmp eq i32 %following, 32
  br i1 %done, label %end, label %loop
end:
  ret V %more
}
"""


def _helpers() -> str:
    """Return the text of the helpers in this version's LLVM language."""
    text = _HELPERS
    for name in ("BUDGET", "FAULT_SITE", "FAULT", "MOMENT", "EXCHANGE"):
        text = text.replace(f"i64 {name},", f"i64 {8 * Slot[name]},")
    for column in (Stack.BLOCK, Stack.MASK, Stack.MEETING):
        text = text.replace(f"i64 {column.name}", f"i64 {8 * column}")
    text = text.replace("%depth, ENTRY", f"%depth, {8 * Stack.LENGTH}").replace(
        "ALONE", str(int(Fault.ALONE))
    )
    text = re.sub(r"(V|I64|I32)\*", lambda found: pointer_to(_KINDS[found[1]]), text)
    return re.sub(r"\bV\b", "<32 x i32>", text)


_KINDS = {"V": "<32 x i32>", "I64": "i64", "I32": "i32"}
