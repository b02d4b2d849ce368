"""Weights that training starts from, and training on point labels."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training_data import Plain, write_frames

from mclc_gpu.data.datasets import ValidationSet
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.networks.backbones import Backbone
from mclc_gpu.networks.blocks import Detector, Logits
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.train.config import FastConfig, TrainConfig
from mclc_gpu.train.data import open_training_set
from mclc_gpu.train.fit import fit, validate
from mclc_gpu.train.initial import read_initial
from mclc_gpu.train.trainer import Trainer

CPU = torch.device("cpu")


class Stem(Backbone):
    """A backbone of one convolution."""

    first_name = "conv.weight"

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Backed(Detector):
    """A detector with a backbone."""

    pretrained = "stem"

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.backbone, self.head = Stem(in_channels), nn.Conv2d(4, 1, 1)

    def segment(self, x: Tensor) -> Logits:
        return Logits((self.head(self.backbone(x).relu()),))


@pytest.fixture(autouse=True)
def _networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "backed", Backed)
        patch.setitem(NETWORKS, "plain", Plain)
        yield


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    """State dict of a stem for three channels."""
    torch.manual_seed(1)
    torch.save(Stem(3).state_dict(), tmp_path / "stem.pth")
    return tmp_path / "stem.pth"


def test_training_starts_from_the_backbone_of_a_file(stem: Path, tmp_path: Path) -> None:
    samples, config = write_frames(tmp_path, 2), TrainConfig("backed", mpixels=0.01)
    initial = read_initial(None, stem, config)
    assert initial is not None
    data = open_training_set(samples, 1, CPU)
    given, drawn = (Trainer(config, data, Ranks(CPU), None, start) for start in (initial.weights, None))
    expected = torch.load(stem, weights_only=True)["conv.weight"].sum(1, keepdim=True)
    assert torch.equal(given.network.backbone.conv.weight, expected)
    assert torch.equal(given.network.head.weight, drawn.network.head.weight)
    assert not torch.equal(drawn.network.backbone.conv.weight, expected)


def test_a_run_says_where_its_backbone_is_from(stem: Path, tmp_path: Path) -> None:
    samples, config = (
        write_frames(tmp_path, 3),
        TrainConfig("backed", "paper", epochs=1, size=16, batch_size=2),
    )
    given = fit(samples, config, tmp_path / "given", device="cpu", backbone_weights=stem)
    drawn = fit(samples, config, tmp_path / "drawn", device="cpu")
    plain = fit(samples, replace(config, network="plain"), tmp_path / "plain", device="cpu")
    assert given.backbone == f"weights of {stem}"
    assert drawn.backbone == "drawn at random (Xavier); --backbone-weights takes those of torchvision's stem"
    assert plain.backbone is None
    assert json.loads((tmp_path / "given/config.json").read_text())["backbone"] == given.backbone
    with pytest.raises(InputError, match="drawn: was begun with init None"):
        fit(samples, config, tmp_path / "drawn", device="cpu", backbone_weights=stem, resume=True)
    with pytest.raises(InputError, match=r"given: was begun with init .*, not None"):
        fit(samples, config, tmp_path / "given", device="cpu", resume=True)


def test_weights_of_a_backbone_that_cannot_be_used(stem: Path) -> None:
    with pytest.raises(
        InputError, match=r"stem\.pth: Plain has no backbone that takes weights; leave it out"
    ):
        read_initial(None, stem, TrainConfig("plain"))
    with pytest.raises(InputError, match=r"stem\.pth: the checkpoint best\.pt holds a backbone; give one"):
        read_initial(Path("best.pt"), stem, TrainConfig("backed"))


def test_point_labels_are_neither_pasted_nor_resampled_nor_held_out() -> None:
    made = TrainConfig("plain", loss="partial-bce", fast=FastConfig(paste_share=0.5)).resolved()
    assert (made.fast.paste_share, made.fast.scale_jitter, made.hold_out) == (0, 0, 0)
    assert TrainConfig("plain", loss="partial-bce", hold_out=0.2).resolved().hold_out == 0.2


def test_masks_grow_from_points(tmp_path: Path) -> None:
    samples = write_frames(tmp_path)
    points = []
    for sample in samples:
        mask = np.asarray(Image.open(sample.mask)) > 0
        rows, columns = mask.nonzero()
        point = np.zeros(mask.shape, np.uint8)
        point[round(rows.mean()), round(columns.mean())] = 255
        path = tmp_path / "points" / f"{sample.name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(point).save(path)
        points.append(replace(sample, mask=path))
    config = TrainConfig("plain", "paper", epochs=20, batch_size=3, size=32, loss="partial-bce")
    trained = load_checkpoint(fit(points, config, tmp_path / "run", device="cpu").last, "cpu")
    predictor = Predictor(trained.network, trained.normalization)
    found, _ = validate(predictor, ValidationSet(samples, 1e9), Ranks(CPU))
    assert found.iou > 0.5  # of 25 pixels a target the labels tell one
