"""Files that cannot be written: exit code 2, one line that names the file, nothing half-written, and a run
that goes on once there is room."""

import builtins
import errno
import io
import os
import resource
import shutil
from pathlib import Path

import pytest
from training_data import run_argv, write_frames

from mclc_gpu.cli.main import main

pytestmark = pytest.mark.usefixtures("tiny_network")
TIMED = {"label.json", "predict.json", "config.json", "scores.json", "report.html"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Frames, and whole runs on them."""
    root = tmp_path_factory.mktemp("runs")
    write_frames(root, 4, 32)
    for name in RUNS:
        assert main(argv(root, root / name, name)) == 0
    return root


RUNS = {
    "files": ("label", "--preset", "paper", "--trials", 3),
    "archives": ("label", "--shards", 2),
    "train": (
        "train",
        "--network",
        "tiny",
        "--schedule",
        "paper",
        "--epochs",
        2,
        "--batch-size",
        2,
        "--size",
        32,
    ),
    "predict": ("predict",),
}


def argv(root, out, name, *more):
    return run_argv(root, out, *RUNS[name], *more)


def files_of(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and path.name not in TIMED
        and path.parent.name not in ("events", "report")
        and path.suffix != ".pt"
    }


class Full:
    """A disk that is full for some files: what is written to those fails, after a part of it."""

    def __init__(self, monkeypatch, is_full):
        self.is_full, self.hit = is_full, None
        self.targets = {}
        replace, write, opened = os.replace, os.write, io.open

        def replacing(source, target):
            # Writers fill a temporary file; that its final name is full is known only here.
            self.check(Path(target))
            replace(source, target)

        def writing(file, content):
            path = Path(os.readlink(f"/proc/self/fd/{file}"))
            if self.is_full(path):
                write(file, content[: len(content) // 2])
                self.check(path)
            return write(file, content)

        def opening(path, mode="r", *more, **named):
            if isinstance(path, str | os.PathLike) and set(mode) & set("wax+"):
                self.check(Path(path))
            return opened(path, mode, *more, **named)

        monkeypatch.setattr(os, "replace", replacing)
        monkeypatch.setattr(os, "write", writing)
        monkeypatch.setattr(io, "open", opening)
        monkeypatch.setattr(builtins, "open", opening)

    def check(self, path):
        if self.is_full(path):
            self.hit = path
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def outputs():
    """Every kind of file that a run writes."""
    for name in ("masks/frame1.png", "tpm/frame2.png", "label.partial.jsonl", "points.csv", "targets.csv"):
        yield "files", name
    for name in ("label.json", "overview.png", "report.html"):
        yield "files", name
    yield "archives", "shards/000001.tar"
    for name in ("config.json", "best.pt", "last.pt", "metrics.csv", "labels/masks/frame0.png"):
        yield "train", name
    yield "train", "events/*"
    for name in ("report/report.md", "report/scores.json"):
        yield "train", name
    for name in ("masks/frame0.png", "probability/frame1.png", "overlays/frame2.png", "detections.csv"):
        yield "predict", name
    yield "predict", "predict.json"
    yield "predict", "predict.partial.jsonl"


@pytest.mark.parametrize(("name", "file"), list(outputs()))
def test_a_disk_that_is_full(root, tmp_path, monkeypatch, capsys, name, file):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        disk = Full(patch, lambda path: path.match(str(out / file)))
        assert main(argv(root, out, name)) == 2
    assert disk.hit is not None
    (line,) = capsys.readouterr().err.splitlines()
    where = out if file.endswith(".jsonl") and not (out / file).exists() else disk.hit
    assert line.startswith(f"mclc-gpu: error: {where}: ")
    assert os.strerror(errno.ENOSPC) in line
    assert not list(out.rglob(".*"))
    whole = files_of(root / name)
    for path, content in files_of(out).items():
        if "partial" not in path:
            assert content == whole[path] or (path == "metrics.csv" and whole[path].startswith(content))
    assert main(argv(root, out, name, "--resume")) == 0
    assert files_of(out) == whole


@pytest.mark.parametrize("name", ["files", "archives", "train", "predict"])
def test_files_that_may_not_grow(root, tmp_path, monkeypatch, capsys, name):
    """A limit of the system writes a part of a file, as a full disk does."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = sorted({path.stat().st_size for path in (root / name).rglob("*") if path.is_file()} - {0})
    limits = [0, 1, *(size - 1 for size in sizes[:: max(len(sizes) // 3, 1)])]
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            code = main(argv(root, out, name, "--resume"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        message = capsys.readouterr().err
        assert code == 2
        assert len(message.splitlines()) == 1, message
        assert str(tmp_path) in message
    assert main(argv(root, out, name, "--resume")) == 0
    assert files_of(out) == files_of(root / name)


class ReadOnly:
    """A folder in which nothing can be made, renamed or removed by calls of `os`, or opened for writing."""

    def __init__(self, monkeypatch, folder):
        self.folder = folder
        for name in ("mkdir", "open", "replace", "rename", "unlink"):
            monkeypatch.setattr(os, name, self.refusing(getattr(os, name), name == "open"))
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self.refusing(io.open, True))

    def refusing(self, call, opens):
        def called(path, *more, **named):
            writes = not opens or self.writes(*more, **named)
            if (
                writes
                and isinstance(path, str | os.PathLike)
                and self.folder in (Path(path), *Path(path).parents)
            ):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
            return call(path, *more, **named)

        return called

    @staticmethod
    def writes(mode="r", *more, **named):
        return mode & (os.O_WRONLY | os.O_RDWR) if isinstance(mode, int) else set(mode) & set("wax+")


@pytest.mark.parametrize("more", [(), ("--resume",), ("--overwrite",)], ids=["new", "resume", "overwrite"])
@pytest.mark.parametrize("name", RUNS)
def test_a_folder_on_a_disk_that_is_read_only(root, tmp_path, monkeypatch, capsys, name, more):
    out = tmp_path / "out"
    if more:
        shutil.copytree(root / name, out)
    before = {str(path): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    with monkeypatch.context() as patch:
        ReadOnly(patch, out)
        assert main(argv(root, out, name, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mclc-gpu: error: {out}: cannot be written ({os.strerror(errno.EROFS)})")
    assert {str(path): path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before


def test_results_on_a_disk_that_is_read_only(root, tmp_path, monkeypatch, capsys):
    pairs = ["--pred", root / "files" / "masks", "--truth", root / "masks"]
    tpms = ["--pred", root / "files" / "tpm", "--truth", root / "masks"]
    detector = ["--checkpoint", root / "train" / "best.pt", "--images", root / "images"]
    for file, given in {
        "x.json": ["score", *pairs, "--json"],
        "x.html": ["score", *pairs, "--report"],
        "x.png": ["score", *tpms, "--roc"],
        "y.png": ["show", "--labels", root / "files", "--images", root / "images", "--out"],
        "report": ["evaluate", *detector, "--masks", root / "masks", "--out"],
    }.items():
        with monkeypatch.context() as patch:
            ReadOnly(patch, tmp_path)
            assert main([*map(str, given), str(tmp_path / file)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mclc-gpu: error: {tmp_path / file}")
        assert os.strerror(errno.EROFS) in line
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where permissions forbid it")
def test_a_folder_without_permission(root, tmp_path, capsys):
    tmp_path.chmod(0o555)
    try:
        for name in RUNS:
            assert main(argv(root, tmp_path, name)) == 2
            assert "cannot be written (Permission denied)" in capsys.readouterr().err
    finally:
        tmp_path.chmod(0o755)
