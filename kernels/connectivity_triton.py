"""Connectivity enforcement in Triton: every lane of a warp floods an image of its own, in lockstep.

Flooding one image is sequential, floods of different images are independent. So a lane is a small state
machine: it scans for the next piece, pops one pixel of its queue, or rewrites one pixel of a piece that was
too small. All lanes go through the same instructions, about 1.4 loop steps per pixel.

Scratch memory of LANES images is interleaved: element i of lane j at `pointer + i * LANES + j`.
An image is a *padded state* as in connectivity_cpu: pixel (y, x) at element (y + 1) * (width + 1) + x.
"""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching

_MAX_LANES = 32
PROGRAMS_WANTED = 512


@triton.jit
def outside(p_state):
    """Return the border's value: the least of the state's type, which no label's code -(k + 1) may reach."""
    return -32768 if p_state.dtype.element_ty == tl.int16 else -2147483648


@triton.jit
def fill_border(p_state, lane, busy, LANES: tl.constexpr, height, width):
    """Write the border of the padded states of all lanes (rows 0 and height + 1, and column `width`)."""
    border = tl.zeros_like(lane) + outside(p_state)
    stride = width + 1
    for x in range(0, tl.max(stride, 0)):
        used = busy & (x < stride)
        tl.store(p_state + x * LANES + lane, border, used)
        tl.store(p_state + ((height + 1) * stride + x) * LANES + lane, border, used)
    for y in range(0, tl.max(height, 0)):
        tl.store(p_state + ((y + 1) * stride + width) * LANES + lane, border, busy & (y < height))
    tl.debug_barrier()


@triton.jit
def relabel_lanes(p_state, p_queue, lane, busy, LANES: tl.constexpr, height, width, min_size, max_size):
    """Enforce connectivity on LANES images of any sizes at once, in place, as scikit-image does.

    A lane may be in several threads: what was stored before the call must be followed by a barrier, as it is
    by that of `fill_border`; the call ends with one.

    Parameters
    ----------
    p_state : pointer to int16 or int32 [(height + 2) * (width + 1) * LANES]
        On entry a pixel holds -(k + 1) for label k and the border is filled (`fill_border`); on exit a pixel
        holds its final label. int16 carries labels up to 32766.
    p_queue : pointer to int16 or int32 [height * width * LANES]
        Scratch; int16 serves padded states of up to 32767 elements.
    lane : int32 [LANES]
        0 .. LANES - 1.
    busy : bool [LANES]
        Lanes that hold an image.
    height, width : int32 [LANES]
    min_size, max_size : int, or int32 [LANES]
        Pixels: smaller pieces join a neighbor, a flood stops at `max_size`.
    """
    stride = width + 1
    end = (height + 1) * stride
    nothing = outside(p_state)
    zero = tl.zeros_like(lane)
    scan = zero + stride  # next element to look at for an unlabeled pixel
    head = zero  # queue elements popped (or rewritten)
    tail = zero  # pixels in the piece; 0 while scanning
    code = zero  # the piece's state before it was reached
    current = zero  # the piece's label
    adjacent = zero  # label of the last labeled foreign pixel met
    rewriting = zero > 0
    while tl.max(busy.to(tl.int32), 0) > 0:
        scanning = busy & (tail == 0)
        flooding = busy & (tail > 0) & ~rewriting
        pixel = tl.load(p_queue + head * LANES + lane, busy & (tail > 0), 0).to(tl.int32)

        # A scanning lane looks at four pixels in raster order, a flooding lane at four neighbors. All are
        # loaded before anything is stored: they are distinct pixels.
        at0 = tl.where(flooding, pixel + 1, scan)
        at1 = tl.where(flooding, pixel - 1, scan + 1)
        at2 = tl.where(flooding, pixel + stride, scan + 2)
        at3 = tl.where(flooding, pixel - stride, scan + 3)
        s0 = tl.load(p_state + at0 * LANES + lane, flooding | scanning, nothing).to(tl.int32)
        s1 = tl.load(p_state + at1 * LANES + lane, flooding | (scanning & (at1 < end)), nothing).to(tl.int32)
        s2 = tl.load(p_state + at2 * LANES + lane, flooding | (scanning & (at2 < end)), nothing).to(tl.int32)
        s3 = tl.load(p_state + at3 * LANES + lane, flooding | (scanning & (at3 < end)), nothing).to(tl.int32)

        # Every thread has to have loaded before one stores: programs of several warps do not run in lockstep.
        tl.debug_barrier()

        # Flooding: neighbors in order; the one that fills the piece to max_size is the last one looked at.
        for direction in tl.static_range(4):
            at = at0 if direction == 0 else (at1 if direction == 1 else (at2 if direction == 2 else at3))
            s = s0 if direction == 0 else (s1 if direction == 1 else (s2 if direction == 2 else s3))
            looks = flooding & (tail < max_size)
            joins = looks & (s == code)
            adjacent = tl.where(looks & (s >= 0) & (s != current), s, adjacent)
            tl.store(p_state + at * LANES + lane, current, joins)
            tl.store(p_queue + tail * LANES + lane, at, joins)
            tail += joins.to(tl.int32)

        head += (flooding | rewriting).to(tl.int32)

        # Scanning: the first unlabeled pixel of the four seeds the next piece.
        u3 = (s3 < 0) & (s3 != nothing)
        seed = tl.where(u3, at3, end)
        code_found = s3
        u2 = (s2 < 0) & (s2 != nothing)
        seed = tl.where(u2, at2, seed)
        code_found = tl.where(u2, s2, code_found)
        u1 = (s1 < 0) & (s1 != nothing)
        seed = tl.where(u1, at1, seed)
        code_found = tl.where(u1, s1, code_found)
        u0 = (s0 < 0) & (s0 != nothing)
        seed = tl.where(u0, at0, seed)
        code_found = tl.where(u0, s0, code_found)
        found = scanning & (u0 | u1 | u2 | u3)
        tl.store(p_state + seed * LANES + lane, current, found)
        tl.store(p_queue + lane, seed, found)
        scan = tl.where(found, seed + 1, tl.where(scanning, scan + 4, scan))
        code = tl.where(found, code_found, code)
        adjacent = tl.where(found, current, adjacent)
        head = tl.where(found, 0, head)
        tail = tl.where(found, 1, tail)

        # A piece is complete when its queue is used up or it is full, and done when it needs no rewriting. A
        # small one is rewritten pixel by pixel; where it is a single pixel, at once.
        complete = (flooding | found) & ((head >= tail) | (tail >= max_size))
        joins_neighbor = complete & (tail < min_size) & (adjacent != current)
        tl.store(p_state + pixel * LANES + lane, adjacent, rewriting | (joins_neighbor & (tail == 1)))
        small = joins_neighbor & (tail > 1)
        done = (complete & ~small) | (rewriting & (head >= tail))
        current += (complete & (tail >= min_size)).to(tl.int32)
        rewriting = small | (rewriting & ~done)
        head = tl.where(small, 0, head)
        tail = tl.where(done, 0, tail)
        busy &= (scan < end) | (tail > 0)
        # A lane may live in several threads, or move between them from one instruction to the next.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["batch", "height", "width", "min_size", "max_size"])
