"""Monte Carlo trials in Triton, in three launches whatever the windows.

`prepare_kernel` lays out the windows and their palettes. `cluster_kernel` makes the noise, the colors and the
clusters of trials, one warp to each, the trials of the largest windows first. `segment_kernel` enforces
connectivity in up to 32 trials of a target, one lane to each, and counts.
"""

import torch
import triton
import triton.language as tl

from mclc_gpu.kernels.backend import launching, processors, upload
from mclc_gpu.kernels.config import CONNECTIVITY, NOISES, TrialConfig
from mclc_gpu.kernels.connectivity_triton import fill_border, relabel_lanes
from mclc_gpu.kernels.noise import threshold
from mclc_gpu.kernels.packed import Marks, PackedImages, StartGrids, Windows, starts_of
from mclc_gpu.kernels.trial_features_triton import (
    BLOCK,
    CENTERS,
    CLICK,
    FACTS,
    FIRST_BLOCK,
    FIRST_CENTER,
    FIRST_MARK,
    GEOMETRY,
    HEIGHT,
    HIGH_END,
    INTERVAL,
    LABELS,
    LOW_END,
    MARKS,
    MAX_SIZE,
    MIN_SIZE,
    NO_END,
    PALETTE,
    PIXEL_OFFSET,
    REACH_X,
    REACH_Y,
    UNIT,
    VALUES,
    WIDTH,
    blocks_of,
    load_planes,
    number_of,
    numbers,
    pixels,
    places,
    prepare_kernel,
    tile_places,
    tiles_of,
    trial_features,
)  # fmt: skip

ENFORCE, COMPONENT, CLUSTER = (tl.constexpr(i) for i in range(len(CONNECTIVITY)))
_ENDS = {None: NO_END.value, "low": LOW_END.value, "high": HIGH_END.value}
LANES = tl.constexpr(32)  # trials whose labels are interleaved for connectivity
CENTER = tl.constexpr(8)  # numbers of a center: row, column, color times -2, its square; a multiple of four
SUMS = tl.constexpr(5)  # of a cluster: pixels, rows, columns, three colors, the first two in one integer
ROUND = tl.constexpr(2)  # blocks that a warp assigns to clusters at once
_COUNTED = tl.constexpr(8)  # pixels of a row that are counted at once
_PROGRAMS_PER_PROCESSOR = 32
_MEMORY = 1 << 29  # bytes: the targets of one launch
_SCRATCH = 1 << 28  # bytes: fewer programs run at once where each needs much


@triton.jit
def start_centers(p_grid, p_centers, g, number):
    """Write the places of a window's start centers."""
    p_grid += tl.load(g + FIRST_CENTER) * 2
    for first in range(0, number, LANES):
        k = first + tl.arange(0, LANES)
        for column in tl.static_range(2):
            start = tl.load(p_grid + k * 2 + column, k < number, 0.0)
            tl.store(p_centers + k * CENTER + column, start, k < number)


@triton.jit
def tabulate(p_centers, p_table, number, pitch, pixels_of, places_of, reach, weight, ROWS: tl.constexpr):
    """Write each center's weighted squared distances to the window's rows, with its norm, or to its columns.

    They are infinite where the center's window does not reach, and in the places behind the window's pixels.
    """
    for first in range(0, places_of, LANES):
        place = first + tl.arange(0, LANES)
        at = tl.where(place < pixels_of, place.to(tl.float32), float("inf"))
        p_center = p_centers
        p_distance = p_table + place
        for _ in range(number):
            distance = tl.load(p_center + (0 if ROWS else 1)) - at
            # -reach <= d < reach + 1 is scikit-image's truncated window, for pixels at integers.
            reached = (distance >= -reach) & (distance < reach + 1)
            near = distance * distance * weight
            if ROWS:
                near += tl.load(p_center + 5)
            tl.store(p_distance, tl.where(reached, near, float("inf")), place < places_of)
            p_center += CENTER
            p_distance += pitch


