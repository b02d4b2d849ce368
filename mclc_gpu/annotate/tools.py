"""Requests of other annotation tools: the remote server of X-AnyLabeling, the ML backend of Label Studio.

Neither changes the annotations of the session: the tools keep their own.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from mclc_gpu.annotate.edits import Editor
from mclc_gpu.annotate.frames import Frame
from mclc_gpu.annotate.labels import ImageLabels
from mclc_gpu.annotate.session import Session
from mclc_gpu.annotate.state import ImageState
from mclc_gpu.data.files import package_version
from mclc_gpu.data.formats import xml_tree
from mclc_gpu.data.formats_json import uploaded_names
from mclc_gpu.data.images import decode_image
from mclc_gpu.data.masks import BoxedMask, label_studio_rle, outline
from mclc_gpu.data.names import FileNames
from mclc_gpu.errors import InputError
from mclc_gpu.labels.pipeline import TargetMask

MODEL = "mclc-gpu"
_MOST = 1e9  # pixels or percent
_LABEL = "target"  # of shapes; the tools have their own names for them


def label_marks(
    frame: Frame, name: str, session: Session, edits: Sequence[Mapping[str, Any]]
) -> list[TargetMask]:
    """Label targets whose marks other tools sent.

    Parameters
    ----------
    frame : Frame
    name : str
        Name of the image.
    session : Session
        Whose settings count.
    edits : sequence of mapping
        Additions of targets, see `mclc_gpu.annotate.edits.Editor.edit`.

    Raises
    ------
    InputError
        A mark cannot be used.
    """
    labels = ImageLabels(name, session.config, session.seed)
    editor = Editor(ImageState(), frame.shape, lambda targets: labels.label(frame, targets))
    for edit in edits:
        editor.edit({"op": "add", **edit})
    found = []
    for one in labels.label(frame, editor.state.targets).values():
        if one.final is None:
            raise InputError(one.problem)
        found.append(one.final)
    return found


class AnyLabeling:
    """Remote server of X-AnyLabeling (its docs/router.md): points and rectangles in, polygons out.

    Positions are counted from the image's edge, as on its canvas; so corners of polygons lie on the edges of
    pixels, half a pixel from their centers.

    Parameters
    ----------
    session : Session
        Whose label settings count.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def health(self) -> dict[str, Any]:
        """Answer GET /health."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # "UP" is what Label Studio asks for at the same address.
        return {"status": "UP", "models_loaded": 1, "timestamp": moment, "model_class": MODEL}

    def models(self) -> dict[str, Any]:
        """Answer GET /v1/models."""
        widgets = ("button_add_point", "button_remove_point", "button_add_rect", "button_clear")
        buttons = [{"name": name, "value": None} for name in (*widgets, "button_finish_object")]
        about: dict[str, Any] = {
            "display_name": "mclc-gpu: infrared small targets from clicks",
            "widgets": [*buttons, {"name": "toggle_preserve_existing_annotations", "value": True}],
            "params": {},
            "batch_processing_mode": None,
        }
        return {"success": True, "data": {MODEL: about}}

    def predict(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Answer POST /v1/predict.

        Points with the label 1 are clicks on one target, those with the label 0 clicks on others, whose
        pixels are not taken. Each rectangle is a target of its own.
        """
        if content.get("model") != MODEL:
            return _failed(
                "MODEL_NOT_FOUND", f"Model {str(content.get('model'))[:40]!r} is not here; use {MODEL}"
            )
        try:
            frame = Frame(decode_image(_decoded(content.get("image"))), "")
        except InputError as error:
            return _failed("INVALID_IMAGE", str(error))
        try:
            edits, shown = _marks(content.get("params"))
            targets = label_marks(frame, "image", self._session, edits)
        except InputError as error:
            return _failed("INFERENCE_ERROR", str(error))
        shapes = [_shape(target) for target, is_shown in zip(targets, shown, strict=True) if is_shown]
        return {"success": True, "data": {"shapes": shapes, "description": ""}}


