"""Tiles of pixels against the centres that can be nearest, in explicit vectors.

A tile is TILE_Y rows of TILE_X pixels. Its pixels' features lie in a *box*; a centre whose least distance to the
box is above an upper bound of all its pixels' distances to their nearest centre is nearest to none of them and
ties with none. That leaves about 7 of the 20 centres whose windows reach a tile, and not one label depends on it.

The arithmetic of distances is that of `vector_cpu`: IEEE, unfused, in scikit-image's order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TILE_Y, TILE_X = 8, 16
OWNERS = 15
AHEAD = 32
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
# Pixels whose nearest centre and distance the vector registers hold: all of a tile, or a quarter.
_ROWS, _LANES = (8, 16) if _WIDE else (4, 8)
_FLOAT, _INT, _LONG, _BIT = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(1)
# Rows of a table of centres, one column per centre: row, column, first and last row and column that its window
# reaches, index, colours.
PLACE, FIRST_Y, LAST_Y, FIRST_X, LAST_X, INDEX, COLOURS = 0, 2, 3, 4, 5, 6, 7


class _Code:
    """Loads and constants that the functions below share."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector, self.integers = ir.VectorType(_FLOAT, lanes), ir.VectorType(_INT, lanes)

    def address(self, base: Any, *terms: Any) -> Any:
        """Address of the element of 4 bytes at the sum of `terms` (products of pairs)."""
        b, index = self.builder, ir.Constant(_LONG, 0)
        for term in terms:
            index = b.add(index, b.mul(*term) if isinstance(term, tuple) else term)
        return b.gep(b.inttoptr(base, _FLOAT.as_pointer()), [index])

    def load(self, base: Any, *terms: Any, kind: Any = None) -> Any:
        kind = kind or self.vector
        return self.builder.load(self.builder.bitcast(self.address(base, *terms), kind.as_pointer()), align=4)

    def store(self, value: Any, base: Any, *terms: Any) -> None:
        pointer = self.builder.bitcast(self.address(base, *terms), value.type.as_pointer())
        self.builder.store(value, pointer, align=4)

    def prefetch(self, base: Any, *terms: Any) -> None:
        pointer = self.builder.bitcast(self.address(base, *terms), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [pointer, *(ir.Constant(_INT, i) for i in (0, 3, 1))])

    def splat(self, value: Any, lane: int = 0) -> Any:
        if not isinstance(value.type, ir.VectorType):
            one = ir.VectorType(value.type, self.lanes)
            value = self.builder.insert_element(ir.Constant(one, ir.Undefined), value, ir.Constant(_INT, 0))
        order = ir.Constant(self.integers, [lane] * self.lanes)
        return self.builder.shuffle_vector(value, value, order)

    def floats(self, *values: float) -> Any:
        return ir.Constant(self.vector, list(values) * (self.lanes // len(values)))

    def ramp(self, start: Any) -> Any:
        """`start`, `start` + 1, ..."""
        return self.builder.fadd(self.splat(start), ir.Constant(self.vector, [float(i) for i in range(self.lanes)]))

    def within(self, value: Any, first: Any, last: Any) -> Any:
        b = self.builder
        return b.and_(b.fcmp_ordered(">=", value, first), b.fcmp_ordered("<=", value, last))

    def larger(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def smaller(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", x, y), x, y)

    def reduce(self, operation: str, value: Any) -> Any:
        """`umax`, `umin`, `or` of the lanes' integers."""
        name = f"llvm.vector.reduce.{operation}.v{self.lanes}i32"
        kind = ir.FunctionType(_INT, [self.integers])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [value])


def _long(value: int) -> Any:
    return ir.Constant(_LONG, value)


@intrinsic
def assign_tile(
    typingctx: Any, features: Any, plane: Any, width: Any, channels: Any, labels: Any, table: Any, stride: Any,
    kept: Any, number: Any, owners: Any, top: Any, left: Any, weight: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Label the pixels of a tile with the nearest of the kept centres (eq. 2, 3); the first of several.

    Arguments, in this order: address of the tile's first pixel in float32 [C, H, W] features, H * W, W, C,
    address of the tile's first pixel in int32 [H, W] labels (read and written: a pixel that no window reaches
    keeps its label), address of the table of centres, its row's length, address of int32 columns of the
    table, their number, address of int32 [number] (written: may a pixel have this centre?), row and column of
    the tile's first pixel, weight of a squared pixel.

    Returns the largest distance of a pixel to its nearest centre (infinite if it has none), whether a label
    changed, the lowest and the highest label.
    """
    result = types.Tuple((types.int64, types.float32, types.boolean, types.int32, types.int32))
    arguments = [types.int64] * 10 + [types.float32] * 3 + [types.int64]
    return result(*arguments), _assign_tile


def _assign_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = _Code(builder, _LANES)
    farthest = cgutils.alloca_once_value(builder, ir.Constant(code.integers, [0] * _LANES))
    differs = cgutils.alloca_once_value(builder, ir.Constant(code.integers, [0] * _LANES))
    lowest = cgutils.alloca_once_value(builder, ir.Constant(code.integers, [-1] * _LANES))
    highest = cgutils.alloca_once_value(builder, ir.Constant(code.integers, [0] * _LANES))
    owned = cgutils.alloca_once_value(builder, _long(0))
    with cgutils.for_range(builder, args[3]) as loop:
        # Rows of an image whose width is a power of two share a few sets of the cache: they would drive each
        # other out while the centres pass by.
        for y in range(TILE_Y):
            for x in range(0, TILE_X, _LANES):
                source = [(args[1], loop.index), (args[2], _long(y)), _long(x)]
                values = code.load(args[0], *source)
                code.store(values, args[13], (loop.index, _long(TILE_Y * TILE_X)), _long(y * TILE_X + x))
            code.prefetch(args[0], *source[:2], _long(AHEAD))
    for y in range(TILE_Y):
        code.prefetch(args[4], (args[2], _long(y)), _long(AHEAD))
    three = builder.icmp_signed("==", args[3], _long(3))
    with builder.if_else(three) as (then, otherwise):
        for branch, channels in ((then, 3), (otherwise, None)):
            with branch:
                for y in range(0, TILE_Y, _ROWS):
                    for x in range(0, TILE_X, _LANES):
                        _assign_part(code, args, y, x, channels, farthest, differs, lowest, highest, owned)
    values = [
        builder.load(owned),
        builder.bitcast(code.reduce("umax", builder.load(farthest)), _FLOAT),
        builder.icmp_unsigned("!=", code.reduce("or", builder.load(differs)), ir.Constant(_INT, 0)),
        code.reduce("umin", builder.load(lowest)),
        code.reduce("umax", builder.load(highest)),
    ]
    values[2] = context.cast(builder, values[2], types.boolean, types.boolean)
    return context.make_tuple(builder, signature.return_type, values)


def _assign_part(
    code: _Code, args: Any, y: int, x: int, channels: int | None, farthest: Any, differs: Any, lowest: Any,
    highest: Any, owned: Any,
) -> None:  # fmt: skip
    """The pixels of a tile from row y and column x on that fit the registers."""
    features, plane, width, all_channels, labels, table, stride, kept, number, owners, top, left, weight, scratch = args
    b = code.builder
    places = [(y + i) * TILE_X + x for i in range(_ROWS)]
    rows = [b.add(b.mul(width, _long(y + i)), _long(x)) for i in range(_ROWS)]
    best = [cgutils.alloca_once(b, code.vector) for _ in rows]
    label = [cgutils.alloca_once(b, code.integers) for _ in rows]
    before = [code.load(labels, row, kind=code.integers) for row in rows]
    for i in range(_ROWS):
        b.store(code.floats(float("inf")), best[i])
        b.store(before[i], label[i])
    columns = code.ramp(b.fadd(left, ir.Constant(_FLOAT, float(x))))
    lines = code.ramp(b.fadd(top, ir.Constant(_FLOAT, float(y))))
    weights = code.splat(weight)
    with cgutils.for_range(b, number) as loop:
        column = b.sext(code.load(kept, loop.index, kind=_INT), _LONG)

        def value(row: Any, kind: Any = _FLOAT) -> Any:
            row = row if isinstance(row, ir.Value) else _long(row)
            return code.splat(code.load(table, column, (row, stride), kind=kind))

        def squares(place: Any, positions: Any, first: int) -> Any:
            # Infinitely far where the window does not reach.
            d = b.fsub(value(place), positions)
            reached = code.within(positions, value(first), value(first + 1))
            return b.select(reached, b.fmul(d, d), code.floats(float("inf")))

        down, across = squares(PLACE, lines, FIRST_Y), squares(PLACE + 1, columns, FIRST_X)
        index = value(INDEX, _INT)
        if channels:
            colours = [value(COLOURS + c) for c in range(channels)]
            sums = []
            for line in places:
                total = None
                for c in range(channels):
                    t = b.fsub(colours[c], code.load(scratch, _long(c * TILE_Y * TILE_X + line)))
                    t = b.fmul(t, t)
                    total = t if total is None else b.fadd(total, t)
                sums.append(total)
        else:
            totals = [cgutils.alloca_once(b, code.vector) for _ in rows]
            for total in totals:
                b.store(code.floats(0.0), total)
            with cgutils.for_range(b, all_channels) as inner:
                colour = value(b.add(inner.index, _long(COLOURS)))
                for line, total in zip(places, totals, strict=True):
                    t = b.fsub(colour, code.load(scratch, (inner.index, _long(TILE_Y * TILE_X)), _long(line)))
                    b.store(b.fadd(b.load(total), b.fmul(t, t)), total)
            sums = [b.load(total) for total in totals]
        won = ir.Constant(ir.VectorType(_BIT, _LANES), [0] * _LANES)
        for i in range(_ROWS):
            space = b.fmul(b.fadd(code.splat(down, i), across), weights)
            distance = b.fadd(space, sums[i])
            nearer = b.fcmp_ordered("<", distance, b.load(best[i]))
            won = b.or_(won, nearer)
            b.store(b.select(nearer, distance, b.load(best[i])), best[i])
            b.store(b.select(nearer, index, b.load(label[i])), label[i])
        mask = b.bitcast(won, ir.IntType(_LANES))
        some = b.zext(b.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0)), _LONG)
        code.store(code.load(table, column, (_long(INDEX), stride), kind=_INT), owners, b.load(owned))
        owned_now = b.add(b.load(owned), some)
        full = b.icmp_unsigned(">", owned_now, _long(OWNERS))
        b.store(b.select(full, _long(OWNERS), owned_now), owned)
    for i in range(_ROWS):
        after = b.load(label[i])
        code.store(after, labels, rows[i])
        b.store(b.or_(b.load(differs), b.xor(before[i], after)), differs)
        # Distances are not negative: their bits are in their order.
        distance = b.bitcast(b.load(best[i]), code.integers)
        for cell, new, sign in ((farthest, distance, ">"), (highest, after, ">"), (lowest, after, "<")):
            old = b.load(cell)
            b.store(b.select(b.icmp_unsigned(sign, new, old), new, old), cell)


@intrinsic
def near_centres(
    typingctx: Any, table: Any, stride: Any, number: Any, channels: Any, box: Any, bound: Any, weight: Any,
    kept: Any,
) -> Any:  # fmt: skip
    """The centres of a table that may be nearest to a pixel of a box.

    Arguments, in this order: address of the table of centres, its row's length (a multiple of 16), number of
    centres, C, address of float32 [2, 2 + C] least and largest row, column and colours of the box, upper
    bound of its pixels' distances to their nearest centre, weight of a squared pixel, address of int32
    [stride] that receives the columns of the centres.

    Returns their number. Where the bound is infinite, one is found from the centres whose windows hold the
    whole box.
    """
    arguments = [types.int64] * 5 + [types.float32] * 2 + [types.int64]
    return types.int64(*arguments), _near_centres


def _near_centres(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    table, stride, number, channels, box, bound, weight, kept = args
    b = builder
    code = _Code(builder, 16)
    dimensions = b.add(channels, _long(2))
    vectors = b.udiv(b.add(number, _long(15)), _long(16))
    infinite = ir.Constant(_FLOAT, float("inf"))
    limit = cgutils.alloca_once_value(builder, bound)

    def side(dimension: Any, last: bool) -> Any:
        terms = (dimension, dimensions) if last else (dimension,)
        return code.splat(code.load(box, *terms, kind=_FLOAT))

    def distances(column: Any, far: bool) -> Any:
        """Squared distances of 16 centres to the nearest or the farthest point of the box."""

        def square(row: Any, dimension: Any) -> Any:
            centre = code.load(table, column, (row, stride))
            low, high = b.fsub(side(dimension, False), centre), b.fsub(centre, side(dimension, True))
            d = code.smaller(low, high) if far else code.larger(code.larger(low, high), code.floats(0.0))
            return b.fmul(d, d)

        space = b.fadd(square(_long(PLACE), _long(0)), square(_long(PLACE + 1), _long(1)))
        total = cgutils.alloca_once_value(b, b.fmul(space, code.splat(weight)))
        with cgutils.for_range(b, channels) as inner:
            row, dimension = b.add(inner.index, _long(COLOURS)), b.add(inner.index, _long(2))
            b.store(b.fadd(b.load(total), square(row, dimension)), total)
        return b.load(total)

    def listed(column: Any) -> Any:
        lanes = b.add(
            code.splat(b.trunc(column, _INT)), ir.Constant(code.integers, list(range(16)))
        )
        return b.icmp_signed("<", lanes, code.splat(b.trunc(number, _INT)))

    with builder.if_then(b.fcmp_ordered("==", bound, infinite)):
        least = cgutils.alloca_once_value(b, ir.Constant(code.integers, [0x7F800000] * 16))
        with cgutils.for_range(b, vectors) as loop:
            column = b.mul(loop.index, _long(16))
            whole = listed(column)
            for dimension, first, last in ((0, FIRST_Y, LAST_Y), (1, FIRST_X, LAST_X)):
                low, high = side(_long(dimension), False), side(_long(dimension), True)
                for row, edge, sign in ((first, low, "<="), (last, high, ">=")):
                    reach = code.load(table, column, (_long(row), stride))
                    whole = b.and_(whole, b.fcmp_ordered(sign, reach, edge))
            # NaN, as of infinite colours, has bits above those of infinity.
            upper = b.bitcast(distances(column, True), code.integers)
            old = b.load(least)
            better = b.and_(whole, b.icmp_unsigned("<", upper, old))
            b.store(b.select(better, upper, old), least)
        upper = b.bitcast(code.reduce("umin", b.load(least)), _FLOAT)
        # Rounding moves a distance by less than a millionth.
        b.store(b.fmul(upper, ir.Constant(_FLOAT, 1.0001)), limit)
    found = cgutils.alloca_once_value(b, _long(0))
    with cgutils.for_range(b, vectors) as loop:
        column = b.mul(loop.index, _long(16))
        far = b.fcmp_ordered(">", distances(column, False), code.splat(b.load(limit)))
        near = b.and_(listed(column), b.not_(far))
        with _each_bit(b, b.bitcast(near, ir.IntType(16))) as lane:
            code.store(b.add(b.trunc(column, _INT), lane), kept, b.load(found))
            b.store(b.add(b.load(found), _long(1)), found)
    return b.load(found)


@contextmanager
def _each_bit(builder: Any, mask: Any) -> Iterator[Any]:
    """Loop over the bits that are set in `mask`; yields their position as int32."""
    rest = cgutils.alloca_once_value(builder, builder.zext(mask, _INT))
    head, body, end = (builder.append_basic_block(name) for name in ("bits", "bit", "bits.end"))
    builder.branch(head)
    builder.position_at_end(head)
    builder.cbranch(builder.icmp_unsigned("!=", builder.load(rest), ir.Constant(_INT, 0)), body, end)
    builder.position_at_end(body)
    value = builder.load(rest)
    yield builder.cttz(value, ir.Constant(_BIT, 1))
    builder.store(builder.and_(value, builder.sub(value, ir.Constant(_INT, 1))), rest)
    builder.branch(head)
    builder.position_at_end(end)


@intrinsic
def tile_box(typingctx: Any, features: Any, plane: Any, width: Any, box: Any, stride: Any) -> Any:
    """Least and largest value of one channel in a tile.

    Arguments: address of the tile's first pixel in float32 [H, W], W, addresses
    """
    return types.none(types.int64, types.int64, types.int64, types.int64, types.int64), _tile_box


def _tile_box(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    features, plane, width, box, channels = args
    b, code = builder, _Code(builder, TILE_X)
    with cgutils.for_range(b, channels) as loop:
        values = [code.load(features, (plane, loop.index), (width, _long(y))) for y in range(TILE_Y)]
        for pick, start in ((code.smaller, _long(2)), (code.larger, b.add(channels, _long(4)))):
            level = values
            while len(level) > 1:
                level = [pick(x, y) for x, y in zip(level[::2], level[1::2], strict=True)]
            value, lanes = level[0], TILE_X // 2
            while lanes:
                order = ir.Constant(code.integers, [(i + lanes) % TILE_X for i in range(TILE_X)])
                value = pick(value, b.shuffle_vector(value, value, order))
                lanes //= 2
            code.store(b.extract_element(value, ir.Constant(_INT, 0)), box, start, loop.index)
    return context.get_dummy_value()
