"""Loading an engine for a command: settings first, then models, without the noise of libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specstream.reporting import errors_only


def load_engine(model: str, draft: str | None, settings: dict[str, Any], *, alone: bool = False) -> Any:
    """A ``SpeculativeEngine``. Settings are validated before anything is fetched or loaded.

    Args:
        model: its name.
        draft: its draft's, or None.
        settings: of the engine.
        alone: nothing else will be made of its model, so that weights with a copy are given back.
    """
    from specstream.config import engine_config
    from specstream.models.hub.catalog import check

    engine_config(settings)  # type: ignore[arg-type]
    check(model)  # before transformers is imported, which takes longer
    with quiet():
        from specstream.engine.engine import SpeculativeEngine

        engine = SpeculativeEngine(model, draft_model=draft, **settings)
        if alone and engine.unreleasable is None:
            engine.release()
        from specstream.engine.inventory import announce_short_context

    announce_short_context(engine.target, engine.config.generation.max_new_tokens)
    return engine


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bars of its own and only errors: the command speaks for itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with errors_only():
            yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
