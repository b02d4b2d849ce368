"""Generate synthetic infrared frames with targets and true masks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from mclc_gpu.data.annotations import CATEGORIES
from mclc_gpu.data.files import atomic_path
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.config import CATEGORY_AREAS


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a noise-free background: sky, clouds, sea under a horizon or ground, at random.

    Returns
    -------
    ndarray [height, width], float32
        0.02 to 0.98 on a full scale of 1.
    """
    kind = rng.choice(4, p=(0.30, 0.38, 0.20, 0.12))
    pixels = (_sky, _clouds, _sea, _ground)[kind](rng, height, width)
    return np.clip(ndimage.gaussian_filter(pixels, rng.uniform(0.5, 0.9)), 0.02, 0.98)


def draw_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw sensor noise, often smoothed by the camera, sometimes with stripes.

    Returns
    -------
    ndarray [height, width], float32
        Mean 0, standard deviation 0.3/255 to 2.8/255 on a full scale of 1.
    """
    sigma = math.exp(rng.uniform(math.log(0.3), math.log(2.5))) / 255
    noise = rng.standard_normal((height, width), dtype=np.float32)
    if rng.random() < 0.6:
        noise = ndimage.gaussian_filter(noise, rng.uniform(0.4, 0.9))
        noise /= noise.std()
    if rng.random() < 0.25:
        stripes = (1, width) if rng.random() < 0.7 else (height, 1)
        noise += 0.5 * rng.standard_normal(stripes, dtype=np.float32)
    return sigma * noise


def _fractal(
    rng: np.random.Generator, height: int, width: int, slope: float, stretch: float = 1, angle: float = 0
) -> np.ndarray:
    """Draw a random field of mean 0 and variance 1 whose power falls as 1/frequency**slope.

    Along the direction `angle` (radians from the x axis) structures are `stretch` times longer than across.
    """
    # The Fourier sum is periodic; cut from a larger field, opposite borders do not fit together.
    rows, columns = (fft.next_fast_len(side + side // 8, real=True) for side in (height, width))
    fy = fft.fftfreq(rows).astype(np.float32)[:, None]
    fx = fft.rfftfreq(columns).astype(np.float32)[None, :]
    along, across = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    power = along**2 * stretch + across**2 / stretch
    power[0, 0] = math.inf
    spectrum = fft.rfft2(rng.standard_normal((rows, columns), dtype=np.float32)) * power ** (-slope / 4)
    field = fft.irfft2(spectrum, (rows, columns))[:height, :width]
    return (field - field.mean()) / field.std()


def _soft_step(values: np.ndarray, width: float) -> np.ndarray:
    """Return values that rise from 0 to 1 around 0, over about `width`."""
    return 0.5 + 0.5 * np.tanh(2 * values / width)


def _axis(length: int) -> np.ndarray:
    """Return -1 to 1 over the pixels of one axis."""
    return np.linspace(-1, 1, length, dtype=np.float32)


def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a smooth gradient, darker or brighter towards a corner, with a trace of haze."""
    y, x = _axis(height)[:, None], _axis(width)[None, :]
    angle, bend = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
    ramp = x * math.cos(angle) + y * math.sin(angle)
    shade = rng.exponential(0.06) * (ramp + bend * ramp**2)
    haze = rng.uniform(0.002, 0.03) * _fractal(rng, height, width, rng.uniform(2.8, 3.6), rng.uniform(1, 3))
    return rng.uniform(0.2, 0.6) + np.clip(shade, -0.3, 0.3) + haze


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw one or two layers of clouds with soft, frayed edges over the sky, sometimes darker than it."""
    pixels = _sky(rng, height, width)
    for _ in range(rng.integers(1, 3)):
        stretch, angle = rng.uniform(1, 3), rng.normal(0, 0.3)
        shape = _fractal(rng, height, width, rng.uniform(3.0, 4.0), stretch, angle)
        body = _fractal(rng, height, width, rng.uniform(2.8, 3.6), stretch, angle)
        cover = _soft_step(shape - rng.uniform(-0.3, 1.4), rng.uniform(0.4, 2.5))
        sign = 1 if rng.random() < 0.8 else -1
        pixels = pixels + sign * cover * rng.gamma(1.5, 0.15) * (1 + 0.3 * body)
    return pixels


def _sea(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw sky with streaks above a horizon, waves below it, sometimes land between them."""
    horizon = height * rng.uniform(0.15, 0.7) + rng.normal(0, 0.01) * width * _axis(width)[None, :]
    below = np.arange(height, dtype=np.float32)[:, None] - horizon  # px, positive on the sea
    level = rng.uniform(0.2, 0.55)
    glow = rng.uniform(-0.1, 0.2) * np.exp(below / (height * rng.uniform(0.1, 0.5)))
    streaks = rng.uniform(0.01, 0.05) * _fractal(rng, height, width, 2.8, rng.uniform(4, 10))
    sky = level + np.where(below < 0, glow, 0) + streaks

    waves = _fractal(rng, height, width, rng.uniform(1.2, 2.2), rng.uniform(2, 8))
    # Waves shrink towards the horizon, and their contrast within a pixel with them.
    depth = np.clip(below / (0.5 * height), 0.15, 1)
    sea = level * rng.uniform(0.5, 1.3) + rng.uniform(0.01, 0.05) * depth * waves
    pixels = sky + (sea - sky) * _soft_step(below, 2)
    if rng.random() < 0.5:
        ridge = _fractal(rng, 16, width, 2.5)[8] * 0.4 + 1
        top = height * rng.uniform(0.01, 0.06) * np.clip(ridge, 0, None)
        land = _soft_step(below + top, 1.5) * _soft_step(-below, 1.5)
        texture = 0.06 * _fractal(rng, height, width, 2, 3)
        pixels = pixels + land * (rng.uniform(0.05, 0.35) + texture)
    return pixels


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw patches of vegetation and soil with fairly sharp borders."""
    pixels = rng.uniform(0.25, 0.5) + 0.025 * _fractal(rng, height, width, rng.uniform(2.2, 3.2))
    for _ in range(3):
        slope, stretch, angle = rng.uniform(2.8, 3.6), rng.uniform(1, 3), rng.uniform(0, math.pi)
        patch = _fractal(rng, height, width, slope, stretch, angle)
        pixels = pixels + rng.normal(0, 0.06) * _soft_step(patch - rng.uniform(-1, 1), rng.uniform(0.1, 0.5))
    return pixels


# A pixel is truth above this share of its target's peak contrast: annotators draw the edge there.
TRUTH_FRACTION = 1 / 3
# Full scale of the frames: 16-bit files hold the 14 bits of a usual infrared sensor.
FULL_SCALE = {8: 255, 16: 16383}
# Range of the visible true area in pixels: that of the category, without single pixels and very large areas.
AREAS = {
    category: (max(least, 2), min(most, 320))
    for category, (least, most) in zip(CATEGORIES, CATEGORY_AREAS, strict=True)
}

_SHARE = {"point": 0.15, "spot": 0.65, "extended": 0.20}
_COUNT_SHARE = (0.7, 0.2, 0.1)  # of frames with 1, 2, 3 targets
_BORDER_SHARE = 0.1
_ATTEMPTS = 200
_LEAST_SNR = 4
_BOX = 12  # half side of the box in which the background of the SNR is measured
_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Target:
    """One target of a scene.

    Attributes
    ----------
    x, y : float
        Centroid of the visible true pixels: column and row, pixel centers at integers.
    category : {"point", "spot", "extended"}
        By area: 2-9, 10-81, 82 and more pixels.
    area : int
        Number of visible true pixels.
    snr : float
        Peak contrast over the standard deviation of the frame without targets, noise included, in the box of
        25x25 px around the target, clipped to the frame.
    """

    x: float
    y: float
    category: str
    area: int
    snr: float


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A frame with its true mask.

    Attributes
    ----------
    image : ndarray [H, W], uint8 (0-255) or uint16 (0-16383)
    mask : ndarray [H, W], bool
        True on targets; each target is one 8-connected component, apart from all others.
    targets : tuple of Target
        In the requested order.
    """

    image: np.ndarray
    mask: np.ndarray
    targets: tuple[Target, ...]


