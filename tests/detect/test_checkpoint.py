"""Checkpoints: round trip, and files that are refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mclc_gpu.detect.checkpoint import Normalization, load_checkpoint, save_checkpoint
from mclc_gpu.errors import InputError
from mclc_gpu.networks.zoo import build

STATE = {
    "epoch": 3,
    "scores": {"iou": 0.5, "fa": None},
    "rows": [{"loss": 0.1}],
    "optimizer": {0: torch.ones(2)},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "best.pt",
        network=build("acm", 3),
        name="acm",
        in_channels=3,
        normalization=Normalization(80.5, 31.25),
        settings={"lr": 0.05},
        state=STATE,
    )
    return tmp_path / "best.pt"


def changed(path: Path, **changes: Any) -> Path:
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    before = torch.get_rng_state()
    trained = load_checkpoint(path, "cpu")
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is its own"
    torch.manual_seed(0)
    for name, value in build("acm", 3).state_dict().items():
        torch.testing.assert_close(trained.network.state_dict()[name], value, rtol=0, atol=0)
    assert not trained.network.training
    assert (trained.name, trained.in_channels) == ("acm", 3)
    assert trained.normalization == Normalization(80.5, 31.25)
    assert trained.settings == {"lr": 0.05}
    assert trained.state.pop("optimizer")[0].tolist() == [1, 1]
    assert trained.state == {key: value for key, value in STATE.items() if key != "optimizer"}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pt: no such file"):
        load_checkpoint(tmp_path / "gone.pt", "cpu")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"PK\x03\x04 not a zip", bytes(1000)])
def test_files_that_are_not_torch_s(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: damaged, or not written by mclc-gpu train"):
        load_checkpoint(tmp_path / "x.pt", "cpu")


def test_a_truncated_checkpoint(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"best\.pt: damaged"):
        load_checkpoint(path, "cpu")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": Malicious()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="damaged, or not written by"):
        load_checkpoint(tmp_path / "x.pt", "cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [{"model": 1}, [1, 2], torch.ones(3)])
def test_files_of_other_programs(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match="not a checkpoint of mclc-gpu train"):
        load_checkpoint(tmp_path / "x.pt", "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "checkpoint version 2, this mclc-gpu reads 1"),
        ({"network": "future"}, "network 'future'.*use the version"),
        ({"network": "resunet"}, "not those of this version's resunet"),
        ({"in_channels": 1}, "not those of this version's acm"),
        ({"normalisation": {"mean": 0.0}}, "not those of this version's acm"),
        ({"settings": None, "state": None}, "settings, state missing"),
        ({"threshold": 1.5}, "damaged: threshold 1.5: a probability is 0 to 1"),
        ({"threshold": "high"}, "damaged: "),
    ],
)
def test_checkpoints_that_do_not_fit(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_checkpoint(changed(path, **changes), "cpu")


def test_thresholds_are_kept_and_files_without_one_are_read(path: Path) -> None:
    assert load_checkpoint(path, "cpu").threshold is None
    assert load_checkpoint(changed(path, threshold=0.375), "cpu").threshold == 0.375
    content = torch.load(path, weights_only=True)
    del content["threshold"]  # as versions wrote it that calibrated none
    torch.save(content, path)
    assert load_checkpoint(path, "cpu").threshold is None
