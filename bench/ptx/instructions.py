"""PTX instructions as LLVM code over the 32 threads of a warp.

A register of a warp is a vector of 32 numbers. Registers are kept as integers of their width, and read as the
type that an instruction asks for.
"""

from collections.abc import Callable
from typing import Protocol

from mclc_gpu.bench.ptx.syntax import (
    LANES,
    Instruction,
    UnknownInstruction,
    constant,
    every_lane,
    members,
    register_width,
    scalar_of,
    shuffled,
    vector_of,
    width_of,
)


class Lines(Protocol):
    """Interface of the function that instructions are written into."""

    def emit(self, code: str) -> str:
        """Append a line that computes a value; return the value's name."""

    def do(self, code: str) -> None:
        """Append a line that has no value."""

    def get(self, register: str) -> str:
        """Return the integers of a register, parameter of the launch or special register."""

    def put(self, register: str, value: str) -> None:
        """Set the integers of a register, in the threads that the instruction's guard lets through."""

    def declare(self, function: str, result: str, arguments: str) -> None:
        """Declare an external function."""

    def active(self) -> str:
        """Return the mask, i32, of the threads that run the instruction."""

    def pointer(self, kind: str) -> str:
        """Return the LLVM type of a pointer to a type."""

    def site(self) -> int:
        """Return the number by which reports name the instruction."""


