"""Monte Carlo trials in Triton: noise, clustering and connectivity of a trial in one program."""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import processors
from mclc_gpu.kernels.color_triton import lab_of_linear, linear_light, zero_of
from mclc_gpu.kernels.config import CONNECTIVITY, NOISES, TrialConfig
from mclc_gpu.kernels.connectivity_triton import fill_border, relabel_lanes
from mclc_gpu.kernels.noise import threshold
from mclc_gpu.kernels.noise_triton import draw
from mclc_gpu.kernels.packed import Marks, PackedImages, StartGrids, Windows

# Columns of a center: row, column, three colors.
CENTER = tl.constexpr(5)


@triton.jit
def assign(p_centers, number, y, x, f0, f1, f2, label, reach_y, reach_x, weight):
    """Return the nearest center whose window reaches a pixel (eq. 2, 3); lowest index on exact ties."""
    best = tl.full(y.shape, float("inf"), tl.float32)
    for k in range(number):
        p_center = p_centers + k * CENTER
        dy = tl.load(p_center) - y
        dx = tl.load(p_center + 1) - x
        d0 = f0 - tl.load(p_center + 2)
        d1 = f1 - tl.load(p_center + 3)
        d2 = f2 - tl.load(p_center + 4)
        color = tl.fma(d2, d2, tl.fma(d1, d1, d0 * d0))
        distance = tl.fma(tl.fma(dy, dy, dx * dx), weight, color)
        # -reach <= d < reach + 1 is scikit-image's truncated window, for pixels at integers.
        nearer = (
            (distance < best) & (dy >= -reach_y) & (dy < reach_y + 1) & (dx >= -reach_x) & (dx < reach_x + 1)
        )
        best = tl.where(nearer, distance, best)
        label = tl.where(nearer, k, label)
    return label


@triton.jit
def _add(n, y, x, c0, c1, c2, other_n, other_y, other_x, other_c0, other_c1, other_c2):
    return n + other_n, y + other_y, x + other_x, c0 + other_c0, c1 + other_c1, c2 + other_c2


@triton.jit
def quotient(total, count, inverse):
    """Return total / count rounded once, by the rounded inverse of a whole number below 2^24 (Markstein)."""
    nearly = total * inverse
    return tl.fma(tl.fma(-nearly, count, total), inverse, nearly)


@triton.jit
def update(p_centers, number, y, x, f0, f1, f2, label):
    """Move every center to the mean of its pixels (eq. 4); an empty cluster moves out of every pixel's reach.

    Pixels outside the window hold label -1. Returns the largest squared move in pixels.
    """
    moved = 0.0
    # Each thread of a warp collects the sums of one center, and divides: divisions are slow.
    for first in range(0, number, 32):
        own = first + tl.arange(0, 32)
        count = tl.zeros([32], tl.float32)
        cy = tl.zeros([32], tl.float32)
        cx = tl.zeros([32], tl.float32)
        c0 = tl.zeros([32], tl.float32)
        c1 = tl.zeros([32], tl.float32)
        c2 = tl.zeros([32], tl.float32)
        for k in range(first, tl.minimum(first + 32, number)):
            member = label == k
            # All sums in one pass over the pixels, so that no thread keeps which of its pixels are members.
            sums = tl.reduce(
                (
                    member.to(tl.float32), tl.where(member, y, 0.0), tl.where(member, x, 0.0),
                    tl.where(member, f0, 0.0), tl.where(member, f1, 0.0), tl.where(member, f2, 0.0),
                ), 0, _add,
            )  # fmt: skip
            count = tl.where(own == k, sums[0], count)
            cy = tl.where(own == k, sums[1], cy)
            cx = tl.where(own == k, sums[2], cx)
            c0 = tl.where(own == k, sums[3], c0)
            c1 = tl.where(own == k, sums[4], c1)
            c2 = tl.where(own == k, sums[5], c2)
        p_center = p_centers + own * CENTER
        some = tl.maximum(count, 1.0)
        inverse = tl.div_rn(some * 0.0 + 1.0, some)
        cy = quotient(cy, some, inverse)
        cx = quotient(cx, some, inverse)
        dy = cy - tl.load(p_center, own < number, 0.0)
        dx = cx - tl.load(p_center + 1, own < number, 0.0)
        moved = tl.maximum(moved, tl.max(tl.where(count > 0.0, dy * dy + dx * dx, 0.0), 0))
        tl.debug_barrier()
        tl.store(p_center, tl.where(count > 0.0, cy, float("inf")), own < number)
        tl.store(p_center + 1, cx, own < number)
        tl.store(p_center + 2, quotient(c0, some, inverse), own < number)
        tl.store(p_center + 3, quotient(c1, some, inverse), own < number)
        tl.store(p_center + 4, quotient(c2, some, inverse), own < number)
    return moved