def scene(
    seed: int,
    index: int,
    *,
    size: tuple[int, int] = (256, 256),
    bits: int = 8,
    targets: Sequence[str] | None = None,
    snr: float | None = None,
) -> Scene:
    """Draw one frame: sky, clouds, sea under a horizon or ground, with sensor noise and bright targets.

    Frame `index` of `seed` is the same whichever other frames are drawn. A pixel is true where the target's
    noise-free light exceeds a third of its own peak (`TRUTH_FRACTION`). Targets do not touch each other;
    about one in ten touches the border and is cut by it.

    Parameters
    ----------
    seed, index : int
        Not negative.
    size : (height, width)
        Pixels, each at least 16.
    bits : {8, 16}
    targets : sequence of str, optional
        Category of every target; None draws one to three of mixed categories.
    snr : float, optional
        Of every target, above 0. None draws peak contrasts as real frames have them, most of them an eighth
        to two thirds of the full scale. If the full scale leaves no room for a target, other places are
        tried, and at last it is made as bright as possible: `Target.snr` is the result.

    Returns
    -------
    Scene

    Raises
    ------
    InputError
        Arguments out of range, or targets that find no room.

    Examples
    --------
    >>> frame = scene(0, 0, size=(64, 64), targets=["spot"])
    >>> frame.image.shape, frame.targets[0].category, int(frame.mask.sum()) == frame.targets[0].area
    ((64, 64), 'spot', True)
    """
    _check(seed, index, size, bits, targets, snr)
    rng = np.random.default_rng([seed, index])
    background = draw_background(rng, *size)
    noise = draw_noise(rng, *size)
    if targets is None:
        count = rng.choice(len(_COUNT_SHARE), p=_COUNT_SHARE) + 1
        targets = rng.choice(list(_SHARE), size=count, p=list(_SHARE.values())).tolist()

    frame = background + noise
    light, mask, taken = np.zeros(size), np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    placed = []
    for category in targets:
        stamp = _place(rng, category, snr, background, frame, taken)
        light[stamp.at] += stamp.contrast * stamp.light
        mask[stamp.at] |= stamp.truth
        taken[stamp.at] |= stamp.footprint
        rows, columns = np.nonzero(stamp.truth)
        placed.append(
            Target(
                x=float(stamp.at[1].start + columns.mean()),
                y=float(stamp.at[0].start + rows.mean()),
                category=category,
                area=len(rows),
                snr=stamp.contrast / stamp.sigma,
            )
        )

    scale, dtype = FULL_SCALE[bits], np.uint8 if bits == 8 else np.uint16
    image = np.rint(np.clip(frame + light, 0, 1) * scale).astype(dtype)
    return Scene(image=image, mask=mask, targets=tuple(placed))