@triton.jit
def assign(p_centers, p_table, number, rows, pitch, row, column, f0, f1, f2, label):
    """Return the nearest center whose window reaches a pixel (eq. 2, 3); lowest index on exact ties.

    `row` and `column` are those of the tiles; see `tabulate` for the table.
    """
    best = tl.full(label.shape, float("inf"), tl.float32)
    of_two = tl.arange(0, 2)
    p_row = p_table + 2 * row + of_two[None, :, None, None]
    p_column = p_table + rows + 2 * column + of_two[None, None, :, None]
    for k in range(number):
        p_center = p_centers + k * CENTER
        # |f - c|^2 less |f|^2, which is the same for all centers.
        distance = tl.load(p_row + k * pitch) + tl.load(p_column + k * pitch)
        distance = tl.fma(f0, tl.load(p_center + 2), distance)
        distance = tl.fma(f1, tl.load(p_center + 3), distance)
        distance = tl.fma(f2, tl.load(p_center + 4), distance)
        nearer = distance < best
        best = tl.where(nearer, distance, best)
        label = tl.where(nearer, k, label)
    return label


@triton.jit
def _total(share, value, other_share, other_value):
    return tl.full((), 1.0, tl.float32), tl.fma(other_share, other_value, share * value)


@triton.jit
def in_thread(member, value):
    """Return the sum over the members of each thread's pixels, [32]."""
    pair = tl.reshape(member, [4 * ROUND, 32]), tl.reshape(value, [4 * ROUND, 32])
    return tl.reduce(pair, 0, _total)[1]


@triton.jit
def rounded(value, scale):
    """Return value * scale as the nearest whole numbers, int32."""
    return tl.floor(tl.fma(value, scale, 0.5)).to(tl.int32)


@triton.jit
def touched(label, before):
    """Return the clusters that pixels of a round have left or joined, as bits by their number modulo 32."""
    bits = tl.where(label != before, (1 << (label & 31)) | (1 << (before & 31)), 0)
    return tl.reduce(tl.reshape(bits, [ROUND * BLOCK]), 0, _either)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def add_up(p_sums, number, bits, row, column, f0, f1, f2, label, unit):
    """Sum a round's pixels by cluster, int32 [number, SUMS], for the clusters of the bits."""
    # Less than 2^24 for the pixels of a thread.
    of_two = tl.arange(0, 2)
    y = 2 * row + of_two[None, :, None, None]
    x = 2 * column + of_two[None, None, :, None]
    place = (1 + y * (1 << 4) + x * (1 << 13)).to(tl.float32)
    p_sum = p_sums
    for k in range(number):
        if (bits >> (k & 31)) & 1 != 0:
            member = tl.where(label == k, 1.0, 0.0)
            places_of = in_thread(member, place).to(tl.int32)
            # A window has at most 2^12 pixels, and their rows add up to less than 2^18.
            tl.store(p_sum, tl.sum((places_of & 15) + ((places_of >> 4) & 511) * (1 << 13), 0))
            tl.store(p_sum + 1, tl.sum(places_of >> 13, 0))
            tl.store(p_sum + 2, tl.sum(rounded(in_thread(member, f0), unit), 0))
            tl.store(p_sum + 3, tl.sum(rounded(in_thread(member, f1), unit), 0))
            tl.store(p_sum + 4, tl.sum(rounded(in_thread(member, f2), unit), 0))
        p_sum += SUMS


