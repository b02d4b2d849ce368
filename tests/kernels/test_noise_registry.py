"""A kind of noise that is registered at run time works wherever a built-in one does."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from devices import BACKENDS, device_of, on_cpu

from mclc_gpu import label_images
from mclc_gpu.cli.main import main
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.kernels import noise_cpu, noise_triton
from mclc_gpu.kernels.config import Noise, TrialConfig
from mclc_gpu.kernels.noise import NOISES, add_noise
from mclc_gpu.kernels.packed import PackedImages, Windows
from mclc_gpu.kernels.trials import TrialCounts, run_trials
from mclc_gpu.labels.config import preset


def speckle(value, word, intensity, bound, low, high):
    """Multiply the value by a random factor of mean 1."""
    return min(max(value + value * intensity * noise_cpu.standard_normal(word), low), high)


@triton.jit
def speckle_triton(value, word, intensity, bound, low, high):
    noisy = value + value * intensity * noise_triton.standard_normal(word)
    return tl.minimum(tl.maximum(noisy, low), high)


def salt_again(value, word, intensity, bound, low, high):
    return high if (word >> np.uint64(8)) < bound else value


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NOISES, "speckle", Noise(speckle, speckle_triton))
        patch.setitem(NOISES, "slow salt", Noise(salt_again, noise_triton.salt))
        patch.setitem(NOISES, "quick salt", Noise(salt_again, noise_triton.salt, replaced_by="high"))
        yield


def trials(
    dtype: type, config: TrialConfig, backend: str = "cpu", number: int = 3, targets: int = 3
) -> TrialCounts:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:8, :9]
    bright = 150 * np.exp(-((y - 4) ** 2 + (x - 4) ** 2) / 6)
    images = [(50 + bright + rng.normal(0, 9, (8, 9))).astype(dtype) for _ in range(targets)]
    windows = Windows.pack((i, 0, 1, 8, 8, 4, 3, i) for i in range(targets))
    packed = PackedImages.pack(images, device_of(backend))
    keys = torch.arange(targets) + 2**60
    return on_cpu(run_trials(packed, windows, keys, config, number, keep_masks=True, backend=backend))


@pytest.mark.parametrize("shared", [False, True])
def test_noise_is_the_same_on_both_backends(shared: bool) -> None:
    windows = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (2, 3, 9, 8)).astype(np.float32))
    options = {"kind": "speckle", "intensity": 0.3, "shared": shared}
    found = []
    for backend in BACKENDS:
        place = device_of(backend)
        index = torch.tensor([3, 4], device=place)
        found.append(add_noise(windows.to(place), index, index, 7, backend=backend, **options).cpu())
    assert torch.equal(found[0].view(torch.int32), found[1].view(torch.int32))
    assert bool((found[0] != windows).any())
    assert float(found[0].min()) >= 0
    assert float(found[0].max()) == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_trials_are_the_same_on_both_backends(dtype: type) -> None:
    config = TrialConfig(noise="speckle", intensity=0.4, max_iterations=2)
    ours, theirs = (trials(dtype, config, backend, number=2, targets=1) for backend in BACKENDS)
    assert torch.equal(ours.masks, theirs.masks)
    assert not torch.equal(ours.masks[0], ours.masks[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("intensity", [0.02, 0.3, 1.0])
def test_replacing_kinds_may_say_so(dtype: type, intensity: float) -> None:
    """The table of features that they are then served from changes no bit."""
    salt, slow, quick = (
        trials(dtype, TrialConfig(noise=name, intensity=intensity), number=20).counts
        for name in ("salt", "slow salt", "quick salt")
    )
    assert torch.equal(salt, quick)
    assert torch.equal(salt, slow)


def test_every_kind_runs_the_same_compiled_trials() -> None:
    from mclc_gpu.kernels import trials_cpu

    trials(np.uint8, TrialConfig())
    before = len(trials_cpu._item.signatures)
    trials(np.uint8, TrialConfig(noise="gaussian"))
    trials(np.uint8, TrialConfig(noise="speckle"))
    assert len(trials_cpu._item.signatures) == before


def test_labels_are_made_with_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2, 5, size=(48, 48))
    words = ["label", "--images", tmp_path / "images", "--points-from-masks", tmp_path / "masks"]
    words += ["--preset", "paper", "--trials", 3, "--noise", "speckle", "--device", "cpu"]
    words += ["--out", tmp_path / "run"]
    assert main([str(word) for word in words]) == 0
    settings = json.loads((tmp_path / "run" / "label.json").read_text())["settings"]
    assert settings["trial"]["noise"] == "speckle"
    image = np.full((30, 30), 50, np.uint8) + np.arange(30, dtype=np.uint8)
    image[10:14, 12:16] = 200
    config = preset("paper", trials=4, trial={"noise": "speckle"})
    (target,) = label_images([image], [[Point(13, 12, "spot")]], config, device="cpu")
    assert target.mask.any()


def test_names_are_listed_where_one_is_unknown() -> None:
    known = "none, salt, pepper, gaussian, speckle, slow salt, quick salt"
    with pytest.raises(InputError, match=f"noise 'snow': use one of {known}"):
        TrialConfig(noise="snow")
    with pytest.raises(ValueError, match="replaced_by must be one of"):
        Noise(speckle, speckle_triton, replaced_by="255")
