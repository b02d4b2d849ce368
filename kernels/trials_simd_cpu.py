"""The steps of clustering on the CPU in explicit vectors: noise, assignment, update.

The compiler does not vectorise a loop over pixels that keeps the best of several centres in registers, nor
one that adds to one of several sums. Additions and multiplications are IEEE and unfused, in scikit-image's
order: the vectors' width does not change a bit.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.ir_cpu import WIDEST, Vectors

LANES = WIDEST
# Vectors of pixels that share what a centre costs to load.
_TOGETHER = 2
BLOCK = LANES * _TOGETHER
# One row per living centre: row, column, three colours; first row and column its window reaches, and how many
# follow, in the halves of one integer each; index.
CENTRE_COLUMNS = 8
# Clusters that `sum_vectors` adds up, and of each the sums.
SUMMED, SUMS = 16, 6


@intrinsic
def assign_vectors(
    typingctx: Any,
    pixels: Any,
    stride: Any,
    labels: Any,
    blocks: Any,
    centres: Any,
    number: Any,
    weight: Any,
) -> Any:
    """Label every pixel with the nearest centre whose window reaches it (eq. 2, 3); lowest index on ties.

    Arguments, in this order: address of 32-bit [6, stride] (row, column and three colours of each pixel as
    float32; row and column in the halves of one integer), stride in pixels, address of int32 [blocks * BLOCK]
    labels (read and written: a pixel out of every window's reach keeps its label), number of blocks, address
    of float32 [number, CENTRE_COLUMNS] centres in ascending index, their number, float32 weight of a squared
    pixel. Returns whether any label changed.
    """
    signature = types.boolean(
        types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, types.float32
    )
    return signature, _assign


def _assign(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pixels, stride, labels, blocks, centres, number, weight = args
    v = Vectors(builder, LANES)
    halves = ir.VectorType(ir.IntType(16), 2 * LANES)
    smaller = v.function(f"llvm.umin.v{2 * LANES}i16", halves, 2)
    weights = v.splat(weight)
    differs = cgutils.alloca_once_value(builder, v.iconstant(0))
    bests = [cgutils.alloca_once(builder, v.vector) for _ in range(_TOGETHER)]
    found = [cgutils.alloca_once(builder, v.ivector) for _ in range(_TOGETHER)]
    planes = [builder.mul(stride, v.number(i)) for i in range(6)]
    with cgutils.for_range(builder, blocks) as outer:
        starts = [
            builder.add(builder.mul(outer.index, v.number(BLOCK)), v.number(i * LANES))
            for i in range(_TOGETHER)
        ]
        features = [[v.load(pixels, builder.add(start, p), v.vector) for p in planes[:5]] for start in starts]
        places = [
            builder.bitcast(v.load(pixels, builder.add(start, planes[5]), v.ivector), halves)
            for start in starts
        ]
        before = [v.load(labels, start, v.ivector) for start in starts]
        for i in range(_TOGETHER):
            builder.store(v.constant(float("inf")), bests[i])
            builder.store(before[i], found[i])
        with cgutils.for_range(builder, number) as inner:
            base = builder.mul(inner.index, v.number(CENTRE_COLUMNS))
            row = [builder.add(base, v.number(i)) for i in range(CENTRE_COLUMNS)]
            centre = [v.splat(v.load(centres, at, v.scalar)) for at in row[:5]]
            first, extent, index = (v.splat(v.load(centres, at, v.integer)) for at in row[5:])
            for i in range(_TOGETHER):
                dy, dx, d0, d1, d2 = (builder.fsub(c, x) for c, x in zip(centre, features[i], strict=True))
                space = builder.fmul(builder.fadd(builder.fmul(dy, dy), builder.fmul(dx, dx)), weights)
                colour = builder.fadd(
                    builder.fadd(builder.fmul(d0, d0), builder.fmul(d1, d1)), builder.fmul(d2, d2)
                )
                distance = builder.fadd(space, colour)
                # Unsigned, row and column at once: first <= place <= first + extent.
                offset = builder.sub(places[i], builder.bitcast(first, halves))
                within = builder.call(smaller, (offset, builder.bitcast(extent, halves)))
                reached = builder.icmp_unsigned(
                    "==", builder.bitcast(within, v.ivector), builder.bitcast(offset, v.ivector)
                )
                nearer = builder.fcmp_ordered("<", distance, builder.load(bests[i]))
                nearer = builder.and_(nearer, reached)
                builder.store(builder.select(nearer, distance, builder.load(bests[i])), bests[i])
                builder.store(builder.select(nearer, index, builder.load(found[i])), found[i])
        for i in range(_TOGETHER):
            after = builder.load(found[i])
            v.store(after, labels, starts[i])
            builder.store(builder.or_(builder.load(differs), builder.xor(before[i], after)), differs)
    bits = builder.bitcast(builder.load(differs), ir.IntType(32 * LANES))
    return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))


@intrinsic
def sum_vectors(typingctx: Any, pixels: Any, stride: Any, labels: Any, size: Any, sums: Any) -> Any:
    """Add up the pixels of clusters 0 .. SUMMED - 1, each cluster's in ascending order: a lane is a cluster.

    Arguments, in this order: addresses and stride as of `assign_vectors`, number of pixels, address of
    float32 [SUMS, SUMMED], which is written: pixels, rows, columns, three colours.
    """
    return types.void(*[types.int64] * 5), _sum


def _sum(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pixels, stride, labels, size, sums = args
    v = Vectors(builder, SUMMED)
    totals = [cgutils.alloca_once_value(builder, v.constant(0.0)) for _ in range(SUMS)]
    planes = [builder.mul(stride, v.number(i)) for i in range(5)]
    clusters = ir.Constant(v.ivector, list(range(SUMMED)))
    with cgutils.for_range(builder, size) as loop:
        member = builder.icmp_unsigned("==", v.splat(v.load(labels, loop.index, v.integer)), clusters)
        values = [v.splat(v.load(pixels, builder.add(loop.index, p), v.scalar)) for p in planes]
        for total, value in zip(totals, [v.constant(1.0), *values], strict=True):
            before = builder.load(total)
            builder.store(builder.select(member, builder.fadd(before, value), before), total)
    for i, total in enumerate(totals):
        v.store(builder.load(total), sums, v.number(i * SUMMED))
    return context.get_dummy_value()


@intrinsic
def philox_vectors(
    typingctx: Any, words: Any, stride: Any, vectors: Any, trial: Any, target: Any, key: Any
) -> Any:
    """Words 0, 1 and 2 of Philox 4x32-10 with counter (pixel, trial, target, 0), for successive pixels.

    Arguments, in this order: address of uint32 [3, stride], which is written; stride; number of vectors of
    8 pixels; trial, target (both below 2^32) and the 64-bit key.
    """
    return types.void(*[types.int64] * 5, types.uint64), _philox


def _philox(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    words, stride, vectors, trial, target, key = args
    v = Vectors(builder, 8)
    wide = ir.VectorType(v.index, 8)

    def splat(value: Any) -> Any:
        one = builder.insert_element(ir.Constant(wide, ir.Undefined), value, ir.Constant(v.integer, 0))
        return builder.shuffle_vector(one, one, v.iconstant(0))

    def every(value: int) -> Any:
        return ir.Constant(wide, [value] * 8)

    low = every(0xFFFFFFFF)
    # Upper halves hold whatever they like: only products read their operands, and those as 32 bits.
    keys = [[splat(key), splat(builder.lshr(key, v.number(32)))]]
    for _ in range(9):
        keys.append(
            [builder.add(k, every(w)) for k, w in zip(keys[-1], (0x9E3779B9, 0xBB67AE85), strict=True)]
        )
    with cgutils.for_range(builder, vectors) as loop:
        start = builder.mul(loop.index, v.number(8))
        c0 = builder.add(splat(start), ir.Constant(wide, list(range(8))))
        c1, c2, c3 = splat(trial), splat(target), every(0)
        for k0, k1 in keys:
            product0 = builder.mul(builder.and_(c0, low), every(0xD2511F53))
            product2 = builder.mul(builder.and_(c2, low), every(0xCD9E8D57))
            c0 = builder.xor(builder.xor(builder.lshr(product2, every(32)), c1), k0)
            c2 = builder.xor(builder.xor(builder.lshr(product0, every(32)), c3), k1)
            c1, c3 = product2, product0
        for i, word in enumerate((c0, c1, c2)):
            place = builder.add(start, builder.mul(stride, v.number(i)))
            v.store(builder.trunc(word, v.ivector), words, place)
    return context.get_dummy_value()
