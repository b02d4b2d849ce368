"""Score a folder of predicted masks, or of probability maps, against a folder of true masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mclc_gpu.data.datasets import listed, pair_files
from mclc_gpu.data.files import prefetch_map
from mclc_gpu.data.images import read_mask, read_probability, read_truth
from mclc_gpu.data.names import find_files, find_images_and_masks
from mclc_gpu.errors import InputError, Skipped, attempt
from mclc_gpu.runs import Progress
from mclc_gpu.score.config import CONVENTIONS, ScoreOptions
from mclc_gpu.score.metrics import ImageScore, Scores, score_image
from mclc_gpu.score.roc import Roc, RocCounts, RocScores, roc_counts


class Inspector(Protocol):
    """Callback that sees every image that is scored, such as `mclc_gpu.report.page.LabelReport`."""

    def inspect(self, stem: str, mask: np.ndarray, truth: np.ndarray, tpm: np.ndarray | None) -> Any:
        """Inspect one image; called by several threads at once.

        Parameters
        ----------
        stem : str
            Name of the image.
        mask, truth : ndarray of bool, [H, W]
        tpm : ndarray of float32, [H, W], or None
            Probability map of which `mask` is a threshold; None where the prediction is a mask.
        """

    def add(self, found: Any) -> None:
        """Take what `inspect` returned for an image; called in the order of the images."""


@dataclass(frozen=True, eq=False)
class FolderScores:
    """Scores of a folder.

    Attributes
    ----------
    scores : Scores
        Counts of every image that could be scored; `scores.compute()` scores the set.
    roc : Roc or None
        Scores at every threshold, where they were asked for.
    skipped : list of Skipped
        Predictions that could not be scored, and why.
    missing : int
        True masks without a prediction; 0 when a list says what to score.
    """

    scores: Scores
    roc: Roc | None
    skipped: list[Skipped]
    missing: int


def score_folders(
    options: ScoreOptions, *, curve: bool = False, inspector: Inspector | None = None
) -> FolderScores:
    """Score predictions against the true masks of the same names.

    Nothing is written: `options.roc`, `options.json` and `options.report` belong to the command ``score``.
    Predictions that cannot be read, have no true mask or are of another size are skipped and reported.

    Parameters
    ----------
    options : ScoreOptions
        Folders, threshold and convention.
    curve : bool
        Score probability maps at every threshold too; `options.threshold` must be given.
    inspector : Inspector, optional
        Callback for every image that is scored.

    Returns
    -------
    FolderScores

    Raises
    ------
    InputError
        A folder or the list cannot be read, or the convention is unknown.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from PIL import Image
    >>> from mclc_gpu import ScoreOptions, score_folders
    >>> truth = np.zeros((8, 8), np.uint8)
    >>> truth[2:4, 2:4] = 255
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("pred", "truth"):
    ...         (Path(folder) / name).mkdir()
    ...         Image.fromarray(truth).save(Path(folder) / name / "a.png")
    ...     found = score_folders(ScoreOptions(pred=Path(folder) / "pred", truth=Path(folder) / "truth"))
    >>> found.scores.compute().iou, found.skipped, found.missing
    (1.0, [], 0)
    """
    if curve and options.threshold is None:
        raise InputError("threshold None: a curve over thresholds needs probability maps; give a threshold")
    convention, threshold = CONVENTIONS.find(options.convention), options.threshold
    if options.pred.resolve() == options.truth.resolve():  # which should score 1
        predictions = truths = find_files(options.truth)
    else:
        predictions, truths = find_images_and_masks(options.pred, options.truth)
    predictions, skipped = listed(predictions, options.list, options.pred)
    pairs, unpaired = pair_files(predictions, truths)
    skipped += unpaired
    scores, roc = Scores(convention), RocScores(convention)

    def count(stem: str, prediction: Path, truth_file: Path) -> tuple[ImageScore, RocCounts | None, Any]:
        tpm = at_all = inspected = None
        if threshold is None:
            mask = read_mask(prediction)
        else:
            tpm = read_probability(prediction)
            mask = tpm > np.float32(threshold)  # as the curve over all thresholds compares
        truth = read_truth(truth_file)
        score = score_image(mask, truth, stem, convention)
        if curve and tpm is not None:
            at_all = roc_counts(tpm, truth, stem, convention)
        if inspector is not None:
            inspected = inspector.inspect(stem, mask, truth, tpm)
        return score, at_all, inspected

    def counted(pair: tuple[str, tuple[Path, Path]]) -> tuple[ImageScore, RocCounts | None, Any] | Skipped:
        stem, (prediction, truth) = pair
        return attempt(prediction, lambda: count(stem, prediction, truth))

    with Progress("score", len(pairs), "mask") as progress:
        for found in prefetch_map(counted, pairs.items()):
            progress.advance(1)
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            score, at_all, inspected = found
            scores.add(score)
            if at_all is not None:
                roc.add(at_all)
            if inspector is not None:
                inspector.add(inspected)
    missing = len(truths) - len(pairs) if options.list is None else 0
    return FolderScores(scores, roc.compute() if curve else None, skipped, missing)
