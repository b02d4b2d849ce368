"""PTX instructions that read and write memory, as calls of the functions in `memory.py`."""

import re
from collections.abc import Callable

from mclc_gpu.bench.ptx.instructions import Writer
from mclc_gpu.bench.ptx.memory import LETTERS, OPERATIONS, ROW
from mclc_gpu.bench.ptx.syntax import (
    LANES,
    Instruction,
    UnknownInstruction,
    constant,
    every_lane,
    members,
    register_width,
    vector_of,
)

_ADDRESS = re.compile(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\d+))?\s*\]")
_SPACES = ("global", "shared", "shared::cta", "param")
# Orders of memory and hints for the caches: here every access sees all that came before it.
_ORDERS = (
    "relaxed", "acquire", "release", "acq_rel", "volatile", "weak", "cta", "cluster", "gpu", "sys", "nc",
    "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_last", "L1::evict_first", "L1::no_allocate",
    "L2::evict_last", "L2::128B", "L2::256B",
)  # fmt: skip
_ORDERED = {"relaxed", "acquire", "release", "volatile"}


def _parts(i: Instruction) -> tuple[bool, int]:
    """Return whether an access is one of shared memory, and its number of elements."""
    rest = set(i.modifiers[:-1]) - set(_ORDERS) - set(_SPACES) - {"v2", "v4", "v8"} - set(OPERATIONS)
    if rest or not set(i.modifiers) & set(_SPACES):
        raise UnknownInstruction
    elements = [int(m[1]) for m in i.modifiers if re.fullmatch(r"v\d", m)]
    return any(m.startswith("shared") for m in i.modifiers), elements[0] if elements else 1


def _addresses(w: Writer, operand: str, shared: bool) -> str:
    """Return the threads' addresses, 32 x i64."""
    found = _ADDRESS.fullmatch(operand)
    if not found:
        raise UnknownInstruction
    name, offset = found[1], int(found[2] or 0)
    if not name.startswith("%"):
        return every_lane(int(name, 0) + offset if name.isdigit() else offset, 64)
    base = w.read(name, "u32" if shared and register_width(name) == 32 else "u64")
    if shared and register_width(name) == 32:
        base = w.cast("zext", "u32", base, "u64")
    return w.binary("add", "u64", base, every_lane(offset, 64)) if offset else base


def _row(w: Writer, number: int, kind: str) -> str:
    """Return a pointer to an element's row in the buffer of data."""
    place = w.emit(f"add i64 %data, {number * ROW}")
    return w.emit(f"inttoptr i64 {place} to {w.lines.pointer(vector_of(kind))}")


def _pass(w: Writer, number: int, kind: str, value: str) -> None:
    """Put values into the buffer of data."""
    row = _row(w, number, kind)
    w.lines.do(f"store {vector_of(kind)} {value}, {w.lines.pointer(vector_of(kind))} {row}, align 64")


def _take(w: Writer, number: int, kind: str) -> str:
    """Return values from the buffer of data."""
    row = _row(w, number, kind)
    vector = vector_of(kind)
    return w.emit(f"load {vector}, {w.lines.pointer(vector)} {row}, align 64")


def _call(w: Writer, function: str, addresses: str, *numbers: int) -> None:
    """Call a function of `memory.py` for the threads that run the instruction."""
    vector = vector_of("u64")
    w.lines.do(f"store {vector} {addresses}, {w.lines.pointer(vector)} %places, align 64")
    mask = w.emit(f"zext i32 {w.lines.active()} to i64")
    given = ", ".join(["i64 %context", "i64 %addresses", "i64 %data", f"i64 {mask}"])
    given += "".join(f", i64 {int(number)}" for number in (*numbers, w.lines.site()))
    w.lines.declare(f"ptx_{function}", "void", ", ".join(["i64"] * (5 + len(numbers))))
    w.lines.do(f"call void @ptx_{function}({given})")


def _bits(kind: str) -> str:
    return f"b{kind[1:]}"


def load(w: Writer, i: Instruction) -> None:
    target, source = i.operands
    if i.modifiers[0] == "param":
        index = int(re.findall(r"param_(\d+)\s*\]", source)[0])
        value = w.emit(f"call i64 @parameter(i64 %parameters, i64 {8 * index})")
        whole = w.splat(value, 64)
        narrow = whole if i.kind[1:] == "64" else w.cast("trunc", "b64", whole, _bits(i.kind))
        w.set(target, "s" + i.kind[1:] if i.kind[0] == "s" else _bits(i.kind), narrow)
        return
    shared, elements = _parts(i)
    ordered = bool(set(i.modifiers) & _ORDERED)
    _call(w, "load", _addresses(w, source, shared), int(i.kind[1:]) // 8, elements, shared, ordered)
    kind = "s" + i.kind[1:] if i.kind[0] == "s" else _bits(i.kind)
    for number, member in enumerate(members(target)):
        w.set(member, kind, _take(w, number, kind))


def store(w: Writer, i: Instruction) -> None:
    shared, elements = _parts(i)
    target, source = i.operands
    for number, member in enumerate(members(source)):
        _pass(w, number, _bits(i.kind), w.read(member, _bits(i.kind)))
    ordered = bool(set(i.modifiers) & _ORDERED)
    _call(w, "store", _addresses(w, target, shared), int(i.kind[1:]) // 8, elements, shared, ordered)


def atomic(w: Writer, i: Instruction) -> None:
    """atom, which returns what was there before, and red, which does not."""
    shared, elements = _parts(i)
    if elements > 1:
        raise UnknownInstruction
    operation = next(m for m in i.modifiers if m in OPERATIONS)
    operands = list(i.operands)
    result = operands.pop(0) if i.name == "atom" else ""
    place, *given = operands
    kind = _bits(i.kind)
    for number, operand in enumerate(given):
        _pass(w, number, kind, w.read(operand.strip("{} "), kind))
    letter = LETTERS.index(i.kind[0])
    numbers = int(i.kind[1:]) // 8, OPERATIONS.index(operation), letter, shared
    _call(w, "atomic", _addresses(w, place, shared), *numbers)
    if result and result != "_":
        w.set(result.strip("{} "), kind, _take(w, 0, kind))


def matrix(w: Writer, i: Instruction) -> None:
    """ldmatrix and stmatrix: 8 x 8 matrices of 16-bit numbers; eight threads say where the rows lie."""
    known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
    if set(i.modifiers) - known or "trans" in i.modifiers:
        raise UnknownInstruction
    w.together("-1")
    operands = i.operands if i.name == "ldmatrix" else i.operands[::-1]
    rows = _addresses(w, operands[1], True)
    vector = vector_of("u64")
    for number, register in enumerate(members(operands[0])):
        order = constant([8 * number + lane // 4 for lane in range(LANES)], 32)
        own = w.emit(f"shufflevector {vector} {rows}, {vector} {rows}, {vector_of('b32')} {order}")
        columns = constant([lane % 4 * 4 for lane in range(LANES)], 64)
        own = w.binary("add", "u64", own, columns)
        if i.name == "ldmatrix":
            _call(w, "load", own, 4, 1, 1, 0)
            w.set(register, "b32", _take(w, 0, "b32"))
        else:
            _pass(w, 0, "b32", w.read(register, "b32"))
            _call(w, "store", own, 4, 1, 1, 0)


RULES: dict[str, Callable[[Writer, Instruction], None]] = {
    "ld": load, "st": store, "atom": atomic, "red": atomic, "ldmatrix": matrix, "stmatrix": matrix,
}  # fmt: skip
