"""uvicorn around the application: where it listens, and how the two stop together."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import math
import os
import shlex
import socket
from collections.abc import Iterator, Sequence

import uvicorn

from specstream.environment import address_remedy
from specstream.errors import SpecStreamError, UsageError
from specstream.files.atomic import why_unread
from specstream.serving.app import Server
from specstream.serving.connections import Limits, connection_type
from specstream.serving.deployment import DeploymentConfig, backlog, most_connections
from specstream.serving.run import Loaded
from specstream.serving.scheduler import LAST_PASS_SECONDS

_log = logging.getLogger("specstream.serving")

KEEP_ALIVE_SECONDS = 30
"""Of a connection without a request. Clients that use one again let go of it earlier (httpx, and so OpenAI's, after
5 s): one that is closed at the same moment takes the next request with it."""

FAREWELL_SECONDS = 5
"""For telling clients what became of their answers."""


class Web(uvicorn.Server):
    """Listens for a server.

    Told to stop, it closes the door, and the scheduler takes nothing more and finishes what it can in the time of its
    grace; whoever is not served by then hears so. Connections that are still open after that are cut.

    Args:
        server: what answers.
    """

    def __init__(self, server: Server) -> None:
        self._models, self._grace, self._config = server.models, server.config.grace_seconds, server.config
        self._limits = Limits(most_connections(server.config), server.meters.refused)
        super().__init__(
            uvicorn.Config(
                server.app,
                host=server.config.host,
                port=server.config.port,
                http=connection_type(self._limits),
                backlog=backlog(),
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                log_config=None,  # its messages go where ours go
                log_level="error",  # its warnings are of what clients send, and advise to install packages
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=math.ceil(self._grace + LAST_PASS_SECONDS) + FAREWELL_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, and says so once it listens."""
        asyncio.get_running_loop().set_exception_handler(self._limits.loop_failed)
        await super().startup(sockets)
        urls = [_url(listener.getsockname()) + "/v1" for server in self.servers for listener in server.sockets]
        for url in urls:
            _log.info("serving %s on %s", ", ".join(each.name for each in self._models), url)
        for line in _to_try(urls[0], self._config) if urls else ():
            _log.info(line)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See the class; a second signal ends it without waiting, as uvicorn does."""
        stopping = asyncio.ensure_future(self._models.stop(self._grace))
        await super().shutdown(sockets)
        if self.force_exit:
            await self._models.stop(0)
            await self.lifespan.shutdown()  # uvicorn leaves it out, and its task would end in a traceback
        await stopping


@contextlib.contextmanager
def bound(config: DeploymentConfig) -> Iterator[list[socket.socket]]:
    """Sockets at every address of the host: they have its port, and do not listen yet.

    Raises:
        UsageError: no address, or a port that is not free.
    """
    try:
        places = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"host is {config.host!r}, which has no address ({why_unread(error)}); {address_remedy(config.host)}"
        ) from None
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(places):
            try:
                new = stack.enter_context(socket.socket(family, kind, protocol))
            except OSError:  # a name may have addresses of a family that this machine does not have
                continue
            if os.name == "posix":
                new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = sockets[0].getsockname()[1] if sockets else config.port  # a free one, taken for all of them
            try:
                new.bind((address[0], port, *address[2:]))
            except OSError as error:
                raise _not_free(config, error) from None
            sockets.append(new)
        yield sockets


def listen(loaded: Sequence[Loaded], config: DeploymentConfig, sockets: list[socket.socket]) -> None:
    """Serve until a signal ends it; what runs then is finished first.

    Raises:
        UsageError: another server has begun to listen there meanwhile.
        SpecStreamError: it did not come to that.
    """
    web = Web(Server(loaded, config))
    try:
        with contextlib.suppress(KeyboardInterrupt):  # the signal that ended it, raised again
            web.run(sockets)
    except OSError as error:
        if web.started:
            raise
        raise _not_free(config, error) from None
    if not web.started:
        raise SpecStreamError("the server did not start; what it says above is why")


def _not_free(config: DeploymentConfig, error: OSError) -> UsageError:
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"host is {config.host!r}, no address of this machine; give 127.0.0.1, or 0.0.0.0 for all")
    return UsageError(f"port is {config.port} on {config.host}, which cannot be taken ({error.strerror}); give another")


def _to_try(url: str, config: DeploymentConfig) -> Iterator[str]:
    """Lines for a shell, the key of clients not among them."""
    key = "none" if config.api_key is None else '"$SPECSTREAM_API_KEY"'
    header = "" if config.api_key is None else f' -H "Authorization: Bearer "{key}'
    question = json.dumps({"messages": [{"role": "user", "content": "Name three rivers."}]})
    yield f"try: curl {url}/chat/completions{header} -H 'Content-Type: application/json' -d '{question}'"
    yield f"for clients: export OPENAI_BASE_URL={url} OPENAI_API_KEY={key}"
    call = f'openai.OpenAI().completions.create(model="{config.model_name}", prompt="Rivers:")'
    yield f"then: python -c {shlex.quote(f'import openai; print({call}.choices[0].text)')}"


def _url(address: tuple[str, int]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"
