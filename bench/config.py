"""Options of ``mclc-gpu bench``, free of torch and numpy so that the command line reads them quickly.

The metadata of a field describe its command-line option, see `mclc_gpu.cli.options`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mclc_gpu.errors import InputError

LIMITS, HOST, GPU = "limits", "host", "gpu"
USUAL = ("label", "slic", "crf", "train")
SUITES = (*USUAL, LIMITS, HOST, GPU)


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
        if self.plan is not None and self.plan < 1:
            raise InputError(f"--plan {self.plan}: give 1 image or more")

    @property
    def suites(self) -> tuple[str, ...]:
        """Suites to run, also where none are named."""
        return self.suite or (() if self.plan else USUAL)
