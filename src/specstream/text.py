"""Between text and tokens: prompts in, pieces of text out, stop strings found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from specstream.core.stopping import StopCheck
from specstream.errors import UsageError

Chat: TypeAlias = Sequence[Mapping[str, str]]
Prompt: TypeAlias = str | Chat

_WINDOW = 8  # tokens before a new one that its decoding may depend on (bytes of one character, a leading space)


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a text, or of a chat (a list of role/content) through the chat template.

    Raises:
        UsageError: an empty prompt, or a chat for a tokenizer without a template.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"] if prompt else []
    else:
        if getattr(tokenizer, "chat_template", None) is None:
            raise UsageError("the prompt is a chat and this tokenizer has no chat template; give plain text")
        text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(f"the prompt {prompt!r} is empty; give at least one token")
    return list(ids)


def as_chat(tokenizer: Any, chat: bool | None) -> bool:
    """Whether prompts go through the chat template: as it was said, and where nothing was, if there is one."""
    return getattr(tokenizer, "chat_template", None) is not None if chat is None else chat


def asked(tokenizer: Any, prompt: Prompt, chat: bool | None = None) -> Prompt:
    """A prompt as the model is asked: a text is a user's turn where prompts go through the chat template."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) and as_chat(tokenizer, chat) else prompt


class TextStream:
    """Turns a growing list of tokens into pieces of text, never splitting a character.

    Args:
        tokenizer: decodes.
        hold: characters to hold back at the end until ``finish``, for a stop string that may be completing.
    """

    def __init__(self, tokenizer: Any, hold: int = 0) -> None:
        self._tokenizer = tokenizer
        self._hold = hold
        self._tokens: list[int] = []
        self._start = 0  # first token of the window that is decoded again
        self._done = 0  # tokens whose text is in `text`
        self.text = ""
        self._sent = 0

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""
        self._tokens.extend(tokens)
        known = self._decode(self._tokens[self._start : self._done])
        window = self._decode(self._tokens[self._start :])
        # A replacement character at the end is the first bytes of a character still to come.
        if len(window) > len(known) and not window.endswith("\N{REPLACEMENT CHARACTER}"):
            self.text += window[len(known) :]
            self._start, self._done = self._done, len(self._tokens)
        return self._send(len(self.text) - self._hold)

    def finish(self, text: str) -> str:
        """What is left to send of the final text."""
        piece = text[self._sent :]
        self._sent = len(text)
        return piece

    def _send(self, end: int) -> str:
        piece = self.text[self._sent : max(end, self._sent)]
        self._sent += len(piece)
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [at for stop in stop_strings if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def stop_check(tokenizer: Any, stop_strings: Sequence[str]) -> StopCheck | None:
    """Finds the token that completes a stop string, None if there is nothing to look for."""
    if not stop_strings:
        return None
    longest = max(map(len, stop_strings))

    def check(emitted: Sequence[int], new: int) -> int | None:
        for kept in range(len(emitted) - new + 1, len(emitted) + 1):
            # Every token but special ones gives at least one byte, and a character takes at most four.
            start = max(0, kept - 4 * longest - _WINDOW)
            text = tokenizer.decode(emitted[start:kept], skip_special_tokens=True)
            if any(stop in text for stop in stop_strings):
                return kept
        return None

    return check
