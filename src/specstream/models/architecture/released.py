"""A model whose weights were given back: whoever still asks it for something is told so."""

from __future__ import annotations

from typing import Any, NoReturn

from specstream.errors import UsageError

_MARK = "_specstream_released"


def close_to_others(model: Any) -> None:
    """Refuse from now on what reads the weights: its forward, its state, and whatever asks ``require_open``."""

    def refuse(*args: Any, **named: Any) -> NoReturn:
        require_open(model)
        raise AssertionError

    setattr(model, _MARK, True)
    model.forward = refuse
    model.register_state_dict_pre_hook(refuse)


def require_open(model: Any) -> None:
    """Refuse a model of which the weights are gone.

    Raises:
        UsageError: so it is.
    """
    if getattr(model, _MARK, False):
        raise UsageError("the model's weights were given back by release(); load it again, or leave release() out")
