"""Thoughts: what a reasoning model writes between ``<think>`` and ``</think>`` before its answer.

A thought begins with the answer, or the chat template has opened it: the prompt then ends with the tag. Tags elsewhere
are text, as are those of a tokenizer that has them as special tokens, which no text shows.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from specstream.errors import UsageError
from specstream.serving.tool_calls import symbol

OPENING, CLOSING = "<think>", "</think>"
_TAG_TOKENS = 16
"""Most tokens that the opening tag takes, with the white space beside it."""

_CHARACTER_TOKENS = 3
"""Most tokens that a character, begun by another, still takes."""

_ANY = r"(.|\n)*"

ReasoningParser = Literal["auto", "none", "think"]
"""Whether thoughts are told from answers; ``auto`` does where the chat template has the tags."""


def are_told(tokenizer: Any, parser: ReasoningParser) -> bool:
    """Whether the thoughts of a model are told from its answers.

    Raises:
        UsageError: they shall be, and the tags are not part of the text.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    hidden = any(token.special and token.content == CLOSING for token in added)
    if hidden and parser == "think":
        raise UsageError(
            f"reasoning_parser is 'think' and {CLOSING} is a special token here, which no text shows; give none"
        )
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return not hidden and (parser == "think" or (parser == "auto" and CLOSING in template))


def opened_by(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with the opening tag."""
    return str(tokenizer.decode(prompt[-_TAG_TOKENS:])).rstrip().endswith(OPENING)


def thought_length(tokenizer: Any, answer: Sequence[int], *, opened: bool) -> int:
    """How many tokens of an answer are its thought and the tags; all where the thought does not end."""
    if not opened and _begun(tokenizer, answer) is None:
        return 0
    end = _tokens_until(tokenizer, answer, CLOSING)
    return len(answer) if end is None else end


def behind_a_thought(tokenizer: Any, grammar: str, *, opened: bool) -> str:
    """What holds an answer to a grammar from behind its thought on; both in Lark's notation, as llguidance reads it.

    No text is a tag that is one token, so that the lexer would not find its end by it.
    """
    begun, ended = symbol(tokenizer, OPENING), symbol(tokenizer, CLOSING)
    if ended.startswith("<["):
        thought = f"thought: TEXT {ended} /\\n{{0,2}}/\nTEXT: /{_ANY}/ & ~/{_ANY}<\\/think>{_ANY}/"
    else:
        thought = f"thought: told /\\n{{0,2}}/\ntold[suffix={json.dumps(CLOSING)}]: /{_ANY}/"
    start = f"start: {'thought' if opened else f'({begun} thought)?'} answer"
    return "\n".join([start, thought, grammar.replace("start:", "answer:", 1)])


class ThinkingBudget:
    """Ends a thought that has had its tokens: a logits processor that leaves the end tag alone.

    It keeps nothing between two calls. What a draft says beyond the budget has probability 0 and is rejected.

    Args:
        tokenizer: the model's.
        most: tokens of a thought, its tags not counted; it may have those besides that its last character takes.
        opened: whether the prompt opens it; else it counts from a tag that the answer begins with.
        prompt_length: tokens that are not the answer's.
    """

    def __init__(self, tokenizer: Any, most: int, *, opened: bool, prompt_length: int) -> None:
        self._tokenizer, self._most, self._opened, self._prompt_length = tokenizer, most, opened, prompt_length
        self._closing: list[int] = tokenizer(CLOSING, add_special_tokens=False)["input_ids"]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocab]``: those given, or 0 for the next token of the tag and minus infinity for all others."""
        forced = self._forced(input_ids[0, self._prompt_length :].tolist())
        if not forced:
            return scores
        only = torch.full_like(scores, -math.inf)
        only[0, forced[0]] = 0.0
        return only

    def known(self, tokens: Sequence[int]) -> list[int]:
        """What is left of the end tag behind the tokens of prompt and answer, if it has to come now."""
        return self._forced(tokens[self._prompt_length :])

    def _forced(self, answer: Sequence[int]) -> list[int]:
        if not self._most <= len(answer) < self._most + _TAG_TOKENS + _CHARACTER_TOKENS + len(self._closing):
            return []
        start = 0 if self._opened else _begun(self._tokenizer, answer)
        if start is None:
            return []
        end = least = start + self._most
        while end < least + _CHARACTER_TOKENS and self._text(answer[start:end]).endswith("\N{REPLACEMENT CHARACTER}"):
            end += 1  # a tag within a character would be none of a grammar
        told = len(answer) - end
        if not 0 <= told < len(self._closing) or CLOSING in self._text(answer[start:end]):
            return []
        return self._closing[told:]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens))


class ThoughtReader:
    """Reads one answer: pieces in, thought and answer out, without the tags and the line breaks beside them.

    Args:
        opened: whether the prompt opens the thought.
    """

    def __init__(self, *, opened: bool) -> None:
        self._place: Literal["start", "thought", "answer"] = "thought" if opened else "start"
        self._rest = ""  # what is not certain yet
        self._breaks = opened  # whether line breaks that come now stand beside a tag

    def feed(self, piece: str) -> tuple[str, str]:
        """What is certain now of the thought, and of the answer."""
        self._rest += piece
        return self._read(last=False)

    def finish(self) -> tuple[str, str]:
        """What is left, which nothing follows."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> tuple[str, str]:
        if self._place == "start":
            begun = self._rest.lstrip()
            if begun.startswith(OPENING):
                self._place, self._rest, self._breaks = "thought", begun[len(OPENING) :], True
            elif OPENING.startswith(begun) and not last:
                return "", ""
            else:
                self._place = "answer"
        thought = ""
        if self._place == "thought":
            thought, end, rest = self._without_breaks().partition(CLOSING)
            if not end:
                kept = len(thought) if last else _certain(thought)
                self._rest = thought[kept:]
                return thought[:kept], ""
            thought, self._place, self._rest, self._breaks = thought.rstrip("\n"), "answer", rest, True
        said, self._rest = self._without_breaks(), ""
        return thought, said

    def _without_breaks(self) -> str:
        rest = self._rest.lstrip("\n") if self._breaks else self._rest
        self._breaks = self._breaks and not rest
        return rest


def _certain(thought: str) -> int:
    """Characters before what may be line breaks and the beginning of the end tag."""
    begun = next((size for size in range(len(CLOSING) - 1, 0, -1) if thought.endswith(CLOSING[:size])), 0)
    return len(thought[: len(thought) - begun].rstrip("\n"))


def _begun(tokenizer: Any, answer: Sequence[int]) -> int | None:
    """The tokens to the end of the opening tag that an answer begins with; None where it begins otherwise."""
    head = answer[:_TAG_TOKENS]
    return _tokens_until(tokenizer, head, OPENING) if tokenizer.decode(head).lstrip().startswith(OPENING) else None


def _tokens_until(tokenizer: Any, tokens: Sequence[int], tag: str) -> int | None:
    """The first tokens whose text has the tag."""
    end = bisect_left(range(len(tokens) + 1), True, key=lambda count: tag in tokenizer.decode(tokens[:count]))
    return end if end <= len(tokens) else None
