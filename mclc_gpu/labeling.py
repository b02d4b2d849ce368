"""The chain from images and points to target probability maps and masks, written once for every use."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, is_dataclass, replace
from typing import Any, Self, get_type_hints

import numpy as np
import torch

from mclc_gpu.data.points import Point
from mclc_gpu.data.skipped import Skipped
from mclc_gpu.errors import InputError
from mclc_gpu.estimate import estimate_category
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.crf import CrfConfig
from mclc_gpu.kernels.montecarlo import run_until_stable
from mclc_gpu.kernels.trials import PackedImages, TrialConfig, run_trials
from mclc_gpu.refine import crf_masks, threshold_masks
from mclc_gpu.windows import Window, draw_window, name_key


@dataclass(frozen=True)
class LabelConfig:
    """Settings of the chain; the defaults are those of the published procedure.

    Attributes:
        trials: K of eq. 9, 1 to 2^31.
        trial: Settings of one trial.
        category: "given" takes a point's own category and estimates it where there is none; "estimate" always
            estimates it.
        refine: "crf": a dense CRF that starts from TPM / max(TPM); "threshold": TPM / max(TPM) >= threshold.
        threshold: In 0..1.
        crf: Settings of the CRF.
        stop_change: T_F of the paper: a target's trials end once one more changes its TPM by less than this
            (L2 norm). 0 runs all trials.

    Raises:
        InputError: A value out of range.
    """

    trials: int = 100
    trial: TrialConfig = field(default_factory=TrialConfig)
    category: str = "given"
    refine: str = "crf"
    threshold: float = 0.7
    crf: CrfConfig = field(default_factory=CrfConfig)
    stop_change: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.trials <= 2**31:
            raise InputError(f"trials {self.trials}: at least one trial is needed, and at most 2^31")
        if self.category not in ("given", "estimate"):
            raise InputError(f"category {self.category!r}: use given or estimate")
        if self.refine not in REFINEMENTS:
            raise InputError(f"refine {self.refine!r}: use one of {', '.join(REFINEMENTS)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold {self.threshold}: use a number in 0..1")
        if not (np.isfinite(self.stop_change) and self.stop_change >= 0):
            raise InputError(f"stop_change {self.stop_change}: use a number >= 0")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The config that a run was made with, from the "settings" of its label.json.

        Raises InputError for the settings of another version, which lack a field or have one more, and for a
        value that cannot be used.
        """
        own = {name: value for name, value in settings.items() if name not in _OF_THE_RUN}
        try:
            return _rebuilt(cls, own)
        except (TypeError, ValueError) as error:
            raise InputError(f"these settings cannot be used ({error}); label again") from error


_OF_THE_RUN = ("seed", "points")  # settings that are not the chain's
_SPANS = 1e-30, 1e30  # of a window's values: its colours are scaled by them in float32
REFINEMENTS = ("crf", "threshold")
PRESETS = {"paper": LabelConfig(), "default": LabelConfig()}


def _rebuilt(kind: type[Any], values: Any) -> Any:
    """A dataclass, and those it is made of, from what `dataclasses.asdict` made of it."""
    if not isinstance(values, Mapping):
        raise TypeError(f"no {kind.__name__}: {str(values)[:40]!r}")
    names = {item.name for item in fields(kind)}
    lacks, more = sorted(names - values.keys()), sorted(values.keys() - names)
    if lacks or more:
        both = ("without ", lacks), ("with ", more)
        what = "; ".join(f"{verb}{', '.join(found)}" for verb, found in both if found)
        raise ValueError(f"{kind.__name__} of another version: {what}")
    types = get_type_hints(kind)
    return kind(
        **{
            name: _rebuilt(types[name], value) if is_dataclass(types[name]) else value
            for name, value in values.items()
        }
    )


def preset(name: str, **changes: Any) -> LabelConfig:
    """A preset with some settings changed. Raises InputError for an unknown preset or a bad value."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: use one of {', '.join(PRESETS)}")
    try:
        return replace(PRESETS[name], **changes)
    except ValueError as error:
        raise InputError(str(error)) from error


@dataclass(frozen=True)
class TargetMask:
    """One target's labels.

    Attributes:
        image: Index of its image in the call's sequence.
        target: Index of its point among the image's usable points.
        point: The click, with the category that was used.
        window: Where the arrays lie in the image.
        tpm: float32 [h, w]: share of trials that clustered the pixel with the click (eq. 9).
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

    @property
    def area_of_image(self) -> tuple[slice, slice]:
        """Index of the window in its image."""
        return np.s_[self.window.top : self.window.bottom, self.window.left : self.window.right]


