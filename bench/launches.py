"""Every Triton kernel as it is usually launched: block shapes, constants, types of its arguments."""

from dataclasses import dataclass, field
from typing import Any

from mclc_gpu.kernels import (
    color_triton,
    components_triton,
    connectivity_triton,
    crf_triton,
    gray_triton,
    noise_triton,
    scoring_triton,
    slic_triton,
    trials_triton,
)
from mclc_gpu.kernels.aot import Machine, machine_code


def _types(**names: str) -> dict[str, str]:
    """Type of each name, from the names of each type."""
    return {name: kind for kind, listed in names.items() for name in listed.split()}


# Of the kernels' arguments by name, without the constants; a kernel that uses a name otherwise says so.
_TYPES = _types(
    fp32="p_features p_centres p_grid p_windows p_out p_image p_colours p_values p_energy p_after p_shares"
    " p_tpm sigma scale tolerance weight low high unit sharper",
    fp64="p_scales p_weights p_numbers p_sums p_totals",
    i64="p_geometry p_items p_first p_images p_parts p_offsets p_keys p_targets mask_pitch map_pitch",
    i32="p_order p_labels p_active p_changed p_unreached p_counts p_moved p_seeds p_table p_area trial plane"
    " bound height width min_size max_size n_centres cell_y cell_x cells_y cells_x items state_size"
    " queue_size first_trial iterations reach targets masks inversions near levels max_area",
    i16="p_state p_queue",
    u8="p_data p_masks p_join",
)


@dataclass(frozen=True)
class Loop:
    """An inner loop, known as the innermost one with the most instructions of one kind.

    `per` units are dealt with in each round of a thread.
    """

    name: str
    opcode: str
    unit: str
    per: int


@dataclass(frozen=True)
class Launch:
    """A kernel at one block shape."""

    kernel: str
    shape: str
    function: Any
    constants: dict[str, Any]
    warps: int
    loops: tuple[Loop, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    fusion: bool = False

    def compile(self, architecture: str) -> Machine:
        """Machine code for "sm_80", "sm_90", "gfx942" or another."""
        types = {
            name: ("*" if name.startswith("p_") else "") + kind
            for name, kind in (_TYPES | self.types).items()
        }
        return machine_code(self.function, types, self.constants, architecture, self.warps, self.fusion)


def launches() -> list[Launch]:
    """Of all kernels, the smallest and the largest usual block shape, and those between of the trials."""
    return [*_trials(), *_crf(), *_slic(), *_connectivity(), *_components(), *_scoring(), *_pixelwise()]


def _trials() -> list[Launch]:
    constants = {"CENTRES": 16, "KIND": noise_triton.SALT.value, "SHARED": False, "OWN_RANGE": False}
    constants |= {"WINDOWED": True, "CONNECTIVITY": trials_triton.ENFORCE.value, "MASKS": False}
    made = []
    for pixels in (64, 256, 512, 1024, 4096):
        block, lanes, warps = trials_triton.block_shape(pixels, 100)
        each = block // (32 * warps)
        loops = (
            Loop("assign", "FSETP", "pixel and centre", each),
            Loop("update", "SHFL", "pixel and centre", each),
            Loop("connectivity", "PLOP3", "step of a lane", 1),
        )
        shape = {"PIXELS": block, "LANES": lanes}
        made.append(
            Launch("trials", f"{pixels} pixels", trials_triton.trials_kernel, constants | shape, warps, loops)
        )
    return made


def _crf() -> list[Launch]:
    queries, keys, warps = crf_triton._QUERIES, crf_triton._KEYS, crf_triton._WARPS
    block = {"QUERIES": queries, "KEYS": keys, "BILATERAL": True, "SMOOTH": True}
    loops = (Loop("pairs", "MUFU", "pair of pixels", queries * keys // (32 * warps)),)
    return [
        Launch(
            "crf", f"{'row sums' if norm else 'messages'}, {channels} channels", crf_triton.sums_kernel,
            block | {"CHANNELS": channels, "NORM": norm}, warps, loops, {"p_windows": "i64"}, fusion=True,
        )
        for channels in (1, 3)
        for norm in (True, False)
    ]  # fmt: skip


def _slic() -> list[Launch]:
    tile_y, tile_x = slic_triton._TILE_Y, slic_triton._TILE_X
    warps = slic_triton._ASSIGN_WARPS
    loops = (Loop("assign", "FSETP", "pixel and centre", tile_y * tile_x // (32 * warps)),)
    made = []
    for channels, up in ((1, 1), (3, 4)):
        tile = {"CHANNELS": channels, "TILE_Y": tile_y, "TILE_X": tile_x}
        block = {"CHANNELS": channels, "CHANNELS_UP": up, "BLOCK": slic_triton._UPDATE_BLOCK}
        shape = f"{channels} channels"
        made.append(Launch("slic assign", shape, slic_triton.assign_kernel, tile, warps, loops))
        made.append(Launch("slic update", shape, slic_triton.update_kernel, block, 4))
    return made


def _connectivity() -> list[Launch]:
    loops = (Loop("connectivity", "PLOP3", "step of a lane", 1),)
    kernel = connectivity_triton.connectivity_kernel
    return [Launch("connectivity", "32 images", kernel, {"LANES": 32}, 1, loops)]


def _components() -> list[Launch]:
    made = []
    for pixels in (64, 4096):
        block, levels, warps = components_triton.block_shape(pixels, 64)
        shape = {"PIXELS": block, "LEVELS": levels}
        types = {"p_data": "fp32"}
        kernel = components_triton.components_kernel
        made.append(Launch("components", f"{pixels} pixels", kernel, shape, warps, (), types))
    return made


def _scoring() -> list[Launch]:
    made = []
    for pixels, data in ((64, "u8"), (4096, "u8"), (4096, "fp32")):
        block, _, warps = components_triton.block_shape(pixels, 64)
        kernel, shape = scoring_triton.scoring_kernel, f"{pixels} pixels of {data}"
        types = {"p_scores": "fp32", "p_data": data}
        made.append(Launch("scoring", shape, kernel, {"PIXELS": block}, warps, (), types))
    shares = scoring_triton.shares_kernel
    return [*made, Launch("shares", "256 pixels", shares, {}, 4, (), {"p_shares": "fp64"})]


def _pixelwise() -> list[Launch]:
    noise = {"CHANNELS": 3, "KIND": noise_triton.SALT.value, "SHARED": False, "BLOCK": noise_triton._BLOCK}
    color, stretch = {"BLOCK": color_triton._BLOCK}, {"BLOCK": gray_triton._BLOCK}
    types = {"p_data": "fp32"}
    return [
        Launch("noise", "512 pixels", noise_triton.noise_kernel, noise, 4, (), {"bound": "i64"}),
        Launch("color", "512 pixels", color_triton.lab_kernel, color, 4),
        Launch("gray", "2048 pixels", gray_triton.stretch_kernel, stretch, 8, (), types),
    ]
