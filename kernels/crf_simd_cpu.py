"""The loop of the dense CRF on the CPU that the compiler does not vectorize by itself, and its plain twin.

A pixel's sum is made of LANES partial sums, each of every eighth pixel, which are then added by halves. That
order of additions is the result's bits, and the compiler puts partial sums into a vector only where it may
choose their order. Written as eight numbers it stays scalar: `dense_crf` then takes twice as long.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.jit_cpu import compiled, fma

LANES = 8
QUERIES = 4  # pixels that receive together: what they receive from is read once for all of them
VALUES, SUMS = 5, 6  # rows of the planes
U = np.uintp


@intrinsic
def _add_products(typingctx: Any, weights: Any, values: Any, size: Any, sums: Any) -> Any:
    """Add the inner products of QUERIES rows of weights with the same values to as many sums.

    All arguments are int64: the addresses of float32 [QUERIES, size] weights and float32 [size] values, the
    size (a multiple of LANES), and the address of float32 [QUERIES] sums.
    """
    return types.void(types.int64, types.int64, types.int64, types.int64), _products


def _products(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    weights, values, size, sums = args
    scalar, index = ir.FloatType(), size.type
    vector = ir.VectorType(scalar, LANES)
    kind = ir.FunctionType(vector, [vector] * 3)
    fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")

    def pointer(base: Any, place: Any, kind: Any) -> Any:
        return builder.inttoptr(builder.add(base, builder.mul(place, index(4))), kind.as_pointer())

    totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(QUERIES)]
    with cgutils.for_range_slice(builder, index(0), size, index(LANES)) as (place, _):
        value = builder.load(pointer(values, place, vector), align=4)
        for row, total in enumerate(totals):
            within = builder.add(builder.mul(size, index(row)), place)
            weight = builder.load(pointer(weights, within, vector), align=4)
            builder.store(builder.call(fused, (weight, value, builder.load(total))), total)
    for row, total in enumerate(totals):
        lanes = builder.load(total)
        for shift in (4, 2, 1):
            order = [(lane + shift) % LANES for lane in range(LANES)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), order)
            lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, order))
        target = pointer(sums, index(row), scalar)
        product = builder.extract_element(lanes, ir.IntType(32)(0))
        builder.store(builder.fadd(builder.load(target), product), target)
    return context.get_dummy_value()


@compiled()
def receive_simd(planes, query, first, last, weights, at):
    """Add the weighted values of some pixels to the sums of QUERIES pixels.

    Parameters
    ----------
    planes : float32 [SUMS + 1 or more, pixels]
        Rows VALUES and SUMS are those of the pixels.
    query : uintp
        First of the pixels that receive.
    first, last : uintp
        Range of pixels to receive from, a multiple of LANES long.
    weights : float32 [...]
    at : uintp
        Where the weights [QUERIES, last - first] begin.
    """
    pixels, stride = planes.ctypes.data, planes.shape[1]
    values = pixels + 4 * (VALUES * stride + np.int64(first))
    sums = pixels + 4 * (SUMS * stride + np.int64(query))
    _add_products(weights.ctypes.data + 4 * np.int64(at), values, np.int64(last - first), sums)


@compiled()
def receive_plain(planes, query, first, last, weights, at):
    """Do the same without explicit vectors."""
    for i in range(query, query + U(QUERIES)):
        t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = np.float32(0)
        for p in range(first, last, U(LANES)):
            w = at + p - first
            t0 = fma(weights[w], planes[U(VALUES), p], t0)
            t1 = fma(weights[w + U(1)], planes[U(VALUES), p + U(1)], t1)
            t2 = fma(weights[w + U(2)], planes[U(VALUES), p + U(2)], t2)
            t3 = fma(weights[w + U(3)], planes[U(VALUES), p + U(3)], t3)
            t4 = fma(weights[w + U(4)], planes[U(VALUES), p + U(4)], t4)
            t5 = fma(weights[w + U(5)], planes[U(VALUES), p + U(5)], t5)
            t6 = fma(weights[w + U(6)], planes[U(VALUES), p + U(6)], t6)
            t7 = fma(weights[w + U(7)], planes[U(VALUES), p + U(7)], t7)
        planes[U(SUMS), i] += ((t0 + t4) + (t2 + t6)) + ((t1 + t5) + (t3 + t7))
        at += last - first
