"""The pipeline from images and points to probability maps and masks: place, cluster, refine, compose."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, overload

import numpy as np
import torch

from mclc_gpu.data.annotations import Point, category_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import download, pick_device
from mclc_gpu.kernels.config import TPM_ONE
from mclc_gpu.kernels.crf import crf_masks
from mclc_gpu.kernels.masks import window_maps
from mclc_gpu.kernels.packed import Marks, PackedImages, Windows
from mclc_gpu.labels.config import PRESETS, LabelConfig
from mclc_gpu.labels.makers import Batch, Maps, maker_of
from mclc_gpu.labels.placing import by_type, estimate_areas, place_targets
from mclc_gpu.labels.windows import PlacedTarget, PlacedTargets, Window


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
    levels : ndarray of uint16, [h, w]
        The TPM in 16 bits, as files have it: 65535 is probability 1.
    mask : ndarray of bool, [h, w]
    trials : int
        Trials behind the TPM.
    estimated : bool
        The category was estimated rather than given.
    confidence : float
        Expected IoU 0..1 of the mask; NaN from label makers that do not know it.
    exact : ndarray of float32, [h, w], or None
        The TPM as it was made; None where a device sent it in 16 bits.
    corrected : bool
        The mask was corrected by hand: `mclc_gpu.labels.corrections`.
    """

    image: int
    target: int
    point: Point
    window: Window
    levels: np.ndarray
    mask: np.ndarray
    trials: int
    estimated: bool
    confidence: float
    exact: np.ndarray | None = None
    corrected: bool = False

    @property
    def tpm(self) -> np.ndarray:
        """Target probability map, float32 [h, w], 0..1.

        Share of trials that clustered the pixel with the click (eq. 9), or of the weights of the candidates
        that hold it; with several marks the mean over them.
        """
        return self.levels.astype(np.float32) / TPM_ONE if self.exact is None else self.exact


@dataclass(frozen=True)
class ClusteredTargets:
    """Probability maps of the targets whose images are uint8, or of those whose images are not.

    Attributes
    ----------
    members : ndarray of int64
        Indices of the targets among the placed ones.
    batch : Batch
        These targets, what is needed of their images, and their windows.
    maps : Maps
        Output of the label maker, on the device.
    """

    members: np.ndarray
    batch: Batch
    maps: Maps


def cluster_targets(
    images: Sequence[np.ndarray],
    placed: PlacedTargets,
    config: LabelConfig,
    device: torch.device,
    scales: Sequence[tuple[float, float]] | None = None,
) -> list[ClusteredTargets]:
    """Make the TPMs of all placed targets (eq. 1-9), in a group for each of the two kinds of images.

    Nothing waits for the device, unless the label maker does.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    placed : PlacedTargets
        See `mclc_gpu.labels.placing.place_targets`.
    config : LabelConfig
    device : torch.device
    scales : sequence of (float, float), optional
        See `mclc_gpu.kernels.packed.PackedImages.pack_windows`.
    """
    groups = []
    for members in by_type(images, placed.windows.image.numpy()):
        own = placed if len(members) == len(placed) else placed.take(members)
        packed, windows = PackedImages.pack_windows(images, own.windows, device, scales)
        batch = Batch(images, own, packed, windows)
        groups.append(ClusteredTargets(members, batch, maker_of(config).maps(batch, config)))
    return groups


def refine_targets(
    placed: PlacedTargets, groups: Sequence[ClusteredTargets], config: LabelConfig
) -> "LabeledTargets":
    """Make masks from TPMs, in the order of the placed targets.

    On a device this queues the work and one copy to the host; the result waits for it when it is first read.
    """
    return LabeledTargets(placed, [_refined(group, config) for group in groups])


@dataclass(frozen=True)
class _Fetched:
    """Labels of a group's targets on the host, in order; see `TargetMask`."""

    levels: list[np.ndarray]
    masks: list[np.ndarray]
    exact: Sequence[np.ndarray | None]
    trials: Sequence[int]
    confidences: Sequence[float]
    areas: Sequence[int | None]


@dataclass(frozen=True)
class _Refined:
    """A group whose labels are on their way to the host."""

    members: np.ndarray
    fetch: Callable[[], _Fetched]


