"""Detecting targets in a whole folder: streamed, resumable, files written atomically."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from mclc_gpu.data.files import atomic_path, fingerprint_of, prefetch_map, write_csv
from mclc_gpu.data.images import MASK, read_image, stretched
from mclc_gpu.detect.checkpoint import Trained, load_checkpoint
from mclc_gpu.detect.config import OVERLAP, TILE
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.kernels.backend import device_name, pick_device
from mclc_gpu.runs import Journal, Progress, RunLayout, close_run, completed_run, locked, open_run, provenance
from mclc_gpu.score.matching import components_of

LAYOUT = RunLayout("predict", ("masks", "probability", "overlays"), ("detections.csv",))
_ONE = 65535  # value of probability 1 in the 16-bit files
_COMPRESSION = 1
_NEAR, _FAR = 2, 3  # the ring around a detection lies at this distance from it, pixels


@dataclass(frozen=True)
class Detection:
    """One predicted component: centroid (column, row) with pixel centres at integers, area in pixels, and the
    highest probability in it, which is the threshold at which it vanishes."""

    x: float
    y: float
    area: int
    score: float


@dataclass
class PredictJob:
    """Where to detect, and how.

    Attributes:
        checkpoint: File of the trained detector.
        images: Image file of each stem, in order.
        out: Output folder.
        threshold: A target is where probability > threshold.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tile, overlap, amp: See `mclc_gpu.detect.inference.probability`.
        resume: Go on where an interrupted run with the same settings stopped.
        overwrite: Replace an earlier run's output.
        skipped: Inputs already found unusable.
        started: `time.perf_counter()` when the work began, for the start-up time.
    """

    checkpoint: Path
    images: Mapping[str, Path]
    out: Path
    threshold: float = 0.5
    device: str = "auto"
    tile: int = TILE
    overlap: int = OVERLAP
    amp: bool = False
    resume: bool = False
    overwrite: bool = False
    skipped: list[Skipped] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def settings(self) -> dict[str, Any]:
        """What a run's output depends on, besides the checkpoint and the images."""
        return {"threshold": self.threshold, "tile": self.tile, "overlap": self.overlap, "amp": self.amp}


def find_detections(probability: np.ndarray, threshold: float) -> list[Detection]:
    """The 8-connected components of probability > threshold, in raster order of their first pixels.

    `probability`: float32 [H, W]. Centroids are rounded to 0.01 px, scores to 0.0001.
    """
    found = components_of(probability > np.float32(threshold))
    numbers = np.arange(1, len(found.area) + 1)
    highest = ndimage.maximum(probability, found.labels, numbers) if len(numbers) else ()
    return [
        Detection(round(float(x), 2), round(float(y), 2), int(area), round(float(top), 4))
        for (y, x), area, top in zip(found.centroid, found.area, highest, strict=True)
    ]


def predict_folder(job: PredictJob) -> dict[str, Any]:
    """Detect targets in every image of a job.

    Writes masks/NAME.png (0 or 255), probability/NAME.png (16 bit, 65535 is probability 1), overlays/NAME.png
    (the image from its darkest to its brightest, detections ringed), detections.csv and predict.json into the
    job's folder and returns predict.json's content. An image that cannot be used is reported there under
    "skipped", and the rest is done.

    Raises:
        InputError: The checkpoint or the output folder cannot be used, or no image could be read.
    """
    device = pick_device(job.device)
    trained = load_checkpoint(job.checkpoint, device)
    with job.checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    fingerprint = fingerprint_of([job.settings(), digest, sorted(job.images)])
    with locked(job.out, LAYOUT.kind):
        return _predict_folder(job, device, trained, digest, fingerprint)


