"""Annotation of one folder: images, annotations and their labels, shared by all browsers that are open."""

import base64
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mclc_gpu.annotate.checking import check_targets
from mclc_gpu.annotate.edits import Editor, steps_of
from mclc_gpu.annotate.frames import Frame, Frames
from mclc_gpu.annotate.journal import EditJournal
from mclc_gpu.annotate.labels import ImageLabels, Labeled, candidates_of, finals
from mclc_gpu.annotate.seconds import Seconds
from mclc_gpu.annotate.state import (
    Annotation,
    Change,
    FolderState,
    ImageState,
    between,
)
from mclc_gpu.data.files import fingerprint_of
from mclc_gpu.data.masks import BoxedMask
from mclc_gpu.data.names import find_files
from mclc_gpu.data.points import read_points
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.labels.config import LabelConfig, changed
from mclc_gpu.report.check import CheckedTarget

_LABELED_IMAGES = 256  # whose labels are kept in memory
_KNOWN_REQUESTS = 10_000  # the last ones, which a page may send again
_KINDS = {"point": "click", "multi-point": "clicks", "scribble": "scribble", "box": "box"}
CHOICES = ("polarity", "outline")  # settings of a page
Listener = Callable[[str, dict[str, Any]], None]


class Conflict(Exception):
    """An edit that does not fit what another browser did meanwhile."""


class Checked(NamedTuple):
    """Findings in one image, by number of the target, of one state and config."""

    state: ImageState
    config: LabelConfig
    targets: dict[int, CheckedTarget]

    @property
    def urgency(self) -> float | None:
        """Greatest urgency of the image's targets."""
        return max((target.urgency for target in self.targets.values()), default=None)

    @property
    def flagged(self) -> int:
        """Number of targets with a sign of an error."""
        return sum(bool(target.flags) for target in self.targets.values())


