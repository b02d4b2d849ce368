"""The commands by name. A command is imported when it runs, so that --help is quick."""

import argparse
from importlib import import_module

# Where each command lives: a function of its name that takes the arguments and the time of the start, and
# returns the number of skipped inputs.
COMMANDS = {
    "label": "mclc_gpu.cli.label",
    "score": "mclc_gpu.cli.score",
    "train": "mclc_gpu.cli.train",
    "evaluate": "mclc_gpu.cli.evaluate",
    "predict": "mclc_gpu.cli.predict",
    "tune": "mclc_gpu.cli.tune",
    "show": "mclc_gpu.cli.show",
    "bench": "mclc_gpu.cli.bench",
    "demo": "mclc_gpu.cli.demo",
}


def run(arguments: argparse.Namespace, started: float) -> int:
    """Run one command; returns the number of skipped inputs.

    `started`: `time.perf_counter()` when the process began.
    """
    name = arguments.command
    skipped: int = getattr(import_module(COMMANDS[name]), name)(arguments, started)
    return skipped