def hot_scene(seed: int, index: int, *, size: tuple[int, int] = (160, 160)) -> Scene:
    """Draw a frame with an aircraft that is dim but for one or two hot engines, which outshine it by far.

    Annotators who draw the whole aircraft want `--outline body`. True are the pixels of the body.

    Parameters
    ----------
    seed, index : int
        Not negative.
    size : (height, width)
        Pixels, each at least 64.

    Returns
    -------
    Scene
        8-bit, with one target.

    Examples
    --------
    >>> frame = hot_scene(0, 0)
    >>> frame.image.shape, frame.targets[0].category
    ((160, 160), 'extended')
    """
    if min(size) < 64:
        raise InputError(f"size {size[0]}x{size[1]} (height x width): give at least 64 px for each")
    rng = np.random.default_rng([seed, index])
    y, x = np.mgrid[: size[0], : size[1]]
    clouds = 0.02 * rng.random() * _fractal(rng, *size, 4.0)
    center, angle = [rng.uniform(25, side - 25) for side in size], rng.uniform(0, 2 * math.pi)
    length, width = rng.uniform(7, 13), rng.uniform(2.5, 4)
    along = (x - center[1]) * math.cos(angle) + (y - center[0]) * math.sin(angle)
    across = (y - center[0]) * math.cos(angle) - (x - center[1]) * math.sin(angle)
    body = (abs(along) < length) & (abs(across) < width)
    body |= (abs(along - rng.uniform(-2, 2)) < width) & (abs(across) < length * rng.uniform(0.5, 0.9))
    light = rng.uniform(12, 20) * ndimage.gaussian_filter(body.astype(float), rng.uniform(1.2, 2))
    for _ in range(rng.integers(1, 3)):
        at = length * rng.uniform(-0.6, 0.1), width * rng.uniform(-0.4, 0.4)
        engine = (along - at[0]) ** 2 / 1.5 + (across - at[1]) ** 2 < rng.uniform(1.5, 2.6) ** 2
        light += rng.uniform(60, 120) * engine
    sigma = rng.uniform(0.7, 1.5)
    frame = 60 + 255 * clouds + rng.normal(0, sigma, size)
    light = ndimage.gaussian_filter(light, 0.7)
    rows, columns = np.nonzero(body)
    target = Target(columns.mean(), rows.mean(), "extended", len(rows), light.max() / sigma)
    return Scene(np.rint(np.clip(frame + light, 0, 255)).astype(np.uint8), body, (target,))


