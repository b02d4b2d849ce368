"""The Monte Carlo pass: K noisy trials of every target in one batched launch (paper, eq. 7 and 9)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mclc_gpu.kernels.backend import resolve
from mclc_gpu.kernels.grid import grid_centres, window_steps
from mclc_gpu.kernels.noise import check_noise

METHODS = ("slic", "kmeans")
CONNECTIVITY = ("enforce", "component", "cluster")
MAX_WINDOW = 64
MAX_SEEDS = 254  # with the click, a trial's counts fit a byte
WINDOW_COLUMNS = ("image", "top", "left", "height", "width", "click_row", "click_column", "target")


@dataclass(frozen=True)
class TrialConfig:
    """Settings of one trial; the defaults are the published ones.

    Attributes
    ----------
    method : {"slic", "kmeans"}
        SLIC lets a cluster centre reach two steps per axis; K-means lets every centre reach every pixel.
    clusters : int, 1..4096
        Clusters asked for; the regular grid of start centres may hold a few more or fewer.
    compactness : float > 0
        Weight of space against colour (mu_c of eq. 2 in units of CIELAB).
    max_iterations : int >= 1
    tolerance : float >= 0, pixels
        T of the paper: stop when no centre moved that far (L2). 0 stops at the fixed point only.
    noise, intensity, shared_noise
        See `mclc_gpu.kernels.noise.add_noise`. One-channel images count as three equal channels.
    connectivity : {"enforce", "component", "cluster"}
        "enforce": scikit-image's connectivity enforcement, then the segment under the click. "component": the
        4-connected component of the cluster under the click. "cluster": the whole cluster under the click.
    min_size_factor, max_size_factor : float >= 0
        Of the mean segment's size, for the enforcement.
    """

    method: str = "slic"
    clusters: int = 9
    compactness: float = 20.0
    max_iterations: int = 10
    tolerance: float = 0.0
    noise: str = "salt"
    intensity: float = 0.05
    shared_noise: bool = False
    connectivity: str = "enforce"
    min_size_factor: float = 0.5
    max_size_factor: float = 3.0

    def __post_init__(self) -> None:
        check_noise(self.noise, self.intensity)
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        if self.connectivity not in CONNECTIVITY:
            raise ValueError(f"connectivity must be one of {CONNECTIVITY}, got {self.connectivity!r}")
        if not 1 <= self.clusters <= MAX_WINDOW**2:
            raise ValueError(f"clusters must be in 1..{MAX_WINDOW**2}, got {self.clusters}")
        if not (np.isfinite(self.compactness) and self.compactness > 0):
            raise ValueError(f"compactness must be positive, got {self.compactness}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {self.max_iterations}")
        for name in ("tolerance", "min_size_factor", "max_size_factor"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class PackedImages:
    """Images of any sizes in one buffer.

    Attributes
    ----------
    data : Tensor [elements], uint8 or float32
        All images behind one another, each planar [channels, height, width]. uint8 values are gray levels
        0..255 (salt is 255, pepper 0); float32 windows are scaled by their own range (salt is the window's
        maximum).
    table : Tensor [images, 4], int64
        Offset into data, height, width, channels (1 or 3).
    """

    data: torch.Tensor
    table: torch.Tensor

    @staticmethod
    def pack(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "PackedImages":
        """Pack images [H, W] or [H, W, 3], all uint8 or all of one other real dtype (kept as float32).

        Raises
        ------
        ValueError
            No images, mixed or unusable dtypes, other shapes, or values that are not finite.
        """
        if not images:
            raise ValueError("no images to pack")
        byte = images[0].dtype == np.uint8
        flat, rows, offset = [], [], 0
        for image in images:
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
                raise ValueError(
                    f"an image must be [H, W] or [H, W, 3] and not empty, got {list(image.shape)}"
                )
            if (image.dtype == np.uint8) != byte or image.dtype.kind not in "uif":
                raise ValueError("images packed together must be all uint8 or all of another real dtype")
            planar = image if image.ndim == 2 else image.transpose(2, 0, 1)
            with np.errstate(over="ignore"):
                planar = np.ascontiguousarray(planar, np.uint8 if byte else np.float32).reshape(-1)
            if not byte and not np.isfinite(planar).all():
                raise ValueError("an image holds NaN or infinite values, or some too large for float32")
            rows.append((offset, image.shape[0], image.shape[1], 1 if image.ndim == 2 else 3))
            flat.append(planar)
            offset += planar.size
        # From page-locked memory a GPU takes them while this thread goes on.
        pinned = torch.device(device).type == "cuda"
        data = torch.empty(offset, dtype=torch.uint8 if byte else torch.float32, pin_memory=pinned)
        np.concatenate(flat, out=data.numpy())
        table = torch.tensor(rows, dtype=torch.int64)
        return PackedImages(data.to(device, non_blocking=pinned), table.to(device))


@dataclass(frozen=True)
class Seeds:
    """Further pixels that mark the targets beside their clicks, as several clicks or a scribble do.

    A target may have up to `MAX_SEEDS`.

    Attributes
    ----------
    offsets : Tensor [targets + 1], int64, on the CPU
    pixels : Tensor [seeds], int64, on the CPU
        Row * width + column within the window; those of target t are pixels[offsets[t] : offsets[t + 1]].
    """

    offsets: torch.Tensor
    pixels: torch.Tensor

    @staticmethod
    def pack(seeds: Sequence[Sequence[int]]) -> "Seeds":
        """Of one sequence of pixels per target."""
        sizes = torch.tensor([0, *map(len, seeds)], dtype=torch.int64)
        flat = torch.tensor([pixel for own in seeds for pixel in own], dtype=torch.int64)
        return Seeds(torch.cumsum(sizes, 0), flat)

    def of(self, targets: torch.Tensor) -> "Seeds":
        """Those of some targets: int64 [chosen], in that order."""
        sizes = self.offsets.diff()[targets]
        offsets = torch.cumsum(torch.cat([torch.zeros(1, dtype=torch.int64), sizes]), 0)
        within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], sizes)
        first = torch.repeat_interleave(self.offsets[:-1][targets], sizes)
        return Seeds(offsets, self.pixels[first + within])


@dataclass(frozen=True)
class TrialCounts:
    """How often each window pixel was clustered with the click, and with each seed.

    Attributes
    ----------
    counts : Tensor [pixels of all windows], int32
        0 .. trials * (1 + seeds of the target); window t in row-major order at offsets[t] : offsets[t + 1].
    offsets : Tensor [targets + 1], int64, on the CPU
    trials : int
    masks : Tensor [trials, pixels of all windows], uint8, or None
        Each trial's mask, or with seeds its counts, if asked for.
    """

    counts: torch.Tensor
    offsets: torch.Tensor
    trials: int
    masks: torch.Tensor | None


def check_windows(images: PackedImages, windows: torch.Tensor) -> None:
    """ValueError for windows (on the CPU) of a wrong form, outside their image or without their click."""
    if windows.ndim != 2 or windows.shape[1] != len(WINDOW_COLUMNS) or windows.dtype != torch.int64:
        raise ValueError(
            f"windows must be int64 [targets, {len(WINDOW_COLUMNS)}] with columns {WINDOW_COLUMNS}"
        )
    image, top, left, height, width, row, column, target = windows.unbind(1)
    if bool(((image < 0) | (image >= len(images.table))).any()):
        raise ValueError(f"a window names an image outside 0..{len(images.table) - 1}")
    size = images.table.cpu()[image]
    wrong = (height < 1) | (width < 1) | (height > MAX_WINDOW) | (width > MAX_WINDOW)
    wrong |= (top < 0) | (left < 0) | (top + height > size[:, 1]) | (left + width > size[:, 2])
    wrong |= (row < 0) | (column < 0) | (row >= height) | (column >= width) | (target < 0) | (target >= 2**31)
    if bool(wrong.any()):
        first = int(torch.nonzero(wrong)[0])
        raise ValueError(
            f"window {first} {dict(zip(WINDOW_COLUMNS, windows[first].tolist(), strict=True))} must be "
            f"1..{MAX_WINDOW} pixels per side, lie inside its image and hold its click"
        )


def _check_seeds(windows: torch.Tensor, seeds: Seeds) -> None:
    sizes = seeds.offsets.diff()
    if len(sizes) != len(windows) or bool((sizes < 0).any()) or int(seeds.offsets[-1]) != len(seeds.pixels):
        raise ValueError(f"seeds must have offsets [{len(windows) + 1}] that rise to {len(seeds.pixels)}")
    pixels = torch.repeat_interleave(windows[:, 3] * windows[:, 4], sizes)
    if len(sizes) and int(sizes.max()) > MAX_SEEDS:
        raise ValueError(f"a target has {int(sizes.max())} seeds; at most {MAX_SEEDS} are possible")
    if bool(((seeds.pixels < 0) | (seeds.pixels >= pixels)).any()):
        raise ValueError("a seed lies outside its window")


def trial_grids(windows: torch.Tensor, clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the clusters of all windows start, on the CPU.

    Parameters
    ----------
    windows : Tensor [targets, 8], int64
        Columns `WINDOW_COLUMNS`.
    clusters : int

    Returns
    -------
    centres : Tensor [centres, 2], float32
        Row and column, for all shapes of windows one after another.
    grids : Tensor [targets, 5], int64
        First centre, number of centres, reach in y and in x (pixels), step (pixels).
    """
    shapes, index = torch.unique(windows[:, 3:5], dim=0, return_inverse=True)
    centres, rows, first = [], [], 0
    for height, width in shapes.tolist():
        ys, xs, step_y, step_x = grid_centres(height, width, clusters)
        centres.append(np.stack([ys, xs], axis=1))
        reach_y, reach_x = (2 * step for step in window_steps(height, width, len(ys)))
        rows.append((first, len(ys), reach_y, reach_x, max(step_y, step_x)))
        first += len(ys)
    return torch.from_numpy(np.concatenate(centres)).float(), torch.tensor(rows, dtype=torch.int64)[index]


