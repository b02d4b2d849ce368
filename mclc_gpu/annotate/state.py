"""Annotations of a folder in memory: targets of each image, changes of them, and undo."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mclc_gpu.data.annotations import Point
from mclc_gpu.data.masks import BoxedMask
from mclc_gpu.errors import InputError

Place = tuple[float, float]  # x, y


@dataclass(frozen=True, slots=True)
class Annotation:
    """One target as its annotator left it.

    Attributes
    ----------
    point : Point
        Marks, and the category if it was given.
    kind : {"click", "clicks", "scribble", "box"}
        Kind of the marks.
    mask : BoxedMask or None
        Mask that was corrected by hand; None: the automatic one.
    how : {"step", "brush", "polygon"} or None
        Tool of the correction.
    step : int
        Steps along the candidates to the corrected mask, above 0 to larger ones; 0 where it was drawn.
    suggested : bool
        The target was suggested by a detector.
    """

    point: Point
    kind: str = "click"
    mask: BoxedMask | None = None
    how: str | None = None
    step: int = 0
    suggested: bool = False

    @property
    def automatic(self) -> "Annotation":
        """The same without a correction."""
        return replace(self, mask=None, how=None, step=0)

    def json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as JSON has them."""
        point = self.point
        content: dict[str, Any] = {"x": point.x, "y": point.y, "kind": self.kind}
        content |= {"category": point.category} if point.category else {}
        content |= {"seeds": [list(seed) for seed in point.seeds]} if point.seeds else {}
        content |= {"box": list(point.box)} if point.box else {}
        if self.mask is not None:
            content |= {"mask": self.mask.json(), "how": self.how, "step": self.step}
        return content | ({"suggested": True} if self.suggested else {})

    @staticmethod
    def of_json(content: Mapping[str, Any]) -> "Annotation":
        """Return what `json` wrote."""
        point = Point(
            content["x"], content["y"], content.get("category"), content.get("seeds", ()), content.get("box")
        )
        mask = content.get("mask")
        if mask is not None:
            mask = BoxedMask(**{**mask, "runs": tuple(mask["runs"])})
        return Annotation(
            point,
            content["kind"],
            mask,
            content.get("how"),
            content.get("step", 0),
            content.get("suggested", False),
        )


@dataclass(frozen=True)
class ImageState:
    """Annotations of one image.

    Attributes
    ----------
    targets : dict of int to Annotation
        By a number that stays and is not used again; in its order the targets are labeled.
    done : bool
        The annotator finished the image.
    rejected : tuple of (x, y)
        Suggestions that were rejected.
    used : int
        Numbers below this one were used.
    """

    targets: dict[int, Annotation] = field(default_factory=dict)
    done: bool = False
    rejected: tuple[Place, ...] = ()
    used: int = 0

    @property
    def corrected(self) -> int:
        """Number of targets with a corrected mask."""
        return sum(target.mask is not None for target in self.targets.values())

    def changed(self, change: "Change") -> "ImageState":
        """Return the state after a change."""
        targets = {**self.targets}
        for number, (_, after) in change.targets.items():
            targets.pop(number, None)
            if after is not None:
                targets[number] = after
        return ImageState(
            dict(sorted(targets.items())),
            self.done if change.done is None else change.done[1],
            self.rejected if change.rejected is None else change.rejected[1],
            max([self.used, *(number + 1 for number in change.targets)]),
        )

    def allows(self, change: "Change") -> bool:
        """Return whether what a change replaces is as it expects, and no target gets the marks of another."""
        targets = all(self.targets.get(number) == before for number, (before, _) in change.targets.items())
        done = change.done is None or self.done == change.done[0]
        rejected = change.rejected is None or self.rejected == change.rejected[0]
        return targets and done and rejected and not self._would_repeat(change)

    def _would_repeat(self, change: "Change") -> bool:
        """Return whether a change gives a target the marks of another one."""
        marks = {
            number: (one.point.marks, one.point.box) for number, one in self.changed(change).targets.items()
        }
        times = Counter(marks.values())
        for number in change.targets.keys() & marks.keys():
            before = self.targets.get(number)
            moved = before is None or (before.point.marks, before.point.box) != marks[number]
            if moved and times[marks[number]] > 1:
                return True
        return False