@triton.jit
def move(p_centers, p_sums, number, rounds, unit):
    """Move every center to the mean of its pixels (eq. 4), an empty cluster's out of every pixel's reach.

    Returns the largest squared move in pixels.
    """
    moved = 0.0
    inverse = tl.div_rn(1.0, unit)
    for first in range(0, number, LANES):
        own = first + tl.arange(0, LANES)
        place = tl.zeros([LANES], tl.int32)
        column = tl.zeros([LANES], tl.int32)
        c0 = tl.zeros([LANES], tl.int32)
        c1 = tl.zeros([LANES], tl.int32)
        c2 = tl.zeros([LANES], tl.int32)
        for i in range(rounds):
            p_sum = p_sums + (i * number + own) * SUMS
            place += tl.load(p_sum, own < number, 0)
            column += tl.load(p_sum + 1, own < number, 0)
            c0 += tl.load(p_sum + 2, own < number, 0)
            c1 += tl.load(p_sum + 3, own < number, 0)
            c2 += tl.load(p_sum + 4, own < number, 0)
        pixels_of = place & 0x1FFF
        count = tl.maximum(pixels_of, 1).to(tl.float32)
        p_center = p_centers + own * CENTER
        cy = tl.div_rn((place >> 13).to(tl.float32), count)
        cx = tl.div_rn(column.to(tl.float32), count)
        dy = cy - tl.load(p_center, own < number, 0.0)
        dx = cx - tl.load(p_center + 1, own < number, 0.0)
        moved = tl.maximum(moved, tl.max(tl.where(pixels_of > 0, dy * dy + dx * dx, 0.0), 0))
        tl.store(p_center, tl.where(pixels_of > 0, cy, float("inf")), own < number)
        tl.store(p_center + 1, cx, own < number)
        color0 = tl.div_rn(c0.to(tl.float32), count) * inverse
        color1 = tl.div_rn(c1.to(tl.float32), count) * inverse
        color2 = tl.div_rn(c2.to(tl.float32), count) * inverse
        tl.store(p_center + 2, -2.0 * color0, own < number)
        tl.store(p_center + 3, -2.0 * color1, own < number)
        tl.store(p_center + 4, -2.0 * color2, own < number)
        norm = tl.fma(color2, color2, tl.fma(color1, color1, color0 * color0))
        tl.store(p_center + 5, norm, own < number)
    return moved


