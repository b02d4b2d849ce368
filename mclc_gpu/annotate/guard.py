"""Protection of the server: who may ask, from which pages, how much and how often."""

import asyncio
import base64
import hmac
import json
import math
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY = 4 << 20  # bytes
_IMAGE_BODIES = {"/v1/predict": 256 << 20}  # bytes of requests that hold an image
_BODY_SECONDS = 10.0  # in which a body must arrive
_PER_SECOND, _BURST = 400.0, 2000.0  # requests of one address
_ADDRESSES = 1024  # that are remembered
COOKIE = "mclc-gpu-token"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class JsonAnswer(JSONResponse):
    """Answer in JSON; bytes of file names that are no text become question marks."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="replace")


def problem(status: int, text: str, **headers: str) -> JsonAnswer:
    """Return the answer to a request that cannot be met."""
    return JsonAnswer({"error": text}, status, headers)


class Guard:
    """ASGI middleware that lets only good requests through.

    - Host must be an address of this server, so that no name of a foreign site leads here (DNS rebinding);
      with a token it may be any, since a browser sends the cookie to the host that set it only.
    - Origin, where a browser sends it, must be this server's own page (forged requests of other sites).
    - With a token each request must carry it: as a cookie, as ``Authorization: Bearer``, as the password of
      ``Authorization: Basic`` (Label Studio), or in the header ``Token`` (X-AnyLabeling).
    - Bodies have a limit of size and time, and addresses one of requests.

    Parameters
    ----------
    app : ASGI application
    port : int
        Port of the server.
    token : str or None
        None: no token is needed.
    """

    def __init__(self, app: ASGIApp, port: int, token: str | None) -> None:
        self.app, self.token = app, token
        self._hosts = {f"{host}:{port}" for host in _LOOPBACK} | (set(_LOOPBACK) if port == 80 else set())
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        try:
            body = await _body(scope, receive)
        except _TooLarge:
            text = f"the request has more than {_most(scope)} bytes; send less"
            await problem(413, text, Connection="close")(scope, receive, send)
            return
        except TimeoutError:
            text = "the request did not arrive in time; send it again"
            await problem(408, text, Connection="close")(scope, receive, send)
            return

        async def whole() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            sent, body = body, None
            return {"type": "http.request", "body": sent, "more_body": False}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, whole, with_headers)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is None and host.lower() not in self._hosts:
            return problem(403, "this host name is not served; open http://127.0.0.1 with the port printed")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return problem(403, "requests of other sites are refused; use this server's own page")
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/":
            return problem(403, "requests of other sites are refused; use this server's own page")
        wait = self._wait(scope)
        if wait:
            return problem(429, "too many requests; wait a second", **{"Retry-After": str(math.ceil(wait))})
        if self.token is None:
            return None
        return self._without_token(scope, headers, self.token)

    def _without_token(self, scope: Scope, headers: Headers, token: str) -> Response | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] == "GET" and given:
            if not _equal(given, token):
                return problem(401, "wrong token; open the address that the server printed")
            response = RedirectResponse("/", 303)
            # Lax: a link from report.html, which is another site, brings the cookie.
            response.set_cookie(COOKIE, token, httponly=True, samesite="lax")
            return response
        kind, _, content = headers.get("authorization", "").partition(" ")
        sent = [content.strip()] if kind.lower() == "bearer" else []
        sent += [_password(content)] if kind.lower() == "basic" else []
        sent += [_cookie(headers.get("cookie", "")), headers.get("token", "")]
        matches = [_equal(one, token) for one in sent]  # all are compared, whichever fits
        if any(matches):
            return None
        return problem(401, "no token; open the address that the server printed")

    def _wait(self, scope: Scope) -> float:
        """Count a request; return the seconds to wait if its address made too many."""
        address = (scope.get("client") or ("",))[0]
        now = time.monotonic()
        left, before = self._budgets.pop(address, (_BURST, now))
        left = min(_BURST, left + (now - before) * _PER_SECOND)
        self._budgets[address] = (max(left - 1, 0.0), now)
        while len(self._budgets) > _ADDRESSES:
            self._budgets.popitem(last=False)
        return (1 - left) / _PER_SECOND if left < 1 else 0.0


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _password(content: str) -> str:
    try:
        return base64.b64decode(content, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _cookie(text: str) -> str:
    """Return the token in a Cookie header, whatever other servers of this host have set."""
    pairs = (one.strip().partition("=") for one in text.split(";"))
    return next((value.strip('"') for name, _, value in pairs if name == COOKIE), "")


def _most(scope: Scope) -> int:
    return _IMAGE_BODIES.get(scope["path"], MOST_BODY)


class _TooLarge(Exception):
    pass


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the body of a request; None for one that has none.

    Raises
    ------
    _TooLarge, TimeoutError
    """
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    if length == "0" and "transfer-encoding" not in headers:
        return None
    if not length.isdigit() or int(length) > _most(scope):
        raise _TooLarge
    parts, size = [], 0
    async with asyncio.timeout(_BODY_SECONDS):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > _most(scope):
                raise _TooLarge
            if not message.get("more_body", False):
                return b"".join(parts)
