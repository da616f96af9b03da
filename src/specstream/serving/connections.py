"""Connections: how many there may be, and how long each may take to ask and to read its answer."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from specstream.serving.deployment import SPARE_CONNECTIONS
from specstream.serving.middleware import PROBES, refusal

_log = logging.getLogger("specstream.serving")

HEAD_SECONDS = 10.0
"""How long a request's head may take to arrive, from the connection or from its first byte on."""

STUCK_SECONDS = 60.0
"""How long a client may read nothing of an answer that waits for it."""

QUIET_SECONDS = 60.0
"""Between two lines of the log about the same thing, which may happen thousands of times a second."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Limits:
    """What connections share.

    Args:
        most: connections.
        refused: told the status of every refusal.
    """

    def __init__(self, most: int, refused: Callable[[int], None]) -> None:
        self.most, self.refused = most, refused
        self._quiet_until: dict[str, float] = {}

    def warn(self, message: str) -> None:
        """Log it, unless the same was logged lately."""
        now = time.monotonic()
        if self._quiet_until.get(message, 0.0) <= now:
            self._quiet_until[message] = now + QUIET_SECONDS
            _log.warning("%s", message)

    def loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's handler of errors: asyncio itself logs a traceback for every connection it cannot accept."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            self.warn(f"a connection cannot be accepted ({error.strerror}); raise `ulimit -n`")
        else:
            loop.default_exception_handler(context)

    def turn_away(self, app: ASGIApp) -> ASGIApp:
        """What a connection beyond the limit gets: 503, but for those who ask whether the server is well."""

        async def full(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] in PROBES:
                await app(scope, receive, send)
                return
            self.refused(503)
            message = f"the server has {self.most} connections, which is the limit; try again in 1 s"
            headers = {"connection": "close", "retry-after": "1"}
            answer = refusal(503, message, kind="server_error", code="too_many_connections", headers=headers)
            await answer(scope, receive, send)

        return full


class Connection(H11Protocol):
    """One connection of a server.

    uvicorn's own limit (``limit_concurrency``) counts connections and refuses requests, of old connections too: those
    that send nothing stay, until there are no more files to be opened.
    """

    limits: ClassVar[Limits]

    _head: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        beyond = len(self.connections) - self.limits.most
        if beyond > 0:
            self.limits.warn(f"max_connections is {self.limits.most}, and there are more; those are refused")
            self.app = self.limits.turn_away(self.app)
        if beyond > SPARE_CONNECTIONS:
            self.limits.refused(503)
            self.connections.discard(self)
            transport.abort()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """In our words; uvicorn's own fail where the body of a request that is answered already is no HTTP."""
        _log.info("%s sent what is not HTTP", self.client[0] if self.client else "-")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.limits.refused(400)
            words = "the request is not valid HTTP; send HTTP/1.1 to http://, as https:// is not spoken here"
            answer = refusal(400, words, code="invalid_http", headers={"connection": "close"})
            head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _watch_head(self) -> None:
        """Time what arrives between two requests, the rest of a refused body included."""
        between = self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]
        if between and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not between and self._head is not None:
            self._head.cancel()
            self._head = None


def connection_type(limits: Limits) -> type[Connection]:
    """Connections of one server, which makes them itself."""
    return type("ServerConnection", (Connection,), {"limits": limits})
