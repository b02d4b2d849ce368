"""Frames that the benchmarks of one run share, and the processes of the baselines."""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mclc_gpu.bench.compare import Absent
from mclc_gpu.bench.reference import ReferencePool
from mclc_gpu.data.annotations import Point
from mclc_gpu.data.datasets import pair_files, read_list, select
from mclc_gpu.data.images import read_image, read_truth
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.data.simulate import points_from_mask
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.labels.windows import name_key


def pair_set(images: Path, masks: Path, names: Path | None) -> dict[str, tuple[Path, Path]]:
    """Return the files of images and true masks by name; those missing are reported on standard error.

    Raises
    ------
    InputError
        No image has a mask.
    """
    found, truths = find_images_and_masks(images, masks)
    chosen, skipped = select(found, found if names is None else read_list(names))
    pairs, unpaired = pair_files(chosen, truths)
    for item in skipped + unpaired:
        print(f"{item.file}: left out: {item.why}", file=sys.stderr)
    if not pairs:
        raise InputError(f"{images}: no image of it is listed and has a mask in {masks}: check the paths")
    return pairs


def read_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Read images, and true masks as bool [H, W], by name."""
    pixels = {name: read_image(image) for name, (image, _) in pairs.items()}
    return pixels, {name: read_truth(mask, pixels[name].shape[:2]) for name, (_, mask) in pairs.items()}


def read_set(
    images: Path, masks: Path, names: Path | None
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Read images and true masks by name; see `pair_set`."""
    return read_pairs(pair_set(images, masks, names))


@dataclass(frozen=True)
class Frames:
    """Images of a data set with their names and true masks (bool [H, W])."""

    names: list[str]
    images: list[np.ndarray]
    truth: list[np.ndarray]
    _points: dict[tuple[int, str, float], list[list[Point]]] = field(default_factory=dict, repr=False)

    def points(self, seed: int, supervision: str = "point", jitter: float = 0.0) -> list[list[Point]]:
        """Simulate the annotation of every image, from its mask, its name and the seed alone.

        Parameters are those of `mclc_gpu.data.simulate.points_from_mask`.
        """
        key = seed, supervision, jitter
        if key not in self._points:
            self._points[key] = [
                points_from_mask(
                    mask,
                    supervision=supervision,
                    jitter=jitter,
                    rng=np.random.default_rng(name_key(seed, name)),
                )
                for name, mask in zip(self.names, self.truth, strict=True)
            ]
        return self._points[key]

    def chosen(self, places: Sequence[int]) -> "Frames":
        """Return some of the images."""

        def of(values: list[Any]) -> list[Any]:
            return [values[place] for place in places]

        points = {key: of(own) for key, own in self._points.items()}
        return Frames(of(self.names), of(self.images), of(self.truth), points)


MOST_FRAMES = 256
_FRAMES, _SIDE = 128, 256  # of the synthetic set
_QUICK_FRAMES, _QUICK_SIDE = 6, 64
_QUICK_SHARE = 0.02  # of the time

PYDENSECRF = "not installed: `make reference` in the checkout"
REFERENCE = "scikit-image + pydensecrf"


@dataclass
class Context:
    """Data and processes that all benchmarks of a run share.

    Attributes
    ----------
    device : torch.device
        This package's; the baselines run on the CPU.
    pairs : dict of str to (Path, Path)
        Files of image and mask by name.
    frames : Frames
        The same, read.
    source : str
        Description of the frames.
    quick : bool
        Do very little work, to check that everything runs; the rates then mean nothing.
    """

    device: torch.device
    pairs: dict[str, tuple[Path, Path]]
    frames: Frames
    source: str
    quick: bool = False

    def time(self, seconds: float) -> float:
        """Scale a time budget."""
        return seconds * _QUICK_SHARE if self.quick else seconds

    def of(self, usual: int, quick: int) -> int:
        """Choose an amount of work."""
        return quick if self.quick else usual

    @property
    def targets(self) -> int:
        """Number of targets in all frames."""
        return sum(map(len, self.frames.points(0)))

    @cached_property
    def pool(self) -> ReferencePool:
        """Processes of the baselines, one per core, started when first needed."""
        return ReferencePool(refine="crf" if has_pydensecrf() else "threshold")

    def close(self) -> None:
        """End the processes of the baselines."""
        if "pool" in self.__dict__:
            self.pool.__exit__(None, None, None)


def has_pydensecrf() -> bool:
    """Return whether pydensecrf is installed."""
    return importlib.util.find_spec("pydensecrf") is not None


def without_pydensecrf() -> tuple[Absent, ...]:
    """Return the reference as absent where pydensecrf is not installed."""
    return () if has_pydensecrf() else (Absent(REFERENCE, PYDENSECRF),)


@contextmanager
def open_context(
    images: Path | None, masks: Path | None, names: Path | None, device: torch.device, quick: bool
) -> Iterator[Context]:
    """Open the frames of two folders, or synthetic ones where none are given.

    Raises
    ------
    InputError
        Files cannot be used, or no mask holds a target.
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
        # Frames spread over a large set are enough: the rates do not depend on their number.
        most = count if quick else MOST_FRAMES
        pairs = dict(list(found.items())[:: -(-len(found) // most)])
        pixels, truth = read_pairs(pairs)
        frames = Frames(list(pixels), list(pixels.values()), list(truth.values()))
        context = Context(device, pairs, frames, source, quick)
        if not context.targets:
            raise InputError(f"{masks}: no mask holds a target; check the folder")
        of_all = "" if len(pairs) == len(found) else f" of {len(found)}"
        context.source = f"{source}: {len(pairs)}{of_all} images, {context.targets} targets"
        try:
            yield context
        finally:
            context.close()