def _failed(code: str, text: str) -> dict[str, Any]:
    return {"success": False, "error": {"code": code, "message": text}}


def _decoded(text: Any) -> bytes:
    """Return the bytes of an image that is sent as base64, or as a data URI."""
    if not isinstance(text, str):
        raise InputError("image: give it as base64")
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"image: no base64 ({error})") from error


def _marks(params: Any) -> tuple[list[dict[str, Any]], list[bool]]:
    """Return additions of targets for the marks of X-AnyLabeling, and which of them are asked for."""
    marks = params.get("marks") if isinstance(params, dict) else None
    if not isinstance(marks, list) or not all(isinstance(mark, dict) for mark in marks):
        raise InputError("marks: add a point or a rectangle")
    edits: list[dict[str, Any]] = []
    wanted: list[list[float]] = []
    others: list[list[float]] = []
    for mark in marks:
        data = _numbers(mark.get("data"), "marks")
        if mark.get("type") == "rectangle" and len(data) == 4:
            edits.append({"box": _box(*data)})
        elif mark.get("type") == "point" and len(data) == 2:
            (wanted if mark.get("label", 1) == 1 else others).append([data[0] - 0.5, data[1] - 0.5])
        else:
            raise InputError("marks: give points [x, y] and rectangles [x, y, x, y]")
    if wanted:
        (x, y), *seeds = wanted
        edits.append({"x": x, "y": y, "seeds": seeds})
    if not edits:
        raise InputError("marks: add a point or a rectangle")
    shown = [True] * len(edits) + [False] * len(others)
    return edits + [{"x": x, "y": y} for x, y in others], shown


def _numbers(values: Any, name: str) -> list[float]:
    good = isinstance(values, list) and all(type(one) in (int, float) and abs(one) <= _MOST for one in values)
    if not good:
        raise InputError(f"{name}: give numbers, at most {_MOST:.0e}")
    return [float(value) for value in values]


def _box(left: float, top: float, right: float, bottom: float) -> list[float]:
    """Return the outermost pixels of a rectangle whose corners are counted from the image's edge."""
    spans = []
    for one, other in ((left, right), (top, bottom)):
        first, last = math.floor(min(one, other) + 0.5), math.floor(max(one, other) + 0.5) - 1
        spans.append((float(first), float(max(first, last))))
    (left, right), (top, bottom) = spans
    return [left, top, right, bottom]


def _boxed(target: TargetMask) -> BoxedMask:
    return BoxedMask.of(target.mask, target.window.top, target.window.left)


def _score(target: TargetMask) -> float | None:
    return None if math.isnan(target.confidence) else round(float(target.confidence), 4)


def _shape(target: TargetMask) -> dict[str, Any]:
    """Return a polygon as X-AnyLabeling takes it: its last point is the first one again."""
    corners = [[float(x), float(y)] for x, y in outline(_boxed(target))]
    return {
        "label": "AUTOLABEL_OBJECT",  # the tool asks for a name
        "shape_type": "polygon",
        "points": [*corners, corners[0]],
        "score": _score(target),
        "attributes": {},
        "description": None,
        "difficult": False,
        "direction": 0,
        "flags": None,
        "group_id": None,
        "kie_linking": [],
    }


class _Tag(NamedTuple):
    """Brush labels of a labeling set-up: names of control and image, key of the task's data, labels."""

    name: str
    image: str
    key: str
    labels: list[str]


