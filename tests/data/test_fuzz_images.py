"""Damaged image files and archives are read or refused with a one-line message."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from fuzzing import damaged, only_input_errors, rngs
from PIL import Image

from mclc_gpu.data.files import read_file, write_archive
from mclc_gpu.data.images import image_size, read_image, read_mask
from mclc_gpu.data.names import find_files
from mclc_gpu.errors import InputError

RNG = np.random.default_rng(0)
GRAY, COLOR = RNG.integers(0, 255, (11, 13), np.uint8), RNG.integers(0, 255, (11, 13, 3), np.uint8)


def pillow(pixels, form, mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(width, height, rows):
    """Return a PNG file of 16-bit RGB whose header states this size."""
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


FILES = {
    "gray.png": pillow(GRAY, "PNG"),
    "color.png": pillow(COLOR, "PNG"),
    "palette.png": pillow(COLOR, "PNG", "P"),
    "bits.png": pillow(GRAY, "PNG", "1"),
    "alpha.png": pillow(COLOR, "PNG", "RGBA"),
    "gray16.png": pillow(GRAY.astype(np.uint16) * 200, "PNG"),
    "color16.png": deep_png(13, 11, (b"\0" + RNG.bytes(78)) * 11),
    "gray.tif": tiff(GRAY),
    "gray16.tif": tiff(GRAY.astype(np.uint16)),
    "float.tif": tiff(GRAY.astype(np.float32), compression="zlib"),
    "tiled.tif": tiff(np.tile(COLOR.astype(np.uint16), (3, 3, 1)), tile=(16, 16), compression="zlib"),
    "planes.tif": tiff(
        np.moveaxis(COLOR.astype(np.uint16), 2, 0), planarconfig="separate", photometric="rgb"
    ),
    "big.tif": tiff(GRAY.astype(np.int32), bigtiff=True),
    "lzw.tif": pillow(GRAY, "TIFF", compression="tiff_lzw"),
    "fax.tif": pillow(GRAY, "TIFF", "1", compression="group4"),
    "cmyk.tif": pillow(COLOR, "TIFF", "CMYK"),
    "gray.bmp": pillow(GRAY, "BMP"),
    "color.bmp": pillow(COLOR, "BMP"),
    "gray.jpg": pillow(GRAY, "JPEG"),
    "cmyk.jpg": pillow(COLOR, "JPEG", "CMYK", progressive=True),
}


@pytest.mark.filterwarnings("ignore")  # of decoders, about what is wrong with a file that they read
@pytest.mark.parametrize("name", FILES)
def test_damaged_images(tmp_path, name):
    path = tmp_path / name
    others = list(FILES.values())
    read = 0
    for rng in rngs(40):
        path.write_bytes(damaged(FILES[name], rng, others[rng.integers(len(others))]))
        for use in (read_image, read_mask, image_size):
            read += only_input_errors(lambda use=use: use(path))
    path.write_bytes(FILES[name])
    assert read_image(path).shape[:2] == image_size(path)
    assert read > 0  # some damage is none to an image: what this test tries is not all noise


@pytest.mark.filterwarnings("ignore")
def test_damaged_archives(tmp_path):
    path = tmp_path / "a.tar"
    members = [(name, FILES[name]) for name in ("gray.png", "float.tif", "gray.bmp")]
    write_archive(path, [*members, ("long" * 60 + ".png", FILES["bits.png"])])
    whole = path.read_bytes()

    def use():
        for file in find_files(tmp_path).values():
            read_file(file)

    found = 0
    for rng in rngs(300):
        path.write_bytes(damaged(whole, rng, whole))
        found += only_input_errors(use)
    assert found > 0


LONG = 1_000_000_000


def claiming():
    """Yield small files that claim to hold 10^9 numbers or more."""
    start = b"\x89PNG\r\n\x1a\n"
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    yield "wide.png", start + chunk(b"IHDR", struct.pack(">IIBBBBB", LONG, 1, 8, 0, 0, 0, 0)) + rows
    yield "large.png", start + chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)) + rows
    yield "deep.png", deep_png(30_000, 40_000, bytes(1000))
    for name in ("gray16.tif", "float.tif"):
        data = bytearray(FILES[name])
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            for tag in ("ImageWidth", "ImageLength"):
                own = file.pages[0].tags[tag]
                data[own.valueoffset : own.valueoffset + 2] = struct.pack("<H", 50_000)
        yield name, bytes(data)
    bmp = bytearray(FILES["gray.bmp"])
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    yield "large.bmp", bytes(bmp)
    jpeg = bytearray(FILES["gray.jpg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    yield "large.jpg", bytes(jpeg)
    yield "bomb.png", deep_png(20_000, 20_000, bytes(20_000 * 1000))


@pytest.mark.parametrize(
    ("name", "data"), list(claiming()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_sizes_that_are_only_claimed_take_no_memory(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=name):
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


def test_a_member_that_claims_more_than_the_archive_holds(tmp_path):
    path = tmp_path / "a.tar"
    for claimed in (b"\x80" + (1 << 60).to_bytes(11, "big"), b"\xff" * 11 + b"\0", b"77777777777\0"):
        for kind in b"0", b"L", b"x":  # a file, a long name, attributes
            write_archive(path, [("x.png", FILES["gray.png"]), ("y.png", FILES["gray.png"])])
            data = bytearray(path.read_bytes())
            data[124:136], data[156:157] = claimed, kind
            data[148:156] = b" " * 8
            data[148:156] = b"%06o\0 " % sum(data[:512])
            path.write_bytes(data)
            with pytest.raises(InputError, match=r"a\.tar"):
                find_files(tmp_path)


def test_formats_that_run_programs_are_not_read(tmp_path):
    for name, start in (
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("b.png", b"GIF89a"),
    ):
        (tmp_path / name).write_bytes(start + bytes(200))
        with pytest.raises(InputError, match="not an image of a known format"):
            read_image(tmp_path / name)
