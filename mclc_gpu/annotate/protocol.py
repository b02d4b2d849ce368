"""HTTP protocol of the server, which does not wait for slow requests."""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_SECONDS = 10.0  # in which the head of a connection's next request must arrive


class TimedProtocol(H11Protocol):
    """Sends what there is without delay, and closes connections on which no request was begun in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        # asyncio does so only for sockets that were made with a protocol number.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop.call_later(_HEAD_SECONDS, self._end_if_silent, None)

    def on_response_complete(self) -> None:
        """Wait for the next request: the timer of the server stops at its first byte."""
        answered = self.cycle
        super().on_response_complete()
        self.loop.call_later(_HEAD_SECONDS, self._end_if_silent, answered)

    def _end_if_silent(self, answered: Any) -> None:
        """Close the connection if no request was begun after this one."""
        if self.cycle is answered and not self.transport.is_closing():
            self.transport.close()
