"""The pipeline from images and points to target probability maps and masks, written once for every use."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from mclc_gpu.data.annotations import Point, category_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.config import CrfConfig
from mclc_gpu.kernels.crf import dense_crf, window_colors
from mclc_gpu.kernels.mean_field import in_pieces
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.kernels.trials import run_trials, run_until_stable
from mclc_gpu.labels.config import PRESETS, LabelConfig
from mclc_gpu.labels.makers import grabcut_mask, marked_mask, vote
from mclc_gpu.labels.windows import PlacedTarget, Window, place_targets

_ROUNDING = (
    1e-6  # a TPM is a quotient of integers in float32; "reaches the level" must not hang on its last bit
)


def _of_window(values: torch.Tensor, sizes: torch.Tensor, reduce: str) -> torch.Tensor:
    """For every pixel the extreme value of its window.

    Args:
        values: float32 [pixels of all windows].
        sizes: int64 [windows], pixels of each window, on the CPU.
        reduce: "amax" or "amin".
    """
    if values.device.type == "cpu":
        # In one thread: see `in_pieces`.
        extreme = np.maximum if reduce == "amax" else np.minimum
        found = extreme.reduceat(values.numpy(), (torch.cumsum(sizes, 0) - sizes).numpy())
        return torch.from_numpy(np.repeat(found, sizes.numpy()))
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(values.device)
    empty = torch.zeros(len(sizes), device=values.device)
    return empty.scatter_reduce(0, owner, values, reduce, include_self=False)[owner]


def _relative(tpm: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """TPM / max(TPM); zeros where the window has no count at all."""
    return tpm / top.clamp(min=torch.finfo(torch.float32).tiny)


def threshold_masks(tpm: torch.Tensor, sizes: torch.Tensor, level: float) -> torch.Tensor:
    """Pixels whose relative TPM is above 0 and reaches `level` in 0..1: bool [pixels of all windows]."""
    relative = _relative(tpm, _of_window(tpm, sizes, "amax"))
    return (relative > 0) & (relative >= level - _ROUNDING)


def crf_masks(tpm: torch.Tensor, images: PackedImages, windows: Windows, config: CrfConfig) -> torch.Tensor:
    """Pixels that a dense CRF on the window's colours gives to the target: bool [pixels of all windows].

    The CRF starts from the relative TPM, as in the published code; its colours are gray levels 0..255, images
    other than uint8 scaled by their window's own range. A window without any count has an empty mask.

    Args:
        tpm: float32 [pixels of all windows], 0..1.
        images: The images the windows lie in.
        windows: The windows.
        config: Settings of the CRF.
    """
    sizes = windows.sizes
    colours = window_colors(images, windows)
    if colours.dtype != torch.uint8:
        colours = _stretched(colours, sizes)
    top = _of_window(tpm, sizes, "amax")
    relative = in_pieces(_relative, tpm, top)
    probability = dense_crf(relative, colours, windows.shapes, config)
    return in_pieces(lambda p, t: (p > 0.5) & (t > 0), probability, top)


def _stretched(colours: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Colours [pixels, C] scaled to 0..255 by their window's own range over all channels."""
    low = _of_window(colours.amin(1), sizes, "amin")
    high = _of_window(colours.amax(1), sizes, "amax")
    span = torch.where(high > low, high - low, 1.0)
    return (colours - low[:, None]) * (255.0 / span)[:, None]


