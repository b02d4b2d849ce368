"""The page of `annotate` in a real browser, by mouse and keyboard; its output beside that of `label`."""

import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mclc_gpu.data.names import find_files
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.labels.config import LabelOptions
from mclc_gpu.labels.run import label_dataset

for package in ("starlette", "uvicorn"):
    pytest.importorskip(package, reason="pip install 'mclc-gpu[annotate]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from browsing import SECONDS, Hands, Server, browser  # noqa: E402 (after the packages that it needs)

if browser() is None:
    pytest.skip("no Chromium found: install it or set MCLC_BROWSER to its path", allow_module_level=True)

Click = tuple[str, int, int]
WIDE = (90, 160)  # x and y of the target
APART = 8  # pixels; a click nearer to another may select its target


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        # Root, as in containers, cannot use Chromium's sandbox; the page comes from this machine.
        started = driver.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def hands(chromium) -> Iterator[Hands]:
    """Hands on a new page, on which no script may fail."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield Hands(page)
    context.close()
    assert errors == []


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five synthetic frames with true masks."""
    folder = tmp_path_factory.mktemp("frames")
    write_dataset(folder, 5, seed=11)
    return folder


@pytest.fixture(scope="module")
def shared(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Server of the frames, which tests use that keep to their own images, and of one frame of 14 bits."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(frames / "images", folder / "images")
    Image.fromarray(wide_frame()).save(folder / "images" / "wide.png")
    server = Server(folder / "images", folder / "out", "--suggest", "tophat")
    yield server
    server.kill()


def wide_frame() -> np.ndarray:
    """Draw a frame of 14 bits, with a target 60 counts above a slope at WIDE: less than a level of 8 bits."""
    rows, columns = np.mgrid[:384, :384]
    target = 60 * np.exp(-((columns - WIDE[0]) ** 2 + (rows - WIDE[1]) ** 2) / 4)
    noise = np.random.default_rng(3).normal(0, 3, rows.shape)
    slope = 5000 * (columns / 384) * (0.75 + 0.25 * np.sin(rows / 60))
    return (1500 + slope + noise + target).astype(np.uint16)


def centers(mask: Path) -> list[tuple[int, int]]:
    """Return the middle pixels of a mask's targets, x and y."""
    found, count = ndimage.label(np.asarray(Image.open(mask)) > 0, np.ones((3, 3)))
    places = ndimage.center_of_mass(found > 0, found, range(1, count + 1))
    return [(round(x), round(y)) for y, x in places]


def assert_same(out: Path, expected: Path) -> None:
    """Compare the files of two label runs byte for byte, but for pictures and label.json, with its times."""
    files = [expected / "points.csv", expected / "targets.csv"]
    files += sorted([*expected.glob("masks/*.png"), *expected.glob("tpm/*.png")])
    names = {path.relative_to(expected) for path in files}
    written = [out / "points.csv", out / "targets.csv", *out.glob("masks/*.png"), *out.glob("tpm/*.png")]
    assert {path.relative_to(out) for path in written} == names
    for name in sorted(names):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def clicks_in(out: Path) -> list[Click]:
    """Return the clicks that were written, to the whole pixel."""
    with (out / "clicks.csv").open(newline="") as file:
        return [
            (row["image"], round(float(row["x"])), round(float(row["y"]))) for row in csv.DictReader(file)
        ]


def click_while_away(hands: Hands, server: Server, x: int, y: int) -> None:
    """Click while the server is killed; the click is kept, and sent to the next one."""
    server.kill()
    hands.click(x, y)
    hands.wait_text("#banner-text", "1 change kept here")
    hands.wait_text("#saved", "^1 change not saved yet$")
    server.start()
    hands.wait_text("#saved", "^All changes saved$")
    hands.page.wait_for_selector("#banner", state="hidden")


def correct_and_undo(hands: Hands) -> None:
    """Make the selected mask larger, add a pixel by brush, and take both back."""
    area = hands.area()
    x, y = hands.cursor()
    hands.press("]")
    hands.wait_text("#target-corrected", "^other candidate$")
    hands.wait_saved()
    larger = hands.area()
    assert larger > area
    hands.press("b")
    hands.page.mouse.click(*hands.point_at(x + 9, y))
    hands.wait_text("#target-corrected", "^by brush$")
    hands.wait_saved()
    assert hands.area() == larger + 1
    hands.press("Control+z")
    hands.wait_text("#target-area", f"^{larger} px$")
    hands.press("u")
    hands.wait_text("#target-area", f"^{area} px$")
    hands.wait_text("#target-corrected", "^automatic$")
    hands.press("v")


def annotate(hands: Hands, server: Server, masks: dict[str, Path]) -> list[Click]:
    """Annotate images by mouse, the server killed in the middle; return the clicks in their order.

    The first target is a suggestion that is accepted.
    """
    clicks: list[Click] = []
    names = list(masks)
    hands.open(server.address)
    for number, name in enumerate(names):
        hands.wait_text("#image-name", f"^{name}$")
        here: list[tuple[int, int]] = []
        if number == 0:
            here.append(hands.suggestion())
            hands.press("a")
            hands.wait_targets(1)
        for x, y in centers(masks[name]):
            if any(math.dist((x, y), other) < APART for other in here):
                continue
            if number == len(names) // 2 and not here:
                click_while_away(hands, server, x, y)
            else:
                hands.click(x, y)
            here.append((x, y))
            hands.wait_targets(len(here))
        if number == 1:
            correct_and_undo(hands)
        clicks += [(name, x, y) for x, y in here]
        hands.press("f")  # done; the next one opens
    hands.wait_text("#list-count", f"^{len(names)} of {len(names)} done$")
    hands.export()
    return clicks


def assert_output_of_label(hands: Hands, images: Path, masks: Path, out: Path) -> None:
    """Annotate a folder, and compare with a label run of the same clicks."""
    mask_files = find_files(masks)
    server = Server(images, out, "--suggest", "tophat")
    try:
        clicks = annotate(hands, server, {name: mask_files[name] for name in find_files(images)})
    finally:
        server.kill()
    first, *written = clicks_in(out)
    assert math.dist(first[1:], clicks[0][1:]) <= 1  # the page shows a digit less
    assert written == clicks[1:]
    expected = out.with_name("expected")
    label_dataset(LabelOptions(images=images, points=out / "clicks.csv", out=expected, device="cpu"))
    assert_same(out, expected)


def test_output_equals_that_of_label(hands: Hands, frames: Path, tmp_path: Path) -> None:
    assert_output_of_label(hands, frames / "images", frames / "masks", tmp_path / "out")


@pytest.mark.slow
def test_output_equals_that_of_label_on_real_frames(hands: Hands, nuaa: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((nuaa / "images").iterdir())[:30]:
        shutil.copy(path, images)
    assert_output_of_label(hands, images, nuaa / "masks", tmp_path / "out")


def test_keyboard_alone(hands: Hands, frames: Path, shared: Server) -> None:
    (x, y), *_ = centers(frames / "masks" / "synthetic_00000.png")
    hands.open(shared.address)
    hands.walk_to(x, y)
    hands.press("Enter")
    hands.wait_targets(1)
    area = hands.area()
    hands.press("]", "r")
    hands.wait_saved()
    assert hands.area() == area
    hands.press("Delete")
    hands.wait_targets(0)
    hands.press("u")
    hands.wait_targets(1)
    hands.press(".", "c")
    hands.wait_saved()
    assert hands.page.get_by_role("radio", name="Point").is_checked()
    hands.press("Escape")
    hands.walk_to(x - 30, y)  # a box: Enter at two corners
    hands.press("w", "Enter")
    hands.walk_to(x - 26, y + 4)
    hands.press("Enter")
    hands.wait_targets(2)
    hands.press("u")
    hands.wait_targets(1)
    hands.press("?")
    assert hands.page.get_by_role("dialog", name="Keys and mouse").is_visible()
    hands.press("Escape", "f")
    hands.wait_text("#image-name", "^synthetic_00001$")
    suggested = hands.suggestion()
    hands.press("a")
    hands.wait_targets(1)
    left = int(hands.text("#suggestions-count"))
    hands.press("x")
    hands.wait_text("#suggestions-count", f"^{left - 1 or ''}$")
    hands.wait_targets(1)
    hands.tab_to("export")
    hands.press("Enter")
    hands.tab_to("export-start")
    hands.press("Enter")
    hands.wait_exported()
    first, second = clicks_in(shared.out)[:2]
    assert first == ("synthetic_00000", x, y)
    assert second[0] == "synthetic_00001"
    assert math.dist(second[1:], suggested) <= 1


def test_windows_see_each_other(hands: Hands, frames: Path, shared: Server) -> None:
    (x, y), *_ = centers(frames / "masks" / "synthetic_00003.png")
    address = shared.address + "#synthetic_00003"
    hands.open(address)
    other = Hands(hands.page.context.new_page())
    other.open(address)
    other.click(x, y)
    hands.wait_text("#targets-count", "^1$")
    hands.wait_text("#message", "Another window changed this image")


def test_a_target_that_8_bits_do_not_show(hands: Hands, shared: Server) -> None:
    hands.open(shared.address + "#wide")
    assert math.dist(hands.pixel_at(*hands.brightest_spot()), WIDE) > 20
    hands.press("l", "l")  # local contrast
    spot = hands.brightest_spot()
    assert math.dist(hands.pixel_at(*spot), WIDE) < 2
    hands.page.mouse.click(*spot)
    hands.wait_targets(1)
    assert 4 <= hands.area() <= 60
    hands.export()
    mask = np.asarray(Image.open(shared.out / "masks" / "wide.png"))
    assert mask[WIDE[1], WIDE[0]] == 255