def write_dataset(
    out: Path,
    count: int,
    seed: int,
    *,
    size: tuple[int, int] = (256, 256),
    bits: int = 8,
    snr: float | None = None,
    test_share: float = 0.5,
) -> None:
    """Write frames 0 to `count` - 1 of `seed` as a data set in the layout of the field.

    Writes OUT/images/NAME.png, OUT/masks/NAME.png (0/255), OUT/splits/train.txt and OUT/splits/test.txt (one
    NAME a line, without extension). NAME depends on the frame's index only.

    Parameters
    ----------
    out : Path
    count : int
        At least 1.
    seed, size, bits, snr
        See `scene`.
    test_share : float
        Share of the frames, the last ones, that are test frames; rounded to whole frames.

    Raises
    ------
    InputError
        As `scene` does, or a count below 1, or a test_share outside 0 to 1.
    OSError
        A folder cannot be written.
    """
    if count < 1:
        raise InputError(f"count {count}: give at least 1 frame")
    if not 0 <= test_share <= 1:
        raise InputError(f"test_share {test_share}: give a share from 0 to 1")
    names = [f"synthetic_{index:05d}" for index in range(count)]
    for index, name in enumerate(names):
        made = scene(seed, index, size=size, bits=bits, snr=snr)
        for folder, pixels in (("images", made.image), ("masks", made.mask.astype(np.uint8) * 255)):
            with atomic_path(out / folder / f"{name}.png") as path:
                # A third of the default level's time for files a tenth larger: noise hardly compresses.
                Image.fromarray(pixels).save(path, compress_level=3)
    train = count - round(count * test_share)
    for split, part in (("train", names[:train]), ("test", names[train:])):
        with atomic_path(out / "splits" / f"{split}.txt") as path:
            path.write_text("".join(f"{name}\n" for name in part), encoding="utf-8")


def _check(
    seed: int, index: int, size: tuple[int, int], bits: int, targets: Sequence[str] | None, snr: float | None
) -> None:
    if seed < 0 or index < 0:
        raise InputError(f"seed {seed}, index {index}: give integers from 0 up")
    if min(size) < 16:
        raise InputError(f"size {size[0]}x{size[1]} (height x width): give at least 16 px for each")
    if bits not in FULL_SCALE:
        raise InputError(f"bits {bits}: give 8 or 16")
    for category in targets or ():
        if category not in AREAS:
            raise InputError(f"target category {category!r}: use one of {', '.join(AREAS)}")
    if snr is not None and not 0 < snr < math.inf:
        raise InputError(f"snr {snr}: give a number above 0")