@dataclass(frozen=True)
class TargetMask:
    """One target's labels.

    Attributes:
        image: Index of its image in the call's sequence.
        target: Index of its point among the image's usable points.
        point: The click, with the category that was used.
        window: Where the arrays lie in the image.
        tpm: float32 [h, w]: share of trials that clustered the pixel with the click (eq. 9), or of the
            candidates' weights (`mclc_gpu.labels.makers.vote`); with several marks the mean over them.
        mask: bool [h, w].
        trials: Trials behind the TPM.
        estimated: Whether the category was estimated rather than given.
        confidence: Expected IoU 0..1 of the mask, where the maker knows it; else NaN.
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


@dataclass(frozen=True)
class ClusteredTargets:
    """TPMs of the targets whose images are uint8, or of those whose images are not, on their device.

    Attributes:
        members: Indices of the targets among the placed ones.
        images: Their images.
        windows: Their windows.
        tpm: float32 [pixels of all windows].
        trials: int64 [targets], trials behind each TPM, on the CPU.
        inside: bool [pixels of all windows], where boxes allow the target to be; None without any box.
        confidence: float32 [targets], expected IoU of the masks; None where the maker does not know.
        area: int64 [targets], pixels of the targets by the vote of components; None from other makers.
    """

    members: list[int]
    images: PackedImages
    windows: Windows
    tpm: torch.Tensor
    trials: torch.Tensor
    inside: torch.Tensor | None
    confidence: torch.Tensor | None = None
    area: torch.Tensor | None = None

    @property
    def sizes(self) -> torch.Tensor:
        """Pixels of each window, int64 [targets], on the CPU."""
        return self.windows.sizes


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
    windows = Windows.pack((index[own.image], *astuple(own.window), own.target) for own in placed)
    trials = torch.ones(len(placed), dtype=torch.int64)
    confidence = area = None
    if config.maker == "mclc":
        tpm, trials = _monte_carlo(packed, windows, placed, config)
    elif config.maker == "components":
        tpm, confidence, area = vote(packed, windows, placed, config)
        trials[:] = config.trials
    else:
        tpm = _other_maps(images, placed, config).to(device)
    inside = None
    if any(target.point.box is not None for target in placed):
        allowed = [target.inside(images[target.image].shape[:2]).ravel() for target in placed]
        inside = torch.from_numpy(np.concatenate(allowed)).to(device)
        tpm = tpm * inside
    return ClusteredTargets(members, packed, windows, tpm, trials, inside, confidence, area)


def _monte_carlo(
    packed: PackedImages, windows: Windows, placed: Sequence[PlacedTarget], config: LabelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """TPMs (eq. 9) of all windows, one after another, and the trials behind each.

    Of a target with several marks it is the mean of the TPMs that each mark alone would give. The union of
    the marks' segments would hold background wherever a mark near the edge falls into a background segment.
    """
    keys = torch.tensor([target.key for target in placed], dtype=torch.int64)
    marks = Marks.pack([target.seeds for target in placed])
    if config.stop_change > 0:
        limits = config.trials, config.stop_change
        counts, _, trials = run_until_stable(packed, windows, keys, config.trial, *limits, marks=marks)
    else:
        counts = run_trials(packed, windows, keys, config.trial, config.trials, marks=marks).counts
        trials = torch.full((len(placed),), config.trials)
    divisors = torch.repeat_interleave(trials * (1 + marks.numbers), windows.sizes).to(counts.device)
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
        for t, target in zip(group.members, _target_masks(placed, group, masks), strict=True):
            done[t] = target
    return [done[t] for t in range(len(placed))]


def _target_masks(
    placed: Sequence[PlacedTarget], group: ClusteredTargets, masks: torch.Tensor
) -> list[TargetMask]:
    sizes = group.sizes.tolist()
    confidences = [math.nan] * len(sizes) if group.confidence is None else group.confidence.tolist()
    areas = [0] * len(sizes) if group.area is None else group.area.tolist()
    maps = zip(group.tpm.cpu().split(sizes), masks.cpu().split(sizes), strict=True)
    targets = []
    for t, trials, confidence, area, (tpm, mask) in zip(
        group.members, group.trials.tolist(), confidences, areas, maps, strict=True
    ):
        p = placed[t]
        point = p.point if p.point.category else replace(p.point, category=category_of(area))
        shape = (p.window.height, p.window.width)
        arrays = tpm.numpy().reshape(shape), mask.numpy().reshape(shape)
        targets.append(
            TargetMask(p.image, p.target, point, p.window, *arrays, trials, p.estimated, confidence)
        )
    return targets


OfImage = TypeVar("OfImage", PlacedTarget, TargetMask)


def by_image(targets: Iterable[OfImage], images: int) -> list[list[OfImage]]:
    """Group targets by the `image` (0 to `images` - 1) that they are in, in their order."""
    groups: list[list[OfImage]] = [[] for _ in range(images)]
    for target in targets:
        groups[target.image].append(target)
    return groups


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
    sides = (6, 10, 16, 22, 32, 50, 63) if device.type == "cuda" else (6,)
    windows = [Window(0, 0, side, side, side // 2, side // 2) for side in sides]
    points = [Point(side // 2, side // 2) for side in sides]
    placed = [PlacedTarget(0, t, points[t], window, 0, False) for t, window in enumerate(windows)]
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
        config: Default: the preset "default", labels from the click alone.
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
    config = config or PRESETS["default"]
    names = [str(i) for i in range(len(images))] if names is None else names
    if not len(images) == len(points) == len(names):
        raise InputError(
            f"{len(images)} images, {len(points)} lists of points, {len(names)} names: give one each"
        )
    for image, clicks, name in zip(images, points, names, strict=True):
        _check_image(image, clicks, name)
    place = pick_device(device)
    placed, skipped = place_targets(images, points, names, config, seed, place)
    if skipped:
        raise InputError(f"{skipped[0].file}: {skipped[0].why}")
    try:
        groups = cluster_targets(images, placed, config, place)
    except ValueError as error:
        raise InputError(str(error)) from error
    return refine_targets(placed, groups, config)
