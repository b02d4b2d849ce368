"""mclc-gpu demo: the main job on synthetic frames, from nothing to scored masks and pictures."""

import argparse

from mclc_gpu.cli import main as cli
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError


def demo(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    if arguments.count < 2:
        raise InputError(f"--count {arguments.count}: at least 2 frames are needed")
    data, labels = arguments.out / "data", arguments.out / "labels"
    print(f"writing {arguments.count} synthetic frames to {data}")
    write_dataset(data, arguments.count, arguments.seed)
    commands = [
        ["label", "--images", data / "images", "--points-from-masks", data / "masks", "--out", labels,
         "--preset", "paper", "--seed", arguments.seed, "--device", arguments.device, "--overwrite"],
        ["score", "--pred", labels / "masks", "--truth", data / "masks",
         "--json", arguments.out / "score.json"],
    ]  # fmt: skip
    for command in commands:
        words = [str(word) for word in command]
        print(f"\n$ mclc-gpu {' '.join(words)}", flush=True)
        code = cli.main(words)
        if code:
            raise InputError(f"the demo's {words[0]} ended with exit code {code}: see the line above")
    print(f"\nlook at {labels / 'overview.png'}")
    return 0
