"""Edits that a page asks for: checked, and made to the annotations of one image."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from skimage.draw import polygon2mask

from mclc_gpu.annotate.labels import Candidates, Labeled, candidates_of
from mclc_gpu.annotate.state import Annotation, ImageState, Place
from mclc_gpu.data.annotations import CATEGORIES, Point, box_target, line_pixels, nearest_pixel, scribble
from mclc_gpu.data.masks import BoxedMask
from mclc_gpu.errors import InputError

MOST_TARGETS = 5000  # in one image
_MOST_PLACES = 10_000  # of a stroke or polygon
_HOW = ("brush", "polygon")
Labels = Callable[[Mapping[int, Annotation]], Mapping[int, Labeled]]


class UnknownTarget(LookupError):
    """A target that does not exist, or no longer."""


class Editor:
    """Makes edits to the annotations of one image.

    Parameters
    ----------
    state : ImageState
        Before the edits.
    shape : (int, int)
        Height and width of the image in pixels.
    labels : callable
        Labels the targets of a state.

    Attributes
    ----------
    state : ImageState
        After the edits so far.
    """

    def __init__(self, state: ImageState, shape: tuple[int, int], labels: Labels) -> None:
        self.state, self.shape, self._labels = state, shape, labels

    def edit(self, content: Any) -> None:
        """Make one edit, as JSON describes it.

        Raises
        ------
        InputError
            It is malformed, or cannot be made.
        UnknownTarget
            Its target does not exist.
        """
        if not isinstance(content, dict):
            raise InputError("edit: give an object with op")
        operation = _OPERATIONS.get(str(content.get("op")))
        if operation is None:
            raise InputError(
                f"edit: op is {str(content.get('op'))[:40]!r}; use one of {', '.join(_OPERATIONS)}"
            )
        function, required, optional = operation
        names = content.keys() - {"op"}
        if not required <= names <= required | optional:
            allowed = ", ".join(sorted(required)) + "".join(f", {name}?" for name in sorted(optional))
            raise InputError(f"edit: {content['op']} takes {allowed or 'nothing more'}")
        function(self, content)

    def _add(self, content: Mapping[str, Any]) -> None:
        if len(self.state.targets) >= MOST_TARGETS:
            raise InputError(f"the image has {MOST_TARGETS} targets; no more are taken")
        made = self._marked(content, _category(content.get("category")))
        suggested = content.get("suggestion", False)
        if type(suggested) is not bool:
            raise InputError("suggestion: give true or false")
        self._put(self.state.used, replace(made, suggested=suggested))

    def _marks(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        made = self._marked(content, old.point.category)
        self._put(number, replace(made, suggested=old.suggested))

    def _move(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        if old.kind != "click":
            raise InputError(f"a {old.kind} cannot be moved; mark the target anew")
        x, y = self._place(content["x"], content["y"])
        self._put(number, replace(old.automatic, point=replace(old.point, x=x, y=y)))

    def _delete(self, content: Mapping[str, Any]) -> None:
        number, _ = self._target(content)
        targets = {key: one for key, one in self.state.targets.items() if key != number}
        self.state = replace(self.state, targets=targets)

    def _set_category(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        self._put(number, replace(old, point=replace(old.point, category=_category(content["category"]))))

    def _step(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        step = content["step"]
        if type(step) is not int:
            raise InputError("step: give a whole number")
        if step == 0:
            self._put(number, old.automatic)
            return
        label = self._labels(self.state.targets)[number]
        if label.automatic is None:
            raise InputError(f"the target has no mask to step from: {label.problem}")
        found = candidates_of(label.automatic)
        least, greatest = steps_of(found)
        if not least <= step <= greatest:
            raise InputError(f"step {step}: the candidates of this target go from {least} to {greatest}")
        window = label.automatic.window
        mask = BoxedMask.of(found.ranks <= found.chosen + step, window.top, window.left)
        self._put(number, replace(old, mask=mask, how="step", step=step))

    def _mask(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        how = content.get("how", "brush")
        if how not in _HOW:
            raise InputError(f"how: use one of {', '.join(_HOW)}")
        mask = BoxedMask.of_json(content["mask"], self.shape)
        self._put(
            number, replace(old, mask=BoxedMask.of(mask.pixels(), mask.top, mask.left), how=how, step=0)
        )

    def _polygon(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        corners = np.array(self._places(content["corners"], least=3, margin=1.0))
        low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
        left, top = np.maximum(low, 0).tolist()
        width = min(int(high[0]), self.shape[1] - 1) - left + 1
        height = min(int(high[1]), self.shape[0] - 1) - top + 1
        inside = polygon2mask((height, width), corners[:, ::-1] - (top, left))
        mask = BoxedMask.of(inside, top, left)
        if not mask.area:
            raise InputError("polygon: it holds no pixel's center; draw a larger one")
        self._put(number, replace(old, mask=mask, how="polygon", step=0))

    def _automatic(self, content: Mapping[str, Any]) -> None:
        number, old = self._target(content)
        self._put(number, old.automatic)

    def _done(self, content: Mapping[str, Any]) -> None:
        if type(content["done"]) is not bool:
            raise InputError("done: give true or false")
        self.state = replace(self.state, done=content["done"])

    def _reject(self, content: Mapping[str, Any]) -> None:
        place = self._place(content["x"], content["y"])
        if place not in self.state.rejected:
            self.state = replace(self.state, rejected=(*self.state.rejected, place))

    def _target(self, content: Mapping[str, Any]) -> tuple[int, Annotation]:
        number = content["id"]
        if type(number) is not int or number not in self.state.targets:
            raise UnknownTarget(
                f"there is no target {str(number)[:20]} in this image (any more); load it again"
            )
        return number, self.state.targets[number]

    def _put(self, number: int, target: Annotation) -> None:
        """Set a target. Raises InputError if another one has the same marks."""
        point = target.point
        for other, one in self.state.targets.items():
            if other != number and (one.point.marks, one.point.box) == (point.marks, point.box):
                raise InputError(f"({point.x:g}, {point.y:g}) is marked already; move or delete that target")
        targets = dict(sorted({**self.state.targets, number: target}.items()))
        self.state = replace(self.state, targets=targets, used=max(self.state.used, number + 1))

    def _marked(self, content: Mapping[str, Any], category: str | None) -> Annotation:
        """Return a target of the marks that an edit has: a box, a stroke, or one or more clicks."""
        marks = [name for name in ("box", "stroke", "x") if content.get(name) is not None]
        if len(marks) != 1 or ("x" in marks) != ("y" in content) or ("seeds" in content and "x" not in marks):
            raise InputError("marks: give x and y, and seeds if there are more clicks; or a stroke; or a box")
        if "box" in marks:
            return Annotation(self._box(content["box"], category), "box")
        if "stroke" in marks:
            corners = [self._pixel(place) for place in self._places(content["stroke"], least=1)]
            return Annotation(scribble(*line_pixels(corners), category), "scribble")
        x, y = self._place(content["x"], content["y"])
        seeds = [place for place in self._places(content.get("seeds", []), least=0) if place != (x, y)]
        point = Point(x, y, category, tuple(dict.fromkeys(seeds)))
        return Annotation(point, "clicks" if point.seeds else "click")

    def _box(self, sides: Any, category: str | None) -> Point:
        if not (isinstance(sides, list) and len(sides) == 4):
            raise InputError("box: give left, top, right, bottom")
        first, last = self._place(sides[0], sides[1]), self._place(sides[2], sides[3])
        (top, left), (bottom, right) = self._pixel(first), self._pixel(last)
        if right < left or bottom < top:
            raise InputError("box: its right must not lie left of its left, nor its bottom above its top")
        return box_target(left, top, right, bottom, category)

    def _pixel(self, place: Place) -> tuple[int, int]:
        """Return row and column of the pixel in which a place lies."""
        height, width = self.shape
        return min(nearest_pixel(place[1]), height - 1), min(nearest_pixel(place[0]), width - 1)

    def _places(self, content: Any, least: int, margin: float = 0.0) -> list[Place]:
        good = isinstance(content, list) and least <= len(content) <= _MOST_PLACES
        if not good or not all(isinstance(one, list) and len(one) == 2 for one in content):
            raise InputError(f"places: give {least} to {_MOST_PLACES} pairs [x, y]")
        return [self._place(x, y, margin) for x, y in content]

    def _place(self, x: Any, y: Any, margin: float = 0.0) -> Place:
        """Return a position as floats; `margin`: pixels by which it may lie outside the image."""
        for name, value in (("x", x), ("y", y)):
            if type(value) not in (int, float) or abs(value) > 1e9 or not math.isfinite(value):
                raise InputError(f"{name}: give a number")
        height, width = self.shape
        low = -0.5 - margin
        if not (low <= x < width - 0.5 + margin and low <= y < height - 0.5 + margin):
            raise InputError(f"({x:g}, {y:g}) lies outside the {width}x{height} image; click inside")
        return float(x), float(y)


def steps_of(found: Candidates) -> tuple[int, int]:
    """Return the least and the greatest step along some candidates."""
    return -found.chosen, len(found.areas) - 1 - found.chosen


def _category(value: Any) -> str | None:
    if value is not None and value not in CATEGORIES:
        raise InputError(f"category: use null, {', '.join(CATEGORIES)}")
    return value if value is None else str(value)


_MARKS = {"x", "y", "seeds", "stroke", "box"}
_Operation = tuple[Callable[[Editor, Mapping[str, Any]], None], set[str], set[str]]
_OPERATIONS: dict[str, _Operation] = {
    "add": (Editor._add, set(), {*_MARKS, "category", "suggestion"}),
    "marks": (Editor._marks, {"id"}, _MARKS),
    "move": (Editor._move, {"id", "x", "y"}, set()),
    "delete": (Editor._delete, {"id"}, set()),
    "category": (Editor._set_category, {"id", "category"}, set()),
    "step": (Editor._step, {"id", "step"}, set()),
    "mask": (Editor._mask, {"id", "mask"}, {"how"}),
    "polygon": (Editor._polygon, {"id", "corners"}, set()),
    "automatic": (Editor._automatic, {"id"}, set()),
    "done": (Editor._done, {"done"}, set()),
    "reject": (Editor._reject, {"x", "y"}, set()),
}


def outside_targets(places: Sequence[Place], labels: Mapping[int, Labeled]) -> list[bool]:
    """Return which places lie neither in a target's mask nor within 3 pixels of its click."""
    free = []
    for x, y in places:
        taken = False
        for one in labels.values():
            if one.final is None:
                continue
            window, row, column = one.final.window, nearest_pixel(y), nearest_pixel(x)
            inside = window.holds(row, column)
            taken |= inside and bool(one.final.mask[row - window.top, column - window.left])
            taken |= math.hypot(one.final.point.x - x, one.final.point.y - y) < 3
        free.append(not taken)
    return free