def _predict_folder(
    job: PredictJob, device: torch.device, trained: Trained, digest: str, fingerprint: str
) -> dict[str, Any]:
    if job.resume and (complete := completed_run(LAYOUT, job.out, fingerprint)):
        return complete
    with open_run(LAYOUT, job.out, fingerprint, job.resume, job.overwrite) as before:
        records = {stem: noted for stem, noted in before.items() if _is_finished(job, stem, noted)}
    todo = [stem for stem in job.images if stem not in records]
    begin = time.perf_counter()
    predictor = Predictor(trained.network, trained.normalization, job.tile, job.overlap, job.amp)
    journal = Journal(LAYOUT, job.out, fingerprint)
    with journal, Progress("predict", len(job.images), done=len(records)) as progress:
        for record in _predict(job, predictor, todo):
            journal.append(record)
            records[record["image"]] = record
            progress.advance(1)
    seconds = time.perf_counter() - begin
    in_order = [records[stem] for stem in job.images]
    unusable = [Skipped(str(job.images[r["image"]]), r["skipped"]) for r in in_order if r["skipped"]]
    skipped = [*job.skipped, *unusable]
    if len(unusable) == len(in_order):
        raise InputError(f"no image could be used: {skipped[0].file}: {skipped[0].why}")
    detections = ([record["image"], *one] for record in in_order for one in record["detections"])
    write_csv(job.out / "detections.csv", ("image", "x", "y", "area", "score"), detections)
    summary = {
        "settings": job.settings(),
        "fingerprint": fingerprint,
        "checkpoint": {"file": str(job.checkpoint), "sha256": digest, "network": trained.name},
        **provenance(device_name(device)),
        "images": len(in_order) - len(unusable),
        "resumed_images": len(in_order) - len(todo),
        "detections": sum(len(record["detections"]) for record in in_order),
        "seconds": {"startup": begin - job.started, "total": seconds},
        "images_per_s": len(todo) / seconds if todo else None,
        "skipped": [asdict(item) for item in skipped],
    }
    close_run(LAYOUT, job.out, summary)
    return summary


def _is_finished(job: PredictJob, stem: str, noted: Mapping[str, Any]) -> bool:
    """Whether an image needs no more work; one that could not be read is tried again."""
    return not noted["skipped"] and all((job.out / f / f"{stem}.png").exists() for f in LAYOUT.folders)


def _predict(job: PredictJob, predictor: Predictor, todo: list[str]) -> Iterator[dict[str, Any]]:
    """Predict and write; a record for the journal of every image.

    The network runs here while threads read the next images and write the last ones.
    """
    unusable: list[dict[str, Any]] = []

    def read(stem: str) -> tuple[str, np.ndarray | Skipped]:
        path = job.images[stem]
        return stem, attempt(path, lambda: read_image(path))

    def usable() -> Iterator[tuple[tuple[str, np.ndarray], np.ndarray]]:
        for stem, image in prefetch_map(read, todo):
            if isinstance(image, Skipped):
                unusable.append({"image": stem, "skipped": image.why, "detections": []})
            else:
                yield (stem, image), image

    def write(answer: tuple[tuple[str, np.ndarray], np.ndarray]) -> dict[str, Any]:
        (stem, image), probability = answer
        return _write(job, stem, image, probability)

    for record in prefetch_map(write, predictor.stream(usable())):
        yield record
        while unusable:
            yield unusable.pop()
    yield from unusable


def _write(job: PredictJob, stem: str, image: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    mask = probability > np.float32(job.threshold)
    levels = np.round(probability * _ONE).astype(np.uint16)
    pictures: tuple[np.ndarray, ...] = (mask.astype(np.uint8) * 255, levels, overlay(image, mask))
    for folder, pixels in zip(LAYOUT.folders, pictures, strict=True):
        with atomic_path(job.out / folder / f"{stem}.png") as path:
            Image.fromarray(pixels).save(path, compress_level=_COMPRESSION)
    detections = [astuple(one) for one in find_detections(probability, job.threshold)]
    return {"image": stem, "skipped": None, "detections": detections}


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image with a ring around every component of a mask, which itself stays in sight: uint8 [H, W, 3].

    Args:
        image: [H, W] or [H, W, 3] of any type; drawn from its darkest value to its brightest.
        mask: bool [H, W].
    """
    drawn = stretched(image)
    if mask.any():
        distance = ndimage.distance_transform_cdt(~mask, "chessboard")
        drawn[(distance > _NEAR) & (distance <= _FAR)] = MASK
    return drawn
