"""Loading an engine for a command: settings first, then models, without the noise of libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from specstream.errors import UsageError

_NO_OPTIONS = {"adaptive", "ignore_eos", "max_speculation_depth"}
"""Settings that a command gives by itself."""


def load_engine(model: str, draft: str | None, settings: dict[str, Any]) -> Any:
    """A ``SpeculativeEngine``. Settings are validated before anything is fetched or loaded."""
    from specstream.config import engine_config

    try:
        engine_config(settings)  # type: ignore[arg-type]
        with quiet():
            from specstream.engine.engine import SpeculativeEngine

            return SpeculativeEngine(model, draft_model=draft, **settings)
    except UsageError as error:
        raise type(error)(in_options(str(error), settings)) from error


def in_options(message: str, settings: Iterable[str]) -> str:
    """A message about arguments of Python as one about the options of the same names.

    Args:
        message: of an error.
        settings: names of the arguments that are options.
    """
    names = "|".join(sorted({*settings, "draft_model"} - _NO_OPTIONS))

    def option(match: re.Match[str]) -> str:
        name = (match[1] or "draft_model").replace("draft_model", "draft").replace("_", "-")
        return f"--{name}" + (f" {match[2]}" if match[2] else "")

    pattern = rf"\b({names})(?:='([^']*)'|=(?=[,; ])|(?= is ))|(?<!')\bdraft_model\b"
    return re.sub(pattern, option, message)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bars of its own and only errors: the command speaks for itself."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity(verbosity)
