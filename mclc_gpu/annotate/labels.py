"""Labels of one image's targets while they are annotated, by the label pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mclc_gpu.annotate.frames import Frame
from mclc_gpu.annotate.state import Annotation
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.corrections import corrected, marks_of
from mclc_gpu.labels.pipeline import TargetMask, label_targets
from mclc_gpu.labels.placing import place_targets
from mclc_gpu.labels.windows import PlacedTargets

NONE = 255  # rank of a pixel that no candidate holds
_MOST_CANDIDATES = 254
_CPU = torch.device("cpu")


class Candidates(NamedTuple):
    """Nested masks of one target, each held by the next one: the values of its TPM as thresholds.

    The TPM of a vote over nested candidates has a value for each of them, the weight of those that hold a
    pixel; so its differences are the weights.

    Attributes
    ----------
    ranks : ndarray of uint8, [h, w]
        First candidate that holds the pixel of the window; `NONE` where none does.
    areas : list of int
        Pixels of each candidate.
    weights : list of float
        Weight of each in the vote, 0..1.
    chosen : int
        The candidate that is most like the automatic mask.
    """

    ranks: np.ndarray
    areas: list[int]
    weights: list[float]
    chosen: int


def candidates_of(label: TargetMask) -> Candidates:
    """Return the candidates of a target: at most 254, those of greatest weight."""
    tpm = label.tpm
    values, inverse = np.unique(tpm, return_inverse=True)  # from low to high
    first = int(np.searchsorted(values, 0, side="right"))  # the first above 0
    weights = np.diff(np.concatenate([[0.0], values[first:]]))[::-1]
    places = np.arange(len(weights))
    if len(places) > _MOST_CANDIDATES:
        heaviest = np.sort(np.argsort(-weights, kind="stable")[:_MOST_CANDIDATES])
        places = np.searchsorted(heaviest, places)  # a pixel belongs to the next one that stays
        weights = weights[heaviest]
    of_value = np.full(len(values), NONE, np.int64)
    of_value[first:] = np.minimum(places[::-1], NONE)
    ranks = of_value[inverse].reshape(tpm.shape)
    areas = np.cumsum(np.bincount(ranks[ranks < NONE], minlength=len(weights)))
    shared = np.cumsum(np.bincount(ranks[label.mask & (ranks < NONE)], minlength=len(weights)))
    iou = shared / (areas + np.count_nonzero(label.mask) - shared)
    chosen = int(np.argmax(iou)) if len(iou) else 0
    return Candidates(ranks.astype(np.uint8), areas.tolist(), weights.tolist(), chosen)


@dataclass(frozen=True, eq=False)
class Labeled:
    """Label of one target.

    Attributes
    ----------
    automatic : TargetMask or None
        Label from the marks; None where they cannot be labeled.
    final : TargetMask or None
        The same, or with the corrected mask.
    problem : str
        Why the target cannot be labeled.
    """

    automatic: TargetMask | None
    final: TargetMask | None
    problem: str = ""


_Key = tuple[object, ...]


class ImageLabels:
    """Labels of one image: what is labeled once is kept until its marks or its neighbors' change.

    Parameters
    ----------
    name : str
        Name of the image.
    config : LabelConfig
    seed : int
    """

    def __init__(self, name: str, config: LabelConfig, seed: int) -> None:
        self.name, self.config, self.seed = name, config, seed
        self._known: dict[_Key, TargetMask] = {}
        self._etag = ""  # of the frame that they belong to

    def label(self, frame: Frame, targets: Mapping[int, Annotation], keep: bool = True) -> dict[int, Labeled]:
        """Label the targets of the image, as `mclc-gpu label` does.

        Parameters
        ----------
        frame : Frame
        targets : mapping of int to Annotation
            See `ImageState`.
        keep : bool
            Forget the labels of targets that are no longer there.

        Raises
        ------
        InputError
            The image cannot be labeled.
        """
        if frame.etag != self._etag:
            self._known, self._etag = {}, frame.etag
        points = [target.point for target in targets.values()]
        placed, skipped = place_targets([frame.pixels], [points], [self.name], self.config, self.seed, _CPU)
        keys = self._keys(placed)
        new = np.array([t for t, key in enumerate(keys) if key not in self._known], np.int64)
        known = dict(self._known)
        if len(new):
            own = placed.take(new)
            for t, label in zip(
                new.tolist(),
                label_targets([frame.pixels], own, self.config, _CPU, [frame.scale]),
                strict=True,
            ):
                known[keys[t]] = label
        self._known = {key: known[key] for key in keys} if keep else known
        problems = iter(skipped)
        labels: dict[int, Labeled] = {}
        t = 0
        for number, target in targets.items():
            if t < len(placed) and marks_of(placed.points[t]) == marks_of(target.point):
                automatic = known[keys[t]]
                final = automatic if target.mask is None else corrected(automatic, target.mask)
                labels[number], t = Labeled(automatic, final), t + 1
            else:
                labels[number] = Labeled(None, None, next(problems).why)
        return labels

    def _keys(self, placed: PlacedTargets) -> list[_Key]:
        """Return all that the label of each target depends on, besides the image and the settings."""
        offsets, others = placed.others.offsets.tolist(), placed.others.pixels.tolist()
        seeded = self.config.entry.seeded
        return [
            (
                target.point,
                target.window.row,
                target.estimated,
                target.target if seeded else None,
                tuple(others[offsets[t] : offsets[t + 1]]),
            )
            for t, target in enumerate(placed)
        ]


def finals(labels: Mapping[int, Labeled]) -> Sequence[TargetMask]:
    """Return the labels of the targets that have one, in order."""
    return [one.final for one in labels.values() if one.final is not None]