def _refined(group: ClusteredTargets, config: LabelConfig) -> _Refined:
    """Make the masks of a group, and begin to fetch them."""
    maps, batch, crf = group.maps, group.batch, config.refine == "crf"
    windows, boxes, on_host = batch.windows, batch.targets.boxes, batch.device.type == "cpu"
    finish = partial(window_maps, windows=windows, threshold=config.threshold, divisors=maps.divisors)
    values = maps.tpm.to(batch.device)
    # A CRF starts from values relative to the largest, of any unit. So a device needs no maps for it unless
    # they are made of several: it sends the values, one launch less, and the host makes the maps.
    raw = crf and not on_host and maps.votes is None and boxes is None
    made = None if raw else finish(values, votes=maps.votes, boxes=boxes)
    if crf:
        start = values if made is None else made.tpm
        masks = crf_masks(start, batch.packed, windows, config.crf).view(torch.uint8)
    else:
        assert made is not None
        masks = made.masks
    about = [part.to(batch.device) for part in (maps.confidence, maps.area) if part is not None]
    arrived = download(values if made is None else made.levels, masks, *about)
    # Floating-point maps are not sent from a device: the files have 16 bits.
    exact = made.tpm if made is not None and on_host else None

    def fetch() -> _Fetched:
        sent, found, *others = arrived()
        tpm, levels = (exact, sent) if made is not None else finish(sent)[:2]
        own = _cut(found.numpy().view(bool), windows)
        if crf and boxes is not None:
            for mask, (top, bottom, left, right) in zip(own, boxes.tolist(), strict=True):
                mask[:top] = mask[bottom:] = mask[:, :left] = mask[:, right:] = False
        exact_maps = [None] * len(own) if tpm is None else _cut(tpm.numpy(), windows)
        numbers = _numbers(maps, config, len(own), [part.numpy() for part in others])
        return _Fetched(_cut(levels.numpy().view(np.uint16), windows), own, exact_maps, *numbers)

    return _Refined(group.members, fetch)


def _cut(flat: np.ndarray, windows: Windows) -> list[np.ndarray]:
    """Return each window's part of a flat array, [h, w]."""
    offsets = windows.offsets.tolist()
    bounds = zip(offsets[:-1], offsets[1:], windows.shapes.tolist(), strict=True)
    return [flat[first:end].reshape(shape) for first, end, shape in bounds]


def _numbers(
    maps: Maps, config: LabelConfig, count: int, fetched: list[np.ndarray]
) -> tuple[list[int], list[float], list[int | None]]:
    """Return trials, confidences and areas of `count` targets, as far as they were fetched."""
    confidence = fetched.pop(0) if maps.confidence is not None else None
    area = fetched.pop(0) if maps.area is not None else None
    if maps.votes is not None:
        confidence, area = _of_votes(maps.votes.numpy(), confidence, area)
    return (
        [config.trials] * count if maps.trials is None else maps.trials.tolist(),
        [math.nan] * count if confidence is None else confidence.tolist(),
        [None] * count if area is None else area.tolist(),
    )


