"""Read images, masks and probability maps of the usual formats.

Pixels are given as stored (`read_image`). Three functions convert them: `network_levels` for a detector,
`luma` for the gray levels of a color image, `display_rgb` for figures.
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from mclc_gpu.data.files import in_archive, read_file
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import LUMA

Color = tuple[int, int, int]  # RGB, 0 to 255
MASK_COLOR: Color = (255, 176, 0)  # of predicted masks in figures

_MOST_TARGET = 0.5  # share of an image that its targets, which are small, may cover
_MOST_BETWEEN = 0.25  # share of a mask's pixels that may be neither dark nor bright

_FORMATS = ("PNG", "TIFF", "BMP", "JPEG", "PPM", "JPEG2000")  # of Pillow's; some others run programs
_DIRECT_MODES = ("L", "RGB", "I;16", "I;16B", "I;16L", "I", "F")
_NUMPY_MAGIC, _MATLAB_MAGIC = b"\x93NUMPY", b"MATLAB 5.0"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_NUMBERS = 1 << 28  # that an image may hold: a small file can claim, or unfold to, any size
_MOST_PAGES = 64  # that are counted: a damaged file can name any number of them
_BELIEVED, _MOST_GROWTH = 1 << 26, 4096  # bytes that any file may claim, and that each of its bytes may
for _decoder in ("tifffile", "PIL"):  # what is wrong with a file is reported once, by InputError
    logging.getLogger(_decoder).addHandler(logging.NullHandler())


def read_image(path: Path | str) -> np.ndarray:
    """Read one image at its stored size.

    PNG, TIFF, BMP, JPEG, JPEG 2000, PGM, and arrays of NumPy and of MATLAB 5 are recognized by content.
    Palettes are expanded, 1-bit images become 0 and 255, alpha is dropped, CMYK becomes RGB. A color image
    whose three channels are equal everywhere is returned as [H, W]: it holds the same numbers in a third of
    the memory. Integers of other widths become uint16 when all their values fit, else float32. Pixels keep
    the file's order: an orientation tag is not applied, since masks do not have one.

    Parameters
    ----------
    path : Path or str
        An image file, or ARCHIVE.tar/MEMBER.

    Returns
    -------
    ndarray [H, W] or [H, W, 3]
        uint8 (0-255), uint16 (0-65535) or float32 (any finite range).

    Raises
    ------
    InputError
        The file is missing, empty, truncated, not an image, of several pages, or larger than 2^28 numbers or
        Pillow's limit (179 million pixels), or holds NaN or infinite pixels.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from PIL import Image
    >>> from mclc_gpu.data.images import read_image
    >>> with TemporaryDirectory() as folder:
    ...     Image.fromarray(np.full((2, 3), 40000, np.uint16)).save(Path(folder) / "a.png")
    ...     read_image(Path(folder) / "a.png")
    array([[40000, 40000, 40000],
           [40000, 40000, 40000]], dtype=uint16)
    """
    path = Path(path)
    with _named_errors(path):
        return _decoded(read_file(path))


def decode_image(data: bytes) -> np.ndarray:
    """Decode the bytes of an image file as `read_image` does. Raises InputError as it does."""
    with _named_errors(Path("image")):
        return _decoded(data)


def _decoded(data: bytes) -> np.ndarray:
    if _magic(data) in _TIFF_MAGIC:
        pixels = _decode_tiff(data)
    elif data.startswith(_NUMPY_MAGIC):
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    elif data.startswith(_MATLAB_MAGIC):
        pixels = _decode_matlab(data)
    elif _is_deep_color_png(data[:26]):
        pixels = _decode_deep_color_png(data)
    else:
        pixels = _decode_pillow(data)
    return canonical_pixels(pixels)


def read_mask(path: Path | str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask.

    Of a file of two values, such as 0 and 1, 0 and 255 or 0 and 4095, the larger one is true. Of other files
    a value is true above 127, in a 16-bit file with values above 255 above half of the largest, and in a
    float file with values up to 1 above 0.5. In a color mask a pixel is true where any of its channels is.

    Parameters
    ----------
    path : Path or str
    shape : (H, W), optional
        Size of the image that the mask belongs to.

    Returns
    -------
    ndarray [H, W], bool
        True on targets.

    Raises
    ------
    InputError
        The mask has another size than `shape` (it is never resized), or more than two values of which none is
        above 127 (numbers of classes or targets), and as `read_image` does.
    """
    pixels = _mask_pixels(path, shape)
    return pixels > _mask_threshold(pixels, path)


