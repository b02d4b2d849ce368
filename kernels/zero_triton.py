"""How Triton kernels short of registers keep the compiler from holding what is cheap to compute again."""

import triton
import triton.language as tl


@triton.jit
def zero_of(p_number):
    """Zero, but the compiler cannot know: what it is added to is computed where it is used, and not kept.

    It is the upper half of a small number, int64 >= 0, read anew.
    """
    return (tl.load(p_number, volatile=True) >> 32).to(tl.int32)
