"""HTTP server of `annotate`: the page, its interface in JSON, and pixels."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mclc_gpu.annotate.edits import MOST_TARGETS, UnknownTarget
from mclc_gpu.annotate.frames import POOLS, TILE
from mclc_gpu.annotate.guard import MOST_BODY, Guard, JsonAnswer, problem
from mclc_gpu.annotate.seconds import COLUMNS, PAUSE_LIMIT
from mclc_gpu.annotate.session import CHOICES, Conflict, Session
from mclc_gpu.annotate.tools import AnyLabeling, LabelStudio
from mclc_gpu.annotate.work import Work
from mclc_gpu.data.annotations import CATEGORIES
from mclc_gpu.data.files import fingerprint_of, package_version
from mclc_gpu.errors import InputError, one_line
from mclc_gpu.kernels.config import OUTLINES, POLARITIES

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".woff2": "font/woff2",
}
_PRIVATE = {"Cache-Control": "private, max-age=0, must-revalidate"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_IMAGE = re.compile(rb'"image"\s*:\s*"[^"]*"')
_MOST_EDITS = 1000  # in one step
_BEAT = 15.0  # seconds between signs of life of a stream of events
_WAITING_EVENTS = 1000  # for a slow browser, which is then cut off and asks anew


Handler = Callable[[Request], Any]


class _Bad(Exception):
    """A request that makes no sense."""


class _Number(Convertor[int]):
    """Whole number in an address, of as many digits as make sense."""

    regex = "[0-9]{1,9}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


class Server:
    """Routes of one session.

    Parameters
    ----------
    session : Session
    work : Work
        What is done in the background.
    """

    def __init__(self, session: Session, work: Work) -> None:
        self.session, self.work = session, work
        self.id = secrets.token_hex(8)
        self.folder = fingerprint_of(session.names)
        self.page = _page_files()
        self.any_labeling, self.label_studio = AnyLabeling(session), LabelStudio(session)

    def app(self, port: int, token: str | None) -> Guard:
        """Return the ASGI application for a server on this port."""
        image = "/api/images/{index:number}"
        routes = [
            self._route("/", self._index),
            self._route("/page/{name}", self._file),
            self._route("/api/session", self._session),
            self._route("/api/images", self._images),
            self._route(image, self._image),
            self._route(image + "/targets/{id:number}", self._target),
            self._route(image + "/tiles/{level:number}/{row:number}/{column:number}", self._tile),
            self._route(image + "/thumbnail", self._thumbnail),
            self._route(image + "/open", self._open, "POST"),
            self._route(image + "/edits", self._edits, "POST"),
            self._route("/api/undo", partial(self._undo, "undo"), "POST"),
            self._route("/api/redo", partial(self._undo, "redo"), "POST"),
            self._route("/api/settings", self._settings, "POST"),
            self._route("/api/queue", self._queue),
            self._route("/api/tasks", self._tasks),
            *(self._route(f"/api/{task}", partial(self._start, task), "POST") for task in self.work.kinds),
            self._route("/api/seconds.csv", self._seconds),
            self._route("/health", lambda request: JsonAnswer(self.any_labeling.health())),
            self._route("/v1/models", lambda request: JsonAnswer(self.any_labeling.models())),
            self._answer("/v1/predict", self.any_labeling.predict),
            self._answer("/setup", self.label_studio.setup),
            self._answer("/predict", self.label_studio.predict),
            self._answer("/webhook", self.label_studio.webhook),
            Route("/api/events", self._events, methods=["GET"]),
        ]
        errors: dict[Any, Any] = {404: _not_found, 405: _not_found, 500: _failed}
        return Guard(Starlette(routes=routes, exception_handlers=errors), port, token)

    def _route(self, path: str, handler: Handler, method: str = "GET") -> Route:
        """Return a route whose handler runs in a thread; its errors become answers of one line."""

        def handle(request: Request, body: bytes | None) -> Response:
            request.state.content = None if body is None else _json(body)
            answer: Response = handler(request)
            return answer

        async def endpoint(request: Request) -> Response:
            request.state.began = time.perf_counter()
            try:
                body = await request.body() if method == "POST" else None
                return await run_in_threadpool(handle, request, body)
            except _Bad as error:
                return problem(400, str(error))
            except (UnknownTarget, Conflict) as error:
                return problem(409, str(error))
            except LookupError as error:
                return problem(404, one_line(str(error)) or "there is no such thing")
            except InputError as error:
                return problem(422, str(error))
            except OSError as error:
                place, reason = error.filename or self.session.out, error.strerror or error
                return problem(507, f"{place}: cannot be written ({reason}); make room; nothing was changed")
            except ClientDisconnect:
                return Response(status_code=400)

        return Route(path, endpoint, methods=[method])

    def _answer(self, path: str, function: Callable[[dict[str, Any]], dict[str, Any]]) -> Route:
        """Return a route of another tool: a function from the JSON of a request to that of its answer."""
        return self._route(path, lambda request: JsonAnswer(function(request.state.content)), "POST")

    def _index(self, request: Request) -> Response:
        return self._page_file("index.html", request)

    def _file(self, request: Request) -> Response:
        return self._page_file(request.path_params["name"], request)

    def _page_file(self, name: str, request: Request) -> Response:
        if name not in self.page:
            raise LookupError("there is no such file")
        content, kind = self.page[name]
        return _cached(request, fingerprint_of(content.hex()), lambda: (content, {}), kind)

    def _session(self, request: Request) -> Response:
        session = self.session
        choices = {"polarity": list(POLARITIES), "outline": list(OUTLINES)}
        return JsonAnswer(
            {
                "session": self.id,
                "folder": self.folder,
                "images": str(session.images),
                "out": str(session.out),
                "version": package_version(),
                "count": len(session.names),
                "revision": session.state.revision,
                "tile": TILE,
                "categories": list(CATEGORIES),
                "pause_limit_s": PAUSE_LIMIT,
                "settings": session.choices(),
                "choices": choices if "polarity" in session.choices() else {},
                "suggest": self.work.suggest,
                "formats": self.work.formats,
                "limits": {"body": MOST_BODY, "targets": MOST_TARGETS},
            }
        )

    def _images(self, request: Request) -> Response:
        session = self.session
        with session.lock:
            states = [session.state.image(name) for name in session.names]
            checks = [session.checked(name) for name in session.names]
            revision = session.state.revision
        return JsonAnswer(
            {
                "revision": revision,
                "names": session.names,
                "targets": [len(state.targets) for state in states],
                "corrected": [state.corrected for state in states],
                "done": [int(state.done) for state in states],
                "urgency": [None if one is None else one.urgency for one in checks],
                "flagged": [0 if one is None else one.flagged for one in checks],
                "problems": {
                    str(session.places[name]): why for name, why in sorted(session.frames.problems.items())
                },
            }
        )

    def _name(self, request: Request) -> str:
        return self.session.name_of(request.path_params["index"])

    def _image(self, request: Request) -> Response:
        session, name = self.session, self._name(request)
        frame, state, labels = session.label(name)
        low, high = frame.range
        return JsonAnswer(
            {
                "index": session.places[name],
                "name": name,
                "width": frame.shape[1],
                "height": frame.shape[0],
                "channels": 1 if frame.pixels.ndim == 2 else 3,
                "dtype": str(frame.pixels.dtype),
                "min": low,
                "max": high,
                "percentiles": {f"{share:g}": value for share, value in frame.percentiles.items()},
                "levels": frame.levels,
                "etag": frame.etag,
                "revision": session.state.revision,
                "done": state.done,
                "targets": session.targets_json(name, state, labels),
                **self.work.suggested(name, state, labels),
            }
        )

    def _target(self, request: Request) -> Response:
        return JsonAnswer(self.session.target(self._name(request), request.path_params["id"]))

    def _tile(self, request: Request) -> Response:
        session, name, place = self.session, self._name(request), request.path_params
        pool = request.query_params.get("pool", "max")
        if pool not in POOLS:
            raise _Bad(f"pool: use one of {', '.join(POOLS)}")
        level, row, column = place["level"], place["row"], place["column"]
        etag = f"{session.frames.etag(name)}-{level}-{row}-{column}-{pool}"

        def content() -> tuple[bytes, dict[str, str]]:
            tile = session.frames.tile(name, level, row, column, pool)
            raw = np.ascontiguousarray(tile, tile.dtype.newbyteorder("<")).tobytes()
            return raw, {"X-Width": str(tile.shape[1]), "X-Height": str(tile.shape[0])}

        return _cached(request, etag, content, "application/octet-stream")

    def _thumbnail(self, request: Request) -> Response:
        name, frames = self._name(request), self.session.frames
        return _cached(request, frames.etag(name), lambda: (frames.thumbnail(name), {}), "image/png")

    def _open(self, request: Request) -> Response:
        name = self._name(request)
        _take(request, client=True)
        self.session.open(name, request.state.content["client"])
        self.work.look_at(name)
        return JsonAnswer({})

    def _edits(self, request: Request) -> Response:
        name = self._name(request)
        edits = _take(request, client=True, request=False, edits=True)["edits"]
        if not isinstance(edits, list) or not 0 < len(edits) <= _MOST_EDITS:
            raise _Bad(f"edits: give a list of 1 to {_MOST_EDITS}")
        content = request.state.content
        return self._changed(
            request, self.session.edit(name, content["client"], edits, content.get("request", ""))
        )

    def _undo(self, way: str, request: Request) -> Response:
        content = _take(request, client=True, request=False)
        return self._changed(request, self.session.undo(content["client"], way, content.get("request", "")))

    def _changed(self, request: Request, answer: dict[str, Any]) -> Response:
        answer |= self.work.changed(self.session.names[answer["index"]])
        answer["ms"] = round((time.perf_counter() - request.state.began) * 1e3, 2)
        return JsonAnswer(answer)

    def _settings(self, request: Request) -> Response:
        content = _take(request, client=True, **dict.fromkeys(CHOICES, False))
        choices = {key: value for key, value in content.items() if key in CHOICES}
        if not all(isinstance(value, str) for value in choices.values()) or not choices:
            raise _Bad(f"settings: give {' or '.join(CHOICES)} as a text")
        self.session.change_settings(**choices)
        self.work.relabel()
        return JsonAnswer({"revision": self.session.state.revision, "settings": self.session.choices()})

    def _queue(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "200")
        if not re.fullmatch(r"[0-9]{1,5}", limit):
            raise _Bad("limit: give a whole number")
        return JsonAnswer(self.work.queue(int(limit)))

    def _tasks(self, request: Request) -> Response:
        return JsonAnswer(self.work.tasks_json())

    def _start(self, task: str, request: Request) -> Response:
        formats = _take(request, client=True, formats=False).get("formats", [])
        if not (isinstance(formats, list) and all(one in self.work.formats for one in formats)):
            raise _Bad(f"formats: give a list of {', '.join(self.work.formats)}")
        return JsonAnswer({"task": self.work.start(task, formats)}, 202)

    def _seconds(self, request: Request) -> Response:
        with self.session.lock:
            rows = list(self.session.seconds.rows(self.session.state.images))
        lines = [",".join(COLUMNS), *(",".join("" if c is None else _cell(c) for c in row) for row in rows)]
        text = "".join(f"{line}\n" for line in lines)
        return Response(text.encode(errors="surrogateescape"), media_type="text/csv; charset=utf-8")

    async def _events(self, request: Request) -> Response:
        queue: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue(_WAITING_EVENTS)
        loop = asyncio.get_running_loop()

        def put(item: tuple[str, Any]) -> None:
            if queue.full():
                self.session.listeners.remove(listen)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(item)

        def listen(event: str, data: dict[str, Any]) -> None:
            if listen in self.session.listeners and not loop.is_closed():
                loop.call_soon_threadsafe(put, (event, data))

        async def stream() -> AsyncIterator[str]:
            self.session.listeners.append(listen)
            try:
                yield ": begin\n\n"
                while True:
                    try:
                        item = await asyncio.wait_for(queue.get(), _BEAT)
                    except TimeoutError:
                        yield ": beat\n\n"
                        continue
                    if item is None:
                        return
                    yield f"event: {item[0]}\ndata: {json.dumps(item[1])}\n\n"
            finally:
                if listen in self.session.listeners:
                    self.session.listeners.remove(listen)

        return StreamingResponse(
            stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


def _page_files() -> dict[str, tuple[bytes, str]]:
    """Return content and type of the page's files, by name."""
    folder = Path(str(files("mclc_gpu.annotate"))) / "page"
    found = sorted(path for path in folder.iterdir() if path.suffix in _TYPES and path.is_file())
    return {path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in found}


