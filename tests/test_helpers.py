"""The helpers of the tests do what the tests rely on."""

import io
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from clustering_reference import canonical, features, lloyd, near_tie
from devices import BACKENDS, device_of, on_cpu
from fuzzing import Hung, changed, damaged, limited, only_input_errors, rngs
from PIL import Image
from processes import command, ended, kill, wait_until_stopped
from training_data import write_frames

from mclc_gpu.errors import InputError


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(file, "PNG")
    return file.getvalue()


def test_damage_is_repeatable_and_changes_most_files() -> None:
    whole = png()
    first, second = ([damaged(whole, rng, whole) for rng in rngs(50)] for _ in range(2))
    assert first == second
    assert sum(data != whole for data in first) > 40
    opened = 0
    for data in first:
        try:
            Image.open(io.BytesIO(data)).load()
            opened += 1
        except Exception:
            continue
    assert 0 < opened < 50, "some damage must survive the checksums, some must not"


def test_changed_values_leave_the_original_alone() -> None:
    value = {"a": [1, {"b": 2}], "c": "x"}
    others = [changed(value, rng) for rng in rngs(30)]
    assert value == {"a": [1, {"b": 2}], "c": "x"}
    assert sum(repr(other) != repr(value) for other in others) > 25


def test_only_input_errors_are_accepted() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert only_input_errors(lambda: None)
    assert not only_input_errors(lambda: fail(InputError("bad")))
    with pytest.raises(ValueError, match="bad"):
        only_input_errors(lambda: fail(ValueError("bad")))


def test_work_that_takes_too_long_is_ended() -> None:
    with limited(), pytest.raises(Hung):
        signal.raise_signal(signal.SIGALRM)  # as the alarm does in the end


def test_near_ties_are_told_from_errors() -> None:
    feature = features(np.random.default_rng(1).random((12, 13, 1)), 0.5)

    def right(iterations: int) -> np.ndarray:
        return lloyd(feature, 4, iterations)

    def wrong(iterations: int) -> np.ndarray:
        labels = right(iterations).copy()
        if iterations > 1:
            labels[:6] = labels[0, 0]
        return labels

    assert not near_tie(wrong, right, feature, 4, 5)
    assert (canonical(right(3)) == canonical(right(3) * 7 + 1)).all()


@pytest.mark.usefixtures("gpu")
def test_tensors_of_results_are_moved() -> None:
    @dataclass(frozen=True)
    class Result:
        values: torch.Tensor
        number: int

    for backend in BACKENDS:
        moved = on_cpu(Result(torch.ones(2, device=device_of(backend)), 3))
        assert (moved.values.device.type, moved.number) == ("cpu", 3)


def test_commands_in_processes(tmp_path: Path) -> None:
    write_frames(tmp_path, 2)
    given = ["label", "--images", tmp_path / "images", "--points-from-masks", tmp_path / "masks"]
    log, first = tmp_path / "log.txt", tmp_path / "out" / "masks" / "frame0.png"
    process = command([*given, "--out", tmp_path / "out"], log=log, stop=first)
    wait_until_stopped(process)
    assert first.exists()
    assert kill(process)
    assert not kill(process)
    process = command([*given, "--out", tmp_path / "out", "--resume"], log=log)
    assert ended(process) == 0
    assert "2 images" in log.read_text()
    assert ended(command(["label", "--bad"])) == 2
