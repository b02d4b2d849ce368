"""Background work of a session: checks of labels, suggestions, tuning and export."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mclc_gpu.annotate.edits import outside_targets
from mclc_gpu.annotate.labels import Labeled
from mclc_gpu.annotate.session import Conflict, Session
from mclc_gpu.annotate.state import ImageState
from mclc_gpu.annotate.suggest import Detector, Suggestion, suggestions_of
from mclc_gpu.errors import InputError, one_line
from mclc_gpu.kernels.backend import pick_device
from mclc_gpu.labels.pipeline import warm_up

_QUIET = 0.3  # seconds after an edit in which no work is begun: the next click comes first
_AHEAD = 20  # images after the open one for which suggestions are made


@dataclass
class Task:
    """Progress of one kind of work.

    Attributes
    ----------
    name : str
    state : {"idle", "running", "done", "failed"}
    done, total : int
    message : str
        One line.
    """

    name: str
    state: str = "idle"
    done: int = 0
    total: int = 0
    message: str = ""


Progress = Callable[[int, int], None]


class Work:
    """Background work of a session.

    Parameters
    ----------
    session : Session
    suggest : str or None
        Name of the detector.
    detector : callable or None
        Finds targets to be suggested.
    jobs : mapping of str to callable
        Work that a page starts: takes a list of formats and a function for the progress, returns a message.
    formats : sequence of str
        Formats of exports.
    """

    def __init__(
        self,
        session: Session,
        suggest: str | None = None,
        detector: Detector | None = None,
        jobs: Mapping[str, Callable[[Sequence[str], Progress], str]] | None = None,
        formats: Sequence[str] = (),
    ) -> None:
        self.session, self.suggest, self.formats = session, suggest, list(formats)
        self._detector, self._jobs = detector, jobs or {}
        self._suggestions: dict[str, list[Suggestion] | None] = {}  # None: the detector failed
        self._pending: OrderedDict[str, None] = OrderedDict()
        self._changed = threading.Condition()
        self._stopped = False
        self._quiet = 0.0  # when work may go on
        self._tasks = {name: Task(name) for name in ("check", "suggest", *self._jobs)}
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)

    @property
    def kinds(self) -> list[str]:
        """Work that a page may start."""
        return list(self._jobs)

    def begin(self) -> None:
        """Start the thread; images that have targets are checked first."""
        with self.session.lock:
            named = [name for name in self.session.names if self.session.state.image(name).targets]
        self._add(named)
        self._thread.start()

    def close(self) -> None:
        """End the thread after what it is doing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _add(self, names: Iterable[str], first: bool = False) -> None:
        with self._changed:
            for name in names:
                self._pending[name] = None
                if first:
                    self._pending.move_to_end(name, last=False)
            self._changed.notify_all()

    def look_at(self, name: str) -> None:
        """Put an image that somebody opened, and those after it, in front of the others."""
        place = self.session.places[name]
        ahead = self.session.names[place : place + (_AHEAD if self._detector else 1)]
        self._add(reversed(ahead), first=True)

    def relabel(self) -> None:
        """Check all images again, since their labels changed."""
        with self.session.lock:
            self._add([name for name in self.session.names if self.session.state.image(name).targets])

    def changed(self, name: str) -> dict[str, Any]:
        """Return the suggestions in an image that has changed; its targets are checked again."""
        self._quiet = time.monotonic() + _QUIET
        self._add([name], first=True)
        if self._detector is None:
            return {"suggestions": []}
        _, state, labels = self.session.label(name)
        return {"suggestions": self.suggested(name, state, labels)["suggestions"]}

    def suggested(self, name: str, state: ImageState, labels: Mapping[int, Labeled]) -> dict[str, Any]:
        """Return the suggestions that are neither rejected nor on a target, and whether they are ready."""
        if self._detector is None:
            return {"suggestions": [], "suggestions_state": "none"}
        if name not in self._suggestions:
            return {"suggestions": [], "suggestions_state": "pending"}
        known = self._suggestions[name]
        if known is None:
            return {"suggestions": [], "suggestions_state": "failed"}
        left = [one for one in known if (one.x, one.y) not in state.rejected]
        free = outside_targets([(one.x, one.y) for one in left], labels)
        shown = [one._asdict() for one, is_free in zip(left, free, strict=True) if is_free]
        return {"suggestions": shown, "suggestions_state": "ready"}

    def queue(self, limit: int) -> dict[str, Any]:
        """Return the doubtful targets of images that are not done, most urgent first."""
        session, pending = self.session, 0
        found: list[dict[str, Any]] = []
        with session.lock:
            for name, state in session.state.images.items():
                checked = session.checked(name)
                if state.done or not state.targets:
                    continue
                if checked is None:
                    pending += name not in session.frames.problems
                    continue
                places = {number: place for place, number in enumerate(state.targets)}
                found += [
                    {
                        "index": session.places[name],
                        "name": name,
                        "id": number,
                        "number": places[number],
                        "urgency": target.urgency,
                        "flags": [list(flag) for flag in target.flags],
                        "x": target.x,
                        "y": target.y,
                    }
                    for number, target in checked.targets.items()
                    if target.flags
                ]
        found.sort(key=lambda target: -target["urgency"])
        return {"pending": pending, "targets": found[:limit]}

    def tasks_json(self) -> dict[str, Any]:
        """Return the progress of all work."""
        return {name: asdict(task) for name, task in self._tasks.items()}

    def start(self, name: str, formats: Sequence[str]) -> dict[str, Any]:
        """Start some work; return its progress. Raises Conflict while the same work runs."""
        with self._changed:
            if self._tasks[name].state == "running":
                raise Conflict(f"{name} is running; wait for it")
            self._tasks[name] = Task(name, "running")
        threading.Thread(target=self._work, args=(name, formats), name=name, daemon=True).start()
        return asdict(self._tasks[name])

    def _work(self, name: str, formats: Sequence[str]) -> None:
        def progress(done: int, total: int) -> None:
            self._tell(Task(name, "running", done, total))

        try:
            message, state = self._jobs[name](formats, progress), "done"
        except (InputError, OSError) as error:
            message, state = one_line(str(error)), "failed"
        except Exception as error:
            logging.getLogger(__name__).exception("%s failed", name)
            message, state = f"{name} failed ({type(error).__name__}); see the server's output", "failed"
        self.relabel()
        last = self._tasks[name]
        self._tell(Task(name, state, last.done, last.total, message))

    def _tell(self, task: Task) -> None:
        self._tasks[task.name] = task
        self.session.publish("task", asdict(task))

    def _run(self) -> None:
        warm_up(self.session.config, pick_device("cpu"))  # the first click need not wait for compilers
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopped)
                while (left := self._quiet - time.monotonic()) > 0 and not self._stopped:
                    self._changed.wait(left)
                if self._stopped:
                    return
                name, _ = self._pending.popitem(last=False)
            try:
                self._treat(name)
            except (InputError, OSError) as error:
                self.session.frames.problems.setdefault(name, one_line(str(error)))
            except Exception:
                logging.getLogger(__name__).exception("background work on %s failed", name)

    def _treat(self, name: str) -> None:
        """Check an image, and find suggestions in it, if that was not done."""
        session = self.session
        if session.state.image(name).targets and session.checked(name) is None:
            checked = session.check(name)
            state = checked.state
            session.publish(
                "image",
                {
                    "index": session.places[name],
                    "flagged": checked.flagged,
                    "urgency": checked.urgency,
                    "targets": len(state.targets),
                    "corrected": state.corrected,
                    "done": state.done,
                },
            )
        if self._detector is not None and name not in self._suggestions:
            pixels = session.frames.frame(name).pixels
            try:
                self._suggestions[name] = suggestions_of(self._detector(name, pixels))
            except InputError:
                self._suggestions[name] = None
            ready = "failed" if self._suggestions[name] is None else "ready"
            session.publish("suggestions", {"index": session.places[name], "state": ready})
