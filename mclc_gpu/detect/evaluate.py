"""Score a detector on images with true masks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mclc_gpu.data.datasets import Named, listed, pair_files
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import read_image, read_truth
from mclc_gpu.data.names import find_images_and_masks
from mclc_gpu.detect.checkpoint import Trained, load_checkpoint
from mclc_gpu.detect.config import THRESHOLD, EvaluateOptions, Threshold, used_threshold
from mclc_gpu.detect.inference import Predictor, predictor_of
from mclc_gpu.errors import Skipped, attempt
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
        Threshold of the evaluation.
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
    predictor: Predictor,
    samples: Iterable[Named],
    *,
    threshold: float = THRESHOLD,
    convention: Convention = CANONICAL,
    roc: RocScores | None = None,
    callback: Callable[[Case], None] | None = None,
) -> Scores:
    """Score a detector on samples at their own size; a pixel is predicted where probability > threshold.

    Images run in batches (see `Predictor.stream`), and threads count their scores.

    Parameters
    ----------
    predictor : Predictor
    samples : iterable of (str, ndarray, ndarray)
        Name, image and true mask, bool [H, W], of each image.
    threshold : float, 0..1
    convention : Convention
        Definition of a detection and of a false alarm.
    roc : RocScores, optional
        Collects every image at all thresholds, by its own convention.
    callback : callable, optional
        Called with the `Case` of every image, in order.

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        If a mask and its image differ in size, or the network returns NaN.
    """
    scores = Scores(convention)

    def count(part: tuple[Named, np.ndarray]) -> tuple[Case, RocCounts | None]:
        (name, image, truth), probability = part
        score = score_image(probability > np.float32(threshold), truth, name, convention)
        counts = None if roc is None else roc_counts(probability, truth, name, roc.convention)
        return Case(name, image, truth, probability, score, threshold), counts

    for case, counts in prefetch_map(count, predictor.stream((sample, sample[1]) for sample in samples)):
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
    trained : Trained or None
        The detector, if it was read from a checkpoint.
    threshold : Threshold
        Threshold of the scores.
    """

    scores: Scores
    roc: RocScores
    skipped: list[Skipped] = field(default_factory=list)
    trained: Trained | None = None
    threshold: Threshold = field(default_factory=lambda: used_threshold(None, None))


def score_files(
    predictor: Predictor,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    *,
    threshold: float = THRESHOLD,
    convention: Convention = CANONICAL,
    callback: Callable[[Case], None] | None = None,
) -> Evaluation:
    """Score a detector on image files and the mask files of the same stems.

    Images that cannot be read, or have no mask of their size, are reported and skipped.

    Parameters
    ----------
    predictor : Predictor
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
            callback=callback,
        )
    return evaluation


def evaluate_images(options: EvaluateOptions, callback: Callable[[Case], None] | None = None) -> Evaluation:
    """Score a trained detector on a folder of images with true masks.

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
        If the checkpoint, the list or a folder cannot be used.

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
    trained = load_checkpoint(options.checkpoint, pick_device(options.device))
    threshold = used_threshold(options.threshold, trained.threshold)
    evaluation = score_files(
        predictor_of(trained, options),
        images,
        masks,
        threshold=threshold.value,
        convention=CONVENTIONS.find(options.convention),
        callback=callback,
    )
    evaluation.skipped[:0] = missing
    evaluation.trained, evaluation.threshold = trained, threshold
    return evaluation
