"""PNG files with several channels of 16 bits, of which Pillow keeps the upper 8 bits only."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mclc_gpu.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_NUMBERS = 1 << 28  # that a file may unfold to
_CHANNELS = {2: 3, 4: 2, 6: 4}  # PNG colour type -> channels: RGB, gray + alpha, RGBA


def is_deep_colour_png(head: bytes) -> bool:
    """Whether the first 26 bytes of a file are those of a 16-bit PNG with several channels."""
    return len(head) >= 26 and head.startswith(_SIGNATURE) and head[24] == 16 and head[25] in _CHANNELS


def decode_deep_colour_png(data: bytes) -> np.ndarray:
    """Decode a whole 16-bit RGB, RGBA or gray + alpha PNG file to uint16 [H, W, channels].

    PNG's row filters (PNG specification, chapter 9) work on each byte of a pixel apart from the others. So
    the 2C bytes of a pixel are 2C independent 8-bit gray images with the same filters, which Pillow undoes at
    full speed. Raises InputError for an interlaced, truncated or damaged file; the message does not name the
    file.
    """
    chunks = list(_chunks(data))
    width, height, _, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if interlaced:
        raise InputError("interlaced 16-bit colour PNG cannot be read; save it without interlacing")
    lanes = 2 * _CHANNELS[colour]
    if width * height * _CHANNELS[colour] > _MOST_NUMBERS:
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


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk of a PNG file, up to its end."""
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        crc = data[at + 8 + length : at + 12 + length]
        if crc != struct.pack(">I", zlib.crc32(name + body)):
            raise InputError("the file is truncated or damaged")
        yield name, body
        at += 12 + length


def _gray_png(width: int, height: int, filtered: bytes) -> bytes:
    """An 8-bit gray PNG file around rows that are filtered already."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered, 0)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
