"""Training runs on a tiny set: files, resuming and failures."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_data import Tiny, write_frames

from mclc_gpu.data.datasets import Sample, ValidationSet
from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.detect.config import EvaluateOptions, PredictOptions
from mclc_gpu.detect.evaluate import evaluate_images
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.detect.predict import predict_images
from mclc_gpu.distributed import Ranks
from mclc_gpu.errors import InputError
from mclc_gpu.networks.zoo import NETWORKS
from mclc_gpu.train.config import DataSet, TrainConfig, TrainOptions
from mclc_gpu.train.data import open_training_set
from mclc_gpu.train.fit import fit, train_detector, validate
from mclc_gpu.train.folder import columns
from mclc_gpu.train.trainer import Trainer

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", Tiny)
        yield


def settings(**changes: Any) -> TrainConfig:
    return replace(TrainConfig("tiny", "paper", epochs=3, batch_size=4, size=32), **changes)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return write_frames(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def undisturbed(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("run")
    fit(samples, settings(), out, validation=samples[:3], device="cpu")
    return out


def curve(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path, "cpu").network.state_dict()


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    for name in ("best.pt", "last.pt"):
        for a, b in zip(weights(one / name).values(), weights(other / name).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_run_learns_and_its_best_epoch_scores_as_written(samples: list[Sample], tmp_path: Path) -> None:
    config = settings(epochs=12)
    fitted = fit(samples, config, tmp_path, validation=samples, device="cpu")
    rows = curve(tmp_path)
    assert list(rows[0]) == list(columns())
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    best = load_checkpoint(fitted.best, "cpu")
    assert best.state["epoch"] == fitted.best_epoch
    assert float(rows[fitted.best_epoch - 1]["iou"]) == max(float(row["iou"]) for row in rows) > 0.3
    predictor = Predictor(best.network, best.normalization)
    again, _ = validate(predictor, ValidationSet(samples), Ranks(CPU))
    assert again.as_dict() == best.state["scores"] == fitted.scores
    assert not fitted.collapsed


def test_what_a_run_writes(undisturbed: Path) -> None:
    assert {path.name for path in undisturbed.iterdir()} == {
        "config.json", "metrics.csv", "best.pt", "last.pt", "events",
    }  # fmt: skip
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["settings"]["network"] == "tiny"
    assert config["settings"]["lr"] == 0.05
    assert (config["images"], config["images_with_targets"], config["validation_images"]) == (6, 6, 3)
    assert config["parameters"] == sum(p.numel() for p in Tiny().parameters())
    assert config["skipped"] == []


def test_tensorboard_reads_the_events(undisturbed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(undisturbed / "events")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    expected = [(int(row["epoch"]), float(row["loss"])) for row in curve(undisturbed)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_runs_repeat(undisturbed: Path, samples: list[Sample], tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    fit(samples, settings(), tmp_path, validation=samples[:3], device="cpu")
    assert_same_run(tmp_path, undisturbed)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is its own"


@pytest.mark.parametrize("step", range(1, 12))
def test_a_run_stopped_at_any_write_resumes_to_the_same_curve(
    undisturbed: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A killed process leaves what it had renamed; here the `step`-th rename and all after it fail."""
    calls = 0

    def failing(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= step:
            raise KeyboardInterrupt
        os.rename(*paths)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        fit(samples, settings(), tmp_path, validation=samples[:3], device="cpu")
    monkeypatch.undo()
    fit(samples, settings(), tmp_path, validation=samples[:3], device="cpu", resume=True)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_other_optimizers_resume_too(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = settings(optimizer=optimizer, epochs=2)
    fit(samples, config, tmp_path / "whole", device="cpu")
    original = Trainer.run_epoch

    def interrupted(self: Trainer, epoch: int) -> tuple[float, float, int]:
        if epoch == 1:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(samples, config, tmp_path / "parts", device="cpu")
    monkeypatch.undo()
    fit(samples, config, tmp_path / "parts", device="cpu", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_resumes_to_itself(undisturbed: Path, samples: list[Sample]) -> None:
    before = (undisturbed / "last.pt").read_bytes()
    fitted = fit(samples, settings(), undisturbed, validation=samples[:3], device="cpu", resume=True)
    assert (undisturbed / "last.pt").read_bytes() == before
    assert len(fitted.rows) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"lr": 0.01}, "lr 0.05, not 0.01"),
        ({"epochs": 2}, "epochs 3, not 2"),
        ({"network": "acm"}, "network tiny, not acm"),
    ],
)
def test_resuming_with_another_setting_names_it(
    undisturbed: Path, samples: list[Sample], change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        fit(samples, settings(**change), undisturbed, validation=samples[:3], device="cpu", resume=True)


def test_a_run_of_the_first_version_resumes(undisturbed: Path, samples: list[Sample], tmp_path: Path) -> None:
    """Its config.json knows no schedules, its curve no pixels."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    config = json.loads((out / "config.json").read_text())
    for name in ("schedule", "hold_out", "pixels", "rounds", "init"):
        del config["settings"][name]
    (out / "config.json").write_text(json.dumps(config))
    content = torch.load(out / "last.pt", weights_only=True)
    del content["state"]["best"]["threshold"]
    for row in content["state"]["rows"]:
        del row["mpixels"]
    torch.save(content, out / "last.pt")
    longer = settings(epochs=4)
    fitted = fit(samples, longer, out, validation=samples[:3], device="cpu", resume=True)
    pixels = [row["mpixels"] for row in fitted.rows]
    np.testing.assert_allclose(pixels, np.arange(1, 5) * 8 * 32 * 32 / 1e6)


def test_resuming_with_other_data_is_refused(undisturbed: Path, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="other images or labels"):
        fit(samples[1:], settings(), undisturbed, validation=samples[:3], device="cpu", resume=True)
    with pytest.raises(InputError, match="validation_set"):
        fit(samples, settings(), undisturbed, validation=samples[:2], device="cpu", resume=True)


def test_a_folder_in_use_is_refused(undisturbed: Path, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds an earlier run; use --resume"):
        fit(samples, settings(), undisturbed, device="cpu")
    (tmp_path / "best.pt").write_bytes(b"someone's")
    with pytest.raises(InputError, match=r"best\.pt: was not written by mclc-gpu train"):
        fit(samples, settings(), tmp_path, device="cpu", overwrite=True)


def test_overwriting_leaves_nothing_of_the_earlier_run(samples: list[Sample], tmp_path: Path) -> None:
    config = settings(epochs=1)
    fit(samples, replace(config, epochs=2), tmp_path, device="cpu")
    fit(samples, replace(config, network="acm"), tmp_path, device="cpu", overwrite=True)
    assert len(curve(tmp_path)) == 1
    assert len(list((tmp_path / "events").iterdir())) == 1
    assert load_checkpoint(tmp_path / "last.pt", "cpu").name == "acm"


def test_without_validation_the_last_epoch_is_the_best(samples: list[Sample], tmp_path: Path) -> None:
    fitted = fit(samples, settings(epochs=2), tmp_path, device="cpu")
    assert (fitted.best_epoch, fitted.scores) == (2, None)
    for a, b in zip(weights(fitted.best).values(), weights(fitted.last).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert {row["iou"] for row in curve(tmp_path)} == {""}


def test_validation_now_and_then_never_misses_the_last_epoch(samples: list[Sample], tmp_path: Path) -> None:
    fit(samples, settings(validate_every=2), tmp_path, validation=samples[:2], device="cpu")
    assert [bool(row["pd"]) for row in curve(tmp_path)] == [False, True, True]


def test_diverged_training_stops_with_advice(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def step(self: Trainer, crops: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        lr = self.optimizer.param_groups[0]["lr"]
        sums = original(self, crops, truth)
        sums[0] *= torch.nan if lr < 0.05 else 1
        return sums

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(
        InputError, match=r"loss of epoch 2 is nan.*lr below 0\.05; last\.pt is that of epoch 1"
    ):
        fit(samples, settings(), tmp_path, device="cpu")
    assert load_checkpoint(tmp_path / "last.pt", "cpu").state["epoch"] == 1


def test_a_network_that_marks_nothing_is_reported(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Predictor, "probabilities", lambda _, images: [np.zeros(i.shape[:2], np.float32) for i in images]
    )
    fitted = fit(samples, settings(epochs=1), tmp_path, validation=samples[:2], device="cpu")
    assert fitted.collapsed
    assert fitted.rows[0]["iou"] == 0
    assert fitted.rows[0]["precision"] is None


def test_unusable_inputs_are_reported(samples: list[Sample], tmp_path: Path) -> None:
    gone = Sample("gone", tmp_path / "gone.png", tmp_path / "gone.png")
    config = settings(epochs=1)
    fitted = fit([*samples, gone], config, tmp_path / "a", validation=[gone, samples[0]], device="cpu")
    assert [Path(item.file).name for item in fitted.skipped] == ["gone.png", "gone.png"]
    listed = json.loads((tmp_path / "a" / "config.json").read_text())["skipped"]
    assert listed == [asdict(item) for item in fitted.skipped]
    with pytest.raises(InputError, match=r"nothing to validate on: .*gone\.png"):
        fit(samples, config, tmp_path / "b", validation=[gone], device="cpu")


def test_half_precision_trains(samples: list[Sample], tmp_path: Path) -> None:
    config = settings(epochs=8, amp=True)
    fit(samples, config, tmp_path, validation=samples[:2], device="cpu")
    rows = curve(tmp_path)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_one_image_fills_a_batch(samples: list[Sample], tmp_path: Path) -> None:
    fitted = fit(samples[:1], settings(epochs=1), tmp_path, device="cpu")
    assert np.isfinite(fitted.rows[0]["loss"])


def test_streamed_and_resident_runs_are_the_same(samples: list[Sample]) -> None:
    def sums(budget: int | None) -> tuple[float, float, int]:
        data = open_training_set(samples, 1, CPU, budget)
        return Trainer(settings(), data, Ranks(CPU)).run_epoch(0)

    assert sums(100) == sums(None)


def test_held_out_images_are_the_same_from_memory_and_from_files(samples: list[Sample]) -> None:
    kept, read = ValidationSet(samples), ValidationSet(samples, budget=100)
    assert read._kept is None
    for one, other in zip(kept, read, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


def test_a_network_registered_at_run_time_trains_from_points_and_predicts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_frames(data)
    names = tmp_path / "list.txt"
    names.write_text("frame0\nframe1\nghost\n")
    seen: list[str] = []
    options = TrainOptions(
        sets=[
            DataSet(data / "images", points_from_masks=data / "masks", list=names),
            DataSet(data / "images", masks=data / "masks"),
        ],
        out=tmp_path / "run",
        config=settings(),
        validation=[DataSet(data / "images", masks=data / "masks", list=names)],
        device="cpu",
    )
    fitted = train_detector(
        options,
        report=lambda fitted: seen.append(fitted.best.name),
        label_report=lambda run: seen.append(run.folder.name),
    )
    assert seen == ["1", "best.pt"]
    assert [sample.name for sample in fitted.samples[:3]] == ["1/frame0", "1/frame1", "2/frame0"]
    assert [item.file for item in fitted.skipped] == ["ghost"], "of the validation"
    assert [item.file for run in fitted.labels for item in run.skipped] == ["ghost"]
    trained = {"checkpoint": fitted.best, "images": data / "images", "device": "cpu"}
    evaluation = evaluate_images(EvaluateOptions(**trained, masks=data / "masks"))
    assert evaluation.trained.name == "tiny"
    summary = predict_images(PredictOptions(**trained, out=tmp_path / "out"))
    assert (summary["images"], summary["checkpoint"]["network"]) == (6, "tiny")
    again = train_detector(replace(options, resume=True))
    assert again.rows == fitted.rows


def test_labeling_leaves_the_number_of_threads(tmp_path: Path) -> None:
    """Numba raises it to the number of cores when it starts: a resumed run would train with fewer."""
    write_frames(tmp_path)
    program = f"""
import torch
from pathlib import Path
from mclc_gpu.train.config import DataSet, TrainConfig, TrainOptions
from mclc_gpu.train.fit import train_detector

root = Path({str(tmp_path)!r})
frames = DataSet(root / "images", points_from_masks=root / "masks")
config = TrainConfig("acm", "paper", epochs=1, batch_size=2, size=16)
train_detector(TrainOptions([frames], root / "run", config, device="cpu"))
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