class LabelStudio:
    """ML backend of Label Studio: keypoints and rectangles in percent in, brush masks out.

    Images are those of the session's folder, by the names in the addresses of the tasks; none is fetched.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = FileNames(session.frames.files)

    @staticmethod
    def setup(content: Mapping[str, Any]) -> dict[str, Any]:
        """Answer POST /setup."""
        del content
        return {"model_version": f"{MODEL} {package_version()}"}

    @staticmethod
    def webhook(content: Mapping[str, Any]) -> dict[str, Any]:
        """Answer POST /webhook: nothing is learned from annotations."""
        del content
        return {"status": "ok"}

    def predict(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Answer POST /predict: the masks of the marks that the annotator just made in the one task sent.

        Raises
        ------
        InputError
            The labeling set-up, the image or a mark cannot be used.
        """
        tasks, context = content.get("tasks"), _dict(_dict(content.get("params")).get("context"))
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise InputError("tasks: give a list")
        marks = [_dict(one) for one in context.get("result") or () if isinstance(one, dict)]
        if len(tasks) != 1 or not marks:  # without marks there is nothing to predict
            return {"results": [{"result": [], "score": 0.0} for _ in tasks]}
        tag = _tag_of(str(content.get("label_config", "")))
        name = self._image(_dict(tasks[0].get("data")), tag.key)
        frame = self._session.frames.frame(name)
        edits = [_keypoint_or_box(mark, frame.shape) for mark in marks]
        targets = label_marks(frame, name, self._session, edits)
        labels = [_label_of(mark, tag) for mark in marks]
        results = [
            _brush(target, tag, label, frame.shape, number)
            for number, (target, label) in enumerate(zip(targets, labels, strict=True))
        ]
        scores = [score for target in targets if (score := _score(target)) is not None]
        version = f"{MODEL} {package_version()}"
        whole = {
            "result": results,
            "score": float(np.mean(scores)) if scores else 0.0,
            "model_version": version,
        }
        return {"results": [whole]}

    def _image(self, data: Mapping[str, Any], key: str) -> str:
        address = data.get(key)
        if not isinstance(address, str):
            raise InputError(f"tasks: the data have no address {key!r} of an image")
        found = self._names.match(uploaded_names((address,)))
        if not found:
            raise InputError(
                f"{address[:200]}: no image of this name in {self._session.images}; serve its folder"
            )
        return next(iter(found.values()))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tag_of(config: str) -> _Tag:
    """Return the brush labels of a labeling set-up. Raises InputError if there are none."""
    root = xml_tree(config.encode(errors="replace"), "label_config")
    images = {one.get("name"): str(one.get("value", "")).lstrip("$") for one in root.iter("Image")}
    for brush in root.iter("BrushLabels"):
        image = str(brush.get("toName"))
        labels = [str(label.get("value")) for label in brush.iter("Label")]
        if image in images:
            return _Tag(str(brush.get("name")), image, images[image], labels or [_LABEL])
    raise InputError("label_config: it needs <BrushLabels> for its <Image>; masks are drawn with them")


def _keypoint_or_box(mark: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
    """Return the addition of a target for a mark in percent of the image's size."""
    value, (height, width) = _dict(mark.get("value")), shape
    x, y, w, h = _numbers([value.get(key, 0.0) for key in ("x", "y", "width", "height")], "mark")
    if mark.get("type") in ("keypointlabels", "keypoint"):
        return {"x": x * width / 100 - 0.5, "y": y * height / 100 - 0.5}
    if mark.get("type") in ("rectanglelabels", "rectangle"):
        if value.get("rotation"):
            raise InputError("a rotated rectangle; a box lies along rows and columns")
        return {"box": _box(x * width / 100, y * height / 100, (x + w) * width / 100, (y + h) * height / 100)}
    raise InputError(f"a {str(mark.get('type'))[:40]}; mark a target by a keypoint or a rectangle")


def _label_of(mark: Mapping[str, Any], tag: _Tag) -> str:
    """Return the brush label of a mark's name, else the first one."""
    labels = _dict(mark.get("value")).get(str(mark.get("type")))
    return labels[0] if isinstance(labels, list) and labels and labels[0] in tag.labels else tag.labels[0]


def _brush(target: TargetMask, tag: _Tag, label: str, shape: tuple[int, int], number: int) -> dict[str, Any]:
    return {
        "id": f"{MODEL}-{number}",
        "type": "brushlabels",
        "from_name": tag.name,
        "to_name": tag.image,
        "original_width": shape[1],
        "original_height": shape[0],
        "image_rotation": 0,
        "score": _score(target),
        "value": {"format": "rle", "rle": label_studio_rle(_boxed(target), shape), "brushlabels": [label]},
    }
