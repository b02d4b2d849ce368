"""Loops of SLIC on the CPU with explicit vectors: tiles against centers, and the sums over clusters.

The plain twins of the same names are in `slic_tile_cpu`. There the compiler writes the list of centers one by
one, and reads a cluster's sums from memory wherever the label changes, where they arrive late. LLVM lowers a
vector of any width to those of the processor, so that the width changes the speed alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import float32, types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.jit_cpu import compiled, stack_array
from mclc_gpu.kernels.slic_tile_cpu import (
    COLORS,
    FIRST_X,
    FIRST_Y,
    INDEX,
    LAST_X,
    LAST_Y,
    OWNERS,
    PLACE,
    TILE_X,
    TILE_Y,
)  # fmt: skip

RECORD = 8  # lanes; CHANNELS of them hold channels
CHANNELS, COLUMN, ROW, COUNT = 3, 3, 4, 5
BLOCK = 16  # pixels of a stream that one call adds
_GROUP = 16  # centers whose distances to a box are computed together
_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_INFINITY = 0x7F800000  # its bits
# Floats in a vector of the processor: 16 with AVX-512; eight elsewhere, as two where they do not fit one.
_LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
_ROWS = _LANES // 2  # the nearest centers of so many rows, and their distances, fit the registers
_PIXELS = TILE_Y * TILE_X
_scratch, _corner = stack_array(float32, 3 * _PIXELS), stack_array(float32, 2)


class Vectors:
    """Vectors of one number of lanes of 32 bits, by llvmlite's builder, and addresses in arrays."""

    def __init__(self, builder: Any, lanes: int):
        self.builder, self.lanes = builder, lanes
        self.scalar, self.integer, self.index = ir.FloatType(), ir.IntType(32), ir.IntType(64)
        self.vector = ir.VectorType(self.scalar, lanes)
        self.ivector = ir.VectorType(self.integer, lanes)

    def constant(self, value: float) -> Any:
        """Return the same float in all lanes."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def iconstant(self, value: int) -> Any:
        """Return the same integer in all lanes."""
        return ir.Constant(self.ivector, [value] * self.lanes)

    def number(self, value: int) -> Any:
        """Return an index."""
        return ir.Constant(self.index, value)

    def pointer(self, address: Any, offset: Any, kind: Any) -> Any:
        """Return the pointer to a value of some type at a number of 32-bit elements behind an address."""
        pointer = self.builder.gep(self.builder.inttoptr(address, self.scalar.as_pointer()), [offset])
        return self.builder.bitcast(pointer, kind.as_pointer())

    def load(self, address: Any, offset: Any, kind: Any) -> Any:
        """Load a value."""
        return self.builder.load(self.pointer(address, offset, kind), align=4)

    def store(self, value: Any, address: Any, offset: Any) -> None:
        """Store a value."""
        self.builder.store(value, self.pointer(address, offset, value.type), align=4)

    def splat(self, value: Any) -> Any:
        """Return a 32-bit number in every lane."""
        kind = self.vector if value.type == self.scalar else self.ivector
        place = ir.Constant(self.integer, 0)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, place)
        return self.builder.shuffle_vector(one, one, self.iconstant(0))

    def get(self, base: Any, *terms: Any, kind: Any = None) -> Any:
        """Load (floats, or another kind) from the sum of `terms`: integers, or pairs of factors."""
        return self.load(base, self.offset(*terms), kind or self.vector)

    def put(self, value: Any, base: Any, *terms: Any) -> None:
        """Store a value at the sum of `terms`."""
        self.store(value, base, self.offset(*terms))

    def offset(self, *terms: Any) -> Any:
        """Return the sum of `terms`."""
        total = self.number(0)
        for term in terms:
            x, y = (
                self.number(i) if isinstance(i, int) else i
                for i in (term if isinstance(term, tuple) else (term, 1))
            )
            total = self.builder.add(total, self.builder.mul(x, y))
        return total

    def row(self, values: Any) -> Any:
        """Return a constant of floats or integers."""
        return ir.Constant(self.vector if isinstance(values[0], float) else self.ivector, list(values))

    def lane(self, vector: Any, lane: int) -> Any:
        """Return a vector with all lanes equal to one of another."""
        return self.builder.shuffle_vector(vector, vector, self.iconstant(lane))

    def norm(self, differences: Any) -> Any:
        """Return the sum of squares in the order given."""
        total, *others = (self.builder.fmul(d, d) for d in differences)
        for square in others:
            total = self.builder.fadd(total, square)
        return total

    def distance(self, down: Any, across: Any, weight: Any, color: Any) -> Any:
        """Return D^2 (eq. 3) of squared differences of row, column and (summed up) colors."""
        return self.builder.fadd(self.builder.fmul(self.builder.fadd(down, across), weight), color)

    def keep(self, new: Any, where: Any, cell: Any) -> None:
        """Replace the lanes of `cell` for which `where` holds."""
        self.builder.store(self.builder.select(where, new, self.builder.load(cell)), cell)

    def reduce(self, operation: str, vector: Any) -> Any:
        """Return `umax`, `umin` or `or` of the lanes of a vector of integers."""
        kind = ir.FunctionType(self.integer, [self.ivector])
        name = f"llvm.vector.reduce.{operation}.v{self.lanes}i32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [vector])


def _adder(streams: int) -> Any:
    @intrinsic
    def add_blocks(
        typingctx: Any, plane0: Any, plane1: Any, plane2: Any, spans: Any, staged: Any, sums: Any, zero: Any
    ) -> Any:
        """Add the records of a block of each stream to sums.

        Arguments, in this order: addresses of three float32 [H, W] channels, address of int64 [streams, 4]
        spans (a block's first pixel as an index, its column, its row, where it is staged), address of what
        `_sum_stage` filled in, address of the sums, a number of their type.
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
    """Return the records of a block's pixels."""
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
    """Write for each pixel of a block where its sums go, where they come from, and -1 if at hand (else 0).

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
def _sum_stage(labels, first, number, size, staged):
    """Stage a row."""
    width = labels.shape[0]
    for block in range(staged.shape[0]):
        column = min(block * BLOCK, width - BLOCK)
        _stage_block(
            labels.ctypes.data, column, block * BLOCK, first, number, size,
            staged.ctypes.data + 12 * BLOCK * block,
        )  # fmt: skip


@compiled()
def _summed(features, c, labels, top, bottom, first, last, widest, zero):
    """Return the sums [last - first, RECORD] of the rows top..bottom in the clusters first..last.

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
    _sum_stage(np.full(width, -1, np.int32), 0, number, size, staged[2])
    spans = np.empty((2, 4), np.int64)
    p0 = features[c].ctypes.data
    p1, p2 = features[min(c + 1, channels - 1)].ctypes.data, features[min(c + 2, channels - 1)].ctypes.data
    for y in range(top, bottom + streams - 1):
        if y < bottom:
            _sum_stage(labels[y], first, number, size, staged[y % 2])
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


@intrinsic
def _labeled(
    typingctx: Any, features: Any, plane: Any, width: Any, channels: Any, labels: Any, table: Any,
    stride: Any, kept: Any, number: Any, box: Any, weight: Any, owners: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Label the pixels of a tile with the nearest of the kept centers (eq. 2, 3); the first of several.

    Arguments, in this order: address of the tile's first pixel in float32 [C, H, W] features, H * W, W, C,
    address of the tile's first pixel in int32 [H, W] labels (read and written: a pixel that no window reaches
    keeps its label), address of the table of centers, length of its rows, address of int32 columns of the
    table in ascending order, their number, address of the tile's first row and column in float32, weight of a
    squared pixel, address of int32 [OWNERS + 1] that receives the centers that pixels have, and perhaps
    others, address of float32 [C, TILE_Y, TILE_X] scratch.

    Returns the number of owners (OWNERS: there may be more), the largest distance of a pixel to its nearest
    center (infinite if it has none), whether a label changed, the lowest and the highest label.
    """
    result = types.Tuple((types.int64, types.float32, types.boolean, types.int32, types.int32))
    arguments = [types.int64] * 10 + [types.float32, types.int64, types.int64]
    return result(*arguments), _assign_tile


def _assign_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    features, plane, width, channels, labels, *_, scratch = args
    v = Vectors(builder, _LANES)
    _stage_tile(v, features, plane, width, channels, labels, scratch)
    cells = [cgutils.alloca_once_value(builder, v.iconstant(i)) for i in (0, 0, -1, 0)]
    owned = cgutils.alloca_once_value(builder, _LONG(0))
    # Colors in three channels stay in registers, of any other number they are looped over.
    with builder.if_else(builder.icmp_signed("==", channels, _LONG(3))) as branches:
        for branch, unrolled in zip(branches, (True, False), strict=True):
            with branch:
                for y in range(0, TILE_Y, _ROWS):
                    for x in range(0, TILE_X, _LANES):
                        _assign_part(v, args, y, x, unrolled, cells, owned)

    differs = builder.icmp_unsigned("!=", v.reduce("or", builder.load(cells[1])), _INT(0))
    values = [
        builder.load(owned),
        builder.bitcast(v.reduce("umax", builder.load(cells[0])), _FLOAT),
        context.cast(builder, differs, types.boolean, types.boolean),
        v.reduce("umin", builder.load(cells[2])),
        v.reduce("umax", builder.load(cells[3])),
    ]
    return context.make_tuple(builder, signature.return_type, values)


def _stage_tile(
    v: Vectors, features: Any, plane: Any, width: Any, channels: Any, labels: Any, scratch: Any
) -> None:
    """Copy a tile's features to the scratch and ask the memory for the next tile's.

    The rows of an image whose width is a power of two share a few sets of the cache, and would drive each
    other out for every center; and no processor foresees the next lines of so many rows.
    """
    b = v.builder
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")

    def prefetched(base: Any, *terms: Any) -> None:
        pointer = v.pointer(base, v.offset(*terms, 2 * TILE_X), ir.IntType(8))
        b.call(prefetch, [pointer, _INT(0), _INT(3), _INT(1)])

    with cgutils.for_range(b, channels) as loop:
        for y in range(TILE_Y):
            for x in range(0, TILE_X, _LANES):
                values = v.get(features, (plane, loop.index), (width, y), x)
                v.put(values, scratch, (loop.index, _PIXELS), y * TILE_X + x)
            prefetched(features, (plane, loop.index), (width, y))
    for y in range(TILE_Y):
        prefetched(labels, (width, y))


def _assign_part(v: Vectors, args: Any, y: int, x: int, unrolled: bool, cells: Any, owned: Any) -> None:
    """Label the pixels of a tile from row y and column x on that fit the registers."""
    _, _, width, channels, labels, table, stride, kept, number, box, weight, owners, scratch = args
    b, rows = v.builder, range(_ROWS)
    best = [cgutils.alloca_once(b, v.vector) for _ in rows]
    label = [cgutils.alloca_once(b, v.ivector) for _ in rows]
    before = [v.get(labels, (width, y + i), x, kind=v.ivector) for i in rows]
    for i in rows:
        b.store(v.constant(float("inf")), best[i])
        b.store(before[i], label[i])

    def positions(dimension: int, first: int) -> Any:
        start = v.splat(v.get(box, dimension, kind=_FLOAT))
        return b.fadd(start, v.row([float(first + i) for i in range(_LANES)]))

    lines, columns, weights = positions(0, y), positions(1, x), v.splat(weight)
    with cgutils.for_range(b, number) as loop:
        place = b.sext(v.get(kept, loop.index, kind=_INT), _LONG)

        def value(row: Any, kind: Any = _FLOAT) -> Any:
            return v.splat(v.get(table, place, (row, stride), kind=kind))

        def squares(row: int, position: Any, first: int) -> Any:
            # Infinite where the window does not reach.
            d = b.fsub(value(row), position)
            reached = b.fcmp_ordered(">=", position, value(first))
            reached = b.and_(reached, b.fcmp_ordered("<=", position, value(first + 1)))
            return b.select(reached, b.fmul(d, d), v.constant(float("inf")))

        def difference(color: Any, channel: Any, i: int) -> Any:
            return b.fsub(color, v.get(scratch, (channel, _PIXELS), (y + i) * TILE_X + x))

        down, across = squares(PLACE, lines, FIRST_Y), squares(PLACE + 1, columns, FIRST_X)
        if unrolled:
            colors = [value(COLORS + c) for c in range(3)]
            sums = [v.norm([difference(colors[c], c, i) for c in range(3)]) for i in rows]
        else:
            totals = [cgutils.alloca_once(b, v.vector) for _ in rows]
            for total in totals:
                b.store(v.constant(0.0), total)
            with cgutils.for_range(b, channels) as inner:
                color = value(b.add(inner.index, _LONG(COLORS)))
                for i, total in enumerate(totals):
                    b.store(b.fadd(b.load(total), v.norm([difference(color, inner.index, i)])), total)
            sums = [b.load(total) for total in totals]
        index, won = value(INDEX, _INT), ir.VectorType(ir.IntType(1), _LANES)([0] * _LANES)
        for i in rows:
            distance = v.distance(v.lane(down, i), across, weights, sums[i])
            nearer = b.fcmp_ordered("<", distance, b.load(best[i]))
            won = b.or_(won, nearer)
            v.keep(distance, nearer, best[i])
            v.keep(index, nearer, label[i])
        v.put(v.get(table, place, (INDEX, stride), kind=_INT), owners, b.load(owned))
        mask = b.bitcast(won, ir.IntType(_LANES))
        more = b.add(b.load(owned), b.zext(b.icmp_unsigned("!=", mask, mask.type(0)), _LONG))
        b.store(b.select(b.icmp_unsigned("<", more, _LONG(OWNERS)), more, _LONG(OWNERS)), owned)
    farthest, differs, lowest, highest = cells
    for i in rows:
        after = b.load(label[i])
        v.put(after, labels, (width, y + i), x)
        b.store(b.or_(b.load(differs), b.xor(before[i], after)), differs)
        # Distances are not negative: their bits are in their order.
        distance = b.bitcast(b.load(best[i]), v.ivector)
        for cell, new, sign in ((farthest, distance, ">"), (highest, after, ">"), (lowest, after, "<")):
            v.keep(new, b.icmp_unsigned(sign, new, b.load(cell)), cell)


@intrinsic
def _listed(
    typingctx: Any, table: Any, stride: Any, number: Any, channels: Any, box: Any, bound: Any, weight: Any,
    kept: Any, colors: Any, slack: Any,
) -> Any:  # fmt: skip
    """List the centers of a table that may be nearest to a pixel of a box.

    Arguments, in this order: address of the table of centers, length of its rows (a multiple of _GROUP),
    number of centers, C, address of float32 [2, 2 + C] box, upper bound of its pixels' distances to their
    nearest center (infinite: one is found from the centers whose windows hold the whole box), weight of a
    squared pixel, address of int32 [stride] that receives columns of the table in ascending order, number of
    colors to look at (0 where all centers have the same), slack of a bound that is found.

    Returns the number of centers.
    """
    arguments = [types.int64] * 5 + [types.float32] * 2 + [types.int64] * 2 + [types.float32]
    return types.int64(*arguments), _near_centers


def _near_centers(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    table, stride, number, channels, box, bound, weight, kept, colors, slack = args
    b, v = builder, Vectors(builder, _GROUP)
    vectors = b.udiv(b.add(number, _LONG(_GROUP - 1)), _LONG(_GROUP))

    def side(dimension: Any, last: int) -> Any:
        return v.splat(v.get(box, dimension, (last, b.add(channels, _LONG(2))), kind=_FLOAT))

    def square(place: Any, row: Any, dimension: Any, far: bool) -> Any:
        center = v.get(table, place, (row, stride))
        low, high = b.fsub(side(dimension, 0), center), b.fsub(center, side(dimension, 1))
        if far:
            d = b.select(b.fcmp_ordered("<", low, high), low, high)
        else:
            d = b.select(b.fcmp_ordered(">", low, high), low, high)
            zero = v.constant(0.0)
            d = b.select(b.fcmp_ordered(">", d, zero), d, zero)
        return b.fmul(d, d)

    def distances(place: Any, far: bool) -> Any:
        """Return D^2 of a group of centers to the nearest or the farthest point of the box."""
        color = cgutils.alloca_once(b, v.vector)
        b.store(v.constant(0.0), color)
        with cgutils.for_range(b, colors) as loop:
            row, dimension = b.add(loop.index, _LONG(COLORS)), b.add(loop.index, _LONG(2))
            b.store(b.fadd(b.load(color), square(place, row, dimension, far)), color)
        down, across = (square(place, PLACE + i, _LONG(i), far) for i in range(2))
        return v.distance(down, across, v.splat(weight), b.load(color))

    def listed(place: Any) -> Any:
        lanes = b.add(v.splat(b.trunc(place, _INT)), v.row(range(_GROUP)))
        return b.icmp_signed("<", lanes, v.splat(b.trunc(number, _INT)))

    limit = cgutils.alloca_once_value(b, bound)
    with b.if_then(b.fcmp_ordered("==", bound, _FLOAT(float("inf")))):
        least = cgutils.alloca_once(b, v.ivector)
        b.store(v.iconstant(_INFINITY), least)
        with cgutils.for_range(b, vectors) as loop:
            place = b.mul(loop.index, _LONG(_GROUP))
            whole = listed(place)
            for row, dimension, last, sign in (
                (FIRST_Y, 0, 0, "<="), (LAST_Y, 0, 1, ">="), (FIRST_X, 1, 0, "<="), (LAST_X, 1, 1, ">=")
            ):  # fmt: skip
                reach = v.get(table, place, (row, stride))
                whole = b.and_(whole, b.fcmp_ordered(sign, reach, side(_LONG(dimension), last)))
            # NaN, as of infinite colors, has bits above those of infinity.
            upper = b.bitcast(distances(place, True), v.ivector)
            v.keep(upper, b.and_(whole, b.icmp_unsigned("<", upper, b.load(least))), least)
        upper = b.bitcast(v.reduce("umin", b.load(least)), _FLOAT)
        # Rounding moves a distance by less than a millionth.
        b.store(b.fadd(b.fmul(upper, _FLOAT(1.0001)), slack), limit)
    found = cgutils.alloca_once_value(b, _LONG(0))
    with cgutils.for_range(b, vectors) as loop:
        place = b.mul(loop.index, _LONG(_GROUP))
        far = b.fcmp_ordered(">", distances(place, False), v.splat(b.load(limit)))
        with _each_bit(b, b.bitcast(b.and_(listed(place), b.not_(far)), ir.IntType(_GROUP))) as lane:
            v.put(b.add(b.trunc(place, _INT), lane), kept, b.load(found))
            b.store(b.add(b.load(found), _LONG(1)), found)
    return b.load(found)


@contextmanager
def _each_bit(builder: Any, mask: Any) -> Iterator[Any]:
    """Loop over the bits that are set in `mask`, from the lowest; yields their position as int32."""
    rest = cgutils.alloca_once(builder, _INT)
    builder.store(builder.zext(mask, _INT), rest)
    head, body, end = (builder.append_basic_block(name) for name in ("bits", "bit", "bits.end"))
    builder.branch(head)
    builder.position_at_end(head)
    builder.cbranch(builder.icmp_unsigned("!=", builder.load(rest), _INT(0)), body, end)
    builder.position_at_end(body)
    value = builder.load(rest)
    yield builder.cttz(value, ir.IntType(1)(1))
    builder.store(builder.and_(value, builder.sub(value, _INT(1))), rest)
    builder.branch(head)
    builder.position_at_end(end)


@compiled(inline="always")
def assign_tile(features, labels, top, left, table, kept, found, weight, owners, ty, tx):
    """Label the pixels of a tile with the nearest of some centers; see `slic_tile_cpu.assign_tile`."""
    scratch = _scratch()
    return _labels(features, labels, top, left, table, kept, found, weight, owners, ty, tx, scratch)


@compiled(inline="always")
def assign_tile_of_channels(features, labels, top, left, table, kept, found, weight, owners, ty, tx, scratch):
    """Do the same with features [C, H, W] of any number of channels; scratch is float32 [C, pixels]."""
    return _labels(features, labels, top, left, table, kept, found, weight, owners, ty, tx, scratch)


@compiled(inline="always")
def _labels(features, labels, top, left, table, kept, found, weight, owners, ty, tx, scratch):
    channels, height, width = features.shape
    corner, first = _corner(), 4 * (np.int64(top) * width + np.int64(left))
    corner[0], corner[1] = np.float32(np.int64(top)), np.float32(np.int64(left))
    own = owners.ctypes.data + 4 * owners.shape[2] * (np.int64(ty) * owners.shape[1] + np.int64(tx))
    return _labeled(
        features.ctypes.data + first, height * width, width, channels, labels.ctypes.data + first,
        table.ctypes.data, table.shape[1], kept.ctypes.data, np.int64(found), corner.ctypes.data, weight, own,
        scratch.ctypes.data,
    )  # fmt: skip


@compiled(inline="always")
def near_centers(table, living, boxes, ty, tx, colors, bound, weight, slack, kept):
    """Find the centers that may be nearest to a pixel of a box; see `slic_tile_cpu.near_centers`."""
    size = boxes.shape[3]
    box = boxes.ctypes.data + 8 * size * (np.int64(ty) * boxes.shape[1] + np.int64(tx))
    return np.uintp(
        _listed(
            table.ctypes.data, table.shape[1], np.int64(living), size - 2, box, bound, weight,
            kept.ctypes.data, np.int64(colors), slack,
        )
    )  # fmt: skip


@compiled()
def add_rows(features, c, labels, top, bottom, first, last, widest, sums, counts):
    """Add the pixels of some rows to sums that are zero so far; see `slic_tile_cpu.add_rows`."""
    records = _summed(features, c, labels, top, bottom, first, last, widest, sums[0, 0])
    for k in range(last - first):
        sums[k, 0], sums[k, 1], counts[k] = records[k, ROW], records[k, COLUMN], np.int64(records[k, COUNT])
        for i in range(CHANNELS):
            sums[k, 2 + i] = records[k, i]
    if labels.size > 1 << 24 and sums.itemsize == 4:
        # In single precision, ones added to so many are lost.
        counts[:] = 0
        for label in labels[top:bottom].flat:
            if first <= label < last:
                counts[label - first] += 1
