"""Made-up infrared backgrounds: sky, clouds, sea and ground, and the noise of a sensor."""

import math

import numpy as np
from scipy import fft, ndimage


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A noise-free background, float32 [H, W], 0.02 to 0.98 on a full scale of 1.

    It is sky, clouds, sea under a horizon or ground, at random.
    """
    kind = rng.choice(4, p=(0.30, 0.38, 0.20, 0.12))
    pixels = (_sky, _clouds, _sea, _ground)[kind](rng, height, width)
    return np.clip(ndimage.gaussian_filter(pixels, rng.uniform(0.5, 0.9)), 0.02, 0.98)


def draw_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sensor noise, float32 [H, W], of mean 0 and standard deviation 0.3/255 to 2.8/255 on a full scale of 1.

    Often smoothed by the camera, sometimes with stripes.
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
    """A random field of mean 0 and variance 1 whose power falls as 1/frequency**slope.

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
    """From 0 to 1 around 0, over about `width`."""
    return 0.5 + 0.5 * np.tanh(2 * values / width)


def _axis(length: int) -> np.ndarray:
    """-1 to 1 over the pixels of one axis."""
    return np.linspace(-1, 1, length, dtype=np.float32)


def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth gradient, darker or brighter towards a corner, with a trace of haze."""
    y, x = _axis(height)[:, None], _axis(width)[None, :]
    angle, bend = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
    ramp = x * math.cos(angle) + y * math.sin(angle)
    shade = rng.exponential(0.06) * (ramp + bend * ramp**2)
    haze = rng.uniform(0.002, 0.03) * _fractal(rng, height, width, rng.uniform(2.8, 3.6), rng.uniform(1, 3))
    return rng.uniform(0.2, 0.6) + np.clip(shade, -0.3, 0.3) + haze


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One or two layers of clouds with soft, frayed edges over the sky; now and then darker than it."""
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
    """Sky with streaks above a horizon, waves below it, sometimes land between them."""
    horizon = height * rng.uniform(0.15, 0.7) + rng.normal(0, 0.01) * width * _axis(width)[None, :]
    below = np.arange(height, dtype=np.float32)[:, None] - horizon  # px, positive on the sea
    level = rng.uniform(0.2, 0.55)
    glow = rng.uniform(-0.1, 0.2) * np.exp(below / (height * rng.uniform(0.1, 0.5)))
    streaks = rng.uniform(0.01, 0.05) * _fractal(rng, height, width, 2.8, rng.uniform(4, 10))
    sky = level + np.where(below < 0, glow, 0) + streaks

    waves = _fractal(rng, height, width, rng.uniform(1.2, 2.2), rng.uniform(2, 8))
    # Waves shrink towards the horizon, and with them what a pixel still tells of them.
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
    """Patches of vegetation and soil with fairly sharp borders."""
    pixels = rng.uniform(0.25, 0.5) + 0.025 * _fractal(rng, height, width, rng.uniform(2.2, 3.2))
    for _ in range(3):
        slope, stretch, angle = rng.uniform(2.8, 3.6), rng.uniform(1, 3), rng.uniform(0, math.pi)
        patch = _fractal(rng, height, width, slope, stretch, angle)
        pixels = pixels + rng.normal(0, 0.06) * _soft_step(patch - rng.uniform(-1, 1), rng.uniform(0.1, 0.5))
    return pixels
