"""Data sets, splits and clicks of the paper's tables."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from mclc_gpu.bench.printed import NUAA_86, NUAA_SPLITS, SETS
from mclc_gpu.data.annotations import category_of, components
from mclc_gpu.data.datasets import find_split, read_list, select
from mclc_gpu.data.files import atomic_path, write_csv
from mclc_gpu.data.images import image_size, read_truth
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.data.synthetic import write_dataset
from mclc_gpu.errors import InputError
from mclc_gpu.labels.windows import name_key

NUAA, SEA = SETS[0], SETS[-1]
SECONDS_PER_MASK, SECONDS_PER_POINT = 11.2, 1.4  # of an annotator and one target, as the paper states them
QUICK_TRAIN, QUICK_TEST = 8, 4  # images
_DEVIATION = 0.25  # of a real click from the centroid, in half sides of the target's bounding box


@dataclass(frozen=True)
class PaperSet:
    """A data set with the lists of its split.

    Attributes
    ----------
    name : str
        As the paper names it, where the folder has that name.
    split : str
        Numbers of train and test images, "213/214".
    images, masks : Path
        Folders.
    train : Path
        List of the train images.
    test : Path or None
        List of the test images; None where the folder has none.
    made : Path
        Folder for lists and clicks that are made here.
    quick : bool
        A few images only.
    """

    name: str
    split: str
    images: Path
    masks: Path
    train: Path
    test: Path | None
    made: Path
    quick: bool

    @property
    def key(self) -> str:
        """Name of the set and its split, for folders."""
        return f"{self.name}-{self.split.replace('/', '-')}"

    @property
    def comparable(self) -> bool:
        """True if the paper's numbers are of this split."""
        return not self.quick and (self.name != NUAA or self.split == NUAA_SPLITS[0])

    @cached_property
    def targets(self) -> dict[str, int]:
        """Number of targets in each train image that has one, in an order drawn once."""
        found = {name: sum(1 for _ in components(mask)) for name, mask in self._truths()}
        names = [name for name in found if found[name]]
        return {name: found[name] for name in sorted(names, key=lambda name: name_key(0, name))}

    def subset(self, targets: int, after: int = 0) -> tuple[Path, int]:
        """Write the list of train images with so many targets, or a few less, after those of `after` targets.

        Returns
        -------
        list : Path
        targets : int
            Number in these images: at least one image's.

        Raises
        ------
        InputError
            No image with a target is left.
        """
        start = self._reach(0, after)
        chosen = list(self.targets)[start : self._reach(start, targets)]
        if not chosen:
            raise InputError(f"{self.masks}: no train image with a target is left after {after} targets")
        path = _write_list(self.made / f"{targets}-targets-after-{after}.txt", chosen)
        return path, sum(self.targets[name] for name in chosen)

    def _reach(self, start: int, targets: int) -> int:
        """Return the end of the images from `start` on that have at most so many targets; one at least."""
        counts = list(self.targets.values())[start:]
        whole = sum(total <= targets for total in accumulate(counts))
        return start + (max(whole, 1) if targets else 0)

    def real_clicks(self) -> Path:
        """Write clicks beside the centers of the train images' targets, as CSV; see `real_click`."""
        path = self.made / "clicks-real.csv"
        rows = [
            (name, *real_click(rows, columns, rng), category_of(len(rows)))
            for name, mask in self._truths()
            for rng in [np.random.default_rng(name_key(0, name))]
            for rows, columns in components(mask)
        ]
        write_csv(path, ("image", "x", "y", "category"), rows)
        return path

    def _truths(self) -> Iterator[tuple[str, np.ndarray]]:
        images, masks = find_images_and_masks(self.images, self.masks)
        chosen, _ = select(images, read_list(self.train))
        for name, image in chosen.items():
            if name in masks:
                try:
                    yield name, read_truth(masks[name], image_size(image))
                except InputError:
                    continue  # reported by every cell that reads it


