"""Images and masks of every kind of file in the field's data sets, and damaged ones."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mclc_gpu.data.images import image_size, network_levels, read_image, read_mask, read_truth
from mclc_gpu.data.names import find_files, stem_of
from mclc_gpu.errors import InputError

GRAY = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8
COLOR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=2)
DEEP = (np.arange(6 * 5, dtype=np.uint16).reshape(6, 5) * 2113) + 7


def one_line(error):
    return "\n" not in str(error.value)


def refusal(read, path):
    """Return the message of the InputError that reading raises; None if the file is read."""
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


def deep_png(pixels, *, filters, interlace=0):
    """Return a 16-bit PNG of [H, W, C] whose rows are filtered by the given types (PNG specification)."""
    height, width, channels = pixels.shape
    bpp = 2 * channels
    raw = pixels.astype(">u2").view(np.uint8).reshape(height, width * bpp).astype(int)
    body = b""
    above = np.zeros(width * bpp, int)
    for row, kind in zip(raw, filters, strict=True):
        left = np.concatenate([np.zeros(bpp, int), row[:-bpp]])
        corner = np.concatenate([np.zeros(bpp, int), above[:-bpp]])
        estimate = left + above - corner
        distances = np.stack([abs(estimate - left), abs(estimate - above), abs(estimate - corner)])
        paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
        guess = [0 * row, left, above, (left + above) // 2, paeth][kind]
        body += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    color = {2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, interlace)),
        (b"IDAT", zlib.compress(body)[:9]),
        (b"IDAT", zlib.compress(body)[9:]),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_gray_and_color_keep_their_numbers(tmp_path, suffix):
    for name, pixels in (("gray", GRAY), ("color", COLOR)):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(pixels).save(path)
        read = read_image(path)
        assert read.dtype == np.uint8
        assert read.flags.writeable
        np.testing.assert_array_equal(read, pixels)
        assert image_size(path) == (6, 5)


def test_jpeg(tmp_path):
    flat = np.full((16, 24), 90, np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (16, 24)
    assert abs(read.astype(int) - 90).max() <= 2
    assert image_size(tmp_path / "a.jpg") == (16, 24)


def test_equal_channels_collapse(tmp_path):
    Image.fromarray(np.stack([GRAY] * 3, axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), GRAY)


def test_alpha_is_dropped(tmp_path):
    alpha = 255 - GRAY
    Image.fromarray(np.dstack([COLOR, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([GRAY, alpha])).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), COLOR)
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), GRAY)


def test_palette_is_expanded(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.frombytes("P", (2, 2), indices.tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "P"
    table = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), table[indices])


def test_one_bit_becomes_0_and_255(tmp_path):
    bits = GRAY > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), bits * np.uint8(255))


def test_16_bit_gray(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "png.png")
    tifffile.imwrite(tmp_path / "little.tif", DEEP)
    tifffile.imwrite(tmp_path / "big.tif", DEEP, byteorder=">")
    tifffile.imwrite(tmp_path / "bigtiff.tif", DEEP, bigtiff=True)
    Image.fromarray(DEEP).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    for path in tmp_path.iterdir():
        read = read_image(path)
        assert read.dtype == np.uint16
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, DEEP, err_msg=path.name)
        assert image_size(path) == (6, 5)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_color_tiff(tmp_path, planar):
    pixels = np.stack([DEEP, DEEP[::-1], DEEP // 2], axis=2)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)
    assert image_size(tmp_path / "a.tif") == (6, 5)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_color_png_keeps_all_bits(tmp_path, channels):
    pixels = np.stack([DEEP, DEEP[::-1] ^ 0x1234, DEEP // 3, DEEP], axis=2)[:, :, :channels]
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(pixels, filters=[1, 2, 3, 4, 0, 4]))
    with Image.open(path) as witness:  # the file is a valid PNG, and the upper bytes are these
        upper = np.asarray(witness)
        np.testing.assert_array_equal(upper[:, :, [0, 3]] if channels == 2 else upper, pixels >> 8)
    read = read_image(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, pixels[:, :, 0] if channels == 2 else pixels[:, :, :3])


def test_16_bit_color_png_damaged_or_interlaced(tmp_path):
    pixels = np.stack([DEEP, DEEP + 1, DEEP + 2], axis=2)
    path = tmp_path / "a.png"
    whole = deep_png(pixels, filters=[0] * 6)
    path.write_bytes(deep_png(pixels, filters=[0] * 6, interlace=1))
    with pytest.raises(InputError, match=r"a\.png: interlaced"):
        read_image(path)
    for length in (30, len(whole) // 2, len(whole) - 16):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.png") as error:
            read_image(path)
        assert one_line(error)


def test_other_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "float.tif", (GRAY / 7).astype(np.float32))
    tifffile.imwrite(tmp_path / "double.tif", GRAY / 7)
    tifffile.imwrite(tmp_path / "negative.tif", GRAY.astype(np.int16) - 100)
    tifffile.imwrite(tmp_path / "wide.tif", DEEP.astype(np.int32))
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif"), (GRAY / 7).astype(np.float32))
    np.testing.assert_array_equal(read_image(tmp_path / "double.tif"), (GRAY / 7).astype(np.float32))
    np.testing.assert_array_equal(read_image(tmp_path / "negative.tif"), GRAY.astype(np.float32) - 100)
    wide = read_image(tmp_path / "wide.tif")
    assert wide.dtype == np.uint16
    np.testing.assert_array_equal(wide, DEEP)


def test_white_is_zero_is_turned_round(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", GRAY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), 65535 - DEEP)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), 255 - GRAY)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_float_images_must_be_finite(tmp_path, bad):
    pixels = GRAY.astype(np.float64)
    pixels[2, 3] = bad
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(InputError, match=r"a\.tif: 1 pixels are NaN"):
        read_image(tmp_path / "a.tif")


def test_pages_are_not_dropped_silently(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([DEEP, DEEP]), photometric="minisblack")
    with pytest.raises(InputError, match=r"a\.tif: the file holds 2 pages"):
        read_image(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(DEEP)
        tiff.write(DEEP[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), DEEP)


def test_bad_files_name_themselves(tmp_path):
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(stored, "png")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(stored.getvalue()[:600])
    (tmp_path / "folder.png").mkdir()
    tifffile.imwrite(tmp_path / "whole.tif", np.tile(DEEP, (9, 9)))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:900])
    for name in ("zero.png", "text.png", "cut.png", "folder.png", "missing.png", "cut.tif"):
        with pytest.raises(InputError, match=name) as error:
            read_image(tmp_path / name)
        assert one_line(error)
    for name in ("zero.png", "text.png", "folder.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            image_size(tmp_path / name)


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*\0\0\0\x08", b"BM", b"\xff\xd8\xff\xe0"]),
    st.binary(max_size=200),
)
def test_random_bytes_raise_input_errors_only(tmp_path_factory, magic, body):
    path = tmp_path_factory.getbasetemp() / "random.png"
    path.write_bytes(magic + body)
    for read in (read_image, image_size):
        message = refusal(read, path)
        assert message is None or ("random.png" in message and "\n" not in message)


@given(st.integers(0, 400), st.integers(0, 255))
def test_damaged_deep_png_raises_input_errors_only(tmp_path_factory, at, value):
    data = bytearray(deep_png(np.stack([DEEP, DEEP + 1, DEEP + 2], axis=2), filters=[4] * 6))
    data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(bytes(data))
    message = refusal(read_image, path)
    assert message is None or "damaged.png" in message


@pytest.mark.parametrize(
    ("stored", "true"),
    [
        pytest.param([[0, 127, 128, 255]], [[0, 0, 1, 1]], id="gray-levels"),
        pytest.param([[0, 1, 1, 0]], [[0, 1, 1, 0]], id="0/1"),
        pytest.param([[0, 0, 0, 0]], [[0, 0, 0, 0]], id="empty"),
        pytest.param([[0, 2, 2, 0]], [[0, 1, 1, 0]], id="0/2"),
        pytest.param([[0, 127, 0, 0]], [[0, 1, 0, 0]], id="0/127"),
        pytest.param([[255, 255, 255, 255]], [[1, 1, 1, 1]], id="full"),
    ],
)
def test_mask_values(tmp_path, stored, true):
    Image.fromarray(np.array(stored, np.uint8)).save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png", (1, 4))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, np.array(true, bool))


@pytest.mark.parametrize("stored", [[0, 1, 2, 0], [0, 38, 75, 113], [2, 2, 2, 2]])
def test_masks_of_class_numbers_are_refused(tmp_path, stored):
    Image.fromarray(np.array([stored], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match=rf"a\.png: the mask holds the values {stored[0]}.*save targets as 255"
    ):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("top", [1023, 4095, 32767])
def test_masks_of_fewer_than_16_bits(tmp_path, top):
    Image.fromarray(np.array([[0, top, 0, top]], np.uint16)).save(tmp_path / "two.png")
    Image.fromarray(np.array([[0, top, top // 4, top - 1]], np.uint16)).save(tmp_path / "many.png")
    assert read_mask(tmp_path / "two.png").tolist() == [[False, True, False, True]]
    assert read_mask(tmp_path / "many.png").tolist() == [[False, True, False, True]]


def test_true_masks_that_cover_the_image_are_refused(tmp_path):
    mask = np.full((10, 10), 255, np.uint8)
    mask[4:6, 4:6] = 0
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").sum() == 96
    with pytest.raises(InputError, match=r"a\.png: 96% of the image are target; invert the mask"):
        read_truth(tmp_path / "a.png", (10, 10))
    Image.fromarray(np.random.default_rng(0).integers(0, 160, (20, 20)).astype(np.uint8)).save(
        tmp_path / "b.png"
    )
    with pytest.raises(InputError, match=r"b\.png: many gray levels, as of an image"):
        read_truth(tmp_path / "b.png")


def test_uncompressed_bits_in_tiff(tmp_path):
    true = np.zeros((5, 13), bool)
    true[2, 3:6] = True
    tifffile.imwrite(tmp_path / "a.tif", true, photometric="minisblack")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), true)
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-4])
    with pytest.raises(InputError, match="truncated"):
        read_mask(tmp_path / "b.tif")


def test_mask_kinds(tmp_path):
    true = GRAY > 100
    Image.fromarray(true).save(tmp_path / "bits.png")
    Image.fromarray(true * np.uint16(65535)).save(tmp_path / "deep.png")
    Image.fromarray(true * np.uint16(255)).save(tmp_path / "deep255.png")
    Image.fromarray(np.dstack([true * np.uint8(200), 0 * GRAY, 0 * GRAY])).save(tmp_path / "red.png")
    tifffile.imwrite(tmp_path / "float.tif", np.where(true, 0.6, 0.4).astype(np.float32))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_mask(path), true, err_msg=path.name)


def test_mask_of_another_size(tmp_path):
    Image.fromarray(np.zeros((400, 592), np.uint8)).save(tmp_path / "Misc_111.png")
    with pytest.raises(InputError, match=r"Misc_111\.png: the mask is 592x400 but its image is 325x220"):
        read_mask(tmp_path / "Misc_111.png", (220, 325))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Misc_1.png", "Misc_1"),
        ("Misc_1", "Misc_1"),
        ("masks/Misc_1_pixels0.png", "Misc_1"),
        ("..\\images\\frame.001.TIF", "frame.001"),
        ("frame.001", "frame.001"),
        ("_pixels0.png", "_pixels0"),
    ],
)
def test_stems(name, stem):
    assert stem_of(name) == stem


def test_find_files(tmp_path):
    for name in ("b.png", "a_pixels0.PNG", "c.jpeg", "a.xml", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_files(tmp_path)
    assert {stem: path.name for stem, path in found.items()} == {
        "a": "a_pixels0.PNG",
        "b": "b.png",
        "c": "c.jpeg",
    }
    assert list(found) == ["a", "b", "c"]
    assert list(find_files(tmp_path, (".XML",))) == ["a"]


def test_find_files_refuses(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.png"):
        find_files(tmp_path)
    with pytest.raises(InputError, match="nowhere: cannot be read as a folder"):
        find_files(tmp_path / "nowhere")
    (tmp_path / "a.png").touch()
    (tmp_path / "a.tif").touch()
    with pytest.raises(InputError, match=r"a\.png and a\.tif are both named 'a'"):
        find_files(tmp_path)


def test_nuaa_images_and_masks(nuaa):
    images, masks = find_files(nuaa / "images"), find_files(nuaa / "masks")
    assert len(images) == 427
    assert list(images) == list(masks)
    kinds = set()
    for stem in list(images)[::9]:
        pixels = read_image(images[stem])
        kinds.add(pixels.ndim)
        assert pixels.dtype == np.uint8
        assert image_size(images[stem]) == pixels.shape[:2]
        assert 0 < read_mask(masks[stem], pixels.shape[:2]).mean() < 0.1
    assert kinds == {2, 3}


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_levels_leave_out_bad_pixels(dtype):
    rng = np.random.default_rng(0)
    clean = rng.integers(7000, 7100, (40, 50)).astype(dtype)
    clean[20:23, 30:33] += 900
    levels = network_levels(clean, 1)
    for row, column, value in (
        (3, 4, 0),
        (0, 0, 16383),
        (39, 7, 65535),
        (np.s_[:], 0, 0),
        (17, np.s_[:], 12000),
    ):
        broken = clean.copy()
        broken[row, column] = value
        found = network_levels(broken, 1)
        good = broken == clean
        np.testing.assert_allclose(found[0][good], levels[0][good], atol=4)
        assert found.min() >= 0
        assert found.max() <= 255
    full = network_levels(broken, 1, robust=False)
    assert (full.min(), full.max()) == (0, 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("value", [0, 65535])
@pytest.mark.parametrize(
    "places",
    [
        [np.s_[:, 10:12]],
        [np.s_[:5], np.s_[-5:], np.s_[:, :3], np.s_[:, -3:]],
        [np.s_[:, :20]],
        [np.s_[30:36, 5:40]],
    ],
    ids=["two columns", "border", "part", "block"],
)
def test_levels_leave_out_fill(dtype, value, places):
    rng = np.random.default_rng(0)
    clean = rng.integers(7000, 7100, (40, 50)).astype(dtype)
    clean[20:23, 30:33] += 900
    broken = clean.copy()
    for place in places:
        broken[place] = value
    broken[25, 25] = 40000  # a hot pixel beside it
    good = broken == clean
    levels, found = network_levels(clean, 1)[0], network_levels(broken, 1)[0]
    np.testing.assert_allclose(found[good], levels[good], atol=4)
    assert found[~good & (broken == value)].max() < 20, "fill looks like the background"


def test_levels_of_constant_parts_that_are_no_fill():
    image = np.zeros((40, 50), np.uint16)  # most of it: nothing there but a target
    image[20:23, 30:33] = 900
    image[21, 31] = 1000
    assert network_levels(image, 1)[0, 21, 31] > 250
    assert network_levels(image, 1)[0, 0, 0] == 0
    saturated = np.random.default_rng(0).integers(7000, 7100, (40, 50)).astype(np.uint16)
    saturated[20:24, 30:34] = 16383  # a target: fewer pixels than a line
    levels = network_levels(saturated, 1)[0]
    assert levels[21, 31] == 255
    assert levels[0].max() < 5
    sky = saturated.clip(7050, None)  # half of it in the dark, without a gap
    np.testing.assert_array_equal(network_levels(sky, 1)[0] == 0, sky == 7050)


def test_levels_of_one_bright_pixel_on_nothing():
    image = np.full((9, 9), 100, np.uint16)
    image[4, 4] = 1000
    assert network_levels(image, 1)[0, 4, 4] == 255
    assert network_levels(image[3:5, 3:5], 1).max() == 255


def test_arrays_and_other_formats(tmp_path):
    from scipy.io import savemat

    np.save(tmp_path / "a.npy", DEEP)
    savemat(tmp_path / "b.mat", {"frame": DEEP, "number": 3})
    Image.fromarray(GRAY).save(tmp_path / "c.pgm")
    Image.fromarray(GRAY).save(tmp_path / "d.jp2", irreversible=False)
    for name, pixels in (("a.npy", DEEP), ("b.mat", DEEP), ("c.pgm", GRAY), ("d.jp2", GRAY)):
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels, err_msg=name)
        assert image_size(tmp_path / name) == (6, 5)
    assert list(find_files(tmp_path)) == ["a", "b", "c", "d"]


def test_arrays_that_are_no_images(tmp_path):
    from scipy.io import savemat

    np.save(tmp_path / "a.npy", np.array([{}, None]), allow_pickle=True)
    savemat(tmp_path / "b.mat", {"one": DEEP, "two": DEEP})
    for name, why in (("a.npy", "allow_pickle"), ("b.mat", "holds 2 arrays that could be an image")):
        with pytest.raises(InputError, match=rf"{name}: .*{why}"):
            read_image(tmp_path / name)
