"""Data sets on disk: split lists, pairs of images and masks, validation sets."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import find_files, read_image, read_truth, stem_of
from mclc_gpu.errors import InputError, Skipped, attempt

Item = TypeVar("Item")

# Where the releases keep their lists: NUAA-SIRST; IRSTD-1k, NUDT-SIRST and NUDT-SIRST-sea; DNANet's copies
# (50_50/).
_LISTS = ("splits/{}.txt", "img_idx/{}.txt", "img_idx/{}_*.txt", "{}.txt", "[0-9]*_[0-9]*/{}.txt")
_SPLIT_NAMES = {"train": ("train", "trainval"), "test": ("test",)}
# What may follow an image's stem in the name of its mask; MDvsFA numbers both.
_MASK_ENDINGS = ("_mask", "_masks", "_gt", "_GT", "_label", "-mask", "-gt")
_NUMBERED = ("_1", "_2")


def read_list(path: Path | str) -> list[str]:
    """Read the names of a split list, one a line.

    Line ends of any system, a missing last one, blank lines, folders and image suffixes are accepted.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    list of str
        Stems (see `mclc_gpu.data.images.stem_of`) in order, each once.

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
    stems = [stem_of(line.strip()) for line in text.splitlines() if line.strip()]
    if not stems:
        raise InputError(f"{path}: the list names no file; give one file name a line")
    return list(dict.fromkeys(stems))


def select(files: Mapping[str, Item], names: Iterable[str]) -> tuple[dict[str, Item], list[Skipped]]:
    """Return the items of `files` under `names`, in the order of `names`, and report the missing names."""
    chosen: dict[str, Item] = {}
    skipped: list[Skipped] = []
    for name in names:
        if name in files:
            chosen[name] = files[name]
        else:
            skipped.append(Skipped(name, "the list names it, but there is no such file"))
    return chosen, skipped


def listed(
    files: Mapping[str, Item], names: Path | None, folder: Path
) -> tuple[dict[str, Item], list[Skipped]]:
    """Return the files of a folder that a split list names, in its order, and the names without a file.

    Parameters
    ----------
    files : mapping
        Anything by stem, such as the paths that `mclc_gpu.data.images.find_files` returns.
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


def find_images_and_masks(images: Path, masks: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the images of a folder and the masks of another, or of the same one.

    A mask has the stem of its image, or this stem and `_mask`, `_gt` or `_label`. One folder may hold both,
    if the masks have such endings, or if every image is NAME_1 and its mask NAME_2 (as in MDvsFA).

    Parameters
    ----------
    images, masks : Path
        Folders, see `mclc_gpu.data.images.find_files`.

    Returns
    -------
    images, masks : dict of str to Path
        Files by stem of the image.

    Raises
    ------
    InputError
        A folder cannot be read or holds no images, or images and masks cannot be told apart.
    """
    found, of_masks = find_files(images), find_files(masks)
    if images.resolve() == masks.resolve():
        return _told_apart(found, images)
    for stem in list(of_masks):
        image = next((own for own in _without_ending(stem) if own in found), None)
        if image is not None and stem not in found and image not in of_masks:
            of_masks[image] = of_masks.pop(stem)
    return found, dict(sorted(of_masks.items()))


def _without_ending(stem: str) -> Iterator[str]:
    return (stem.removesuffix(ending) for ending in _MASK_ENDINGS if stem.endswith(ending))


def _told_apart(files: Mapping[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Split the files of one folder into images and masks, both by stem of the image."""
    masks = {image: path for stem, path in files.items() for image in _without_ending(stem) if image in files}
    if masks:
        taken = set(masks.values())
        return {stem: path for stem, path in files.items() if path not in taken}, masks
    image_end, mask_end = _NUMBERED
    stems = [stem.removesuffix(image_end) for stem in files if stem.endswith(image_end)]
    if stems and files.keys() == {stem + end for stem in stems for end in _NUMBERED}:
        return {stem: files[stem + image_end] for stem in stems}, {
            stem: files[stem + mask_end] for stem in stems
        }
    raise InputError(
        f"{folder}: given for images and masks, each file would be its own mask; name the mask of NAME.png "
        "NAME_mask.png, or give the folder of the masks"
    )


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