class Session:
    """Annotations of a folder of images, kept in a journal; all methods may be called by threads.

    Parameters
    ----------
    images : Path
        Folder of images.
    out : Path
        Folder of the journal, locked by this process.
    config : LabelConfig
        Settings of the labels, unless the journal has later ones.
    seed : int
        Seed of the labels.

    Attributes
    ----------
    names : list of str
        Names of the images, in order.
    state : FolderState
    config : LabelConfig
    lock : threading.RLock
        To be held while `state` is read as a whole.
    skipped : list of Skipped
        What could not be taken from the journal.

    Raises
    ------
    InputError
        The folder holds no images, or the journal cannot be used.
    """

    def __init__(self, images: Path, out: Path, config: LabelConfig, seed: int) -> None:
        self.images, self.out, self.config, self.seed = images, out, config, seed
        self.frames = Frames(find_files(images))
        self.names = list(self.frames.files)
        self.places = {name: place for place, name in enumerate(self.names)}
        self.state, self.seconds, self.lock = FolderState(), Seconds(), threading.RLock()
        self.skipped: list[Skipped] = []
        self.checks: dict[str, Checked] = {}
        self.listeners: list[Listener] = []
        self._locks: dict[str, threading.Lock] = {}
        self._labels: OrderedDict[str, ImageLabels] = OrderedDict()
        self._imported = ""
        self._requests: OrderedDict[str, Change] = OrderedDict()
        self._journal = EditJournal(out)
        try:
            self._replay()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _replay(self) -> None:
        """Bring the annotations to where the journal ends."""
        missing: set[str] = set()
        for record in self._journal.take():
            if record["op"] == "settings":
                self.config = LabelConfig.from_settings(record["config"])
                self.state.revision += 1
            elif record["op"] == "import":
                self._imported = record["source"]
                for own in record.get("images", ()):
                    self._replay_image({**own, "op": "edit", "client": "", "t": record["t"]}, missing)
            else:
                self._replay_image(record, missing)
        if missing and not self.state.images:
            raise InputError(
                f"{self._journal.path}: annotates images that are not in {self.images}, such as "
                f"{min(missing)}; give the folder of that set, or another --out"
            )
        self.skipped += [
            Skipped(name, f"it has annotations in {self.out} but is not in {self.images}; put it back")
            for name in sorted(missing)
        ]

    def _replay_image(self, record: Mapping[str, Any], missing: set[str]) -> None:
        if record["image"] not in self.places:
            missing.add(record["image"])
            return
        numbers: list[int] = []
        if record["op"] != "open":
            change = Change.of_json(record, self.state.image(record["image"]))
            self.state.apply(record["client"], record["op"], change)
            self._remember(record.get("request", ""), change)
            numbers = list(change.targets)
        if record["client"]:
            self.seconds.add(record["client"], record["t"], record["image"], numbers)

    def import_points(self, source: Path, supervision: str) -> list[Skipped]:
        """Take the targets of label files, once; return what could not be used.

        Raises
        ------
        InputError
            The files cannot be read or name no image of the folder, or other annotations are there already.
        """
        points, skipped = read_points(source, self.frames.files, supervision)
        digest = fingerprint_of({name: [asdict(point) for point in own] for name, own in points.items()})
        if digest == self._imported:
            return skipped
        if self.state.images:
            raise InputError(
                f"{source}: {self.out} holds annotations already; leave --points out to go on with them, or "
                "choose another --out"
            )
        if not any(points.values()):
            why = f"{skipped[0].file}: {skipped[0].why}" if skipped else "it names no image"
            raise InputError(f"{source}: no usable point in it ({why})")
        kind = _KINDS[supervision]
        changes = [
            Change(name, {n: (None, Annotation(point, _kind_of(point, kind))) for n, point in enumerate(own)})
            for name, own in points.items()
            if own
        ]
        record = {"op": "import", "source": digest, "images": [change.json() for change in changes]}
        self._journal.append([{**record, "t": time.time()}])  # one record, so that a kill leaves all or none
        for change in changes:
            self.state.apply("", "edit", change)
        self._imported = digest
        return skipped

    def name_of(self, index: int) -> str:
        """Return the name of an image. Raises LookupError for an index out of range."""
        if not 0 <= index < len(self.names):
            raise LookupError(f"there is no image {index}; images are 0 to {len(self.names) - 1}")
        return self.names[index]

    def publish(self, event: str, data: dict[str, Any]) -> None:
        """Tell all listeners about a change."""
        for listener in list(self.listeners):
            listener(event, data)

    def label(self, name: str) -> tuple[Frame, ImageState, dict[int, Labeled]]:
        """Return an image, its annotations and their labels.

        Raises
        ------
        InputError
            The image cannot be read or labeled.
        """
        with self._lock_of(name):
            frame, state = self.frames.frame(name), self.state.image(name)
            return frame, state, self._labels_of(name).label(frame, state.targets)

    def label_earlier(
        self, name: str, state: ImageState, config: LabelConfig
    ) -> tuple[Frame, dict[int, Labeled]]:
        """Return an image and the labels of annotations and a config that may have changed since.

        Raises
        ------
        InputError
            The image cannot be read or labeled.
        """
        with self._lock_of(name):
            frame, labels = self.frames.frame(name), self._labels_of(name)
            if labels.config != config:
                labels = ImageLabels(name, config, self.seed)
            return frame, labels.label(frame, state.targets, keep=False)

    def _lock_of(self, name: str) -> threading.Lock:
        """Return the lock of an image."""
        # Two threads that ask at once get the same one.
        return self._locks.setdefault(name, threading.Lock())

    def _labels_of(self, name: str) -> ImageLabels:
        """Return the labels of an image whose lock is held."""
        with self.lock:
            labels = self._labels.get(name)
            if labels is None or labels.config != self.config:
                labels = ImageLabels(name, self.config, self.seed)
                self._labels[name] = labels
            self._labels.move_to_end(name)
            while len(self._labels) > _LABELED_IMAGES:
                self._labels.popitem(last=False)
            return labels

    def edit(self, name: str, client: str, edits: list[Any], request: str = "") -> dict[str, Any]:
        """Make some edits of an image as one step; they are on disk when this returns.

        Parameters
        ----------
        name : str
        client : str
            Annotator.
        edits : list
            See `mclc_gpu.annotate.edits.Editor.edit`.
        request : str, optional
            Random name of this request: one that comes again, because its answer was lost, changes nothing.

        Returns
        -------
        dict
            Answer for the page.

        Raises
        ------
        InputError
            The image or an edit cannot be used; nothing was changed.
        OSError
            The journal cannot be written; nothing was changed.
        """
        with self._lock_of(name):
            frame, labels = self.frames.frame(name), self._labels_of(name)
            before = self.state.image(name)
            old = labels.label(frame, before.targets)
            if request in self._requests:
                return self._repeated(request, before, old)
            editor = Editor(before, frame.shape, lambda targets: labels.label(frame, targets, keep=False))
            for one in edits:
                editor.edit(one)
            change = between(name, before, editor.state)
            new = labels.label(frame, editor.state.targets)
            for number in change.targets:
                if number in new and new[number].problem:
                    raise InputError(new[number].problem)
            if not change.empty:
                self._commit(client, "edit", change, request)
            return self._answer(name, change, (before, old), (editor.state, new))

    def _repeated(self, request: str, state: ImageState, labels: Mapping[int, Labeled]) -> dict[str, Any]:
        """Return the answer to a request that was made before, with the image as it is now."""
        change = self._requests[request]
        before = {number for number, (old, _) in change.targets.items() if old is not None}
        return self._answer(change.image, Change(change.image, {}), (state, labels), (state, labels)) | {
            "added": sorted(change.targets.keys() & state.targets.keys() - before),
            "removed": sorted(change.targets.keys() - state.targets.keys()),
            "targets": self.targets_json(change.image, state, labels),
        }

    def _remember(self, request: str, change: Change) -> None:
        """Note a request that was made."""
        if request:
            self._requests[request] = change
            while len(self._requests) > _KNOWN_REQUESTS:
                self._requests.popitem(last=False)

    def undo(self, client: str, way: str, request: str = "") -> dict[str, Any]:
        """Take the last step of an annotator back, or make it again ("undo" or "redo").

        `request` is as in `edit`.

        Raises
        ------
        LookupError
            There is none.
        Conflict
            Others have changed the same since.
        """
        with self.lock:
            known = self._requests.get(request)
            name = self._next(client, way).image if known is None else known.image
        with self._lock_of(name):
            frame, labels = self.frames.frame(name), self._labels_of(name)
            before = self.state.image(name)
            old = labels.label(frame, before.targets)
            if request in self._requests:  # known before, or made by another thread meanwhile
                return self._repeated(request, before, old)
            with self.lock:
                change = self._next(client, way)
                if change.image != name:
                    raise Conflict(f"{way} was asked for twice at once; try again")
                self._commit(client, way, change, request)
                after = self.state.image(name)
            new = labels.label(frame, after.targets)
            return self._answer(name, change, (before, old), (after, new))

    def _next(self, client: str, way: str) -> Change:
        try:
            return self.state.next(client, way)
        except InputError as error:
            raise Conflict(str(error)) from error

    def _commit(self, client: str, way: str, change: Change, request: str) -> None:
        """Write a change to the journal, then make it, then tell everybody."""
        moment = time.time()
        record = {**change.json(), "op": way, "client": client, "t": moment}
        with self.lock:
            self._journal.append([record | ({"request": request} if request else {})])
            self.state.apply(client, way, change)
            self._remember(request, change)
            self.seconds.add(client, moment, change.image, change.targets)
            revision, state = self.state.revision, self.state.image(change.image)
        data = {"revision": revision, "index": self.places[change.image], "client": client}
        counts = {"targets": len(state.targets), "corrected": state.corrected, "done": state.done}
        self.publish("edit", data | counts)

    def open(self, name: str, client: str) -> None:
        """Note that an annotator sees an image now."""
        moment = time.time()
        with self.lock:
            self._journal.append([{"op": "open", "image": name, "client": client, "t": moment}])
            self.seconds.add(client, moment, name, ())

    def change_settings(self, **choices: str) -> None:
        """Change settings of the vote of components; labels of untouched targets change with them.

        Raises
        ------
        InputError
            The label maker has no such setting, or no such value.
        """
        if "components" not in self.config.entry.uses:
            raise InputError(f"the label maker {self.config.maker!r} has no such settings")
        self.set_config(changed(self.config, components=choices))

    def set_config(self, config: LabelConfig) -> None:
        """Label untouched targets with another config from now on."""
        with self.lock:
            self._journal.append([{"op": "settings", "config": asdict(config), "t": time.time()}])
            self.config = config
            self.state.revision += 1
            revision = self.state.revision
        self.publish("settings", {"revision": revision})

    def choices(self) -> dict[str, Any]:
        """Return the settings that a page shows."""
        shown: dict[str, Any] = {"maker": self.config.maker}
        if "components" in self.config.entry.uses:
            shown |= {name: getattr(self.config.components, name) for name in CHOICES}
        return shown

    def check(self, name: str) -> Checked:
        """Look for signs of errors in the labels of an image, see `mclc_gpu.report.check`.

        Raises
        ------
        InputError
            The image cannot be read or labeled.
        """
        config = self.config
        frame, state, labels = self.label(name)
        numbers = [number for number, one in labels.items() if one.final is not None]
        places = check_targets(name, frame.shape, finals(labels), config, self.seed)
        found = {numbers[place]: one for place, one in places.items()}
        checked = Checked(state, config, found)
        with self.lock:
            if self.checked(name) is None:
                self.checks[name] = checked
        return checked

    def checked(self, name: str) -> Checked | None:
        """Return the findings in an image if they are known for its present state."""
        found = self.checks.get(name)
        if found is None or found.state is not self.state.image(name) or found.config is not self.config:
            return None
        return found

    def target(self, name: str, number: int) -> dict[str, Any]:
        """Return one target as a page takes it, with its TPM and candidates.

        Raises
        ------
        LookupError
            There is no such target.
        InputError
            The image cannot be read or labeled.
        """
        _, state, labels = self.label(name)
        if number not in state.targets:
            raise LookupError(f"there is no target {number} in this image (any more)")
        place, label = list(state.targets).index(number), labels[number]
        content = target_json(number, place, state.targets[number], label, self.checked(name))
        if label.automatic is None:
            return content | {"tpm": "", "ranks": "", "areas": [], "weights": [], "chosen": 0}
        found = candidates_of(label.automatic)
        return content | {
            "tpm": base64.b64encode(label.automatic.levels.astype("<u2").tobytes()).decode(),
            "ranks": base64.b64encode(found.ranks.tobytes()).decode(),
            "areas": found.areas,
            "weights": [round(weight, 6) for weight in found.weights],
            "chosen": found.chosen,
        }

    def targets_json(
        self, name: str, state: ImageState, labels: Mapping[int, Labeled]
    ) -> list[dict[str, Any]]:
        """Return all targets of an image as a page takes them."""
        checked = self.checked(name)
        return [
            target_json(number, place, state.targets[number], labels[number], checked)
            for place, number in enumerate(state.targets)
        ]

    def _answer(
        self,
        name: str,
        change: Change,
        before: tuple[ImageState, Mapping[int, Labeled]],
        after: tuple[ImageState, Mapping[int, Labeled]],
    ) -> dict[str, Any]:
        """Return what changed in an image, for a page."""
        (old, old_labels), (new, new_labels) = before, after
        differs = {number for number, one in change.targets.items() if one[1] is not None}
        for number in new.targets.keys() & old.targets.keys():
            if new_labels[number].automatic is not old_labels[number].automatic:
                differs.add(number)
        added, removed = new.targets.keys() - old.targets.keys(), old.targets.keys() - new.targets.keys()
        places = {number: place for place, number in enumerate(new.targets)}
        return {
            "revision": self.state.revision,
            "index": self.places[name],
            "added": sorted(added),
            "removed": sorted(removed),
            "targets": [
                target_json(number, places[number], new.targets[number], new_labels[number], None)
                for number in sorted(differs)
            ],
            "done": new.done,
        }


