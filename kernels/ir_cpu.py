"""Explicit vectors in LLVM's language, for loops that the compiler does not vectorise as well by itself.

LLVM lowers a vector of any width to whatever the processor has, so that the width changes the speed alone.
"""

from typing import Any

from llvmlite import binding, ir

# Floats in a vector of the processor: 16 with AVX-512; eight elsewhere, as two where they do not fit one.
WIDEST = 16 if binding.get_host_cpu_features().get("avx512f") else 8


class Vectors:
    """Shorthands around llvmlite's builder for vectors of one number of lanes, 32 bits each."""

    def __init__(self, builder: Any, lanes: int):
        self.builder, self.lanes = builder, lanes
        self.scalar, self.integer, self.index = ir.FloatType(), ir.IntType(32), ir.IntType(64)
        self.vector = ir.VectorType(self.scalar, lanes)
        self.ivector = ir.VectorType(self.integer, lanes)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.lanes)

    def iconstant(self, value: int) -> Any:
        return ir.Constant(self.ivector, [value] * self.lanes)

    def number(self, value: int) -> Any:
        return ir.Constant(self.index, value)

    def function(self, name: str, kind: Any, arguments: int) -> Any:
        """LLVM's own function of that name for arguments and a result of one type."""
        signature = ir.FunctionType(kind, [kind] * arguments)
        return self.builder.module.globals.get(name) or ir.Function(self.builder.module, signature, name)

    def pointer(self, address: Any, offset: Any, kind: Any) -> Any:
        """Pointer to a value of some type at a number of 32-bit elements behind an address."""
        pointer = self.builder.gep(self.builder.inttoptr(address, self.scalar.as_pointer()), [offset])
        return self.builder.bitcast(pointer, kind.as_pointer())

    def load(self, address: Any, offset: Any, kind: Any) -> Any:
        return self.builder.load(self.pointer(address, offset, kind), align=4)

    def store(self, value: Any, address: Any, offset: Any) -> None:
        self.builder.store(value, self.pointer(address, offset, value.type), align=4)

    def splat(self, value: Any) -> Any:
        """The same 32-bit number in every lane."""
        kind = self.vector if value.type == self.scalar else self.ivector
        place = ir.Constant(self.integer, 0)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, place)
        return self.builder.shuffle_vector(one, one, self.iconstant(0))
