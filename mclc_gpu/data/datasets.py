"""Data sets on disk: split lists, pairs of images and masks, validation sets."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import read_image, read_truth
from mclc_gpu.data.names import FileNames
from mclc_gpu.errors import InputError, Skipped, attempt

# Where the releases keep their lists: NUAA-SIRST; IRSTD-1k, NUDT-SIRST and NUDT-SIRST-sea; DNANet's copies
# (50_50/).
_LISTS = ("splits/{}.txt", "img_idx/{}.txt", "img_idx/{}_*.txt", "{}.txt", "[0-9]*_[0-9]*/{}.txt")
_SPLIT_NAMES = {"train": ("train", "trainval"), "test": ("test",)}


def read_list(path: Path | str) -> list[str]:
    """Read the names of a split list, one a line.

    Line ends of any system, a missing last one and blank lines are accepted.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    list of str
        Names as they stand there, with or without folders and suffixes, in order, each once.

    Raises
    ------
    InputError
        The file is missing, is not UTF-8 text, or names nothing.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path of the list") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; give a list with one file name a line") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: the list names no file; give one file name a line")
    return list(dict.fromkeys(names))


def select(files: Mapping[str, Path], names: Iterable[str]) -> tuple[dict[str, Path], list[Skipped]]:
    """Return the files of some names (see `FileNames`) in the order of the names; report missing ones."""
    names = list(names)
    matched = FileNames(files).match(names)
    chosen = {matched[name]: files[matched[name]] for name in names if name in matched}
    missing = [name for name in names if name not in matched]
    return chosen, [Skipped(name, "the list names it, but there is no such file") for name in missing]


def listed(
    files: Mapping[str, Path], names: Path | None, folder: Path
) -> tuple[dict[str, Path], list[Skipped]]:
    """Return the files of a folder that a split list names, in its order, and the names without a file.

    Parameters
    ----------
    files : mapping of str to Path
        Files by name, see `mclc_gpu.data.names.find_files`.
    names : Path or None
        The list (see `read_list`); None selects all files.
    folder : Path
        Folder of the files, for messages.

    Raises
    ------
    InputError
        The list cannot be read, or names none of the files.
    """
    if names is None:
        return dict(files), []
    chosen, skipped = select(files, read_list(names))
    if not chosen:
        raise InputError(
            f"{names}: none of its {len(skipped)} names is in {folder}; check the list and the folder"
        )
    return chosen, skipped


def find_split(root: Path | str, split: Literal["train", "test"]) -> Path:
    """Find the list of a data set's train or test images, in the layout of any of the field's releases.

    Searched below `root` in this order: splits/SPLIT.txt (NUAA-SIRST); img_idx/SPLIT.txt or
    img_idx/SPLIT_NAME.txt (IRSTD-1k, NUDT-SIRST, NUDT-SIRST-sea); SPLIT.txt; 50_50/SPLIT.txt and the like;
    the same with trainval for train. Of several img_idx lists the one whose NAME is that of the folder
    counts.

    Parameters
    ----------
    root : Path or str
    split : {"train", "test"}

    Raises
    ------
    InputError
        There is no list, or several and none is named like the folder.
    """
    root = Path(root)
    for name in _SPLIT_NAMES[split]:
        for pattern in _LISTS:
            found = sorted(root.glob(pattern.format(name)))
            own = [path for path in found if path.stem.lower() == f"{name}_{root.name}".lower()]
            found = own or found
            if len(found) > 1:
                several = ", ".join(str(path.relative_to(root)) for path in found)
                raise InputError(f"{root}: several {split} lists ({several}); name one by its path")
            if found:
                return found[0]
    raise InputError(f"{root}: no {split} list (splits/{split}.txt, img_idx/{split}_NAME.txt, {split}.txt)")


def pair_files(
    images: Mapping[str, Path], masks: Mapping[str, Path]
) -> tuple[dict[str, tuple[Path, Path]], list[Skipped]]:
    """Pair images and masks of the same stem.

    Masks without an image are passed over: a folder of masks often serves several lists. Sizes are compared
    when a mask is read (`read_truth` with the image's shape).

    Parameters
    ----------
    images, masks : mapping of str to Path
        Files by stem.

    Returns
    -------
    pairs : dict of str to (image, mask)
        In the order of `images`.
    skipped : list of Skipped
        Images without a mask.
    """
    pairs: dict[str, tuple[Path, Path]] = {}
    skipped: list[Skipped] = []
    for stem, image in images.items():
        if stem in masks:
            pairs[stem] = (image, masks[stem])
        else:
            skipped.append(Skipped(str(image), "there is no mask of this image"))
    return pairs, skipped


@dataclass(frozen=True, slots=True)
class Sample:
    """Files of one image and its mask.

    Attributes
    ----------
    name : str
        Unique over all data sets of a run; used in reports.
    image, mask : Path
    """

    name: str
    image: Path
    mask: Path


def pair_samples(
    images: Mapping[str, Path], masks: Mapping[str, Path], prefix: str = ""
) -> tuple[list[Sample], list[Skipped]]:
    """Pair images and masks as samples, named by `prefix` and stem; see `pair_files`."""
    pairs, skipped = pair_files(images, masks)
    return [Sample(prefix + stem, image, mask) for stem, (image, mask) in pairs.items()], skipped


Named = tuple[str, np.ndarray, np.ndarray]  # name, image as read, mask bool [H, W]


class ValidationSet:
    """Images and masks at their own size, kept in memory if they fit; every iteration yields all of them.

    Parameters
    ----------
    samples : sequence of Sample
        All are read once, to find the usable ones.
    budget : float
        Bytes to keep at most; a larger set is read again from its files in every iteration.

    Attributes
    ----------
    samples : list of Sample
        Usable samples.
    skipped : list of Skipped
        Samples left out.
    """

    def __init__(self, samples: Sequence[Sample], budget: float = math.inf) -> None:
        self.samples: list[Sample] = []
        self.skipped: list[Skipped] = []
        self._kept: list[Named] | None = []
        size = 0
        frames = prefetch_map(lambda sample: attempt(sample.image, lambda: _read(sample)), samples)
        for sample, frame in zip(samples, frames, strict=True):
            if isinstance(frame, Skipped):
                self.skipped.append(frame)
                continue
            self.samples.append(sample)
            size += frame[1].nbytes + frame[2].nbytes
            if self._kept is not None and size <= budget:
                self._kept.append(frame)
            else:
                self._kept = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Named]:
        """Yield (name, image, mask) in order; InputError for a file that can no longer be read."""
        return iter(self._kept) if self._kept is not None else prefetch_map(_read, self.samples)


def _read(sample: Sample) -> Named:
    image = read_image(sample.image)
    return sample.name, image, read_truth(sample.mask, image.shape[:2])
