"""Sums over the pixels of clusters on the CPU, each cluster's in raster order and without a branch a pixel.

A pixel's *record* is eight lanes: three channels, column, row, one, and two that nobody reads. Where it has
its predecessor's cluster its sums are in a register, else in memory; which is chosen without a branch, since
runs of one cluster end where nobody foresees it. Each addition waits for the one before, so two *streams* of
pixels run side by side: the left half of a row, and the right half of the row above it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mclc_gpu.kernels.ir_cpu import Vectors
from mclc_gpu.kernels.jit_cpu import compiled

RECORD = 8  # lanes; CHANNELS of them hold channels
CHANNELS, COLUMN, ROW, COUNT = 3, 3, 4, 5
BLOCK = 16  # pixels of a stream that one call adds
_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _adder(streams: int) -> Any:
    @intrinsic
    def add_blocks(
        typingctx: Any, plane0: Any, plane1: Any, plane2: Any, spans: Any, staged: Any, sums: Any, zero: Any
    ) -> Any:
        """Add the records of a block of each stream to sums.

        Arguments, in this order: addresses of three float32 [H, W] channels, address of int64 [streams, 4]
        spans (a block's first pixel as an index, its column, its row, where it is staged), address of what
        `_stage` filled in, address of the sums, a number of their type.
        """
        arguments = [types.int64] * 6 + [zero]
        return types.none(*arguments), lambda context, builder, signature, args: _add(
            builder, streams, args, zero == types.float64, context
        )

    return add_blocks


def _add(b: Any, streams: int, args: Any, double: bool, context: Any) -> Any:
    *planes, spans, staged, sums, _ = args
    v, quad = Vectors(b, BLOCK), Vectors(b, 4)
    kind = ir.VectorType(ir.DoubleType() if double else _FLOAT, RECORD)
    bits = ir.VectorType(_LONG if double else _INT, RECORD)
    everywhere = ir.Constant(ir.VectorType(_INT, RECORD), [0] * RECORD)
    records, places = [], []
    for i in range(streams):
        start, column, y, place = (v.load(spans, v.number(8 * i + 2 * j), _LONG) for j in range(4))
        records.append(_records(b, quad, planes, start, column, y))
        places.append(place)
    totals = [ir.Constant(bits, None)] * streams
    for pixel in range(BLOCK):
        for i in range(streams):
            target, source, same = (
                v.load(staged, b.add(places[i], v.number(BLOCK * j + pixel)), _INT) for j in range(3)
            )
            if double:
                same = b.sext(same, _LONG)
            mask = b.insert_element(ir.Constant(bits, ir.Undefined), same, _INT(0))
            kept = b.and_(totals[i], b.shuffle_vector(mask, mask, everywhere))
            total = b.bitcast(b.or_(kept, v.load(sums, b.sext(source, _LONG), bits)), kind)
            record = records[i][pixel]
            total = b.fadd(total, b.fpext(record, kind) if double else record)
            v.store(total, sums, b.sext(target, _LONG))
            totals[i] = b.bitcast(total, bits)
    return context.get_dummy_value()


def _records(b: Any, v: Vectors, planes: Any, start: Any, column: Any, y: Any) -> list[Any]:
    """The records of a block's pixels."""
    rest = ir.Constant(v.vector, [0.0, 1.0, 0.0, 0.0])
    rest = b.insert_element(rest, b.sitofp(y, _FLOAT), _INT(0))
    records = []
    for x in range(0, BLOCK, 4):
        values = [v.load(plane, b.add(start, v.number(x)), v.vector) for plane in planes]
        columns = b.add(v.splat(b.trunc(column, _INT)), ir.Constant(v.ivector, [x + i for i in range(4)]))
        values.append(b.sitofp(columns, v.vector))
        zipped = ir.Constant(ir.VectorType(_INT, 8), [0, 4, 1, 5, 2, 6, 3, 7])
        low, high = (b.shuffle_vector(values[i], values[i + 1], zipped) for i in (0, 2))
        for i in range(4):
            order = ir.Constant(v.ivector, [2 * i, 2 * i + 1, 8 + 2 * i, 9 + 2 * i])
            half = b.shuffle_vector(low, high, order)
            whole = ir.Constant(ir.VectorType(_INT, RECORD), list(range(RECORD)))
            records.append(b.shuffle_vector(half, rest, whole))
    return records


_add_one, _add_two = _adder(1), _adder(2)


@intrinsic
def _stage_block(
    typingctx: Any, labels: Any, column: Any, begin: Any, first: Any, number: Any, size: Any, staged: Any
) -> Any:
    """For each pixel of a block: where its sums go, where they come from, and -1 if at hand (else 0).

    At hand are those of a pixel whose predecessor has the same; they are not read from memory, where they
    arrive late, but zeros are. Arguments, in this order: address of a row of int32 labels, the block's first
    column, the first column that counts, the first cluster, the number of clusters, the size of a record in
    units of 32 bits, address of int32 [3, BLOCK].
    """
    return types.none(*[types.int64] * 7), _write_stage


def _write_stage(context: Any, b: Any, signature: Any, args: Any) -> Any:
    labels, column, begin, first, number, size, staged = args
    v = Vectors(b, BLOCK)
    numbers = (column, begin, first, number, size)
    start, own, first, number, size = (v.splat(b.trunc(i, _INT)) for i in numbers)
    index = b.sub(v.load(labels, column, v.ivector), first)
    columns = b.add(start, ir.Constant(v.ivector, list(range(BLOCK))))
    index = b.select(b.icmp_signed(">=", columns, own), index, number)
    index = b.select(b.icmp_unsigned("<", index, number), index, number)
    before = b.shuffle_vector(index, v.iconstant(-1), ir.Constant(v.ivector, [BLOCK, *range(BLOCK - 1)]))
    same = b.icmp_signed("==", index, before)
    source = b.select(same, b.add(number, v.iconstant(1)), index)
    for i, values in enumerate((b.mul(index, size), b.mul(source, size), b.sext(same, v.ivector))):
        v.store(values, staged, v.number(i * BLOCK))
    return context.get_dummy_value()


@compiled()
def _stage(labels, first, number, size, staged):
    """Stage a row."""
    width = labels.shape[0]
    for block in range(staged.shape[0]):
        column = min(block * BLOCK, width - BLOCK)
        _stage_block(
            labels.ctypes.data, column, block * BLOCK, first, number, size,
            staged.ctypes.data + 12 * BLOCK * block,
        )  # fmt: skip


@compiled()
def sum_rows(features, c, labels, top, bottom, first, last, widest, zero):
    """Sums [last - first, RECORD] of the pixels of the rows top..bottom in the clusters first..last.

    From channel c on; where fewer than CHANNELS are left, the last one is summed again. Rows have at least
    BLOCK pixels, and no cluster more than `widest` columns from its first to its last. The type is `zero`'s.
    """
    channels, _, width = features.shape
    blocks = (width + BLOCK - 1) // BLOCK
    half = (blocks + 1) // 2
    # A cluster in both halves leaves the right one of a row before the left one of the next row reaches it.
    # The last block adds its pixels up to a block late.
    streams = 2 if widest + BLOCK <= half * BLOCK else 1
    steps = half if streams == 2 else blocks
    number = last - first
    sums = np.full((number + 2, RECORD), zero)
    size = sums.itemsize // 4 * RECORD
    # Two rows, and one whose pixels belong to no cluster.
    staged = np.empty((3, 2 * half, 3, BLOCK), np.int32)
    _stage(np.full(width, -1, np.int32), 0, number, size, staged[2])
    spans = np.empty((2, 4), np.int64)
    p0 = features[c].ctypes.data
    p1, p2 = features[min(c + 1, channels - 1)].ctypes.data, features[min(c + 2, channels - 1)].ctypes.data
    for y in range(top, bottom + streams - 1):
        if y < bottom:
            _stage(labels[y], first, number, size, staged[y % 2])
        for block in range(steps):
            for i in range(streams):
                row, place = y - i, block + half * i
                inside = row >= top and row < bottom
                start = min(place * BLOCK, width - BLOCK)
                slot = row % 2 if inside else 2
                row = row if inside else top
                spans[i, 0], spans[i, 1], spans[i, 2] = row * width + start, start, row
                spans[i, 3] = (slot * 2 * half + place) * 3 * BLOCK
            if streams == 2:
                _add_two(p0, p1, p2, spans.ctypes.data, staged.ctypes.data, sums.ctypes.data, zero)
            else:
                _add_one(p0, p1, p2, spans.ctypes.data, staged.ctypes.data, sums.ctypes.data, zero)
    return sums[:number]
