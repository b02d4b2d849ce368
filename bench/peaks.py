"""What a device can do at most, measured on the spot: 32-bit operations and bytes per second."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
import triton
import triton.language as tl
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mclc_gpu.kernels.backend import processors
from mclc_gpu.kernels.ir_cpu import WIDEST, Vectors
from mclc_gpu.kernels.jit_cpu import compiled

_CHAINS = 8  # of each kind: enough to hide the latency of an addition or a product
_ROUNDS = 1 << 18
_COPIED = 1 << 25  # bytes per thread: past the caches
_REPEATS = 15
_UNROLLED = tl.constexpr(16)
_BLOCK = 1024  # eight chains in each of 128 threads


@intrinsic
def _arithmetic(typingctx: Any, rounds: Any, factor: Any, addend: Any) -> Any:
    """Rounds of `_CHAINS` products and as many additions of whole vectors; something of the result."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(builder, WIDEST)
        factors, addends = v.splat(args[1]), v.splat(args[2])
        products = [cgutils.alloca_once_value(builder, v.constant(1.0 + i)) for i in range(_CHAINS)]
        sums = [cgutils.alloca_once_value(builder, v.constant(1.0 + i)) for i in range(_CHAINS)]
        with cgutils.for_range(builder, args[0]):
            for product, total in zip(products, sums, strict=True):
                builder.store(builder.fmul(builder.load(product), factors), product)
                builder.store(builder.fadd(builder.load(total), addends), total)
        result = v.constant(0.0)
        for value in (*products, *sums):
            result = builder.fadd(result, builder.load(value))
        return builder.extract_element(result, ir.Constant(v.integer, 0))

    return types.float32(types.int64, types.float32, types.float32), generate


@compiled()
def _compute(rounds: Any, factor: Any, addend: Any) -> Any:
    return _arithmetic(rounds, factor, addend)


@triton.jit
def fma_kernel(p_out, rounds, factor, addend, UNROLLED: tl.constexpr, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """rounds x UNROLLED fused multiply-adds on each of BLOCK numbers, which begin as 0, 1, ..."""
    place = tl.arange(0, BLOCK)
    x = place.to(tl.float32)
    factors = x * 0.0 + factor
    addends = x * 0.0 + addend
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            x = tl.fma(x, factors, addends)
    tl.store(p_out + tl.program_id(0) * BLOCK + place, x)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Least wall-clock time of some work on a device, after one call to warm up.

    The least, because peak and work are compared: others on the machine only ever add to either.
    """
    taken = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def operations_peak(device: torch.device) -> float:
    """32-bit operations per second: on the CPU additions and products in vectors, over all threads; on CUDA
    fused multiply-adds, each counted once."""
    if device.type == "cuda":
        programs = 16 * processors(device)
        out = torch.empty(programs * _BLOCK, device=device)
        rounds = _ROUNDS >> 6

        def work() -> None:
            fma_kernel[(programs,)](out, rounds, 0.999, 0.5, UNROLLED=_UNROLLED, BLOCK=_BLOCK, num_warps=4)

        return programs * _BLOCK * rounds * _UNROLLED.value / seconds_of(work, device)
    threads = numba.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        numbers = np.int64(_ROUNDS), np.float32(0.999), np.float32(0.5)
        seconds = seconds_of(lambda: list(pool.map(lambda _: _compute(*numbers), range(threads))), device)
    return threads * _ROUNDS * 2 * _CHAINS * WIDEST / seconds


def bytes_peak(device: torch.device) -> float:
    """Bytes per second of a copy, read and written ones together, over all threads."""
    if device.type == "cuda":
        source = torch.zeros(_COPIED * 8, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return 2 * source.numel() / seconds_of(lambda: target.copy_(source), device)
    threads = numba.get_num_threads()
    pairs = [(np.zeros(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = seconds_of(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)), device)
    return 2 * threads * _COPIED / seconds
