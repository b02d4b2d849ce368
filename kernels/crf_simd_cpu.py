"""Sums over a bilateral kernel on the CPU in explicit 8-wide vectors.

Four query pixels meet eight key pixels at a time: what a key costs to load is shared by four queries, and a
weight serves both directions of its pair. LLVM lowers the vectors to whatever the processor has.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.ir_cpu import Vectors

LANES = 8
QUERIES = 4
# Adding this float32 rounds a small number to an integer, which is then found in the lowest bits.
_ROUND = 12582912.0
# 2^x on -0.5..0.5 as 1 + x * (...): the least relative error of that degree, 1e-7.
_POWER = (0.69314697760, 0.24022242085, 0.05550733743, 0.00967151264, 0.00132647272)

_SIGNATURE = types.void(*[types.int64] * 10)


class _Builder(Vectors):
    """Shorthands around llvmlite's builder for vectors of eight."""

    def __init__(self, builder: Any):
        super().__init__(builder, LANES)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c: fused where the processor can."""
        return self.builder.call(self._fma, (a, b, c))

    def total(self, value: Any) -> Any:
        """Sum of the lanes, by halves."""
        for shift in (4, 2, 1):
            mask = ir.Constant(self.ivector, [(lane + shift) % LANES for lane in range(LANES)])
            value = self.builder.fadd(value, self.builder.shuffle_vector(value, value, mask))
        return self.builder.extract_element(value, ir.Constant(self.integer, 0))

    def power(self, squares: Any) -> Any:
        """2^-x of squared distances; 2^-126 for all above 126."""
        b = self.builder
        limit = self.constant(126.0)
        x = b.select(b.fcmp_ordered("<", squares, limit), squares, limit)
        rounded = b.fsub(self.constant(_ROUND), x)
        rest = b.fsub(b.fsub(self.constant(_ROUND), rounded), x)
        value = self.constant(_POWER[-1])
        for coefficient in (*_POWER[-2::-1], 1.0):
            value = self.fma(value, rest, self.constant(coefficient))
        exponent = b.shl(b.bitcast(rounded, self.ivector), ir.Constant(self.ivector, [23] * LANES))
        return b.bitcast(b.add(b.bitcast(value, self.ivector), exponent), self.vector)


def _rows(features: int) -> Any:
    """An intrinsic for that many features per pixel; 0 for weights that are read rather than made."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixels, stride, values, sums, kept, step, query, first, both, last = args
        v = _Builder(builder)
        planes = [builder.mul(stride, v.number(d)) for d in range(features)]
        places = [builder.add(query, v.number(q)) for q in range(QUERIES)]
        queries = [
            [v.splat(v.load(pixels, builder.add(plane, place), v.scalar)) for plane in planes]
            for place in places
        ]
        own = [v.splat(v.load(values, place, v.scalar)) for place in places]
        totals = [cgutils.alloca_once_value(builder, v.constant(0.0)) for _ in places]

        def weights(block: Any) -> list[Any]:
            base = builder.mul(builder.sub(block, first), step)
            if not features:
                return [
                    v.load(kept, builder.add(base, v.number(q * LANES)), v.vector) for q in range(QUERIES)
                ]
            start = builder.mul(block, v.number(LANES))
            keys = [v.load(pixels, builder.add(plane, start), v.vector) for plane in planes]
            made = []
            for q, query_features in enumerate(queries):
                squares = None
                for mine, other in zip(query_features, keys, strict=True):
                    d = builder.fsub(other, mine)
                    squares = builder.fmul(d, d) if squares is None else v.fma(d, d, squares)
                made.append(v.power(squares))
                v.store(made[-1], kept, builder.add(base, v.number(q * LANES)))
            return made

        def visit(block: Any, back: bool) -> None:
            start = builder.mul(block, v.number(LANES))
            value = v.load(values, start, v.vector)
            received = v.load(sums, start, v.vector) if back else None
            for weight, mine, total in zip(weights(block), own, totals, strict=True):
                builder.store(v.fma(weight, value, builder.load(total)), total)
                received = v.fma(weight, mine, received) if back else None
            if back:
                v.store(received, sums, start)

        with cgutils.for_range_slice(builder, first, both, v.number(1)) as (block, _):
            visit(block, False)
        with cgutils.for_range_slice(builder, both, last, v.number(1)) as (block, _):
            visit(block, True)
        for place, total in zip(places, totals, strict=True):
            v.store(builder.fadd(v.load(sums, place, v.scalar), v.total(builder.load(total))), sums, place)
        return context.get_dummy_value()

    @intrinsic
    def rows(
        typingctx: Any,
        pixels: Any,
        stride: Any,
        values: Any,
        sums: Any,
        kept: Any,
        step: Any,
        query: Any,
        first: Any,
        both: Any,
        last: Any,
    ) -> Any:
        """Add the weighted values of some keys to the sums of four queries, and the other way round.

        The weight of a pair is 2^-(squared distance of its features). All arguments are int64; addresses are
        of float32. In this order: address of [features, stride] pixels, stride, address of [stride] values,
        address of [stride] sums, address where weights are kept, floats between two blocks of 32 of these
        (0 keeps the last block only), first of the four queries, then three numbers of vectors of keys: the
        first; the first whose keys also receive from the queries, at or above all queries' own; the end.
        """
        return _SIGNATURE, generate

    return rows


gray_rows = _rows(3)
colour_rows = _rows(5)
kept_rows = _rows(0)