class Writer:
    """Writes the LLVM code of instructions.

    Its methods raise `UnknownInstruction` for modifiers not known here. While `flush` is set, float32 numbers
    below the normal ones are taken and given as zero (modifier ``ftz``).
    """

    flush = False

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.emit = lines.emit

    # ---------------------------------------------------------------- operands

    def read(self, operand: str, kind: str) -> str:
        """Return an operand as a type; of a wider register, its low part."""
        width = width_of(kind)
        if operand.startswith("%"):
            value, own = self.lines.get(operand), register_width(operand)
            if own > width:
                value = self.emit(f"trunc <{LANES} x i{own}> {value} to <{LANES} x i{width}>")
            elif own < width:
                raise UnknownInstruction
        else:
            value = every_lane(self._literal(operand), width)
        if kind == "f32" and self.flush:
            value = self._flushed(value)
        if kind[0] == "f":
            value = self.emit(f"bitcast <{LANES} x i{width}> {value} to {vector_of(kind)}")
        return value

    def _flushed(self, bits: str) -> str:
        """Return the bits of float32 numbers, of those below the normal ones the sign alone."""
        exponent = self.binary("and", "b32", bits, every_lane(0x7F800000, 32))
        small = self.emit(f"icmp eq {vector_of('b32')} {exponent}, {every_lane(0, 32)}")
        return self.select(small, "b32", self.binary("and", "b32", bits, every_lane(1 << 31, 32)), bits)

    def _literal(self, text: str) -> int:
        if text[:2] in ("0f", "0F", "0d", "0D"):
            return int(text[2:], 16)
        if text.startswith("global_smem"):
            return int(text.partition("+")[2] or 0)
        return int(text.rstrip("U"), 0)

    def set(self, register: str, kind: str, value: str) -> None:
        """Set a register to a value of a type; a wider register to the extended value."""
        if register in ("_", "tmp"):
            return
        width, own = width_of(kind), register_width(register)
        if kind[0] == "f":
            value = self.emit(f"bitcast {vector_of(kind)} {value} to <{LANES} x i{width}>")
        if kind == "f32" and self.flush:
            value = self._flushed(value)
        if own > width:
            extend = "sext" if kind[0] == "s" else "zext"
            value = self.emit(f"{extend} <{LANES} x i{width}> {value} to <{LANES} x i{own}>")
        elif own < width:
            value = self.emit(f"trunc <{LANES} x i{width}> {value} to <{LANES} x i{own}>")
        self.lines.put(register, value)

    def call(self, function: str, kind: str, *arguments: str, extra: str = "") -> str:
        """Call an LLVM intrinsic on vectors of one type, such as ``llvm.fma`` with "f32"."""
        vector = vector_of(kind)
        name = f"{function}.v{LANES}{scalar_of(kind).replace('float', 'f32').replace('double', 'f64')}"
        types = ", ".join([vector] * len(arguments)) + (", i1" if extra else "")
        self.lines.declare(name, vector, types)
        given = ", ".join(f"{vector} {argument}" for argument in arguments) + extra
        return self.emit(f"call {vector} @{name}({given})")

    def select(self, condition: str, kind: str, yes: str, no: str) -> str:
        vector = vector_of(kind)
        return self.emit(f"select <{LANES} x i1> {condition}, {vector} {yes}, {vector} {no}")

    def binary(self, operation: str, kind: str, a: str, b: str) -> str:
        return self.emit(f"{operation} {vector_of(kind)} {a}, {b}")

    def cast(self, operation: str, kind: str, value: str, target: str) -> str:
        return self.emit(f"{operation} {vector_of(kind)} {value} to {vector_of(target)}")

    # ---------------------------------------------------------------- arithmetic

    def only(self, instruction: Instruction, *known: str) -> None:
        """Refuse modifiers, but the type, that are not known here."""
        if set(instruction.modifiers[:-1]) - set(known) - {"ftz"}:
            raise UnknownInstruction

    def move(self, i: Instruction) -> None:
        target, source = i.operands
        if target.startswith("{"):
            self._unpack(members(target), source, i.kind)
        elif source.startswith("{"):
            self._pack(target, members(source), i.kind)
        else:
            self.set(target, i.kind, self.read(source, i.kind))

    def _unpack(self, targets: list[str], source: str, kind: str) -> None:
        whole, width = self.read(source, f"b{kind[1:]}"), width_of(kind) // len(targets)
        for place, target in enumerate(targets):
            shift = every_lane(place * width, width_of(kind))
            if target not in ("_", "tmp"):
                part = self.binary("lshr", f"b{kind[1:]}", whole, shift)
                self.set(target, f"b{width}", self.cast("trunc", f"b{kind[1:]}", part, f"b{width}"))

    def _pack(self, target: str, sources: list[str], kind: str) -> None:
        whole, width = every_lane(0, width_of(kind)), width_of(kind) // len(sources)
        bits = f"b{kind[1:]}"
        for place, source in enumerate(sources):
            part = self.cast("zext", f"b{width}", self.read(source, f"b{width}"), bits)
            part = self.binary("shl", bits, part, every_lane(place * width, width_of(kind)))
            whole = self.binary("or", bits, whole, part)
        self.set(target, bits, whole)

    def select_by_predicate(self, i: Instruction) -> None:
        target, yes, no, condition = i.operands
        value = self.select(
            self.read(condition, "pred"), i.kind, self.read(yes, i.kind), self.read(no, i.kind)
        )
        self.set(target, i.kind, value)

    def compare(self, i: Instruction) -> None:
        self.only(i, *_COMPARISONS, "and", "or", "xor")
        target, a, b, *also = i.operands
        a, b = self.read(a, i.kind), self.read(b, i.kind)
        code = _COMPARISONS[i.modifiers[0]][i.kind[0]]
        result = self.emit(f"{code} {vector_of(i.kind)} {a}, {b}")
        if also:
            negated = also[0].startswith("!")
            other = self.read(also[0].lstrip("!"), "pred")
            if negated:
                other = self.binary("xor", "pred", other, every_lane(1, 1))
            result = self.binary(i.modifiers[1], "pred", result, other)
        self.set(target, "pred", result)

    def logic(self, i: Instruction) -> None:
        self.only(i)
        target, a, b = i.operands
        self.set(target, i.kind, self.binary(i.name, i.kind, self.read(a, i.kind), self.read(b, i.kind)))

    def invert(self, i: Instruction) -> None:
        value = self.binary("xor", i.kind, self.read(i.operands[1], i.kind), every_lane(-1, width_of(i.kind)))
        self.set(i.operands[0], i.kind, value)

    def look_up(self, i: Instruction) -> None:
        """lop3: any bitwise function of three operands, by its truth table."""
        target, *sources, table = i.operands
        operands = [self.read(source, "b32") for source in sources]
        result = every_lane(0, 32)
        for row in range(8):
            if int(table, 0) >> row & 1:
                term = every_lane(-1, 32)
                for place, operand in enumerate(operands):
                    wanted = row >> (2 - place) & 1
                    factor = operand if wanted else self.binary("xor", "b32", operand, every_lane(-1, 32))
                    term = self.binary("and", "b32", term, factor)
                result = self.binary("or", "b32", result, term)
        self.set(target, "b32", result)

    def shift(self, i: Instruction) -> None:
        """shl, shr: a shift by the width or more gives zeros, or the sign."""
        self.only(i)
        target, a, by = i.operands
        width, signed = width_of(i.kind), i.name == "shr" and i.kind[0] == "s"
        value, amount = self.read(a, i.kind), self.read(by, "u32")
        limit = every_lane(width - 1, 32)
        inside = self.emit(f"icmp ule <{LANES} x i32> {amount}, {limit}")
        amount = self.select(inside, "u32", amount, limit)
        if width > 32:
            amount = self.cast("zext", "u32", amount, i.kind)
        elif width < 32:
            amount = self.cast("trunc", "u32", amount, i.kind)
        operation = "shl" if i.name == "shl" else "ashr" if signed else "lshr"
        shifted = self.binary(operation, i.kind, value, amount)
        if not signed:
            shifted = self.select(inside, i.kind, shifted, every_lane(0, width))
        self.set(target, i.kind, shifted)

    def funnel_shift(self, i: Instruction) -> None:
        """shf: the upper or lower word of a shifted pair."""
        direction, mode, kind = i.modifiers
        target, low, high, by = i.operands
        low, high, amount = self.read(low, kind), self.read(high, kind), self.read(by, "u32")
        if mode == "clamp":
            amount = self.call("llvm.umin", "u32", amount, every_lane(32, 32))
        else:
            amount = self.binary("and", "u32", amount, every_lane(31, 32))
        pair = self.binary(
            "or",
            "b64",
            self.cast("zext", "b32", low, "b64"),
            self.binary("shl", "b64", self.cast("zext", "b32", high, "b64"), every_lane(32, 64)),
        )
        amount = self.cast("zext", "u32", amount, "b64")
        if direction == "l":
            shifted = self.binary("shl", "b64", pair, amount)
            shifted = self.binary("lshr", "b64", shifted, every_lane(32, 64))
        else:
            shifted = self.binary("lshr", "b64", pair, amount)
        self.set(target, "b32", self.cast("trunc", "b64", shifted, "b32"))

    def extract_bits(self, i: Instruction) -> None:
        """bfe: some bits of a number, the uppermost one as the sign if the type has one."""
        target, source, first, length = i.operands
        width, start, number = width_of(i.kind), int(first, 0), int(length, 0)
        if number == 0 or start + number > width:
            raise UnknownInstruction
        value = self.binary(
            "shl", i.kind, self.read(source, i.kind), every_lane(width - start - number, width)
        )
        shift = "ashr" if i.kind[0] == "s" else "lshr"
        self.set(target, i.kind, self.binary(shift, i.kind, value, every_lane(width - number, width)))

    def add(self, i: Instruction) -> None:
        self.only(i, "rn")
        target, a, b = i.operands
        operation = ("f" if i.kind[0] == "f" else "") + i.name
        self.set(target, i.kind, self.binary(operation, i.kind, self.read(a, i.kind), self.read(b, i.kind)))

    def multiply(self, i: Instruction) -> None:
        """mul and mad: of integers the low, the high or all bits."""
        self.only(i, "rn", "lo", "hi", "wide")
        target, a, b, *c = i.operands
        kind = i.kind
        if kind[0] == "f":
            if c:
                raise UnknownInstruction
            self.set(target, kind, self.binary("fmul", kind, self.read(a, kind), self.read(b, kind)))
            return
        part, width = i.modifiers[0], width_of(kind)
        result, factors = kind, [self.read(a, kind), self.read(b, kind)]
        if part != "lo":
            result = f"{kind[0]}{2 * width}"
            extend = "sext" if kind[0] == "s" else "zext"
            factors = [self.cast(extend, kind, factor, result) for factor in factors]
        product = self.binary("mul", result, *factors)
        if part == "hi":
            product = self.binary("lshr", result, product, every_lane(width, 2 * width))
            product, result = self.cast("trunc", result, product, kind), kind
        if c:
            product = self.binary("add", result, product, self.read(c[0], result))
        self.set(target, result, product)

    def fuse(self, i: Instruction) -> None:
        self.only(i, "rn")
        if "rn" not in i.modifiers:
            raise UnknownInstruction
        arguments = [self.read(operand, i.kind) for operand in i.operands[1:]]
        self.set(i.operands[0], i.kind, self.call("llvm.fma", i.kind, *arguments))

    def divide(self, i: Instruction) -> None:
        """div and rem; division by zero, which PTX leaves open, divides by one."""
        self.only(i, "rn", "full")
        target, a, b = i.operands
        dividend, divisor = self.read(a, i.kind), self.read(b, i.kind)
        if i.kind[0] == "f":
            self.set(target, i.kind, self.binary("fdiv", i.kind, dividend, divisor))
            return
        width = width_of(i.kind)
        zero = self.emit(f"icmp eq {vector_of(i.kind)} {divisor}, {every_lane(0, width)}")
        divisor = self.select(zero, i.kind, every_lane(1, width), divisor)
        operation = ("s" if i.kind[0] == "s" else "u") + i.name
        self.set(target, i.kind, self.binary(operation, i.kind, dividend, divisor))

    def extreme(self, i: Instruction) -> None:
        """min and max; of floats, the number if the other one is NaN, unless the modifier NaN is given."""
        self.only(i, "NaN")
        target, a, b = i.operands
        if i.kind in ("u16x2", "s16x2"):
            value = self._extreme_of_halves(i, a, b)
            self.lines.put(target, value)
            return
        a, b = self.read(a, i.kind), self.read(b, i.kind)
        if i.kind[0] != "f":
            value = self.call(f"llvm.{'s' if i.kind[0] == 's' else 'u'}{i.name}", i.kind, a, b)
        else:
            value = self._extreme_of_floats(i, a, b)
        self.set(target, i.kind, value)

    def _extreme_of_floats(self, i: Instruction, a: str, b: str) -> str:
        """Return min or max of floats: -0 is below +0."""
        vector, bits = vector_of(i.kind), f"b{i.kind[1:]}"
        beyond = self.emit(f"fcmp {'olt' if i.name == 'min' else 'ogt'} {vector} {a}, {b}")
        value = self.select(beyond, i.kind, a, b)
        pair = [self.cast("bitcast", i.kind, x, bits) for x in (a, b)]
        zero = self.binary("or" if i.name == "min" else "and", bits, *pair)
        equal = self.emit(f"fcmp oeq {vector} {a}, {b}")
        value = self.select(equal, i.kind, self.cast("bitcast", bits, zero, i.kind), value)
        if "NaN" in i.modifiers:
            missing = self.emit(f"fcmp uno {vector} {a}, {b}")
            return self.select(missing, i.kind, self.binary("fadd", i.kind, a, b), value)
        missing = self.emit(f"fcmp uno {vector} {b}, {b}")
        return self.select(missing, i.kind, a, value)

    def _extreme_of_halves(self, i: Instruction, a: str, b: str) -> str:
        halves = f"<{2 * LANES} x i16>"
        name = f"llvm.{i.kind[0]}{i.name}.v{2 * LANES}i16"
        self.lines.declare(name, halves, f"{halves}, {halves}")
        pair = [
            self.emit(f"bitcast {vector_of('b32')} {self.read(operand, 'b32')} to {halves}")
            for operand in (a, b)
        ]
        value = self.emit(f"call {halves} @{name}({halves} {pair[0]}, {halves} {pair[1]})")
        return self.emit(f"bitcast {halves} {value} to {vector_of('b32')}")

    def absolute(self, i: Instruction) -> None:
        self.only(i)
        value = self.read(i.operands[1], i.kind)
        if i.kind[0] == "f":
            value = self.call("llvm.fabs", i.kind, value)
        else:
            value = self.call("llvm.abs", i.kind, value, extra=", i1 false")
        self.set(i.operands[0], i.kind, value)

    def negate(self, i: Instruction) -> None:
        value = self.read(i.operands[1], i.kind)
        if i.kind[0] == "f":
            value = self.emit(f"fneg {vector_of(i.kind)} {value}")
        else:
            value = self.binary("sub", i.kind, every_lane(0, width_of(i.kind)), value)
        self.set(i.operands[0], i.kind, value)

    def copy_sign(self, i: Instruction) -> None:
        target, sign, value = i.operands
        result = self.call("llvm.copysign", i.kind, self.read(value, i.kind), self.read(sign, i.kind))
        self.set(target, i.kind, result)

    def function(self, i: Instruction) -> None:
        """sqrt, ex2, lg2, rcp ...: the approximate ones are computed exactly, within what they allow."""
        self.only(i, "rn", "approx")
        if i.name == "sqrt" and "rn" not in i.modifiers:
            raise UnknownInstruction
        value = self.read(i.operands[1], i.kind)
        if i.name in ("rcp", "rsqrt"):
            if i.name == "rsqrt":
                value = self.call("llvm.sqrt", i.kind, value)
            one = every_lane(0x3F800000, 32) if i.kind == "f32" else every_lane(0x3FF << 52, 64)
            one = self.emit(f"bitcast <{LANES} x i{i.kind[1:]}> {one} to {vector_of(i.kind)}")
            value = self.binary("fdiv", i.kind, one, value)
            if i.kind == "f64":  # the hardware's approximation has no lower half
                bits = self.cast("bitcast", "f64", value, "b64")
                bits = self.binary("and", "b64", bits, every_lane(0xFFFFFFFF00000000, 64))
                value = self.cast("bitcast", "b64", bits, "f64")
        else:
            value = self.call(f"llvm.{_FUNCTIONS[i.name]}", i.kind, value)
        self.set(i.operands[0], i.kind, value)

    def count_bits(self, i: Instruction) -> None:
        """popc, clz, brev."""
        target, source = i.operands
        value = self.read(source, i.kind)
        if i.name == "clz":
            value = self.call("llvm.ctlz", i.kind, value, extra=", i1 false")
        else:
            value = self.call({"popc": "llvm.ctpop", "brev": "llvm.bitreverse"}[i.name], i.kind, value)
        self.set(target, i.kind, value)

    def permute_bytes(self, i: Instruction) -> None:
        """prmt: each byte of the result is one of the eight of two words, or its sign."""
        if i.modifiers != ("b32",):
            raise UnknownInstruction
        target, a, b, selector = i.operands
        pair = self.binary(
            "or",
            "b64",
            self.cast("zext", "b32", self.read(a, "b32"), "b64"),
            self.binary(
                "shl", "b64", self.cast("zext", "b32", self.read(b, "b32"), "b64"), every_lane(32, 64)
            ),
        )
        chosen = self.cast("zext", "b32", self.read(selector, "b32"), "b64")
        result = every_lane(0, 64)
        for place in range(4):
            nibble = self.binary("lshr", "b64", chosen, every_lane(4 * place, 64))
            byte = self.binary(
                "shl", "b64", self.binary("and", "b64", nibble, every_lane(7, 64)), every_lane(3, 64)
            )
            byte = self.binary("lshr", "b64", pair, byte)
            byte = self.cast("trunc", "b64", byte, "b8")
            sign = self.binary("ashr", "b8", byte, every_lane(7, 8))
            signed = self.binary("and", "b64", nibble, every_lane(8, 64))
            signed = self.emit(f"icmp ne {vector_of('b64')} {signed}, {every_lane(0, 64)}")
            byte = self.cast("zext", "b8", self.select(signed, "b8", sign, byte), "b64")
            byte = self.binary("shl", "b64", byte, every_lane(8 * place, 64))
            result = self.binary("or", "b64", result, byte)
        self.set(target, "b32", self.cast("trunc", "b64", result, "b32"))

    def convert(self, i: Instruction) -> None:
        target, source = i.operands
        *modes, to, of = i.modifiers
        value = self.read(source, of)
        if set(modes) - {"rn", "rni", "rzi", "rmi", "rpi", "ftz", "sat"} or "sat" in modes:
            raise UnknownInstruction
        if to[0] == "f" and of[0] == "f":
            if to == of:
                value = self.call(_ROUNDINGS[next(m for m in modes if m in _ROUNDINGS)], to, value)
            else:
                value = self.cast("fpext" if to == "f64" else "fptrunc", of, value, to)
        elif to[0] == "f":
            value = self.cast("sitofp" if of[0] == "s" else "uitofp", of, value, to)
        elif of[0] == "f":
            value = self._to_integer(value, of, to, modes)
        elif width_of(to) != width_of(of):
            extend = "sext" if of[0] == "s" else "zext"
            value = self.cast("trunc" if width_of(to) < width_of(of) else extend, of, value, to)
        self.set(target, to, value)

    def _to_integer(self, value: str, of: str, to: str, modes: list[str]) -> str:
        """Convert floats to integers, too great ones to the greatest and NaN to zero."""
        rounding = _ROUNDINGS[next(m for m in modes if m in _ROUNDINGS)]
        if rounding != "llvm.trunc":
            value = self.call(rounding, of, value)
        code = "fptosi" if to[0] == "s" else "fptoui"
        name = f"llvm.{code}.sat.v{LANES}i{to[1:]}.v{LANES}{of}"
        self.lines.declare(name, vector_of(to), vector_of(of))
        return self.emit(f"call {vector_of(to)} @{name}({vector_of(of)} {value})")

    # ---------------------------------------------------------------- between the threads of a warp

    def together(self, mask: str, whole: bool = False) -> None:
        """Report threads of a mask that an instruction waits for and that are elsewhere.

        `whole`: the mask itself must hold all threads of the warp.
        """
        lanes = self.read(mask, "b32")
        wanted = self.emit(f"extractelement {vector_of('b32')} {lanes}, i32 0")
        self._await(self.lines.active(), wanted)
        if whole:
            self._await(wanted, "-1")
        self.lines.do("call void @exchange(i64 %context)")

    def _await(self, here: str, wanted: str) -> None:
        self.lines.do(f"call void @await(i32 {here}, i32 {wanted}, i64 {self.lines.site()}, i64 %context)")

    def shuffle(self, i: Instruction) -> None:
        """shfl: each thread reads a register of another one."""
        synchronous, mode, kind = i.modifiers
        target, source, b, c, mask = i.operands
        if synchronous != "sync" or kind != "b32":
            raise UnknownInstruction
        self.together(mask)
        value = self.read(source, "b32")
        target, _, valid = target.partition("|")
        if not b.startswith("%") and not c.startswith("%"):
            pairs = [shuffled(mode, lane, int(b, 0), int(c, 0)) for lane in range(LANES)]
            order = constant([lane for lane, _ in pairs], 32)
            vector = vector_of("b32")
            result = self.emit(f"shufflevector {vector} {value}, {vector} {value}, {vector} {order}")
            if valid:
                self.set(valid, "pred", constant([int(inside) for _, inside in pairs], 1))
        elif mode == "idx" and not c.startswith("%") and int(c, 0) == 31 and not valid:
            lane = self.binary("and", "b32", self.read(b, "b32"), every_lane(31, 32))
            result = self._gather(value, lane)
        else:
            raise UnknownInstruction
        self.set(target, "b32", result)

    def _gather(self, value: str, lane: str) -> str:
        """Return element `lane` of `value` in each thread."""
        vector = vector_of("b32")
        return self.emit(f"call {vector} @gather({vector} {value}, {vector} {lane})")

    def reduce(self, i: Instruction) -> None:
        """redux: all threads get the sum, the least ... of the warp."""
        synchronous, what, kind = i.modifiers
        target, source, mask = i.operands
        if synchronous != "sync":
            raise UnknownInstruction
        self.together(mask, whole=True)
        name = what if what in ("add", "and", "or", "xor") else ("s" if kind[0] == "s" else "u") + what
        function = f"llvm.vector.reduce.{name}.v{LANES}i32"
        self.lines.declare(function, "i32", vector_of("b32"))
        value = self.emit(f"call i32 @{function}({vector_of('b32')} {self.read(source, kind)})")
        self.set(target, kind, self.splat(value, 32))

    def splat(self, value: str, width: int) -> str:
        """Return a vector that has a scalar in every lane."""
        vector = f"<{LANES} x i{width}>"
        one = self.emit(f"insertelement {vector} {every_lane(0, width)}, i{width} {value}, i32 0")
        return self.emit(
            f"shufflevector {vector} {one}, {vector} {one}, {vector_of('b32')} {every_lane(0, 32)}"
        )

    def vote(self, i: Instruction) -> None:
        """vote: a predicate of all threads of the warp."""
        synchronous, what, _ = i.modifiers
        target, source, mask = i.operands
        if synchronous != "sync":
            raise UnknownInstruction
        self.together(mask, whole=True)
        negated, source = source.startswith("!"), source.lstrip("!")
        value = self.read(source, "pred")
        if negated:
            value = self.binary("xor", "pred", value, every_lane(1, 1))
        bits = self.emit(f"bitcast <{LANES} x i1> {value} to i32")
        if what == "ballot":
            self.set(target, "b32", self.splat(bits, 32))
            return
        outcome = {"any": "icmp ne i32 {}, 0", "all": "icmp eq i32 {}, -1"}[what]
        self.set(target, "pred", self.splat(self.emit(outcome.format(bits)), 1))

    def active_mask(self, i: Instruction) -> None:
        self.set(i.operands[0], "b32", self.splat(self.lines.active(), 32))

    def synchronize_warp(self, i: Instruction) -> None:
        """bar.warp: accesses of the warp before it come before those after it."""
        if i.modifiers != ("warp", "sync"):
            raise UnknownInstruction
        self.together(i.operands[0])
        self.lines.do("call void @synchronize(i64 %context)")

    def ignore(self, i: Instruction) -> None:
        """Fences and hints, which do nothing where memory is one and accesses come in order."""


