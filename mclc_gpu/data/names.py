"""Find the files of a data set in folders and archives, and by the names that labels and lists give them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from mclc_gpu.data.files import ARCHIVE_SUFFIX, MASK_PART, in_archive, members_of, stem_of_mask
from mclc_gpu.errors import InputError, Skipped

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".jp2", ".pgm", ".npy", ".mat")
_UNREAD = (
    ".gif",
    ".webp",
    ".fits",
    ".fit",
    ".npz",
    ".h5",
    ".raw",
    ".dng",
    ".heic",
    ".avi",
    ".mp4",
    ".mov",
    ".seq",
)
_MASK_ENDING = "_pixels0"  # NUAA-SIRST names the mask of NAME.png NAME_pixels0.png
# What may follow an image's stem in the name of its mask; MDvsFA numbers both.
_MASK_ENDINGS = ("_mask", "_masks", "_gt", "_GT", "_label", "-mask", "-gt")
_NUMBERED = ("_1", "_2")


def stem_of(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> str:
    """Return the stem by which files of one scene find each other.

    Parameters
    ----------
    name : str
        File name or path of any operating system.
    suffixes : tuple of str
        Suffixes to drop, lower case.

    Returns
    -------
    str
        The name without folders, suffix and the ending `_pixels0` of NUAA-SIRST's masks; other dots stay.

    Examples
    --------
    >>> stem_of("masks/Misc_1_pixels0.PNG"), stem_of("frame.0.5")
    ('Misc_1', 'frame.0.5')
    """
    base = PurePosixPath(name.replace("\\", "/")).name
    head, suffix = os.path.splitext(base)
    if suffix.lower() in suffixes:
        base = head
    return base.removesuffix(_MASK_ENDING) or base


def find_files(directory: Path | str, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Find the files of one folder by name.

    The name of a file is its stem (see `stem_of`). Of a folder without such files those of all its
    sub-folders are found, under names such as "sequence_3/000123". Hidden files and folders, and files of
    other suffixes (XML beside masks) are passed over. A folder that only holds tar archives stands for the
    files in these (`mclc_gpu.data.files`); archives that `label` wrote stand for their masks.

    Parameters
    ----------
    directory : Path or str
    suffixes : iterable of str
        Their case does not matter.

    Returns
    -------
    dict of str to Path
        Sorted by name.

    Raises
    ------
    InputError
        The folder is missing, holds no such file, or holds two files of the same name.
    """
    directory = Path(directory)
    wanted = tuple(suffix.lower() for suffix in suffixes)
    files = _files_in(directory, (*wanted, ARCHIVE_SUFFIX))
    paths = [path for path in files if path.suffix.lower() != ARCHIVE_SUFFIX]
    if not paths:
        paths = [path for archive in files for path in _archived(archive, wanted)]
    folders = [""] * len(paths)
    if not paths:
        paths = list(_below(directory, wanted))
        folders = [f"{path.parent.relative_to(directory).as_posix()}/" for path in paths]
    found: dict[str, Path] = {}
    for path, folder in zip(paths, folders, strict=True):
        labels = path.name.endswith(MASK_PART) and in_archive(path)
        name = stem_of_mask(path.name) if labels else folder + stem_of(path.name, wanted)
        if name in found:
            raise InputError(
                f"{directory}: {found[name].name} and {path.name} are both named {name!r}; keep one"
            )
        found[name] = path
    if not found:
        raise InputError(
            f"{directory}: the folder holds no {', '.join(wanted)} file, nor do sub-folders; check the path"
        )
    return dict(sorted(found.items()))


def unread_files(directory: Path) -> list[Skipped]:
    """Report the images and videos of a folder in formats that are not read."""
    return [
        Skipped(str(path), f"{path.suffix} files are not read; export the frames as PNG or TIFF")
        for path in _files_in(directory, _UNREAD)
    ]


