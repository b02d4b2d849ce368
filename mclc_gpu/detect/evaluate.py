"""Scores of a detector on images with true masks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mclc_gpu.data.datasets import pair_files
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import read_image, read_mask
from mclc_gpu.data.validation import Named
from mclc_gpu.detect.inference import Predictor
from mclc_gpu.errors import Skipped, attempt
from mclc_gpu.runs import Progress
from mclc_gpu.score.matching import CANONICAL, Convention
from mclc_gpu.score.metrics import ImageScore, Scores, score_image
from mclc_gpu.score.roc import RocCounts, RocScores, roc_counts


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What a detector made of one image.

    Attributes:
        name: Of the image.
        image: As read, [H, W] or [H, W, 3].
        truth: bool [H, W].
        probability: float32 [H, W], 0 to 1.
        score: Counts at the threshold that the evaluation used.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    score: ImageScore


def score_network(
    predictor: Predictor,
    samples: Iterable[Named],
    *,
    threshold: float = 0.5,
    convention: Convention = CANONICAL,
    roc: RocScores | None = None,
    watch: Callable[[Case], None] | None = None,
) -> Scores:
    """Run a detector on samples, at their own size, and score it; a prediction is probability > threshold.

    See `Predictor.stream` for which images run together; their scores are counted by threads.

    Args:
        predictor: The detector.
        samples: Name, image and true mask of each image.
        threshold: 0 to 1.
        convention: What counts as a detection and as a false alarm.
        roc: Collects every image at all thresholds, by its own convention.
        watch: Is shown every image, in order.

    Raises:
        InputError: A mask of another size than its image, or a network that answers NaN.
    """
    scores = Scores(convention)

    def count(part: tuple[Named, np.ndarray]) -> tuple[Case, RocCounts | None]:
        (name, image, truth), probability = part
        score = score_image(probability > np.float32(threshold), truth, name, convention)
        at_all = None if roc is None else roc_counts(probability, truth, name, roc.convention)
        return Case(name, image, truth, probability, score), at_all

    for case, at_all in prefetch_map(count, predictor.stream((sample, sample[1]) for sample in samples)):
        scores.add(case.score)
        if roc is not None and at_all is not None:
            roc.add(at_all)
        if watch is not None:
            watch(case)
    return scores


@dataclass(eq=False)
class Evaluation:
    """A scored folder.

    Attributes:
        scores: Per image and, by `scores.compute()`, of the set.
        roc: The set at all thresholds.
        skipped: Images that could not be used, and why.
    """

    scores: Scores
    roc: RocScores
    skipped: list[Skipped] = field(default_factory=list)


def evaluate(
    predictor: Predictor,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    *,
    threshold: float = 0.5,
    convention: Convention = CANONICAL,
    watch: Callable[[Case], None] | None = None,
) -> Evaluation:
    """Score a detector on image files and the mask files of the same stems; see `score_network`.

    Images that cannot be read, or have no mask of their size, are reported and left out.
    """
    pairs, skipped = pair_files(images, masks)
    evaluation = Evaluation(Scores(convention), RocScores(convention), skipped)

    def read(item: tuple[str, tuple[Path, Path]]) -> Named | Skipped:
        stem, (image_path, mask_path) = item

        def named() -> Named:
            image = read_image(image_path)
            return stem, image, read_mask(mask_path, image.shape[:2])

        return attempt(image_path, named)

    with Progress("evaluate", len(pairs)) as progress:

        def usable() -> Iterator[Named]:
            for sample in prefetch_map(read, pairs.items()):
                progress.advance(1)
                if isinstance(sample, Skipped):
                    evaluation.skipped.append(sample)
                else:
                    yield sample

        evaluation.scores = score_network(
            predictor,
            usable(),
            threshold=threshold,
            convention=convention,
            roc=evaluation.roc,
            watch=watch,
        )
    return evaluation