class _Part(NamedTuple):
    """A patch of light: brightness * exp(-r**power / 2), r the elliptic distance from its center."""

    brightness: float
    along: float  # position in the target's own frame
    across: float
    length: float  # half axes
    width: float
    turn: float = 0.0  # radians
    power: float = 2.0


class _Stamp(NamedTuple):
    """A target at its place; the arrays cover the part of the frame `at`."""

    at: tuple[slice, slice]
    light: np.ndarray  # float64, peak 1
    truth: np.ndarray  # bool
    footprint: np.ndarray  # bool, truth with a margin that stays free of other targets
    contrast: float  # of the peak, as a share of the full scale
    sigma: float  # of the background around it


def _place(
    rng: np.random.Generator,
    category: str,
    snr: float | None,
    background: np.ndarray,
    frame: np.ndarray,
    taken: np.ndarray,
) -> _Stamp:
    """Place a target at the first of many random places that is free and has room below the full scale."""
    height, width = frame.shape
    low, high = AREAS[category]
    wanted = float(np.clip(rng.lognormal(math.log(0.33), 0.6), 0.08, 0.85))
    for attempt in range(_ATTEMPTS):
        # Log-uniform and then shrunk: small targets are the most frequent.
        area = low + (math.exp(rng.uniform(math.log(low), math.log(high + 1))) - low) * rng.uniform(0.3, 1)
        y, x = _position(rng, height, width, 0.4 * math.sqrt(area))
        sigma = float(frame[_span(y, _BOX, height), _span(x, _BOX, width)].std())
        contrast = min(max(wanted, _LEAST_SNR * sigma) if snr is None else snr * sigma, 1.0)
        # Where the full scale leaves no room anywhere, the first attempts fail and later ones ask for less.
        needed = contrast * (1 - attempt / _ATTEMPTS)
        if background[round(y), round(x)] + needed > 1:
            continue
        parts = _parts(rng, category)
        at, light = _draw(rng, parts, math.sqrt(area / _unit_area(parts)), y, x, frame.shape)
        truth = light > TRUTH_FRACTION
        if not low <= np.count_nonzero(truth) <= high or ndimage.label(truth, structure=_EIGHT)[1] != 1:
            continue
        footprint = ndimage.binary_dilation(truth, structure=_EIGHT, iterations=4)
        room = float(((1 - background[at])[truth] / light[truth]).min())
        if room < needed or (taken[at] & footprint).any():
            continue
        return _Stamp(at, light, truth, footprint, min(contrast, room), sigma)
    raise InputError(
        f"no room for a target of category {category!r} in {height}x{width} px (height x width): "
        "give a larger size or fewer targets"
    )


def _position(rng: np.random.Generator, height: int, width: int, near: float) -> tuple[float, float]:
    """Return (y, x) of a center inside the frame, sometimes within `near` px of a border."""
    y, x = rng.uniform(0, height - 1), rng.uniform(0, width - 1)
    if rng.random() < _BORDER_SHARE:
        inset = rng.uniform(0, near)
        return [(inset, x), (height - 1 - inset, x), (y, inset), (y, width - 1 - inset)][rng.integers(4)]
    return y, x