def run_trials(
    images: PackedImages,
    windows: torch.Tensor,
    keys: torch.Tensor,
    config: TrialConfig,
    trials: int,
    *,
    seeds: Seeds | None = None,
    first_trial: int = 0,
    keep_masks: bool = False,
    backend: str | None = None,
) -> TrialCounts:
    """Cluster every window under independent noises; count each pixel's trials in the click's segment.

    A target with seeds counts the segment of each mark, of the click and of every seed, so that a segment
    weighs as many times as it holds marks.

    The counts of a target depend on the images, its window, its key and the config alone: not on the other
    targets, their order, the batch, the backend (but for near ties in the last bit) or the number of devices.

    Parameters
    ----------
    images : PackedImages
    windows : Tensor [targets, 8], int64, on the CPU
        Columns `WINDOW_COLUMNS`: image index; top-left corner, height and width in pixels (1..64); the
        click's row and column within the window; the target's index within its image (keys the noise).
    keys : Tensor [targets], int64, on the CPU
        Key of each target's image, from the run's seed and the image's name.
    config : TrialConfig
    trials : int >= 1
        K of eq. 9.
    seeds : Seeds, optional
        Default: the clicks alone.
    first_trial : int >= 0
        Number of the first trial: counts of trials 0..49 and 50..99 add up to those of 0..99.
    keep_masks : bool
        Also return each trial's mask.
    backend : {"triton", "cpu"}, optional
        Default: by the device of `images`.

    Raises
    ------
    ValueError
        A window outside its image or larger than 64 pixels, wrong shapes or dtypes, trials below 1.
    RuntimeError
        The backend asked for cannot run here.
    """
    if trials < 1 or first_trial < 0 or first_trial + trials > 2**31:
        raise ValueError(
            f"trials must be at least 1, first_trial at least 0, their sum at most 2^31: "
            f"got {trials} and {first_trial}"
        )
    device = images.data.device
    backend = resolve(backend, images.data)
    windows, keys = windows.cpu().contiguous(), keys.cpu().contiguous()
    check_windows(images, windows)
    if keys.shape != windows.shape[:1] or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [{len(windows)}], got {keys.dtype} {list(keys.shape)}")
    seeds = Seeds.pack([()] * len(windows)) if seeds is None else seeds
    _check_seeds(windows, seeds)
    offsets = torch.zeros(len(windows) + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(windows[:, 3] * windows[:, 4], 0)
    total = int(offsets[-1])
    counts = torch.zeros(total, dtype=torch.int32, device=device)
    masks = torch.zeros((trials if keep_masks else 0, total), dtype=torch.uint8, device=device)
    if len(windows):
        centres, grids = trial_grids(windows, config.clusters)
        if backend == "triton":
            from mclc_gpu.kernels import trials_triton as triton_backend

            triton_backend.run(
                images, windows, keys, grids, centres, offsets, seeds, config, first_trial, trials,
                counts, masks,
            )  # fmt: skip
        else:
            from mclc_gpu.kernels import trials_cpu as cpu_backend

            cpu_backend.run(
                images.data.numpy(),
                images.table.numpy(),
                windows.numpy(),
                keys.numpy(),
                grids.numpy(),
                centres.numpy(),
                offsets.numpy(),
                seeds.offsets.numpy(),
                seeds.pixels.numpy(),
                counts.numpy(),
                masks.numpy(),
                cpu_backend.settings(config, images.data.dtype == torch.uint8),
                first_trial,
                trials,
            )
    return TrialCounts(counts, offsets, trials, masks if keep_masks else None)