ENFORCE, COMPONENT, CLUSTER = (tl.constexpr(i) for i in range(len(CONNECTIVITY)))
# Columns of the item table: target, first trial, number of trials.
_ITEM_TARGET, _ITEM_FIRST, _ITEM_TRIALS, _ITEM = (tl.constexpr(column) for column in range(4))
# Columns of the geometry table, in the order of `_geometry`.
(
    _DATA, _PITCH, _CHANNEL_PITCH, _HEIGHT, _WIDTH, _CLICK, _TARGET, _KEY, _PIXEL_OFFSET, _FIRST_CENTER,
    _CENTERS, _REACH_Y, _REACH_X, _INTERVAL, _MIN_SIZE, _MAX_SIZE, _FIRST_MARK, _MARKS, _GEOMETRY,
) = (tl.constexpr(column) for column in range(19))  # fmt: skip
_PIXELS_PER_THREAD = tl.constexpr(16)
_PROGRAMS_PER_PROCESSOR = 16


@triton.jit
def window_pixels(g, PIXELS: tl.constexpr):
    """Return index, row and column of each window pixel: int32, float32, float32."""
    threads: tl.constexpr = 32 if PIXELS <= 32 * _PIXELS_PER_THREAD else PIXELS // _PIXELS_PER_THREAD
    thread = tl.arange(0, threads) + zero_of(g + _WIDTH)
    pixel = thread[None, :] + (tl.arange(0, PIXELS // threads) * threads)[:, None]
    pixel = tl.reshape(pixel, [PIXELS])
    width = tl.load(g + _WIDTH).to(tl.float32)
    # Exact: the quotient is at least 1 / 128 away from an integer.
    y = tl.floor((pixel.to(tl.float32) + 0.5) * tl.div_rn(width * 0.0 + 1.0, width))
    return pixel, y, pixel.to(tl.float32) - y * width


@triton.jit
def load_channel(p_data, g, y, x, inside, channel):
    """Load a channel of the window's pixels as float32; the three of a gray image are its only one."""
    pitch = tl.load(g + _PITCH).to(tl.int32)
    p_channel = p_data + tl.load(g + _DATA) + channel * tl.load(g + _CHANNEL_PITCH)
    # Outside the window the first pixel is read, for a masked load takes more registers.
    return tl.load(p_channel + tl.where(inside, y.to(tl.int32) * pitch + x.to(tl.int32), 0)).to(tl.float32)


@triton.jit
def value_range(r, g, b, inside):
    """Return the least and the greatest value of a window."""
    least = tl.min(tl.where(inside, tl.minimum(tl.minimum(r, g), b), float("inf")), 0)
    greatest = tl.max(tl.where(inside, tl.maximum(tl.maximum(r, g), b), float("-inf")), 0)
    return least, greatest


@triton.jit
def trial_features(
    p_data, g, size, trial, low, high, intensity, bound, scale,
    PIXELS: tl.constexpr, DISTURB: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return the features, 3 x [PIXELS], of one noisy trial (eq. 1, 7).

    They are CIELAB of the window, rescaled to its range, divided by the compactness.
    """
    pixel, y, x = window_pixels(g, PIXELS)
    inside = pixel < size
    w0, w1, w2 = draw(tl.load(g + _KEY), pixel, trial, tl.load(g + _TARGET).to(tl.int32))
    if SHARED:
        w1 = w0
        w2 = w0
    red = DISTURB(load_channel(p_data, g, y, x, inside, 0), w0, intensity, bound, low, high)
    green = DISTURB(load_channel(p_data, g, y, x, inside, 1), w1, intensity, bound, low, high)
    blue = DISTURB(load_channel(p_data, g, y, x, inside, 2), w2, intensity, bound, low, high)
    darkest, brightest = value_range(red, green, blue, inside)
    span = tl.where(brightest > darkest, brightest - darkest, 1.0)
    lightness, green_red, blue_yellow = lab_of_linear(
        linear_light(tl.div_rn(red - darkest, span)),
        linear_light(tl.div_rn(green - darkest, span)),
        linear_light(tl.div_rn(blue - darkest, span)),
    )
    return lightness * scale, green_red * scale, blue_yellow * scale


@triton.jit
def cluster(
    p_grid,
    p_centers,
    g,
    size,
    f0,
    f1,
    f2,
    iterations,
    tolerance,
    CENTERS: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Return the labels [PIXELS] of one trial, -1 outside the window. Stopping at a fixed point is exact."""
    number = tl.load(g + _CENTERS).to(tl.int32)
    reach_y = tl.load(g + _REACH_Y).to(tl.float32) if WINDOWED else float("inf")
    reach_x = tl.load(g + _REACH_X).to(tl.float32) if WINDOWED else float("inf")
    interval = tl.load(g + _INTERVAL).to(tl.float32)
    weight = tl.div_rn(interval * 0.0 + 1.0, interval * interval)
    p_grid += tl.load(g + _FIRST_CENTER) * 2
    k = tl.arange(0, CENTERS) + zero_of(g + _WIDTH)
    tl.debug_barrier()  # other warps may still be reading the centers of the trial before
    for column in tl.static_range(CENTER):
        start = (
            tl.load(p_grid + k * 2 + column, k < number, 0.0)
            if column < 2
            else tl.zeros([CENTERS], tl.float32)
        )
        tl.store(p_centers + k * CENTER + column, start, k < number)
    tl.debug_barrier()
    pixel, y, x = window_pixels(g, f0.shape[0])
    inside = pixel < size
    label = tl.where(inside, 0, -1)
    i = 0
    while i < iterations:
        before = label
        label = tl.where(
            inside, assign(p_centers, number, y, x, f0, f1, f2, label, reach_y, reach_x, weight), -1
        )
        changed = tl.max((label != before).to(tl.int32), 0)
        i += 1
        if ((changed == 0) & (i > 1)) | (i == iterations):
            i = iterations
        else:
            tl.debug_barrier()
            if update(p_centers, number, y, x, f0, f1, f2, label) < tolerance * tolerance:
                i = iterations
            tl.debug_barrier()
    return label


@triton.jit
def state_places(g, y, x, LANES: tl.constexpr):
    """Return where lane 0 holds each pixel in its padded state (see connectivity_triton)."""
    stride = tl.load(g + _WIDTH).to(tl.int32) + 1
    return ((y.to(tl.int32) + 1) * stride + x.to(tl.int32)) * LANES


@triton.jit
def count_segments(
    p_state, p_queue, p_kept, p_marks, g, size, trials, mask_pitch,
    PIXELS: tl.constexpr, LANES: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    """Enforce connectivity in the lanes' labels; count for each pixel the marks in its segment.

    A lane holds the labels of one trial.
    """
    height = tl.load(g + _HEIGHT).to(tl.int32)
    width = tl.load(g + _WIDTH).to(tl.int32)
    min_size = tl.load(g + _MIN_SIZE).to(tl.int32)
    max_size = tl.load(g + _MAX_SIZE).to(tl.int32)
    tl.debug_barrier()
    relabel_lanes(p_state, p_queue, tl.arange(0, LANES), LANES, height, width, min_size, max_size)
    click = tl.load(g + _CLICK).to(tl.int32)
    p_click = p_state + ((click // width + 1) * (width + 1) + click % width) * LANES
    p_marks += tl.load(g + _FIRST_MARK)
    marks = tl.load(g + _MARKS).to(tl.int32)
    pixel, y, x = window_pixels(g, PIXELS)
    inside = pixel < size
    place = state_places(g, y, x, LANES)
    count = tl.zeros([PIXELS], tl.int32)
    for i in range(trials):
        label = tl.load(p_state + place + i, inside, -1)
        member = (label == tl.load(p_click + i)).to(tl.int32)
        for j in range(marks):
            mark = tl.load(p_marks + j)
            p_mark = p_state + ((mark // width + 1) * (width + 1) + mark % width) * LANES
            member += (label == tl.load(p_mark + i)).to(tl.int32)
        count += member
        if MASKS:
            tl.store(p_kept + i * mask_pitch + pixel, member.to(tl.uint8), inside)
    # The next item's labels go where other threads may still be reading.
    tl.debug_barrier()
    return count


@triton.jit
def trials_kernel(
    p_data, p_geometry, p_grid, p_items, p_marks, p_state, p_queue, p_centers, p_counts, p_masks, items,
    state_size, queue_size, first_trial, mask_pitch, intensity, bound, scale, iterations, tolerance,
    PIXELS: tl.constexpr, LANES: tl.constexpr, CENTERS: tl.constexpr, DISTURB: tl.constexpr,
    SHARED: tl.constexpr, OWN_RANGE: tl.constexpr, WINDOWED: tl.constexpr, CONNECTIVITY: tl.constexpr,
    MASKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    p_state += program.to(tl.int64) * state_size
    p_queue += program.to(tl.int64) * queue_size
    p_centers += program * CENTERS * CENTER
    for item in range(program, items, tl.num_programs(0)):
        # Numbers of the target are loaded where they are used: held throughout, they would cost registers.
        g = p_geometry + tl.load(p_items + item * _ITEM + _ITEM_TARGET) * _GEOMETRY
        first = tl.load(p_items + item * _ITEM + _ITEM_FIRST).to(tl.int32)
        trials = tl.load(p_items + item * _ITEM + _ITEM_TRIALS).to(tl.int32)
        height = tl.load(g + _HEIGHT).to(tl.int32)
        width = tl.load(g + _WIDTH).to(tl.int32)
        size = height * width
        low = 0.0
        high = 255.0
        if OWN_RANGE:
            pixel, y, x = window_pixels(g, PIXELS)
            red = load_channel(p_data, g, y, x, pixel < size, 0)
            green = load_channel(p_data, g, y, x, pixel < size, 1)
            blue = load_channel(p_data, g, y, x, pixel < size, 2)
            low, high = value_range(red, green, blue, pixel < size)
        p_kept = p_masks + (first - first_trial).to(tl.int64) * mask_pitch
        if MASKS:
            p_kept += tl.load(g + _PIXEL_OFFSET)
        count = tl.zeros([PIXELS], tl.int32)
        if CONNECTIVITY != CLUSTER:
            fill_border(p_state, tl.arange(0, LANES), LANES, height, width)
            pixel, y, x = window_pixels(g, PIXELS)
            for idle in range(trials, LANES):
                p_idle = p_state + state_places(g, y, x, LANES) + idle
                tl.store(p_idle, tl.zeros([PIXELS], tl.int16), pixel < size)
        for i in range(trials):
            f0, f1, f2 = trial_features(
                p_data, g, size, first + i, low, high, intensity, bound, scale, PIXELS, DISTURB, SHARED
            )
            label = cluster(p_grid, p_centers, g, size, f0, f1, f2, iterations, tolerance, CENTERS, WINDOWED)
            pixel, y, x = window_pixels(g, PIXELS)
            if CONNECTIVITY == CLUSTER:
                click = tl.load(g + _CLICK).to(tl.int32)
                member = (label == tl.max(tl.where(pixel == click, label, -1), 0)).to(tl.int32)
                for j in range(tl.load(g + _MARKS).to(tl.int32)):
                    mark = tl.load(p_marks + tl.load(g + _FIRST_MARK) + j)
                    member += (label == tl.max(tl.where(pixel == mark, label, -1), 0)).to(tl.int32)
                count += member
                if MASKS:
                    tl.store(p_kept + i * mask_pitch + pixel, member.to(tl.uint8), pixel < size)
            else:
                p_label = p_state + state_places(g, y, x, LANES) + i
                tl.store(p_label, (-1 - label).to(tl.int16), pixel < size)
        if CONNECTIVITY != CLUSTER:
            count = count_segments(
                p_state, p_queue, p_kept, p_marks, g, size, trials, mask_pitch, PIXELS, LANES, MASKS
            )
        pixel, y, x = window_pixels(g, PIXELS)
        tl.atomic_add(p_counts + tl.load(g + _PIXEL_OFFSET) + pixel, count, pixel < size, sem="relaxed")


def _geometry(
    images: PackedImages,
    windows: Windows,
    keys: torch.Tensor,
    grids: StartGrids,
    marks: Marks,
    config: TrialConfig,
) -> torch.Tensor:
    """Return the geometry table [targets, 18], int64, on the CPU."""
    offset, _, _, _, pitch, plane = images.table[windows.image].unbind(1)
    if config.connectivity == "enforce":
        mean = windows.sizes.double() / grids.numbers
        limits = (config.min_size_factor * mean).long(), (config.max_size_factor * mean).long()
    else:
        limits = torch.zeros_like(windows.sizes), windows.sizes
    columns = (
        offset + windows.top * pitch + windows.left,
        pitch,
        plane,
        windows.height,
        windows.width,
        windows.click_row * windows.width + windows.click_column,
        windows.target,
        keys,
        windows.offsets[:-1],
        *grids.table.unbind(1),
        *limits,
        marks.offsets[:-1],
        marks.numbers,
    )
    return torch.stack(columns, 1)


def block_shape(pixels: int, trials: int) -> tuple[int, int, int]:
    """Return (PIXELS, LANES, warps) for windows of up to `pixels` pixels.

    Sixteen pixels a thread keep a trial in registers; the more threads share a trial, the fewer lanes are
    worth their scratch memory.
    """
    block = max(32, triton.next_power_of_2(pixels))
    warps = max(1, block // (32 * _PIXELS_PER_THREAD.value))
    return block, min(16 if warps == 1 else 8, triton.next_power_of_2(trials)), warps


def _items(targets: torch.Tensor, first_trial: int, trials: int, lanes: int) -> torch.Tensor:
    """Cut the trials of some targets into items of up to `lanes` trials: int64 [items, 3]."""
    parts = triton.cdiv(trials, lanes)
    bounds = torch.arange(parts + 1) * trials // parts
    number = len(targets)
    firsts, lengths = (first_trial + bounds[:-1]).repeat(number), bounds.diff().repeat(number)
    return torch.stack([targets.repeat_interleave(parts), firsts, lengths], 1)


def run(
    images: PackedImages,
    windows: Windows,
    keys: torch.Tensor,
    grids: StartGrids,
    marks: Marks,
    config: TrialConfig,
    first_trial: int,
    trials: int,
    counts: torch.Tensor,
    masks: torch.Tensor,
) -> None:
    """Fill counts int32 [pixels of all windows], and masks uint8 [trials, same] unless it has no rows.

    There is one launch for each power of two of window pixels.
    """
    device = images.data.device
    geometry = _geometry(images, windows, keys, grids, marks, config).to(device)
    start_centers, mark_pixels = grids.centers.to(device), marks.pixels.to(device, torch.int32)
    padded = (windows.height + 2) * (windows.width + 1)
    blocks = 2 ** torch.ceil(torch.log2(windows.sizes.clamp(min=32).double())).long()
    for block in blocks.unique().flip(0).tolist():
        chosen = torch.nonzero(blocks == block)[:, 0]
        _, lanes, warps = block_shape(block, trials)
        items = _items(chosen, first_trial, trials, lanes)
        centers = triton.next_power_of_2(int(grids.numbers[chosen].max()))
        programs = min(len(items), processors(device) * max(1, _PROGRAMS_PER_PROCESSOR // warps))
        enforced = config.connectivity != "cluster"
        state_size = int(padded[chosen].max()) * lanes if enforced else 0
        queue_size = int(windows.sizes[chosen].max()) * lanes if enforced else 0
        trials_kernel[(programs,)](
            images.data, geometry, start_centers, items.to(device), mark_pixels,
            torch.empty(programs * state_size, dtype=torch.int16, device=device),
            torch.empty(programs * queue_size, dtype=torch.int16, device=device),
            torch.empty(programs * centers * CENTER.value, dtype=torch.float32, device=device),
            counts, masks, len(items), state_size, queue_size, first_trial, counts.numel(),
            config.intensity, threshold(config.intensity), 1.0 / config.compactness, config.max_iterations,
            config.tolerance,
            PIXELS=block, LANES=lanes, CENTERS=centers, DISTURB=NOISES[config.noise].function("triton"),
            SHARED=config.shared_noise, OWN_RANGE=images.data.dtype != torch.uint8,
            WINDOWED=config.method == "slic", CONNECTIVITY=CONNECTIVITY.index(config.connectivity),
            MASKS=masks.shape[0] > 0, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