def _draw(
    rng: np.random.Generator, parts: list[_Part], scale: float, y: float, x: float, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Draw a target of this scale at (y, x): the part of the frame that it reaches, and its light, peak 1."""
    reach = math.ceil(4 * scale) + 5
    at = (_span(y, reach, shape[0]), _span(x, reach, shape[1]))
    rows, columns = (np.arange(axis.start, axis.stop) for axis in at)
    light = _light(parts, (rows[:, None] - y) / scale, (columns[None, :] - x) / scale)
    if rng.random() < 0.2:
        # Cameras sharpen: a dark ring lies around the target.
        light += rng.uniform(0.2, 0.7) * (light - ndimage.gaussian_filter(light, rng.uniform(1, 2)))
    return at, light / light.max()


def _parts(rng: np.random.Generator, category: str) -> list[_Part]:
    """Draw the shape of a target in its own units, turned at random."""
    kind = "blob"
    if category == "spot":
        kind = rng.choice(["blob", "pair"], p=[0.85, 0.15])
    elif category == "extended":
        kind = rng.choice(["blob", "aircraft", "ship"], p=[0.45, 0.35, 0.20])
    if kind == "pair":
        parts = [_Part(1, 0, 0, 0.5, 0.4), _Part(rng.uniform(0.5, 1), rng.uniform(0.8, 1.1), 0, 0.5, 0.4)]
    elif kind == "aircraft":
        parts = list(_aircraft(rng))
    elif kind == "ship":
        hull = _Part(rng.uniform(0.5, 0.9), 0, 0, 1, rng.uniform(0.15, 0.25), power=4)
        parts = [hull, _Part(1, rng.uniform(-0.5, 0.5), -rng.uniform(0.1, 0.3), 0.3, 0.25)]
    else:
        flat = {"point": 2, "spot": 3, "extended": 6}[category]
        parts = [_Part(1, 0, 0, 1, 1 / min(rng.lognormal(0.2, 0.3), 4.0), power=rng.uniform(2, flat))]
        if category == "extended":
            for _ in range(2):
                (along, across), (length, breadth) = rng.uniform(-0.7, 0.7, 2), rng.uniform(0.3, 0.7, 2)
                parts.append(_Part(rng.uniform(0.6, 1), along, across, length, breadth, power=4))
    # Ships lie level, everything else any way.
    turn = rng.normal(0, 0.1) if kind == "ship" else rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    return [
        part._replace(
            along=cos * part.along + sin * part.across,
            across=cos * part.across - sin * part.along,
            turn=part.turn + turn,
        )
        for part in parts
    ]


def _aircraft(rng: np.random.Generator) -> Iterator[_Part]:
    """Draw a body with swept wings, a tail and a hot engine behind."""
    body, sweep, span = rng.uniform(0.6, 0.9), rng.uniform(0.1, 0.8), rng.uniform(0.3, 0.55)
    yield _Part(body, 0, 0, 0.8, 0.22, power=3)
    for side in (1, -1):
        angle = side * (math.pi / 2 + sweep)
        for length, root, brightness in ((span, 0.15, 0.85 * body), (0.5 * span, -0.6, 0.75 * body)):
            along, across = root + length * math.cos(angle), length * math.sin(angle)
            yield _Part(brightness, along, across, length, 0.17, -angle, power=3)
    yield _Part(1, -0.55, 0, 0.3, 0.22)


def _light(parts: list[_Part], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the light of all parts at unit coordinates; overlapping parts saturate instead of adding up."""
    dark: np.ndarray | float = 1.0
    for part in parts:
        cos, sin = math.cos(part.turn), math.sin(part.turn)
        dx, dy = x - part.along, y - part.across
        r2 = ((dx * cos - dy * sin) / part.length) ** 2 + ((dx * sin + dy * cos) / part.width) ** 2
        dark = dark * (1 - part.brightness * np.exp(-0.5 * r2 ** (part.power / 2)))
    return np.asarray(1 - dark)


def _unit_area(parts: list[_Part]) -> float:
    """Return the true area of the shape at scale 1."""
    axis, step = np.linspace(-2.5, 2.5, 51, retstep=True)
    light = _light(parts, axis[:, None], axis[None, :])
    return float(np.count_nonzero(light > TRUTH_FRACTION * light.max()) * step**2)


def _span(center: float, reach: int, length: int) -> slice:
    """Return the slice from `reach` before the center to `reach` after it, inside 0 to `length`."""
    middle = round(center)
    return slice(max(middle - reach, 0), min(middle + reach + 1, length))
