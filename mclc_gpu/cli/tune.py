"""Command tune."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclc_gpu.cli.common import print_skipped
from mclc_gpu.errors import Skipped
from mclc_gpu.tune.config import TuneOptions
from mclc_gpu.tune.run import CONFIG, FEW_IMAGES, LAYOUT, PLOT, tune_labels


def tune(options: TuneOptions, started: float) -> int:
    """Run `mclc-gpu tune`; return the number of skipped inputs."""
    del started
    summary = tune_labels(options)
    skipped = [Skipped(**item) for item in summary["skipped"]]
    print_skipped(skipped, LAYOUT.summary(options.out))
    _report(options.out, summary)
    return len(skipped)


def _report(out: Path, summary: Mapping[str, Any]) -> None:
    """Print the changes, their gain and the files."""
    images, start = summary["images"], summary["settings"]["start"]
    if images < FEW_IMAGES:
        print(
            f"warning: {images} image{'s' if images > 1 else ''} with targets: too few to generalize to "
            f"others; give {FEW_IMAGES} or more",
            file=sys.stderr,
        )
    print(
        f"{images} images, {summary['targets']} targets, {summary['evaluations']} evaluations of "
        f"{summary['settings']['seeds']} seed(s) in {summary['seconds']:.1f} s on {summary['device']}"
    )
    for name, (before, after) in summary["changes"].items():
        print(f"  {name}: {before} -> {after}")
    print(
        f"IoU on these images: preset {start} {_shown(summary['before'])}, tuned {_shown(summary['after'])}"
    )
    if outlines := summary["outlines"]:
        ious = ", ".join(f"{name} {iou:.4f}" for name, iou in outlines.items())
        print(f"IoU by kind of outline: {ious}; these masks point to --outline {summary['outline']}")
    if (judged := summary["cross_validated"]) is None:
        print("not cross-validated, since one image cannot be divided")
    else:
        gain = f"expected gain {summary['gain']:+.4f} ± {summary['gain_uncertainty']:.4f}"
        print(f"cross-validated (chosen without the images measured): {_shown(judged)}, {gain}")
    if summary["tuned_kept"]:
        print(f"{out / CONFIG} holds the tuned values: label --config {shlex.quote(str(out / CONFIG))}")
    elif summary["changes"]:
        needed = f"the gain is not above {summary['gain_needed']:.4f}, as 99 % confidence needs"
        print(f"{needed}: {out / CONFIG} keeps the values of preset {start}")
    else:
        print(f"no better settings found: {out / CONFIG} keeps the values of preset {start}")
    print(f"plot: {out / PLOT}")


def _shown(facts: Mapping[str, float | None]) -> str:
    spread = facts["spread"]
    return f"{facts['iou']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
