"""Backbones with the weights of torchvision: names, shapes, one channel, and files that cannot be used."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mclc_gpu.errors import InputError
from mclc_gpu.networks.backbones import VGG16, ResNet50, read_backbone
from mclc_gpu.networks.zoo import build


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet50, without statistics."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "bn1": (64,)}
    channels = 64
    for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * inner, channels, 1, 1)
                shapes[f"{name}.downsample.1"] = (4 * inner,)
            shapes[f"{name}.conv1.weight"] = (inner, channels, 1, 1)
            shapes[f"{name}.conv2.weight"] = (inner, inner, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * inner, inner, 1, 1)
            shapes |= {f"{name}.bn1": (inner,), f"{name}.bn2": (inner,), f"{name}.bn3": (4 * inner,)}
            channels = 4 * inner
    return shapes


def resnet50_state() -> dict[str, Tensor]:
    """State dict as torchvision's older files have it: no counts of batches, but a classifier."""
    torch.manual_seed(0)
    state = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    for name, shape in resnet50_shapes().items():
        if name.endswith("weight"):
            state[name] = torch.randn(shape) * (2 / (shape[1] * shape[2] ** 2)) ** 0.5
        else:
            state |= {f"{name}.weight": torch.ones(shape), f"{name}.bias": torch.zeros(shape)}
            state |= {f"{name}.running_mean": torch.zeros(shape), f"{name}.running_var": torch.ones(shape)}
    return state


def vgg16_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state, channels = {"classifier.0.weight": torch.zeros(8, 8)}, 3
    places = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
    for place, width in {**places, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}.items():
        state[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) / (3 * channels**0.5)
        state[f"features.{place}.bias"] = torch.randn(width) / 10
        channels = width
    return state


BACKBONES = {"vgg16": (VGG16, vgg16_state), "resnet50": (ResNet50, resnet50_state)}
every_backbone = pytest.mark.parametrize("name", BACKBONES)


@every_backbone
def test_weights_of_torchvision_fit(name: str) -> None:
    kind, state_of = BACKBONES[name]
    state, backbone = state_of(), kind(3)
    backbone.load_state_dict(backbone.fitting(state))
    assert all(torch.equal(value, state[key]) for key, value in backbone.named_parameters())
    used = {key for key in state if not key.startswith(("fc.", "classifier."))}
    assert used == {key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")}


@every_backbone
def test_one_channel_sees_what_three_equal_ones_show(name: str) -> None:
    kind, state_of = BACKBONES[name]
    gray, color = kind(1).eval(), kind(3).eval()
    for backbone in (gray, color):
        backbone.load_state_dict(backbone.fitting(state_of()))
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pairs = zip(gray(x), color(x.expand(1, 3, 32, 32)), strict=True)
        assert all((one - other).norm() < 1e-4 * other.norm() for one, other in pairs)


def test_the_stages_of_vgg16_end_before_the_poolings() -> None:
    backbone = VGG16(1).eval()
    with torch.no_grad():
        stages = backbone(torch.randn(1, 1, 32, 32))
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    assert all((stage >= 0).all() for stage in stages)  # after the ReLU


def test_a_file_gives_a_detector_its_backbone(tmp_path: Path) -> None:
    state, detector = vgg16_state(), build("pfan")
    torch.save(state, tmp_path / "vgg16.pth")
    found = read_backbone(detector, tmp_path / "vgg16.pth")
    assert torch.equal(found["backbone.features.0.weight"], state["features.0.weight"].sum(1, keepdim=True))
    assert torch.equal(found["backbone.features.28.bias"], state["features.28.bias"])
    names = {name for name in detector.state_dict() if name.startswith("backbone.")}
    assert found.keys() == names
    assert len(names) == 26


def test_unusable_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(
        InputError, match=r"weights\.pth: no such file; give a state dict of torchvision's vgg16"
    ):
        read_backbone(build("pfan"), path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"weights\.pth: damaged, or no state dict"):
        read_backbone(build("pfan"), path)
    state = vgg16_state()
    torch.save(state, path)
    with pytest.raises(
        InputError, match=r"holds no conv1\.weight; give the state dict of torchvision's resnet50"
    ):
        read_backbone(build("f3net"), path)
    with pytest.raises(InputError, match=r"weights\.pth: ACM has no backbone that takes weights"):
        read_backbone(build("acm"), path)
    torch.save(state | {"features.5.weight": torch.zeros(128, 64, 1, 1)}, path)
    with pytest.raises(InputError, match=r"features\.5\.weight is \[128, 64, 1, 1\], not \[128, 64, 3, 3\]"):
        read_backbone(build("pfan"), path)
