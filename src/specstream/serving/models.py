"""The models of one server, by their names: each with a gateway, a scheduler and counters of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from specstream.serving.faults import FieldError
from specstream.serving.gateway import Gateway
from specstream.serving.metrics import ServerMetrics
from specstream.serving.run import Loaded
from specstream.serving.scheduler import Scheduler, Turns


class UnknownModelError(FieldError):
    """A model that is not served here."""


class Served:
    """One model.

    Args:
        loaded: the model.
        meters: of the server.
        turns: those of its models, where there are several.
    """

    def __init__(self, loaded: Loaded, meters: ServerMetrics, turns: Turns | None) -> None:
        config, engine = loaded.config, loaded.engine
        self.name, self._root, self._parent = config.model_name, loaded.root, loaded.parent
        self.gateway = Gateway(engine, config)
        self.scheduler = Scheduler(
            engine.parts,
            max_rows=config.max_rows,
            max_queue=config.max_queue,
            chunk=config.prefill_chunk_tokens,
            finished=partial(meters.finished, self.name),
            turns=turns,
        )
        meters.watch(self.name, self.scheduler)
        self.lossless = engine.config.acceptance_threshold is None
        self.left_out = engine.parts.left_out

    def card(self, created: int) -> dict[str, Any]:
        """What is said of it; of an adapter its base too, as vLLM does."""
        return {
            "id": self.name,
            "object": "model",
            "created": created,
            "owned_by": "specstream",
            "root": self._root,
            "parent": self._parent,
            "max_model_len": self.gateway.context,
        }


class Models:
    """All of them; the first answers requests that name none.

    Args:
        loaded: the models, of different names.
        meters: of the server.
    """

    def __init__(self, loaded: Sequence[Loaded], meters: ServerMetrics) -> None:
        self._turns = Turns() if len(loaded) > 1 else None
        self._served = {each.config.model_name: Served(each, meters, self._turns) for each in loaded}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def named(self, name: str | None) -> Served:
        """The model of that name.

        Raises:
            UnknownModelError: there is none.
        """
        if name is None:
            return next(iter(self))
        if name not in self._served:
            known = " or ".join(map(repr, self._served))
            raise UnknownModelError(f"the model {name[:100]!r} is not served here; give {known}", "model")
        return self._served[name]

    @property
    def dead(self) -> list[str]:
        """The names of those whose schedulers have ended."""
        return [each.name for each in self if not each.scheduler.alive]

    @property
    def ready(self) -> bool:
        """Whether all take requests."""
        return all(each.scheduler.ready for each in self)

    def start(self) -> None:
        """Begin to answer."""
        for each in self:
            each.scheduler.start()

    async def stop(self, grace: float) -> None:
        """Stop all of them at the same time, as ``Scheduler.stop`` does."""
        await asyncio.gather(*(asyncio.to_thread(each.scheduler.stop, grace) for each in self))
        if self._turns is not None:
            self._turns.close()
