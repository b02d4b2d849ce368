"""Targets that a detector suggests to annotators."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mclc_gpu.detect.checkpoint import load_checkpoint
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.detect.predict import Detection, find_detections
from mclc_gpu.errors import InputError

_MOST = 500  # suggestions in one image, those of highest score
_THRESHOLD = 0.5

Detector = Callable[[np.ndarray], list[Detection]]


class Suggestion(NamedTuple):
    """Place of a possible target: column and row in pixels, score 0..1, and radius of the ring around it."""

    x: float
    y: float
    score: float
    radius: float


def detector_of(word: str) -> Detector:
    """Return the detector that a checkpoint holds.

    Raises
    ------
    InputError
        There is no such file, or it is no checkpoint.
    """
    path = Path(word)
    if not path.is_file():
        raise InputError(f"--suggest {word}: no such file; give a checkpoint of train")
    trained = load_checkpoint(path, "cpu")
    predictor = Predictor(trained.network, trained.normalization)

    def detect(pixels: np.ndarray) -> list[Detection]:
        (probability,) = predictor.probabilities([pixels])
        return find_detections(probability, _THRESHOLD)

    return detect


def suggestions_of(found: list[Detection]) -> list[Suggestion]:
    """Return the suggestions of some detections, highest score first."""
    best = sorted(found, key=lambda one: -one.score)[:_MOST]
    return [Suggestion(one.x, one.y, one.score, ring_radius(one.area)) for one in best]


def ring_radius(area: float) -> float:
    """Return the radius in pixels of the ring around a target of this area."""
    return round(max(4.0, math.sqrt(area / math.pi) + 3.0), 1)
