"""Counter-based noise in Triton; the arithmetic mirrors noise_cpu step by step."""

from typing import Any

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching

_BLOCK = 512


@triton.jit
def natural_log(x):
    """Return ln x of a positive float32, as noise_cpu does."""
    bits = x.to(tl.int32, bitcast=True)
    e = (((bits >> 23) & 255) - 127).to(tl.float32)
    m = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    big = m > 1.41421356
    m = tl.where(big, m * 0.5, m)
    e = tl.where(big, e + 1.0, e)
    f = m - 1.0
    z = f * f
    p = 7.0376836292e-2 * f + -1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    y = p * f * z
    y = y + -2.12194440e-4 * e
    y = y - 0.5 * z
    return (f + y) + 0.693359375 * e


@triton.jit
def standard_normal(word):
    """Return the standard normal number of a 32-bit word, as noise_cpu does."""
    x = ((word >> 8).to(tl.float32) - 8388607.5) * 1.1920928955078125e-07
    w = -natural_log((1.0 - x) * (1.0 + x))
    s = w - 2.5
    p = 2.81022636e-08 * s + 3.43273939e-07
    p = p * s + -3.5233877e-06
    p = p * s + -4.39150654e-06
    p = p * s + 0.00021858087
    p = p * s + -0.00125372503
    p = p * s + -0.00417768164
    p = p * s + 0.246640727
    p = p * s + 1.50140941
    t = tl.sqrt_rn(tl.maximum(w, 5.0)) - 3.0
    q = -0.000200214257 * t + 0.000100950558
    q = q * t + 0.00134934322
    q = q * t + -0.00367342844
    q = q * t + 0.00573950773
    q = q * t + -0.0076224613
    q = q * t + 0.00943887047
    q = q * t + 1.00167406
    q = q * t + 2.83297682
    return tl.where(w < 5.0, p, q) * x * 1.41421356


@triton.jit
def none(value, word, intensity, bound, low, high):
    """Leave the value as it is."""
    return value


@triton.jit
def salt(value, word, intensity, bound, low, high):
    """Replace the value by the highest with probability `intensity`."""
    return tl.where((word >> 8).to(tl.int32) < bound, high, value)


@triton.jit
def pepper(value, word, intensity, bound, low, high):
    """Replace the value by the lowest with probability `intensity`."""
    return tl.where((word >> 8).to(tl.int32) < bound, low, value)


@triton.jit
def gaussian(value, word, intensity, bound, low, high):
    """Add a normal number of standard deviation intensity (high - low), and clip."""
    return tl.minimum(tl.maximum(value + intensity * (high - low) * standard_normal(word), low), high)


@triton.jit
def draw(key, pixel, trial, target):
    """Return words 0..2 of the Philox block of each pixel; key is int64, trial and target scalars."""
    zero = pixel * 0
    w0, w1, w2, _ = tl.philox(key, pixel, zero + trial, zero + target, zero)
    return w0, w1, w2


@triton.jit(do_not_specialize=["trial", "plane", "bound"])
def noise_kernel(
    p_windows, p_keys, p_targets, p_out, trial, plane, intensity, bound, low, high,
    CHANNELS: tl.constexpr, DISTURB: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(plane, BLOCK)
    i_window = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < plane
    w0, w1, w2 = draw(tl.load(p_keys + i_window), pixel, trial, tl.load(p_targets + i_window).to(tl.int32))
    if SHARED:
        w1 = w0
        w2 = w0
    base = i_window * CHANNELS * plane + pixel
    value = tl.load(p_windows + base, inside, 0.0)
    tl.store(p_out + base, DISTURB(value, w0, intensity, bound, low, high), inside)
    if CHANNELS == 3:
        value = tl.load(p_windows + base + plane, inside, 0.0)
        tl.store(p_out + base + plane, DISTURB(value, w1, intensity, bound, low, high), inside)
        value = tl.load(p_windows + base + 2 * plane, inside, 0.0)
        tl.store(p_out + base + 2 * plane, DISTURB(value, w2, intensity, bound, low, high), inside)


def launch(
    windows: torch.Tensor, keys: torch.Tensor, targets: torch.Tensor, trial: int, out: torch.Tensor,
    disturb: Any, intensity: float, bound: int, shared: bool, low: float, high: float,
) -> None:  # fmt: skip
    """Fill `out`; see `mclc_gpu.kernels.noise.add_noise`."""
    plane = windows.shape[2] * windows.shape[3]
    programs = windows.shape[0] * triton.cdiv(plane, _BLOCK)
    with launching(windows.device):
        noise_kernel[(programs,)](
            windows, keys, targets, out, trial, plane, intensity, bound, low, high,
            CHANNELS=windows.shape[1], DISTURB=disturb, SHARED=shared, BLOCK=_BLOCK, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
