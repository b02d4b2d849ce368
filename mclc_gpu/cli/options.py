"""The options of every command."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

BENCH_SUITES = ("label", "slic", "crf", "train", "limits")
DONE, DONE_WITH_SKIPS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"mclc-gpu: error: {message}; see {self.prog} --help\n")


class _InOrder(argparse.Action):
    """Notes which of several options was given with which path, in the order of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.sources = [*namespace.sources, (self.dest, values)]


_POINTS = "point labels: CSV, JSON, XML, txt, PNG"
_SIMULATED = "simulate clicks from true masks"


def _add_points(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--points", type=Path, metavar="FILE|DIR", help=_POINTS)
    source.add_argument("--points-from-masks", type=Path, metavar="DIR", help=_SIMULATED)


def _add_marks(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--jitter", type=float, default=0.0, metavar="PX", help="spread of simulated clicks (0)"
    )
    parser.add_argument(
        "--supervision",
        choices=("point", "multi-point", "scribble", "box"),
        default="point",
        help="what marks a target: one click, several, a scribble or a bounding box (point)",
    )
    parser.add_argument(
        "--clicks", type=int, default=3, metavar="N", help="simulated clicks per target of multi-point (3)"
    )


def _add_label(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("label", help="masks and probability maps from images and points")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    _add_points(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--list", type=Path, metavar="TXT", help="only the images named here, one a line")
    _add_marks(parser)
    _add_label_settings(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    _add_earlier(parser)
    parser.add_argument(
        "--no-report", action="store_true", help="leave out report.html, for which every mask is read again"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when any input was skipped")


def _add_earlier(parser: argparse.ArgumentParser) -> None:
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    earlier.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")


def _add_label_settings(parser: "argparse._ActionsContainer") -> None:
    base = parser.add_mutually_exclusive_group()
    base.add_argument(
        "--preset",
        choices=("paper", "default", "lca", "grabcut", "point"),
        default="default",
        help="how labels are made; the options below change single settings of it (default)",
    )
    base.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings instead of a preset: what tune wrote, or the label.json of another run",
    )
    parser.add_argument("--trials", type=int, metavar="K", help="noisy trials per target (0; paper 100)")
    parser.add_argument(
        "--category",
        choices=("given", "estimate"),
        help="target size class: as given, estimated where missing; or always estimated (given)",
    )
    parser.add_argument("--refine", choices=("crf", "threshold"), help="from TPM to mask (crf)")
    parser.add_argument("--threshold", type=float, help="mask = TPM / max(TPM) >= this (0.7)")
    parser.add_argument("--crf-iterations", type=int, metavar="N", help="mean-field steps (1)")
    parser.add_argument(
        "--crf-gaussian",
        type=float,
        nargs=2,
        metavar=("SXY", "COMPAT"),
        help="the CRF's smoothness kernel: width in pixels, weight (3 3)",
    )
    parser.add_argument(
        "--crf-bilateral",
        type=float,
        nargs=3,
        metavar=("SXY", "SRGB", "COMPAT"),
        help="the CRF's appearance kernel: widths in pixels and gray levels, weight (32 13 10)",
    )
    parser.add_argument("--method", choices=("slic", "kmeans"), help="of clustering (slic)")
    parser.add_argument("--noise", choices=("none", "salt", "pepper", "gaussian"), help="of trials (salt)")
    parser.add_argument("--intensity", type=float, help="share of values replaced, or sigma (0.05)")
    parser.add_argument("--clusters", type=int, metavar="N", help="per window (9)")
    parser.add_argument("--compactness", type=float, help="weight of space against colour (20)")
    parser.add_argument(
        "--polarity",
        choices=("bright", "dark", "auto"),
        help="default preset: targets are brighter or darker than what is around them (bright)",
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=0,
        metavar="N",
        help="write the labels of N images each into tar archives, instead of two files an image",
    )
    parser.add_argument(
        "--stop-change",
        type=float,
        metavar="T_F",
        help="end a target's trials when one more changes its TPM by less (0: never)",
    )


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("train", help="labels from points, and a detector trained on them")
    parser.set_defaults(sources=[])
    data = parser.add_argument_group(
        "data", "several sets: give --images, one of the label options and --list again, in the same order"
    )
    data.add_argument("--images", type=Path, required=True, action="append", metavar="DIR")
    for option, metavar, text in (
        ("--points", "FILE|DIR", _POINTS),
        ("--points-from-masks", "DIR", _SIMULATED),
        ("--masks", "DIR", "true masks: train on them, without labelling"),
    ):
        data.add_argument(option, type=Path, action=_InOrder, metavar=metavar, help=text)
    for option, metavar, text in (
        ("--list", "TXT", "only the images named here, one a line"),
        ("--val-images", "DIR", "choose the best epoch by these; without them it is the last"),
        ("--val-masks", "DIR", "their true masks"),
        ("--val-list", "TXT", "only the validation images named here"),
    ):
        data.add_argument(option, type=Path, action="append", default=[], metavar=metavar, help=text)
    _add_training_settings(parser)
    labels = parser.add_argument_group("labels", "as for mclc-gpu label")
    _add_marks(labels)
    _add_label_settings(labels)


def _add_training_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network", required=True, metavar="NAME", help="acm, resunet, resunet-slim, dnanet, isnet or uiunet"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN")
    parser.add_argument("--epochs", type=int, default=1500, metavar="N", help="(1500)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="crops a step, of all processes (16)"
    )
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of the crops (256)")
    parser.add_argument(
        "--optimizer", choices=("adagrad", "adam", "adamw"), default="adagrad", help="(adagrad)"
    )
    parser.add_argument(
        "--lr", type=float, help="of the first epoch; falls to 0 along a cosine (adagrad 0.05, others 0.0005)"
    )
    parser.add_argument("--loss", choices=("soft-iou", "bce"), default="soft-iou", help="(soft-iou)")
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), default=1, help="of the network: 1 gray, 3 colour (1)"
    )
    parser.add_argument("--amp", action="store_true", help="bfloat16 where it is safe; pays on CUDA devices")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="compile the network, in a mode of torch.compile; reduce-overhead records CUDA graphs",
    )
    parser.add_argument(
        "--val-every", type=int, default=1, metavar="N", help="epochs from one validation to the next (1)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    _add_earlier(parser)
    parser.add_argument("--strict", action="store_true", help="exit with 1 when any input was skipped")


def _add_score(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("score", help="IoU, nIoU, Pd, Fa, precision, recall, F1 of masks")
    parser.add_argument("--pred", type=Path, required=True, metavar="DIR")
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR")
    parser.add_argument("--list", type=Path, metavar="TXT", help="only the masks named here, one a line")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="--pred holds probability maps: score probability > P (0.5 with --roc)",
    )
    parser.add_argument(
        "--roc", type=Path, metavar="PNG", help="probability maps: draw Pd over Fa at all thresholds"
    )
    parser.add_argument("--report", type=Path, metavar="HTML", help="a page with the worst and best targets")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="RUN",
        help="what label wrote: points, TPMs and confidences for the report (the run that --pred lies in)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="for the report's pictures")
    _add_scoring(parser)


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there too")
    parser.add_argument(
        "--convention",
        choices=("canonical", "dnanet"),
        default="canonical",
        help="what counts as a false alarm: every component that matches no target; or the historical "
        "metric's comparison of areas (canonical)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when any input was skipped")


def _add_detector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="what train wrote")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--list", type=Path, metavar="TXT", help="only the images named here, one a line")
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="a target is where probability > P (0.5)"
    )
    parser.add_argument(
        "--tile", type=int, default=1024, metavar="PX", help="longest side run in one piece (1024)"
    )
    parser.add_argument("--overlap", type=int, default=64, metavar="PX", help="of neighbouring tiles (64)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where it is safe; pays on CUDA devices")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("evaluate", help="scores of a trained detector on images with masks")
    _add_detector(parser)
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR")
    parser.add_argument("--roc", type=Path, metavar="PNG", help="draw Pd over Fa at all thresholds")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a report with pictures there")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report in --out")
    _add_scoring(parser)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("predict", help="targets in images: masks, probability maps, a table")
    _add_detector(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    _add_earlier(parser)
    parser.add_argument("--strict", action="store_true", help="exit with 1 when any input was skipped")


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "tune", help="label settings that suit one's own images, from a few true masks"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="true masks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--list", type=Path, metavar="TXT", help="only the images named here, one a line")
    parser.add_argument(
        "--preset", choices=("paper", "default"), default="default", help="where the search starts (default)"
    )
    parser.add_argument(
        "--category",
        choices=("given", "estimate"),
        help="whether annotators will give the targets' size class (given)",
    )
    parser.add_argument(
        "--jitter", type=float, default=0.0, metavar="PX", help="spread of simulated clicks (0)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of every evaluation (3)")
    parser.add_argument(
        "--budget",
        type=int,
        default=100,
        metavar="N",
        help="evaluations of the search, and of each of the two that cross-validate it (100)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of the search (0)")
    _add_earlier(parser)
    parser.add_argument("--strict", action="store_true", help="exit with 1 when any input was skipped")


