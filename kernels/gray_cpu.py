"""Gray levels of packed images, compiled by numba."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mclc_gpu.kernels.gray import LUMA, STEPS, WHITE
from mclc_gpu.kernels.jit_cpu import compiled

U = np.uintp
RED, GREEN, BLUE = LUMA


@compiled()
def luma(data, at, plane):
    """Of one pixel; `plane` is the distance of the channels, 0 for gray images."""
    if plane == 0:
        return np.float64(data[at])
    return RED * data[at] + GREEN * data[at + plane] + BLUE * data[at + U(2) * plane]


@compiled()
def stretch(data, images, i, scales):
    """What takes image i to 0..255: the value of black, and the gray steps for each unit above it."""
    offset, height, width, channels = images[i]
    plane = U(height * width if channels == 3 else 0)
    least, greatest = np.inf, -np.inf
    for p in range(U(offset), U(offset + height * width)):
        value = luma(data, p, plane)
        least, greatest = min(least, value), max(greatest, value)
    scales[i, 0] = least
    scales[i, 1] = WHITE / (greatest - least) if greatest > least else 0.0


@compiled()
def ranked(values, count, rank):
    """The value of that rank among the first `count` (Hoare's selection, which reorders them)."""
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


def image_scales(data: np.ndarray, images: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """Of every image the value of black, and the gray steps for each unit above it: float64 [images, 2]."""
    scales = np.tile(np.array([0.0, STEPS]), (len(images), 1))
    if data.dtype != np.uint8:
        deque(pool.map(lambda i: stretch(data, images, i, scales), range(len(images))), maxlen=0)
    return scales
