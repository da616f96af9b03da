"""What transformers' reading of a GGUF file loses, put back: each says what it would cost to leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Two quantisations of one matrix differ by 4 to 7 % here; unrelated matrices by more than 100 %.
_SAME_MATRIX = 0.15
_ROWS = 64
"""Rows of two matrices that are compared: a sample tells 7 % from 100 %."""


def split_digits(tokenizer: Any) -> None:
    """Split every digit off before words are found, as SmolLM2's own tokenizer does.

    The file names this rule and transformers does not read it. Without it, a run of spaces before a number is cut
    into other tokens than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


def decode_bytes(tokenizer: Any) -> None:
    """Turn tokens into text as every byte-level tokenizer does.

    transformers before 5.20 gives these the decoder of SentencePiece too, which drops a leading space.
    """
    from tokenizers import decoders

    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()


def bound_length(tokenizer: Any, model: Any) -> None:
    """State the context length on the tokenizer too, which otherwise claims 10^30 tokens."""
    tokenizer.model_max_length = model.config.max_position_embeddings


def name_stop_tokens(tokenizer: Any, model: Any, stop_tokens: Sequence[str]) -> None:
    """Let every token that ends a generation upstream end it here: a GGUF file names one, Qwen2.5 has two.

    With one missing, a model that has finished runs on until the token limit.
    """
    ids = [tokenizer.convert_tokens_to_ids(token) for token in stop_tokens]
    model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    # transformers before 5.20 gives the tokenizer the beginning of a turn as its end, and no padding token.
    tokenizer.eos_token = stop_tokens[0]
    if tokenizer.pad_token is None and (pad := model.generation_config.pad_token_id) is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    # Otherwise generate() may rebuild this configuration from the model's, which has one id again.
    model.generation_config._from_model_config = False


def tie_embeddings(model: Any) -> None:
    """Make the embedding and the output head one matrix again where they are so upstream.

    A GGUF file may hold that matrix twice, quantised two ways. The output's copy is the finer one and is kept for
    both: 0.3 GB less for Qwen2.5-Coder-0.5B, and an embedding nearer to the original.
    """
    if model.config.tie_word_embeddings:
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight.shape == head.weight.shape and _are_alike(embedding.weight, head.weight):
        embedding.weight = head.weight
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _are_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices are one but for rounding."""
    rows = torch.linspace(0, len(other) - 1, min(_ROWS, len(other)), dtype=torch.float64).long()
    first, second = (each.detach()[rows].float() for each in (one, other))
    return bool((first - second).norm() / second.norm() < _SAME_MATRIX)