def _of_votes(
    votes: np.ndarray, confidence: np.ndarray | None, area: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the mean confidence of each target's votes, added in their order, and the largest area."""
    owner = np.repeat(np.arange(len(votes)), votes)
    mean, largest = None, None
    if confidence is not None:
        share = np.float32(1) / votes.astype(np.float32)
        mean = np.zeros(len(votes), np.float32)
        np.add.at(mean, owner, confidence * share[owner])
    if area is not None:
        largest = np.zeros(len(votes), area.dtype)
        np.maximum.at(largest, owner, area)
    return mean, largest


class LabeledTargets(Sequence[TargetMask]):
    """Labels of the placed targets, in their order; the first access waits for the device. For threads too.

    Attributes
    ----------
    placed : PlacedTargets
    """

    def __init__(self, placed: PlacedTargets, groups: Sequence[_Refined]) -> None:
        self.placed, self._lock = placed, threading.Lock()
        self._groups: Sequence[_Refined] = groups
        self._targets: list[TargetMask] | None = None

    @property
    def targets(self) -> list[TargetMask]:
        """Return all labels."""
        with self._lock:
            if self._targets is None:
                self._targets = self._made()
                self._groups = ()  # their arrays on the device are no longer needed
        return self._targets

    def _made(self) -> list[TargetMask]:
        made: list[TargetMask | None] = [None] * len(self.placed)
        placed, points, estimated = (
            self.placed.windows.table.tolist(),
            self.placed.points,
            self.placed.estimated.tolist(),
        )
        for group in self._groups:
            own = group.fetch()
            arrays, numbers = (own.levels, own.masks, own.exact), (own.trials, own.confidences, own.areas)
            for t, levels, mask, exact, trials, confidence, area in zip(
                group.members.tolist(), *arrays, *numbers, strict=True
            ):
                image, *window, target = placed[t]
                point = points[t]
                if not point.category:
                    pixels = int(np.count_nonzero(mask)) if area is None or point.box is not None else area
                    point = replace(point, category=category_of(pixels))
                about = image, target, point, Window(*window)
                made[t] = TargetMask(*about, levels, mask, trials, estimated[t], confidence, exact)
        return [target for target in made if target is not None]

    def __len__(self) -> int:
        return len(self.placed)

    def __iter__(self) -> Iterator[TargetMask]:
        return iter(self.targets)

    @overload
    def __getitem__(self, chosen: int) -> TargetMask: ...
    @overload
    def __getitem__(self, chosen: slice) -> list[TargetMask]: ...
    def __getitem__(self, chosen: int | slice) -> TargetMask | list[TargetMask]:
        return self.targets[chosen]


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
    images: Sequence[np.ndarray],
    placed: PlacedTargets,
    config: LabelConfig,
    device: torch.device,
    scales: Sequence[tuple[float, float]] | None = None,
) -> list[TargetMask]:
    """Label placed targets: cluster, then refine. Parameters as of `cluster_targets`.

    Raises
    ------
    InputError
        An image that cannot be packed, such as one with values that are not finite.
    """
    try:
        groups = cluster_targets(images, placed, config, device, scales)
    except ValueError as error:
        raise InputError(str(error)) from error
    return list(refine_targets(placed, groups, config))


def compose_levels(shape: tuple[int, int], targets: Sequence[TargetMask]) -> tuple[np.ndarray, np.ndarray]:
    """Compose the labels of one image like `compose`, with the TPM in 16 bits.

    Returns
    -------
    mask : ndarray of bool, [H, W]
    levels : ndarray of uint16, [H, W]
        65535 is probability 1.
    """
    mask = np.zeros(shape, bool)
    levels = np.zeros(shape, np.uint16)
    for number, target in enumerate(targets):
        part, own = mask[target.window.area], levels[target.window.area]
        if number == 0:  # most images have one target, and a copy takes half the time
            part[...], own[...] = target.mask, target.levels
        else:
            np.logical_or(part, target.mask, out=part)
            np.maximum(own, target.levels, out=own)
    return mask, levels


def warm_up(config: LabelConfig, device: torch.device, points: Iterable[Point] = ()) -> None:
    """Compile the kernels of a config at all window sizes, so that later timings hold none of it.

    `points` are those to be labeled: boxes, and categories that have to be estimated, need kernels more.
    """
    given = config.category == "given"
    traits = [(point.box is not None, not (given and point.category)) for point in points]
    boxed, unknown = (any(trait[i] for trait in traits) for i in range(2))
    image = (np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)
    # On a GPU windows of each power of two of pixels have kernels of their own.
    sides = (5, 6, 10, 16, 22, 32, 45, 63) if device.type == "cuda" else (6,)
    count = len(sides)
    table = [(0, 0, 0, side, side, side // 2, side // 2, t) for t, side in enumerate(sides)]
    clicks = [Point(side // 2, side // 2) for side in sides]
    empty = Marks.pack([[]] * count)
    nothing = np.zeros(count, np.int64), np.zeros(count, bool), empty, empty
    boxes = torch.tensor([(0, side, 0, side) for side in sides]) if boxed else None
    placed = PlacedTargets(clicks, Windows.pack(table), *nothing, boxes)
    brief = replace(config, trials=min(config.trials, 16))
    for version in (image, image.astype(np.float32)) if device.type == "cpu" else (image,):
        label_targets([version], placed, brief, device)
        if unknown and config.entry.needs_category:
            estimate_areas([version], [(0, click) for click in clicks], device)


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
