"""Where a label run keeps masks and TPMs: a PNG file each, or archives of many images."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mclc_gpu.data.archives import ARCHIVE_SUFFIX, MASK_PART, TPM_PART, key_of, write_archive
from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.data.images import find_files, read_image
from mclc_gpu.errors import InputError
from mclc_gpu.labeling import TargetMask, compose

TPM_ONE = 65535  # value of probability 1 in the 16-bit TPM files
MASKS, TPMS, SHARDS = "masks", "tpm", "shards"  # folders of a run
_COMPRESSION = 1  # half the time of PNG's default, and files of about a kilobyte all the same


@dataclass(frozen=True, slots=True)
class Encoded:
    """The files of one image, as bytes."""

    stem: str
    mask: bytes
    tpm: bytes


def encode(stem: str, shape: tuple[int, int], targets: Sequence[TargetMask]) -> Encoded:
    """Mask (8 bit, 0 or 255) and TPM (16 bit, 65535 is probability 1) of one image [H, W] as PNG files."""
    mask, tpm = compose(shape, targets)
    return Encoded(stem, _png(mask.astype(np.uint8) * 255), _png(np.round(tpm * TPM_ONE).astype(np.uint16)))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def read_tpm(path: Path) -> np.ndarray:
    """A TPM file as float32 [H, W] in 0..1. Raises InputError for a file that is not one."""
    tpm = read_image(path)
    if tpm.ndim != 2 or tpm.dtype != np.uint16:
        raise InputError(f"{path}: not a TPM; expected a 16-bit gray PNG")
    return tpm.astype(np.float32) / TPM_ONE


@dataclass(frozen=True)
class LabelStore:
    """The masks and TPMs of a run, by the stems of its images.

    Attributes:
        out: Folder of the run.
        archived: Paths of the masks in its archives; None where each image has files of its own.
    """

    out: Path
    archived: Mapping[str, Path] | None = field(repr=False)

    @staticmethod
    def open(out: Path) -> "LabelStore":
        """The files of a run. Raises InputError for archives that cannot be read."""
        shards = out / SHARDS
        full = shards.is_dir() and any(shards.glob(f"*{ARCHIVE_SUFFIX}"))
        return LabelStore(out, find_files(shards) if full else None)

    def mask(self, stem: str) -> Path:
        """The mask of an image: 8 bit, 0 or 255."""
        if self.archived is None:
            return mask_path(self.out, stem)
        return self.archived.get(stem, self.out / SHARDS / (key_of(stem) + MASK_PART))

    def tpm(self, stem: str) -> Path:
        """The TPM of an image, see `read_tpm`."""
        if self.archived is None:
            return tpm_path(self.out, stem)
        mask = self.mask(stem)
        return mask.with_name(mask.name.removesuffix(MASK_PART) + TPM_PART)

    def masks(self) -> Mapping[str, Path]:
        """All masks. Raises InputError where there is none."""
        return find_files(self.out / MASKS) if self.archived is None else self.archived


def mask_path(out: Path, stem: str) -> Path:
    """Where a run without archives keeps an image's mask."""
    return out / MASKS / f"{stem}.png"


def tpm_path(out: Path, stem: str) -> Path:
    """Where a run without archives keeps an image's TPM."""
    return out / TPMS / f"{stem}.png"


def shard_path(out: Path, number: int) -> Path:
    """The archive of that number, from 0."""
    return out / SHARDS / f"{number:06d}{ARCHIVE_SUFFIX}"


def write_files(out: Path, files: Encoded) -> None:
    """Write the files of one image, each atomically."""
    for path, content in ((tpm_path(out, files.stem), files.tpm), (mask_path(out, files.stem), files.mask)):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def write_shard(out: Path, number: int, images: Sequence[Encoded]) -> None:
    """Write the files of some images into one archive, atomically."""
    members = [
        (key_of(files.stem) + part, content)
        for files in images
        for part, content in ((MASK_PART, files.mask), (TPM_PART, files.tpm))
    ]
    write_archive(shard_path(out, number), members)