def _add_show(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("show", help="picture of targets' ways from click to mask in a label run")
    parser.add_argument("--labels", type=Path, required=True, metavar="RUN", help="what label wrote")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="true masks")
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="NAME[:INDEX]",
        help="targets of these images, or these targets, counted from 0 (6 spread over the run)",
    )
    parser.add_argument("--worst", type=int, metavar="N", help="targets of the lowest IoU in their window")
    parser.add_argument("--best", type=int, metavar="N", help="targets of the highest IoU in their window")
    parser.add_argument("--list", type=Path, metavar="TXT", help="choose among the images named here")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("demo", help="the main job on a built-in synthetic data set")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR")
    parser.add_argument("--count", type=int, default=80, help="synthetic frames (80)")
    parser.add_argument("--epochs", type=int, default=14, help="of the detector's training (14)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("bench", help="rates of this machine beside those of other packages on it")
    parser.add_argument(
        "--suite",
        nargs="+",
        choices=BENCH_SUITES,
        metavar="NAME",
        help="label, slic, crf, train; limits: the kernels' distance to what the machine can do, which takes "
        "minutes more (all but limits)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="frames (synthetic ones)")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="their true masks")
    parser.add_argument("--list", type=Path, metavar="TXT", help="only the images named here, one a line")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), metavar="DIR", help="(bench-out)")
    parser.add_argument(
        "--plan",
        type=int,
        metavar="N",
        help="hours, processes and disk space that labelling N images takes, by rates measured here; alone "
        "unless --suite is given",
    )
    parser.add_argument(
        "--quick", action="store_true", help="very little work, to see that all of it runs here"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; peers use the CPU")


def parser() -> argparse.ArgumentParser:
    """The whole command line's parser."""
    main_parser: argparse.ArgumentParser = _Parser(
        prog="mclc-gpu", description="Pixel masks for infrared small targets from one click per target."
    )
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_label(commands)
    _add_score(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_tune(commands)
    _add_show(commands)
    _add_demo(commands)
    _add_bench(commands)
    return main_parser
