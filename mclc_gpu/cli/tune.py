"""mclc-gpu tune."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclc_gpu.cli.common import say_skipped
from mclc_gpu.data.datasets import listed
from mclc_gpu.data.images import find_files
from mclc_gpu.errors import Skipped
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.labels.config import preset
from mclc_gpu.runs import keep_apart
from mclc_gpu.tune.config import TuneOptions
from mclc_gpu.tune.run import CONFIG, FEW_IMAGES, LAYOUT, PLOT, TuneJob, tune_labels


def tune(options: TuneOptions, started: float) -> int:
    """Run the command; returns the number of skipped inputs."""
    del started
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.masks, options.list))
    changes = {} if options.category is None else {"category": options.category}
    images, skipped = listed(find_files(options.images), options.list, options.images)
    masks = find_files(options.masks)
    device = pick_device(options.device)
    job = TuneJob(
        images=images,
        masks=masks,
        out=options.out,
        config=preset(options.preset, **changes),
        start=options.preset,
        seeds=options.seeds,
        budget=options.budget,
        jitter=options.jitter,
        seed=options.seed,
        device=device,
        resume=options.resume,
        overwrite=options.overwrite,
        skipped=skipped,
    )
    summary = tune_labels(job)
    left_out = [Skipped(**item) for item in summary["skipped"]]
    say_skipped(left_out, LAYOUT.summary(options.out))
    _report(options.out, summary)
    return len(left_out)


def _report(out: Path, summary: Mapping[str, Any]) -> None:
    images, start = summary["images"], summary["settings"]["start"]
    if images < FEW_IMAGES:
        print(
            f"warning: {images} image{'s' if images > 1 else ''} with targets: too few to tell what holds "
            f"for others; give {FEW_IMAGES} or more",
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
    gain = f"gain {summary['gain']:+.4f} ± {summary['gain_uncertainty']:.4f}"
    judged = summary["cross_validated"]
    if judged is None:
        print(f"not cross-validated, as one image has no halves; {gain} on the image itself")
    else:
        print(f"cross-validated (tuned on one half, measured on the other): {_shown(judged)}, {gain}")
    if summary["tuned_kept"]:
        print(f"{out / CONFIG} holds the tuned values: label --config {shlex.quote(str(out / CONFIG))}")
    elif summary["changes"]:
        print(f"no gain beyond its uncertainty: {out / CONFIG} keeps the values of preset {start}")
    else:
        print(f"nothing better was found: {out / CONFIG} keeps the values of preset {start}")
    print(f"look at {out / PLOT}")


def _shown(facts: Mapping[str, float | None]) -> str:
    spread = facts["spread"]
    return f"{facts['iou']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
