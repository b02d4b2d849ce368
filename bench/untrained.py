"""Score the detectors that need no training beside printed numbers, time them, and draw what they find.

    python -m mclc_gpu.bench.untrained --images images/ --masks masks/ --list test.txt --out untrained/

Writes untrained.md, a table with IoU, Pd and Fa by two threshold rules and at the threshold of highest F1,
and untrained.png, frames beside the maps of all methods. The scores of a method are kept in METHOD.json; a
command that was killed continues where it stopped.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mclc_gpu.bench import filters, lowrank
from mclc_gpu.bench.compare import Benchmark, Contender, clocked, exit_code, machine, markdown, versions
from mclc_gpu.bench.dataset import Context, pair_set, read_pairs
from mclc_gpu.bench.printed import DETECTORS
from mclc_gpu.classical.config import METHODS, MethodOptions
from mclc_gpu.classical.predictor import MethodPredictor, make_method
from mclc_gpu.classical.rules import threshold_of
from mclc_gpu.data.files import atomic_path, fingerprint_of, read_json, write_json
from mclc_gpu.data.images import display_rgb, network_levels
from mclc_gpu.detect.config import EvaluateOptions
from mclc_gpu.detect.evaluate import Case, evaluate_images
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.report.sheets import (
    PANEL,
    Legend,
    Panel,
    Row,
    draw_sheet,
    enlarged,
    evenly_spread,
    heat,
    outlined,
)
from mclc_gpu.score.metrics import Scores, score_image

PLAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tophat": filters.tophat,
    "mpcm": filters.mpcm,
    "wslcm": filters.wslcm,
    "ipi": lowrank.ipi,
    "nram": lowrank.nram,
    "pstnn": lowrank.pstnn,
    "ript": lowrank.ript,
    "mslstipt": lambda image: lowrank.mslstipt(image[None])[0],
}
_RULES = {
    "adaptive": MethodOptions(threshold_rule="adaptive"),
    "k-sigma": MethodOptions(threshold_rule="k-sigma"),
}
_KEPT = ("iou", "pd", "fa")
_PRINTED_SET = "NUAA-SIRST"
_FRAMES = 6


def rate(context: Context, method: str) -> Benchmark:
    """Compute the maps of frames in batches, and by the plain version one at a time."""
    images = context.frames.images[: context.of(16, 2)]
    predictor = MethodPredictor(make_method(method), device=context.device)
    own = clocked(partial(predictor.probabilities, images), context.device)
    contenders = [Contender("mclc-gpu", own, len(images), own=True)]
    least = getattr(predictor.method, "patch", 1)  # plain versions need a whole patch
    gray = [network_levels(image, 1)[0] for image in images[:2] if min(image.shape[:2]) >= least]
    if method in PLAIN and gray:

        def alone() -> None:
            for image in gray:
                PLAIN[method](image)

        contenders.append(Contender("numpy, one at a time", clocked(alone, context.device), len(gray)))
    return Benchmark(f"{method}, {_sizes(images)}", "images", contenders, context.time(20))


BENCHMARKS: dict[str, Callable[[Context], Benchmark]] = {name: partial(rate, method=name) for name in METHODS}


def _sizes(images: Sequence[np.ndarray]) -> str:
    pixels = np.mean([image.shape[0] * image.shape[1] for image in images])
    return f"{len(images)} images of {pixels / 1000:.0f} kpx"


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Score one method; return its scores by rule and at the threshold of highest F1."""
    scores = {rule: Scores() for rule in _RULES}

    def count(case: Case) -> None:
        for rule, chosen in _RULES.items():
            mask = case.probability > np.float32(threshold_of(case.probability, chosen))
            scores[rule].add(score_image(mask, case.truth, case.name))

    evaluation = evaluate_images(
        EvaluateOptions(
            method=method,
            images=options.images,
            masks=options.masks,
            list=options.list,
            device=options.device,
        ),
        count,
    )
    roc = evaluation.roc.compute()
    best = roc.best_f1()
    found = {rule: _kept(one.compute().values) for rule, one in scores.items()}
    if best is not None:
        at_best = {name: float(roc.values[name][best]) for name in _KEPT}
        found["best F1"] = {**at_best, "threshold": float(roc.thresholds[best])}
    return found


