"""The pipeline from images and points to probability maps and masks: place, cluster, refine, compose."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from mclc_gpu.data.annotations import Point, category_of
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.config import MAX_WINDOW
from mclc_gpu.kernels.crf import crf_masks
from mclc_gpu.kernels.mean_field import of_window, relative_to
from mclc_gpu.kernels.packed import MAX_MARKS, Windows
from mclc_gpu.labels.config import PRESETS, LabelConfig
from mclc_gpu.labels.makers import Batch, Maps, maker_of, window_of
from mclc_gpu.labels.windows import (
    PlacedTarget,
    Window,
    estimate_categories,
    name_key,
    nearest_pixel,
    pack_by_type,
)

# A TPM is a quotient of integers in float32; "reaches the level" must not depend on its last bit.
_ROUNDING = 1e-6
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class TargetMask:
    """Label of one target.

    Attributes
    ----------
    image : int
        Index of its image in the call's sequence.
    target : int
        Index of its point among the image's usable points.
    point : Point
        Annotation, with the category that was used.
    window : Window
        Place of the arrays in the image.
    tpm : ndarray of float32, [h, w], 0..1
        Target probability map: share of trials that clustered the pixel with the click (eq. 9), or of the
        weights of the candidates that hold it; with several marks the mean over them.
    mask : ndarray of bool, [h, w]
    trials : int
        Trials behind the TPM.
    estimated : bool
        The category was estimated rather than given.
    confidence : float
        Expected IoU 0..1 of the mask; NaN from label makers that do not know it.
    """

    image: int
    target: int
    point: Point
    window: Window
    tpm: np.ndarray
    mask: np.ndarray
    trials: int
    estimated: bool
    confidence: float


def place_targets(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    names: Sequence[str],
    config: LabelConfig,
    seed: int,
    device: torch.device = _CPU,
) -> tuple[list[PlacedTarget], list[Skipped]]:
    """Find the category and the window of every target.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    points : sequence of sequence of Point
        Targets of each image.
    names : sequence of str
        Names of the images, without folder and suffix.
    config : LabelConfig
    seed : int
        Any integer.
    device : torch.device
        Where missing categories are estimated, if the label maker needs them.

    Returns
    -------
    placed : list of PlacedTarget
    skipped : list of Skipped
        Targets that cannot be labeled, by the name of their image, and why.
    """
    known = [list(own) for own in points]
    kept = config.category == "given"
    estimated = [
        (i, j) for i, own in enumerate(known) for j, p in enumerate(own) if not (kept and p.category)
    ]
    categories: Sequence[str | None] = [None] * len(estimated)
    if config.entry.needs_category:
        categories = estimate_categories(images, [(i, known[i][j]) for i, j in estimated], device)
    for (i, j), category in zip(estimated, categories, strict=True):
        known[i][j] = replace(known[i][j], category=category)
    of_estimate = set(estimated)
    placed: list[PlacedTarget] = []
    skipped: list[Skipped] = []
    for i, (image, own, name) in enumerate(zip(images, known, names, strict=True)):
        shape = image.shape[0], image.shape[1]
        key = name_key(seed, name)
        key -= (key >> 63) << 64  # the same bits as a signed integer
        usable = 0  # numbers the targets, so that the usable points alone give the same labels
        for j, point in enumerate(own):
            window = window_of(shape, point, config, seed, name, usable)
            if why := _obstacle(image, point, window, config):
                skipped.append(Skipped(name, f"target {j} at ({point.x:g}, {point.y:g}): {why}"))
                continue
            marks = _marks(point, window, shape)
            placed.append(PlacedTarget(i, usable, point, window, key, (i, j) in of_estimate, marks))
            usable += 1
    return placed, skipped


def _obstacle(image: np.ndarray, point: Point, window: Window, config: LabelConfig) -> str:
    """Return why a target cannot be labeled; empty if it can."""
    height, width = image.shape[:2]
    corners = [] if point.box is None else [point.box[:2], point.box[2:]]
    pixels = (nearest_pixel(x, y, height, width) for x, y in (*point.marks, *corners))
    if max(window.shape) > MAX_WINDOW or not all(window.holds(*pixel) for pixel in pixels):
        return (
            f"its marks need a window larger than {MAX_WINDOW} x {MAX_WINDOW} pixels; "
            "mark a smaller target or scale the image down"
        )
    return maker_of(config).check(image, window, config)


def _marks(point: Point, window: Window, shape: tuple[int, int]) -> tuple[int, ...]:
    """Return the marked pixels beside the click: row * width + column in the window."""
    # Of a scribble with more pixels than can be counted, pixels spread evenly over it stand for all.
    chosen = point.seeds[:: -(-len(point.seeds) // MAX_MARKS) or 1]
    pixels = (nearest_pixel(x, y, *shape) for x, y in chosen)
    return tuple((row - window.top) * window.width + column - window.left for row, column in pixels)


@dataclass(frozen=True)
class ClusteredTargets:
    """Probability maps of the targets whose images are uint8, or of those whose images are not.

    Attributes
    ----------
    members : list of int
        Indices of the targets among the placed ones.
    batch : Batch
        These targets, their images and windows.
    maps : Maps
        Output of the label maker, on the device.
    inside : Tensor [pixels of all windows], bool, or None
        Pixels where boxes allow the target to be; None without any box.
    """

    members: list[int]
    batch: Batch
    maps: Maps
    inside: torch.Tensor | None


def cluster_targets(
    images: Sequence[np.ndarray], placed: Sequence[PlacedTarget], config: LabelConfig, device: torch.device
) -> list[ClusteredTargets]:
    """Make the TPMs of all placed targets (eq. 1-9), in a group for each of the two kinds of images.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    placed : sequence of PlacedTarget
        In any order; see `place_targets`.
    config : LabelConfig
    device : torch.device
    """
    groups = []
    for members, places, packed in pack_by_type(images, [target.image for target in placed], device):
        targets = [placed[t] for t in members]
        rows = zip(places, targets, strict=True)
        windows = Windows.pack((place, *astuple(own.window), own.target) for place, own in rows)
        batch = Batch(images, targets, packed, windows)
        maps, inside = maker_of(config).maps(batch, config), None
        if any(target.point.box is not None for target in targets):
            allowed = [target.inside(images[target.image].shape[:2]).ravel() for target in targets]
            inside = torch.from_numpy(np.concatenate(allowed)).to(device)
            maps = replace(maps, tpm=maps.tpm.to(device) * inside)
        groups.append(ClusteredTargets(members, batch, maps, inside))
    return groups


def refine_targets(
    placed: Sequence[PlacedTarget], groups: Sequence[ClusteredTargets], config: LabelConfig
) -> list[TargetMask]:
    """Make masks from TPMs, in the order of the placed targets."""
    done: dict[int, TargetMask] = {}
    for group in groups:
        batch, tpm = group.batch, group.maps.tpm
        if config.refine == "crf":
            masks = crf_masks(tpm, batch.packed, batch.windows, config.crf)
        else:
            masks = threshold_masks(tpm, batch.windows.sizes, config.threshold)
        if group.inside is not None:
            masks &= group.inside
        done.update(zip(group.members, _target_masks(group, masks, config), strict=True))
    return [done[t] for t in range(len(placed))]


def _target_masks(group: ClusteredTargets, masks: torch.Tensor, config: LabelConfig) -> list[TargetMask]:
    maps, sizes = group.maps, group.batch.windows.sizes.tolist()
    count = len(sizes)
    trials = [config.trials] * count if maps.trials is None else maps.trials.tolist()
    confidences = [math.nan] * count if maps.confidence is None else maps.confidence.tolist()
    areas = [None] * count if maps.area is None else maps.area.tolist()
    tpms, parts = maps.tpm.cpu().split(sizes), masks.cpu().split(sizes)
    targets = []
    for placed, number, confidence, area, tpm, mask in zip(
        group.batch.targets, trials, confidences, areas, tpms, parts, strict=True
    ):
        point, window = placed.point, placed.window
        if not point.category:
            point = replace(point, category=category_of(int(mask.sum()) if area is None else area))
        arrays = tpm.numpy().reshape(window.shape), mask.numpy().reshape(window.shape)
        about = placed.image, placed.target, point, window
        targets.append(TargetMask(*about, *arrays, number, placed.estimated, confidence))
    return targets


def threshold_masks(tpm: torch.Tensor, sizes: torch.Tensor, level: float) -> torch.Tensor:
    """Select the pixels whose TPM is above 0 and reaches a share of the window's maximum.

    Parameters
    ----------
    tpm : Tensor [pixels of all windows], float32, 0..1
    sizes : Tensor [windows], int64, on the CPU
        Pixels of each window.
    level : float in 0..1
        Least TPM / max(TPM).

    Returns
    -------
    Tensor [pixels of all windows], bool
    """
    relative = relative_to(tpm, of_window(tpm, sizes, "amax"))
    return (relative > 0) & (relative >= level - _ROUNDING)


OfImage = TypeVar("OfImage", PlacedTarget, TargetMask)


def by_image(targets: Iterable[OfImage], images: int) -> list[list[OfImage]]:
    """Group targets by the `image` (0 to `images` - 1) that they are in, in their order."""
    groups: list[list[OfImage]] = [[] for _ in range(images)]
    for target in targets:
        groups[target.image].append(target)
    return groups


def compose(shape: tuple[int, int], targets: Sequence[TargetMask]) -> tuple[np.ndarray, np.ndarray]:
    """Compose the labels of one image: union of masks and maximum of TPMs where windows overlap.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image in pixels.
    targets : sequence of TargetMask
        Targets of this image.

    Returns
    -------
    mask : ndarray of bool, [H, W]
    tpm : ndarray of float32, [H, W], 0..1
    """
    mask = np.zeros(shape, bool)
    tpm = np.zeros(shape, np.float32)
    for target in targets:
        mask[target.window.area] |= target.mask
        np.maximum(tpm[target.window.area], target.tpm, out=tpm[target.window.area])
    return mask, tpm


def label_targets(
    images: Sequence[np.ndarray], placed: Sequence[PlacedTarget], config: LabelConfig, device: torch.device
) -> list[TargetMask]:
    """Label placed targets: cluster, then refine.

    Raises
    ------
    InputError
        An image that cannot be packed, such as one with values that are not finite.
    """
    try:
        groups = cluster_targets(images, placed, config, device)
    except ValueError as error:
        raise InputError(str(error)) from error
    return refine_targets(placed, groups, config)


def warm_up(config: LabelConfig, device: torch.device) -> None:
    """Compile the kernels of a config at the usual window sizes, so that later timings hold none of it."""
    image = (np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)
    sides = (6, 10, 16, 22, 32, 50, 63) if device.type == "cuda" else (6,)
    windows = [Window(0, 0, side, side, side // 2, side // 2) for side in sides]
    points = [Point(side // 2, side // 2) for side in sides]
    placed = [PlacedTarget(0, t, points[t], window, 0, False) for t, window in enumerate(windows)]
    brief = replace(config, trials=min(config.trials, 16))
    for version in (image, image.astype(np.float32)) if device.type == "cpu" else (image,):
        label_targets([version], placed, brief, device)


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
        for x, y in click.marks:
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
    """Label every target of some images (Li et al., ICCV 2023, arXiv:2304.04442, eq. 1-9).

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
        uint8 gray levels, or any other finite real dtype, whose windows are scaled by their own range.
    points : sequence of sequence of Point
        Targets of each image. Valid positions: -0.5 <= x < W - 0.5, -0.5 <= y < H - 0.5.
    config : LabelConfig, optional
        Default: the preset "default", labels from the click alone.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    seed : int
        Any integer. A target's label depends on the seed, its image and the image's name, its point and its
        place among the image's usable points, not on the other images or the device.
    names : sequence of str, optional
        Names of the images; default "0", "1", ...

    Returns
    -------
    list of TargetMask
        One per target, in order.

    Raises
    ------
    InputError
        Lengths that differ, an image that cannot be used, a point outside its image, or a target that cannot
        be labeled.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu import Point, label_images
    >>> image = np.random.default_rng(0).integers(40, 44, (64, 64)).astype(np.uint8)
    >>> image[30:33, 20:24] = 200
    >>> (target,) = label_images([image], [[Point(x=21, y=31)]], device="cpu")
    >>> target.point.category, int(target.mask.sum())
    ('spot', 12)
    """
    config = config or PRESETS["default"]
    names = [str(i) for i in range(len(images))] if names is None else names
    if not len(images) == len(points) == len(names):
        raise InputError(
            f"{len(images)} images, {len(points)} lists of points, {len(names)} names: give one each"
        )
    for image, own, name in zip(images, points, names, strict=True):
        _check_image(image, own, name)
    place = pick_device(device)
    placed, skipped = place_targets(images, points, names, config, seed, place)
    if skipped:
        raise InputError(f"{skipped[0].file}: {skipped[0].why}")
    return label_targets(images, placed, config, place)
