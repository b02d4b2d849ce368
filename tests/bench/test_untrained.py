"""Tables, rates and pictures of the detectors that need no training, on a few synthetic frames."""

import json

import pytest
from PIL import Image

from mclc_gpu.bench import untrained
from mclc_gpu.data.synthetic import write_dataset


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, 3, 0, size=(64, 96))
    return root


def test_scores_and_pictures(frames, tmp_path, capsys, monkeypatch):
    argv = ["--images", frames / "images", "--masks", frames / "masks", "--out", tmp_path]
    argv = [str(word) for word in [*argv, "--methods", "tophat,mpcm", "--device", "cpu"]]
    assert untrained.main(argv) == 0
    text = (tmp_path / "untrained.md").read_text()
    assert "| tophat" in text
    assert "7.1 / 79.8 / 1012" in text
    assert "numpy" in text
    scores = json.loads((tmp_path / "tophat.json").read_text())["scores"]
    assert set(scores) == {"adaptive", "k-sigma", "best F1"}
    assert scores["best F1"]["pd"] > 0.5
    assert Image.open(tmp_path / "untrained.png").size[0] > 3 * 150
    before = capsys.readouterr().out
    monkeypatch.setattr(untrained, "measure", None)  # scores are kept
    assert untrained.main(argv) == 0
    assert capsys.readouterr().out == before


def test_bad_arguments(frames, capsys):
    common = ["--images", str(frames / "images"), "--masks", str(frames / "masks")]
    assert untrained.main([*common, "--methods", "hat"]) == 2
    assert "tophat" in capsys.readouterr().err
