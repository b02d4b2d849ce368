"""The chain from images and points to target probability maps and masks, written once for every use."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from mclc_gpu.data.points import Point
from mclc_gpu.data.simulate import category_of
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError
from mclc_gpu.estimate import estimate_category
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.montecarlo import run_until_stable
from mclc_gpu.kernels.trials import MAX_SEEDS, MAX_WINDOW, PackedImages, Seeds, run_trials
from mclc_gpu.labelconfig import LabelConfig
from mclc_gpu.makers import grabcut_mask, marked_mask
from mclc_gpu.refine import crf_masks, threshold_masks
from mclc_gpu.windows import Window, box_pixels, name_key, nearest_pixel, place_window

_SPANS = 1e-30, 1e30  # of a window's values: its colours are scaled by them in float32


@dataclass(frozen=True)
class TargetMask:
    """One target's labels.

    Attributes:
        image: Index of its image in the call's sequence.
        target: Index of its point among the image's usable points.
        point: The click, with the category that was used.
        window: Where the arrays lie in the image.
        tpm: float32 [h, w]: share of trials that clustered the pixel with the click (eq. 9); with several
            marks the mean over them.
        mask: bool [h, w].
        trials: Trials behind the TPM.
        estimated: Whether the category was estimated rather than given.
    """

    image: int
    target: int
    point: Point
    window: Window
    tpm: np.ndarray
    mask: np.ndarray
    trials: int
    estimated: bool


@dataclass(frozen=True)
class PlacedTarget:
    """A target ready to be clustered: what `place_targets` found out about it.

    Attributes:
        image, target, point, estimated: See `TargetMask`.
        window: Holds the click and the seeds, or the box.
        key: Of the image's noise.
        seeds: Further marked pixels beside the click: row * width + column in the window.
    """

    image: int
    target: int
    point: Point
    window: Window
    key: int
    estimated: bool
    seeds: tuple[int, ...] = ()

    def inside(self, shape: tuple[int, int]) -> np.ndarray:
        """bool [h, w]: where in the window the target can be, given an image of `shape`: in its box."""
        allowed = np.ones((self.window.height, self.window.width), bool)
        if self.point.box is not None:
            left, top, right, bottom = box_pixels(self.point.box, *shape)
            allowed[:] = False
            allowed[
                top - self.window.top : bottom - self.window.top,
                left - self.window.left : right - self.window.left,
            ] = True
        return allowed


def place_targets(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    names: Sequence[str],
    config: LabelConfig,
    seed: int,
) -> tuple[list[PlacedTarget], list[Skipped]]:
    """Category and window of every target, and the targets that cannot be labelled, with the reason."""
    placed: list[PlacedTarget] = []
    skipped: list[Skipped] = []
    for i, (image, clicks, name) in enumerate(zip(images, points, names, strict=True)):
        height, width = image.shape[:2]
        key = name_key(seed, name)
        key -= (key >> 63) << 64  # the same bits as a signed integer
        usable = 0  # numbers the targets, so that the usable points alone give the same labels
        for j, click in enumerate(clicks):
            category = click.category if config.category == "given" else None
            point = replace(click, category=category or _category(image, click))
            window = place_window(height, width, point, seed, name, usable)
            if why := _obstacle(image[window.area], config):
                skipped.append(Skipped(name, f"target {j} at ({click.x:g}, {click.y:g}): {why}"))
                continue
            seeds = _seeds(point, window, (height, width))
            placed.append(PlacedTarget(i, usable, point, window, key, category is None, seeds))
            usable += 1
    return placed, skipped


def _category(image: np.ndarray, point: Point) -> str:
    """Category of a target that came without one: of its box, else of the blob under the click."""
    if point.box is None:
        return estimate_category(image, point)
    left, top, right, bottom = box_pixels(point.box, *image.shape[:2])
    return category_of((right - left) * (bottom - top))


def _obstacle(pixels: np.ndarray, config: LabelConfig) -> str:
    """Why a window cannot be labelled; empty when it can."""
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_WINDOW:
        return (
            f"its window of {height} x {width} pixels is larger than {MAX_WINDOW} x {MAX_WINDOW}; "
            "mark a smaller target or scale the image down"
        )
    if config.maker != "mclc":
        return ""
    span = float(pixels.max()) - float(pixels.min())
    if height * width < config.trial.clusters:
        return (
            f"its window has {height} x {width} pixels, fewer than the {config.trial.clusters} clusters; "
            "use fewer clusters or a larger image"
        )
    if span == 0:
        return "its window is constant, there is nothing to cluster"
    if not _SPANS[0] <= span <= _SPANS[1]:
        return f"its window's values span {span:g}; scale the image to a range near 1"
    return ""


def _seeds(point: Point, window: Window, shape: tuple[int, int]) -> tuple[int, ...]:
    # Of a scribble with more pixels than can be counted, pixels spread evenly over it stand for all.
    chosen = point.seeds[:: -(-len(point.seeds) // MAX_SEEDS) or 1]
    pixels = (nearest_pixel(x, y, *shape) for x, y in chosen)
    return tuple((row - window.top) * window.width + column - window.left for row, column in pixels)


@dataclass(frozen=True)
class ClusteredTargets:
    """TPMs of the targets whose images are uint8, or of those whose images are not, on their device.

    Attributes:
        members: Indices of the targets among the placed ones.
        images: Their images.
        windows: int64 [targets, 8], see `mclc_gpu.kernels.trials.WINDOW_COLUMNS`, on the CPU.
        tpm: float32 [pixels of all windows].
        trials: int64 [targets], trials behind each TPM, on the CPU.
        inside: bool [pixels of all windows], where boxes allow the target to be; None without any box.
    """

    members: list[int]
    images: PackedImages
    windows: torch.Tensor
    tpm: torch.Tensor
    trials: torch.Tensor
    inside: torch.Tensor | None

    @property
    def sizes(self) -> torch.Tensor:
        """Pixels of each window, int64 [targets], on the CPU."""
        return self.windows[:, 3] * self.windows[:, 4]


def cluster_targets(
    images: Sequence[np.ndarray], placed: Sequence[PlacedTarget], config: LabelConfig, device: torch.device
) -> list[ClusteredTargets]:
    """TPMs of all placed targets (eq. 1-9), in a group for each of the two kinds of images that there is."""
    groups = []
    for byte in (True, False):
        members = [t for t, target in enumerate(placed) if (images[target.image].dtype == np.uint8) == byte]
        if members:
            groups.append(_cluster_group(images, [placed[t] for t in members], members, config, device))
    return groups


def _cluster_group(
    images: Sequence[np.ndarray],
    placed: Sequence[PlacedTarget],
    members: list[int],
    config: LabelConfig,
    device: torch.device,
) -> ClusteredTargets:
    used = sorted({target.image for target in placed})
    index = {image: n for n, image in enumerate(used)}
    packed = PackedImages.pack([images[i] for i in used], device)
    rows = [(index[target.image], *astuple(target.window), target.target) for target in placed]
    windows = torch.tensor(rows, dtype=torch.int64)
    if config.maker == "mclc":
        tpm, trials = _monte_carlo(packed, windows, placed, config)
    else:
        tpm, trials = (
            _other_maps(images, placed, config).to(device),
            torch.ones(len(placed), dtype=torch.int64),
        )
    inside = None
    if any(target.point.box is not None for target in placed):
        allowed = [target.inside(images[target.image].shape[:2]).ravel() for target in placed]
        inside = torch.from_numpy(np.concatenate(allowed)).to(device)
        tpm = tpm * inside
    return ClusteredTargets(members, packed, windows, tpm, trials, inside)


def _monte_carlo(
    packed: PackedImages, windows: torch.Tensor, placed: Sequence[PlacedTarget], config: LabelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """TPMs (eq. 9) of all windows, one after another, and the trials behind each.

    Of a target with several marks it is the mean of the TPMs that each mark alone would give. The union of
    the marks' segments would hold background wherever a mark near the edge falls into a background segment.
    """
    keys = torch.tensor([target.key for target in placed], dtype=torch.int64)
    seeds = Seeds.pack([target.seeds for target in placed])
    if config.stop_change > 0:
        limits = config.trials, config.stop_change
        counts, _, trials = run_until_stable(packed, windows, keys, config.trial, *limits, seeds=seeds)
    else:
        counts = run_trials(packed, windows, keys, config.trial, config.trials, seeds=seeds).counts
        trials = torch.full((len(placed),), config.trials)
    marks = 1 + seeds.offsets.diff()
    divisors = torch.repeat_interleave(trials * marks, windows[:, 3] * windows[:, 4]).to(counts.device)
    return counts / divisors, trials


def _other_maps(
    images: Sequence[np.ndarray], placed: Sequence[PlacedTarget], config: LabelConfig
) -> torch.Tensor:
    """What the makers without trials find, as TPMs of 0 and 1; OpenCV works on a core for each target."""

    def of_target(target: PlacedTarget) -> np.ndarray:
        window, image = target.window, images[target.image]
        marks = [window.click_row * window.width + window.click_column, *target.seeds]
        box = None if target.point.box is None else target.inside(image.shape[:2])
        if config.maker == "point":
            return marked_mask((window.height, window.width), marks, box)
        return grabcut_mask(image[window.area], marks, box)

    with ThreadPoolExecutor() as pool:
        found = [mask.ravel() for mask in pool.map(of_target, placed)]
    return torch.from_numpy(np.concatenate(found).astype(np.float32))


def refine_targets(
    placed: Sequence[PlacedTarget], groups: Sequence[ClusteredTargets], config: LabelConfig
) -> list[TargetMask]:
    """Masks from TPMs, in the order of the placed targets."""
    done: dict[int, TargetMask] = {}
    for group in groups:
        if config.refine == "crf":
            masks = crf_masks(group.tpm, group.images, group.windows, config.crf)
        else:
            masks = threshold_masks(group.tpm, group.sizes, config.threshold)
        if group.inside is not None:
            masks &= group.inside
        sizes = group.sizes.tolist()
        of_target = zip(group.tpm.cpu().split(sizes), masks.cpu().split(sizes), strict=True)
        for t, number, (tpm, mask) in zip(group.members, group.trials.tolist(), of_target, strict=True):
            p = placed[t]
            shape = (p.window.height, p.window.width)
            arrays = tpm.numpy().reshape(shape), mask.numpy().reshape(shape)
            done[t] = TargetMask(p.image, p.target, p.point, p.window, *arrays, number, p.estimated)
    return [done[t] for t in range(len(placed))]


def compose(shape: tuple[int, int], targets: Sequence[TargetMask]) -> tuple[np.ndarray, np.ndarray]:
    """One image's mask (bool [H, W]) and TPM (float32 [H, W]): union and maximum where windows overlap."""
    mask = np.zeros(shape, bool)
    tpm = np.zeros(shape, np.float32)
    for target in targets:
        mask[target.window.area] |= target.mask
        np.maximum(tpm[target.window.area], target.tpm, out=tpm[target.window.area])
    return mask, tpm


