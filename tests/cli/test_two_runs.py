"""Two runs at once: in one folder the second is refused and touches nothing, in two folders both work."""

import os
import signal

import pytest
from processes import command, ended, kill, wait_until_stopped
from training_data import run_argv, write_frames

from mclc_gpu.cli.main import main

pytestmark = pytest.mark.usefixtures("tiny_network")
SOME = {
    "label": ("--preset", "paper", "--trials", 300),
    "train": ("--network", "tiny", "--schedule", "paper", "--epochs", 8, "--batch-size", 2, "--size", 32),
    "predict": (),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Frames, and a whole run of each command on them."""
    root = tmp_path_factory.mktemp("runs")
    write_frames(root, 6, 40)
    for name in ("label", "train", "predict"):
        assert main(argv(root, root / name, name)) == 0
    return root


@pytest.fixture
def first():
    """Processes of a test; those still running at its end are killed."""
    processes = []
    yield processes
    for process in processes:
        kill(process)


def argv(root, out, name, *more):
    return run_argv(root, out, name, *SOME[name], *more)


def files_of(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def lasting(out):
    """Files that are the same however long a run took."""
    kinds = ".png", ".csv", ".tar"
    return {name: content for name, content in files_of(out).items() if name.endswith(kinds)}


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("label", "label.partial.jsonl"),
        ("label", "label.json"),  # the overview and the report come after it
        ("train", "metrics.csv"),
        ("predict", "predict.partial.jsonl"),
    ],
)
def test_the_second_in_a_folder_is_refused(root, tmp_path, capsys, first, name, moment):
    out = tmp_path / "out"
    process = command(argv(root, out, name), stop=out / moment)
    first.append(process)
    wait_until_stopped(process)
    before = files_of(out)
    for more in ([], ["--resume"], ["--overwrite"]):
        assert main(argv(root, out, name, *more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{out}: " in line
        assert f"another {name} run is active there" in line or (name == "train" and not more)
        assert files_of(out) == before
    os.kill(process.pid, signal.SIGCONT)
    assert ended(process) == 0
    assert lasting(out) == lasting(root / name)


@pytest.mark.parametrize("name", ["label", "predict"])
def test_two_at_once_in_two_folders(root, tmp_path, first, name):
    first += [command(argv(root, tmp_path / which, name)) for which in ("a", "b")]
    assert [ended(process) for process in first] == [0, 0]
    assert lasting(tmp_path / "a") == lasting(tmp_path / "b") == lasting(root / name)
