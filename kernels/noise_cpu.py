"""Counter-based noise in numba: device functions on scalars (the caller's loop over pixels vectorises)."""

import numpy as np
from numba import prange

from mclc_gpu.kernels.jit_cpu import bits_float, compiled, float_bits

F = np.float32
U = np.uint64
NONE, SALT, PEPPER, GAUSSIAN = range(4)
_LOW = U(0xFFFFFFFF)


@compiled(inline="always")
def philox(c0, c1, c2, key_low, key_high):
    """Philox 4x32-10 with counter (c0, c1, c2, 0): four 32-bit words, each in a uint64."""
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
    """Standard normal number (float32) of a 32-bit word: sqrt(2) erfinv(2u - 1), u its upper 24 bits."""
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


@compiled(inline="always")
def disturb(value, word, kind, bound, sigma, low, high):
    """The noisy value (float32) of one channel of one pixel."""
    if kind == SALT:
        return high if (word >> U(8)) < U(bound) else value
    if kind == PEPPER:
        return low if (word >> U(8)) < U(bound) else value
    if kind == GAUSSIAN:
        return min(max(value + sigma * standard_normal(word), low), high)
    return value


@compiled(parallel=True)
def add(windows, keys, targets, trial, out, kind, bound, sigma, shared, low, high):
    batch, channels, height, width = windows.shape
    for b in prange(batch):
        key = U(keys[b])
        for pixel in range(height * width):
            y = pixel // width
            x = pixel % width
            words = philox(U(pixel), U(trial), U(targets[b]), key & _LOW, key >> U(32))
            for c in range(channels):
                word = words[0] if shared or c == 0 else (words[1] if c == 1 else words[2])
                out[b, c, y, x] = disturb(windows[b, c, y, x], word, kind, bound, F(sigma), F(low), F(high))
