"""Read images and masks of any usual format, as stored; find them in folders and archives."""

import io
import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from mclc_gpu.data.files import ARCHIVE_SUFFIX, MASK_PART, in_archive, members_of, read_file, stem_of_mask
from mclc_gpu.data.png16 import decode_deep_colour_png, is_deep_colour_png
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import LUMA


def gray_levels(image: np.ndarray, in_channels: int) -> np.ndarray:
    """An image as a network of `in_channels` channels (1 or 3) sees it: float32 [C, H, W], 0 to 255.

    8-bit images are taken as they are. Images of any other type are scaled by their own range over all
    channels, darkest to 0 and brightest to 255; a constant one is 0 everywhere. For one channel a colour
    image gives its luma, for three a gray image is repeated.

    `image`: [H, W] or [H, W, 3], finite. Raises ValueError for another shape or number of channels.
    """
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or in_channels not in (1, 3):
        raise ValueError(f"image of shape {image.shape} for {in_channels} channels: give [H, W] or [H, W, 3]")
    if image.dtype != np.uint8:
        # In float64: the span of float images may be wider or narrower than float32 can divide by.
        values = image.astype(np.float64)
        low, high = values.min(), values.max()
        image = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    if in_channels == 1:
        return luma(image)[None]
    channels = image if image.ndim == 3 else np.broadcast_to(image[:, :, None], (*image.shape, 3))
    return np.ascontiguousarray(channels.transpose(2, 0, 1), dtype=np.float32)


_FORMATS = ("PNG", "TIFF", "BMP", "JPEG")  # of Pillow's; some others run programs or fetch files
_MOST_NUMBERS = 1 << 28  # that an image may hold: a small file can claim, or unfold to, any size
_MOST_PAGES = 64  # that are looked at: a damaged file can name any number of them
for _decoder in ("tifffile", "PIL"):  # what is wrong with a file is said once
    logging.getLogger(_decoder).addHandler(logging.NullHandler())
_BELIEVED, _MOST_GROWTH = 1 << 26, 4096  # bytes that any file may claim, and that each of its bytes may
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_MASK_ENDING = "_pixels0"  # NUAA-SIRST names the mask of NAME.png NAME_pixels0.png
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DIRECT_MODES = ("L", "RGB", "I;16", "I;16B", "I;16L", "I", "F")


def read_image(path: Path | str) -> np.ndarray:
    """Read one image at its stored size.

    Returns [H, W] or [H, W, 3], of dtype uint8 (0-255), uint16 (0-65535) or float32 (any finite range). PNG,
    TIFF, BMP and JPEG are recognised by content. Palettes are expanded, 1-bit images become 0 and 255, alpha
    is dropped, CMYK becomes RGB. A colour image whose three channels are equal everywhere is returned as [H,
    W]: it holds the same numbers in a third of the memory. Integers of other widths become uint16 when all
    their values fit, else float32. Pixels keep the file's order: an orientation tag is not applied, since
    masks do not have one.

    Raises InputError for a file that is missing, empty, truncated, not an image, of several pages, or larger
    than 2^28 numbers or Pillow's limit (179 million pixels), and for NaN or infinite pixels.
    """
    path = Path(path)
    with _named_errors(path):
        data = read_file(path)
        if _magic(data) in _TIFF_MAGIC:
            pixels = _decode_tiff(data)
        elif is_deep_colour_png(data[:26]):
            pixels = decode_deep_colour_png(data)
        else:
            pixels = _decode_pillow(data)
        return _canonical(pixels)


