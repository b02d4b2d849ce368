"""Counter-based noise in numba: device functions on scalars, which vectorize in a loop over pixels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from mclc_gpu.kernels.jit_cpu import bits_float, c_function, compiled, float_bits

F = np.float32
U = np.uint64
_LOW = U(0xFFFFFFFF)


@compiled(inline="always")
def philox(c0, c1, c2, key_low, key_high):
    """Return Philox 4x32-10 of counter (c0, c1, c2, 0): four 32-bit words, each in a uint64."""
    c3 = U(0)
    k0 = key_low
    k1 = key_high
    for _ in range(10):
        low = U(0xD2511F53) * c0
        high = U(0xCD9E8D57) * c2
        c0 = (high >> U(32)) ^ c1 ^ k0
        c1 = high & _LOW
        c2 = (low >> U(32)) ^ c3 ^ k1
        c3 = low & _LOW
        k0 = (k0 + U(0x9E3779B9)) & _LOW
        k1 = (k1 + U(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


@compiled(inline="always")
def natural_log(x):
    """Return ln x of a positive float32; no libm, for the same bits everywhere."""
    # Exponent and mantissa in [sqrt(1/2), sqrt(2)), then the Cephes polynomial for log(1 + f).
    bits = float_bits(x)
    e = F(np.int32((bits >> np.int32(23)) & np.int32(255)) - np.int32(127))
    m = bits_float(np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F800000)))
    big = m > F(1.41421356)
    m = m * F(0.5) if big else m
    e = e + F(1) if big else e
    f = m - F(1)
    z = f * f
    p = F(7.0376836292e-2)
    p = p * f + F(-1.1514610310e-1)
    p = p * f + F(1.1676998740e-1)
    p = p * f + F(-1.2420140846e-1)
    p = p * f + F(1.4249322787e-1)
    p = p * f + F(-1.6668057665e-1)
    p = p * f + F(2.0000714765e-1)
    p = p * f + F(-2.4999993993e-1)
    p = p * f + F(3.3333331174e-1)
    y = p * f * z
    y = y + F(-2.12194440e-4) * e
    y = y - F(0.5) * z
    return (f + y) + F(0.693359375) * e


@compiled(inline="always")
def standard_normal(word):
    """Return the normal number of a 32-bit word, float32: sqrt(2) erfinv(2u - 1), u its upper 24 bits."""
    # 2u - 1 with u in the middle of its interval; every step is exact, so that no x is -1 or 1.
    x = (F(word >> U(8)) - F(2.0**23 - 0.5)) * F(2.0**-23)
    w = -natural_log((F(1) - x) * (F(1) + x))
    s = w - F(2.5)
    p = F(2.81022636e-08)
    p = p * s + F(3.43273939e-07)
    p = p * s + F(-3.5233877e-06)
    p = p * s + F(-4.39150654e-06)
    p = p * s + F(0.00021858087)
    p = p * s + F(-0.00125372503)
    p = p * s + F(-0.00417768164)
    p = p * s + F(0.246640727)
    p = p * s + F(1.50140941)
    t = np.sqrt(max(w, F(5))) - F(3)
    q = F(-0.000200214257)
    q = q * t + F(0.000100950558)
    q = q * t + F(0.00134934322)
    q = q * t + F(-0.00367342844)
    q = q * t + F(0.00573950773)
    q = q * t + F(-0.0076224613)
    q = q * t + F(0.00943887047)
    q = q * t + F(1.00167406)
    q = q * t + F(2.83297682)
    return (p if w < F(5) else q) * x * F(1.41421356)


def none(value, word, intensity, bound, low, high):
    """Leave the value as it is."""
    return value


def salt(value, word, intensity, bound, low, high):
    """Replace the value by the highest with probability `intensity`."""
    return high if (word >> U(8)) < bound else value


def pepper(value, word, intensity, bound, low, high):
    """Replace the value by the lowest with probability `intensity`."""
    return low if (word >> U(8)) < bound else value


def gaussian(value, word, intensity, bound, low, high):
    """Add a normal number of standard deviation intensity (high - low), and clip."""
    return min(max(value + intensity * (high - low) * standard_normal(word), low), high)


_VALUES, _WORDS = types.CPointer(types.float32), types.CPointer(types.uint32)
# Values, words, their number, intensity, bound, low, high, noisy values.
_PASS = types.void(
    _VALUES, _WORDS, types.int64, types.float32, types.uint32, types.float32, types.float32, _VALUES
)


@cache
def noise_pass(disturb: Callable[..., Any]) -> Any:
    """Return a kind's device function compiled as a pass over a channel, for `disturb_channel`.

    One compiled version of the trials so serves every kind, at the cost of an indirect call for a channel.
    """
    device_function = register_jitable(inline="always")(disturb)

    def noise_of_channel(values, words, size, intensity, bound, low, high, out):
        for p in range(size):
            out[p] = device_function(values[p], U(words[p]), intensity, bound, low, high)

    # The cache on disk notices changes of the files in this folder only.
    return c_function(_PASS, cached=disturb.__module__.startswith("mclc_gpu.kernels."))(noise_of_channel)


@intrinsic
def _call_pass(
    typingctx: Any, address: Any, values: Any, words: Any, size: Any, intensity: Any, bound: Any, low: Any,
    high: Any, out: Any,
) -> Any:  # fmt: skip
    """Call the pass at an address; values, words and out are addresses too."""
    pointers_as_integers = [types.int64 if isinstance(t, types.CPointer) else t for t in _PASS.args]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = [context.get_value_type(t) for t in _PASS.args]
        function = ir.FunctionType(context.get_value_type(_PASS.return_type), kinds)
        given = [
            builder.inttoptr(value, kind) if isinstance(kind, ir.PointerType) else value
            for value, kind in zip(args[1:], kinds, strict=True)
        ]
        builder.call(builder.inttoptr(args[0], function.as_pointer()), given)
        return context.get_dummy_value()

    return types.void(types.int64, *pointers_as_integers), generate


@compiled()
def disturb_channel(address, values, words, intensity, bound, low, high, out):
    """Write the noisy values of a channel, float32 [n], given uint32 words [n or more] of random bits.

    `address` is that of the kind's `noise_pass`.
    """
    size = np.int64(out.shape[0])
    _call_pass(
        address, values.ctypes.data, words.ctypes.data, size, intensity, bound, low, high, out.ctypes.data
    )


@compiled()
def draw(words, trial, target, key, shared):
    """Fill uint32 [3, pixels] with the random bits of a trial of a target; `shared`: all channels alike."""
    low, high = key & _LOW, key >> U(32)
    for p in range(np.uintp(words.shape[1])):
        first, second, third, _ = philox(U(p), U(trial), U(target), low, high)
        words[0, p] = first
        words[1, p] = second
        words[2, p] = third
    if shared:
        words[1] = words[0]
        words[2] = words[0]


@compiled()
def _add(windows, keys, targets, trial, out, address, intensity, bound, shared, low, high):
    batch, channels, pixels = windows.shape
    words = np.empty((3, pixels), np.uint32)
    for b in range(batch):
        draw(words, trial, targets[b], U(keys[b]), shared)
        for c in range(channels):
            source, target = windows[b, c], out[b, c]
            disturb_channel(
                address, source, words[c], F(intensity), np.uint32(bound), F(low), F(high), target
            )


def launch(
    windows: torch.Tensor, keys: torch.Tensor, targets: torch.Tensor, trial: int, out: torch.Tensor,
    disturb: Callable[..., Any], intensity: float, bound: int, shared: bool, low: float, high: float,
) -> None:  # fmt: skip
    """Fill `out`; see `mclc_gpu.kernels.noise.add_noise`."""
    batch, channels, *_ = windows.shape
    source, target = (tensor.numpy().reshape(batch, channels, -1) for tensor in (windows, out))
    settings = noise_pass(disturb).address, intensity, bound, shared, low, high
    _add(source, keys.numpy(), targets.numpy(), trial, target, *settings)
