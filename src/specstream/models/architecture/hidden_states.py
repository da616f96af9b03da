"""What goes into a model's decoder layers, kept for those who draft from it: a stack of layers and where to tap it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from specstream.errors import UnsupportedModelError
from specstream.models.architecture.compat import text_config

States = dict[int, Tensor | None]
"""Layer -> what went into it in a pass, None before one; the number of layers stands for the language-model head."""


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder layers of a transformers model, in order.

    Raises:
        UnsupportedModelError: they cannot be told from its other modules.
    """
    count = text_config(model).num_hidden_layers
    stacks = _stacks(model.base_model, count)
    if len(stacks) > 1:  # beside the decoder something that sees or hears, of as many layers
        stacks = _stacks(model.get_decoder(), count)
    if len(stacks) != 1:
        raise UnsupportedModelError(
            f"{model.config.model_type} cannot carry heads: it has {len(stacks)} stacks of {count} modules, "
            "so its decoder layers cannot be found; give another model"
        )
    return list(stacks[0])


def _stacks(module: nn.Module, count: int) -> list[nn.ModuleList]:
    return [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == count]


@contextmanager
def tapped(model: Any, layers: Sequence[nn.Module], states: States, fused: bool) -> Iterator[None]:
    """Inside, a pass of the model leaves in ``states`` what went into the layers that are its keys.

    Args:
        model: a transformers causal language model.
        layers: its decoder layers; to find them takes as long as one of them runs.
        states: filled in place, ``[rows, width, hidden]`` each.
        fused: whether the runtime's own stack of layers looks after all but the head (``fused.py``).
    """
    if not states:
        yield
        return
    watched = {layer: [*layers, model.get_output_embeddings()][layer] for layer in states}
    hooks = [
        module.register_forward_pre_hook(_keep(states, layer), with_kwargs=True)
        for layer, module in watched.items()
        if layer == len(layers) or not fused
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep(states: States, layer: int) -> Callable[..., None]:
    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        states[layer] = given[0] if given else named["hidden_states"]

    return keep
