"""Place targets: the category of each, by estimation if it is not given, and the window."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from mclc_gpu.data.annotations import Point, category_of
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.kernels.components import vote_components
from mclc_gpu.kernels.config import MAX_WINDOW, ComponentConfig
from mclc_gpu.kernels.packed import MAX_MARKS, Marks, PackedImages, Windows
from mclc_gpu.labels.config import LabelConfig
from mclc_gpu.labels.makers import maker_of, window_of
from mclc_gpu.labels.windows import (
    Annotated,
    PlacedTargets,
    Window,
    box_pixels,
    centered_windows,
    name_key,
    nearest_pixel,
    other_clicks,
)

_CPU = torch.device("cpu")


def place_targets(
    images: Sequence[np.ndarray],
    points: Sequence[Sequence[Point]],
    names: Sequence[str],
    config: LabelConfig,
    seed: int,
    device: torch.device = _CPU,
) -> tuple[PlacedTargets, list[Skipped]]:
    """Find the category and the window of every target.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    points : sequence of sequence of Point
        Targets of each image.
    names : sequence of str
        Names of the images, without folder and suffix.
    config : LabelConfig
    seed : int
        Any integer.
    device : torch.device
        Where missing categories are estimated, if the label maker needs them.

    Returns
    -------
    placed : PlacedTargets
        In the order of the images, and of the points of an image.
    skipped : list of Skipped
        Targets that cannot be labeled, by the name of their image, and why.
    """
    counts = np.array([len(own) for own in points], np.int64)
    owners = np.repeat(np.arange(len(points)), counts)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    known = [point for own in points for point in own]
    kept = config.category == "given"
    estimated = np.array([not (kept and point.category) for point in known], bool)
    _estimate(images, owners, known, estimated, config, device)
    keys = np.array([name_key(seed, name) for name in names], np.uint64)[owners]
    shapes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)[owners]
    targets = Annotated(known, shapes, keys, places.copy())
    windows, obstacles = _usable_windows(images, names, owners, targets, config, seed)
    skipped = [
        Skipped(names[owners[t]], f"target {places[t]} at ({known[t].x:g}, {known[t].y:g}): {obstacles[t]}")
        for t in sorted(obstacles)
    ]
    if obstacles:
        usable = np.delete(np.arange(len(known)), list(obstacles))
        targets, windows, owners, estimated = (
            targets.take(usable),
            windows[usable],
            owners[usable],
            estimated[usable],
        )
    table = torch.from_numpy(np.column_stack([owners, windows, targets.numbers]))
    marks, boxes = _marked(targets, windows)
    signed = targets.keys.view(np.int64)
    others = other_clicks(owners, targets.pixels, windows)
    placed = PlacedTargets(list(targets.points), Windows(table), signed, estimated, marks, others, boxes)
    return placed, skipped


def _estimate(
    images: Sequence[np.ndarray],
    owners: np.ndarray,
    known: list[Point],
    estimated: np.ndarray,
    config: LabelConfig,
    device: torch.device,
) -> None:
    """Replace the category of the `estimated` points; by None if the label maker needs none."""
    chosen = np.flatnonzero(estimated).tolist()
    categories: Sequence[str | None] = [None] * len(chosen)
    if config.entry.needs_category:
        categories = estimate_categories(images, [(int(owners[t]), known[t]) for t in chosen], device)
    for t, category in zip(chosen, categories, strict=True):
        if known[t].category != category:
            known[t] = replace(known[t], category=category)


def _usable_windows(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    owners: np.ndarray,
    targets: Annotated,
    config: LabelConfig,
    seed: int,
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the windows, int64 [targets, 6], and the obstacles of the targets that cannot be labeled.

    Only usable targets are numbered, so that the usable points alone give the same labels: behind one that is
    not, those of the image count one less and are placed anew. This sets `targets.numbers`.
    """
    windows = np.zeros((len(targets), 6), np.int64)
    obstacles: dict[int, str] = {}
    pending = np.arange(len(targets))
    while len(pending):
        own = targets.take(pending) if len(pending) < len(targets) else targets
        try:
            windows[pending] = maker_of(config).windows(own, config)
        except InputError:
            for t, (point, shape) in enumerate(zip(own.points, own.shapes.tolist(), strict=True)):
                name = names[owners[pending[t]]]
                window_of(tuple(shape), point, config, seed, name, int(own.numbers[t]))  # names the target
            raise
        found = _obstacles(images, owners[pending], own, windows[pending], config)
        first: dict[int, int] = {}
        for t in sorted(found):
            first.setdefault(int(owners[pending[t]]), int(pending[t]))
        obstacles |= {t: found[int(np.searchsorted(pending, t))] for t in first.values()}
        behind = [
            np.flatnonzero((owners == image) & (np.arange(len(owners)) > t)) for image, t in first.items()
        ]
        pending = np.concatenate([*behind, np.zeros(0, np.int64)]).astype(np.int64)
        targets.numbers[pending] -= 1
        pending.sort()
    return windows, obstacles


