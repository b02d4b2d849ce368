"""Targets that a detector suggests to annotators."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mclc_gpu.classical.config import METHODS, MethodOptions
from mclc_gpu.detect.config import DetectorOptions
from mclc_gpu.detect.opening import open_detector
from mclc_gpu.detect.predict import Detection, find_detections
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.backend import pick_device

_MOST = 60  # suggestions in one image, those of highest score
_SIGMAS = 8.0  # above the mean of the map of an untrained detector: targets are rare

Detector = Callable[[str, np.ndarray], list[Detection]]


class Suggestion(NamedTuple):
    """Place of a possible target: column and row in pixels, score 0..1, and radius of the ring around it."""

    x: float
    y: float
    score: float
    radius: float


def detector_of(word: str, images: Path, names: Sequence[str]) -> Detector:
    """Return the detector of a checkpoint, or an untrained one by its name.

    Parameters
    ----------
    word : str
        Path of a checkpoint, or a name in `mclc_gpu.classical.config.METHODS`.
    images : Path
        Folder of images.
    names : sequence of str
        Names of all images, in order.

    Raises
    ------
    InputError
        There is no such file or detector, or the file is no checkpoint.
    """
    if word in METHODS:
        rule = MethodOptions(threshold_rule="k-sigma", sigmas=_SIGMAS)
        options = DetectorOptions(method=word, untrained=rule, images=images, device="cpu")
    elif Path(word).is_file():
        options = DetectorOptions(checkpoint=Path(word), images=images, device="cpu")
    else:
        raise InputError(f"--suggest {word}: no such file; give a checkpoint, or one of {', '.join(METHODS)}")
    opened = open_detector(options, pick_device("cpu"), names)

    def detect(name: str, pixels: np.ndarray) -> list[Detection]:
        ((_, probability),) = opened.maps.stream([((name,), pixels)])
        if isinstance(probability, Skipped):
            raise InputError(f"{name}: {probability.why}")
        return find_detections(probability, opened.limit(probability))

    return detect


def suggestions_of(found: list[Detection]) -> list[Suggestion]:
    """Return the suggestions of some detections, highest score first."""
    best = sorted(found, key=lambda one: -one.score)[:_MOST]
    return [Suggestion(one.x, one.y, one.score, ring_radius(one.area)) for one in best]


def ring_radius(area: float) -> float:
    """Return the radius in pixels of the ring around a target of this area."""
    return round(max(4.0, math.sqrt(area / math.pi) + 3.0), 1)
