"""Other packages on the CPU: the published label procedure, SLIC implementations, a plain DataLoader.

The procedure is that of Li et al. (ICCV 2023): per target K trials of salt noise and SLIC in a window; the
cluster under the click is kept, the trials are averaged, and the average is refined by a dense CRF. Written
for speed: one task per image, one single-threaded process per core, the noise of all trials of a window drawn
at once, and the crop converted to floating point once instead of inside every call of `slic`.
"""

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import slic
from skimage.util import img_as_float64
from torch.utils.data import Dataset

from mclc_gpu.data.annotations import Point
from mclc_gpu.errors import InputError
from mclc_gpu.labels.windows import Window, draw_window, name_key

SALT = 0.05  # share of the values of each channel that are set to 1
CLUSTERS = 9
COMPACTNESS = 20
THRESHOLD = 0.7
REFINEMENTS = ("crf", "threshold")
_UNARY_FLOOR = 1e-5  # least probability, since -log(0) is infinite
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_barrier: Any = None  # in a process of a pool, the barrier of all its processes


@dataclass(frozen=True, slots=True)
class Item:
    """An image to label.

    Attributes
    ----------
    name : str
        Name without extension, different in each item; keys the noise together with the seed.
    image : uint8 [H, W, 3]
    windows : tuple of Window
        One per target, inside the image.
    """

    name: str
    image: NDArray[np.uint8]
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of `run`.

    Attributes
    ----------
    masks : dict of str to bool [H, W]
        By the items' names.
    trials : int
        Trials of all targets.
    seconds : dict of str to float
        "total" is the wall clock from the first item to the last mask; "cluster" and "refine" are the times
        spent in these stages, summed over the processes and divided by their number. Starting the processes
        and importing the libraries in them is not counted.
    """

    masks: dict[str, NDArray[np.bool_]]
    trials: int
    seconds: dict[str, float]


def make_item(name: str, image: NDArray[Any], points: Sequence[Point], seed: int) -> Item:
    """Make an item with windows drawn by the published rule.

    Parameters
    ----------
    name : str
        Name of the image, without extension.
    image : uint8 [H, W] or [H, W, 3]
    points : sequence of Point
        One per target, each with its category.
    seed : int
        Seed of the windows.

    Raises
    ------
    InputError
        The image is not 8-bit gray or RGB; or see `mclc_gpu.labels.windows.draw_window`.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise InputError(
            f"{name}: {image.dtype} {image.shape} is not an 8-bit gray or RGB image: convert it to one"
        )
    rgb = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    height, width = image.shape[:2]
    windows = (
        draw_window(height, width, point.x, point.y, point.category or "", seed, name, target)
        for target, point in enumerate(points)
    )
    return Item(name, np.ascontiguousarray(rgb), tuple(windows))


def cluster_windows(item: Item, trials: int, seed: int) -> list[NDArray[np.float32]]:
    """Return the target probability maps (equation 9): per window float32 [h, w] in 0..1, 1 at the click."""
    return [_cluster(item, target, trials, seed) for target in range(len(item.windows))]


def _cluster(item: Item, target: int, trials: int, seed: int) -> NDArray[np.float32]:
    window = item.windows[target]
    crop = img_as_float64(_crop(item.image, window))
    random = np.random.default_rng([name_key(seed, item.name), target])
    votes = np.zeros(crop.shape[:2], np.int32)
    for salted in random.random((trials, *crop.shape), dtype=np.float32) < SALT:
        labels = slic(
            np.where(salted, 1.0, crop), n_segments=CLUSTERS, compactness=COMPACTNESS, start_label=1
        )
        votes += labels == labels[window.click_row, window.click_column]
    # Published: divided by the votes' maximum. That is `trials`: the click is in every trial's cluster.
    return votes.astype(np.float32) / np.float32(trials)


def refine_windows(item: Item, maps: Sequence[NDArray[np.float32]], refine: str) -> NDArray[np.bool_]:
    """Return the mask of one image, bool [H, W]: the union of its targets' refined maps.

    Parameters
    ----------
    item : Item
    maps : sequence of float32 [height, width]
        One per window, from `cluster_windows`.
    refine : {"crf", "threshold"}
        Dense CRF (one mean-field step, most likely class), or probability >= 0.7.

    Raises
    ------
    InputError
        Unknown refinement, or pydensecrf is needed and not installed.
    """
    _check_refine(refine)
    mask = np.zeros(item.image.shape[:2], np.bool_)
    for window, probability in zip(item.windows, maps, strict=True):
        if refine == "crf":
            found = dense_crf(_crop(item.image, window), probability)
        else:
            found = probability >= THRESHOLD
        _crop(mask, window)[found] = True
    return mask


