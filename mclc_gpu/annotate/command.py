"""Run the server of `annotate`."""

import asyncio
import secrets
import signal
import socket
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from mclc_gpu.annotate.config import LOOPBACK, AnnotateOptions
from mclc_gpu.annotate.jobs import jobs_of
from mclc_gpu.annotate.session import Session
from mclc_gpu.annotate.suggest import detector_of
from mclc_gpu.annotate.work import Work
from mclc_gpu.data.exports import EXPORTS
from mclc_gpu.data.names import unread_files
from mclc_gpu.errors import InputError, Skipped
from mclc_gpu.labels.folder import LAYOUT
from mclc_gpu.runs import keep_apart, locked

KIND = "annotate"
_MOST_CONNECTIONS = 256


def serve(options: AnnotateOptions, started: Callable[[Session, list[Skipped], str], None]) -> None:
    """Serve the page until an interrupt.

    Parameters
    ----------
    options : AnnotateOptions
    started : callable
        Called once the server listens, with the session, what was left out of points and journal, and the
        page's address.

    Raises
    ------
    InputError
        Images, points, output folder or port cannot be used, or a package is missing.
    """
    try:
        import uvicorn

        from mclc_gpu.annotate.protocol import TimedProtocol
        from mclc_gpu.annotate.server import Server
    except ImportError as error:
        raise InputError("annotate needs Starlette and uvicorn: pip install 'mclc-gpu[annotate]'") from error
    keep_apart("--out", LAYOUT.places(options.out), (options.images, options.points))
    with listening(options.host, options.port) as listener, session_of(options) as (session, skipped):
        port = listener.getsockname()[1]
        detector = None
        if options.suggest is not None:
            detector = detector_of(options.suggest, options.images, session.names)
        shown = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{shown}:{port}/"
        work = Work(session, options.suggest, detector, jobs_of(session, address), list(EXPORTS))
        token = None if options.host == LOOPBACK else secrets.token_urlsafe(24)
        config = uvicorn.Config(
            Server(session, work).app(port, token),
            http=TimedProtocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
        work.begin()
        address += f"?token={token}" if token else ""
        started(session, skipped, address)
        if options.open:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt), closing(work), _ended_by(signal.SIGTERM):
            asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


@contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the process as an interrupt does: locks are released, files closed."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def session_of(options: AnnotateOptions) -> Iterator[tuple[Session, list[Skipped]]]:
    """Open the session of a folder, locked against other servers, and take the points to begin with."""
    with (
        locked(options.out, KIND),
        closing(Session(options.images, options.out, options.config, options.seed)) as session,
    ):
        skipped = [*session.skipped, *unread_files(options.images)]
        if options.points is not None:
            skipped += session.import_points(options.points, options.supervision)
        yield session, skipped


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address. Raises InputError where that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({reason}); choose another --port, 0 for a "
            "free one"
        ) from error
    with listener:
        yield listener
