"""Exported files: every registered detector in onnxruntime, at sizes that it was not exported at."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mclc_gpu.cli.main import main
from mclc_gpu.data.images import network_levels
from mclc_gpu.detect import export as exporting
from mclc_gpu.detect.checkpoint import Normalization, load_checkpoint, save_checkpoint
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.networks.blocks import Detector, Logits
from mclc_gpu.networks.zoo import NETWORKS, build

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"acm"}  # the others take some seconds up to a minute each


class Halving(Detector):
    """Small detector that pads."""

    divisor = 2
    smallest_size = 4

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 4, 2, 2), nn.PixelShuffle(2))

    def segment(self, x: Tensor) -> Logits:
        return Logits((self.layers(x),))


@pytest.fixture
def halving(monkeypatch):
    monkeypatch.setitem(NETWORKS, "halving", Halving)


def checkpoint(
    folder: Path, name: str, channels: int = 1, threshold: float | None = None, robust=True
) -> Path:
    """Save a network with random weights, statistics and thus probabilities between 0 and 1."""
    torch.manual_seed(0)
    network = build(name, channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    path = folder / f"{name}.pt"
    save_checkpoint(
        path, network=network, name=name, in_channels=channels, normalization=Normalization(80, 20, robust),
        settings={}, state={}, threshold=threshold,
    )  # fmt: skip
    return path


def run(*argv: object) -> int:
    return main(["export", *map(str, argv)])


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NETWORKS]
)
def test_every_detector_runs_without_pytorch(name, tmp_path, capsys):
    path = checkpoint(tmp_path, name, threshold=0.375)
    assert run("--checkpoint", path, "--format", "onnx") == 0
    shown = capsys.readouterr().out
    assert f"{name}, threshold 0.375 (from the checkpoint)" in shown
    assert "onnxruntime gives the probabilities of PyTorch within" in shown
    session = session_of(tmp_path / f"{name}.onnx")
    trained = load_checkpoint(path, "cpu")
    predictor = Predictor(trained.network, trained.normalization)
    rng = np.random.default_rng(0)
    for shape in ((77, 51), (64, 130)):
        frame = rng.integers(0, 256, shape, np.uint8)
        (found,) = session.run(None, {"levels": frame[None, None].astype(np.float32)})
        assert found.shape == (1, 1, *shape)
        (expected,) = predictor.probabilities([frame])
        assert expected.std() > 1e-4, "a constant would show nothing"
        np.testing.assert_allclose(found[0, 0], expected, atol=1e-4)


def test_a_file_says_what_it_needs(halving, tmp_path):
    path = checkpoint(tmp_path, "halving", channels=3)
    assert run("--checkpoint", path, "--out", tmp_path / "to" / "a.onnx", "--threshold", "0.25") == 0
    session = session_of(tmp_path / "to" / "a.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["network"], facts["threshold"], facts["threshold_from"]) == ("halving", "0.25", "given")
    assert "four pixels" in facts["scaling"]
    (levels,), (probability,) = session.get_inputs(), session.get_outputs()
    assert (levels.name, levels.shape) == ("levels", ["batch", 3, "height", "width"])
    assert (probability.name, len(probability.shape)) == ("probability", 4)
    for shape in ((1, 3, 1, 1), (5, 3, 3, 9), (2, 3, 300, 7)):
        (found,) = session.run(None, {"levels": np.full(shape, 90, np.float32)})
        assert found.shape == (shape[0], 1, *shape[2:])
        assert ((found > 0) & (found < 1)).all()
    old = checkpoint(tmp_path, "halving", robust=False)
    assert run("--checkpoint", old) == 0
    facts = session_of(tmp_path / "halving.onnx").get_modelmeta().custom_metadata_map
    assert (facts["threshold"], facts["threshold_from"]) == ("0.5", "default")
    assert "four pixels" not in facts["scaling"]


def test_a_file_that_differs_is_not_written(halving, tmp_path, capsys, monkeypatch):
    path = checkpoint(tmp_path, "halving")
    monkeypatch.setattr(exporting, "onnx_difference", lambda *_: 0.01)
    assert run("--checkpoint", path) == 2
    assert "differ by 0.01" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["halving.pt"]
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert run("--checkpoint", path) == 0
    assert "not compared" in capsys.readouterr().out
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert run("--checkpoint", path, "--overwrite") == 2
    assert "needs onnx and onnxscript; pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "exists already; use --overwrite"),
        (["--out", "{}/halving.pt"], "is an input"),
        (["--out", "{}"], "is a folder"),
        (["--checkpoint", "{}/gone.pt"], "gone.pt: no such file"),
        (["--threshold", "2"], "--threshold 2"),
    ],
)
def test_bad_input(halving, tmp_path, capsys, more, message):
    checkpoint(tmp_path, "halving")
    (tmp_path / "halving.onnx").write_bytes(b"kept")
    argv = ["--checkpoint", tmp_path / "halving.pt", *(word.format(tmp_path) for word in more)]
    assert run(*argv) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "halving.onnx").read_bytes() == b"kept"


def test_the_code_in_the_documentation_gives_what_predict_gives(halving, tmp_path, monkeypatch):
    path = checkpoint(tmp_path, "halving")
    monkeypatch.chdir(tmp_path)
    assert run("--checkpoint", path, "--out", "best.onnx") == 0
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/onnx.md").read_text(encoding="utf-8"), re.DOTALL
    )
    trained = load_checkpoint(path, "cpu")
    predictor = Predictor(trained.network, trained.normalization)
    rng = np.random.default_rng(0)
    deep = rng.integers(8000, 9000, (40, 50)).astype(np.uint16)
    deep[5, 6] = 65535
    flat = np.full((40, 50), 8000, np.uint16)
    spot = flat.copy()
    spot[5, 6] = 9000
    for frame in (rng.integers(0, 256, (40, 50), np.uint8), deep, spot, flat):
        Image.fromarray(frame).save("frame.png")
        names: dict[str, object] = {}
        exec(code, names)
        (expected,) = predictor.probabilities([frame])
        np.testing.assert_allclose(names["probability"], expected, atol=1e-4)
        np.testing.assert_array_equal(names["mask"], names["probability"] > 0.5)
        assert (network_levels(frame, 1).max() > 0) == (frame is not flat)
