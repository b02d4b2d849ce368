"""One of each kind of extension, added at run time by its registry, works in label, train and score.

CONTRIBUTING.md shows the same code; a test compares.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from devices import BACKENDS, device_of
from torch import nn
from training_data import write_frames

from mclc_gpu.classical.config import METHODS
from mclc_gpu.classical.method import Method
from mclc_gpu.cli.main import main, parser
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.exports import EXPORTS, ExportedImage, ExportedTarget, export
from mclc_gpu.data.formats import Entry, PointFormat
from mclc_gpu.data.images import read_mask
from mclc_gpu.data.masks import BoxedMask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import FORMATS
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.kernels.noise import NOISES, Noise, add_noise
from mclc_gpu.labels.config import MAKERS, PRESETS, LabelConfig, MakerEntry
from mclc_gpu.labels.makers import WindowMaker
from mclc_gpu.networks.blocks import Detector, Logits
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.score.metrics import SCORES, Score, ratio

ROOT = Path(__file__).resolve().parents[1]


class SmallDetector(Detector):
    """Two convolutions."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def segment(self, x: torch.Tensor) -> Logits:
        return Logits((self.layers(x),))


class Halfway(WindowMaker):
    """Pixels at least halfway from the window's median gray level to the clicked pixel's."""

    def tpm(self, pixels, marks, box, config):
        gray = pixels if pixels.ndim == 2 else pixels.mean(2)
        return gray >= (np.median(gray) + gray.reshape(-1)[marks[0]]) / 2


def dim(value, word, intensity, bound, low, high):
    return value - intensity * (value - low) if (word >> 8) < bound else value


@triton.jit
def dim_triton(value, word, intensity, bound, low, high):
    return tl.where((word >> 8).to(tl.int32) < bound, value - intensity * (value - low), value)


def parse_spots(file):
    for number, line in enumerate(file.text().splitlines(), 1):
        image, x, y = line.split("|")
        yield Entry((image,), f"line {number}", clicks=((x, y),))


