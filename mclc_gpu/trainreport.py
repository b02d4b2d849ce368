"""The report of a training run: its curve, and what its best epoch makes of the images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mclc_gpu.cases import Extremes
from mclc_gpu.checkpoint import load_checkpoint
from mclc_gpu.data.heldout import HeldOut
from mclc_gpu.data.training_set import Sample
from mclc_gpu.evaluation import score_network
from mclc_gpu.inference import Predictor
from mclc_gpu.metrics import Scores
from mclc_gpu.report import write_report
from mclc_gpu.roc import RocScores
from mclc_gpu.runfolder import METRICS, REPORT

_SHOWN = 200  # training images that a report without validation looks at


def report_run(
    out: Path, checkpoint: Path, train: Sequence[Sample], validation: Sequence[Sample], device: torch.device
) -> tuple[Path, Scores]:
    """Write OUT/report/: curve, scores, ROC and the best and worst images.

    The images are those of the validation or, without one, up to 200 spread evenly over the training set,
    whose masks are what the network has learned. Returns the path of report.md and the scores in it.
    """
    trained = load_checkpoint(checkpoint, device)
    samples = validation
    if not validation:
        chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), _SHOWN)).round().astype(int))
        samples = [train[index] for index in chosen]
    predictor = Predictor(trained.network, trained.normalisation, amp=trained.settings["amp"])
    extremes, roc = Extremes(), RocScores()
    scores = score_network(predictor, HeldOut(samples, budget=0), roc=roc, watch=extremes)
    shown = "validation" if validation else "training"
    report = write_report(
        out / REPORT,
        title=f"{trained.name}, epoch {trained.state['epoch']}, on its {shown} set",
        scores=scores,
        roc=roc.compute(),
        extremes=extremes,
        metrics_csv=out / METRICS,
        settings=trained.settings,
    )
    return report, scores