def _mask_pixels(path: Path | str, shape: tuple[int, int] | None) -> np.ndarray:
    """Read a mask file of the given size as [H, W], of a color image the greatest channel."""
    pixels = read_image(path)
    if shape is not None and pixels.shape[:2] != tuple(shape):
        (height, width), (rows, columns) = pixels.shape[:2], shape
        raise InputError(
            f"{path}: the mask is {width}x{height} but its image is {columns}x{rows} (width x height); "
            "give the mask of this image, masks are not resized"
        )
    return pixels.max(axis=2) if pixels.ndim == 3 else pixels


def _mask_threshold(pixels: np.ndarray, path: Path | str) -> float:
    """Return the value above which a pixel of a mask is true."""
    largest = float(pixels.max())
    if largest <= 0:
        return 0.0
    full = pixels == largest
    if not full.all() and (full | (pixels == 0)).all():
        return 0.0
    if pixels.dtype == np.float32 and largest <= 1:
        return 0.5
    if pixels.dtype == np.uint16 and largest > 255:
        return largest / 2
    if 1 < largest <= 127:
        values = np.unique(pixels)
        some = ", ".join(f"{value:g}" for value in values[:4]) + (
            f" ... {largest:g}" if len(values) > 4 else ""
        )
        raise InputError(
            f"{path}: the mask holds the values {some}, none above 127; save targets as 255 and all else as 0"
        )
    return 127.0 if largest > 1 else 0.0


