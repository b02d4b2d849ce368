"""A server of `annotate` in a process of its own, and hands that use its page in a real browser."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect
from scipy import ndimage

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60  # for a server to start, or the page to show something, on a busy machine


def browser() -> str | None:
    """Return the path of a browser that Playwright can drive: $MCLC_BROWSER, or an installed Chromium."""
    return os.environ.get("MCLC_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """`mclc-gpu annotate` on a folder, on one port over all its starts."""

    def __init__(self, images: Path, out: Path, *options: str) -> None:
        self.out = out
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/"
        places = ["--images", images, "--out", out, "--port", self.port]
        self._argv = [sys.executable, "-m", "mclc_gpu", "annotate", *map(str, places), *options]
        self._log = out.parent / f"{out.name}.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        end = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(self.address + "api/session", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the server at once, as `kill -9` does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Hands:
    """Mouse and keyboard on the page; they know of it only what it shows."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.wait_text("#image-number", "of")
        self.wait_saved()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait_text(self, selector: str, pattern: str) -> None:
        """Wait until an element's text matches a regular expression."""
        expect(self.page.locator(selector)).to_have_text(re.compile(pattern), timeout=1000 * SECONDS)

    def wait_saved(self) -> None:
        self.wait_text("#saved", "^All changes saved$")

    def wait_targets(self, count: int) -> None:
        self.wait_text("#targets-count", f"^{count}$")
        self.wait_saved()

    def cursor(self) -> tuple[int, int]:
        """Return the pixel that the footer names."""
        x, y = re.findall(r"-?\d+", self.text("#cursor-place"))
        return int(x), int(y)

    def point_at(self, x: int, y: int) -> tuple[float, float]:
        """Move the mouse until the footer names a pixel, which must be in view; return the mouse's place."""
        box = self.page.locator("#marks").bounding_box()
        left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for _ in range(12):
            shown = self.pixel_at(left, top)
            if shown == (x, y):
                return left, top
            scale = self.scale()
            left, top = left + (x - shown[0]) * scale, top + (y - shown[1]) * scale
        raise AssertionError(f"the mouse is at {shown}, not at {(x, y)}")

    def click(self, x: int, y: int) -> None:
        """Zoom in on a pixel with the wheel, and click it."""
        self.press("0")
        self.point_at(x, y)
        for _ in range(3):
            self.page.mouse.wheel(0, -120)
            self.page.evaluate("new Promise(requestAnimationFrame)")
        self.page.mouse.click(*self.point_at(x, y))

    def walk_to(self, x: int, y: int) -> None:
        """Move the cursor to a pixel with the arrow keys."""
        here = self.cursor()
        for by, keys in zip((x - here[0], y - here[1]), (("Right", "Left"), ("Down", "Up")), strict=True):
            arrow = "Arrow" + keys[by < 0]
            far, near = divmod(abs(by), 10)
            self.press(*[f"Shift+{arrow}"] * far, *[arrow] * near)
        assert self.cursor() == (x, y)

    def suggestion(self) -> tuple[int, int]:
        """Wait for a suggestion; return its place to the pixel."""
        self.wait_text("#suggestion-text", "^Next:")
        x, y = re.findall(r"[xy] ([\d.]+)", self.text("#suggestion-text"))
        return round(float(x)), round(float(y))

    def area(self) -> int:
        """Return the pixels of the selected target's mask."""
        return int(self.text("#target-area").split()[0])

    def tab_to(self, name: str) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(80):
            if self.page.evaluate("document.activeElement.id") == name:
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not reach {name}")

    def export(self) -> None:
        """Write the output with the Export button, and wait for it."""
        self.page.click("#export")
        self.page.click("#export-start")
        self.wait_exported()

    def wait_exported(self) -> None:
        expect(self.page.locator("#export-progress")).to_have_js_property("value", 1, timeout=1000 * SECONDS)
        expect(self.page.locator("#export-start")).to_be_enabled()

    def brightest_spot(self) -> tuple[float, float]:
        """Return where on the screen the image is brightest, over about three of its pixels."""
        self.page.wait_for_timeout(300)  # tiles come, and are drawn
        box = self.page.locator("#marks").bounding_box()
        shot = Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("L")
        gray = ndimage.uniform_filter(np.asarray(shot, float), 3 * self.scale())
        top, left = np.unravel_index(gray.argmax(), gray.shape)
        return box["x"] + float(left), box["y"] + float(top)

    def pixel_at(self, left: float, top: float) -> tuple[int, int]:
        """Move the mouse to a place of the screen; return the pixel there."""
        self.page.mouse.move(left, top)
        self.page.evaluate("new Promise(requestAnimationFrame)")
        return self.cursor()

    def scale(self) -> float:
        """Return the screen pixels of an image pixel."""
        return float(self.text("#zoom-value").split()[0]) / 100
