"""mclc-gpu demo: the main job on synthetic frames, from nothing to scored masks and pictures."""

import argparse
import shlex
import time

from mclc_gpu.cli import main as cli
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError


def demo(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    if arguments.count < 1:
        raise InputError(f"--count {arguments.count}: at least 1 frame is needed")
    data, labels = arguments.out / "data", arguments.out / "labels"
    print(f"writing {arguments.count} synthetic frames to {data}")
    write_dataset(data, arguments.count, arguments.seed, test_share=0)
    commands = [
        # The list leaves out the frames of an earlier, longer demo.
        ["label", "--images", data / "images", "--points-from-masks", data / "masks",
         "--list", data / "splits" / "train.txt", "--out", labels, "--preset", "paper",
         "--seed", arguments.seed, "--device", arguments.device, "--overwrite"],
        ["score", "--pred", labels / "masks", "--truth", data / "masks",
         "--json", arguments.out / "score.json"],
    ]  # fmt: skip
    skipped = 0
    for command in commands:
        words = [str(word) for word in command]
        print(f"\n$ mclc-gpu {shlex.join(words)}", flush=True)
        skipped += cli.run(cli.parser().parse_args(words), time.perf_counter())
    print(f"\nlook at {labels / 'overview.png'}")
    return skipped
