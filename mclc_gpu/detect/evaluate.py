"""Score a detector on images with true masks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mclc_gpu.data.datasets import Named, listed, pair_files
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import read_image, read_truth
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.detect.checkpoint import Trained
from mclc_gpu.detect.config import THRESHOLD, EvaluateOptions
from mclc_gpu.detect.opening import Maps, Opened, open_detector
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.runs import Progress
from mclc_gpu.score.config import CANONICAL, CONVENTIONS, Convention
from mclc_gpu.score.metrics import ImageScore, Scores, score_image
from mclc_gpu.score.roc import RocCounts, RocScores, roc_counts


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Prediction for one image.

    Attributes
    ----------
    name : str
        Name of the image.
    image : ndarray [H, W] or [H, W, 3]
        As read.
    truth : ndarray [H, W], bool
    probability : ndarray [H, W], float32
        0 to 1.
    score : ImageScore
        Counts at the threshold.
    threshold : float, 0..1
        Threshold of this image.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    score: ImageScore
    threshold: float = THRESHOLD

    @property
    def prediction(self) -> np.ndarray:
        """Predicted mask, bool [H, W]."""
        return self.probability > np.float32(self.threshold)


def score_network(
    predictor: Maps,
    samples: Iterable[Named],
    *,
    threshold: float | Callable[[np.ndarray], float] = THRESHOLD,
    convention: Convention = CANONICAL,
    roc: RocScores | None = None,
    callback: Callable[[Case], None] | None = None,
    skip: Callable[[Skipped], None] | None = None,
) -> Scores:
    """Score a detector on samples at their own size; a pixel is predicted where probability > threshold.

    Images run in batches (see `Predictor.stream`), and threads count their scores.

    Parameters
    ----------
    predictor : Maps
        `Predictor`, or another source of maps.
    samples : iterable of (str, ndarray, ndarray)
        Name, image and true mask, bool [H, W], of each image.
    threshold : float or callable
        Or a function that returns the threshold of a map.
    convention : Convention
        Definition of a detection and of a false alarm.
    roc : RocScores, optional
        Collects every image at all thresholds, by its own convention.
    callback : callable, optional
        Called with the `Case` of every image, in order.
    skip : callable, optional
        Called with each image that the detector has no map of; by default this is an error.

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        If a mask and its image differ in size, the network returns NaN, or an image has no map.
    """
    scores = Scores(convention)

    def count(part: tuple[Named, np.ndarray | Skipped]) -> tuple[Case | Skipped, RocCounts | None]:
        (name, image, truth), probability = part
        if isinstance(probability, Skipped):
            return probability, None
        limit = threshold(probability) if callable(threshold) else threshold
        score = score_image(probability > np.float32(limit), truth, name, convention)
        counts = None if roc is None else roc_counts(probability, truth, name, roc.convention)
        return Case(name, image, truth, probability, score, limit), counts

    for case, counts in prefetch_map(count, predictor.stream((sample, sample[1]) for sample in samples)):
        if isinstance(case, Skipped):
            if skip is None:
                raise InputError(f"{case.file}: {case.why}")
            skip(case)
            continue
        scores.add(case.score)
        if roc is not None and counts is not None:
            roc.add(counts)
        if callback is not None:
            callback(case)
    return scores


@dataclass(eq=False)
class Evaluation:
    """Scores of a folder.

    Attributes
    ----------
    scores : Scores
        Per image and, by `scores.compute()`, of the whole set.
    roc : RocScores
        The set at all thresholds.
    skipped : list of Skipped
        Unusable images.
    detector : Opened or None
        The detector, if the options named it.
    thresholds : dict of str to float
        Threshold of each image.
    """

    scores: Scores
    roc: RocScores
    skipped: list[Skipped] = field(default_factory=list)
    detector: Opened | None = None
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def trained(self) -> Trained | None:
        """The detector, if it was read from a checkpoint."""
        return None if self.detector is None else self.detector.trained


def score_files(
    predictor: Maps,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    *,
    threshold: float | Callable[[np.ndarray], float] = THRESHOLD,
    convention: Convention = CANONICAL,
    callback: Callable[[Case], None] | None = None,
) -> Evaluation:
    """Score a detector on image files and the mask files of the same stems.

    Images that cannot be read, have no mask of their size, or that the detector has no map of, are reported
    and skipped.

    Parameters
    ----------
    predictor : Maps
    images, masks : mapping of str to Path
        Files by stem.
    threshold, convention, callback
        See `score_network`.

    Returns
    -------
    Evaluation
    """
    pairs, skipped = pair_files(images, masks)
    evaluation = Evaluation(Scores(convention), RocScores(convention), skipped)

    def read(item: tuple[str, tuple[Path, Path]]) -> Named | Skipped:
        stem, (image_path, mask_path) = item

        def named() -> Named:
            image = read_image(image_path)
            return stem, image, read_truth(mask_path, image.shape[:2])

        return attempt(image_path, named)

    def keep(case: Case) -> None:
        evaluation.thresholds[case.name] = case.threshold
        if callback is not None:
            callback(case)

    def skip(item: Skipped) -> None:
        evaluation.skipped.append(Skipped(str(images[item.file]), item.why))

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
            callback=keep,
            skip=skip,
        )
    return evaluation


def evaluate_images(options: EvaluateOptions, callback: Callable[[Case], None] | None = None) -> Evaluation:
    """Score a detector on a folder of images with true masks.

    Nothing is written: `roc`, `json`, `out` and `overwrite` of the options are for the command.

    Parameters
    ----------
    options : EvaluateOptions
    callback : callable, optional
        Called with the `Case` of every image, in order.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        If the checkpoint, a parameter of the method, the list or a folder cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from mclc_gpu.data.synthetic import write_dataset
    >>> from mclc_gpu.detect.checkpoint import Normalization, save_checkpoint
    >>> from mclc_gpu.detect.config import EvaluateOptions
    >>> from mclc_gpu.detect.evaluate import evaluate_images
    >>> from mclc_gpu.networks.zoo import build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = Path(folder)
    ...     write_dataset(root, 2, 0, size=(32, 32))
    ...     save_checkpoint(
    ...         root / "acm.pt", network=build("acm"), name="acm", in_channels=1, settings={}, state={},
    ...         normalization=Normalization(80.0, 20.0),
    ...     )
    ...     data = {"images": root / "images", "masks": root / "masks"}
    ...     evaluation = evaluate_images(EvaluateOptions(checkpoint=root / "acm.pt", device="cpu", **data))
    >>> evaluation.scores.compute().images
    2
    """
    files, masks = find_images_and_masks(options.images, options.masks)
    images, missing = listed(files, options.list, options.images)
    detector = open_detector(options, pick_device(options.device), images)
    evaluation = score_files(
        detector.maps,
        images,
        masks,
        threshold=detector.limit,
        convention=CONVENTIONS.find(options.convention),
        callback=callback,
    )
    evaluation.skipped[:0] = missing
    evaluation.detector = detector
    return evaluation
