"""Detect targets in a folder of images: streamed, resumable, files written atomically."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from mclc_gpu.data.datasets import listed
from mclc_gpu.data.files import atomic_path, fingerprint_of, prefetch_map, write_csv
from mclc_gpu.data.images import MASK_COLOR, display_rgb, read_image
from mclc_gpu.data.names import find_files
from mclc_gpu.detect.config import PredictOptions
from mclc_gpu.detect.opening import Opened, open_detector
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.kernels.backend import device_name, pick_device
from mclc_gpu.runs import (
    Journal,
    Progress,
    Record,
    RunLayout,
    close_run,
    completed_run,
    keep_apart,
    locked,
    open_run,
    provenance,
)
from mclc_gpu.score.matching import components_of

THRESHOLDS = "thresholds.csv"
LAYOUT = RunLayout("predict", ("masks", "probability", "overlays"), ("detections.csv", THRESHOLDS))
_ONE = 65535  # value of probability 1 in the 16-bit files
_COMPRESSION = 1
_NEAR, _FAR = 2, 3  # pixels from a detection to the ring around it


@dataclass(frozen=True)
class Detection:
    """One predicted component.

    Attributes
    ----------
    x, y : float, pixels
        Column and row of the centroid; pixel centers are at integers.
    area : int, pixels
    score : float, 0..1
        Highest probability in the component, which is the threshold at which it vanishes.
    """

    x: float
    y: float
    area: int
    score: float


def find_detections(probability: np.ndarray, threshold: float) -> list[Detection]:
    """Find the 8-connected components of probability > threshold.

    Parameters
    ----------
    probability : ndarray [H, W], float32
    threshold : float, 0..1

    Returns
    -------
    list of Detection
        In raster order of their first pixels; centroids rounded to 0.01 px, scores to 0.0001.

    Examples
    --------
    >>> import numpy as np
    >>> from mclc_gpu.detect.predict import find_detections
    >>> probability = np.zeros((5, 5), np.float32)
    >>> probability[1, 2:4] = 0.75
    >>> find_detections(probability, 0.5)
    [Detection(x=2.5, y=1.0, area=2, score=0.75)]
    """
    found = components_of(probability > np.float32(threshold))
    numbers = np.arange(1, len(found.area) + 1)
    highest = ndimage.maximum(probability, found.labels, numbers) if len(numbers) else ()
    return [
        Detection(round(float(x), 2), round(float(y), 2), int(area), round(float(top), 4))
        for (y, x), area, top in zip(found.centroid, found.area, highest, strict=True)
    ]


def predict_images(options: PredictOptions, started: float | None = None) -> dict[str, Any]:
    """Detect targets in a folder of images.

    Writes masks/NAME.png (0 or 255), probability/NAME.png (16 bit, 65535 is probability 1), overlays/NAME.png
    (the image from its darkest to its brightest value, detections ringed), detections.csv and predict.json
    into the output folder; for a method also thresholds.csv, with the threshold of each image. Unusable
    images are reported in predict.json under "skipped"; the run continues.

    Parameters
    ----------
    options : PredictOptions
    started : float, optional
        `time.perf_counter()` at the start of the program, from which the start-up time counts; by default
        that of the call.

    Returns
    -------
    dict
        Content of predict.json.

    Raises
    ------
    InputError
        If the checkpoint, a parameter of the method, the list or the output folder cannot be used, or no
        image can be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from mclc_gpu.data.synthetic import write_dataset
    >>> from mclc_gpu.detect.checkpoint import Normalization, save_checkpoint
    >>> from mclc_gpu.detect.config import PredictOptions
    >>> from mclc_gpu.detect.predict import predict_images
    >>> from mclc_gpu.networks.zoo import build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = Path(folder)
    ...     write_dataset(root, 2, 0, size=(32, 32))
    ...     save_checkpoint(
    ...         root / "acm.pt", network=build("acm"), name="acm", in_channels=1, settings={}, state={},
    ...         normalization=Normalization(80.0, 20.0),
    ...     )
    ...     options = PredictOptions(
    ...         checkpoint=root / "acm.pt", images=root / "images", out=root / "out", device="cpu"
    ...     )
    ...     summary = predict_images(options)
    ...     masks = len(list((root / "out" / "masks").glob("*.png")))
    >>> summary["images"], masks
    (2, 2)
    """
    started = time.perf_counter() if started is None else started
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.checkpoint))
    images, missing = listed(find_files(options.images), options.list, options.images)
    device = pick_device(options.device)
    detector = open_detector(options, device, images)
    fingerprint = fingerprint_of([detector.settings, detector.identity, sorted(images)])
    about = {
        "settings": detector.settings,
        "fingerprint": fingerprint,
        **detector.about,
        **provenance(device_name(device)),
    }
    with locked(options.out, LAYOUT.kind):
        if options.resume and (complete := completed_run(LAYOUT, options.out, fingerprint)):
            return complete
        summary = about | _predict_all(options, images, missing, detector, fingerprint, started)
        close_run(LAYOUT, options.out, summary)
    return summary


def _predict_all(
    options: PredictOptions,
    images: Mapping[str, Path],
    missing: list[Skipped],
    detector: Opened,
    fingerprint: str,
    started: float,
) -> dict[str, Any]:
    """Predict the images that are left, write detections.csv and return the results for predict.json."""
    out = options.out
    with open_run(LAYOUT, out, fingerprint, options.resume, options.overwrite) as before:
        records = {stem: record for stem, record in before.items() if _is_finished(out, stem, record)}
    # Of a group that is not finished every image is needed again.
    unfinished = {detector.groups[stem] for stem in images if stem in detector.groups and stem not in records}
    records = {
        stem: record for stem, record in records.items() if detector.groups.get(stem) not in unfinished
    }
    todo = {stem: path for stem, path in images.items() if stem not in records}
    begin = time.perf_counter()
    with (
        Journal(LAYOUT, out, fingerprint) as journal,
        Progress("predict", len(images), done=len(records)) as progress,
    ):
        for record in _predict(out, detector, todo):
            journal.append(record)
            records[record["image"]] = record
            progress.advance(1)
    seconds = time.perf_counter() - begin
    in_order = [records[stem] for stem in images]
    unusable = [Skipped(str(images[r["image"]]), r["skipped"]) for r in in_order if r["skipped"]]
    skipped = [*missing, *unusable]
    if len(unusable) == len(in_order):
        raise InputError(f"no image could be used: {skipped[0].file}: {skipped[0].why}")
    detections = [[record["image"], *one] for record in in_order for one in record["detections"]]
    write_csv(out / "detections.csv", ("image", "x", "y", "area", "score"), detections)
    if options.method is not None:
        rows = [[record["image"], record["threshold"]] for record in in_order if not record["skipped"]]
        write_csv(out / THRESHOLDS, ("image", "threshold"), rows)
    return {
        "images": len(in_order) - len(unusable),
        "resumed_images": len(in_order) - len(todo),
        "detections": len(detections),
        "seconds": {"startup": begin - started, "total": seconds},
        "images_per_s": len(todo) / seconds if todo else None,
        "skipped": [asdict(item) for item in skipped],
    }


def _is_finished(out: Path, stem: str, record: Record) -> bool:
    """Check that an image needs no more work; one that could not be read is tried again."""
    return not record["skipped"] and all((out / f / f"{stem}.png").exists() for f in LAYOUT.folders)


def _predict(out: Path, detector: Opened, todo: Mapping[str, Path]) -> Iterator[Record]:
    """Predict and write images; yield the journal's record of each.

    The detector runs in this thread while others read the next images and write the last ones.
    """
    unusable: list[Record] = []

    def read(item: tuple[str, Path]) -> tuple[str, np.ndarray | Skipped]:
        stem, path = item
        return stem, attempt(path, lambda: read_image(path))

    def usable() -> Iterator[tuple[tuple[str, np.ndarray], np.ndarray]]:
        for stem, image in prefetch_map(read, todo.items()):
            if isinstance(image, Skipped):
                unusable.append({"image": stem, "skipped": image.why, "detections": []})
            else:
                yield (stem, image), image

    def write(predicted: tuple[tuple[str, np.ndarray], np.ndarray | Skipped]) -> Record:
        (stem, image), probability = predicted
        if isinstance(probability, Skipped):
            return {"image": stem, "skipped": probability.why, "detections": []}
        return _write(out, detector.limit(probability), stem, image, probability)

    for record in prefetch_map(write, detector.maps.stream(usable())):
        yield record
        while unusable:
            yield unusable.pop()
    yield from unusable


def _write(out: Path, threshold: float, stem: str, image: np.ndarray, probability: np.ndarray) -> Record:
    """Write the files of one image and return its record."""
    mask = probability > np.float32(threshold)
    levels = np.round(probability * _ONE).astype(np.uint16)
    files: tuple[np.ndarray, ...] = (mask.astype(np.uint8) * 255, levels, overlay(image, mask))
    for folder, pixels in zip(LAYOUT.folders, files, strict=True):
        with atomic_path(out / folder / f"{stem}.png") as path:
            Image.fromarray(pixels).save(path, compress_level=_COMPRESSION)
    detections = [astuple(one) for one in find_detections(probability, threshold)]
    return {"image": stem, "skipped": None, "detections": detections, "threshold": threshold}


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw a ring around every component of a mask, which itself stays visible.

    Parameters
    ----------
    image : ndarray [H, W] or [H, W, 3]
        Any type; drawn from its darkest value to its brightest.
    mask : ndarray [H, W], bool

    Returns
    -------
    ndarray [H, W, 3], uint8
    """
    drawn = display_rgb(image)
    if mask.any():
        distance = ndimage.distance_transform_cdt(~mask, "chessboard")
        drawn[(distance > _NEAR) & (distance <= _FAR)] = MASK_COLOR
    return drawn
