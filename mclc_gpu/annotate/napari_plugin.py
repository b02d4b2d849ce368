"""Plugin of napari: clicks in a Points layer become masks in a Labels layer, by the label pipeline.

napari finds it through the manifest napari.yaml beside this file. napari and magicgui, which are installed
where this runs, are imported when the widget is opened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mclc_gpu.annotate.edits import Editor
from mclc_gpu.annotate.frames import Frame
from mclc_gpu.annotate.labels import ImageLabels
from mclc_gpu.annotate.state import ImageState
from mclc_gpu.data.annotations import nearest_pixel
from mclc_gpu.data.images import canonical_pixels
from mclc_gpu.data.names import stem_of
from mclc_gpu.errors import InputError
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.kernels.config import OUTLINES
from mclc_gpu.labels.config import PRESETS, LabelConfig
from mclc_gpu.labels.pipeline import TargetMask, warm_up

Place = tuple[float, ...]  # of a click: indices of the image in its stack, then row and column
Plane = tuple[int, ...]  # indices of an image in its stack; () where there is none


class LayerLabels:
    """Labels of the clicks on an image, or on the images of a stack.

    Parameters
    ----------
    pixels : array, [..., H, W], or [..., H, W, 3 or 4] in color
        Of any type that `numpy.asarray` takes; of a stack only images with clicks are read.
    name : str
        Name of the image, on which noise depends; images of a stack are called NAME_0, NAME_1, ...
    config : LabelConfig
    color : bool
        The last axis holds channels.
    """

    def __init__(self, pixels: Any, name: str, config: LabelConfig, color: bool = False) -> None:
        self.shape: tuple[int, ...] = tuple(pixels.shape[:-1] if color else pixels.shape)
        self.pixels, self._name, self._config = pixels, name, config
        self._labels: dict[Plane, ImageLabels] = {}
        self._last: tuple[Plane, Frame] | None = None
        self._done: dict[Plane, tuple[list[Place], dict[Place, TargetMask], list[str]]] = {}

    def label(self, places: Iterable[Place]) -> tuple[dict[Place, TargetMask], list[str]]:
        """Label clicks; of those that were there before, only what the new ones change.

        Parameters
        ----------
        places : iterable of Place
            In pixels, with pixel centers at integers.

        Returns
        -------
        labels : dict of Place to TargetMask
            Of the clicks that can be labeled, in order.
        problems : list of str
            Why the others cannot.
        """
        clicks: dict[Plane, list[Place]] = {}
        problems: list[str] = []
        for place in places:
            plane = _plane(place)
            if all(0 <= index < size for index, size in zip(plane, self.shape, strict=False)):
                clicks.setdefault(plane, []).append(place)
            else:
                problems.append(f"there is no image {', '.join(map(str, plane))} in the stack; click inside")
        self._done = {plane: done for plane, done in self._done.items() if plane in clicks}
        labels: dict[Place, TargetMask] = {}
        for plane, own in clicks.items():
            if plane not in self._done or self._done[plane][0] != own:
                self._done[plane] = (own, *self._of_plane(plane, own))
            labels |= self._done[plane][1]
            problems += self._done[plane][2]
        return labels, problems

    def _of_plane(self, plane: Plane, places: Sequence[Place]) -> tuple[dict[Place, TargetMask], list[str]]:
        """Label the clicks on one image."""
        name = "_".join([self._name, *map(str, plane)])
        try:
            frame = self._frame(plane)
        except InputError as error:
            return {}, [f"{name}: {error}"]
        labels = self._labels.setdefault(plane, ImageLabels(name, self._config, seed=0))
        editor = Editor(ImageState(), frame.shape, lambda targets: labels.label(frame, targets))
        accepted, problems = [], []
        for place in places:
            try:
                editor.edit({"op": "add", "x": place[-1], "y": place[-2]})
            except InputError as error:
                problems.append(str(error))
            else:
                accepted.append(place)
        try:
            found = labels.label(frame, editor.state.targets)
        except InputError as error:
            return {}, [*problems, str(error)]
        made = {}
        for place, one in zip(accepted, found.values(), strict=True):
            if one.final is None:
                problems.append(one.problem)
            else:
                made[place] = one.final
        return made, problems

    def _frame(self, plane: Plane) -> Frame:
        """Return an image as the pipeline reads it from a file. Raises InputError as `canonical_pixels`."""
        if self._last is None or self._last[0] != plane:
            self._last = plane, Frame(canonical_pixels(np.asarray(self.pixels[plane])), "")
        return self._last[1]


class _Drawn(NamedTuple):
    """A mask in the array: its number, and what it was drawn from."""

    number: int
    label: TargetMask

    @property
    def area(self) -> tuple[slice, slice]:
        return self.label.window.area


class Drawing:
    """Masks drawn into an array of target numbers, where hand-made changes of other targets are kept.

    A target keeps its number as long as its click stays. Where masks overlap the earlier one is shown.
    """

    def __init__(self) -> None:
        self._drawn: dict[Place, _Drawn] = {}
        self._used = 0

    def draw(self, numbers: np.ndarray, labels: Mapping[Place, TargetMask]) -> None:
        """Draw targets that are new or changed, and erase those that are gone.

        Parameters
        ----------
        numbers : ndarray of int32, [..., H, W]
            Changed in place. 0: no target.
        labels : mapping of Place to TargetMask
            All targets.
        """
        before, now = self._drawn, {}
        for place, label in labels.items():
            old = before.get(place)
            self._used += old is None
            now[place] = _Drawn(self._used if old is None else old.number, label)
        changed = [*_missing(before, now), *_missing(now, before)]
        # What lies under a mask that is erased appears, so neighbors are drawn anew.
        for plane, one in _touching(before, changed):
            part = numbers[plane][one.area]
            part[part == one.number] = 0
        for plane, one in _touching(now, changed):
            part = numbers[plane][one.area]
            part[one.label.mask & (part == 0)] = one.number
        self._drawn = now


def _plane(place: Place) -> Plane:
    return tuple(nearest_pixel(index) for index in place[:-2])


def _missing(drawn: Mapping[Place, _Drawn], other: Mapping[Place, _Drawn]) -> list[tuple[Plane, _Drawn]]:
    """Return the masks, with their images, that are not the same in another drawing."""
    return [
        (_plane(place), one)
        for place, one in drawn.items()
        if place not in other or other[place].label is not one.label
    ]


def _touching(
    drawn: Mapping[Place, _Drawn], changed: Sequence[tuple[Plane, _Drawn]]
) -> list[tuple[Plane, _Drawn]]:
    """Return the masks, with their images, whose windows overlap one of the changed."""
    placed = [(_plane(place), one) for place, one in drawn.items()]
    return [
        (plane, one)
        for plane, one in placed
        if any(plane == where and one.label.window.overlaps(other.label.window) for where, other in changed)
    ]


def settings(preset: str, outline: str) -> LabelConfig:
    """Return the settings of a preset, with an outline where it has one."""
    config = PRESETS.find(preset)
    if "components" in config.unused():
        return config
    return replace(config, components=replace(config.components, outline=outline))


def click_widget() -> Any:
    """Return a widget for the current viewer: choose an image and a Points layer, click, get a Labels layer.

    Returns
    -------
    magicgui.widgets.Container

    Raises
    ------
    InputError
        No viewer is open.
    """
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is None:
        raise InputError("napari has no open viewer; open one first")
    return _ClickWidget(viewer).container


class _ClickWidget:
    """Connects the widget's choices and the layers of a viewer with the label pipeline."""

    def __init__(self, viewer: Any) -> None:
        from magicgui.widgets import ComboBox, Container, Label, PushButton, create_widget
        from napari.layers import Image, Points

        self._viewer = viewer
        self._labels: LayerLabels | None = None
        # Labels layer and what is drawn into it, by image layer.
        self._masks: WeakKeyDictionary[Any, tuple[Any, Drawing]] = WeakKeyDictionary()
        self._heard: Any = None  # Points layer whose changes are heard
        self.image = create_widget(annotation=Image, name="image", label="image")
        self.clicks = create_widget(annotation=Points, name="clicks", label="clicks")
        self.preset = ComboBox(name="preset", label="preset", choices=list(PRESETS), value="default")
        self.outline = ComboBox(name="outline", label="outline", choices=list(OUTLINES), value="edge")
        self.begin = PushButton(name="begin", text="New Points layer for clicks")
        self.status = Label(name="status", value="Choose an image, add a Points layer, click each target.")
        widgets = [self.image, self.clicks, self.preset, self.outline, self.begin, self.status]
        self.container = Container(widgets=widgets)
        for choice in (self.image, self.preset, self.outline):
            choice.changed.connect(lambda *_: self._restart())
        self.clicks.changed.connect(lambda *_: self._listen())
        self.begin.changed.connect(lambda *_: self._add_points())
        warm_up(PRESETS["default"], pick_device("cpu"))  # the first click need not wait for compilers

    def _add_points(self) -> None:
        """Add an empty Points layer over the image, ready for clicks."""
        image = self.image.value
        if image is None:
            self.status.value = "There is no image; open one."
            return
        added = self._viewer.add_points(
            np.zeros((0, image.ndim)),
            ndim=image.ndim,
            name=f"{image.name} clicks",
            size=5,
            **_place_of(image),
        )
        self.clicks.reset_choices()
        self.clicks.value = added
        added.mode = "add"

    def _listen(self) -> None:
        """Follow the changes of the chosen Points layer, no longer those of the one before."""
        if self._heard is not None:
            self._heard.events.data.disconnect(self._changed)
        self._heard = self.clicks.value
        if self._heard is not None:
            self._heard.events.data.connect(self._changed)
        self._update()

    def _changed(self, event: Any) -> None:
        """Label again after clicks were added, moved or removed; not while that is under way."""
        if not str(getattr(event, "action", "")).lower().endswith("ing"):
            self._update()

    def _restart(self) -> None:
        """Begin anew, for another image or other settings."""
        self._labels = None
        self._update()

    def _update(self) -> None:
        image, clicks = self.image.value, self.clicks.value
        if image is None or clicks is None:
            return
        pixels = image.data[0] if image.multiscale else image.data
        if self._labels is None or self._labels.pixels is not pixels:
            config = settings(self.preset.value, self.outline.value)
            self._labels = LayerLabels(pixels, _name_of(image), config, image.rgb)
        # Through the world, for layers may be scaled and moved against each other.
        places = [
            tuple(float(v) for v in image.world_to_data(clicks.data_to_world(place))) for place in clicks.data
        ]
        labels, problems = self._labels.label(places)
        if labels or image in self._masks:
            masks, drawing = self._masks_of(image, self._labels.shape)
            drawing.draw(masks.data, labels)
            masks.refresh()
        self.status.value = "\n".join([f"{len(labels)} targets have a mask.", *problems])

    def _masks_of(self, image: Any, shape: tuple[int, ...]) -> tuple[Any, Drawing]:
        """Return the Labels layer of an image and what is drawn there; new ones where there are none."""
        layers = self._viewer.layers
        if image not in self._masks or self._masks[image][0] not in layers:
            active = layers.selection.active
            empty = np.zeros(shape, np.int32)
            added = self._viewer.add_labels(empty, name=f"{image.name} masks", **_place_of(image))
            layers.selection.active = active  # clicks go on in the Points layer
            self._masks[image] = added, Drawing()
        return self._masks[image]


def _name_of(image: Any) -> str:
    """Return the name that the image of a layer has in a label run: of its file, if it comes from one."""
    path = image.source.path
    return stem_of(Path(path).name) if path else str(image.name)


def _place_of(layer: Any) -> dict[str, Any]:
    """Return what lays another layer over this one."""
    names = ("scale", "translate", "rotate", "shear", "affine", "units")
    return {name: getattr(layer, name) for name in names}
