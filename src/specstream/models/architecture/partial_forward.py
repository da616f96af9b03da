"""The upper layers of a model run alone, from hidden states on, with small changes to their linear layers.

Nothing of a modelling file is copied: the model's own ``forward`` turns positions into rotations or biases, runs
through its layers and normalises at the end; only while such a pass runs, the layers below pass on what they get, and
the first of the upper ones gets other hidden states than that. So it is one code for all families, whether a layer
returns a tensor (the Llama kind, GPT-2, OPT, Phi, ...) or a tuple that begins with one (BLOOM). What differs: families
with learned positions (GPT-2, OPT) add them to the embeddings, below the upper layers, so there a position given to
such a pass has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream.core.ports import Adapter
from specstream.models.architecture.compat import Conv1D
from specstream.models.architecture.hidden_states import decoder_layers
from specstream.models.architecture.view import view_of

Forward = Callable[..., Any]
Swaps = Sequence[tuple[nn.Module, Forward]]


def run_upper(model: Any, layers: Sequence[nn.Module], first: int, hidden: Tensor, **arguments: Any) -> Tensor:
    """The final, normed states ``[rows, nodes, hidden]`` of states of that shape that go into layer ``first``.

    Args:
        model: a transformers causal language model.
        layers: its decoder layers.
        first: the layer to begin with; their number normalises only.
        hidden: what goes into it.
        arguments: of the model's own forward: positions, masks, the cache.
    """
    nothing = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    with entering(layers, first, hidden):
        states: Tensor = model.base_model(input_ids=nothing, **arguments).last_hidden_state
    return states


class FinalNorm:
    """The model's norm behind its last layer, which has another name in every family; other threads may run the model.

    Args:
        model: a transformers causal language model.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._lock = model, Lock()
        self._view: Any = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """States ``[rows, nodes, hidden]`` -> normed ones, differentiable."""
        with self._lock:
            self._view = self._view or view_of(self._model)
            layers = decoder_layers(self._view)
            return run_upper(self._view, layers, len(layers), hidden, use_cache=False)


def run_lower(model: Any, layers: Sequence[nn.Module], last: int, tokens: Tensor, **arguments: Any) -> Tensor:
    """What goes into layer ``last``, ``[rows, nodes, hidden]``, at tokens ``[rows, nodes]``."""
    reached: list[Tensor] = []

    def leave(hidden_states: Tensor, *given: Any, **named: Any) -> Tensor:
        reached.append(hidden_states)
        return hidden_states

    with swapped([(layers[last], leave), *((layer, _pass_on) for layer in layers[last + 1 :])]):
        model.base_model(input_ids=tokens, **arguments)
    return reached[0]


@contextmanager
def entering(layers: Sequence[nn.Module], first: int, hidden: Tensor) -> Iterator[None]:
    """Inside, the model's forward goes on at layer ``first`` with ``hidden``, whatever tokens it is given."""
    below: list[tuple[nn.Module, Forward]] = [(layer, _pass_on) for layer in layers[: min(first, len(layers) - 1)]]
    if first == len(layers):
        entry: tuple[nn.Module, Forward] = layers[-1], _leaving(layers[-1].forward, hidden, len(below))
    else:
        entry = layers[first], _entering(layers[first].forward, hidden)
    with swapped([*below, entry]):
        yield


@contextmanager
def swapped(swaps: Swaps) -> Iterator[None]:
    """Inside, these modules run these forwards; what ran before is back afterwards."""
    before = [(module, module.__dict__.get("forward")) for module, _ in swaps]
    try:
        for module, forward in swaps:
            # Straight into __dict__: nn.Module.__setattr__ takes microseconds, a model has hundreds of layers.
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def upper_linears(model: Any, first: int) -> dict[str, Any]:
    """The linear layers of the decoder layers from ``first`` on, by ``Adapter``'s names.

    One that PEFT has wrapped, while a base is being fine-tuned, is one layer still, under the name of what is wrapped.
    """
    found: dict[str, Any] = {}
    for index, layer in enumerate(decoder_layers(model)):
        own: list[str] = []
        for name, module in layer.named_modules() if index >= first else ():
            inside = any(name.startswith(f"{outer}.") for outer in own)
            if not inside and isinstance(_base(module), (nn.Linear, Conv1D)):
                own.append(name)
                found[f"{index}.{name}"] = module
    return found


def _base(module: nn.Module) -> nn.Module:
    return getattr(module, "base_layer", module)


def sizes(linear: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's keep their weights the other way round."""
    first, second = linear.weight.shape
    return (first, second) if isinstance(_base(linear), Conv1D) else (second, first)


def adapted(linears: Mapping[str, Any], adapter: Adapter, base: Mapping[nn.Module, Forward] | None = None) -> Swaps:
    """What makes a model's linear layers run with an adapter's changes.

    Args:
        linears: from ``upper_linears``.
        adapter: the changes; they are differentiable, and computed in the dtype of the input.
        base: what runs the unchanged layers instead of their own forwards.
    """
    return [
        (linears[name], _changed((base or {}).get(linears[name], linears[name].forward), *change))
        for name, change in adapter.changes.items()
    ]


def merged(linears: Mapping[str, Any], adapter: Adapter) -> dict[nn.Module, Tensor]:
    """The weights ``[outputs, inputs]``, float32, of all these layers with an adapter's changes in them."""
    weights = {}
    for name, linear in linears.items():
        weight = linear.weight.detach().float()
        weight = weight.t().contiguous() if isinstance(_base(linear), Conv1D) else weight
        if name in adapter.changes:
            down, up = adapter.changes[name]
            weight = weight + up.detach().float() @ down.detach().float()
        weights[linear] = weight
    return weights


def _pass_on(hidden_states: Tensor, *given: Any, **named: Any) -> Tensor:
    """Three dimensions for the next module, nothing more: where layers return tuples, the model takes the first row."""
    return hidden_states if hidden_states.dim() > 2 else hidden_states[None]


def _leaving(forward: Forward, hidden: Tensor, below: int) -> Forward:
    """Instead of the last layer: ``hidden``, in the form in which layers return their states."""

    def leave(hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        if below:
            return hidden if hidden_states.dim() > 2 else (hidden,)
        own = forward(hidden_states, *given, **named)
        return (hidden, *own[1:]) if isinstance(own, tuple) else hidden

    return leave


def _entering(forward: Forward, hidden: Tensor) -> Forward:
    def enter(hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        return forward(hidden, *given, **named)

    return enter


def _changed(forward: Forward, down: Tensor, up: Tensor) -> Forward:
    def change(x: Tensor) -> Tensor:
        y: Tensor = forward(x)
        return y + functional.linear(functional.linear(x, down.to(x.dtype)), up.to(x.dtype))

    return change
