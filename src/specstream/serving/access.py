"""What stands before everything else: an id for each request, and its line in the log."""

from __future__ import annotations

import logging
import re
import secrets
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specstream.serving.middleware import PROBES

_log = logging.getLogger("specstream.serving")

_ID = re.compile(rb"[A-Za-z0-9._:/=+-]{1,128}")
_LONGEST_PATH, _LONGEST_HOST = 200, 60


class Access:
    """Takes the client's ``X-Request-Id``, or makes one, sends it back and logs it.

    What else the line says is what the application left in the request's state, as ``note``.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name, begun = _id(scope), time.monotonic()
        state = scope.setdefault("state", {})
        status, whole = 0, False

        async def tell(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            elif not message.get("more_body", False):
                whole = True
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            note = state.get("note", "") if whole else "the client left"
            _say(scope, name.decode(), status, time.monotonic() - begun, note)


def _id(scope: Scope) -> bytes:
    sent: bytes = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
    return sent if _ID.fullmatch(sent) else secrets.token_hex(8).encode()


def _say(scope: Scope, name: str, status: int, seconds: float, note: str) -> None:
    # As they were sent, they could hold line breaks and spaces; behind a proxy the host is what a header says.
    path, host = quote(scope["path"])[:_LONGEST_PATH], (scope.get("client") or "-")[0]
    host = quote(host, safe=":%")[:_LONGEST_HOST]
    level = logging.DEBUG if scope["path"] in PROBES and status == 200 else logging.INFO
    line = f"{host} {scope['method']} {path} {status or '-'} {seconds:.2f} s {name} {note}"
    _log.log(level, "%s", line.rstrip())
