"""Gray levels of packed images in Triton."""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.gray import LUMA, STEPS, WHITE

_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in LUMA)
_WHITE = tl.constexpr(WHITE)
_TOP_BIT = tl.constexpr(1 << (WHITE.bit_length() - 1))
_BLOCK = 2048


@triton.jit
def luma(p_data, plane, counted):
    """Of some pixels, float64; `plane` is the distance of the channels, 0 for gray images."""
    value = tl.load(p_data, counted, 0).to(tl.float64)
    if plane > 0:
        green = tl.load(p_data + plane, counted, 0).to(tl.float64)
        blue = tl.load(p_data + 2 * plane, counted, 0).to(tl.float64)
        value = value * _RED + green * _GREEN + blue * _BLUE
    return value


@triton.jit
def ranked(v, member, rank, grain):
    """The value of that rank among the members, which are multiples of `grain`, bit by bit."""
    low = 0
    half = tl.zeros_like(rank) + _TOP_BIT
    while half >= grain:
        below = tl.sum((member & (v < low + half)).to(tl.int32), 0)
        low = tl.where(below <= rank, low + half, low)
        half //= 2
    return low


@triton.jit
def stretch_kernel(p_data, p_images, p_scales, BLOCK: tl.constexpr):
    image = tl.program_id(0)
    p_image = p_images + image * 4
    pixels = tl.load(p_image + 1) * tl.load(p_image + 2)
    plane = tl.where(tl.load(p_image + 3) == 3, pixels, 0)
    p_data += tl.load(p_image)
    least = tl.full([BLOCK], float("inf"), tl.float64)
    greatest = tl.full([BLOCK], float("-inf"), tl.float64)
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        value = luma(p_data + pixel, plane, pixel < pixels)
        least = tl.minimum(least, tl.where(pixel < pixels, value, float("inf")))
        greatest = tl.maximum(greatest, tl.where(pixel < pixels, value, float("-inf")))
    black = tl.min(least, 0)
    span = tl.max(greatest, 0) - black
    tl.store(p_scales + image * 2, black)
    tl.store(p_scales + image * 2 + 1, tl.where(span > 0, _WHITE / tl.where(span > 0, span, 1.0), 0.0))


def gray_scales(data: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Of packed images: the value of black, and the gray steps for each unit above it, float64 [images, 2].

    uint8 images are taken as they are, others have their own range taken to 0..255.
    """
    scales = torch.tensor([0.0, STEPS], dtype=torch.float64, device=data.device).repeat(len(table), 1)
    if data.dtype != torch.uint8:
        options = {"BLOCK": _BLOCK, "num_warps": 8, "enable_fp_fusion": False}
        stretch_kernel[(len(table),)](data, table, scales, **options)
    return scales
