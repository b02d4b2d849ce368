"""Commands in processes of their own, forked quickly from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from training_data import Tiny

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["processes", "mclc_gpu.cli.label", "mclc_gpu.cli.train", "mclc_gpu.cli.detect"]
)


def command(
    argv: Sequence[object],
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    stop: Path | None = None,
) -> ForkServerProcess:
    """Start a process that runs a command in chunks of one image and knows the detector "tiny".

    Its output goes to the file `log`. It stops, until SIGCONT, once it has written the file `stop`.
    """
    process = _CONTEXT.Process(target=_run, args=(list(map(str, argv)), dict(environment or {}), log, stop))
    process.start()
    return process


def _run(argv: list[str], environment: dict[str, str], log: Path | None, stop: Path | None) -> None:
    from chunks import label_in_chunks

    from mclc_gpu.cli.commands import COMMANDS
    from mclc_gpu.cli.main import main
    from mclc_gpu.networks.zoo import NETWORKS

    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores interrupts
    file = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    replace = os.replace

    def replace_and_stop(source: Path, target: Path) -> None:
        replace(source, target)
        if target == stop:
            os.replace = replace
            os.kill(os.getpid(), signal.SIGSTOP)

    os.replace = replace_and_stop  # type: ignore[assignment]
    COMMANDS["label"] = label_in_chunks(images=1)
    NETWORKS["tiny"] = Tiny
    sys.exit(main(argv))


def kill(process: ForkServerProcess) -> bool:
    """Send SIGKILL; return whether the process was still running."""
    running = process.is_alive()
    if running and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return running


def ended(process: ForkServerProcess, seconds: float = 60) -> int | None:
    """Wait for a process and return its exit code; kill it and return None if it does not end."""
    process.join(seconds)
    code = process.exitcode
    kill(process)
    return code


def wait_until_stopped(process: ForkServerProcess, seconds: float = 60) -> None:
    """Wait until a process is stopped."""
    end = time.monotonic() + seconds
    state = Path(f"/proc/{process.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "T":
        assert process.is_alive(), "it ended"
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_for(path: Path, process: ForkServerProcess, seconds: float = 60) -> None:
    """Wait until a process has written a file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.is_alive(), "it ended before it wrote that file"
        assert time.monotonic() < end
        time.sleep(0.002)
