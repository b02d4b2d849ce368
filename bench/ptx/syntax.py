"""PTX, the assembly language of NVIDIA GPUs: basic blocks of instructions, and its types in LLVM."""

import re
from collections import Counter
from dataclasses import dataclass, field


class UnknownInstruction(Exception):
    """The emulator does not know an instruction of the program."""


_REGISTER = re.compile(r"%(?:p|rs|rd|r|f|fd)\d+")
_ENDS = {"bra", "ret", "exit", "bar", "barrier"}
_WITHOUT_RESULT = {"st", "red", "stmatrix"}


LANES = 32
WIDTHS = {
    "%p": 1,
    "%rs": 16,
    "%r": 32,
    "%rd": 64,
    "%f": 32,
    "%fd": 64,
}  # bits of the registers by their prefix


def width_of(kind: str) -> int:
    """Return the bits of a PTX type such as "s32"; 1 for "pred"."""
    return 1 if kind == "pred" else int(kind[1:])


def vector_of(kind: str) -> str:
    """Return the LLVM type of a PTX type over a warp: "<32 x i32>" of "s32"."""
    return f"<{LANES} x {scalar_of(kind)}>"


def scalar_of(kind: str) -> str:
    """Return the LLVM type of a PTX type."""
    if kind == "f32":
        return "float"
    return "double" if kind == "f64" else f"i{width_of(kind)}"


def constant(values: list[int], width: int) -> str:
    """Return an LLVM constant of 32 integers."""
    return f"<{', '.join(f'i{width} {value}' for value in values)}>"


def every_lane(value: int, width: int) -> str:
    """Return an LLVM constant that has the same bits in all lanes."""
    value &= (1 << width) - 1
    if width == 1:
        return constant([value] * LANES, 1)
    return constant([value - (1 << width) if value >> (width - 1) else value] * LANES, width)


