"""What a prompt looks like: shares of its characters, how much of it repeats, and an embedding of what it is about.

All but mpnet's embedding is counted from token ids: a table says what each token of the vocabulary is made of, so that
nothing is decoded and no tokenizer is needed. docs/router.md says what each part costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specstream.environment import require
from specstream.errors import ModelNotFoundError, UsageError

MPNET = "sentence-transformers/all-mpnet-base-v2"

CLASSES: dict[str, Callable[[str], bool]] = {
    "letters": str.isalpha,
    "capitals": str.isupper,
    "digits": str.isdigit,
    "spaces": lambda character: character in " \t",
    "newlines": lambda character: character == "\n",
    "punctuation": lambda character: character in ".,;:!?'\"",
    "brackets": lambda character: character in "()[]{}<>",
    "code_marks": lambda character: character in "=_#/\\|&*+-@%^$~",
    "fences": lambda character: character == "`",
    "foreign": lambda character: ord(character) > 127,
}
"""Kinds of characters; the shares of a prompt's are features."""

REPEATS = (2, 4)
"""The share of a prompt's n-grams that occurred before in it, for these n: what a look-up lives on."""

HINTS = ("log_length", *CLASSES, *(f"repeated_{size}_grams" for size in REPEATS))

_MOST = 255  # of a kind in one token
_FACTOR = 0x9E3779B97F4A7C1  # an odd number without a pattern

SPREAD = 256
"""Tokens that the target's embedding is the mean of at most, spread evenly over the prompt."""


def token_table(tokenizer: Any, size: int) -> Tensor:
    """Characters of each token, and of each kind among them.

    Returns:
        ``[size, 1 + len(CLASSES)]`` uint8; tokens that the tokenizer does not know hold nothing.
    """
    known = range(min(size, len(tokenizer)))
    texts = tokenizer.batch_decode([[token] for token in known], skip_special_tokens=True)
    table = torch.zeros(size, 1 + len(CLASSES), dtype=torch.uint8)
    rows = [[len(text), *(sum(map(belongs, text)) for belongs in CLASSES.values())] for text in texts]
    table[: len(rows)] = torch.tensor(rows).clamp(max=_MOST).to(torch.uint8)
    return table


def hints(tokens: Sequence[int], table: Tensor) -> Tensor:
    """The features ``HINTS`` of a prompt, ``[len(HINTS)]`` float32."""
    ids = torch.tensor(tokens, dtype=torch.int64)
    counts = table[ids].sum(0, dtype=torch.float32)
    shares = (counts[1:] / counts[0].clamp(min=1)).tolist()
    return torch.tensor([math.log(1 + len(tokens)), *shares, *(_repeated(ids, size) for size in REPEATS)])


def _repeated(ids: Tensor, size: int) -> float:
    """The share of n-grams that are not the first of their kind."""
    total = len(ids) - size + 1
    if total < 1:
        return 0.0
    grams = ids[:total]
    for start in range(1, size):  # int64 wraps around: a hash
        grams = grams * _FACTOR + ids[start : start + total]
    return 1 - len(grams.unique()) / total  # type: ignore[no-untyped-call]


Embedding = Callable[[Sequence[int]], Tensor]
"""What a prompt is about: its tokens to a vector, ``[size]`` float32 on the CPU."""


def target_embedding(weight: Tensor) -> Embedding:
    """The mean of the target's own input embeddings over the prompt: no further weights, no pass of any model.

    Of a long prompt ``SPREAD`` tokens say what it is about as well as all, and to gather them costs no more.

    Args:
        weight: the input embeddings, ``[vocab, hidden]``.
    """
    weight = weight.detach()

    def embed(tokens: Sequence[int]) -> Tensor:
        spread = tokens[:: math.ceil(len(tokens) / SPREAD)]
        return weight[torch.tensor(spread, dtype=torch.int64, device=weight.device)].float().mean(0).cpu()

    return embed


def sentence_embedding(name: str, tokenizer: Any) -> Embedding:
    """all-mpnet-base-v2's, 768 numbers: a pass of 110 M parameters over the prompt's text, on the CPU."""
    package = require("sentence_transformers", "router", "embedding mpnet")
    if tokenizer is None:
        raise UsageError("embedding is 'mpnet' and there is no tokenizer; give the target's, to read the prompt with")
    try:
        model = package.SentenceTransformer(name, device="cpu")
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"the embedding model {name!r} cannot be loaded: {error}; give embedding.model, a folder of it"
        ) from None

    def embed(tokens: Sequence[int]) -> Tensor:
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return torch.as_tensor(model.encode(text, convert_to_numpy=True, show_progress_bar=False), dtype=torch.float32)

    return embed


def no_embedding(tokens: Sequence[int]) -> Tensor:
    """Nothing: the hints alone."""
    return torch.zeros(0)


def make_embedding(name: str, model: str | None, target: Any, tokenizer: Any) -> Embedding:
    """An embedding by its name.

    Args:
        name: ``target``, ``mpnet`` or ``none``.
        model: where mpnet is, None for the hub's.
        target: the transformers model whose embeddings ``target`` takes.
        tokenizer: the target's; only mpnet needs it.

    Raises:
        MissingPackageError: sentence-transformers is not installed, with the line that installs it.
        ModelNotFoundError: no such model.
        UsageError: an unknown name, or no tokenizer for mpnet.
    """
    if name == "target":
        return target_embedding(target.get_input_embeddings().weight)
    if name == "mpnet":
        return sentence_embedding(model or MPNET, tokenizer)
    if name == "none":
        return no_embedding
    raise UsageError(f"embedding is {name!r}; give 'target', 'mpnet' or 'none'")


class Features:
    """All features of a prompt, by the vocabulary's ``token_table``; they end with the embedding."""

    def __init__(self, table: Tensor, embedding: Embedding) -> None:
        self._table, self._embedding = table, embedding

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """``[len(HINTS) + embedding]`` float32."""
        return torch.cat([hints(tokens, self._table), self._embedding(tokens)])
