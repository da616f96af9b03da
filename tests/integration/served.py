"""A real server on a free port of this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from specstream.engine.engine import SpeculativeEngine
from specstream.serving.app import Server
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.gateway import Gateway
from specstream.serving.run import Loaded
from specstream.serving.scheduler import Scheduler
from specstream.serving.web import Web
from tests.tiny import tiny_model, tiny_tokenizer

NAME = "tiny"
PATIENCE = 60.0


@dataclass
class Served:
    """A server and a client of it."""

    server: Server
    engine: SpeculativeEngine
    web: Web
    url: str
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        settings = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE, **options}
        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", **settings))
        return self.clients[-1]

    @property
    def gateway(self) -> Gateway:
        """That of the first model."""
        return self.server.models.named(None).gateway

    @property
    def scheduler(self) -> Scheduler:
        """Likewise."""
        return self.server.models.named(None).scheduler

    def idle(self) -> bool:
        return all(each.scheduler.running == 0 == each.scheduler.waiting for each in self.server.models)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true before patience ends."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def tiny_engine(**settings: Any) -> SpeculativeEngine:
    """With a draft that is right now and then, unless there shall be none."""
    draft = None if settings.get("drafter") == "none" else tiny_model(noise=0.02)
    return SpeculativeEngine(
        tiny_model(), tiny_tokenizer(), draft, **{"drafter": "mixed", "adaptive": False, "gamma": 3, **settings}
    )


@contextmanager
def serving(
    engine: SpeculativeEngine | None = None, *, slow: float = 0.0, loaded: Sequence[Loaded] = (), **settings: Any
) -> Iterator[Served]:
    """A server of one engine, or of what is loaded, that runs inside; ``slow`` adds seconds to every pass."""
    engine = loaded[0].engine if loaded else engine or tiny_engine()
    forward = engine.target.forward
    if slow:

        def slowly(*arguments: Any, **named: Any) -> Any:
            time.sleep(slow)
            return forward(*arguments, **named)

        engine.target.prepare()
        engine.target.forward = slowly  # type: ignore[method-assign]
    config = DeploymentConfig(**{"model_name": NAME, "port": 0, "grace_seconds": PATIENCE, **settings})
    server = Server(loaded or [Loaded(config=config, engine=engine, root=NAME)], config)
    web = Web(server)
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        assert eventually(lambda: web.started)
        port = web.servers[0].sockets[0].getsockname()[1]
        running = Served(server, engine, web, f"http://127.0.0.1:{port}")
        yield running
    finally:
        web.should_exit = True
        thread.join(PATIENCE)
        engine.target.forward = forward  # type: ignore[method-assign]
    for client in running.clients:
        client.close()
    assert not thread.is_alive()
