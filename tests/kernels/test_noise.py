"""Counter-based noise: the published generator, the same bits on every backend, the right distributions."""

import numpy as np
import pytest
import torch
from devices import BACKENDS, device_of
from scipy import special, stats

from mclc_gpu.kernels.noise import NOISES, add_noise
from mclc_gpu.kernels.noise_cpu import philox, standard_normal

MASK = 0xFFFFFFFF
KEY = 0x0123456789ABCDEF


def philox_reference(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox 4x32-10 in Python's integers, after section 4.4 of Salmon et al."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & MASK, (first >> 32) ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return tuple(c)


def noisy(
    windows: torch.Tensor,
    trial: int = 0,
    keys: int | list[int] = KEY,
    targets: int | list[int] = 0,
    **options,
) -> torch.Tensor:
    """Return `add_noise` of windows, with one key and one target for all of them or a list of each."""
    place = device_of(options.get("backend"))
    listed = [[v] * len(windows) if isinstance(v, int) else v for v in (keys, targets)]
    indices = (torch.tensor(v, dtype=torch.int64, device=place) for v in listed)
    return add_noise(windows.to(place), *indices, trial, **options).cpu()


def windows_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 255, shape).astype(np.float32))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_reference_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    assert philox_reference(counter, key) == words


def test_generator_is_philox_4x32_10() -> None:
    rng = np.random.default_rng(1)
    cases = [[0] * 5, [MASK] * 5, *rng.integers(0, 2**32, (200, 5)).tolist()]
    for c0, c1, c2, k0, k1 in cases:
        words = philox(*(np.uint64(v) for v in (c0, c1, c2, k0, k1)))
        assert tuple(map(int, words)) == philox_reference((c0, c1, c2, 0), (k0, k1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_counter_and_key_are_as_documented(backend: str) -> None:
    trial, target, key = 41, 7, -(2**62) - 12345
    window = torch.full((1, 3, 3, 5), 100.0)
    ours = noisy(window, trial, key, target, intensity=0.3, backend=backend)
    for pixel in range(15):
        words = philox_reference((pixel, trial, target, 0), (key & MASK, key >> 32 & MASK))
        for channel in range(3):
            salted = (words[channel] >> 8) < round(0.3 * 2**24)
            assert ours[0, channel, pixel // 5, pixel % 5] == (255 if salted else 100)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 7, 9), (2, 1, 23, 25), (1, 3, 1, 1), (0, 3, 4, 5)], ids=str)
def test_backends_draw_the_same_bits(kind: str, shared: bool, shape: tuple[int, ...]) -> None:
    windows = windows_of(*shape)
    keys = [KEY + 10**15 * i for i in range(shape[0])]
    targets = [0, 3, 2**31 - 1][: shape[0]]
    options = {"kind": kind, "shared": shared, "intensity": 0.2, "low": -3.5, "high": 261.0}
    ours = [noisy(windows, 2**31 - 1, keys, targets, backend=b, **options) for b in BACKENDS]
    assert ours[0].shape == windows.shape
    assert torch.equal(ours[0].view(torch.int32), ours[1].view(torch.int32))
    assert torch.equal(ours[0], windows) == (kind == "none") or windows.numel() < 10


@pytest.mark.parametrize("kind", ["salt", "pepper", "gaussian"])
def test_a_window_does_not_depend_on_its_batch(kind: str) -> None:
    windows, keys, targets = windows_of(6, 3, 8, 11), [5, 5, 6, 7, 7, 2**60], [0, 1, 0, 3, 4, 9]
    together = noisy(windows, 12, keys, targets, kind=kind)
    order = [4, 0, 3, 5, 1, 2]
    shuffled = noisy(windows[order], 12, [keys[i] for i in order], [targets[i] for i in order], kind=kind)
    assert torch.equal(shuffled, together[order])
    for i in range(6):
        assert torch.equal(noisy(windows[i : i + 1], 12, keys[i], targets[i], kind=kind)[0], together[i])


@pytest.mark.parametrize(
    "other",
    [{"keys": KEY + 1}, {"keys": KEY + 2**32}, {"keys": KEY - 2**63}, {"targets": 1}, {"trial": 1}],
    ids=str,
)
def test_key_target_and_trial_change_the_draw(other: dict[str, int]) -> None:
    flat = torch.zeros(1, 3, 100, 100)
    one = noisy(flat, intensity=0.5) > 0
    two = noisy(flat, intensity=0.5, **other) > 0
    # Independent draws of 1/2 agree on half of 30000 values, within five standard deviations.
    assert abs(int((one == two).sum()) - 15000) < 5 * 30000**0.5 / 2


def test_channels_and_pixels_draw_apart_unless_shared() -> None:
    flat = torch.zeros(1, 3, 100, 100)
    salted = noisy(flat, intensity=0.5)[0] > 0
    for a, b in (
        (salted[0], salted[1]),
        (salted[0], salted[2]),
        (salted[1], salted[2]),
        (salted, salted.flip(2)),
    ):
        n = a.numel()
        assert abs(int((a == b).sum()) - n / 2) < 5 * (2 * n) ** 0.5 / 2  # a flip counts each pair twice
    shared = noisy(flat, intensity=0.5, shared=True)[0] > 0
    assert torch.equal(shared, salted[:1].expand(3, -1, -1))


@pytest.mark.parametrize("intensity", [0.0, 0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(("kind", "value"), [("salt", 200.0), ("pepper", 10.0)])
def test_share_of_replaced_values(kind: str, value: float, intensity: float) -> None:
    n = 10**6
    out = noisy(
        torch.full((4, 1, 500, 500), 77.0),
        targets=[0, 1, 2, 3],
        kind=kind,
        intensity=intensity,
        low=10.0,
        high=200.0,
    )
    replaced = out == value
    assert torch.equal(out[~replaced], torch.full((n - int(replaced.sum()),), 77.0))
    assert abs(int(replaced.sum()) - n * intensity) <= 5 * (n * intensity * (1 - intensity)) ** 0.5


def test_gaussian_noise_is_normal() -> None:
    out = noisy(torch.full((1, 1, 1000, 1000), 128.0), kind="gaussian", intensity=0.05)
    numbers = (out.double().flatten() - 128) / (0.05 * 255)
    assert abs(float(numbers.mean())) < 5 / 1000
    assert abs(float(numbers.std()) - 1) < 5 / 1000 / 2**0.5
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.01
    assert 4.2 < float(numbers.abs().max()) < 6


def test_gaussian_noise_is_clipped() -> None:
    out = noisy(torch.full((1, 3, 64, 64), 250.0), kind="gaussian", intensity=0.3)
    assert float(out.max()) == 255
    assert float(out.min()) == 0
    assert 0.3 < float((out == 255).float().mean()) < 0.6


def test_normal_numbers_against_scipy() -> None:
    words = [0, MASK, 1 << 31, *np.random.default_rng(3).integers(0, 2**32, 20000).tolist()]
    uniform = (np.array(words) >> 8) * 2.0**-24 + 2.0**-25
    ours = np.array([standard_normal(np.uint64(word)) for word in words])
    np.testing.assert_allclose(ours, special.ndtri(uniform), rtol=1e-4, atol=1e-6)


WINDOWS, INDICES = torch.zeros(2, 3, 4, 5), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("windows", "keys", "targets", "options", "message"),
    [
        (WINDOWS[0], INDICES, INDICES, {}, "windows must be float32"),
        (WINDOWS[:, :2], INDICES, INDICES, {}, "windows must be float32"),
        (WINDOWS.double(), INDICES, INDICES, {}, "windows must be float32"),
        (WINDOWS, INDICES[:1], INDICES, {}, "keys must be int64"),
        (WINDOWS, INDICES.int(), INDICES, {}, "keys must be int64"),
        (WINDOWS, INDICES, INDICES.float(), {}, "targets must be int64"),
        (
            WINDOWS,
            INDICES,
            INDICES,
            {"kind": "Salt"},
            "noise 'Salt': use one of none, salt, pepper, gaussian",
        ),
        (WINDOWS, INDICES, INDICES, {"intensity": -0.1}, "intensity must be in 0..1"),
        (WINDOWS, INDICES, INDICES, {"intensity": float("nan")}, "intensity must be in 0..1"),
        (WINDOWS, INDICES, INDICES, {"backend": "cuda"}, "backend must be one of"),
        (WINDOWS, INDICES, INDICES, {"trial": -1}, "trial must be in"),
        (WINDOWS, INDICES, INDICES, {"trial": 2**31}, "trial must be in"),
        (WINDOWS, INDICES, INDICES - 1, {}, "targets must be in"),
        (WINDOWS, INDICES, INDICES + 2**31, {}, "targets must be in"),
    ],
)
def test_refuses(
    windows: torch.Tensor, keys: torch.Tensor, targets: torch.Tensor, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        add_noise(windows, keys, targets, **{"trial": 0, **options})


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="needs CUDA tensors"):
        add_noise(WINDOWS, INDICES, INDICES, 0, backend="triton")
