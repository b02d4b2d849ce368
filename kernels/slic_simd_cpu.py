"""Assignment and sums of SLIC on the CPU with explicit vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.ir_cpu import WIDEST, Vectors
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


TILE_Y, TILE_X = 8, 16
OWNERS = 16  # more centres of a tile are not kept track of
# Rows of a table of centres, one column per centre: row, column, first and last row and column in reach,
# index, colours.
PLACE, FIRST_Y, LAST_Y, FIRST_X, LAST_X, INDEX, COLOURS = 0, 2, 3, 4, 5, 6, 7
# Pixels whose nearest centre and distance fit the registers: all of a tile, or a quarter.
_ROWS, _LANES = WIDEST // 2, WIDEST
_PIXELS = TILE_Y * TILE_X
_INFINITY = 0x7F800000  # its bits


class _Lanes(Vectors):
    """Vectors with addresses in arrays of several dimensions."""

    def get(self, base: Any, *terms: Any, kind: Any = None) -> Any:
        """Load (floats, or another kind) from the sum of `terms`: integers, or pairs of factors."""
        return self.load(base, self.offset(*terms), kind or self.vector)

    def put(self, value: Any, base: Any, *terms: Any) -> None:
        self.store(value, base, self.offset(*terms))

    def offset(self, *terms: Any) -> Any:
        total = self.number(0)
        for term in terms:
            x, y = (
                self.number(i) if isinstance(i, int) else i
                for i in (term if isinstance(term, tuple) else (term, 1))
            )
            total = self.builder.add(total, self.builder.mul(x, y))
        return total

    def row(self, values: Any) -> Any:
        """A constant of floats or integers."""
        return ir.Constant(self.vector if isinstance(values[0], float) else self.ivector, list(values))

    def lane(self, vector: Any, lane: int) -> Any:
        """All lanes equal to one of a vector."""
        return self.builder.shuffle_vector(vector, vector, self.iconstant(lane))

    def norm(self, differences: Any) -> Any:
        """Sum of squares in the order given."""
        total, *others = (self.builder.fmul(d, d) for d in differences)
        for square in others:
            total = self.builder.fadd(total, square)
        return total

    def distance(self, down: Any, across: Any, weight: Any, colour: Any) -> Any:
        """D^2 (eq. 3) of the squared differences of row and column and the sum of squared ones of colours."""
        return self.builder.fadd(self.builder.fmul(self.builder.fadd(down, across), weight), colour)

    def keep(self, new: Any, where: Any, cell: Any) -> None:
        """Replace the lanes of `cell` for which `where` holds."""
        self.builder.store(self.builder.select(where, new, self.builder.load(cell)), cell)

    def reduce(self, operation: str, vector: Any) -> Any:
        """`umax`, `umin` or `or` of the lanes of a vector of integers."""
        kind = ir.FunctionType(self.integer, [self.ivector])
        name = f"llvm.vector.reduce.{operation}.v{self.lanes}i32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [vector])


@intrinsic
def assign_tile(
    typingctx: Any, features: Any, plane: Any, width: Any, channels: Any, labels: Any, table: Any,
    stride: Any, kept: Any, number: Any, box: Any, weight: Any, owners: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Label the pixels of a tile with the nearest of the kept centres (eq. 2, 3); the first of several.

    Arguments, in this order: address of the tile's first pixel in float32 [C, H, W] features, H * W, W, C,
    address of the tile's first pixel in int32 [H, W] labels (read and written: a pixel that no window reaches
    keeps its label), address of the table of centres, length of its rows, address of int32 columns of the
    table in ascending order, their number, address of the tile's box, weight of a squared pixel, address of
    int32 [OWNERS + 1] that receives the centres that pixels have, and perhaps others, address of float32
    [C, TILE_Y, TILE_X] scratch.

    Returns the number of owners (OWNERS: there may be more), the largest distance of a pixel to its nearest
    centre (infinite if it has none), whether a label changed, the lowest and the highest label.
    """
    result = types.Tuple((types.int64, types.float32, types.boolean, types.int32, types.int32))
    arguments = [types.int64] * 10 + [types.float32, types.int64, types.int64]
    return result(*arguments), _assign_tile


