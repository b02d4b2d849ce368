"""The published label maker from scikit-image and pydensecrf, on all cores: the peer of the kernels.

The procedure is that of Li et al. (ICCV 2023): per target K trials of salt noise and SLIC in a window, the
cluster under the click kept, the trials averaged, the average refined by a dense CRF. Written for speed: one
task per image, one single-threaded process per core, the noise of all trials of a window drawn at once, and
the crop made floating point once instead of inside every call of `slic`.

    python -m mclc_gpu.bench.reference --images DIR --masks DIR [--list TXT] [--refine threshold]
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import slic
from skimage.util import img_as_float64

from mclc_gpu.data.annotations import Point
from mclc_gpu.errors import InputError
from mclc_gpu.labels.windows import Window, draw_window, name_key

SALT = 0.05  # share of the values of each channel that become 1
CLUSTERS = 9
COMPACTNESS = 20
THRESHOLD = 0.7
REFINEMENTS = ("crf", "threshold")
_UNARY_FLOOR = 1e-5  # probabilities below it count as it: -log(0) has no place in a CRF
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_everyone: Any = None  # in a process of a pool, the barrier of all of them


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be labelled.

    Attributes:
        name: Of the image, without extension; keys the noise together with the seed. Different in each item.
        image: uint8 [H, W, 3].
        windows: One per target, inside the image.
    """

    name: str
    image: NDArray[np.uint8]
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `run` made and how long it took.

    Attributes:
        masks: Item name -> bool [H, W].
        trials: Number of trials of all targets.
        seconds: "total" is the wall clock from the first item to the last mask; "cluster" and "refine" are
            the times spent in these stages, summed over the processes and divided by their number. Starting
            the processes and importing the libraries in them is not counted.
    """

    masks: dict[str, NDArray[np.bool_]]
    trials: int
    seconds: dict[str, float]


def make_item(name: str, image: NDArray[Any], points: Sequence[Point], seed: int) -> Item:
    """An item with windows drawn by the published rule.

    Args:
        name: Name of the image, without extension.
        image: uint8 [H, W] or [H, W, 3].
        points: One per target, each with its category.
        seed: Of the windows.

    Raises:
        InputError: The image is not 8-bit gray or RGB; or see `draw_window`.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise InputError(
            f"{name}: {image.dtype} {image.shape} is no 8-bit gray or RGB image: convert it to one"
        )
    rgb = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    height, width = image.shape[:2]
    windows = (
        draw_window(height, width, point.x, point.y, point.category or "", seed, name, target)
        for target, point in enumerate(points)
    )
    return Item(name, np.ascontiguousarray(rgb), tuple(windows))


def cluster_windows(item: Item, trials: int, seed: int) -> list[NDArray[np.float32]]:
    """Target probability maps (equation 9): per window, float32 [height, width] in [0, 1], 1 at the click."""
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
    """Mask of one image, bool [H, W]: the union of its targets' refined maps.

    Args:
        item: Image and windows.
        maps: One per window, from `cluster_windows`.
        refine: "crf" (dense CRF, one mean-field step, most likely class) or "threshold" (probability >= 0.7).

    Raises:
        InputError: Unknown refinement, or pydensecrf needed and not installed.
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
    """Most likely class of each pixel after one mean-field step with the published potentials.

    Args:
        rgb: uint8 [H, W, 3].
        probability: float32 [H, W] in [0, 1], of the target.

    Returns:
        bool [H, W], true where the target is the likelier class.

    Raises:
        InputError: pydensecrf is not installed.
    """
    height, width = probability.shape
    both = np.stack([1 - probability, probability]).reshape(2, -1).astype(np.float32)
    field = _densecrf_module().DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(-np.log(np.maximum(both, np.float32(_UNARY_FLOOR))))
    # pydensecrf's normalisation is symmetric unless told otherwise.
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
    """Mask of the image, bool [H, W], and the maps of its targets, float32 [height, width] each.

    Depends on the arguments alone: neither on other items nor on their order.
    """
    maps = cluster_windows(item, trials, seed)
    return refine_windows(item, maps, refine), maps


class ReferencePool:
    """Started and warmed single-threaded processes, so that what is asked of them times the work alone.

    A context manager. Spawned, since the caller may hold threads (torch, OpenMP) that do not survive a fork.
    """

    def __init__(self, workers: int | None = None, refine: str = "crf") -> None:
        """`workers`: one per core unless told otherwise; `refine` is what `label` does.

        Raises InputError: Unknown refinement, fewer than 1 worker, or pydensecrf needed and not installed.
        """
        _check_refine(refine)
        self.workers, self.refine = _checked_workers(workers), refine
        context = multiprocessing.get_context("spawn")
        with _single_threads():
            everyone = context.Barrier(self.workers)
            self._pool = ProcessPoolExecutor(self.workers, context, _warm_up, (everyone, refine))
            list(self._pool.map(abs, range(self.workers)))

    def label(self, items: Sequence[Item], trials: int = 50, seed: int = 0) -> Outcome:
        """Label all items. Raises InputError for fewer than 1 trial."""
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
        """What the function returns in every process, called once in each."""
        return list(self._pool.map(partial(_once, function, arguments), range(self.workers)))

    def seconds(self, function: Callable[..., object], *items: Sequence[Any]) -> float:
        """Wall clock for the function of every item; what it returns travels back, so let it be little."""
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
    """Label all items over `workers` processes, one per core unless told otherwise.

    Raises:
        InputError: Unknown refinement, fewer than 1 trial or worker, or pydensecrf needed and not installed.
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
    """`cluster_windows` for its time alone."""
    cluster_windows(item, trials, seed)


def _crop(pixels: NDArray[Any], window: Window) -> NDArray[Any]:
    return pixels[window.top : window.bottom, window.left : window.right]


def _check_trials(trials: int) -> None:
    if trials < 1:
        raise InputError(f"trials is {trials}: give at least 1")


def _checked_workers(workers: int | None) -> int:
    # Containers often grant fewer cores than the machine has; only Linux says which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = cores if workers is None else workers
    if count < 1:
        raise InputError(f"workers is {count}: give at least 1")
    return count


@contextmanager
def _single_threads() -> Iterator[None]:
    """What is started meanwhile uses one thread."""
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


def _warm_up(everyone: Any, refine: str) -> None:
    global _everyone
    _everyone = everyone
    window = Window(top=0, left=0, height=16, width=16, click_row=8, click_column=8)
    label_image(Item("", np.zeros((16, 16, 3), np.uint8), (window,)), trials=1, refine=refine)
    # No process takes an item before all can: the clock starts with every core at work.
    everyone.wait()


def _once(function: Callable[..., Any], arguments: tuple[Any, ...], _: int) -> Any:
    """The function's result, after every process was asked: so none is asked twice."""
    _everyone.wait()
    return function(*arguments)
