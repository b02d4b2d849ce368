"""Options of ``mclc-gpu bench``, free of torch and numpy so that the command line reads them quickly.

The metadata of a field describe its command-line option, see `mclc_gpu.cli.options`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from mclc_gpu.bench.printed import NUAA_SPLITS
from mclc_gpu.errors import InputError

CLASSICAL, LIMITS, HOST, GPU, PAPER = "classical", "limits", "host", "gpu", "paper"
USUAL = ("label", "slic", "crf", "train")
SUITES = (*USUAL, CLASSICAL, LIMITS, HOST, GPU, PAPER)
TABLES = (1, 2, 3, 4, 5, 6)  # of the paper


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``bench``.

    Attributes
    ----------
    suite : tuple of str
        Names in `SUITES`; none: those in `USUAL`, or with `plan` none at all.
    images, masks : Path, optional
        Folders of frames and of their true masks; by default synthetic frames.
    list : Path, optional
        Text file that names the images to use.
    out : Path
        Output folder.
    plan : int >= 1, optional
        Number of images whose labeling is planned.
    table : tuple of int
        Tables of the paper, in `TABLES`; none: all. This and what follows up to `only` belong to the suite
        "paper".
    set : tuple of Path
        Folders of data sets in a layout of the field; synthetic images with `quick`.
    split : str
        Split of NUAA-SIRST, one of `NUAA_SPLITS`.
    epochs : int >= 1, optional
        Passes over the train images in the paper's schedule; by default the paper's 1500.
    mpixels : float > 0, optional
        Million pixels of crops in the fast schedule, in place of the paper's schedule.
    only : tuple of str
        Parts of names of the cells to measure; none: all.
    quick : bool
        Do very little work, to check that everything runs.
    device : str
        "auto", "cpu", "cuda" or "cuda:N"; the baselines use the CPU.

    Raises
    ------
    InputError
        An option lacks one that it needs, or a value is out of range.
    """

    suite: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": f"suites to run, by default {', '.join(USUAL)}",
            "metavar": "NAME",
            "choices": SUITES,
        },
    )
    images: Path | None = field(
        default=None, metadata={"help": "folder of frames (synthetic ones)", "metavar": "DIR"}
    )
    masks: Path | None = field(
        default=None, metadata={"help": "folder of their true masks", "metavar": "DIR"}
    )
    list: Path | None = field(
        default=None, metadata={"help": "use only the images named here, one per line", "metavar": "TXT"}
    )
    out: Path = field(default=Path("bench-out"), metadata={"help": "output folder", "metavar": "DIR"})
    plan: int | None = field(
        default=None,
        metadata={
            "help": "hours, processes and disk space for labeling N images, from rates measured here; alone "
            "unless --suite is given",
            "metavar": "N",
        },
    )
    table: tuple[int, ...] = field(
        default=(),
        metadata={"help": "suite paper: tables of the paper (all)", "metavar": "N", "choices": TABLES},
    )
    set: tuple[Path, ...] = field(
        default=(),
        metadata={"help": "suite paper: data sets with images/, masks/ and lists", "metavar": "DIR"},
    )
    split: str = field(
        default=NUAA_SPLITS[0],
        metadata={"help": "suite paper: train/test images of NUAA-SIRST", "choices": NUAA_SPLITS},
    )
    epochs: int | None = field(
        default=None, metadata={"help": "suite paper: epochs of each detector (1500)", "metavar": "N"}
    )
    mpixels: float | None = field(
        default=None,
        metadata={
            "help": "suite paper: million pixels of crops of each detector in the fast schedule",
            "metavar": "N",
        },
    )
    only: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "suite paper: measure only the cells whose names contain one of these texts; the others "
            "are shown as far as they are finished",
            "metavar": "TEXT",
        },
    )
    quick: bool = field(
        default=False, metadata={"help": "do very little work, to check that everything runs"}
    )
    device: str = field(
        default="auto",
        metadata={"help": "auto, cpu, cuda or cuda:N; other packages use the CPU", "metavar": "DEVICE"},
    )

    def __post_init__(self) -> None:
        for name in self.suite:
            if name not in SUITES:
                raise InputError(f"--suite {name}: use one of {', '.join(SUITES)}")
        if (self.images is None) != (self.masks is None):
            raise InputError("--images and --masks belong together: give both, or none for synthetic frames")
        if self.list is not None and self.images is None:
            raise InputError(f"--list {self.list} only applies with --images; give that too, or remove it")
        for number in self.table:
            if number not in TABLES:
                raise InputError(f"--table {number}: use some of {', '.join(map(str, TABLES))}")
        if self.split not in NUAA_SPLITS:
            raise InputError(f"--split {self.split}: use one of {', '.join(NUAA_SPLITS)}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: use 1 or more")
        if self.mpixels is not None and not (math.isfinite(self.mpixels) and self.mpixels > 0):
            raise InputError(f"--mpixels {self.mpixels:g}: use a number above 0")
        if self.epochs is not None and self.mpixels is not None:
            raise InputError("--epochs and --mpixels are budgets of different schedules; give one")
        if self.plan is not None and self.plan < 1:
            raise InputError(f"--plan {self.plan}: give 1 image or more")

    def unused(self) -> dict[str, str]:
        """Return the settings without effect, each with the condition for an effect."""
        if PAPER in self.suites:
            return {}
        names = ("table", "set", "split", "epochs", "mpixels", "only")
        return dict.fromkeys(names, f"only applies with --suite {PAPER}")

    @property
    def suites(self) -> tuple[str, ...]:
        """Suites to run, also where none are named."""
        return self.suite or (() if self.plan else USUAL)