def _obstacles(
    images: Sequence[np.ndarray],
    owners: np.ndarray,
    targets: Annotated,
    windows: np.ndarray,
    config: LabelConfig,
) -> dict[int, str]:
    """Return why some targets cannot be labeled, by index."""
    inside = targets.pixels - windows[:, :2]
    fits = (windows[:, 2:4] <= MAX_WINDOW).all(1) & (inside >= 0).all(1) & (inside < windows[:, 2:4]).all(1)
    for t in np.flatnonzero(fits & ~targets.clicked).tolist():
        point, window = targets.points[t], Window(*windows[t].tolist())
        corners = [] if point.box is None else [point.box[:2], point.box[2:]]
        pixels = (nearest_pixel(x, y, *targets.shapes[t].tolist()) for x, y in (*point.marks, *corners))
        fits[t] = all(window.holds(*pixel) for pixel in pixels)
    too_large = (
        f"its marks need a window larger than {MAX_WINDOW} x {MAX_WINDOW} pixels; "
        "mark a smaller target or scale the image down"
    )
    found = dict.fromkeys(np.flatnonzero(~fits).tolist(), too_large)
    fitting = np.flatnonzero(fits)
    checks = maker_of(config).checks(images, owners[fitting], windows[fitting], config)
    return found | {int(fitting[t]): why for t, why in checks.items()}


def _marked(targets: Annotated, windows: np.ndarray) -> tuple[Marks, torch.Tensor | None]:
    """Return the marks beside the clicks, and the windows' pixels inside boxes (see `PlacedTargets`)."""
    height, width = windows[:, 2], windows[:, 3]
    boxes, boxed = np.stack([np.zeros_like(height), height, np.zeros_like(width), width], 1), False
    marks: list[list[int]] = [[] for _ in range(len(targets))]
    for t in np.flatnonzero(~targets.clicked).tolist():
        point, shape, (top, left, _, pitch, _, _) = (
            targets.points[t],
            targets.shapes[t].tolist(),
            windows[t].tolist(),
        )
        # Of a scribble with more pixels than can be counted, pixels spread evenly over it stand for all.
        chosen = point.seeds[:: -(-len(point.seeds) // MAX_MARKS) or 1]
        pixels = (nearest_pixel(x, y, *shape) for x, y in chosen)
        marks[t] = [(row - top) * pitch + column - left for row, column in pixels]
        if point.box is not None:
            x, y, right, bottom = box_pixels(point.box, *shape)
            boxes[t], boxed = (y - top, bottom - top, x - left, right - left), True
    return Marks.pack(marks), torch.from_numpy(boxes) if boxed else None


def by_type(images: Sequence[np.ndarray], owners: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the indices of the items in images of uint8, and of those in all others, if there are any.

    Parameters
    ----------
    images : sequence of ndarray
    owners : ndarray of int64
        Index of each item's image.
    """
    byte = np.array([image.dtype == np.uint8 for image in images], bool)[owners]
    yield from (members for members in (np.flatnonzero(byte), np.flatnonzero(~byte)) if len(members))


def estimate_areas(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[int]:
    """Estimate the area in pixels of the target under each click, by the vote of components.

    On the 270 targets of NUAA-SIRST's train split, clicked at their centers, the category of this area is the
    true one for 97 %. Where nothing stands out it is that of the 3 x 3 pixels around the click.

    Parameters
    ----------
    images : sequence of ndarray, [H, W] or [H, W, 3]
    clicks : sequence of (int, Point)
        Index of the image, and the click.
    device : torch.device
    """
    areas = [0] * len(clicks)
    owners = np.array([image for image, _ in clicks], np.int64)
    for members in by_type(images, owners):
        points = [Point(clicks[n][1].x, clicks[n][1].y) for n in members.tolist()]
        shapes = np.array([images[i].shape[:2] for i in owners[members].tolist()], np.int64)
        zeros = np.zeros_like(members)
        targets = Annotated(points, shapes, zeros.astype(np.uint64), zeros)
        windows = centered_windows(targets, ComponentConfig.radius)
        table = torch.from_numpy(np.column_stack([owners[members], windows, zeros]))
        packed, placed = PackedImages.pack_windows(images, Windows(table), device)
        unknown = torch.full((len(members),), -1)
        others = other_clicks(owners[members], targets.pixels, windows)
        votes = vote_components(packed, placed, unknown, ComponentConfig(), others=others)
        found = votes.area.tolist()
        for n, area in zip(members.tolist(), found, strict=True):
            areas[n] = area
    return areas


def estimate_categories(
    images: Sequence[np.ndarray], clicks: Sequence[tuple[int, Point]], device: torch.device
) -> list[str]:
    """Estimate the category of each target: of its box, else of the area at its click (`estimate_areas`)."""
    without_box = [(image, point) for image, point in clicks if point.box is None]
    areas = iter(estimate_areas(images, without_box, device))
    return [category_of(next(areas) if point.box is None else _box_area(point.box)) for _, point in clicks]


def _box_area(box: tuple[float, float, float, float]) -> int:
    left, top, right, bottom = box
    return round((right - left + 1) * (bottom - top + 1))
