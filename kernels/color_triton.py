"""Device functions in Triton that several kernels share: sRGB to CIELAB, and luma."""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching
from mclc_gpu.kernels.config import LUMA

_BLOCK = 512


@triton.jit
def cube_root(x):
    guess = (x.to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 3.0)).to(tl.int32)
    r = (0x54A21F2A - guess).to(tl.float32, bitcast=True)
    r = r + r * ((1.0 - x * (r * r * r)) * (1.0 / 3.0))
    r = r + r * ((1.0 - x * (r * r * r)) * (1.0 / 3.0))
    y = x * (r * r)
    return y + (x - y * y * y) * ((r * r) * (1.0 / 3.0))


@triton.jit
def linear_light(v):
    y = (v + 0.055) * (1.0 / 1.055)
    x = y * y
    guess = (x.to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 5.0)).to(tl.int32)
    r = (0x4C2B9213 - guess).to(tl.float32, bitcast=True)
    r = r + r * ((1.0 - x * (r * r * r * r * r)) * (1.0 / 5.0))
    r = r + r * ((1.0 - x * (r * r * r * r * r)) * (1.0 / 5.0))
    r = r + r * ((1.0 - x * (r * r * r * r * r)) * (1.0 / 5.0))
    return tl.where(v > 0.04045, x * (x * ((r * r) * (r * r))), v * (1.0 / 12.92))


@triton.jit
def lab_curve(t):
    return tl.where(t > 0.008856, cube_root(tl.maximum(t, 0.008856)), 7.787 * t + (16.0 / 116.0))


@triton.jit
def lab_of_linear(r, g, b):
    x = lab_curve((0.412453 / 0.95047) * r + (0.357580 / 0.95047) * g + (0.180423 / 0.95047) * b)
    y = lab_curve(0.212671 * r + 0.715160 * g + 0.072169 * b)
    z = lab_curve((0.019334 / 1.08883) * r + (0.119193 / 1.08883) * g + (0.950227 / 1.08883) * b)
    return 116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)


@triton.jit(do_not_specialize=["plane", "blocks"])
def lab_kernel(p_image, p_out, plane, blocks, BLOCK: tl.constexpr):
    """Convert a block of the pixels of an image, of which each has `blocks`."""
    plane = plane.to(tl.int64)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < plane
    source = p_image + image * 3 * plane + pixel
    r = tl.load(source, inside, 0.0)
    g = tl.load(source + plane, inside, 0.0)
    b = tl.load(source + 2 * plane, inside, 0.0)
    lightness, a, b = lab_of_linear(linear_light(r), linear_light(g), linear_light(b))
    target = p_out + image * 3 * plane + pixel
    tl.store(target, lightness, inside)
    tl.store(target + plane, a, inside)
    tl.store(target + 2 * plane, b, inside)


def launch(image: torch.Tensor, out: torch.Tensor) -> None:
    """Convert a contiguous float32 [B, 3, H, W] sRGB image to CIELAB; see `mclc_gpu.kernels.color`."""
    plane = image.shape[2] * image.shape[3]
    blocks = triton.cdiv(plane, _BLOCK)
    with launching(image.device):
        # Without fused multiply-adds the numbers are those of the CPU backend, bit for bit.
        lab_kernel[(len(image) * blocks,)](
            image, out, plane, blocks, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=False
        )


_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in LUMA)


@triton.jit
def luma(p_data, plane, counted):
    """Return gray values of some pixels, float64; `plane` is the channels' distance, 0 for gray images."""
    value = tl.load(p_data, counted, 0).to(tl.float64)
    if plane > 0:
        green = tl.load(p_data + plane, counted, 0).to(tl.float64)
        blue = tl.load(p_data + 2 * plane, counted, 0).to(tl.float64)
        value = value * _RED + green * _GREEN + blue * _BLUE
    return value
