"""The assignment step on the CPU in explicit 8-wide vectors.

The compiler does not vectorise a loop over pixels that keeps the best of several centres in registers;
spelled out in vectors of eight it runs three times as fast as the best form the compiler finds. LLVM lowers
the vectors to whatever the processor has. Additions and multiplications are IEEE and unfused, in
scikit-image's order.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
# One row per living centre: row, column, three colours, first and last row and column its window reaches,
# index.
CENTRE_COLUMNS = 10


@intrinsic
def assign_vectors(
    typingctx: Any,
    pixels: Any,
    stride: Any,
    labels: Any,
    vectors: Any,
    centres: Any,
    number: Any,
    weight: Any,
) -> Any:
    """Label every pixel with the nearest centre whose window reaches it (eq. 2, 3); lowest index on ties.

    Arguments, in this order: address of float32 [5, stride] (row, column and three colours of each pixel),
    stride in pixels, address of int32 [vectors * 8] labels (read and written: a pixel out of every window's
    reach keeps its label), number of vectors, address of float32 [number, 10] centres in ascending index,
    their number, float32 weight of a squared pixel. Returns whether any label changed.
    """
    signature = types.boolean(
        types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, types.float32
    )
    return signature, _generate


def _generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pixels, stride, labels, vectors, centres, number, weight = args
    scalar, integer = ir.FloatType(), ir.IntType(32)
    vector, ivector = ir.VectorType(scalar, LANES), ir.VectorType(integer, LANES)
    lanes = ir.Constant(pixels.type, LANES)

    def load(address: Any, index: Any, kind: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(address, scalar.as_pointer()), [index])
        return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)

    def splat(value: Any, kind: Any) -> Any:
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(integer, 0))
        return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(integer, LANES), [0] * LANES))

    weights = splat(weight, vector)
    differs = cgutils.alloca_once_value(builder, ir.Constant(ivector, [0] * LANES))
    best = cgutils.alloca_once(builder, vector)
    label = cgutils.alloca_once(builder, ivector)
    with cgutils.for_range(builder, vectors) as outer:
        start = builder.mul(outer.index, lanes)
        row, column, *colours = (
            load(pixels, builder.add(start, builder.mul(stride, ir.Constant(pixels.type, i))), vector)
            for i in range(5)
        )
        before = load(labels, start, ivector)
        builder.store(ir.Constant(vector, [float("inf")] * LANES), best)
        builder.store(before, label)
        with cgutils.for_range(builder, number) as inner:
            base = builder.mul(inner.index, ir.Constant(pixels.type, CENTRE_COLUMNS))
            centre = [
                splat(load(centres, builder.add(base, ir.Constant(pixels.type, i)), scalar), vector)
                for i in range(CENTRE_COLUMNS - 1)
            ]
            index = splat(
                load(centres, builder.add(base, ir.Constant(pixels.type, CENTRE_COLUMNS - 1)), integer),
                ivector,
            )
            dy, dx, d0, d1, d2 = (
                builder.fsub(c, x) for c, x in zip(centre, (row, column, *colours), strict=False)
            )
            space = builder.fmul(builder.fadd(builder.fmul(dy, dy), builder.fmul(dx, dx)), weights)
            colour = builder.fadd(
                builder.fadd(builder.fmul(d0, d0), builder.fmul(d1, d1)), builder.fmul(d2, d2)
            )
            distance = builder.fadd(space, colour)
            nearer = builder.fcmp_ordered("<", distance, builder.load(best))
            for value, first, last in ((row, centre[5], centre[6]), (column, centre[7], centre[8])):
                nearer = builder.and_(nearer, builder.fcmp_ordered(">=", value, first))
                nearer = builder.and_(nearer, builder.fcmp_ordered("<=", value, last))
            builder.store(builder.select(nearer, distance, builder.load(best)), best)
            builder.store(builder.select(nearer, index, builder.load(label)), label)
        after = builder.load(label)
        target = builder.gep(builder.inttoptr(labels, integer.as_pointer()), [start])
        builder.store(after, builder.bitcast(target, ivector.as_pointer()), align=4)
        builder.store(builder.or_(builder.load(differs), builder.xor(before, after)), differs)
    bits = builder.bitcast(builder.load(differs), ir.IntType(32 * LANES))
    return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))
