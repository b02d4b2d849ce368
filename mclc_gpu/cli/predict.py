"""mclc-gpu predict."""

import argparse

from mclc_gpu.cli.common import checked_threshold, checked_tiles, say_skipped
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.images import find_files
from mclc_gpu.detect.predict import LAYOUT, PredictJob, predict_folder
from mclc_gpu.errors import Skipped
from mclc_gpu.runs import keep_apart


def predict(arguments: argparse.Namespace, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    keep_apart("--out", LAYOUT.places(arguments.out), (arguments.images, arguments.checkpoint))
    checked_tiles(arguments.tile, arguments.overlap)
    images, skipped = listed(find_files(arguments.images), arguments.list, arguments.images)
    summary = predict_folder(
        PredictJob(
            checkpoint=arguments.checkpoint,
            images=images,
            out=arguments.out,
            threshold=checked_threshold(arguments.threshold),
            device=arguments.device,
            tile=arguments.tile,
            overlap=arguments.overlap,
            amp=arguments.amp,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            skipped=skipped,
            started=started,
        )
    )
    left_out = [Skipped(**item) for item in summary["skipped"]]
    say_skipped(left_out, LAYOUT.summary(arguments.out))
    rate = "" if summary["images_per_s"] is None else f", {summary['images_per_s']:.1f} images/s"
    seconds = summary["seconds"]
    print(f"{summary['images']} images, {summary['detections']} detections -> {arguments.out}")
    print(
        f"{seconds['total']:.2f} s{rate} on {summary['device']}; start-up {seconds['startup']:.2f} s"
        + (f"; {summary['resumed_images']} images were there already" if summary["resumed_images"] else "")
    )
    if left_out:
        print(f"{len(left_out)} inputs skipped")
    return len(left_out)