def _assign_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    features, plane, width, channels, labels, *_, scratch = args
    v = _Lanes(builder, _LANES)
    _stage(v, features, plane, width, channels, labels, scratch)
    cells = [cgutils.alloca_once_value(builder, v.iconstant(i)) for i in (0, 0, -1, 0)]
    owned = cgutils.alloca_once_value(builder, _LONG(0))
    # Colours in three channels stay in registers, of any other number they are looped over.
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


def _stage(
    v: _Lanes, features: Any, plane: Any, width: Any, channels: Any, labels: Any, scratch: Any
) -> None:
    """Copy a tile's features to the scratch and ask the memory for the next tile's.

    The rows of an image whose width is a power of two share a few sets of the cache, and would drive each
    other out for every centre; and no processor foresees the next lines of so many rows.
    """
    b = v.builder
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")

    def ahead(base: Any, *terms: Any) -> None:
        pointer = v.pointer(base, v.offset(*terms, 2 * TILE_X), ir.IntType(8))
        b.call(prefetch, [pointer, _INT(0), _INT(3), _INT(1)])

    with cgutils.for_range(b, channels) as loop:
        for y in range(TILE_Y):
            for x in range(0, TILE_X, _LANES):
                values = v.get(features, (plane, loop.index), (width, y), x)
                v.put(values, scratch, (loop.index, _PIXELS), y * TILE_X + x)
            ahead(features, (plane, loop.index), (width, y))
    for y in range(TILE_Y):
        ahead(labels, (width, y))


def _assign_part(v: _Lanes, args: Any, y: int, x: int, unrolled: bool, cells: Any, owned: Any) -> None:
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

        def difference(colour: Any, channel: Any, i: int) -> Any:
            return b.fsub(colour, v.get(scratch, (channel, _PIXELS), (y + i) * TILE_X + x))

        down, across = squares(PLACE, lines, FIRST_Y), squares(PLACE + 1, columns, FIRST_X)
        if unrolled:
            colours = [value(COLOURS + c) for c in range(3)]
            sums = [v.norm([difference(colours[c], c, i) for c in range(3)]) for i in rows]
        else:
            totals = [cgutils.alloca_once(b, v.vector) for _ in rows]
            for total in totals:
                b.store(v.constant(0.0), total)
            with cgutils.for_range(b, channels) as inner:
                colour = value(b.add(inner.index, _LONG(COLOURS)))
                for i, total in enumerate(totals):
                    b.store(b.fadd(b.load(total), v.norm([difference(colour, inner.index, i)])), total)
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
def near_centres(
    typingctx: Any, table: Any, stride: Any, number: Any, channels: Any, box: Any, bound: Any, weight: Any,
    kept: Any, colours: Any, slack: Any,
) -> Any:  # fmt: skip
    """The centres of a table that may be nearest to a pixel of a box.

    Arguments, in this order: address of the table of centres, length of its rows (a multiple of 16), number
    of centres, C, address of float32 [2, 2 + C] box, upper bound of its pixels' distances to their nearest
    centre (infinite: one is found from the centres whose windows hold the whole box), weight of a squared
    pixel, address of int32 [stride] that receives columns of the table in ascending order, number of colours
    to look at (0 where all centres have the same), slack of a bound that is found.

    Returns the number of centres.
    """
    arguments = [types.int64] * 5 + [types.float32] * 2 + [types.int64] * 2 + [types.float32]
    return types.int64(*arguments), _near_centres


