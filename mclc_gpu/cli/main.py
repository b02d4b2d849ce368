"""The command line: arguments only. A command imports what it needs when it runs, so that --help is quick."""

import io
import os
import sys
import time
from collections.abc import Sequence

from mclc_gpu.cli.commands import run
from mclc_gpu.cli.options import BAD_INPUT, DONE, DONE_WITH_SKIPS, INTERRUPTED, parser
from mclc_gpu.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 done with skips under --strict, 2 bad input.

    torchrun ends with 1 whenever a process of it does not end with 0, whose own code is in its report.
    """
    started = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text in this encoding
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    arguments.words = words
    # An interrupt must not wait for OpenMP workers that spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        skipped = run(arguments, started)
    except InputError as error:
        print(f"mclc-gpu: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        where, what = error.filename or "file system", error.strerror or error
        print(
            f"mclc-gpu: error: {where}: {what}; check the path, its permissions and the free space there",
            file=sys.stderr,
        )
        return BAD_INPUT
    except KeyboardInterrupt:
        more = f"; {arguments.command} goes on with --resume" if hasattr(arguments, "resume") else ""
        print(f"mclc-gpu: interrupted{more}", file=sys.stderr)
        return INTERRUPTED
    return DONE_WITH_SKIPS if skipped and getattr(arguments, "strict", False) else DONE


if __name__ == "__main__":
    sys.exit(main())
