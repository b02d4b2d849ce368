"""The commands by name. A command is imported when it runs, so that --help is quick."""

import argparse
from collections.abc import Callable

from mclc_gpu.registry import Registry

Command = Callable[[argparse.Namespace, float], int]

# A command takes its arguments and the `time.perf_counter()` of the start, and returns the number of skipped
# inputs.
COMMANDS: Registry[Command] = Registry(
    "command",
    {
        "label": "mclc_gpu.cli.label.label",
        "score": "mclc_gpu.cli.score.score",
        "train": "mclc_gpu.cli.train.train",
        "evaluate": "mclc_gpu.cli.detect.evaluate",
        "predict": "mclc_gpu.cli.detect.predict",
        "tune": "mclc_gpu.cli.tune.tune",
        "show": "mclc_gpu.cli.show.show",
        "bench": "mclc_gpu.cli.bench.bench",
        "demo": "mclc_gpu.cli.demo.demo",
    },
)


def run(arguments: argparse.Namespace, started: float) -> int:
    """Run one command; returns the number of skipped inputs."""
    return COMMANDS[arguments.command](arguments, started)
