"""Processes killed at any moment: nothing is lost or half-written, and the end is that of a whole run."""

import random
import socket
import time

import pytest
import torch
from processes import command, ended, kill, wait_for, wait_until_stopped
from training_data import write_frames

from mclc_gpu.cli.main import main
from mclc_gpu.data.files import members_of
from mclc_gpu.data.images import read_image
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.detect.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("tiny_network")
KILLS = 100  # of each test at random moments
TIMED = {"label.json", "report.html", "config.json", "scores.json"}  # they state the seconds


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, 30, 1, size=(64, 64), test_share=0)
    return root


@pytest.fixture(scope="module")
def labels(frames):
    """A run that nothing disturbed, and a folder for others."""
    finish(label(frames, frames / "whole"))
    return frames / "whole"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Frames, and a training run on them that nothing disturbed."""
    root = tmp_path_factory.mktemp("trained")
    write_frames(root, 4, 32)
    finish(train(root, root / "whole"))
    return root


def argv(data, out, name, *more):
    given = [name, "--images", data / "images", "--points-from-masks", data / "masks", "--out", out]
    return [*given, "--device", "cpu", *more]


def label(data, out, *more):
    some = "--preset", "paper", "--refine", "threshold", "--trials", 300, "--no-report"
    return argv(data, out, "label", *some, *more)


def train(data, out, *more):
    some = "--network", "tiny", "--schedule", "paper", "--epochs", 6, "--batch-size", 2, "--size", 32
    held = "--val-images", data / "images", "--val-masks", data / "masks"
    return argv(data, out, "train", *some, *held, *more)


def finish(argv):
    assert main(list(map(str, argv))) == 0


def files_of(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in TIMED and path.parent.name != "events"
    }


def check_whole(out):
    """Every file that can be seen in a folder is whole."""
    for path in out.rglob("[!.]*.*"):
        if path.suffix == ".png":
            read_image(path)
        elif path.suffix == ".tar":
            assert members_of(path)
        elif path.suffix == ".pt":
            load_checkpoint(path, "cpu")
        elif path.suffix == ".csv":
            assert path.read_bytes().endswith(b"\n")


def kill_after(argv, out, file):
    """Kill a run as soon as it has written a file, and resume it."""
    process = command(argv, stop=out / file)
    wait_until_stopped(process)
    assert kill(process)
    check_whole(out)
    finish([*argv, "--resume"])


def kill_at_random(argv, out, seed):
    """Kill a run at random moments, the first once it has begun, and let it end."""
    rng = random.Random(seed)
    process = command(argv)
    wait_for(out, process)
    killed = 0
    for _ in range(KILLS):
        time.sleep(rng.expovariate(1.5))
        killed += kill(process)
        check_whole(out)
        process = command([*argv, "--resume"])
    kill(process)
    finish([*argv, "--resume"])
    assert killed > 0


def check_trained_alike(whole, out):
    """Check that two training runs wrote the same files; checkpoints may differ in their pickled bytes."""
    one, other = files_of(whole), files_of(out)
    for name in ("best.pt", "last.pt"):
        first, second = (torch.load(run / name, weights_only=True)["weights"] for run in (whole, out))
        for a, b in zip(first.values(), second.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        one.pop(name), other.pop(name)
    assert one == other


def test_a_killed_label_run_resumes_to_the_same_bytes(frames, labels, tmp_path):
    kill_after(label(frames, tmp_path), tmp_path, "masks/synthetic_00012.png")
    assert files_of(tmp_path) == files_of(labels)


def test_a_killed_label_run_resumes_to_the_same_archives(frames, tmp_path):
    finish(label(frames, tmp_path / "whole", "--shards", 7))
    out = tmp_path / "out"
    kill_after(label(frames, out, "--shards", 7), out, "shards/000002.tar")
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "file", ["metrics.csv", "last.pt", pytest.param("report/scores.json", marks=pytest.mark.slow)]
)
def test_a_killed_training_run_resumes_to_the_same_curve(trained, tmp_path, file):
    out = tmp_path / "out"
    kill_after(train(trained, out), out, file)
    check_trained_alike(trained / "whole", out)


@pytest.mark.slow
def test_label_killed_at_random(frames, labels, tmp_path):
    kill_at_random(label(frames, tmp_path), tmp_path, 1)
    assert files_of(tmp_path) == files_of(labels)


@pytest.mark.slow
def test_label_into_archives_killed_at_random(frames, tmp_path):
    finish(label(frames, tmp_path / "whole", "--shards", 7))
    kill_at_random(label(frames, tmp_path / "out", "--shards", 7), tmp_path / "out", 2)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_train_killed_at_random(trained, tmp_path):
    kill_at_random(train(trained, tmp_path / "out"), tmp_path / "out", 3)
    check_trained_alike(trained / "whole", tmp_path / "out")


@pytest.mark.parametrize("moment", ["cleared", "begun"])
def test_a_run_killed_while_it_replaces_another(frames, tmp_path, moment):
    """--overwrite with fewer images: nothing of the run before is left, whenever it was killed."""
    out, names = tmp_path / "out", tmp_path / "names.txt"
    names.write_text("synthetic_00001\nsynthetic_00002\n")
    finish(label(frames, tmp_path / "whole", "--list", names))
    finish(label(frames, out, "--shards", 3))
    process = command(label(frames, out, "--list", names, "--overwrite"))
    while process.is_alive() and (
        (out / "label.json").exists() if moment == "cleared" else not (out / "label.partial.jsonl").exists()
    ):
        time.sleep(0.0002)
    kill(process)
    # What was not cleared whole is no run that could be resumed; anything else is.
    again = label(frames, out, "--list", names)
    if main([str(word) for word in (*again, "--resume")]) == 2:
        finish([*again, "--overwrite"])
    assert files_of(out) == files_of(tmp_path / "whole")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def kill_one_of_two(argv, moment, victim, log):
    """Kill one of two processes of a run once there is a file; the other ends by itself and says why."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in (0, 1):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(command(argv, environment, log if rank != victim else None))
    try:
        wait_for(moment, ranks[0])
        assert kill(ranks[victim])
        assert ended(ranks[1 - victim]) == 2
    finally:
        for process in ranks:
            kill(process)
    (line,) = [line for line in log.read_text().splitlines() if "error" in line]
    assert "another rank exited; fix the error it reported and rerun with --resume" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others(frames, labels, tmp_path, victim):
    """Also without torchrun, which ends them itself."""
    out, log = tmp_path / "out", tmp_path / "log.txt"
    kill_one_of_two(label(frames, out), out / "label.partial.1.jsonl", victim, log)
    finish(label(frames, out, "--resume"))
    assert files_of(out) == files_of(labels)


def test_a_process_that_is_killed_ends_the_training_of_the_others(tmp_path):
    write_frames(tmp_path, 4, 32)
    out, more = tmp_path / "out", ("--epochs", 2000, "--batch-size", 4)
    kill_one_of_two(train(tmp_path, out, *more), out / "metrics.csv", 1, tmp_path / "log.txt")