class Change(NamedTuple):
    """One step of an annotator: what was before and after it.

    Attributes
    ----------
    image : str
    targets : dict of int to (Annotation or None, Annotation or None)
        None: no such target.
    done : (bool, bool) or None
    rejected : (tuple of Place, tuple of Place) or None
        None: not changed.
    """

    image: str
    targets: dict[int, tuple[Annotation | None, Annotation | None]]
    done: tuple[bool, bool] | None = None
    rejected: tuple[tuple[Place, ...], tuple[Place, ...]] | None = None

    @property
    def empty(self) -> bool:
        """True if nothing differs."""
        same = all(before == after for before, after in self.targets.values())
        pairs = (self.done, self.rejected)
        return same and all(pair is None or pair[0] == pair[1] for pair in pairs)

    @property
    def reverse(self) -> "Change":
        """The change back."""
        targets = {number: (after, before) for number, (before, after) in self.targets.items()}
        done = None if self.done is None else self.done[::-1]
        rejected = None if self.rejected is None else self.rejected[::-1]
        return Change(self.image, targets, done, rejected)

    def json(self) -> dict[str, Any]:
        """Return what is after the change, as a record of the journal has it."""
        record: dict[str, Any] = {"image": self.image}
        if self.targets:
            afters = {str(number): after for number, (_, after) in self.targets.items()}
            record["set"] = {number: None if one is None else one.json() for number, one in afters.items()}
        if self.done is not None:
            record["done"] = self.done[1]
        if self.rejected is not None:
            record["rejected"] = [list(place) for place in self.rejected[1]]
        return record

    @staticmethod
    def of_json(record: Mapping[str, Any], state: ImageState) -> "Change":
        """Return the change of a record of the journal, made in this state."""
        targets: dict[int, tuple[Annotation | None, Annotation | None]] = {}
        for key, after in record.get("set", {}).items():
            number = int(key)
            made = None if after is None else Annotation.of_json(after)
            targets[number] = state.targets.get(number), made
        done = (state.done, record["done"]) if "done" in record else None
        rejected = None
        if "rejected" in record:
            rejected = state.rejected, tuple((x, y) for x, y in record["rejected"])
        return Change(record["image"], targets, done, rejected)


def between(image: str, before: ImageState, after: ImageState) -> Change:
    """Return the change that leads from one state of an image to another."""
    numbers = sorted({*before.targets, *after.targets})
    pairs = {number: (before.targets.get(number), after.targets.get(number)) for number in numbers}
    return Change(
        image,
        {number: pair for number, pair in pairs.items() if pair[0] != pair[1]},
        None if before.done == after.done else (before.done, after.done),
        None if before.rejected == after.rejected else (before.rejected, after.rejected),
    )


class FolderState:
    """Annotations of all images of a folder, and the undo stacks of its annotators.

    Attributes
    ----------
    images : dict of str to ImageState
        By name, those with annotations.
    revision : int
        Number of changes so far.
    """

    def __init__(self) -> None:
        self.images: dict[str, ImageState] = {}
        self.revision = 0
        self._undo: dict[str, list[Change]] = {}
        self._redo: dict[str, list[Change]] = {}

    def image(self, name: str) -> ImageState:
        """Return the state of an image."""
        return self.images.get(name, ImageState())

    def next(self, client: str, way: str) -> Change:
        """Return the change that "undo" or "redo" of an annotator makes.

        Raises
        ------
        LookupError
            There is none, or others have changed the same since.
        """
        stack = (self._undo if way == "undo" else self._redo).get(client)
        if not stack:
            raise LookupError(f"nothing to {way}")
        change = stack[-1].reverse if way == "undo" else stack[-1]
        if not self.image(change.image).allows(change):
            raise InputError(f"{change.image}: changed in another browser since; {way} is not possible")
        return change

    def apply(self, client: str, way: str, change: Change) -> None:
        """Make a change.

        Parameters
        ----------
        client : str
            Annotator.
        way : {"edit", "undo", "redo"}
        change : Change
        """
        self.images[change.image] = self.image(change.image).changed(change)
        self.revision += 1
        undo, redo = self._undo.setdefault(client, []), self._redo.setdefault(client, [])
        if way == "edit":
            undo.append(change)
            redo.clear()
        else:
            source, other = (undo, redo) if way == "undo" else (redo, undo)
            other.append(source.pop())

    def points(self, names: Iterable[str]) -> dict[str, list[Point]]:
        """Return the marks in the images that have targets or are done, in the order of `names`."""
        states = {name: self.images[name] for name in names if name in self.images}
        used = {name: state for name, state in states.items() if state.targets or state.done}
        return {name: [one.point for one in state.targets.values()] for name, state in used.items()}