def write_centers(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "centers.txt"
    with path.open("w") as file:
        for image in images:
            for target in image.targets:
                print(image.stem, target.point.x, target.point.y, file=file)
    return path


@dataclass(frozen=True)
class AboveMean(Method):
    """Gray levels above the mean of the image, less a margin."""

    margin: float = 10.0

    def saliency(self, images: torch.Tensor) -> torch.Tensor:
        return (images - images.mean((1, 2), keepdim=True) - self.margin).clamp(min=0)


DICE = Score("Dice", lambda c: ratio(2 * c.intersection, c.predicted + c.true))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "small", SmallDetector)
        patch.setitem(MAKERS, "halfway", MakerEntry(Halfway, graded=False, seeded=False))
        patch.setitem(PRESETS, "halfway", LabelConfig(maker="halfway", trials=1, refine="threshold"))
        patch.setitem(NOISES, "dim", Noise(dim, dim_triton))
        patch.setitem(FORMATS, "spots", PointFormat(parse_spots, suffixes=(".spots",)))
        patch.setitem(SCORES, "dice", DICE)
        patch.setitem(EXPORTS, "centers", write_centers)
        patch.setitem(METHODS, "above", AboveMean)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames with a bright square each, and a click in each in the toy format."""
    root = tmp_path_factory.mktemp("data")
    write_frames(root)
    lines = []
    for stem, path in find_files(root / "masks").items():
        (point,) = points_from_mask(read_mask(path))
        lines.append(f"{stem}|{point.x}|{point.y}")
    (root / "clicks.spots").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def labels(data: Path) -> Path:
    """A label run with the toy maker from points in the toy format."""
    given = ["--images", data / "images", "--points", data / "clicks.spots", "--device", "cpu"]
    run = data / "labels"
    assert main(["label", *map(str, given), "--preset", "halfway", "--out", str(run)]) == 0
    return run


def test_a_label_maker_and_a_format_make_labels(data: Path, labels: Path) -> None:
    summary = json.loads((labels / "label.json").read_text())
    assert (summary["images"], summary["targets"], summary["skipped"]) == (6, 6, [])
    assert summary["settings"]["maker"] == "halfway"
    for stem, path in find_files(data / "masks").items():
        truth = read_mask(path)
        mask = read_mask(labels / "masks" / f"{stem}.png")
        assert (mask & truth).sum() >= 0.8 * (mask | truth).sum()


def test_an_export_is_written(tmp_path: Path) -> None:
    mask = BoxedMask.of(np.ones((2, 2), bool))
    targets = [ExportedTarget(Point(1.0, 0.0), mask, 0.5)]
    path = export("centers", tmp_path, [ExportedImage("a", "a.png", (9, 9), targets)])
    assert path.read_text() == "a 1.0 0.0\n"


@pytest.mark.usefixtures("gpu")
def test_a_noise_is_drawn_alike_on_both_backends_and_in_trials(data: Path) -> None:
    windows = torch.from_numpy(np.random.default_rng(0).integers(1, 255, (2, 3, 6, 7)).astype(np.float32))
    strength = {"kind": "dim", "intensity": 0.3, "low": -3.5}
    found = []
    for backend in BACKENDS:
        place = device_of(backend)
        index = torch.tensor([3, 4], device=place)
        noisy = add_noise(windows.to(place), index, index, 7, **strength, backend=backend)
        found.append(noisy.cpu())
    assert torch.equal(*found)
    assert 0.15 < float((found[0] != windows).float().mean()) < 0.45
    given = ["--images", data / "images", "--points-from-masks", data / "masks", "--device", "cpu"]
    given += ["--preset", "paper", "--trials", 3, "--noise", "dim", "--out", data / "noisy"]
    assert main(["label", *map(str, given)]) == 0
    settings = json.loads((data / "noisy" / "label.json").read_text())["settings"]
    assert settings["trial"]["noise"] == "dim"


def test_a_metric_is_in_every_score(data: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--pred", labels / "masks", "--truth", data / "masks", "--json", data / "scores.json"]
    assert main(["score", *map(str, given)]) == 0
    scores = json.loads((data / "scores.json").read_text())
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))
    assert "Dice" in capsys.readouterr().out


def test_a_detector_learns_and_predicts(data: Path, labels: Path) -> None:
    run, images = data / "run", data / "images"
    given = ["--images", images, "--masks", labels / "masks", "--val-images", images]
    given += [
        "--val-masks",
        data / "masks",
        "--network",
        "small",
        "--schedule",
        "paper",
        "--epochs",
        1,
        "--batch-size",
        2,
    ]
    given += ["--size", 32, "--device", "cpu", "--out", run]
    assert main(["train", *map(str, given)]) == 0
    with (run / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["dice"]) <= 1
    predict = ["--checkpoint", run / "best.pt", "--images", images, "--out", data / "found"]
    assert main(["predict", *map(str, predict), "--device", "cpu"]) == 0
    assert len(find_files(data / "found" / "masks")) == 6


def test_a_method_predicts_without_training(data: Path) -> None:
    given = ["--method", "above", "--parameter", "margin=20", "--threshold-rule", "adaptive"]
    given += ["--images", data / "images", "--out", data / "proposals", "--device", "cpu"]
    assert main(["predict", *map(str, given)]) == 0
    for stem, path in find_files(data / "proposals" / "masks").items():
        assert (read_mask(path) & read_mask(find_files(data / "masks")[stem])).any()


def test_a_training_run_makes_its_labels_by_a_new_maker(data: Path) -> None:
    given = ["--images", data / "images", "--points", data / "clicks.spots", "--preset", "halfway"]
    given += [
        "--network",
        "small",
        "--schedule",
        "paper",
        "--epochs",
        1,
        "--batch-size",
        2,
        "--size",
        32,
        "--device",
        "cpu",
    ]
    assert main(["train", *map(str, given), "--out", str(data / "one-go")]) == 0
    labels = json.loads((data / "one-go" / "labels" / "label.json").read_text())
    assert labels["settings"]["maker"] == "halfway"


@pytest.mark.parametrize(
    ("command", "name"), [("label", "halfway"), ("label", "dim"), ("train", "halfway"), ("train", "small")]
)
def test_options_list_the_new_names(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    assert name in capsys.readouterr().out


def test_contributing_shows_this_code() -> None:
    """Every line of its examples is here, in the same order within each example."""
    own = [line.strip() for line in Path(__file__).read_text(encoding="utf-8").splitlines()]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(examples) == 7
    for example in examples:
        lines = [line.strip() for line in example.splitlines() if line.strip()]
        lines = [
            re.sub(r'^([A-Z]+)\[("\w+")\] = (.*)$', r"patch.setitem(\1, \2, \3)", line) for line in lines
        ]
        assert [line for line in lines if line not in own and not line.startswith("from mclc_gpu")] == []
