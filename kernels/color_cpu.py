"""sRGB to CIELAB, gray scales and local extremes of gray levels on the CPU."""

from functools import partial

import numpy as np

from mclc_gpu.kernels.config import LUMA
from mclc_gpu.kernels.jit_cpu import bits_float, compiled, float_bits, spread

F = np.float32


@compiled(inline="always")
def cube_root(x):
    """Return the cube root of a float32 in 0.008..1.1; no libm, for the same bits everywhere."""
    # Start from the exponent divided by three (magic constant fitted for least error), two Newton steps on
    # x^(-1/3) without a division, one step on the root itself: relative error 1e-7 on 0.008..1.1.
    r = bits_float(np.int32(np.int32(0x54A21F2A) - np.int32(F(float_bits(x)) * F(1 / 3))))
    r = r + r * ((F(1) - x * (r * r * r)) * F(1 / 3))
    r = r + r * ((F(1) - x * (r * r * r)) * F(1 / 3))
    y = x * (r * r)
    return y + (x - y * y * y) * ((r * r) * F(1 / 3))


@compiled(inline="always")
def linear_light(v):
    """Return the linear light 0..1 of an sRGB value 0..1 (IEC 61966-2-1)."""
    # ((v + 0.055) / 1.055) ** 2.4 as x * x^(1/5) with x the square: the fifth root by Newton on x^(-1/5).
    y = (v + F(0.055)) * F(1 / 1.055)
    x = y * y
    r = bits_float(np.int32(np.int32(0x4C2B9213) - np.int32(F(float_bits(x)) * F(1 / 5))))
    r = r + r * ((F(1) - x * (r * r * r * r * r)) * F(1 / 5))
    r = r + r * ((F(1) - x * (r * r * r * r * r)) * F(1 / 5))
    r = r + r * ((F(1) - x * (r * r * r * r * r)) * F(1 / 5))
    bright = x * (x * ((r * r) * (r * r)))
    return bright if v > F(0.04045) else v * F(1 / 12.92)


@compiled(inline="always")
def lab_curve(t):
    """Return the cube root with its linear part near black (CIE 15)."""
    return cube_root(max(t, F(0.008856))) if t > F(0.008856) else F(7.787) * t + F(16 / 116)


@compiled(inline="always")
def lab_of_linear(r, g, b):
    """Return L, a, b of linear light."""
    # Rows of the sRGB-to-XYZ matrix divided by the D65 white point (0.95047, 1, 1.08883).
    x = lab_curve(F(0.412453 / 0.95047) * r + F(0.357580 / 0.95047) * g + F(0.180423 / 0.95047) * b)
    y = lab_curve(F(0.212671) * r + F(0.715160) * g + F(0.072169) * b)
    z = lab_curve(F(0.019334 / 1.08883) * r + F(0.119193 / 1.08883) * g + F(0.950227 / 1.08883) * b)
    return F(116) * y - F(16), F(500) * (x - y), F(200) * (y - z)


@compiled()
def _rescale(values, low, span, out):
    for x in range(out.shape[0]):
        out[x] = (F(values[x]) - low) / span


@compiled()
def _linear(values):
    for x in range(values.shape[0]):
        values[x] = linear_light(values[x])


@compiled()
def _lab(r, g, b):
    for x in range(r.shape[0]):
        r[x], g[x], b[x] = lab_of_linear(r[x], g[x], b[x])


@compiled()
def _scale(values, scale):
    for x in range(values.shape[0]):
        values[x] *= scale


@compiled()
def _rows(images, low, span, scale, lab, out, first, last):
    """Convert the rows first..last of all images, in steps that the compiler vectorizes."""
    for row in range(first, last):
        b, y = row // images.shape[2], row % images.shape[2]
        for c in range(images.shape[1]):
            _rescale(images[b, c, y], low[b], span[b], out[b, c, y])
            if lab:
                _linear(out[b, c, y])
        if lab:
            _lab(out[b, 0, y], out[b, 1, y], out[b, 2, y])
        for c in range(images.shape[1]):
            _scale(out[b, c, y], scale)


def features(images: np.ndarray, low: np.ndarray, span: np.ndarray, scale: float, lab: bool) -> np.ndarray:
    """Rescale images, convert them to CIELAB if `lab`, and multiply them by `scale`.

    Parameters
    ----------
    images : [B, C, H, W], uint8, uint16 or float32
    low, span : float32 [B]
        An image becomes (image - low) / span.
    scale : float
    lab : bool

    Returns
    -------
    float32 [B, C, H, W]
        Rounded to float32 after every step.
    """
    out = np.empty(images.shape, F)
    rows = images.shape[0] * images.shape[2]
    spread(partial(_rows, images, low, span, F(scale), lab, out), rows, images.size)
    return out


U = np.uintp
RED, GREEN, BLUE = LUMA


@compiled()
def luma(data, at, plane):
    """Return the gray value of one pixel; `plane` is the distance of the channels, 0 for gray images."""
    if plane == 0:
        return np.float64(data[at])
    return RED * data[at] + GREEN * data[at + plane] + BLUE * data[at + U(2) * plane]


@compiled()
def ranked(values, count, rank):
    """Return the value of a rank among the first `count` by Hoare's selection, which reorders them."""
    low, high = 0, count - 1
    while low < high:
        pivot = values[U((low + high) // 2)]
        i, j = low, high
        while i <= j:
            while values[U(i)] < pivot:
                i += 1
            while values[U(j)] > pivot:
                j -= 1
            if i <= j:
                values[U(i)], values[U(j)] = values[U(j)], values[U(i)]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[U(rank)]


@compiled()
def _least_of_two(source, step, length, out):
    for p in range(U(length)):
        out[p] = min(source[p], source[p + step])


@compiled()
def least_of_blocks(values, spare, side, stride):
    """Return the least of the `side` x `side` elements from each on, in rows of `stride`."""
    for step in (1, stride):
        width, length = 1, values.shape[0]
        while width < side:
            further = min(width, side - width)
            length -= further * step
            _least_of_two(values, U(further * step), length, spare)
            values, spare, width = spare, values, width + further
    return values
