"""Images, windows, marks and start grids of a batch, packed into tensors that every kernel reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from mclc_gpu.kernels.backend import copy_to_device
from mclc_gpu.kernels.config import LUMA, MAX_WINDOW, STEPS, WHITE

MAX_MARKS = 254  # with the click, a trial's counts fit a byte
IMAGE_COLUMNS = ("offset", "height", "width", "channels", "pitch", "plane")
WINDOW_COLUMNS = ("image", "top", "left", "height", "width", "click_row", "click_column", "target")

_BYTE_SCALE = 0.0, float(STEPS)


@dataclass(frozen=True)
class PackedImages:
    """Images of any sizes in one buffer.

    Attributes
    ----------
    data : Tensor [elements], uint8 or float32
        All images behind one another, each planar [channels, height, width]. uint8 values are gray levels
        0..255 (salt is 255, pepper 0); float32 windows are scaled by their own range (salt is the window's
        maximum).
    table : Tensor [images, 6], int64, on the CPU
        Columns `IMAGE_COLUMNS`: offset, height, width, channels (1 or 3), pitch, plane. Pixel (row, column)
        of a channel is data[offset + channel * plane + row * pitch + column], and plane is 0 for one channel.
        Of an image of which a part is held, such as one window, the offset is where its first pixel would
        be; it may be negative.
    scales : Tensor [images, 2], float64, on the CPU
        Value of black and gray steps for a unit above it, as the vote of components takes them: uint8 levels
        as they are, others stretched so that the whole image's range becomes 0..255.
    """

    data: torch.Tensor
    table: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def pack(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "PackedImages":
        """Pack images [H, W] or [H, W, 3], all uint8 or all of one other real dtype (kept as float32).

        Raises
        ------
        ValueError
            No images, mixed or unusable dtypes, other shapes, or values that are not finite.
        """
        planar = _planar(images)
        heights, widths = np.array([image.shape[1:] for image in planar]).T
        corners = np.zeros_like(heights)
        return _packed(planar, np.arange(len(planar)), corners, corners, heights, widths, device)

    @staticmethod
    def pack_windows(
        images: Sequence[np.ndarray],
        windows: "Windows",
        device: torch.device | str = "cpu",
        scales: Sequence[tuple[float, float]] | None = None,
    ) -> "tuple[PackedImages, Windows]":
        """Pack what some windows need of their images: the windows themselves, or the image if that is less.

        Parameters
        ----------
        images : sequence of ndarray
            See `pack`.
        windows : Windows
            At least one, each inside its image, an index of `images`.
        device : torch.device
        scales : sequence of (float, float), optional
            `gray_scale` of images that are finite, so that they need not be read whole.

        Returns
        -------
        packed : PackedImages
        windows : Windows
            The same ones, in the packed images.

        Raises
        ------
        ValueError
            See `pack`.
        """
        table = windows.table.numpy()
        used, image = np.unique(table[:, 0], return_inverse=True)
        planar = _planar([images[i] for i in used.tolist()], finite=scales is not None)
        known = None if scales is None else [scales[i] for i in used.tolist()]
        heights, widths = np.array([one.shape[1:] for one in planar]).T
        whole = np.bincount(image, table[:, 3] * table[:, 4]) >= heights * widths
        alone, shared = np.flatnonzero(~whole[image]), np.flatnonzero(whole)
        none = np.zeros_like(shared)
        packed = _packed(
            planar,
            np.concatenate([image[alone], shared]),
            np.concatenate([table[alone, 1], none]),
            np.concatenate([table[alone, 2], none]),
            np.concatenate([table[alone, 3], heights[shared]]),
            np.concatenate([table[alone, 4], widths[shared]]),
            device,
            known,
        )
        rows = (len(alone) + np.cumsum(whole) - 1)[image]
        rows[alone] = np.arange(len(alone))
        return packed, windows.replace(image=torch.from_numpy(rows))


def _planar(images: Sequence[np.ndarray], finite: bool = False) -> list[np.ndarray]:
    """Return images as [channels, H, W], uint8 (not copied) or float32; as they are if they are `finite`."""
    if not images:
        raise ValueError("no images to pack")
    byte, planar = images[0].dtype == np.uint8, []
    for image in images:
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
            raise ValueError(f"an image must be [H, W] or [H, W, 3] and not empty, got {list(image.shape)}")
        if (image.dtype == np.uint8) != byte or image.dtype.kind not in "uif":
            raise ValueError("images packed together must be all uint8 or all of another real dtype")
        channels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        if not (byte or finite):
            with np.errstate(over="ignore"):
                channels = np.ascontiguousarray(channels, np.float32)
            if not np.isfinite(channels).all():
                raise ValueError("an image holds NaN or infinite values, or some too large for float32")
        planar.append(channels)
    return planar


def _packed(
    planar: Sequence[np.ndarray],
    owners: np.ndarray,
    tops: np.ndarray,
    lefts: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    device: torch.device | str,
    scales: Sequence[tuple[float, float]] | None = None,
) -> PackedImages:
    """Pack rectangles of images [channels, H, W], each as an image of which no more is held."""
    shapes = np.array([image.shape for image in planar])[owners]
    channels, sizes = shapes[:, 0], heights * widths
    ends = np.cumsum(sizes * channels)
    starts = ends - sizes * channels
    columns = (starts - tops * widths - lefts, shapes[:, 1], shapes[:, 2], channels, widths)
    table = np.stack([*columns, np.where(channels == 3, sizes, 0)], axis=1)
    byte = planar[0].dtype == np.uint8
    found = np.array([gray_scale(image) for image in planar] if scales is None else scales, np.float64)
    # From page-locked memory a GPU takes them while this thread goes on.
    place = torch.device(device)
    dtype = torch.uint8 if byte else torch.float32
    data = torch.empty(int(ends[-1]), dtype=dtype, pin_memory=place.type == "cuda")
    flat = data.numpy()
    corners = zip(
        owners.tolist(), tops.tolist(), lefts.tolist(), heights.tolist(), widths.tolist(), strict=True
    )
    for start, end, (owner, top, left, height, width) in zip(
        starts.tolist(), ends.tolist(), corners, strict=True
    ):
        part = planar[owner][:, top : top + height, left : left + width]
        flat[start:end].reshape(part.shape)[...] = part
    return PackedImages(copy_to_device(data, place), torch.from_numpy(table), torch.from_numpy(found[owners]))


def gray_scale(planar: np.ndarray) -> tuple[float, float]:
    """Return the value of black of an image and the gray steps for a unit above it, see `PackedImages`.

    Parameters
    ----------
    planar : ndarray, [channels, H, W]
        One channel or three.
    """
    if planar.dtype == np.uint8:
        return _BYTE_SCALE
    gray = planar[0]
    if len(planar) == 3:
        red, green, blue = (
            weight * plane.astype(np.float64) for weight, plane in zip(LUMA, planar, strict=True)
        )
        gray = red + green + blue
    least, greatest = float(gray.min()), float(gray.max())
    return least, WHITE / (greatest - least) if greatest > least else 0.0


@dataclass(frozen=True, eq=False)
class Windows:
    """Rectangles of packed images around targets, with the clicked pixel of each.

    What is computed for the pixels of all windows lies in flat tensors, window after window, each in
    row-major order: window t at ``offsets[t] : offsets[t + 1]``.

    Parameters
    ----------
    table : Tensor [windows, 8], int64, on the CPU
        Columns `WINDOW_COLUMNS`: index of the image; top-left corner, height and width in pixels (1..64);
        row and column of the click within the window; index of the target within its image (0 .. 2^31 - 1),
        which keys the noise.

    Raises
    ------
    ValueError
        A table of another shape or dtype.

    Examples
    --------
    >>> from mclc_gpu.kernels.packed import Windows
    >>> windows = Windows.pack([(0, 5, 8, 4, 6, 2, 3, 0), (0, 9, 1, 3, 3, 1, 1, 1)])
    >>> windows.sizes.tolist(), windows.offsets.tolist()
    ([24, 9], [0, 24, 33])
    """

    table: torch.Tensor

    def __post_init__(self) -> None:
        shape, dtype, device = list(self.table.shape), self.table.dtype, self.table.device.type
        columns = len(WINDOW_COLUMNS)
        if self.table.ndim != 2 or shape[1] != columns or dtype != torch.int64 or device != "cpu":
            raise ValueError(
                f"a table of windows must be int64 [windows, {columns}] on the CPU with columns "
                f"{', '.join(WINDOW_COLUMNS)}, got {dtype} {shape} on {device}"
            )
        object.__setattr__(self, "table", self.table.contiguous())

    @staticmethod
    def pack(rows: Iterable[Sequence[int]]) -> "Windows":
        """Return the windows of some rows of the table."""
        return Windows(torch.tensor(list(rows), dtype=torch.int64).reshape(-1, len(WINDOW_COLUMNS)))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, chosen: torch.Tensor | slice) -> "Windows":
        """Return some of the windows, by index (int64), mask (bool) or slice."""
        return Windows(self.table[chosen])

    def replace(self, **columns: torch.Tensor) -> "Windows":
        """Return the windows with other values in some columns, each int64 [windows]."""
        table = self.table.clone()
        for name, values in columns.items():
            table[:, WINDOW_COLUMNS.index(name)] = values
        return Windows(table)

    @property
    def image(self) -> torch.Tensor:
        """Index of each window's image, int64 [windows]."""
        return self.table[:, 0]

    @property
    def top(self) -> torch.Tensor:
        """First row of each window in its image, int64 [windows]."""
        return self.table[:, 1]

    @property
    def left(self) -> torch.Tensor:
        """First column of each window in its image, int64 [windows]."""
        return self.table[:, 2]

    @property
    def height(self) -> torch.Tensor:
        """Rows of each window, int64 [windows]."""
        return self.table[:, 3]

    @property
    def width(self) -> torch.Tensor:
        """Columns of each window, int64 [windows]."""
        return self.table[:, 4]

    @property
    def click_row(self) -> torch.Tensor:
        """Row of each click within its window, int64 [windows]."""
        return self.table[:, 5]

    @property
    def click_column(self) -> torch.Tensor:
        """Column of each click within its window, int64 [windows]."""
        return self.table[:, 6]

    @property
    def target(self) -> torch.Tensor:
        """Index of each target within its image, int64 [windows]."""
        return self.table[:, 7]

    @property
    def shapes(self) -> torch.Tensor:
        """Height and width of each window, int64 [windows, 2]."""
        return self.table[:, 3:5].contiguous()

    @cached_property
    def sizes(self) -> torch.Tensor:
        """Pixels of each window, int64 [windows]."""
        return self.height * self.width

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Start of each window among the pixels of all, and their number: int64 [windows + 1]."""
        return starts_of(self.sizes)

    def check(self, images: PackedImages) -> None:
        """Check that every window lies in its image, is of a possible size and holds its click.

        Raises
        ------
        ValueError
            Names the first window that does not.
        """
        # Numpy takes a fraction of PyTorch's time for arrays as small as these.
        image, corner, size = (self.table.numpy()[:, part] for part in (0, slice(1, 3), slice(3, 5)))
        if ((image < 0) | (image >= len(images.table))).any():
            raise ValueError(f"a window names an image outside 0..{len(images.table) - 1}")
        click, target = self.table.numpy()[:, 5:7], self.table.numpy()[:, 7]
        wrong = (size < 1) | (size > MAX_WINDOW) | (corner < 0) | (click < 0) | (click >= size)
        wrong |= corner + size > images.table.numpy()[image, 1:3]
        bad = wrong.any(1) | (target < 0) | (target >= 2**31)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            values = dict(zip(WINDOW_COLUMNS, self.table[first].tolist(), strict=True))
            raise ValueError(
                f"window {first} {values} must be 1..{MAX_WINDOW} pixels per side, lie inside its image and "
                "hold its click"
            )


@dataclass(frozen=True, eq=False)
class Marks:
    """Further marked pixels of the targets beside their clicks, as of several clicks or a scribble.

    A target may have up to `MAX_MARKS`.

    Parameters
    ----------
    offsets : Tensor [targets + 1], int64, on the CPU
    pixels : Tensor [marks], int64, on the CPU
        Row * width + column within the window; those of target t are pixels[offsets[t] : offsets[t + 1]].

    Examples
    --------
    >>> from mclc_gpu.kernels.packed import Marks
    >>> marks = Marks.pack([[3, 70], [], [13]])
    >>> marks.numbers.tolist(), marks.pixels.tolist()
    ([2, 0, 1], [3, 70, 13])
    """

    offsets: torch.Tensor
    pixels: torch.Tensor

    @staticmethod
    def pack(pixels: Sequence[Sequence[int]]) -> "Marks":
        """Return the marks of some targets, given the pixels of each."""
        numbers = torch.tensor([len(own) for own in pixels], dtype=torch.int64)
        return Marks(starts_of(numbers), torch.tensor([p for own in pixels for p in own], dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, targets: torch.Tensor) -> "Marks":
        """Return the marks of some targets, int64 [chosen], in that order."""
        numbers = self.numbers[targets]
        offsets = starts_of(numbers)
        within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], numbers)
        first = torch.repeat_interleave(self.offsets[:-1][targets], numbers)
        return Marks(offsets, self.pixels[first + within])

    @property
    def numbers(self) -> torch.Tensor:
        """Marks of each target, int64 [targets]."""
        return self.offsets.diff()

    def check(self, windows: Windows, most: int = MAX_MARKS) -> None:
        """Check that the marks fit some windows: one list a window, each mark inside, at most `most`.

        Raises
        ------
        ValueError
            Says which of these fails.
        """
        offsets, pixels, targets = self.offsets.numpy(), self.pixels.numpy(), len(windows)
        numbers = np.diff(offsets)
        if len(numbers) != targets or (numbers < 0).any() or offsets[-1] != len(pixels):
            raise ValueError(f"marks must have offsets [{targets + 1}] that rise to {len(pixels)}")
        if targets and numbers.max() > most:
            raise ValueError(f"a target has {numbers.max()} marks beside its click, at most {most}")
        if ((pixels < 0) | (pixels >= np.repeat(windows.sizes.numpy(), numbers))).any():
            raise ValueError("a mark lies outside its window")


class StartGrids(NamedTuple):
    """Start centers of the clusters of all windows, on the CPU; windows of one shape share them.

    Attributes
    ----------
    centers : Tensor [centers, 2], float32
        Row and column, for all shapes of windows one after another.
    table : Tensor [windows, 5], int64
        First center, number of centers, reach in y and in x (pixels), step (pixels).
    """

    centers: torch.Tensor
    table: torch.Tensor

    @property
    def numbers(self) -> torch.Tensor:
        """Centers of each window, int64 [windows]."""
        return self.table[:, 1]


def starts_of(sizes: torch.Tensor) -> torch.Tensor:
    """Return where items of some sizes start when packed, and the total: int64 [items + 1]."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(sizes, 0)])