def _kind_of(point: Any, kind: str) -> str:
    return "click" if kind == "clicks" and not point.seeds else kind


def target_json(
    number: int, place: int, target: Annotation, label: Labeled, checked: Checked | None
) -> dict[str, Any]:
    """Return one target as a page takes it.

    Parameters
    ----------
    number : int
        See `ImageState`.
    place : int
        Place among the image's targets, from 0.
    target : Annotation
    label : Labeled
    checked : Checked or None
        Findings in the image, if they are known.
    """
    point, final = target.point, label.final
    found = None if checked is None else checked.targets.get(number)
    flags: list[Any] | None = None if checked is None else []
    if found is not None:
        flags = [list(flag) for flag in found.flags]
    content: dict[str, Any] = {
        "id": number,
        "number": place,
        "x": point.x,
        "y": point.y,
        "kind": target.kind,
        "seeds": [list(seed) for seed in point.seeds],
        "box": None if point.box is None else list(point.box),
        "category": point.category,
        "estimated": None,
        "window": None,
        "mask": None,
        "area": 0,
        "confidence": None,
        "corrected": target.how,
        "step": target.step,
        "steps": [0, 0],
        "flags": flags,
        "urgency": None if found is None else found.urgency,
        "problem": label.problem or None,
    }
    if final is None or label.automatic is None:
        return content
    window = label.automatic.window
    mask = BoxedMask.of(final.mask, final.window.top, final.window.left)
    confidence = float(final.confidence)
    return content | {
        "estimated": final.point.category,
        "window": {"top": window.top, "left": window.left, "height": window.height, "width": window.width},
        "mask": mask.json(),
        "area": mask.area,
        "confidence": None if np.isnan(confidence) else round(confidence, 4),
        "steps": list(steps_of(candidates_of(label.automatic))),
    }