def read_mask(path: Path | str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask file as bool [H, W]: true on targets.

    True is a value > 127, or > 0 when the largest value of the file is 1 (masks written as 0/1) or the file
    has 1 bit per pixel. A 16-bit mask with values above 255 is cut at half of its range (> 32767), a float
    mask with values up to 1 at > 0.5. In a colour mask a pixel is true where any of its channels is.

    `shape`: (H, W) of the image that the mask belongs to. Raises InputError when the mask has another size
    (it is never resized), and as `read_image` does.
    """
    pixels = read_image(path)
    if shape is not None and pixels.shape[:2] != tuple(shape):
        (height, width), (rows, columns) = pixels.shape[:2], shape
        raise InputError(
            f"{path}: the mask is {width}x{height} but its image is {columns}x{rows} (width x height); "
            "give the mask of this image, masks are not resized"
        )
    if pixels.ndim == 3:
        pixels = pixels.max(axis=2)
    return pixels > _mask_threshold(pixels)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) from a file's header, without decoding its pixels; InputError as for `read_image`."""
    path = Path(path)
    with _named_errors(path), io.BytesIO(read_file(path)) if in_archive(path) else path.open("rb") as file:
        magic = _magic(file.read(4))
        file.seek(0)
        if magic in _TIFF_MAGIC:
            with tifffile.TiffFile(file) as tiff:
                page = _single_page(tiff)
                return int(page.imagelength), int(page.imagewidth)
        with Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width


def stem_of(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> str:
    """The stem by which files of one scene find each other, from a file name or path of any system.

    Folders, a suffix that is one of `suffixes` (lower case) and the ending `_pixels0` of NUAA-SIRST's masks
    are dropped; dots elsewhere in the name stay.
    """
    base = PurePosixPath(name.replace("\\", "/")).name
    head, suffix = os.path.splitext(base)
    if suffix.lower() in suffixes:
        base = head
    return base.removesuffix(_MASK_ENDING) or base


def find_files(directory: Path | str, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files of one folder by stem (see `stem_of`), sorted by stem; the case of `suffixes` does not matter.

    Sub-folders, hidden files and files of other suffixes (XML beside masks) are passed over. A folder without
    such files that holds tar archives stands for the files in these (`mclc_gpu.data.files`); archives that
    `label` wrote stand for their masks. Raises InputError when the folder is missing, holds no such file, or
    holds two files of the same stem.
    """
    directory = Path(directory)
    wanted = tuple(suffix.lower() for suffix in suffixes)
    try:
        with os.scandir(directory) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith((*wanted, ARCHIVE_SUFFIX))
                and not entry.name.startswith(".")
                and entry.is_file()
            )
    except OSError as error:
        raise InputError(f"{directory}: cannot be read as a folder ({error.strerror})") from error
    paths = [directory / name for name in names if not name.lower().endswith(ARCHIVE_SUFFIX)]
    if not paths:
        paths = [path for name in names for path in _archived(directory / name, wanted)]
    found: dict[str, Path] = {}
    for path in paths:
        labels = path.name.endswith(MASK_PART) and in_archive(path)
        stem = stem_of_mask(path.name) if labels else stem_of(path.name, wanted)
        if stem in found:
            raise InputError(
                f"{directory}: {found[stem].name} and {path.name} are both named {stem!r}; keep one"
            )
        found[stem] = path
    if not found:
        raise InputError(f"{directory}: the folder holds no {', '.join(wanted)} file; check the path")
    return dict(sorted(found.items()))


def _archived(archive: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The images in an archive, or the masks in one of labels."""
    names = [name for name in members_of(archive) if name.lower().endswith(suffixes)]
    masks = [name for name in names if name.endswith(MASK_PART)]
    return (archive / name for name in masks or names)


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
        raise InputError(
            f"{path}: not an image of a known format; export it as PNG, TIFF, BMP or JPEG"
        ) from error
    # Decoders raise nearly anything on damaged bytes (struct.error, SyntaxError, ...), documented nowhere.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({reason}); copy or export it again") from error


def _magic(data: bytes) -> bytes:
    """The first four bytes of a file that is not empty."""
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
    """Pillow knows the colour models of 8-bit TIFF, tifffile the number formats of all the others."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = _single_page(tiff)
        if math.prod(page.shape) > _MOST_NUMBERS:
            raise InputError(f"the image has shape {page.shape}, too large to be read at once; cut it up")
        if page.compression == tifffile.COMPRESSION.NONE and page.nbytes > len(data):
            raise InputError("the image data is truncated")
        _check_claim(page.nbytes, data)
        if page.dtype is None or (page.dtype.itemsize == 1 and page.dtype.kind != "i"):
            return _decode_pillow(data)
        try:
            pixels = page.asarray()
        except ValueError:
            # A compression that tifffile lacks without an extra package. Pillow has its own decoders, but
            # reads 16-bit colour as 8 bits: its result counts only when it has the width that the header
            # declares.
            pixels = _decode_pillow(data)
            if pixels.dtype.newbyteorder("=") != page.dtype.newbyteorder("="):
                raise
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, 2)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels


def _check_claim(size: int, data: bytes) -> None:
    """Refuse a size in bytes that no compression makes of so small a file, before memory is taken for it."""
    if size > max(_BELIEVED, _MOST_GROWTH * len(data)):
        raise InputError(f"the image data is truncated: {len(data)} bytes for an image of {size}")


def _single_page(tiff: tifffile.TiffFile) -> Any:
    """The only full-size page of a TIFF file."""
    first, *rest = islice(tiff.pages, _MOST_PAGES)
    count = 1 + sum(not getattr(page, "is_reduced", False) for page in rest)
    if count > 1:
        raise InputError(f"the file holds {count} pages; save each as a file of its own")
    return first


def _canonical(pixels: np.ndarray) -> np.ndarray:
    """To the shapes and dtypes that `read_image` promises."""
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


def _mask_threshold(pixels: np.ndarray) -> float:
    """The value above which a pixel of a mask is a target."""
    largest = pixels.max()
    if pixels.dtype == np.float32 and largest <= 1:
        return 0.5
    if largest == 1:
        return 0
    return 32767 if pixels.dtype == np.uint16 and largest > 255 else 127


def luma(image: np.ndarray) -> np.ndarray:
    """Gray levels float32 [H, W] of an image [H, W] or [H, W, 3]: .299 R + .587 G + .114 B (ITU-R BT.601)."""
    if image.ndim == 2:
        return image.astype(np.float32)
    return image.astype(np.float32) @ np.array(LUMA, np.float32)


def read_probability(path: Path | str) -> np.ndarray:
    """Read a probability map as float32 [H, W] in 0..1.

    8-bit and 16-bit gray images hold probability 1 as their largest possible value (255, 65535), float images
    hold probabilities as they are. Raises InputError as `mclc_gpu.data.images.read_image` does, and for
    colour images and floats beyond 0..1.
    """
    pixels = read_image(path)
    if pixels.ndim != 2:
        raise InputError(f"{path}: a colour image is no probability map; give gray images of 8 or 16 bits")
    if pixels.dtype != np.float32:
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(
            f"{path}: its values run from {pixels.min():g} to {pixels.max():g}; probabilities are 0 to 1"
        )
    return pixels


Colour = tuple[int, int, int]
MASK: Colour = (255, 176, 0)


def stretched(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] over the full range of gray, from the window's darkest value to its brightest."""
    values = image.astype(np.float64)
    low, high = values.min(), values.max()
    gray = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    if gray.ndim == 2:
        gray = np.repeat(gray[:, :, None], 3, axis=2)
    return np.rint(gray * 255).astype(np.uint8)
