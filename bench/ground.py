"""What all contests of a run share: the frames, the device, the peers' processes."""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mclc_gpu.bench.contest import Absent
from mclc_gpu.bench.cpu_reference import ReferencePool
from mclc_gpu.bench.label_measure import Frames
from mclc_gpu.bench.sets import pair_set, read_pairs
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError

MOST_FRAMES = 256
_FRAMES, _SIDE = 128, 256  # of the synthetic set
_QUICK_FRAMES, _QUICK_SIDE = 6, 64
_QUICK_SHARE = 0.02  # of the time

PYDENSECRF = "not installed: `make reference` in the checkout"
REFERENCE = "scikit-image + pydensecrf"


@dataclass
class Ground:
    """What all contests of a run share.

    Attributes:
        device: This package's; the peers run on the CPU.
        pairs: Files of images and masks by name.
        frames: The same, read.
        source: What they are, in words.
        quick: Little work, to see that everything runs; the rates mean nothing then.
    """

    device: torch.device
    pairs: dict[str, tuple[Path, Path]]
    frames: Frames
    source: str
    quick: bool = False

    def time(self, seconds: float) -> float:
        """So much of it as a contest of this run may take."""
        return seconds * _QUICK_SHARE if self.quick else seconds

    def of(self, usual: int, quick: int) -> int:
        """How much work there is."""
        return quick if self.quick else usual

    @property
    def targets(self) -> int:
        """In all frames."""
        return sum(map(len, self.frames.points(0)))

    @cached_property
    def pool(self) -> ReferencePool:
        """The peers' processes, one per core, started when they are first asked for."""
        return ReferencePool(refine="crf" if has_pydensecrf() else "threshold")

    def close(self) -> None:
        """End the peers' processes."""
        if "pool" in self.__dict__:
            self.pool.__exit__(None, None, None)


def has_pydensecrf() -> bool:
    """Whether the reference's CRF can run."""
    return importlib.util.find_spec("pydensecrf") is not None


def without_pydensecrf() -> tuple[Absent, ...]:
    """The reference, where its CRF cannot run."""
    return () if has_pydensecrf() else (Absent(REFERENCE, PYDENSECRF),)


@contextmanager
def open_ground(
    images: Path | None, masks: Path | None, names: Path | None, device: torch.device, quick: bool
) -> Iterator[Ground]:
    """The frames of two folders, or synthetic ones where none are named.

    Raises InputError for files that cannot be used, and where no mask holds a target.
    """
    with tempfile.TemporaryDirectory(prefix="mclc-gpu-bench-") as scratch:
        count, side = (_QUICK_FRAMES, _QUICK_SIDE) if quick else (_FRAMES, _SIDE)
        if images is None or masks is None:
            write_dataset(Path(scratch), count, 0, size=(side, side))
            images, masks = Path(scratch) / "images", Path(scratch) / "masks"
            source = f"synthetic frames of {side}x{side}"
        else:
            source = f"{images}" if names is None else f"{images}, {names.name}"
        found = pair_set(images, masks, names)
        # Of a large set some frames spread over it: the rates do not depend on their number.
        most = count if quick else MOST_FRAMES
        pairs = dict(list(found.items())[:: -(-len(found) // most)])
        pixels, truth = read_pairs(pairs)
        frames = Frames(list(pixels), list(pixels.values()), list(truth.values()))
        ground = Ground(device, pairs, frames, source, quick)
        if not ground.targets:
            raise InputError(f"{masks}: no mask holds a target; check the folder")
        of_all = "" if len(pairs) == len(found) else f" of {len(found)}"
        ground.source = f"{source}: {len(pairs)}{of_all} images, {ground.targets} targets"
        try:
            yield ground
        finally:
            ground.close()