def warm_up(config: LabelConfig, device: torch.device) -> None:
    """Compile what the chain needs, at the usual window sizes, so that no later timing holds compilation."""
    image = (np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)
    sides = (6, 10, 16, 22, 32, 50) if device.type == "cuda" else (6,)
    windows = [Window(0, 0, side, side, side // 2, side // 2) for side in sides]
    placed = [PlacedTarget(0, t, Point(0, 0), window, 0, False) for t, window in enumerate(windows)]
    brief = replace(config, trials=min(config.trials, 16))
    for version in (image, image.astype(np.float32)) if device.type == "cpu" else (image,):
        refine_targets(placed, cluster_targets([version], placed, brief, device), brief)


def _check_image(image: np.ndarray, clicks: Sequence[Point], name: str) -> None:
    if image.dtype.kind not in "uif" or image.shape[2:] not in ((), (3,)) or image.ndim < 2 or not image.size:
        raise InputError(
            f"{name}: the image is {image.dtype} {list(image.shape)}; give numbers [H, W] or [H, W, 3]"
        )
    if not np.isfinite(image).all():
        raise InputError(f"{name}: the image holds NaN or infinite values; replace them by numbers")
    height, width = image.shape[:2]

    def inside(x: float, y: float) -> bool:
        return -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5

    for click in clicks:
        for x, y in ((click.x, click.y), *click.seeds):
            if not inside(x, y):
                raise InputError(f"{name}: ({x:g}, {y:g}) lies outside the {width}x{height} image")
        if click.box is not None:
            left, top, right, bottom = click.box
            if not (inside(left, top) and inside(right, bottom)):
                raise InputError(f"{name}: the box {click.box} lies outside the {width}x{height} image")
            if right < left or bottom < top:
                raise InputError(f"{name}: the box {click.box} has its right below left, or bottom below top")


def label_images(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    config: LabelConfig | None = None,
    *,
    device: str = "auto",
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> list[TargetMask]:
    """Labels of every target of some images (Li et al., ICCV 2023, arXiv:2304.04442, eq. 1-9).

    Args:
        images: Arrays [H, W] or [H, W, 3]: uint8 gray levels, or any other finite real dtype, whose windows
            are scaled by their own range.
        points: For each image its clicks.
        config: Default: the published settings.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: Any integer. A target's label depends on the seed, its image and the image's name, its point and
            its place among the image's usable points, not on the other images or the device.
        names: The images' names; default "0", "1", ...

    Returns:
        One TargetMask per target, in order.

    Raises:
        InputError: Lengths that differ, an image that cannot be used, a point outside its image (valid:
            -0.5 <= x < W - 0.5, -0.5 <= y < H - 0.5), a target that cannot be clustered.
    """
    config = config or LabelConfig()
    names = [str(i) for i in range(len(images))] if names is None else names
    if not len(images) == len(points) == len(names):
        raise InputError(
            f"{len(images)} images, {len(points)} lists of points, {len(names)} names: give one each"
        )
    for image, clicks, name in zip(images, points, names, strict=True):
        _check_image(image, clicks, name)
    placed, skipped = place_targets(images, points, names, config, seed)
    if skipped:
        raise InputError(f"{skipped[0].file}: {skipped[0].why}")
    try:
        groups = cluster_targets(images, placed, config, pick_device(device))
    except ValueError as error:
        raise InputError(str(error)) from error
    return refine_targets(placed, groups, config)
