"""Distance of the kernels to what the machine can do: operations, bytes, measured peaks."""

from typing import NamedTuple

import torch

from mclc_gpu.bench.counts import Work, component_work, crf_work, slic_work, trial_steps, trial_work
from mclc_gpu.bench.peaks import bytes_peak, operations_peak, seconds_of
from mclc_gpu.bench.tables import Row
from mclc_gpu.data.points import Point
from mclc_gpu.data.synthetic import scene
from mclc_gpu.kernels.components import ComponentConfig, component_windows, vote_components
from mclc_gpu.kernels.crf import CrfConfig, dense_crf, window_colours
from mclc_gpu.kernels.slic import slic
from mclc_gpu.kernels.trials import PackedImages, TrialConfig, run_trials
from mclc_gpu.labelconfig import PRESETS
from mclc_gpu.placing import place_targets

_SCENES = 100
_TRIALS = 50
_SIDE = 512
_SEGMENTS = 1000


class Targets(NamedTuple):
    """Packed images on a device, and the paper's windows around the targets in them."""

    images: PackedImages
    windows: torch.Tensor  # int64 [targets, 8], on the CPU
    keys: torch.Tensor  # int64 [targets]
    clicks: torch.Tensor  # int64 [targets, 3]: image, row, column


def roofline(device: torch.device) -> list[Row]:
    """Operations, bytes, floors and measured time of every kernel on synthetic targets.

    Parameters
    ----------
    device : torch.device
        Where the kernels run: the CPU backend or, on "cuda", Triton.

    Returns
    -------
    list of Row, one for each kernel and each stage of the trials, all with these columns
        kernel, work (str): the stage and what it was run on.
        operations, bytes (float): least operations (32-bit, see `counts`) and least bytes moved.
        operations_s, bytes_s (float): their floors in seconds, at the peaks of the last two rows.
        seconds (float or None): least measured time, with the launch; None for stages of a kernel.
        share (float or None): the larger floor over the measured time, 0..1.
        bound (str): "operations" or "bytes", whichever floor is larger.
        The last two rows are the measured peaks: their operations or bytes are per second.
    """
    peaks = operations_peak(device), bytes_peak(device)
    targets = _targets(device)
    rows = [
        *_trial_rows(targets, device, peaks),
        _crf_row(targets, device, peaks),
        _slic_row(device, peaks),
        _component_row(targets, device, peaks),
    ]
    empty = dict.fromkeys(list(rows[0])[2:])
    return [
        *rows,
        {"kernel": "peak operations", "work": "one second"} | empty | {"operations": peaks[0]},
        {"kernel": "peak bytes", "work": "one second"} | empty | {"bytes": peaks[1]},
    ]


def _row(kernel: str, work: str, least: Work, peaks: tuple[float, float], seconds: float | None) -> Row:
    floors = least.operations / peaks[0], least.bytes / peaks[1]
    return {
        "kernel": kernel,
        "work": work,
        "operations": least.operations,
        "bytes": least.bytes,
        "operations_s": floors[0],
        "bytes_s": floors[1],
        "seconds": seconds,
        "share": None if seconds is None else max(floors) / seconds,
        "bound": "operations" if floors[0] >= floors[1] else "bytes",
    }


def _targets(device: torch.device) -> Targets:
    made = [scene(0, i) for i in range(_SCENES)]
    points = [[Point(t.x, t.y, t.category) for t in s.targets] for s in made]
    names = [str(i) for i in range(_SCENES)]
    images = [s.image for s in made]
    placed, _ = place_targets(images, points, names, PRESETS["paper"], 0)
    windows = torch.tensor(
        [
            (p.image, w.top, w.left, w.height, w.width, w.click_row, w.click_column, p.target)
            for p in placed
            for w in (p.window,)
        ]
    )
    clicks = torch.stack([windows[:, 0], windows[:, 1] + windows[:, 5], windows[:, 2] + windows[:, 6]], 1)
    return Targets(PackedImages.pack(images, device), windows, torch.tensor([p.key for p in placed]), clicks)


def _trial_rows(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> list[Row]:
    config = TrialConfig()
    images, windows, keys, _ = targets
    steps = trial_steps(images, windows, keys, config, _TRIALS)
    stages = trial_work(steps, images, windows, device.type == "cuda")
    seconds = seconds_of(lambda: run_trials(images, windows, keys, config, _TRIALS), device)
    whole = Work(sum(w.operations for w in stages.values()), sum(w.bytes for w in stages.values()))
    title = f"{len(windows)} targets, {_TRIALS} trials"
    return [
        _row("trials", title, whole, peaks, seconds),
        *(_row(f"trials: {stage}", title, least, peaks, None) for stage, least in stages.items()),
    ]


def _crf_row(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> Row:
    config = CrfConfig()
    windows = targets.windows[:, 3:5].contiguous()
    colours = window_colours(targets.images, targets.windows)
    generator = torch.Generator().manual_seed(0)
    potential = torch.rand(len(colours), generator=generator).to(device)
    seconds = seconds_of(lambda: dense_crf(potential, colours, windows, config), device)
    least = crf_work(windows, 2 + colours.shape[1], config, device)
    return _row("crf", f"{len(windows)} windows", least, peaks, seconds)


def _slic_row(device: torch.device, peaks: tuple[float, float]) -> Row:
    image = torch.from_numpy(scene(0, 0, size=(_SIDE, _SIDE)).image)[None, None].to(device)
    image = image.expand(1, 3, _SIDE, _SIDE)

    def segments(iterations: int) -> torch.Tensor:
        return slic(image, _SEGMENTS, max_iterations=iterations, enforce_connectivity=False)

    iterations = 10
    while iterations > 1 and torch.equal(segments(iterations - 1), segments(iterations)):
        iterations -= 1
    least = slic_work(_SIDE, _SIDE, _SEGMENTS, iterations, 3, device.type == "cuda")
    title = f"{_SIDE}x{_SIDE}, {_SEGMENTS} segments, {iterations} iterations"
    return _row("slic", title, least, peaks, seconds_of(lambda: segments(iterations), device))


def _component_row(targets: Targets, device: torch.device, peaks: tuple[float, float]) -> Row:
    config = ComponentConfig()
    windows = component_windows(targets.images, targets.clicks, config.radius)
    categories = torch.full((len(windows),), -1)
    seconds = seconds_of(lambda: vote_components(targets.images, windows, categories, config), device)
    pixels = int((windows[:, 3] * windows[:, 4]).sum())
    least = component_work(pixels, len(windows), config.levels, pixels)
    return _row("components", f"{len(windows)} targets, {config.levels} levels", least, peaks, seconds)
