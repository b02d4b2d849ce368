"""Export a trained detector to files that run without PyTorch."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mclc_gpu.data.files import atomic_path
from mclc_gpu.detect.checkpoint import Normalization, Trained, load_checkpoint
from mclc_gpu.detect.config import FORMATS, ExportOptions, Threshold, used_threshold
from mclc_gpu.errors import InputError
from mclc_gpu.networks.blocks import Detector
from mclc_gpu.runs import keep_apart

TOLERANCE = 1e-4  # of a probability
INPUT, OUTPUT = "levels", "probability"
# Batches, heights and widths at which a file is compared with the network, none of them that of the export.
_SIZES = ((1, 61, 93), (2, 40, 100), (3, 33, 35), (1, 160, 128), (1, 7, 250))
_TRACED = (2, 83, 107)
_MOST = 16384  # pixels of a side, and images, that a file takes
_SCALING = (
    "8-bit gray levels as they are; values of any other type scaled so that the least and the greatest value "
    "that four pixels of some 3 x 3 neighborhood reach become 0 and 255, and clipped; mclc-gpu "
    "predict first gives fill, such as black borders, the median of the other pixels"
)
_FULL_RANGE = (
    "8-bit gray levels as they are; values of any other type scaled so that the least becomes 0 and the "
    "greatest 255"
)


class FromLevels(nn.Module):
    """Detector from gray levels to probabilities, with the normalization of its training inside.

    Parameters
    ----------
    network : Detector
    normalization : Normalization
    """

    def __init__(self, network: Detector, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = normalization.mean, normalization.std

    def forward(self, levels: Tensor) -> Tensor:
        """Map gray levels [B, C, H, W], 0 to 255, to target probabilities [B, 1, H, W]."""
        return torch.sigmoid(self.network((levels - self.mean) / self.std).masks[0])


@dataclass(frozen=True)
class Export:
    """File that was written.

    Attributes
    ----------
    file : Path
    network : str
        Name of the network.
    threshold : Threshold
        Threshold that the file states.
    difference : float or None
        Largest difference of a probability from PyTorch's over images of several sizes; None if no runtime
        is installed to compare with.
    """

    file: Path
    network: str
    threshold: Threshold
    difference: float | None


def export_detector(options: ExportOptions) -> Export:
    """Write a trained detector in a format that runs without PyTorch, and compare the two.

    The file takes gray levels and returns probabilities: normalization and padding to the network's sides are
    part of it. It states its threshold and how to scale images.

    Parameters
    ----------
    options : ExportOptions

    Returns
    -------
    Export

    Raises
    ------
    InputError
        If the checkpoint cannot be read, the file exists, a package is missing, or the file's probabilities
        are not those of the network; the file is not written then.
    """
    out = options.file
    keep_apart("--out", (out,), (options.checkpoint,))
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file as --out")
    if out.exists() and not options.overwrite:
        raise InputError(f"{out}: exists already; use --overwrite or another --out")
    trained = load_checkpoint(options.checkpoint, "cpu")
    threshold = used_threshold(options.threshold, trained.threshold)
    with atomic_path(out) as temporary:
        difference = FORMATS.find(options.format)(trained, threshold, temporary)
        if difference is not None and not difference <= TOLERANCE:
            raise InputError(
                f"{options.checkpoint}: as {options.format} its probabilities differ by {difference:.1g}, "
                f"more than {TOLERANCE:g}; use predict, or other versions of torch and onnxruntime"
            )
    return Export(out, trained.name, threshold, difference)


def write_onnx(trained: Trained, threshold: Threshold, file: Path) -> float | None:
    """Write a detector as an ONNX file and return its largest difference, None without onnxruntime.

    The input "levels" is float32 [batch, channels, height, width], 0 to 255, the output "probability" float32
    [batch, 1, height, width]; batch, height and width are free. The metadata of the file hold "threshold",
    "network", "normalization" and "scaling".

    Parameters
    ----------
    trained : Trained
        On the CPU.
    threshold : Threshold
    file : Path

    Raises
    ------
    InputError
        If onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs {' and '.join(missing)}; pip install 'mclc-gpu[onnx]'")
    model = FromLevels(trained.network, trained.normalization).eval()
    free = {
        axis: torch.export.Dim(name, min=1, max=_MOST)
        for axis, name in {0: "batch", 2: "height", 3: "width"}.items()
    }
    count, height, width = _TRACED
    with _without_warnings():
        program = torch.onnx.export(
            model,
            (torch.zeros(count, trained.in_channels, height, width),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: free},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content = program.model_proto
    del content.metadata_props[:]
    for name, value in _facts(trained, threshold).items():
        content.metadata_props.add(key=name, value=value)
    file.write_bytes(content.SerializeToString())
    return None if find_spec("onnxruntime") is None else onnx_difference(file, model, trained)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence PyTorch's exporter on its own outdated calls, and on torchvision, which no detector needs."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _facts(trained: Trained, threshold: Threshold) -> dict[str, str]:
    """Return what a file states about its detector."""
    mean, std = trained.normalization.mean, trained.normalization.std
    return {
        "network": trained.name,
        "threshold": repr(threshold.value),
        "threshold_from": threshold.source,
        "normalization": json.dumps({"mean": mean, "std": std, "applied": "inside"}),
        "scaling": _SCALING if trained.normalization.robust else _FULL_RANGE,
    }


@torch.inference_mode()
def onnx_difference(file: Path, model: nn.Module, trained: Trained) -> float:
    """Return the largest difference of a probability between an ONNX file and the network.

    Both run on noise of the training images' mean and standard deviation with bright spots, in images of
    several sizes and numbers.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    worst = 0.0
    for count, height, width in _SIZES:
        levels = _scene(generator, (count, trained.in_channels, height, width), trained.normalization)
        (found,) = session.run([OUTPUT], {INPUT: levels})
        expected = model(torch.from_numpy(levels)).numpy()
        if found.shape != expected.shape:
            return np.inf
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def _scene(
    generator: np.random.Generator, shape: tuple[int, int, int, int], normalization: Normalization
) -> np.ndarray:
    """Draw noise with a bright spot in each image, float32, 0 to 255."""
    count, _, height, width = shape
    levels = generator.normal(normalization.mean, normalization.std, shape)
    rows, columns = np.mgrid[:height, :width]
    for image in range(count):
        row, column = generator.integers(height), generator.integers(width)
        levels[image] += 200 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)
    return levels.clip(0, 255).astype(np.float32)
