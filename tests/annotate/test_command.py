"""The command `annotate` in a process of its own: kills, locks, ports, events."""

import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from processes import command

from mclc_gpu.annotate.command import listening
from mclc_gpu.cli.main import main
from mclc_gpu.errors import InputError


@contextmanager
def serving(frames: Path, out: Path, log: Path) -> Iterator[tuple[ForkServerProcess, str]]:
    """Run the command on a free port; yield the process and its address, printed to the file `log`."""
    process = command(["annotate", "--images", frames / "images", "--out", out, "--port", 0], log=log)
    try:
        yield process, _address(process, log)
    finally:
        process.kill()
        process.join()


def _address(process: ForkServerProcess, log: Path) -> str:
    for _ in range(1200):
        text = log.read_text() if log.exists() else ""
        if found := re.search(r"open (http://\S+)\n", text):
            return found[1]
        assert process.is_alive(), text
        time.sleep(0.05)
    raise AssertionError(text)


def ask(address: str, path: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(urllib.request.Request(address + path, data), timeout=30) as answer:
        return json.loads(answer.read())


def click(address: str, x: int) -> Any:
    return ask(address, "api/images/0/edits", {"client": "a", "edits": [{"op": "add", "x": x, "y": 9}]})


def masks(address: str) -> list[Any]:
    return [(target["id"], target["mask"]) for target in ask(address, "api/images/0")["targets"]]


def test_a_killed_server_loses_nothing_and_a_second_one_is_refused(
    frames: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    with serving(frames, out, tmp_path / "first.log") as (process, address):
        with urllib.request.urlopen(address + "api/events", timeout=30) as events:
            assert [click(address, x)["added"] for x in (5, 30)] == [[0], [1]]
            head = [events.readline().decode() for _ in range(4)]
        assert head[2] == "event: edit\n"
        told = {"revision": 1, "index": 0, "client": "a", "targets": 1, "corrected": 0, "done": False}
        assert json.loads(head[3].removeprefix("data: ")) == told
        argv = ["annotate", "--images", str(frames / "images"), "--out", str(out), "--port", "0"]
        assert main(argv) == 2
        assert "another annotate run is active" in capsys.readouterr().err
        before = masks(address)
        process.kill()
        process.join()
    with serving(frames, out, tmp_path / "second.log") as (process, address):
        assert masks(address) == before
        assert click(address, 50)["added"] == [2]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == 0
    assert not (out / ".annotate.lock").exists()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"--port {port}: cannot listen there .* choose another"),
            listening("127.0.0.1", port),
        ):
            pass
    with pytest.raises(InputError, match="cannot listen there"), listening("no.such.host.example", 0):
        pass


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: folder.mkdir(), "holds no .png"),
        (lambda folder: None, "cannot be read as a folder"),
    ],
)
def test_folders_without_images_are_named(tmp_path: Path, capsys, make, match: str) -> None:
    make(tmp_path / "images")
    argv = ["annotate", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--port", "0"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(frames: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    argv = ["annotate", "--images", str(frames / "images"), "--out", str(tmp_path / "out"), "--port", "0"]
    assert main(argv) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_output_may_not_be_the_images(frames: Path, capsys) -> None:
    argv = ["annotate", "--images", str(frames / "images"), "--out", str(frames / "images"), "--port", "0"]
    assert main(argv) == 2
    assert "is an input" in capsys.readouterr().err