def _near_centres(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    table, stride, number, channels, box, bound, weight, kept, colours, slack = args
    b, v = builder, _Lanes(builder, 16)
    vectors = b.udiv(b.add(number, _LONG(15)), _LONG(16))

    def side(dimension: Any, last: int) -> Any:
        return v.splat(v.get(box, dimension, (last, b.add(channels, _LONG(2))), kind=_FLOAT))

    def square(place: Any, row: Any, dimension: Any, far: bool) -> Any:
        centre = v.get(table, place, (row, stride))
        low, high = b.fsub(side(dimension, 0), centre), b.fsub(centre, side(dimension, 1))
        if far:
            d = b.select(b.fcmp_ordered("<", low, high), low, high)
        else:
            d = b.select(b.fcmp_ordered(">", low, high), low, high)
            zero = v.constant(0.0)
            d = b.select(b.fcmp_ordered(">", d, zero), d, zero)
        return b.fmul(d, d)

    def distances(place: Any, far: bool) -> Any:
        """D^2 of 16 centres to the nearest or the farthest point of the box."""
        colour = cgutils.alloca_once(b, v.vector)
        b.store(v.constant(0.0), colour)
        with cgutils.for_range(b, colours) as loop:
            row, dimension = b.add(loop.index, _LONG(COLOURS)), b.add(loop.index, _LONG(2))
            b.store(b.fadd(b.load(colour), square(place, row, dimension, far)), colour)
        down, across = (square(place, PLACE + i, _LONG(i), far) for i in range(2))
        return v.distance(down, across, v.splat(weight), b.load(colour))

    def listed(place: Any) -> Any:
        lanes = b.add(v.splat(b.trunc(place, _INT)), v.row(range(16)))
        return b.icmp_signed("<", lanes, v.splat(b.trunc(number, _INT)))

    limit = cgutils.alloca_once_value(b, bound)
    with b.if_then(b.fcmp_ordered("==", bound, _FLOAT(float("inf")))):
        least = cgutils.alloca_once(b, v.ivector)
        b.store(v.iconstant(_INFINITY), least)
        with cgutils.for_range(b, vectors) as loop:
            place = b.mul(loop.index, _LONG(16))
            whole = listed(place)
            for row, dimension, last, sign in (
                (FIRST_Y, 0, 0, "<="), (LAST_Y, 0, 1, ">="), (FIRST_X, 1, 0, "<="), (LAST_X, 1, 1, ">=")
            ):  # fmt: skip
                reach = v.get(table, place, (row, stride))
                whole = b.and_(whole, b.fcmp_ordered(sign, reach, side(_LONG(dimension), last)))
            # NaN, as of infinite colours, has bits above those of infinity.
            upper = b.bitcast(distances(place, True), v.ivector)
            v.keep(upper, b.and_(whole, b.icmp_unsigned("<", upper, b.load(least))), least)
        upper = b.bitcast(v.reduce("umin", b.load(least)), _FLOAT)
        # Rounding moves a distance by less than a millionth.
        b.store(b.fadd(b.fmul(upper, _FLOAT(1.0001)), slack), limit)
    found = cgutils.alloca_once_value(b, _LONG(0))
    with cgutils.for_range(b, vectors) as loop:
        place = b.mul(loop.index, _LONG(16))
        far = b.fcmp_ordered(">", distances(place, False), v.splat(b.load(limit)))
        with _each_bit(b, b.bitcast(b.and_(listed(place), b.not_(far)), ir.IntType(16))) as lane:
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


@intrinsic
def tile_colours(typingctx: Any, features: Any, plane: Any, width: Any, channels: Any, box: Any) -> Any:
    """Fill in the least and the largest colours of a tile's box.

    Arguments, in this order: address of the tile's first pixel in float32 [C, H, W] features, H * W, W, C,
    address of float32 [2, 2 + C] box.
    """
    return types.none(*[types.int64] * 5), _tile_colours


def _tile_colours(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    features, plane, width, channels, box = args
    b, v = builder, _Lanes(builder, TILE_X)
    with cgutils.for_range(b, channels) as loop:
        values = [v.get(features, (plane, loop.index), (width, y)) for y in range(TILE_Y)]
        for last, sign in ((0, "<"), (1, ">")):
            value, lanes = values[0], TILE_X // 2
            for other in values[1:]:
                value = b.select(b.fcmp_ordered(sign, other, value), other, value)
            while lanes:
                order = v.row([(i + lanes) % TILE_X for i in range(TILE_X)])
                other = b.shuffle_vector(value, value, order)
                value = b.select(b.fcmp_ordered(sign, other, value), other, value)
                lanes //= 2
            start = (last, b.add(channels, _LONG(2)))
            v.put(b.extract_element(value, _INT(0)), box, start, 2, loop.index)
    return context.get_dummy_value()