def dense_crf(rgb: NDArray[np.uint8], probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return bool [H, W], true where the target is the likelier class after one mean-field step.

    Parameters
    ----------
    rgb : uint8 [H, W, 3]
    probability : float32 [H, W]
        Of the target, in 0..1.

    Raises
    ------
    InputError
        pydensecrf is not installed.
    """
    height, width = probability.shape
    both = np.stack([1 - probability, probability]).reshape(2, -1).astype(np.float32)
    field = _densecrf_module().DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(-np.log(np.maximum(both, np.float32(_UNARY_FLOOR))))
    # pydensecrf normalizes symmetrically by default.
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=32, srgb=13, rgbim=np.ascontiguousarray(rgb), compat=10)
    background, target = np.asarray(field.inference(1))
    return (target > background).reshape(height, width)


def _check_refine(refine: str) -> None:
    if refine not in REFINEMENTS:
        raise InputError(f"refine {refine!r} is unknown: use one of {', '.join(REFINEMENTS)}")
    if refine == "crf":
        _densecrf_module()


def _densecrf_module() -> Any:
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise InputError(
            "pydensecrf is not installed: run `make reference`, or: echo 'cython<3' > c.txt && "
            "CYTHON_FORCE_REGEN=1 PIP_CONSTRAINT=c.txt pip install pydensecrf; or use --refine threshold"
        ) from error
    return densecrf


def label_image(
    item: Item, trials: int = 50, seed: int = 0, refine: str = "crf"
) -> tuple[NDArray[np.bool_], list[NDArray[np.float32]]]:
    """Return the mask of the image, bool [H, W], and the maps of its targets, float32 [height, width] each.

    They depend on the arguments alone, neither on other items nor on their order.
    """
    maps = cluster_windows(item, trials, seed)
    return refine_windows(item, maps, refine), maps


class ReferencePool:
    """A context manager with started and warm single-threaded processes, so that calls time the work alone.

    The processes are spawned, since the caller may have threads (torch, OpenMP) that do not survive a fork.

    Parameters
    ----------
    workers : int, optional
        Number of processes; default: one per core.
    refine : {"crf", "threshold"}
        Refinement in `label`.

    Raises
    ------
    InputError
        Unknown refinement, fewer than 1 worker, or pydensecrf is needed and not installed.
    """

    def __init__(self, workers: int | None = None, refine: str = "crf") -> None:
        _check_refine(refine)
        self.workers, self.refine = _checked_workers(workers), refine
        context = multiprocessing.get_context("spawn")
        with _single_threads():
            barrier = context.Barrier(self.workers)
            self._pool = ProcessPoolExecutor(self.workers, context, _warm_up, (barrier, refine))
            list(self._pool.map(abs, range(self.workers)))

    def label(self, items: Sequence[Item], trials: int = 50, seed: int = 0) -> Outcome:
        """Label all items; raise InputError for fewer than 1 trial."""
        _check_trials(trials)
        start = time.perf_counter()
        work = partial(_timed_label, trials=trials, seed=seed, refine=self.refine)
        done = self._map(work, items)
        total = time.perf_counter() - start
        return Outcome(
            masks={item.name: mask for item, (mask, _, _) in zip(items, done, strict=True)},
            trials=trials * sum(len(item.windows) for item in items),
            seconds={
                "cluster": sum(cluster for _, cluster, _ in done) / self.workers,
                "refine": sum(refined for _, _, refined in done) / self.workers,
                "total": total,
            },
        )

    def each(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function once in every process and return the results."""
        return list(self._pool.map(partial(_once, function, arguments), range(self.workers)))

    def seconds(self, function: Callable[..., object], *items: Sequence[Any]) -> float:
        """Measure the wall clock of a function over all items; its results travel back, keep them small."""
        start = time.perf_counter()
        self._map(function, *items)
        return time.perf_counter() - start

    def _map(self, function: Callable[..., Any], *items: Sequence[Any]) -> list[Any]:
        # Chunks small enough that no process waits long for the last, large enough that calls cost little.
        chunk = max(1, len(items[0]) // (16 * self.workers))
        return list(self._pool.map(function, *items, chunksize=chunk))

    def __enter__(self) -> "ReferencePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()


def run(
    items: Sequence[Item], trials: int = 50, refine: str = "crf", workers: int | None = None, seed: int = 0
) -> Outcome:
    """Label all items over `workers` processes, by default one per core.

    Raises
    ------
    InputError
        Unknown refinement, fewer than 1 trial or worker, or pydensecrf is needed and not installed.
    """
    _check_trials(trials)
    with ReferencePool(workers, refine) as pool:
        return pool.label(items, trials, seed)


def _timed_label(item: Item, trials: int, seed: int, refine: str) -> tuple[NDArray[np.bool_], float, float]:
    start = time.perf_counter()
    maps = cluster_windows(item, trials, seed)
    clustered = time.perf_counter()
    mask = refine_windows(item, maps, refine)
    return mask, clustered - start, time.perf_counter() - clustered


def cluster_alone(item: Item, trials: int, seed: int = 0) -> None:
    """Run `cluster_windows` for its time alone; the maps need not travel between processes."""
    cluster_windows(item, trials, seed)


def _crop(pixels: NDArray[Any], window: Window) -> NDArray[Any]:
    return pixels[window.top : window.bottom, window.left : window.right]


def _check_trials(trials: int) -> None:
    if trials < 1:
        raise InputError(f"trials is {trials}: give 1 or more")


def _checked_workers(workers: int | None) -> int:
    # Containers often grant fewer cores than the machine has; only Linux tells.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = cores if workers is None else workers
    if count < 1:
        raise InputError(f"workers is {count}: give 1 or more")
    return count


@contextmanager
def _single_threads() -> Iterator[None]:
    """Make processes that are started meanwhile use one thread."""
    before = {name: os.environ.get(name) for name in _THREAD_LIMITS}
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _warm_up(barrier: Any, refine: str) -> None:
    global _barrier
    _barrier = barrier
    window = Window(top=0, left=0, height=16, width=16, click_row=8, click_column=8)
    label_image(Item("", np.zeros((16, 16, 3), np.uint8), (window,)), trials=1, refine=refine)
    # No process takes an item before all are ready: the clock starts with every core at work.
    barrier.wait()


def _once(function: Callable[..., Any], arguments: tuple[Any, ...], _: int) -> Any:
    """Call the function once every process has this task, so that no process takes two."""
    _barrier.wait()
    return function(*arguments)


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
