"""Images of a folder as a page shows them: real values in tiles, ranges, thumbnails."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from mclc_gpu.data.files import fingerprint_of, in_archive
from mclc_gpu.data.images import luma, read_image
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.packed import gray_scale

TILE = 512  # pixels, side of a tile
PERCENTILES = (0.1, 1, 50, 99, 99.9)
POOLS: Mapping[str, Callable[..., np.ndarray]] = {"max": np.max, "min": np.min, "mean": np.mean}
_SAMPLE = 1 << 18  # values from which percentiles are taken
_THUMBNAIL = 128  # pixels, longest side
_FRAME_BYTES, _TILE_BYTES, _THUMBNAIL_BYTES = 768 << 20, 128 << 20, 64 << 20  # kept in memory

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values that were used last, up to a number of bytes; for threads. A value is made by one of them.

    Parameters
    ----------
    most : int
        Bytes; the value used last is kept even if it is larger.
    size : callable
        Returns the bytes of a value.
    """

    def __init__(self, most: int, size: Callable[[Value], int]) -> None:
        self._most, self._size, self._held = most, size, 0
        self._values: OrderedDict[object, Value] = OrderedDict()
        self._making: dict[object, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                if key not in self._values:
                    self._values[key] = value
                    self._held += self._size(value)
                while self._held > self._most and len(self._values) > 1:
                    self._held -= self._size(self._values.popitem(last=False)[1])
            return value


@dataclass(frozen=True, eq=False)
class Frame:
    """One image in memory.

    Attributes
    ----------
    pixels : ndarray, [H, W] or [H, W, 3]
        uint8, uint16 or float32.
    etag : str
        Changes with the file.
    """

    pixels: np.ndarray
    etag: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def levels(self) -> int:
        """Levels of the pyramid: each has half the side of the one before, the last one fits into a tile."""
        blocks = -(-max(self.shape) // TILE)
        return 1 + (blocks - 1).bit_length()

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Value of black and gray steps for a unit above it, see `mclc_gpu.kernels.packed.gray_scale`."""
        planar = self.pixels[None] if self.pixels.ndim == 2 else self.pixels.transpose(2, 0, 1)
        return gray_scale(planar)

    @cached_property
    def range(self) -> tuple[float, float]:
        """Least and greatest value of all channels."""
        return float(self.pixels.min()), float(self.pixels.max())

    @cached_property
    def percentiles(self) -> dict[float, float]:
        """Values of `PERCENTILES`, from a regular sample of the pixels."""
        step = max(1, int(np.sqrt(self.shape[0] * self.shape[1] / _SAMPLE)))
        values = np.percentile(self.pixels[::step, ::step], PERCENTILES)
        return dict(zip(PERCENTILES, map(float, values), strict=True))

    def tile(self, level: int, row: int, column: int, pool: str) -> np.ndarray:
        """Return one tile of a level of the pyramid, in the type of the pixels.

        Parameters
        ----------
        level : int
            0: the pixels; L: blocks of 2^L x 2^L pixels pooled.
        row, column : int
            Place of the tile in its level, from 0.
        pool : {"max", "min", "mean"}
            What stands for the pixels of a block.

        Raises
        ------
        LookupError
            There is no such tile.
        """
        if not (0 <= level < self.levels and row >= 0 and column >= 0):
            raise LookupError
        side, block = TILE << level, 1 << level
        top, left = row * side, column * side
        part = self.pixels[top : top + side, left : left + side]
        if not part.size:
            raise LookupError
        return part if level == 0 else pooled(part, block, pool)

    def thumbnail(self) -> bytes:
        """Return a PNG file of 8 bits, stretched between the outermost of `PERCENTILES`."""
        gray = luma(pooled(self.pixels, max(1, -(-max(self.shape) // _THUMBNAIL)), "max"))
        low, high = np.percentile(gray, [PERCENTILES[0], 99.9])
        scaled = (gray - low) * (255 / (high - low) if high > low else 0.0)
        file = io.BytesIO()
        Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
        return file.getvalue()


def pooled(pixels: np.ndarray, block: int, pool: str) -> np.ndarray:
    """Pool blocks of `block` x `block` pixels, smaller ones at the right and lower edge.

    Parameters
    ----------
    pixels : ndarray, [H, W] or [H, W, channels]
    block : int >= 1
    pool : {"max", "min", "mean"}

    Returns
    -------
    ndarray, [ceil(H / block), ceil(W / block), ...]
        In the type of the pixels; means of integers are rounded.
    """
    reduce = POOLS[pool]
    found = pixels
    for axis in (0, 1):
        whole = found.shape[axis] // block
        parts = []
        if whole:
            head = np.take(found, range(whole * block), axis) if found.shape[axis] % block else found
            shape = (*head.shape[:axis], whole, block, *head.shape[axis + 1 :])
            parts.append(reduce(head.reshape(shape), axis=axis + 1))
        if found.shape[axis] % block:
            tail = found[whole * block :] if axis == 0 else found[:, whole * block :]
            parts.append(reduce(tail, axis=axis, keepdims=True))
        found = np.concatenate(parts, axis)
    if pixels.dtype.kind == "u" and found.dtype != pixels.dtype:
        found = np.rint(found)
    return found.astype(pixels.dtype)


class Frames:
    """Images of a folder, read when they are first asked for.

    Parameters
    ----------
    files : mapping of str to Path
        Image files by name.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        self.problems: dict[str, str] = {}  # of the images that could not be read
        self._frames: Recent[Frame] = Recent(_FRAME_BYTES, lambda frame: frame.pixels.nbytes)
        self._tiles: Recent[np.ndarray] = Recent(_TILE_BYTES, lambda tile: tile.nbytes)
        self._thumbnails: Recent[bytes] = Recent(_THUMBNAIL_BYTES, len)

    def frame(self, name: str) -> Frame:
        """Return an image. Raises InputError for one that cannot be read."""
        etag = self.etag(name)

        def read() -> Frame:
            return Frame(read_image(self.files[name]), etag)

        try:
            found = self._frames.get((name, etag), read)
        except InputError as error:
            self.problems[name] = str(error)
            raise
        self.problems.pop(name, None)
        return found

    def etag(self, name: str) -> str:
        """Return a text that changes with the file. Raises InputError for a file that is gone."""
        path = self.files[name]
        try:
            status = (path.parent if in_archive(path) else path).stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); put the file back") from error
        return fingerprint_of(name, status.st_mtime_ns, status.st_size)[:16]

    def tile(self, name: str, level: int, row: int, column: int, pool: str) -> np.ndarray:
        """Return a tile of an image, see `Frame.tile`."""
        frame = self.frame(name)
        if level == 0:
            return frame.tile(level, row, column, pool)
        key = name, frame.etag, level, row, column, pool
        return self._tiles.get(key, lambda: frame.tile(level, row, column, pool))

    def thumbnail(self, name: str) -> bytes:
        """Return the thumbnail of an image, see `Frame.thumbnail`."""
        return self._thumbnails.get((name, self.etag(name)), lambda: self.frame(name).thumbnail())