def connectivity_kernel(p_state, p_queue, batch, height, width, min_size, max_size, LANES: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    busy = group * LANES + lane < batch
    p_state += group * LANES * (height + 2) * (width + 1)
    p_queue += group * LANES * height * width
    height += tl.zeros_like(lane)
    width += tl.zeros_like(lane)
    fill_border(p_state, lane, busy, LANES, height, width)
    relabel_lanes(p_state, p_queue, lane, busy, LANES, height, width, min_size, max_size)


def launch(
    labels: torch.Tensor, min_size: int, max_size: int, programs_wanted: int = PROGRAMS_WANTED
) -> torch.Tensor:
    """Enforce connectivity on int32 [B, H, W] labels; see `mclc_gpu.kernels.slic.enforce_connectivity`.

    Several images share a warp only where there are more than `programs_wanted`, enough to fill a GPU.
    """
    batch, height, width = labels.shape
    # One image per warp while warps are wanting: neighbors then share cache lines instead of lanes.
    lanes = min(_MAX_LANES, triton.next_power_of_2(triton.cdiv(batch, programs_wanted)))
    groups = triton.cdiv(batch, lanes)
    state = labels.new_zeros(groups, height + 2, width + 1, lanes)
    queue = labels.new_empty(groups, height * width, lanes)
    pixels = state[:, 1:-1, :-1].permute(0, 3, 1, 2)  # [groups, lanes, H, W]
    codes = labels.new_zeros(groups * lanes, height, width)
    torch.bitwise_not(labels, out=codes[:batch])
    pixels.copy_(codes.view(groups, lanes, height, width))
    with launching(labels.device):
        connectivity_kernel[(groups,)](
            state, queue, batch, height, width, min_size, max_size, LANES=lanes, num_warps=1
        )
    return pixels.reshape(-1, height, width)[:batch].contiguous()
