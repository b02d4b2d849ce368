"""The scores of a folder through the Python API."""

import numpy as np
import pytest
from PIL import Image

from mclc_gpu.errors import InputError
from mclc_gpu.score.config import ScoreOptions
from mclc_gpu.score.folders import score_folders


class Recorder:
    """An inspector that keeps what it was given."""

    def __init__(self) -> None:
        self.added: list[tuple] = []

    def inspect(self, stem, mask, truth, tpm):
        return stem, int(mask.sum()), int(truth.sum()), None if tpm is None else float(tpm.max())

    def add(self, looked):
        self.added.append(looked)


@pytest.fixture
def folders(tmp_path):
    """Maps: a at 0.74, b unreadable, c of another size, d without truth; and a truth without a map."""
    truth = np.zeros((20, 20), np.uint8)
    truth[4:6, 4:6] = 255
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
    for name in "abcz":
        Image.fromarray(truth).save(tmp_path / "truth" / f"{name}.png")
    for name in "ad":
        Image.fromarray(truth // 4 * 3).save(tmp_path / "pred" / f"{name}.png")
    (tmp_path / "pred" / "b.png").write_bytes(b"no image")
    Image.fromarray(truth[:10]).save(tmp_path / "pred" / "c.png")
    return {"pred": tmp_path / "pred", "truth": tmp_path / "truth"}


def test_what_cannot_be_scored_is_reported(folders):
    recorder = Recorder()
    found = score_folders(ScoreOptions(**folders, threshold=0.5), inspector=recorder)
    assert [image.name for image in found.scores.images] == ["a"]
    assert found.scores.compute().iou == 1
    assert found.roc is None
    reasons = {item.file.split("/")[-1]: item.why for item in found.skipped}
    assert set(reasons) == {"b.png", "c.png", "d.png"}
    assert "20x10" in reasons["c.png"]
    assert found.missing == 1
    assert recorder.added == [("a", 4, 4, pytest.approx(189 / 255))]


def test_a_list_says_what_to_score(folders, tmp_path):
    (tmp_path / "list.txt").write_text("a\nghost\n")
    recorder = Recorder()
    found = score_folders(ScoreOptions(**folders, list=tmp_path / "list.txt"), inspector=recorder)
    assert [item.file for item in found.skipped] == ["ghost"]
    assert found.missing == 0
    assert recorder.added == [("a", 4, 4, None)]


def test_a_curve_needs_probability_maps(folders):
    roc = score_folders(ScoreOptions(**folders, threshold=0.9), curve=True).roc
    assert roc.pd[np.flatnonzero(roc.thresholds == 0.5)] == 1
    with pytest.raises(InputError, match="threshold"):
        score_folders(ScoreOptions(**folders), curve=True)


def test_nothing_to_score_gives_no_scores(folders, tmp_path):
    (tmp_path / "list.txt").write_text("b\n")
    found = score_folders(ScoreOptions(**folders, list=tmp_path / "list.txt"))
    assert found.scores.images == []
    assert len(found.skipped) == 1