def real_click(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a click of an annotator in a hurry, from the pixels of a target (int [n] each).

    It lies N(0, 1/4) half sides of the bounding box from the centroid in x and in y, is rounded down, and
    drawn again until it is on the target. So are the coarse clicks that the field publishes with its data
    sets: on NUAA-SIRST half of them lie within 1.07 px of the centroid and 95 % within 2.5 px, of these
    clicks within 1.06 and 2.6. The paper's own distribution (Fig. 8) is not known here.

    Returns
    -------
    x, y : int
        Column and row.
    """
    pixels = set(zip(columns.tolist(), rows.tolist(), strict=True))
    center = columns.mean(), rows.mean()
    half = (np.ptp(columns) + 1) / 2, (np.ptp(rows) + 1) / 2
    while True:
        x, y = (
            math.floor(c + h * d) for c, h, d in zip(center, half, rng.normal(0, _DEVIATION, 2), strict=True)
        )
        if (x, y) in pixels:
            return x, y


def open_sets(roots: Sequence[Path], split: str, out: Path, quick: bool) -> list[PaperSet]:
    """Open data sets in a layout of the field, or with `quick` and none given a synthetic one.

    Parameters
    ----------
    roots : sequence of Path
        Folders with images/, masks/ and split lists (see `mclc_gpu.data.datasets.find_split`).
    split : str
        One of `NUAA_SPLITS`, for NUAA-SIRST.
    out : Path
        Folder for what is written.
    quick : bool
        Take only a few images of each.

    Raises
    ------
    InputError
        Lists are missing or do not fit, or two folders have the same name.
    """
    if not roots:
        if not quick:
            raise InputError("no data set is named; give --set DIR, or --quick for synthetic images")
        roots = [_synthetic(out / "synthetic")]
    sets = [_open(root, split, out, quick) for root in roots]
    for place, one in enumerate(sets):
        if any(one.key == other.key for other in sets[:place]):
            raise InputError(f"{roots[place]}: a second set named {one.name}; rename its folder")
    return sets


def _open(root: Path, split: str, out: Path, quick: bool) -> PaperSet:
    known = {name.lower(): name for name in SETS}
    name = known.get(root.resolve().name.lower(), root.resolve().name)
    images, masks = find_images_and_masks(root / "images", root / "masks")
    train, test = read_list(find_split(root, "train")), _test_names(root)
    if name == NUAA and split == NUAA_SPLITS[1]:
        train, test = _first_release(images)
    if quick:
        train, test = train[:QUICK_TRAIN], test[:QUICK_TEST]
    for names in filter(None, (train, test)):
        if not any(stem in masks for stem in select(images, names)[0]):
            raise InputError(f"{root}: no image of {names[0]}, ... has a mask; check images/, masks/, lists")
    text = f"{len(train)}/{len(test)}"
    if name == NUAA and not quick and text != split:
        raise InputError(f"{root}: its lists name {text} images, not {split}; give --split {NUAA_SPLITS[1]}")
    made = out / "sets" / f"{name}-{text.replace('/', '-')}"
    train_list = _write_list(made / "train.txt", train)
    test_list = _write_list(made / "test.txt", test) if test else None
    return PaperSet(name, text, root / "images", root / "masks", train_list, test_list, made, quick)


def _test_names(root: Path) -> list[str]:
    """Return the names of the test images, none where there is no such list."""
    try:
        path = find_split(root, "test")
    except InputError:
        return []
    return read_list(path)


def _first_release(images: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Divide NUAA-SIRST as its first release does, into 341 and 86 images."""
    test, missing = select(images, [f"Misc_{number}" for number in NUAA_86])
    train = [name for name in images if name not in test]
    if missing or f"{len(train)}/{len(test)}" != NUAA_SPLITS[1]:
        raise InputError(
            f"{next(iter(images.values())).parent}: {len(images)} images, not the 427 of NUAA-SIRST "
            f"that --split {NUAA_SPLITS[1]} divides"
        )
    return train, list(test)


def _synthetic(root: Path) -> Path:
    if not (root / "splits").exists():
        write_dataset(root, QUICK_TRAIN + QUICK_TEST, 0, size=(64, 64))
    return root


def _write_list(path: Path, names: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path
