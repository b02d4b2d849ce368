"""Compilation of the CPU backends, their threads, and scalar functions and stack arrays that numba lacks.

Numba's cache on disk notices a change in a function's own file, but not in the files of the functions it
calls: after an update it would run machine code of the older ones. So every state of the sources has a folder
of its own, which may be deleted at any time: below the environment variable ``NUMBA_CACHE_DIR`` if that is
set, else in ``mclc-gpu/`` below the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``).
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

Result = TypeVar("Result")
_lock = threading.Lock()
# MCLC_GPU_SIMD=0 selects the plain twins of the loops in `*_simd_cpu.py`: the same bits, more slowly.
SIMD = os.environ.get("MCLC_GPU_SIMD") != "0"
_WORTH_A_THREAD = 1 << 14  # elements: fewer are done before another thread has started


def _cache_folder() -> str | None:
    """Return the cache folder for the present sources; None where it cannot be written."""
    digest = hashlib.sha256(f"{numba.__version__} {SIMD}".encode())
    try:
        for path in sorted(Path(__file__).parent.glob("*_cpu.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mclc-gpu"
        folder = Path(numba.config.CACHE_DIR or home).expanduser() / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None


_FOLDER = _cache_folder()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile a function with numba on its first call, or take its machine code from the cache.

    The code runs without Python's lock and divides as IEEE does. `options` are those of ``numba.njit``.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _cache_in_folder():
            cached = _FOLDER is not None
            return numba.njit(nogil=True, cache=cached, error_model="numpy", **options)(function)

    return decorate


def c_function(signature: Any, cached: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile a function at once for C's calling convention; the result has its `address`.

    `cached` is for functions that are made of those of this folder alone.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _cache_in_folder():
            return numba.cfunc(signature, cache=cached and _FOLDER is not None, error_model="numpy")(function)

    return decorate


@contextmanager
def _cache_in_folder() -> Iterator[None]:
    """Let numba, which reads the folder when a function is decorated, use ours; others keep the user's."""
    with _lock:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _FOLDER or before
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, thread_name_prefix="mclc-gpu")


os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay behind in the parent


def spread(
    function: Callable[[int, int], Result], number: int, elements: int, shares: int = 1
) -> list[Result]:
    """Call ``function(first, last)`` on ranges that make up 0..number, over as many threads as numba uses.

    The function is compiled (it lets go of Python's lock) and calls nothing that spreads itself. `elements`
    says how much work there is in all, and `shares` in how many ranges a thread's part is cut, so that the
    threads end together where the ranges differ. Results are in the order of the ranges.
    """
    threads = min(numba.get_num_threads(), max(1, elements // _WORTH_A_THREAD))
    if threads == 1:
        return [function(0, number)]
    parts = min(number, threads * shares)
    bounds = [number * i // parts for i in range(parts + 1)]
    return list(_pool().map(function, bounds[:-1], bounds[1:]))


@intrinsic
def float_bits(typingctx: Any, x: Any) -> Any:
    """Return the bits of a float32 as int32."""
    return types.int32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def bits_float(typingctx: Any, i: Any) -> Any:
    """Return the float32 with the bits of an int32."""
    return types.float32(types.int32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c in float32, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [ir.FloatType()], kind), args)

    return types.float32(types.float32, types.float32, types.float32), generate


def stack_array(dtype: Any, size: int) -> Any:
    """Return a function for compiled code that returns an array on its caller's stack, not filled in.

    Nothing else can point into it, so that the compiler may keep parts of it in registers during a loop. The
    array is the same at every call within a function, and must not outlive it.

    Parameters
    ----------
    dtype : numba.types.Number
    size : int
        Elements.
    """
    array = types.Array(dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(context.get_data_type(dtype), size))
        memory.align = 64
        value = context.make_array(array)(context, builder)
        item = context.get_constant(types.intp, dtype.bitwidth // 8)
        populate_array(
            value,
            data=builder.bitcast(memory, value.data.type),
            shape=(context.get_constant(types.intp, size),),
            strides=(item,),
            itemsize=item,
            meminfo=None,
        )
        return value._getvalue()

    @intrinsic
    def on_stack(typingctx: Any) -> Any:
        return array(), generate

    return on_stack
