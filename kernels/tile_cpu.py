"""The assignment step of images on the CPU: tiles of pixels against the centres that can be nearest.

A tile is TILE_Y rows of TILE_X pixels. The features of its pixels lie in a *box*: least and largest row,
column and colours. A centre farther from the box than an upper bound of the distances of its pixels to their
nearest centres is nearest to none of them and ties with none. That leaves 5 to 10 of the 20 centres whose
windows reach a tile, and no label depends on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.ir_cpu import WIDEST, Vectors

TILE_Y, TILE_X = 8, 16
OWNERS = 16  # more centres of a tile are not kept track of
# Rows of a table of centres, one column per centre: row, column, first and last row and column in reach,
# index, colours.
PLACE, FIRST_Y, LAST_Y, FIRST_X, LAST_X, INDEX, COLOURS = 0, 2, 3, 4, 5, 6, 7
# Pixels whose nearest centre and distance fit the registers: all of a tile, or a quarter.
_ROWS, _LANES = WIDEST // 2, WIDEST
_PIXELS = TILE_Y * TILE_X
_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
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
