"""uvicorn around the application, and how the two stop together."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket

import uvicorn

from specstream.errors import SpecStreamError
from specstream.serving.app import Server
from specstream.serving.scheduler import LAST_PASS_SECONDS

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
        self._scheduler, self._grace = server.scheduler, server.config.grace_seconds
        super().__init__(
            uvicorn.Config(
                server.app,
                host=server.config.host,
                port=server.config.port,
                log_config=None,  # its messages go where ours go
                log_level="warning",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=math.ceil(self._grace + LAST_PASS_SECONDS) + FAREWELL_SECONDS,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See the class; a second signal ends it without waiting, as uvicorn does."""
        stopping = asyncio.ensure_future(asyncio.to_thread(self._scheduler.stop, self._grace))
        await super().shutdown(sockets)
        if self.force_exit:
            await asyncio.to_thread(self._scheduler.stop, 0)
        await stopping


def listen(server: Server) -> None:
    """Serve until a signal ends it.

    Raises:
        SpecStreamError: it did not come to that.
    """
    web = Web(server)
    with contextlib.suppress(KeyboardInterrupt):  # the signal that ended it, raised again
        web.run()
    if not web.started:
        raise SpecStreamError("the server did not start; what it says above is why")
