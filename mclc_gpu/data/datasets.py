"""Data sets on disk: split lists, and pairs of images and masks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mclc_gpu.data.images import stem_of
from mclc_gpu.errors import InputError, Skipped

Item = TypeVar("Item")

# Where the releases keep their lists: NUAA-SIRST; IRSTD-1k, NUDT-SIRST and NUDT-SIRST-sea; DNANet's copies
# (50_50/).
_LISTS = ("splits/{}.txt", "img_idx/{}.txt", "img_idx/{}_*.txt", "{}.txt", "[0-9]*_[0-9]*/{}.txt")
_SPLIT_NAMES = {"train": ("train", "trainval"), "test": ("test",)}


def read_list(path: Path | str) -> list[str]:
    """Names of a split list, one a line, as stems (see `mclc_gpu.data.images.stem_of`), in order, each once.

    Line ends of any system, a missing last one, blank lines, folders and image suffixes are all accepted.
    Raises InputError when the file is missing, is not UTF-8 text, or names nothing.
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
    """What `files` (anything by stem) holds under `names`, in the order of `names`, and the names it
    lacks."""
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
    """The list of a data set's train or test images, in the layout of any of the field's releases.

    Looked for below `root`, first found: splits/SPLIT.txt (NUAA-SIRST); img_idx/SPLIT.txt or
    img_idx/SPLIT_NAME.txt (IRSTD-1k, NUDT-SIRST, NUDT-SIRST-sea); SPLIT.txt; 50_50/SPLIT.txt and the like;
    the same with trainval for train. Of several img_idx lists the one whose NAME is that of the folder
    counts.

    Raises InputError when there is none, or when it cannot be told which of several.
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
    """(image, mask) by stem, in the order of `images`, and the images without a mask.

    Masks of other images are passed over: a folder of masks often serves several lists. Sizes are compared
    when a mask is read (`read_mask` with the image's shape).
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
    """One image and its mask, as files. Names tell samples apart, in reports and across data sets."""

    name: str
    image: Path
    mask: Path


def pair_samples(
    images: Mapping[str, Path], masks: Mapping[str, Path], prefix: str = ""
) -> tuple[list[Sample], list[Skipped]]:
    """Samples of files by stem, and the images without a mask; `prefix` goes before the stems as names."""
    pairs, skipped = pair_files(images, masks)
    return [Sample(prefix + stem, image, mask) for stem, (image, mask) in pairs.items()], skipped
