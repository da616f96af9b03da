"""From a page to a server that listens."""

from __future__ import annotations

import socket
from threading import Event
from typing import Any

from specstream.environment import address_remedy, require
from specstream.errors import UsageError


def free_port(host: str, port: int) -> int:
    """The port itself, or one that is free in place of 0.

    Raises:
        UsageError: somebody listens there, or there is no such host here.
    """
    if not host.strip():  # to sockets it is every address of this machine
        raise UsageError(f"--host is {host!r}; give 127.0.0.1, or 0.0.0.0 for every machine")
    if address_remedy(host).startswith("give host="):
        raise UsageError(f"host is {host!r}, which has no address; {address_remedy(host)}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"cannot listen on {host}:{port} ({reason}); give another --host or --port") from None
        return int(probe.getsockname()[1])


def open_page(page: Any, host: str, port: int) -> str:
    """Serve a page from another thread.

    Returns:
        Its address. ``page.close()`` ends it.
    """
    from specstream.demo.page import style  # with which Gradio and torch are imported: an address is checked before

    gradio = require("gradio", "demo", "specstream demo")
    _, address, _ = page.queue(max_size=16).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        ssr_mode=False,
        footer_links=["gradio"],
        css=style(),
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return str(address)


def listen(page: Any, host: str, port: int) -> None:
    """Serve until a signal ends it."""
    try:
        open_page(page, host, port)
        Event().wait()
    finally:
        page.close()