def _json(body: bytes) -> dict[str, Any]:
    """Return the object in the body of a request, which may be large only by the text of an image."""
    if len(body) > MOST_BODY:
        image = _IMAGE.search(body)
        if len(body) - (0 if image is None else len(image[0])) > MOST_BODY:
            raise _Bad(f"the request has more than {MOST_BODY} bytes besides its image; send less")

    def no_number(text: str) -> float:
        raise _Bad(f"the request holds {text}, which is no number of JSON")

    try:
        content = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise _Bad(f"the request is no JSON ({one_line(str(error))[:80]})") from error
    if not isinstance(content, dict):
        raise _Bad("the request is no JSON object")
    return content


def _take(request: Request, /, **fields: bool) -> dict[str, Any]:
    """Return the content of a request that has these fields; a True one is needed."""
    content: dict[str, Any] = request.state.content
    needed = {name for name, must in fields.items() if must}
    if not needed <= content.keys() <= fields.keys():
        shown = ", ".join(name if name in needed else f"{name}?" for name in fields)
        raise _Bad(f"the request takes {shown}")
    for field in content.keys() & {"client", "request"}:
        value = content[field]
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise _Bad(f"{field}: give 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return content


def _cached(
    request: Request, etag: str, content: Callable[[], tuple[bytes, dict[str, str]]], kind: str
) -> Response:
    """Return content, or that it did not change since the browser asked last."""
    headers = {"ETag": f'"{etag}"', **_PRIVATE}
    if request.headers.get("if-none-match") == f'"{etag}"':
        return Response(status_code=304, headers=headers)
    body, more = content()
    return Response(body, headers={**headers, **more}, media_type=kind)


def _cell(value: object) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


async def _not_found(request: Request, error: Exception) -> Response:
    return problem(404, "there is no such address")


async def _failed(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("%s failed", request.url.path, exc_info=error)
    return problem(500, f"the server failed ({type(error).__name__}); nothing was changed, see its output")
