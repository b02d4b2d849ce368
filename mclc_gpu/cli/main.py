"""Command line: parse the options, run the command, turn errors into exit codes; the command demo."""

import argparse
import io
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from mclc_gpu.cli.commands import COMMANDS, DemoOptions
from mclc_gpu.cli.options import add_options, build
from mclc_gpu.errors import InputError

DONE, DONE_WITH_SKIPS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, without the whole usage above it, and exit."""
        self.exit(BAD_INPUT, f"mclc-gpu: error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    result = _Parser(
        prog="mclc-gpu", description="Pixel masks for infrared small targets from one click per target."
    )
    parsers = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        of_command = parsers.add_parser(name, help=command.help)
        add_options(of_command, command.options)
        if command.strict:
            text = "exit with 1 if any input was skipped"
            of_command.add_argument("--strict", action="store_true", help=text)
    return result


def run(argv: Sequence[str], started: float) -> int:
    """Run one command; return the number of skipped inputs."""
    arguments = parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    return command.run(build(command.options, arguments), started)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    torchrun exits with 1 if any of its processes does not exit with 0; its report names that process's code.

    Parameters
    ----------
    argv : sequence of str, optional
        Command and options; default: those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 done with skipped inputs under --strict, 2 bad input, 130 interrupted.
    """
    started = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text in this encoding
    arguments = parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    # An interrupt must not wait for OpenMP workers that spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        skipped = command.run(build(command.options, arguments), started)
    except InputError as error:
        print(f"mclc-gpu: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output has closed it; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        place, reason = error.filename or "file system", error.strerror or error
        print(
            f"mclc-gpu: error: {place}: {reason}; check the path, its permissions and the free space there",
            file=sys.stderr,
        )
        return BAD_INPUT
    except KeyboardInterrupt:
        resumable = hasattr(command.options, "resume")
        more = f"; {arguments.command} goes on with --resume" if resumable else ""
        print(f"mclc-gpu: interrupted{more}", file=sys.stderr)
        return INTERRUPTED
    return DONE_WITH_SKIPS if skipped and getattr(arguments, "strict", False) else DONE


def demo(options: DemoOptions, started: float) -> int:
    """Run ``mclc-gpu demo``, which runs other commands; return the number of skipped inputs."""
    from mclc_gpu.data.synthetic import write_dataset

    del started
    out, data, fitted = options.out, options.out / "data", options.out / "run"
    print(f"writing {options.count} synthetic frames to {data}")
    write_dataset(data, options.count, options.seed, size=(128, 128), test_share=0.25)
    # The lists leave out the frames of an earlier, longer demo. There are new frames enough, and the run is
    # too short, for variations of the frames to help.
    train, test = (data / "splits" / f"{split}.txt" for split in ("train", "test"))
    frames, device = ["--images", data / "images"], ["--device", options.device]
    commands = [
        ["train", *frames, "--points-from-masks", data / "masks", "--list", train, "--out", fitted,
         "--network", "resunet-slim", "--size", "128", "--epochs", options.epochs,
         "--stages", "64:.6,128:.4", "--paste-share", "0", "--scale-jitter", "0", "--gain-jitter", "0",
         "--seed", options.seed, *device, "--overwrite"],
        ["score", "--pred", fitted / "labels" / "masks", "--truth", data / "masks", "--list", train,
         "--json", out / "labels.json"],
        ["evaluate", "--checkpoint", fitted / "best.pt", *frames, "--masks", data / "masks", "--list", test,
         "--tta", "flips", "--json", out / "test.json", "--out", out / "test", *device, "--overwrite"],
        ["predict", "--checkpoint", fitted / "best.pt", *frames, "--list", test, "--tta", "flips",
         "--out", out / "predictions", *device, "--overwrite"],
    ]  # fmt: skip
    skipped = 0
    for command in commands:
        argv = [str(word) for word in command]
        print(f"\n$ mclc-gpu {shlex.join(argv)}", flush=True)
        skipped += run(argv, time.perf_counter())
    places = fitted / "labels" / "overview.png", out / "test" / "best.png", out / "predictions" / "overlays"
    print("\nlook at " + ", ".join(map(str, places)))
    return skipped


if __name__ == "__main__":
    sys.exit(main())