def read_truth(path: Path | str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read the true mask of an image, see `read_mask`; what looks like no mask is refused.

    Raises
    ------
    InputError
        More than half of the image is target (an inverted mask), or more than a quarter of the pixels has a
        value between a tenth and nine tenths of the largest (an image); and as `read_mask`.
    """
    pixels = _mask_pixels(path, shape)
    mask = pixels > _mask_threshold(pixels, path)
    share, largest = float(mask.mean()), float(pixels.max())
    if float(((pixels > 0.1 * largest) & (pixels < 0.9 * largest)).mean()) > _MOST_BETWEEN:
        raise InputError(f"{path}: many gray levels, as of an image; give masks of the values 0 and 255")
    if share > _MOST_TARGET:
        raise InputError(f"{path}: {share:.0%} of the image are target; invert the mask")
    return mask


def read_probability(path: Path | str) -> np.ndarray:
    """Read a probability map.

    8-bit and 16-bit gray images hold probability 1 as their largest possible value (255, 65535), float images
    hold probabilities as they are.

    Returns
    -------
    ndarray [H, W], float32
        In 0..1.

    Raises
    ------
    InputError
        Color images, floats beyond 0..1, and as `read_image` does.
    """
    pixels = read_image(path)
    if pixels.ndim != 2:
        raise InputError(f"{path}: a color image is no probability map; give gray images of 8 or 16 bits")
    if pixels.dtype != np.float32:
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(
            f"{path}: its values run from {pixels.min():g} to {pixels.max():g}; probabilities are 0 to 1"
        )
    return pixels


def image_size(path: Path | str) -> tuple[int, int]:
    """Return (height, width) from a file's header without decoding its pixels; InputError as `read_image`."""
    path = Path(path)
    with _named_errors(path), io.BytesIO(read_file(path)) if in_archive(path) else path.open("rb") as file:
        magic = _magic(file.read(4))
        file.seek(0)
        if magic in (_NUMPY_MAGIC[:4], _MATLAB_MAGIC[:4]):
            height, width = read_image(path).shape[:2]
            return height, width
        if magic in _TIFF_MAGIC:
            with tifffile.TiffFile(file) as tiff:
                page = _single_page(tiff)
                return int(page.imagelength), int(page.imagewidth)
        with Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width


def network_levels(image: np.ndarray, in_channels: int, robust: bool = True) -> np.ndarray:
    """Return the levels of an image that a detector sees, before normalization.

    8-bit images are taken as they are. Images of any other type are scaled by their own range over all
    channels, darkest to 0 and brightest to 255, and clipped; a constant one is 0 everywhere. For one channel
    a color image gives its `luma`, for three a gray image is repeated.

    Parameters
    ----------
    image : ndarray [H, W] or [H, W, 3]
        Finite.
    in_channels : {1, 3}
        Channels of the detector's input.
    robust : bool
        Leave dead, hot and fill pixels out of the range, single ones and whole columns or rows: it is that of
        the values which four pixels of some 3 x 3 neighborhood reach. Fill, such as borders and dead blocks,
        is left out too and given the median of the other pixels: a least or greatest value that a line of
        pixels or more share, up to half of the image, beyond a gap wider than the range of the others.
        Otherwise every pixel counts.

    Returns
    -------
    ndarray [in_channels, H, W], float32
        0 to 255.

    Raises
    ------
    ValueError
        Another shape or number of channels.
    """
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or in_channels not in (1, 3):
        raise ValueError(f"image of shape {image.shape} for {in_channels} channels: give [H, W] or [H, W, 3]")
    if image.dtype != np.uint8:
        # In float64: the span of float images may be wider or narrower than float32 can divide by.
        values = image.astype(np.float64)
        if robust:
            values = _without_fill(values)
        low, high = _robust_range(values) if robust else (values.min(), values.max())
        scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
        image = scaled.clip(0.0, 255.0)
    if in_channels == 1:
        return luma(image)[None]
    channels = image if image.ndim == 3 else np.broadcast_to(image[:, :, None], (*image.shape, 3))
    return np.ascontiguousarray(channels.transpose(2, 0, 1), dtype=np.float32)


def _robust_range(image: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value of any channel that four pixels of a 3 x 3 neighborhood reach.

    Of images that are too small, or constant but for bad pixels, it is the full range.
    """
    if min(image.shape[:2]) >= 3:
        planes = image[:, :, None] if image.ndim == 2 else image
        inner = np.s_[1:-1, 1:-1]
        channels = [planes[:, :, channel] for channel in range(planes.shape[2])]
        low = min(float(ndimage.rank_filter(plane, 3, 3)[inner].min()) for plane in channels)
        high = max(float(ndimage.rank_filter(plane, -4, 3)[inner].max()) for plane in channels)
        if high > low:
            return low, high
    return float(image.min()), float(image.max())


def _without_fill(image: np.ndarray) -> np.ndarray:
    """Give pixels of fill the median of the others; return the image itself where there are none."""
    if image.ndim == 3:
        channels = [_without_fill(image[:, :, channel]) for channel in range(image.shape[2])]
        return np.stack(channels, axis=2)
    for extreme in (image.min(), image.max()):
        same = image == extreme
        if max(image.shape) <= np.count_nonzero(same) <= image.size // 2:
            filled = np.where(same, np.median(image[~same]), image)
            low, high = _robust_range(filled)
            if max(low - extreme, extreme - high) > high - low:
                return _without_fill(filled)  # there may be fill of another value, too
    return image


def luma(image: np.ndarray) -> np.ndarray:
    """Return .299 R + .587 G + .114 B (ITU-R BT.601) of a color image, and a gray image as it is.

    Parameters
    ----------
    image : ndarray [H, W] or [H, W, 3]

    Returns
    -------
    ndarray [H, W], float32
    """
    if image.ndim == 2:
        return image.astype(np.float32)
    return image.astype(np.float32) @ np.array(LUMA, np.float32)


def display_rgb(image: np.ndarray) -> np.ndarray:
    """Stretch an image for display, from its darkest value to black to its brightest to white.

    Parameters
    ----------
    image : ndarray [H, W] or [H, W, 3]
        Finite; of any type.

    Returns
    -------
    ndarray [H, W, 3], uint8
        Middle gray where the image is constant.
    """
    values = image.astype(np.float64)
    low, high = values.min(), values.max()
    gray = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    if gray.ndim == 2:
        gray = np.repeat(gray[:, :, None], 3, axis=2)
    return np.rint(gray * 255).astype(np.uint8)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one line that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image of a known format; export it as PNG or TIFF") from error
    # Decoders raise nearly anything on damaged bytes (struct.error, SyntaxError, ...), documented nowhere.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({reason}); copy or export it again") from error


def _magic(data: bytes) -> bytes:
    """Return the first four bytes of a file; InputError if it is empty."""
    if not data:
        raise InputError("the file is empty; copy it again")
    return data[:4]


def _decode_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_claim(image.width * image.height * len(image.getbands()), data)
        # np.array, not np.asarray: Pillow's own memory is read-only, which torch.from_numpy warns about.
        if image.mode in _DIRECT_MODES:
            return np.array(image)
        return np.array(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB"))


def _decode_tiff(data: bytes) -> np.ndarray:
    """Decode 8-bit TIFF by Pillow, which knows its color models, and the other number formats by tifffile."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = _single_page(tiff)
        if math.prod(page.shape) > _MOST_NUMBERS:
            raise InputError(f"the image has shape {page.shape}, too large to be read at once; cut it up")
        if page.compression == tifffile.COMPRESSION.NONE and _stored_bytes(page) > len(data):
            raise InputError("the image data is truncated")
        _check_claim(page.nbytes, data)
        if page.dtype is None or (page.dtype.itemsize == 1 and page.dtype.kind != "i"):
            return _decode_pillow(data)
        try:
            pixels = page.asarray()
        except ValueError:
            # A compression that tifffile lacks without an extra package. Pillow has its own decoders, but
            # reads 16-bit color as 8 bits: its result counts only when it has the width that the header
            # declares.
            pixels = _decode_pillow(data)
            if pixels.dtype.newbyteorder("=") != page.dtype.newbyteorder("="):
                raise
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, 2)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels


def _decode_matlab(data: bytes) -> np.ndarray:
    """Return the only array of numbers with rows and columns in a MATLAB file of version 5."""
    from scipy.io import loadmat  # which other images need not wait for

    variables = loadmat(io.BytesIO(data))
    arrays = {
        name: value
        for name, value in variables.items()
        if not name.startswith("__") and isinstance(value, np.ndarray) and value.dtype.kind in "iufb"
        and value.ndim in (2, 3) and min(value.shape[:2]) > 1
    }  # fmt: skip
    if len(arrays) != 1:
        names = ", ".join(arrays) or "none"
        raise InputError(
            f"holds {len(arrays)} arrays that could be an image ({names}); save one in each file"
        )
    return next(iter(arrays.values()))


def _stored_bytes(page: Any) -> int:
    """Return the bytes that the pixels of an uncompressed page take at least: rows end at whole bytes."""
    if page.bitspersample % 8 == 0:
        return int(page.nbytes)
    return int(math.prod(page.shape) // page.imagewidth * -(-page.imagewidth * page.bitspersample // 8))


def _check_claim(size: int, data: bytes) -> None:
    """Raise InputError for a size in bytes that no compression makes of so small a file."""
    if size > max(_BELIEVED, _MOST_GROWTH * len(data)):
        raise InputError(f"the image data is truncated: {len(data)} bytes for an image of {size}")


def _single_page(tiff: tifffile.TiffFile) -> Any:
    """Return the only full-size page of a TIFF file."""
    first, *rest = islice(tiff.pages, _MOST_PAGES)
    count = 1 + sum(not getattr(page, "is_reduced", False) for page in rest)
    if count > 1:
        raise InputError(f"the file holds {count} pages; save each as a file of its own")
    return first


def canonical_pixels(pixels: np.ndarray) -> np.ndarray:
    """Convert decoded pixels to the shapes and dtypes that `read_image` returns.

    Parameters
    ----------
    pixels : ndarray, [H, W] or [H, W, 1 to 4]
        Gray, gray and alpha, RGB, or RGBA.

    Raises
    ------
    InputError
        Another shape or type, or a value that is NaN, infinite or beyond float32.
    """
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):
        pixels = pixels[:, :, 0]
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InputError(f"the image has shape {pixels.shape}; save it as gray or RGB")
    if not pixels.size:
        raise InputError("the image has no pixels")
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(_canonical_numbers(pixels))


def _canonical_numbers(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8 or pixels.dtype.newbyteorder("=") == np.uint16:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)
    if pixels.dtype.kind not in "iuf":
        raise InputError(f"pixels of type {pixels.dtype} cannot be used; save them as integers or floats")
    with np.errstate(over="ignore", invalid="ignore"):
        single = pixels.astype(np.float32)
    bad = single.size - np.count_nonzero(np.isfinite(single))
    if bad:
        raise InputError(f"{bad} pixels are NaN, infinite or beyond float32; replace them by numbers")
    return single


# PNG files with several channels of 16 bits, of which Pillow keeps the upper 8 bits only.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}  # PNG color type -> channels: RGB, gray + alpha, RGBA


def _is_deep_color_png(head: bytes) -> bool:
    """Return whether the first 26 bytes of a file are those of a 16-bit PNG with several channels."""
    return (
        len(head) >= 26 and head.startswith(_PNG_SIGNATURE) and head[24] == 16 and head[25] in _PNG_CHANNELS
    )


def _decode_deep_color_png(data: bytes) -> np.ndarray:
    """Decode a whole 16-bit RGB, RGBA or gray + alpha PNG file to uint16 [H, W, channels].

    PNG's row filters (PNG specification, chapter 9) work on each byte of a pixel apart from the others. So
    the 2C bytes of a pixel are 2C independent 8-bit gray images with the same filters, which Pillow undoes at
    full speed. Raises InputError for an interlaced, truncated or damaged file; the message does not name the
    file.
    """
    chunks = list(_png_chunks(data))
    width, height, _, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if interlaced:
        raise InputError("interlaced 16-bit color PNG cannot be read; save it without interlacing")
    lanes = 2 * _PNG_CHANNELS[color]
    if width * height * _PNG_CHANNELS[color] > _MOST_NUMBERS:
        raise InputError(f"the image has {width}x{height} pixels, too many to be read at once; cut it up")
    size = height * (1 + width * lanes)
    stream = b"".join(body for name, body in chunks if name == b"IDAT")
    raw = zlib.decompressobj().decompress(stream, size)
    if not size or len(raw) != size:
        raise InputError("the image data is truncated")
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * lanes)
    pixels = rows[:, 1:].reshape(height, width, lanes)
    planes = np.empty((height, width, lanes), np.uint8)
    for lane in range(lanes):
        filtered = np.concatenate([rows[:, :1], pixels[:, :, lane]], axis=1)
        with Image.open(io.BytesIO(_gray_png(width, height, filtered.tobytes()))) as plane:
            planes[:, :, lane] = np.asarray(plane)
    return planes.view(">u2").astype(np.uint16)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and body of each chunk of a PNG file, up to its end."""
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        crc = data[at + 8 + length : at + 12 + length]
        if crc != struct.pack(">I", zlib.crc32(name + body)):
            raise InputError("the file is truncated or damaged")
        yield name, body
        at += 12 + length


def _gray_png(width: int, height: int, filtered: bytes) -> bytes:
    """Return an 8-bit gray PNG file of rows that are filtered already."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered, 0)), (b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
