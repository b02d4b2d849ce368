"""Run ``mclc-gpu demo``: label, train, score, evaluate and predict on synthetic frames."""

import shlex
import time

from mclc_gpu.cli.commands import DemoOptions
from mclc_gpu.cli.main import run
from mclc_gpu.data.synthetic import write_dataset


def demo(options: DemoOptions, started: float) -> int:
    """Run the command; return the number of skipped inputs."""
    del started
    out, data, fitted = options.out, options.out / "data", options.out / "run"
    print(f"writing {options.count} synthetic frames to {data}")
    write_dataset(data, options.count, options.seed, size=(128, 128), test_share=0.25)
    # The lists leave out the frames of an earlier, longer demo.
    train, test = (data / "splits" / f"{split}.txt" for split in ("train", "test"))
    frames, device = ["--images", data / "images"], ["--device", options.device]
    commands = [
        ["train", *frames, "--points-from-masks", data / "masks", "--list", train, "--out", fitted,
         "--network", "resunet-slim", "--optimizer", "adam", "--lr", "0.004", "--batch-size", "4",
         "--size", "128", "--epochs", options.epochs, "--seed", options.seed, *device, "--overwrite"],
        ["score", "--pred", fitted / "labels" / "masks", "--truth", data / "masks", "--list", train,
         "--json", out / "labels.json"],
        ["evaluate", "--checkpoint", fitted / "best.pt", *frames, "--masks", data / "masks", "--list", test,
         "--json", out / "test.json", *device],
        ["predict", "--checkpoint", fitted / "best.pt", *frames, "--out", out / "predictions", *device,
         "--overwrite"],
    ]  # fmt: skip
    skipped = 0
    for command in commands:
        argv = [str(word) for word in command]
        print(f"\n$ mclc-gpu {shlex.join(argv)}", flush=True)
        skipped += run(argv, time.perf_counter())
    places = fitted / "labels" / "overview.png", fitted / "report", out / "predictions" / "overlays"
    print("\nlook at " + ", ".join(map(str, places)))
    return skipped