def _kept(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in _KEPT}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the scores of the methods, IoU / Pd in percent / Fa per million pixels, as Markdown."""
    conditions = [*_RULES, "best F1"]
    rows = []
    for method, scores in found.items():
        cells = [_text(scores[name]) if name in scores else "" for name in conditions]
        printed = DETECTORS.get(method, {}).get(_PRINTED_SET)
        cells.append(f"{printed.iou:.1f} / {printed.pd:.1f} / {printed.fa:.0f}" if printed else "")
        rows.append([method, *cells])
    return markdown(["IoU / Pd / Fa", *conditions, f"printed, {_PRINTED_SET}"], rows)


def _text(scores: Mapping[str, float]) -> str:
    return f"{100 * scores['iou']:.1f} / {100 * scores['pd']:.1f} / {1e6 * scores['fa']:.0f}"


def sheet(
    frames: Mapping[str, tuple[np.ndarray, np.ndarray]], methods: Sequence[str], device: str, path: Path
) -> None:
    """Draw the surroundings of a target of each frame, and their maps with the mask and the true outline."""
    predictors = {name: MethodPredictor(make_method(name), device=device) for name in methods}
    rows = []
    for name, (image, truth) in frames.items():
        area = _around_target(truth)
        gray, true = enlarged(display_rgb(image[area])), truth[area]
        panels = [Panel("frame and truth", outlined(gray, np.zeros_like(true), true))]
        for method, predictor in predictors.items():
            (probability,) = predictor.probabilities([image])
            limit = threshold_of(probability, MethodOptions())
            mask = (probability > np.float32(limit))[area]
            panels.append(Panel(method, outlined(enlarged(heat(probability[area])), mask, true)))
        rows.append(Row(panels, true.shape, [name]))
    legend = Legend("mask at the default threshold", "map", click=False, truth=True)
    drawn = draw_sheet(rows, legend, columns=1, panels=len(methods) + 1)
    with atomic_path(path) as temporary:
        drawn.save(temporary, format="PNG")


def _around_target(truth: np.ndarray) -> tuple[slice, slice]:
    """Return a window of at most one panel's size around the first true pixel, or around the middle."""
    places = np.argwhere(truth)
    center = places[len(places) // 2] if len(places) else np.array(truth.shape) // 2
    rows, columns = (
        slice(start, start + min(PANEL, length))
        for start, length in (
            (min(max(int(middle) - PANEL // 2, 0), max(length - PANEL, 0)), length)
            for middle, length in zip(center, truth.shape, strict=True)
        )
    )
    return rows, columns


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mclc_gpu.bench.untrained", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="true masks")
    parser.add_argument("--list", type=Path, metavar="TXT", help="names of the images to use")
    parser.add_argument("--out", type=Path, default=Path("untrained"), metavar="DIR")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the files; return 0, or 2 for bad input with one line that says what is wrong."""
    options = _arguments(arguments)
    return exit_code(lambda: _run(options, sys.argv[1:] if arguments is None else arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    methods = options.methods.split(",")
    made = {name: make_method(name) for name in methods}
    pairs = pair_set(options.images, options.masks, options.list)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, method in made.items():
        path = options.out / f"{name}.json"
        key = fingerprint_of([asdict(method), sorted(pairs), str(_RULES)])  # type: ignore[call-overload]
        kept = read_json(path, "remove it") if path.exists() else {}
        if kept.get("fingerprint") != key:
            kept = {"fingerprint": key, "scores": measure(name, options)}
            write_json(path, kept)
        found[name] = kept["scores"]
        print(f"{name}: {found[name]}", flush=True)
    device = pick_device(options.device)
    command = shlex.join(["python", "-m", "mclc_gpu.bench.untrained", *arguments])
    about = f"{len(pairs)} images. {machine(device)}. {versions()}."
    with atomic_path(options.out / "untrained.md") as temporary:
        temporary.write_text(f"```sh\n{command}\n```\n\n{about}\n\n{table(found)}\n", encoding="utf-8")
    print(table(found))
    chosen = [list(pairs)[place] for place in evenly_spread(len(pairs), _FRAMES)]
    images, truth = read_pairs({name: pairs[name] for name in chosen})
    frames = {name: (images[name], truth[name]) for name in chosen}
    sheet(frames, methods, options.device, options.out / "untrained.png")


if __name__ == "__main__":
    sys.exit(main())