@triton.jit
def cluster(
    p_features, p_starts, p_labels, p_sums, p_centers, p_table, p_grid, g, rounds, down, across,
    iterations, tolerance, WINDOWED: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Write the labels of one trial, -1 outside the window. Stopping at a fixed point is exact."""
    number = number_of(g, CENTERS)
    unit = number_of(g, UNIT).to(tl.float32, bitcast=True)
    reach_y = tl.load(g + REACH_Y).to(tl.float32) if WINDOWED else float("inf")
    reach_x = tl.load(g + REACH_X).to(tl.float32) if WINDOWED else float("inf")
    interval = tl.load(g + INTERVAL).to(tl.float32)
    weight = tl.div_rn(1.0, interval * interval)
    # The table of distances has the pixels of whole tiles, and two rows more that no center reaches.
    rows = 2 * (down + 1)
    pitch = rows + 2 * across
    place = places(1, ROUND)
    start_place = places(PLANES, ROUND)
    feature_place = places(3, ROUND)
    start_centers(p_grid, p_centers, g, number)
    done = 0
    while done < iterations:
        if done > 0:
            tl.debug_barrier()
            height = number_of(g, HEIGHT)
            width = number_of(g, WIDTH)
            tabulate(p_centers, p_table, number, pitch, height, rows, reach_y, weight, True)
            tabulate(p_centers, p_table + rows, number, pitch, width, 2 * across, reach_x, weight, False)
            tl.debug_barrier()
        changed = 0
        for i in range(rounds):
            row, column = tile_places(i * ROUND, down, across, ROUND)
            f0, f1, f2 = load_planes(p_features + i * (3 * ROUND * BLOCK), feature_place)
            if done == 0:
                label = tl.load(p_starts + i * (PLANES * ROUND * BLOCK) + start_place).to(tl.int32)
                bits = -1
            else:
                before = tl.load(p_labels + i * (ROUND * BLOCK) + place)
                label = assign(p_centers, p_table, number, rows, pitch, row, column, f0, f1, f2, before)
                bits = touched(label, before)
            tl.store(p_labels + i * (ROUND * BLOCK) + place, label)
            changed |= bits
            if done + 1 < iterations:
                add_up(p_sums + i * number * SUMS, number, bits, row, column, f0, f1, f2, label, unit)
        done += 1
        if (changed == 0) | (done == iterations):
            done = iterations
        else:
            tl.debug_barrier()
            if move(p_centers, p_sums, number, rounds, unit) < tolerance * tolerance:
                done = iterations


@triton.jit(
    do_not_specialize=[
        "items",
        "trials",
        "first_trial",
        "most_blocks",
        "floats",
        "integers",
        "bound",
        "iterations",
    ]
)
def cluster_kernel(
    p_geometry, p_groups, p_grid, p_prepared, p_facts, p_state, p_floats, p_integers, items, trials,
    first_trial, most_blocks, floats, integers, intensity, bound, scale, iterations, tolerance,
    DISTURB: tl.constexpr, SHARED: tl.constexpr, END: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    planes: tl.constexpr = VALUES if END == NO_END else PALETTE
    # The compiler knows multiples of four elements, and loads two pixels of a tile at once.
    p_features = p_floats + program.to(tl.int64) * floats * 4
    p_labels = p_integers + program.to(tl.int64) * integers * 4
    p_centers = p_features + most_blocks * (3 * BLOCK)
    p_sums = p_labels + most_blocks * BLOCK
    for item in range(program, items, tl.num_programs(0)):
        target = item // trials
        trial = item % trials
        g = p_geometry + target.to(tl.int64) * GEOMETRY
        number = number_of(g, CENTERS)
        down, across = tiles_of(g)
        blocks = blocks_of(down, across)
        rounds = blocks // ROUND
        p_window = p_prepared + tl.load(g + FIRST_BLOCK) * (planes * BLOCK)
        trial_features(
            p_window, p_facts + target * FACTS, p_features, p_labels, g, blocks, down, across,
            first_trial + trial, intensity, bound, scale, DISTURB, SHARED, END,
        )  # fmt: skip
        p_table = p_centers + number * CENTER
        cluster(
            p_features, p_window + LABELS * BLOCK, p_labels, p_sums, p_centers, p_table, p_grid, g,
            rounds, down, across, iterations, tolerance, WINDOWED, planes,
        )  # fmt: skip
        stride = number_of(g, WIDTH) + 1
        group = item // LANES
        p_lane = p_state + tl.load(p_groups + group) * LANES + (item - group * LANES)
        place = places(1, ROUND)
        for i in range(rounds):
            y, x, _ = pixels(g, i * ROUND, down, across, ROUND)
            label = tl.load(p_labels + i * (ROUND * BLOCK) + place)
            tl.store(p_lane + ((y + 1) * stride + x) * LANES, (-1 - label).to(tl.int16), label >= 0)


@triton.jit
def count_pixels(p_state, p_kept, p_marks, p_counts, g, active, MASKS: tl.constexpr):
    """Count for each pixel the marks in its segment, the click included, over the lanes' labels."""
    lane = numbers(g, LANES)
    height = number_of(g, HEIGHT)
    width = number_of(g, WIDTH)
    stride = width + 1
    click = number_of(g, CLICK)
    marks = number_of(g, MARKS)
    p_marks += tl.load(g + FIRST_MARK)
    p_counts += tl.load(g + PIXEL_OFFSET)
    wanted = tl.load(p_state + ((click // width + 1) * stride + click % width) * LANES + lane, active, 0)
    for y in range(height):
        for first in range(0, width, _COUNTED):
            x = first + numbers(g, _COUNTED)[:, None]
            used = (x < width) & active[None, :]
            label = tl.load(p_state + ((y + 1) * stride + x) * LANES + lane[None, :], used, -1)
            member = tl.where(used & (label == wanted[None, :]), 1, 0)
            for j in range(marks):
                mark = tl.load(p_marks + j)
                p_mark = p_state + ((mark // width + 1) * stride + mark % width) * LANES + lane
                member += tl.where(used & (label == tl.load(p_mark, active, 0)[None, :]), 1, 0)
            number = tl.sum(member, 1)[:, None] + 0 * member
            one = (x < width) & (lane[None, :] == 0)
            tl.atomic_add(p_counts + y * width + x + 0 * member, number, one, sem="relaxed")
            if MASKS:
                tl.store(p_kept[None, :] + y * width + x, member.to(tl.uint8), used)


@triton.jit(do_not_specialize=["items", "trials", "queue_size", "mask_pitch"])
def segment_kernel(
    p_geometry, p_groups, p_state, p_queue, p_marks, p_counts, p_masks, items, trials, queue_size,
    mask_pitch: tl.int64, CONNECTIVITY: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    p_queue += program.to(tl.int64) * queue_size
    for group in range(program, tl.cdiv(items, LANES), tl.num_programs(0)):
        item = group * LANES + tl.arange(0, LANES)
        active = item < items
        target = tl.where(active, item, items - 1) // trials
        p_lanes = p_state + tl.load(p_groups + group) * LANES
        if CONNECTIVITY != CLUSTER:
            lane = tl.arange(0, LANES)
            own = p_geometry + target.to(tl.int64) * GEOMETRY
            height = number_of(own, HEIGHT)
            width = number_of(own, WIDTH)
            min_size = number_of(own, MIN_SIZE)
            max_size = number_of(own, MAX_SIZE)
            fill_border(p_lanes, lane, active, LANES, height, width)
            relabel_lanes(p_lanes, p_queue, lane, active, LANES, height, width, min_size, max_size)
        for i_target in range(tl.min(target, 0), tl.max(target, 0) + 1):
            g = p_geometry + i_target * GEOMETRY
            p_kept = p_masks
            if MASKS:
                p_kept += tl.load(g + PIXEL_OFFSET) + (item - i_target * trials).to(tl.int64) * mask_pitch
            count_pixels(p_lanes, p_kept, p_marks, p_counts, g, active & (target == i_target), MASKS)


def _geometry(
    images: PackedImages,
    windows: Windows,
    keys: torch.Tensor,
    grids: StartGrids,
    marks: Marks,
    config: TrialConfig,
) -> torch.Tensor:
    """Return the geometry table [targets, GEOMETRY], int64, on the CPU, the largest windows first.

    FIRST_BLOCK holds their numbers of blocks.
    """
    offset, _, _, _, pitch, plane = images.table[windows.image].unbind(1)
    sizes = windows.sizes
    if config.connectivity == "enforce":
        mean = sizes.double() / grids.numbers
        limits = (config.min_size_factor * mean).long(), (config.max_size_factor * mean).long()
    else:
        limits = torch.zeros_like(sizes), sizes
    # Features are below 2^8 of the scale; in units of 2^-exponent their sums are below 2^31.
    exponent = (31 - torch.log2(2.0**8 / config.compactness * sizes.double())).floor().clamp(-126, 126).long()
    order = torch.argsort(_padded(windows.height, windows.width), descending=True, stable=True)
    tiles = (windows.height + 1) // 2 * ((windows.width + 1) // 2)
    blocks = (tiles + 32 * ROUND.value - 1) // (32 * ROUND.value) * ROUND.value
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
        blocks,
        (exponent + 127) << 23,
    )
    return torch.stack(columns, 1)[order]


def _padded(height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Return the elements of the padded states of windows."""
    return (height + 2) * (width + 1)


def _in_fours(elements: int) -> int:
    return (elements + 3) // 4 * 4


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
    """Fill counts int32 [pixels of all windows], and masks uint8 [trials, same] unless it has no rows."""
    geometry = _geometry(images, windows, keys, grids, marks, config)
    # One part, unless prepared windows and labels take much memory.
    used = geometry[:, FIRST_BLOCK.value] * (PALETTE.value * BLOCK.value * 4)
    used += _padded(geometry[:, HEIGHT.value], geometry[:, WIDTH.value]) * (2 * trials)
    parts = (torch.cumsum(used, 0) // _MEMORY).unique_consecutive(return_counts=True)[1].tolist()
    for part in geometry.split(parts):
        _launch(part, images.data, grids.centers, marks.pixels, config, first_trial, trials, counts, masks)


def _launch(
    geometry: torch.Tensor,
    data: torch.Tensor,
    start_centers: torch.Tensor,
    marks: torch.Tensor,
    config: TrialConfig,
    first_trial: int,
    trials: int,
    counts: torch.Tensor,
    masks: torch.Tensor,
) -> None:
    """Run the trials of some targets; see `_geometry`."""
    device, targets = data.device, len(geometry)
    blocks, heights, widths = (geometry[:, column.value].clone() for column in (FIRST_BLOCK, HEIGHT, WIDTH))
    geometry[:, FIRST_BLOCK.value] = starts_of(blocks)[:-1]
    clusters, height, width = int(geometry[:, CENTERS.value].max()), int(heights.max()), int(widths.max())
    # Groups of trials whose labels are interleaved; the first trial of a group has the largest window.
    items = targets * trials
    groups = starts_of(_padded(heights, widths)[torch.arange(0, items, LANES.value) // trials])
    most_blocks, end = int(blocks.max()), _ENDS[NOISES[config.noise].replaced_by]
    planes = (VALUES if end == NO_END.value else PALETTE).value

    def scratch(elements: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(elements, dtype=dtype, device=device)

    prepared = scratch(int(blocks.sum()) * planes * BLOCK.value, torch.float32)
    facts = scratch(targets * FACTS.value, torch.float32)
    state = scratch(int(groups[-1]) * LANES.value, torch.int16)
    floats = _in_fours(most_blocks * 3 * BLOCK.value + clusters * (CENTER.value + height + width + 4))
    integers = _in_fours(most_blocks * BLOCK.value + most_blocks // ROUND.value * SUMS.value * clusters)
    most = processors(device) * _PROGRAMS_PER_PROCESSOR
    programs = max(1, min(items, most, _SCRATCH // (4 * (floats + integers))))
    floods = min(len(groups) - 1, most)
    queue_size = int((heights * widths).max()) * LANES.value
    tables = geometry, groups[:-1], start_centers, marks.int()
    table, group_starts, centers, pixels_of_marks = upload(device, *tables)
    scale, options = 1.0 / config.compactness, {"num_warps": 1, "enable_fp_fusion": False}
    with launching(device):
        prepare_kernel[(targets * most_blocks,)](
            data, table, centers, prepared, facts, most_blocks, scale,
            END=end, OWN_RANGE=data.dtype != torch.uint8, WINDOWED=config.method == "slic", **options,
        )  # fmt: skip
        cluster_kernel[(programs,)](
            table, group_starts, centers, prepared, facts, state, scratch(programs * floats, torch.float32),
            scratch(programs * integers, torch.int32), items, trials, first_trial, most_blocks,
            floats // 4, integers // 4, config.intensity, threshold(config.intensity), scale,
            config.max_iterations, config.tolerance,
            DISTURB=NOISES[config.noise].function("triton"), SHARED=config.shared_noise, END=end,
            WINDOWED=config.method == "slic", **options,
        )  # fmt: skip
        segment_kernel[(floods,)](
            table, group_starts, state, scratch(floods * queue_size, torch.int16), pixels_of_marks, counts,
            masks, items, trials, queue_size, counts.numel(),
            CONNECTIVITY=CONNECTIVITY.index(config.connectivity), MASKS=masks.shape[0] > 0, **options,
        )  # fmt: skip
