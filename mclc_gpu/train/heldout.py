"""Images that a run keeps out of training, and those that it should have kept out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mclc_gpu.data.datasets import Sample
from mclc_gpu.data.files import read_file
from mclc_gpu.errors import InputError

FEWEST = 20  # images, of which some are held out


def hold_out(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Divide samples into those to train on and a share that is held out.

    Images are ranked by a digest of their names, so that the choice depends on neither order nor neighbors.
    Images that are added change it only as far as the share of the ranking moves: most held-out images stay.

    Parameters
    ----------
    samples : sequence of Sample
    share : float, 0..0.5
        Share to hold out, at least one image. Fewer than 20 images are all trained on.

    Returns
    -------
    train, held : list of Sample
        In the order of `samples`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from mclc_gpu.data.datasets import Sample
    >>> from mclc_gpu.train.heldout import hold_out
    >>> samples = [Sample(f"frame{n}", Path("images"), Path("masks")) for n in range(40)]
    >>> train, held = hold_out(samples, 0.1)
    >>> len(train), len(held)
    (36, 4)
    """
    if not share or len(samples) < FEWEST:
        return list(samples), []
    ranked = sorted(samples, key=lambda sample: hashlib.blake2b(sample.name.encode()).digest())
    held = set(ranked[: max(1, round(share * len(samples)))])
    return [one for one in samples if one not in held], [one for one in samples if one in held]


def in_both(train: Sequence[Sample], validation: Sequence[Sample]) -> list[str]:
    """Return the names of validation images that are trained on too: the same file, or a copy of its name."""
    named: dict[str, list[Path]] = {}
    for sample in train:
        named.setdefault(sample.image.name, []).append(sample.image)
    return [
        sample.name
        for sample in validation
        if any(_same(sample.image, other) for other in named.get(sample.image.name, ()))
    ]


def _same(one: Path, other: Path) -> bool:
    if one.resolve() == other.resolve():
        return True
    try:
        return read_file(one) == read_file(other)
    except (OSError, InputError):  # reported where it is read to be used
        return False
