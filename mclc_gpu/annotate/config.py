"""Settings of `annotate`, free of torch and numpy so that the command line reads them quickly.

See `mclc_gpu.cli.options` for the metadata of the fields.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mclc_gpu.errors import InputError
from mclc_gpu.labels.config import PRESETS, LabelConfig

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions:
    """Inputs, output and settings of an annotation session (see `mclc_gpu.annotate.command.annotate`).

    Attributes
    ----------
    images : Path
        Folder of images.
    out : Path
        Output folder: journal of the session, and what a label run writes.
    points : Path, optional
        Point labels to begin with (see `mclc_gpu.data.points.read_points`).
    supervision : {"point", "multi-point", "scribble", "box"}
        Kind of marks that are taken from `points`.
    suggest : str, optional
        Checkpoint of a trained detector, or name of an untrained one, whose findings are suggested.
    config : LabelConfig
        Settings of the label pipeline.
    seed : int
        Seed of the labels.
    host : str
        Address to listen on; with any other than 127.0.0.1 a token is needed.
    port : int, 0..65535
        0: a free one.
    open : bool
        Open the page in a browser.

    Raises
    ------
    InputError
        The port is out of range.
    """

    images: Path = field(metadata={"help": "folder of images", "metavar": "DIR"})
    out: Path = field(metadata={"help": "output folder; an earlier session in it goes on", "metavar": "DIR"})
    points: Path | None = field(
        default=None, metadata={"help": "point labels to begin with", "metavar": "FILE|DIR"}
    )
    supervision: str = field(
        default="point",
        metadata={
            "help": "kind of marks to take from --points",
            "choices": ("point", "multi-point", "scribble", "box"),
        },
    )
    suggest: str | None = field(
        default=None,
        metadata={"help": "suggest targets that this detector finds", "metavar": "CHECKPOINT|METHOD"},
    )
    config: LabelConfig = field(
        default_factory=lambda: PRESETS["default"],
        metadata={"title": "label settings", "presets": PRESETS, "read": LabelConfig.read},
    )
    seed: int = field(default=0, metadata={"help": "seed of noise", "metavar": "N"})
    host: str = field(
        default=LOOPBACK,
        metadata={"help": "address to listen on; a token is needed with others", "metavar": "ADDRESS"},
    )
    port: int = field(default=8765, metadata={"help": "port to listen on; 0: a free one", "metavar": "N"})
    open: bool = field(default=False, metadata={"help": "open the page in a browser"})

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port}: use 0 to 65535")
