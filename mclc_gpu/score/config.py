"""Settings of scoring, free of torch and numpy so that the command line reads them quickly."""

from dataclasses import dataclass, field
from pathlib import Path

from mclc_gpu.errors import InputError
from mclc_gpu.registry import Registry


@dataclass(frozen=True, slots=True)
class Convention:
    """Rules by which targets take predicted components, and by which the rest are false alarms.

    In every convention components are 8-connected and numbered in the order in which rows, read from the
    top, first meet them. Targets choose in that order, each among the components that no earlier target has
    taken and whose centroid lies less than 3 px (strictly) from the target's. A target that takes a component
    is detected.

    Parameters
    ----------
    name : str
        Name on the command line and in JSON.
    nearest : bool
        Let a target take the nearest of those components, of equally near ones the first. Otherwise it takes
        the first one, at any distance below 3 px.
    alarms_by_area : bool
        Count a component that no target took as a false alarm unless its area equals that of a component
        taken in the same image. Otherwise it always is one.
    """

    name: str
    nearest: bool
    alarms_by_area: bool


CANONICAL = Convention("canonical", nearest=True, alarms_by_area=False)

# Many papers on infrared small targets report the Pd and Fa of the metric published with DNANet (Li et al.,
# IEEE TIP 2023, doi:10.1109/TIP.2022.3199107), or of a copy of it. It compares areas where it means
# components: its false alarms are all predicted areas except the values that occur among the areas of the
# matched components. A match of 4 px thus hides every false alarm of 4 px in that image. Three properties of
# that code are left out: it resizes images to 256 x 256 and divides by that size, where here the image's own
# pixels count (the same at that size); it thresholds logits at 0, which is probability > 0.5; and only 255
# is true in its masks (see `mclc_gpu.data.images.read_mask` for ours).
DNANET = Convention("dnanet", nearest=False, alarms_by_area=True)

CONVENTIONS: Registry[Convention] = Registry("convention", {one.name: one for one in (CANONICAL, DNANET)})


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Settings of `mclc_gpu.score.folders.score_folders` and of the command ``score``.

    The metadata of the fields describe the command-line options, see `mclc_gpu.train.config`.

    Attributes
    ----------
    pred : Path
        Folder of predicted masks, or with a threshold of probability maps.
    truth : Path
        Folder of true masks, of the same names.
    list : Path, optional
        Text file that names the masks to score, one per line; by default all.
    threshold : float, 0..1, optional
        Score probability > threshold. None: `pred` holds masks; with `roc` 0.5.
    convention : str
        A name in `CONVENTIONS`.
    roc : Path, optional
        PNG file for Pd over Fa at all thresholds.
    json : Path, optional
        File for the scores.
    report : Path, optional
        HTML file for a page of the worst and best targets.
    labels : Path, optional
        Folder of the label run whose points, TPMs and confidences the report shows; by default the one that
        `pred` lies in.
    images : Path, optional
        Folder of images for the report.

    Raises
    ------
    InputError
        A value is out of range, or an option lacks the one that it serves.
    """

    pred: Path = field(
        metadata={"help": "predicted masks, or probability maps with --threshold or --roc", "metavar": "DIR"}
    )
    truth: Path = field(metadata={"help": "true masks", "metavar": "DIR"})
    list: Path | None = field(
        default=None, metadata={"help": "score only the masks named here, one per line", "metavar": "TXT"}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "--pred holds probability maps: score probability > P (0.5 with --roc)",
            "metavar": "P",
        },
    )
    roc: Path | None = field(
        default=None,
        metadata={"help": "probability maps: draw Pd over Fa at all thresholds", "metavar": "PNG"},
    )
    report: Path | None = field(
        default=None, metadata={"help": "write a page of the worst and best targets", "metavar": "HTML"}
    )
    labels: Path | None = field(
        default=None,
        metadata={
            "help": "folder that label wrote: points, TPMs and confidences for the report (the run that "
            "--pred lies in)",
            "metavar": "RUN",
        },
    )
    images: Path | None = field(default=None, metadata={"help": "images for the report", "metavar": "DIR"})
    json: Path | None = field(
        default=None, metadata={"help": "also write the scores there", "metavar": "FILE"}
    )
    convention: str = field(
        default=CANONICAL.name,
        metadata={
            "help": "false alarms: canonical counts each component that matches no target, dnanet compares "
            "areas like the historical metric",
            "choices": tuple(CONVENTIONS),
        },
    )

    def __post_init__(self) -> None:
        CONVENTIONS.find(self.convention)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold:g}: a probability is 0 to 1")
        if self.threshold is None and self.roc is not None:
            object.__setattr__(self, "threshold", 0.5)
        for option in ("labels", "images"):
            if getattr(self, option) is not None and self.report is None:
                raise InputError(f"--{option} only applies to a report; give --report FILE.html too")