def register_width(register: str) -> int:
    """Return the bits of a register, also of a special one such as ``%tid.x``."""
    prefix = re.match(r"%[a-z]+(?=\d+$)", register)
    return WIDTHS[prefix[0]] if prefix else 32


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """Return the lane that a lane reads, and if that is the one asked for."""
    clamp, segment = c & 31, c >> 8 & 31
    first, last = lane & segment, (lane & segment) | (clamp & ~segment)
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | (b & 31 & ~segment)}[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@dataclass(frozen=True)
class Instruction:
    """A PTX instruction.

    Attributes
    ----------
    text : str
        As in the program, without its guard.
    name, modifiers
        "setp" and ("lt", "s32") of ``setp.lt.s32``.
    operands : tuple of str
        "%r1", "{%r1, %r2}", "[%rd1+8]", "0f3F800000" ...
    guard : str
        Predicate register without which a thread leaves the instruction out; "" if there is none.
    negated : bool
        The guard must be false instead of true.
    line : str
        Source line, such as "trials_triton.py:120".
    """

    text: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False
    line: str = ""

    @property
    def kind(self) -> str:
        """Type that the instruction computes in, such as "s32": its last modifier."""
        return self.modifiers[-1] if self.modifiers else ""

    @property
    def ends_block(self) -> bool:
        """If it is a branch, a return or a barrier of the whole program."""
        return self.name in _ENDS and "warp" not in self.modifiers

    @property
    def only_written(self) -> set[str]:
        """Registers that the instruction writes and does not read."""
        if not self.operands or self.name in _WITHOUT_RESULT or self.ends_block:
            return set()
        return set(_REGISTER.findall(self.operands[0])) - set(_REGISTER.findall(" ".join(self.operands[1:])))

    @property
    def registers(self) -> list[str]:
        """Return all registers that the instruction reads or writes."""
        return _REGISTER.findall(" ".join([self.guard, *self.operands]))


@dataclass
class Block:
    """Instructions that run one after another; only the last one may be a branch or a barrier."""

    instructions: list[Instruction] = field(default_factory=list)

    @property
    def opcodes(self) -> Counter[str]:
        """Number of instructions by opcode, such as "add.rn.f32"."""
        return Counter(".".join([i.name, *i.modifiers]) for i in self.instructions)

    @property
    def lines(self) -> Counter[str]:
        """Number of instructions by source line."""
        return Counter(i.line for i in self.instructions)


@dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes
    ----------
    name : str
    blocks : list of Block
    labels : dict
        Index of the block that follows each label; ``len(blocks)`` after the last one.
    parameters : list of str
        Types of the parameters.
    threads : int
        Threads of a program (a "block" in CUDA).
    text : str
        The PTX.
    """

    name: str
    blocks: list[Block]
    labels: dict[str, int]
    parameters: list[str]
    threads: int
    text: str


_STATEMENT = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z]\w*)((?:[.:][\w:]+)*)\s*(.*)", re.DOTALL)
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*/)?([^"]+)"')


def parse(ptx: str) -> Program:
    """Read the only kernel of a PTX module, as Triton compiles them.

    Raises
    ------
    UnknownInstruction
        A statement that is no instruction known here by its form.
    """
    header = re.search(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\n\{", ptx, re.DOTALL)
    if not header:
        raise UnknownInstruction("the module has no entry")
    files = {number: name for number, _, name in _FILE.findall(ptx)}
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", header[3])
    parameters = re.findall(r"\.param\s+\.(\w+)", header[2])
    blocks, labels = [Block()], {}
    line = ""
    for statement in _statements(ptx[header.end() :]):
        if location := _LOCATION.match(statement):
            line = f"{files.get(location[1], location[1])}:{location[2]}"
        elif statement.endswith(":"):
            if blocks[-1].instructions:
                blocks.append(Block())
            labels[statement[:-1]] = len(blocks) - 1
        else:
            instruction = _instruction(statement, line)
            blocks[-1].instructions.append(instruction)
            if instruction.ends_block:
                blocks.append(Block())
    if not blocks[-1].instructions:
        blocks.pop()
    return Program(header[1], blocks, labels, parameters, int(threads[1]) if threads else 32, ptx)


def _statements(body: str) -> list[str]:
    """Split the body of a kernel into instructions, labels ("name:") and locations (".loc 1 20 4")."""
    found = []
    begun = ""
    for raw in re.sub(r"//[^\n]*", "", body).split("\n"):
        line = begun + raw.strip()
        if line.startswith(".section"):
            break
        if line.startswith(".loc") or re.fullmatch(r"[$\w]+:", line):
            found.append(line)
            continue
        if line and line[-1] not in ";{}:" and not line.startswith("."):
            begun = line + " "
            continue
        begun = ""
        # Inline assembly has braces of its own around declarations and several statements on a line.
        if line.startswith("{ .reg"):
            line = line.strip("{} ")
        found += [part.strip() for part in line.split(";") if part.strip() not in ("", "{", "}")]
    return [s for s in found if s.startswith(".loc") or not s.startswith(".")]


def _instruction(statement: str, line: str) -> Instruction:
    parts = _STATEMENT.fullmatch(statement)
    if not parts:
        raise UnknownInstruction(f"{statement!r} ({line})")
    negated, guard, name, modifiers, operands = parts.groups()
    return Instruction(
        statement.split(maxsplit=1)[1] if guard else statement,
        name,
        tuple(m for m in re.split(r"[.]", modifiers) if m),
        split_operands(operands),
        guard or "",
        negated == "!",
        line,
    )


def split_operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside brackets and braces, and before an operand in brackets."""
    parts, depth, now = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(now.strip())
            now = ""
        else:
            now += character
    return tuple(part for part in [*parts, now.strip()] if part)


def members(operand: str) -> list[str]:
    """Return the members of a vector operand, "{%r1, %r2}"; of another operand, itself."""
    return [member.strip() for member in operand.strip("{} ").split(",")]