@dataclass(frozen=True)
class PlacedTarget:
    """A target ready to be clustered: what `place_targets` found out about it."""

    image: int
    target: int
    point: Point
    window: Window
    key: int
    estimated: bool


def place_targets(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    names: Sequence[str],
    config: LabelConfig,
    seed: int,
) -> tuple[list[PlacedTarget], list[Skipped]]:
    """Category and window of every target, and the targets that cannot be clustered, with the reason."""
    placed: list[PlacedTarget] = []
    skipped: list[Skipped] = []
    for i, (image, clicks, name) in enumerate(zip(images, points, names, strict=True)):
        height, width = image.shape[:2]
        key = name_key(seed, name)
        key -= (key >> 63) << 64  # the same bits as a signed integer
        usable = 0  # numbers the targets, so that the usable points alone give the same labels
        for j, click in enumerate(clicks):
            category = click.category if config.category == "given" else None
            point = replace(click, category=category or estimate_category(image, click))
            window = draw_window(height, width, point.x, point.y, str(point.category), seed, name, usable)
            pixels = image[window.top : window.bottom, window.left : window.right]
            span = float(pixels.max()) - float(pixels.min())
            where = f"target {j} at ({click.x:g}, {click.y:g})"
            if window.height * window.width < config.trial.clusters:
                why = (
                    f"{where}: its window has {window.height} x {window.width} pixels, fewer than the "
                    f"{config.trial.clusters} clusters; use fewer clusters or a larger image"
                )
                skipped.append(Skipped(name, why))
            elif span == 0:
                skipped.append(Skipped(name, f"{where}: its window is constant, there is nothing to cluster"))
            elif not _SPANS[0] <= span <= _SPANS[1]:
                why = f"{where}: its window's values span {span:g}; scale the image to a range near 1"
                skipped.append(Skipped(name, why))
            else:
                placed.append(PlacedTarget(i, usable, point, window, key, category is None))
                usable += 1
    return placed, skipped


@dataclass(frozen=True)
class ClusteredTargets:
    """TPMs of the targets whose images are uint8, or of those whose images are not, on their device.

    Attributes:
        members: Indices of the targets among the placed ones.
        images: Their images.
        windows: int64 [targets, 8], see `mclc_gpu.kernels.trials.WINDOW_COLUMNS`, on the CPU.
        tpm: float32 [pixels of all windows].
        trials: int64 [targets], trials behind each TPM, on the CPU.
    """

    members: list[int]
    images: PackedImages
    windows: torch.Tensor
    tpm: torch.Tensor
    trials: torch.Tensor

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
            groups.append(_cluster_group(images, placed, members, config, device))
    return groups


def _cluster_group(
    images: Sequence[np.ndarray],
    placed: Sequence[PlacedTarget],
    members: list[int],
    config: LabelConfig,
    device: torch.device,
) -> ClusteredTargets:
    used = sorted({placed[t].image for t in members})
    index = {image: n for n, image in enumerate(used)}
    packed = PackedImages.pack([images[i] for i in used], device)
    rows = [(index[placed[t].image], *astuple(placed[t].window), placed[t].target) for t in members]
    windows = torch.tensor(rows, dtype=torch.int64)
    keys = torch.tensor([placed[t].key for t in members], dtype=torch.int64)
    if config.stop_change > 0:
        counts, _, trials = run_until_stable(
            packed, windows, keys, config.trial, config.trials, config.stop_change
        )
    else:
        counts = run_trials(packed, windows, keys, config.trial, config.trials).counts
        trials = torch.full((len(members),), config.trials)
    divisors = torch.repeat_interleave(trials, windows[:, 3] * windows[:, 4]).to(device)
    return ClusteredTargets(members, packed, windows, counts / divisors, trials)


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
        mask[target.area_of_image] |= target.mask
        np.maximum(tpm[target.area_of_image], target.tpm, out=tpm[target.area_of_image])
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
    for click in clicks:
        if not (-0.5 <= click.x < width - 0.5 and -0.5 <= click.y < height - 0.5):
            raise InputError(f"{name}: ({click.x:g}, {click.y:g}) lies outside the {width}x{height} image")


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