def _files_in(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return sorted(
                directory / entry.name
                for entry in entries
                if entry.name.lower().endswith(suffixes)
                and not entry.name.startswith(".")
                and entry.is_file()
            )
    except OSError as error:
        raise InputError(f"{directory}: cannot be read as a folder ({error.strerror})") from error


def _below(directory: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(folder, name)


def _archived(archive: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Return the paths of the images in an archive, or of the masks in one of labels."""
    names = [name for name in members_of(archive) if name.lower().endswith(suffixes)]
    masks = [name for name in names if name.endswith(MASK_PART)]
    return (archive / name for name in masks or names)


class FileNames:
    """Files by the names that labels and lists give them, with or without folders and suffix.

    Parameters
    ----------
    files : mapping of str to Path
        See `find_files`.

    Examples
    --------
    >>> names = FileNames({"a": Path("set/data6/a.png"), "b": Path("set/data6/b.png")})
    >>> names.match(["data6/a.bmp", "data7/a.bmp", "b"])
    {'data6/a.bmp': 'a', 'b': 'b'}
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._by_stem: dict[str, list[str]] = {}
        for name in files:
            # macOS decomposes accented letters in file names.
            self._by_stem.setdefault(normalize("NFC", stem_of(name)), []).append(name)

    def match(self, given: Iterable[str]) -> dict[str, str]:
        """Return the name in `files` of each given name that names one of them.

        The stem must be equal, and the folders from the last one up, as far as `files` has them. Beyond, a
        folder's own path counts: where it agrees with some of the given names, those that do not agree name
        other files, and of several that meet one file the one that agrees most is taken. Names that stay
        ambiguous are left out.
        """
        found = {name: self._nearest(name) for name in dict.fromkeys(given)}
        depths = [depth for _, depth, folders in filter(None, found.values()) if folders]
        least = 1 if depths and max(depths) > 0 else 0
        claims: dict[str, dict[tuple[str, ...], int]] = {}
        for file, depth, folders in filter(None, found.values()):
            if folders and depth >= least:
                claims.setdefault(file, {})[folders] = depth

        def is_meant(file: str, depth: int, folders: tuple[str, ...]) -> bool:
            rivals = claims.get(file, {})
            best = [other for other, common in rivals.items() if common == max(rivals.values())]
            return not folders or (depth >= least and best == [folders])

        return {name: place[0] for name, place in found.items() if place is not None and is_meant(*place)}

    def _nearest(self, name: str) -> tuple[str, int, tuple[str, ...]] | None:
        """Return the file that shares most folders with a name, how many, and the folders of the name."""
        if name in self._files:
            return name, 0, ()
        folders = _folders(name)
        depths = {
            file: _common(folders, self._files[file].parent.parts)
            for file in self._by_stem.get(normalize("NFC", stem_of(name)), [])
            if _agree(folders, _folders(file))
        }
        best = [file for file, depth in depths.items() if depth == max(depths.values())]
        return (best[0], depths[best[0]], folders) if len(best) == 1 else None


def _folders(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/")[:-1] if part not in ("", "."))


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether one of two paths ends in the other."""
    return _common(one, other) == min(len(one), len(other))


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many last parts two paths share."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def find_images_and_masks(images: Path, masks: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the images of a folder and the masks of another, or of the same one.

    A mask has the name of its image, or this name and `_mask`, `_gt` or `_label`. One folder may hold both,
    if the masks have such endings, or if every image is NAME_1 and its mask NAME_2 (as in MDvsFA).

    Parameters
    ----------
    images, masks : Path
        Folders, see `find_files`.

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
    names = FileNames(found)
    others = {stem: [stem, *_without_ending(stem)] for stem in of_masks if stem not in found}
    matched = names.match(name for own in others.values() for name in own)
    for stem, own in others.items():
        image = next((matched[name] for name in own if name in matched), None)
        if image is not None and image not in of_masks:
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