_COMPARISONS = {
    name: {"f": f"fcmp {ordered}", "s": f"icmp {signed}", "u": f"icmp {unsigned}", "b": f"icmp {unsigned}"}
    for name, ordered, signed, unsigned in [
        ("eq", "oeq", "eq", "eq"), ("ne", "one", "ne", "ne"), ("lt", "olt", "slt", "ult"),
        ("le", "ole", "sle", "ule"), ("gt", "ogt", "sgt", "ugt"), ("ge", "oge", "sge", "uge"),
        ("lo", "", "", "ult"), ("ls", "", "", "ule"), ("hi", "", "", "ugt"), ("hs", "", "", "uge"),
        ("equ", "ueq", "", ""), ("neu", "une", "", ""), ("ltu", "ult", "", ""), ("leu", "ule", "", ""),
        ("gtu", "ugt", "", ""), ("geu", "uge", "", ""), ("num", "ord", "", ""), ("nan", "uno", "", ""),
    ]
}  # fmt: skip
_FUNCTIONS = {"sqrt": "sqrt", "ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos"}
_ROUNDINGS = {"rni": "llvm.rint", "rzi": "llvm.trunc", "rmi": "llvm.floor", "rpi": "llvm.ceil"}

RULES: dict[str, Callable[[Writer, Instruction], None]] = {
    "mov": Writer.move, "selp": Writer.select_by_predicate, "setp": Writer.compare,
    "and": Writer.logic, "or": Writer.logic, "xor": Writer.logic, "not": Writer.invert,
    "lop3": Writer.look_up, "shl": Writer.shift, "shr": Writer.shift, "shf": Writer.funnel_shift,
    "bfe": Writer.extract_bits,
    "add": Writer.add, "sub": Writer.add, "mul": Writer.multiply, "mad": Writer.multiply, "fma": Writer.fuse,
    "div": Writer.divide, "rem": Writer.divide, "min": Writer.extreme, "max": Writer.extreme,
    "abs": Writer.absolute, "neg": Writer.negate, "copysign": Writer.copy_sign,
    "sqrt": Writer.function, "rsqrt": Writer.function, "rcp": Writer.function, "ex2": Writer.function,
    "lg2": Writer.function, "sin": Writer.function, "cos": Writer.function,
    "popc": Writer.count_bits, "clz": Writer.count_bits, "brev": Writer.count_bits,
    "prmt": Writer.permute_bytes, "cvt": Writer.convert,
    "shfl": Writer.shuffle, "redux": Writer.reduce, "vote": Writer.vote, "activemask": Writer.active_mask,
    "bar": Writer.synchronize_warp, "membar": Writer.ignore, "fence": Writer.ignore,
    "nanosleep": Writer.ignore, "pragma": Writer.ignore, "griddepcontrol": Writer.ignore,
}  # fmt: skip
