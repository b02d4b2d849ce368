"""Decoder of Label Studio's brush masks."""

import numpy as np


def decoded(rle: list[int]) -> np.ndarray:
    """Decode Label Studio's brush masks as its converter does: flat values."""
    bits, at = "".join(f"{byte:08b}" for byte in rle), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    number, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < number:
        run = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if run else [take(word) for _ in range(length)]
    return np.array(values)
