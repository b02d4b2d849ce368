"""Cost over work: the time of noise and SLIC as targets, trials or windows grow, as contests and a plot."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mclc_gpu.bench.contest import Absent, Contest, Contestant, Result, clocked
from mclc_gpu.bench.cpu_reference import Item, cluster_alone
from mclc_gpu.bench.ground import Ground
from mclc_gpu.bench.tables import Row
from mclc_gpu.data.atomic import atomic_path
from mclc_gpu.kernels.trials import PackedImages, TrialConfig, run_trials
from mclc_gpu.windows import Window, nearest_pixel

# Targets, trials and side of the windows: one of the three grows, the others stay.
_BASE = {"targets": 32, "K": 20, "side": 21}
GROWING = {"targets": (4, 16, 64, 256), "K": (1, 5, 100, 500), "side": (6, 11, 42, 63)}
_PEER_SIZE = 1_500_000  # trials x pixels that the peer clusters in about a second
_SECONDS = 1.0
_COLOURS = {True: "#0072b2", False: "#d55e00"}
_MARKERS = {"targets": ("o", "targets"), "K": ("s", "trials"), "side": ("^", "side of the windows")}


def cost(ground: Ground, grows: str | None, value: int) -> Contest:
    """Noise and SLIC with one quantity at a value of its own; None: all at their usual values."""
    usual = {"targets": 4, "K": 2, "side": 8} if ground.quick else _BASE
    quantities = usual | ({grows: value} if grows else {})
    targets, trials, side = (quantities[name] for name in ("targets", "K", "side"))
    crops, clicks = _crops(ground, targets, side)
    images = PackedImages.pack(crops, ground.device)
    rows = [(t, 0, 0, *crop.shape[:2], *clicks[t], 0) for t, crop in enumerate(crops)]
    windows, keys = torch.tensor(rows), torch.arange(targets)
    size = trials * sum(crop.shape[0] * crop.shape[1] for crop in crops)

    def own() -> object:
        return run_trials(images, windows, keys, TrialConfig(), trials)

    contestants = [Contestant("mclc-gpu", clocked(own, ground.device), trials * targets, own=True)]
    absent: tuple[Absent, ...] = ()
    if crops[0].dtype != np.uint8:
        absent = (Absent("scikit-image", "cannot take these images: not 8 bits"),)
    elif size <= _PEER_SIZE:
        items = [_item(t, crop, clicks[t]) for t, crop in enumerate(crops)]
        run = partial(ground.pool.seconds, partial(cluster_alone, trials=trials), items)
        contestants.append(Contestant("scikit-image", run, trials * targets))
    text = ", ".join(f"{name} = {quantity}" for name, quantity in quantities.items())
    return Contest(f"noise and SLIC, {text}", "trials", contestants, ground.time(_SECONDS), absent, size=size)


CONTESTS: dict[str, Callable[[Ground], Contest]] = {
    "base": partial(cost, grows=None, value=0),
    **{
        f"{name} {value}": partial(cost, grows=name, value=value)
        for name, values in GROWING.items()
        for value in values
    },
}


def cost_rows(results: Mapping[str, Result]) -> list[Row]:
    """A row for each contestant of every contest: what grows, trials x pixels, median seconds."""
    rows: list[Row] = []
    for name, result in results.items():
        grows, _, value = name.partition(" ")
        for contestant in result.taking_part:
            seconds = float(np.median(result.seconds(contestant)))
            cells: Row = {"who": contestant.name, "own": int(contestant.own), "grows": grows}
            of_all = {"value": int(value) if value else None, "trials_x_pixels": result.contest.size}
            rows.append(cells | of_all | {"seconds": seconds, "runs": len(result.seconds(contestant))})
    return rows


def plot_cost(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the rows as PNG, log-log: seconds over trials x pixels; colours tell who, marks what grows."""
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for who in dict.fromkeys(row["who"] for row in rows):
        own = [row for row in rows if row["who"] == who]
        colour = _COLOURS[bool(own[0]["own"])]
        axes.plot([], [], color=colour, label=who)
        for grows, (marker, _) in _MARKERS.items():
            points = sorted(
                (float(row["trials_x_pixels"] or 0), float(row["seconds"] or 0))
                for row in own
                if row["grows"] in (grows, "base")
            )
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, alpha=0.85)
    for marker, text in _MARKERS.values():
        axes.plot([], [], marker, color="#8a8a90", label=text)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="work: trials x pixels of their windows", ylabel="seconds, median")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _crops(ground: Ground, targets: int, side: int) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Square windows around targets of the frames, again from the first where there are too few targets."""
    frames = ground.frames
    clicks = [(image, p) for image, own in zip(frames.images, frames.points(0), strict=True) for p in own]
    crops, places = [], []
    for number in range(targets):
        image, point = clicks[number % len(clicks)]
        height, width = image.shape[:2]
        row, column = nearest_pixel(point.x, point.y, height, width)
        top, left = (
            min(max(middle - side // 2, 0), max(length - side, 0))
            for middle, length in ((row, height), (column, width))
        )
        crops.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
        places.append((row - top, column - left))
    return crops, places


def _item(number: int, crop: np.ndarray, click: tuple[int, int]) -> Item:
    rgb = np.repeat(crop[:, :, None], 3, axis=2) if crop.ndim == 2 else crop
    height, width = crop.shape[:2]
    window = Window(0, 0, height, width, *click)
    return Item(str(number), np.ascontiguousarray(rgb), (window,))
