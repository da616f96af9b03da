"""Prompts in the forms that callers hold them in: texts, chats, token ids, tensors, and what a tokenizer returns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import Any

from specstream.engine.text import Prompt, are_tokens, kind_of
from specstream.errors import UsageError

_WITHOUT_EFFECT = {"attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length"}
"""What a tokenizer may return beside the ids of a text."""

_IDS = "give token ids: [n] or [rows, n] int64"
_LIST = "give a list of prompts, each a text, a chat or token ids"
_FORMS = "give a text, a chat ([{'role': 'user', 'content': ...}]), token ids, or a list of one of these"


def prompts_in(
    given: Any, name: str = "the prompt", padding: int | None = None, wanted: str = _FORMS
) -> tuple[list[Prompt], bool]:
    """The prompts, each a text, a chat or token ids, and whether they were given as several.

    A tensor of two dimensions is several prompts, of one dimension it is one; so it is with what a tokenizer returns,
    whose padding is left out.

    Args:
        given: by the caller.
        name: of the argument, for the error.
        padding: the token that fills rows of a tensor up where no mask tells, as transformers takes it; None for none.
        wanted: what to give, for the error.

    Raises:
        UsageError: it is nothing of that kind.
    """
    if isinstance(given, Mapping) and "input_ids" not in given:
        raise UsageError(f"{name} is {kind_of(given)} without input_ids; {wanted}")
    rows = _read(given, name, padding)
    if isinstance(rows, str) or _is_chat(rows) or (are_tokens(rows) and rows):
        return [rows], False
    if not isinstance(rows, list | tuple):
        raise UsageError(f"{name} is {kind_of(given)}; {wanted}")
    prompts = [_single(row, name) for row in rows]
    for prompt in prompts:
        if not (isinstance(prompt, str) or _is_chat(prompt) or are_tokens(prompt)):
            raise UsageError(f"{name} is {kind_of(given)} with {kind_of(prompt)} in it; {wanted}")
    return prompts, True


def one_prompt(given: Any, taker: str, several: str, padding: int | None = None) -> Prompt:
    """The prompt, in a form that ``prompts_in`` takes; in a list of one, too.

    Args:
        given: by the caller.
        taker: the function, for the error.
        several: the function that takes several, for the error.
        padding: as in ``prompts_in``.

    Raises:
        UsageError: none, several, or nothing of that kind.
    """
    prompts, _ = prompts_in(given, padding=padding)
    if len(prompts) != 1:
        raise UsageError(f"{taker} is given {len(prompts)} prompts; give one, or give them to {several}")
    return prompts[0]


def several_prompts(given: Any, name: str, padding: int | None = None) -> list[Prompt]:
    """The prompts in a list of some, each in a form that ``prompts_in`` takes.

    Raises:
        UsageError: it is one prompt, none, or nothing of that kind.
    """
    prompts, several = prompts_in(given, name, padding, _LIST)
    if not several:
        records = _is_chat(given) and "role" not in given[0]
        raise UsageError(f"{name} is {kind_of(given)}; {'give the texts in the records' if records else _LIST}")
    if not prompts:
        raise UsageError(f"{name} is empty; give at least one prompt")
    return prompts


def token_rows(input_ids: Any, padding: int | None = None) -> list[list[int]]:
    """The rows of token ids in ``[n]`` or ``[rows, n]``, a list of rows, or what a tokenizer returned.

    Args:
        input_ids: by the caller.
        padding: as in ``prompts_in``.

    Raises:
        UsageError: it is something else.
    """
    rows = _read(input_ids, "input_ids", padding)
    if are_tokens(rows):
        return [list(rows)]
    listed = [_single(row, "input_ids") for row in rows] if isinstance(rows, list | tuple) else []
    if not listed or not all(map(are_tokens, listed)):
        text = " ".join(repr(input_ids).split())[:80]
        raise UsageError(f"input_ids is {text}; give token ids: [n] or [rows, n] int64, or a list of rows")
    return [list(row) for row in listed]


def padding_of(model: Any, tokenizer: Any, ends: Collection[int]) -> int | None:
    """The token that fills rows of prompts up, None where it may be part of a text: as for ``generate``.

    Args:
        model: a transformers model.
        tokenizer: its own, or None.
        ends: the tokens that end a text.
    """
    said = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
    said = getattr(tokenizer, "pad_token_id", None) if said is None else said
    return said if isinstance(said, int) and said not in ends else None


def _read(given: Any, name: str, padding: int | None = None) -> Any:
    """What was given, as lists where it is a tensor, an array, or what a tokenizer returned."""
    return _rows(given, padding) if isinstance(given, Mapping) else _ids(given, name, padding)


def _single(row: Any, name: str) -> Any:
    """A prompt among several: ``[1, n]``, as tokenizers return it of one text, is one too."""
    encoded = isinstance(row, Mapping) and "input_ids" in row  # else it is a turn
    read = _read(row, name) if encoded or not isinstance(row, Mapping) else row
    nested = isinstance(read, list) and len(read) == 1 and are_tokens(read[0])
    return read[0] if nested and (encoded or read is not row) else read


def _rows(encoding: Mapping[str, Any], padding: int | None = None) -> Any:
    """The token ids in what a tokenizer returned, without those that its mask hides."""
    if "input_ids" not in encoding:
        raise UsageError(f"the prompt is {kind_of(encoding)} without input_ids; {_FORMS}")
    if strange := sorted(set(encoding) - _WITHOUT_EFFECT - {"input_ids"}):
        raise UsageError(f"the prompt holds {strange[0]!r}, and only token ids are read; leave it out")
    mask = _listed(encoding.get("attention_mask"))
    ids = _ids(encoding["input_ids"], "input_ids", padding if mask is None else None)
    if mask is None:
        return ids
    single = are_tokens(ids)
    pairs = [(ids, mask)] if single else list(zip(ids, mask, strict=False))
    if not single and len(ids) != len(mask):
        raise UsageError(f"attention_mask has {len(mask)} rows and there are {len(ids)} prompts; give a row for each")
    kept = [_unmasked(_listed(row), _listed(shown)) for row, shown in pairs]
    return kept[0] if single else kept


def _unmasked(row: Any, shown: Any) -> Any:
    """A row without its padding, which may be at either end."""
    if len(row) != len(shown):
        raise UsageError(
            f"attention_mask has a row of {len(shown)} and its prompt has {len(row)} tokens; give the mask of "
            "the same call of the tokenizer"
        )
    if not all(each in (0, 1) for each in shown):
        raise UsageError(f"attention_mask has {next(each for each in shown if each not in (0, 1))!r}; give 0 or 1")
    if row and not any(shown):
        raise UsageError("attention_mask hides all of a prompt; give 1 for every token of its text")
    bits = "".join("1" if each else "0" for each in shown)
    if "0" in bits.strip("0"):
        raise UsageError("attention_mask hides tokens between others; leave those out of the prompt")
    return list(compress(row, shown))


def _listed(value: Any) -> Any:
    """A tensor or an array as nested lists; anything else as it is.

    Raises:
        UsageError: a tensor without values.
    """
    if not (hasattr(value, "tolist") and hasattr(value, "shape")):
        return value
    if getattr(value, "is_meta", False):
        raise UsageError("the prompt is on the device meta and has no values; give one with values, on the CPU")
    if getattr(value, "is_sparse", False):
        raise UsageError("the prompt is a sparse tensor, whose zeros are no tokens; give input_ids.to_dense()")
    return value.tolist()


def _ids(value: Any, name: str, padding: int | None = None) -> Any:
    """The same of what is to be token ids.

    Raises:
        UsageError: other numbers, or another shape than ``[n]`` and ``[rows, n]``.
    """
    listed = _listed(value)
    shape, dtype = tuple(getattr(value, "shape", ())), str(getattr(value, "dtype", "")).removeprefix("torch.")
    if listed is not value and 0 not in shape and (len(shape) not in (1, 2) or re.match("b?float|bool|complex", dtype)):
        raise UsageError(f"{name} is a {type(value).__name__} {list(shape)} of {dtype}; {_IDS}")
    if padding is None or listed is value or len(shape) != 2:
        return listed
    return [_unpadded(row, padding, name) for row in listed]


def _unpadded(row: list[int], padding: int, name: str) -> list[int]:
    """A row without the padding at its ends."""
    text = [at for at, token in enumerate(row) if token != padding]
    if row and not text:
        raise UsageError(f"{name} has a row of padding alone, the token {padding}; give the tokens of a text")
    return row[text[0] : text[-1] + 1] if text else row


def _is_chat(value: Any) -> bool:
    """A list of turns. One that holds something else too is refused where it is written out."""
    turns = isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)
    return turns and "input_ids" not in value[0]
