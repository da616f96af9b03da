"""What stands before the routes: an id and a line of the log for each request, who may ask, and how much."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("specstream.serving")

BODY_SECONDS = 60.0
"""How long a body may take to arrive."""


PROBES = ("/health", "/ready", "/metrics")
"""Asked by machines again and again, also while the server is full."""

_ID = re.compile(rb"[A-Za-z0-9._:/=+-]{1,128}")
_LONGEST_PATH, _LONGEST_HOST = 200, 60


class JsonResponse(Response):
    """JSON in ASCII: what clients sent may hold what UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refusal(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JsonResponse({"error": error}, status_code=status, headers=headers)


class Guard:
    """Checks the key and reads the body, up to its limit, before anything else is done; answers what failed behind it.

    Args:
        app: what is behind it.
        api_key: what clients of ``/v1`` must send; None for nothing.
        max_body_bytes: of a request.
        refused: told the status of every refusal.
        failed: makes an answer of an error. Raised further, it would have uvicorn drop the connection, and with it the
            client's next request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        max_body_bytes: int,
        refused: Callable[[int], None],
        failed: Callable[[BaseException], Response],
    ) -> None:
        self._app, self._limit, self._refused, self._failed = app, max_body_bytes, refused, failed
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._key is not None and scope["path"].startswith("/v1") and not self._knows(scope):
            message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            wanted = {"www-authenticate": "Bearer"}
            if any(name == b"expect" for name, _ in scope["headers"]):  # then its body does not come
                wanted["connection"] = "close"
            answer = refusal(401, message, kind="authentication_error", code="invalid_api_key", headers=wanted)
            await self._refuse(401, answer, scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), BODY_SECONDS)
        except ClientDisconnect:
            return
        except (TimeoutError, asyncio.TimeoutError):
            message, closing = f"the body did not arrive within {BODY_SECONDS:g} s", {"connection": "close"}
            await self._refuse(408, refusal(408, message, code="timeout", headers=closing), scope, receive, send)
            return
        if body is None:
            message = f"the body has more than {self._limit} bytes, which is the limit; send less"
            await self._refuse(413, refusal(413, message, code="body_too_large"), scope, receive, send)
            return
        await self._pass_on(body, scope, receive, send)

    async def _pass_on(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it answered; an error is answered here, or where an answer has begun, ends it."""
        read = begun = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, replay, tell)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a library that panics in Rust raises no Exception
            answer = self._failed(error)
            if not begun:
                await answer(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        assert self._key is not None
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = sent.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, None if it is too long.

        Raises:
            ClientDisconnect: it will not come.
        """
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self._limit:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _refuse(self, status: int, answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
        self._refused(status)
        await answer(scope, receive, send)


class Access:
    """Takes the client's ``X-Request-Id``, or makes one, sends it back and logs it; says which replica answers.

    What else the line says is what the application left in the request's state, as ``note``.

    Args:
        app: what answers.
        replica: its name, where there are several.
    """

    def __init__(self, app: ASGIApp, replica: str | None = None) -> None:
        self._app = app
        self._own = [] if replica is None else [(b"x-specstream-replica", replica.encode())]

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
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name), *self._own]
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
