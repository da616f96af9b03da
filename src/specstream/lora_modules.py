"""Which linear layers of a model get low-rank adapters: families call their attention's projections differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from specstream.errors import UsageError

_ATTENTION = (
    ("q_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma and most others
    ("q_proj", "v_proj", "out_proj"),  # OPT, GPT-Neo, GPT-J
    ("q_proj", "v_proj", "dense"),  # Phi
    ("qkv_proj", "o_proj"),  # Phi-3
    ("qkv_proj", "out_proj"),  # CodeGen
    ("Wqkv", "out_proj"),  # MPT
    ("query_key_value", "dense"),  # BLOOM, Falcon, GPT-NeoX
    ("c_attn", "attn.c_proj"),  # GPT-2, GPTBigCode
)
"""Queries, values and the output of attention, by family; the first that a model has whole is its default."""


def modules_for(model: Any, wanted: Sequence[str] | None) -> list[str]:
    """The names of layers as PEFT takes them, each of which the model has.

    Args:
        model: a transformers model.
        wanted: ends of names; None for those of the model's family.

    Raises:
        UsageError: a name that no layer ends with, with those that would do.
    """
    names = [name for name, module in model.named_modules() if is_linear(module) and not _is_head(model, module)]
    if wanted is None:
        found = next((group for group in _ATTENTION if all(_matches(end, names) for end in group)), None)
        if found is None:
            raise UsageError(
                f"target_modules is not given for a {model.config.model_type}; give some of {_ends(names)}"
            )
        return list(found)
    for end in wanted:
        if not _matches(end, names):
            raise UsageError(f"target_modules has {end!r}, which this model has not; give some of {_ends(names)}")
    return list(wanted)


def is_linear(module: nn.Module) -> bool:
    """Whether PEFT can adapt it: GPT-2 keeps its matrices the other way round, in a class of transformers."""
    return isinstance(module, nn.Linear) or is_turned(module)


def is_turned(module: nn.Module) -> bool:
    """Whether its matrix is ``[in, out]``."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _is_head(model: Any, module: nn.Module) -> bool:
    return module is model.get_output_embeddings()


def _matches(end: str, names: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for name in names)


def _ends(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
