"""mclc-gpu demo: the main job on synthetic frames, from clicks to a trained and scored detector."""

import argparse
import shlex
import time

from mclc_gpu.cli.commands import run
from mclc_gpu.cli.options import parser
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError


def demo(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    if arguments.count < 4:
        raise InputError(f"--count {arguments.count}: at least 4 frames are needed, to train and to test")
    data, fitted = arguments.out / "data", arguments.out / "run"
    print(f"writing {arguments.count} synthetic frames to {data}")
    write_dataset(data, arguments.count, arguments.seed, size=(128, 128), test_share=0.25)
    # The lists leave out the frames of an earlier, longer demo.
    train, test = (data / "splits" / f"{split}.txt" for split in ("train", "test"))
    frames = ["--images", data / "images"]
    commands = [
        ["train", *frames, "--points-from-masks", data / "masks", "--list", train, "--out", fitted,
         "--network", "resunet-slim", "--optimizer", "adam", "--lr", "0.004", "--batch-size", "4",
         "--size", "128", "--epochs", arguments.epochs, "--seed", arguments.seed,
         "--device", arguments.device, "--overwrite"],
        ["score", "--pred", fitted / "labels" / "masks", "--truth", data / "masks", "--list", train,
         "--json", arguments.out / "labels.json"],
        ["evaluate", "--checkpoint", fitted / "best.pt", *frames, "--masks", data / "masks", "--list", test,
         "--device", arguments.device, "--json", arguments.out / "test.json"],
        ["predict", "--checkpoint", fitted / "best.pt", *frames, "--out", arguments.out / "predictions",
         "--device", arguments.device, "--overwrite"],
    ]  # fmt: skip
    skipped = 0
    for command in commands:
        words = [str(word) for word in command]
        print(f"\n$ mclc-gpu {shlex.join(words)}", flush=True)
        skipped += run(parser().parse_args(words), time.perf_counter())
    places = fitted / "labels" / "overview.png", fitted / "report", arguments.out / "predictions" / "overlays"
    print("\nlook at " + ", ".join(map(str, places)))
    return skipped
