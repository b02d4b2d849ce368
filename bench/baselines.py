"""Baselines from other packages: SLIC implementations, and training data by a plain DataLoader."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage.segmentation import slic
from torch.utils.data import Dataset

# image uint8 [H, W, 3] (RGB), segments wanted, compactness -> integer labels [H, W]
Baseline = Callable[[np.ndarray, int, float], np.ndarray]
_ITERATIONS = 10


def _scikit_image(image: np.ndarray, n_segments: int, compactness: float) -> np.ndarray:
    # float32 is the precision of this package, and a tenth faster than the float64 that integers become.
    return slic(
        image.astype(np.float32),
        n_segments=n_segments,
        compactness=compactness,
        max_num_iter=_ITERATIONS,
        start_label=0,
    )


def _opencv(cv2: Any) -> Baseline:
    def segment(image: np.ndarray, n_segments: int, compactness: float) -> np.ndarray:
        interval = max(1, round((image.shape[0] * image.shape[1] / n_segments) ** 0.5))
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
        pixels = cv2.ximgproc.createSuperpixelSLIC(lab, cv2.ximgproc.SLIC, interval, float(compactness))
        pixels.iterate(_ITERATIONS)
        pixels.enforceLabelConnectivity()
        return pixels.getLabels()

    return segment


def _fast_slic(kind: Any, stride: int) -> Baseline:
    def segment(image: np.ndarray, n_segments: int, compactness: float) -> np.ndarray:
        # A new object each time: one that has segmented an image starts the next from its clusters.
        made = kind(num_components=n_segments, compactness=compactness, subsample_stride=stride)
        return made.iterate(image, max_iter=_ITERATIONS)

    return segment


def _optional(name: str) -> Any:
    """Import a module; None where it is not installed or was built for another machine."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def baselines() -> dict[str, Baseline]:
    """Return the CPU SLIC implementations that can be imported here, by name; each runs ten iterations.

    Returns
    -------
    dict of str to callable
        ``baseline(image, n_segments, compactness) -> labels``: image uint8 [H, W, 3] in RGB and contiguous,
        labels integers [H, W]. The conversion to CIELAB and the connectivity enforcement are part of it.

    Notes
    -----
    scikit-image
        The same algorithm as `mclc_gpu.kernels.slic.slic`, in single precision: the same segments. One
        thread.
    OpenCV (the build with contrib, ``opencv-contrib-python-headless``)
        CIELAB in 8 bits, float32 distances in windows of +-1 interval, seeds moved to the lowest gradient;
        the image is not rescaled to its range; pieces smaller than a quarter of a mean segment join a
        neighbor. All cores, except in the connectivity.
    fast-slic (``fast-slic``; not for more than 65,534 segments)
        CIELAB in 8 bits, color and Manhattan distances summed in 16-bit integers; the image is not rescaled
        to its range; each iteration assigns and averages every third row, by turns, and all rows are assigned
        once in the end; pieces smaller than a quarter of a mean segment join a neighbor. All cores.
    fast-slic, all rows
        The same with every row in every iteration.
    """
    found: dict[str, Baseline] = {"scikit-image": _scikit_image}
    cv2 = _optional("cv2")
    if hasattr(cv2, "ximgproc"):
        found["OpenCV"] = _opencv(cv2)
    avx2, plain = _optional("fast_slic.avx2"), _optional("fast_slic")
    kind = avx2.SlicAvx2 if avx2 else plain.Slic if plain else None
    if kind:
        found["fast-slic"] = _fast_slic(kind, 3)
        found["fast-slic, all rows"] = _fast_slic(kind, 1)
    return found


class PlainCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random crops and flips of files, one by one, as repositories of detectors usually have them.

    Parameters
    ----------
    files : sequence of (Path, Path)
        Image and mask of each sample.
    mean, std : float
        Of the gray levels.
    size : int
        Side of the crops in pixels.
    least : int
        Least number of crops of an epoch, however few the files.
    """

    def __init__(
        self, files: Sequence[tuple[Path, Path]], mean: float, std: float, size: int, least: int
    ) -> None:
        self.files, self.mean, self.std, self.size = files, mean, std, size
        self.count = max(len(files), least)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        (image_file, mask_file), size = self.files[index % len(self.files)], self.size
        image = np.asarray(Image.open(image_file).convert("L"), np.float32)
        mask = np.asarray(Image.open(mask_file).convert("L"), np.float32) / 255
        planes = np.stack([(image - self.mean) / self.std, mask])
        missing = [(0, max(0, size - length)) for length in image.shape]
        planes = np.pad(planes, [(0, 0), *missing])
        top, left = (np.random.randint(length - size + 1) for length in planes.shape[1:])  # noqa: NPY002
        planes = planes[:, top : top + size, left : left + size]
        for axis in (1, 2):
            if np.random.random() < 0.5:  # noqa: NPY002
                planes = np.flip(planes, axis)
        if np.random.random() < 0.5:  # noqa: NPY002
            planes = planes.transpose(0, 2, 1)
        planes = np.ascontiguousarray(planes)
        return torch.from_numpy(planes[:1]), torch.from_numpy(planes[1:])
