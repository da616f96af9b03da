"""What differs between model families, and which models cannot be a target at all.

Nothing of a modelling file is copied: a family is met through its mask, its positions, its cache and, for ALiBi, the
one method that builds the bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specstream.errors import UnsupportedModelError
from specstream.models.architecture import compat
from specstream.models.architecture.released import require_open

ALIBI_STEP = 512
"""ALiBi's bias is kept for multiples of so many positions: for every length alone, training would keep thousands."""

_ATTENTION_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a model wants its passes.

    Attributes:
        name: the configuration's ``model_type``.
        context_length: the most tokens a sequence may have, None if the configuration sets no limit.
        windows: mask kind -> sliding window in tokens, None for full attention. One entry whose key is None
            means that the model takes one mask tensor; otherwise it takes a dict of masks by layer kind.
        layer_windows: the window of each layer, 0 for full attention.
        cache_argument: what ``forward`` calls the cache.
        takes_positions: whether ``forward`` has ``position_ids``.
        takes_logits_to_keep: whether ``forward`` can leave out logits.
        routed: whether tokens are sent to experts. A matrix product of an expert is as tall as the tokens that it
            happens to get, so that a token's bits depend on its neighbours, whatever the width of the pass.
        chains_only: whether a pass goes through one row and one chain, as some layers keep a state of what they have
            read (Mamba, gated delta rule, short convolutions), or take a token's place from the cache (Llama 4).
        alibi: the module whose ``build_alibi_tensor`` gives the position bias, None for other families.
        alibi_lines: that bias, ``[heads, positions]``, by number of positions and dtype: a CUDA graph cannot build it.
    """

    name: str
    context_length: int | None
    windows: dict[str | None, int | None]
    layer_windows: tuple[int, ...]
    cache_argument: str
    takes_positions: bool
    takes_logits_to_keep: bool
    routed: bool = False
    chains_only: bool = False
    alibi: Any = None
    alibi_lines: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @contextmanager
    def key_positions(self, positions: Tensor) -> Iterator[None]:
        """For the pass inside, ALiBi's bias follows ``positions`` ``[rows, slots]``: a tree's slots are not in line."""
        if self.alibi is None:
            yield
            return
        module = self.alibi
        build = type(module).build_alibi_tensor

        def along_positions(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
            count = -(-positions.shape[1] // ALIBI_STEP) * ALIBI_STEP  # no slot's position is beyond its place
            if (count, dtype) not in self.alibi_lines:
                line = torch.ones(1, count, device=positions.device)
                self.alibi_lines[count, dtype] = build(module, line, num_heads, dtype)[:, 0]
            return self.alibi_lines[count, dtype][:, positions].transpose(0, 1).reshape(-1, 1, positions.shape[1])

        module.__dict__["build_alibi_tensor"] = along_positions
        try:
            yield
        finally:
            del module.__dict__["build_alibi_tensor"]


def require_model(model: Any) -> None:
    """Refuse what is not itself a transformers model.

    Raises:
        UnsupportedModelError: a wrapper around one, or something else; the message says what to give.
        UsageError: its weights were given back.
    """
    if (wrapper := compat.wrapper_of(model)) is not None:
        raise UnsupportedModelError(f"{type(model).__name__} cannot be a target: {wrapper}")
    require_open(model)


def describe(model: Any) -> Family:
    """The family of a transformers causal language model.

    Raises:
        UnsupportedModelError: encoder-decoders, attention kinds or implementations that a token tree cannot pass
            through; the message says which and why.
    """
    compat.require_supported()
    config = model.config
    name = str(config.model_type)
    cache_argument = compat.cache_argument(model)
    if (reason := _refusal(model, cache_argument)) is not None or cache_argument is None:
        raise UnsupportedModelError(f"{name} cannot be a target: {reason}")
    text = compat.text_config(model)
    taken = compat.forward_arguments(model)
    context = getattr(text, "max_position_embeddings", None)
    scaled = getattr(text, "attn_temperature_tuning", False) and not all(getattr(text, "no_rope_layers", None) or [1])
    chains_only = scaled or compat.keeps_recurrent_state(model) or not set(_kinds(text)) <= _ATTENTION_KINDS
    windows: dict[str | None, int | None] = {None: None} if chains_only else _windows(text, name)
    return Family(
        name=name,
        context_length=None if context is None or name == "bloom" else int(context),
        windows=windows,
        layer_windows=_layer_windows(text, windows),
        cache_argument=cache_argument,
        takes_positions="position_ids" in taken,
        takes_logits_to_keep="logits_to_keep" in taken,
        routed=any(re.search("experts|moe", type(module).__name__, re.IGNORECASE) for module in model.modules()),
        chains_only=chains_only,
        alibi=compat.alibi_of(model),
    )


def _refusal(model: Any, cache_argument: str | None) -> str | None:
    """Why the model cannot be a target, as the second half of a sentence; None if it can."""
    config, attention = model.config, compat.attention_of(model)
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder; SpecStream decodes with decoder-only models"
    if cache_argument is None and compat.keeps_recurrent_state(model):
        return "it keeps a recurrent state in a form of its own, which a rejected draft could not be taken back from"
    if cache_argument is None and model.can_generate() and not compat.is_tested():
        return f"its forward takes no cache under a name that is known here; {compat.advice()}"
    if not model.can_generate() or cache_argument is None:
        return "it is not a causal language model with a key-value cache; load one with AutoModelForCausalLM"
    if attention not in ("sdpa", "eager"):
        return f'its attention is {attention!r}, which takes no tree mask; load it with attn_implementation="sdpa"'
    if any(weight.is_meta for weight in model.parameters()):
        return "some of its weights are not in memory (device meta); load it whole, without offloading"
    if any(map(_drops, model.modules())):
        return "it is in training mode, where dropout is random; call model.eval() first"
    return None


def _drops(module: Any) -> bool:
    """Whether the module is in training mode and may drop values: the whole model, an attention, a dropout."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.training and module.p > 0
    return bool(module.training) and (hasattr(module, "can_generate") or hasattr(module, "layer_idx"))


def _layer_windows(config: Any, windows: dict[str | None, int | None]) -> tuple[int, ...]:
    if None in windows:
        return (windows[None] or 0,) * int(config.num_hidden_layers)
    return tuple(windows[kind] or 0 for kind in config.layer_types)


def _kinds(config: Any) -> Sequence[str]:
    """The kind of each layer's attention, where the configuration says it."""
    return getattr(config, "layer_types", None) or ()


def _windows(config: Any, name: str) -> dict[str | None, int | None]:
    """Mask kinds of a text configuration; see ``Family.windows``."""
    window = getattr(config, "sliding_window", None) or None
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
        raise UnsupportedModelError(
            f"{name} cannot be a target: its configuration has sliding_window {window!r}; give a number of tokens"
        )
    kinds = set(_kinds(config))
    if len(kinds) > 1:
        return {"full_attention": None, "sliding_attention": window}
    sliding = kinds == {"sliding_attention"} or (not kinds and window is not None)
    return {None: window if sliding else None}
