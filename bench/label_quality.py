"""IoU of the labels against the true masks, beside the CPU reference's on the same windows.

python -m mclc_gpu.bench.label_quality --images DIR --masks DIR [--list TXT] [--trials 50] [--seeds 5]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mclc_gpu.bench.cpu_reference import make_item, run
from mclc_gpu.bench.sets import read_set
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.errors import InputError
from mclc_gpu.labelconfig import REFINEMENTS, preset
from mclc_gpu.labeling import TargetMask, compose, label_images
from mclc_gpu.metrics import Scores


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.label_quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--masks", type=Path, required=True, help="folder of true masks")
    parser.add_argument("--list", type=Path, help="text file of image names, one a line; default: all images")
    parser.add_argument("--trials", type=int, default=50, help="trials per target (50)")
    parser.add_argument("--seeds", type=int, default=5, help="number of runs, with seeds from 0 (5)")
    parser.add_argument("--refine", choices=REFINEMENTS, default="crf")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--alone", action="store_true", help="leave the reference out")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the IoU of every seed, this package's and the reference's, and the means; 2 for bad input."""
    options = _arguments(arguments)
    try:
        _measure(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace) -> None:
    pixels, truth = read_set(options.images, options.masks, options.list)
    names, images = list(pixels), list(pixels.values())
    points = [points_from_mask(truth[name]) for name in names]
    config = preset("paper", trials=options.trials, refine=options.refine)
    table: list[list[float]] = []
    print("seed  mclc-gpu" + ("" if options.alone else "  CPU reference"))
    for seed in range(options.seeds):
        targets = label_images(images, points, config, device=options.device, seed=seed, names=names)
        of_image: list[list[TargetMask]] = [[] for _ in images]
        for target in targets:
            of_image[target.image].append(target)
        own = Scores()
        for name, image, found in zip(names, images, of_image, strict=True):
            own.update(compose(image.shape[:2], found)[0], truth[name], name)
        row = [own.compute().iou]
        if not options.alone:
            items = [make_item(*item, seed) for item in zip(names, images, points, strict=True)]
            peer = Scores()
            for name, mask in run(items, options.trials, options.refine, None, seed).masks.items():
                peer.update(mask, truth[name], name)
            row.append(peer.compute().iou)
        table.append(row)
        print(f"{seed:4d}  {row[0]:8.4f}" + "".join(f"  {value:13.4f}" for value in row[1:]), flush=True)
    mean = np.mean(table, axis=0)
    print(f"mean  {mean[0]:8.4f}" + "".join(f"  {value:13.4f}" for value in mean[1:]))


if __name__ == "__main__":
    sys.exit(main())
