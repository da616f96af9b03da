"""Between text and tokens: prompts in, pieces of text out, stop strings found."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from threading import get_ident
from typing import Any, TypeAlias

from typing_extensions import TypeIs

from specstream.core.stopping import StopCheck
from specstream.errors import UsageError, has, must_be, one_line, shown

Chat: TypeAlias = Sequence[Mapping[str, str]]
Prompt: TypeAlias = str | Chat | Sequence[int]

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte in vocabularies of characters that fall back on bytes, as those of SentencePiece do."""

_WINDOW = 8  # tokens before a new one that its decoding may depend on (bytes of one character, a leading space)


def encode(tokenizer: Any, prompt: Prompt, template: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a text, or of a chat (a list of role/content) through the chat template; ids are taken as they are.

    Args:
        tokenizer: the model's.
        prompt: a text, a chat or ids.
        template: what the chat template is given besides, such as ``tools``.

    Raises:
        UsageError: an empty prompt or one that is no text, a chat for a tokenizer without a template, or one that the
            template refuses.
    """
    if isinstance(prompt, str):
        ids = token_ids(tokenizer, valid(prompt)) if prompt else []
    elif are_tokens(prompt):
        ids = list(map(int, prompt))
    elif _is_list(prompt):
        ids = (
            token_ids(tokenizer, _rendered(tokenizer, prompt, template or {}), add_special_tokens=False)
            if prompt
            else []
        )
    else:
        raise UsageError(f"the prompt is {kind_of(prompt)}; give a text, or a chat: a list of role and content")
    if not ids:
        raise UsageError(f"the prompt {prompt!r} is empty; give at least one token")
    return list(ids)


def token_ids(tokenizer: Any, text: str, **settings: Any) -> Any:
    """Token ids, without transformers' warning of a long text: whoever decodes refuses it, by the model's context.

    The filter passes what other threads are told.
    """
    logger, own = logging.getLogger("transformers.tokenization_utils_base"), get_ident()

    def told(record: logging.LogRecord) -> bool:
        return record.thread != own or "sequence length is longer" not in str(record.msg)

    logger.addFilter(told)
    try:
        return tokenizer(text, **settings)["input_ids"]
    finally:
        logger.removeFilter(told)


def check_tokenizer(tokenizer: Any, vocab_size: int | None = None) -> None:
    """Refuse what is no tokenizer, and one of another model where its size tells.

    A model may have rows for more tokens than its tokenizer has, and a tokenizer may have had tokens added for which
    the model has none. But each token of a tokenizer's own vocabulary has a row in its model.

    Args:
        tokenizer: as it was given.
        vocab_size: rows of the model's embedding; None if that is not known.

    Raises:
        UsageError: so it is.
    """
    fits = has(tokenizer, "decode") and not isinstance(tokenizer, bytes)
    must_be(fits, "tokenizer", tokenizer, "the tokenizer itself")
    known = getattr(tokenizer, "vocab_size", None)  # without added tokens
    if vocab_size is not None and isinstance(known, int) and known > vocab_size:
        raise UsageError(
            f"the tokenizer has {known} tokens and the model's vocabulary is 0 to {vocab_size - 1}: it is another "
            "model's, give this one's own"
        )


def are_tokens(value: Any) -> TypeIs[Sequence[int]]:
    """Whether it is a list of token ids; an empty list is one too."""
    return _is_list(value) and all(isinstance(each, Integral) and not isinstance(each, bool) for each in value)


def kind_of(value: Any) -> str:
    """What a value is, for the error that refuses it: its type, and the value where that is short."""
    kind, text = type(value).__name__, " ".join(repr(value).split())
    return f"{text} ({kind})" if len(text) <= 40 else f"of the type {kind}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _rendered(tokenizer: Any, chat: Chat, template: Mapping[str, Any]) -> str:
    """A chat as its template writes it."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError("the prompt is a chat and this tokenizer has no chat template; give plain text")
    turns = [_turn(turn) for turn in chat]
    try:
        settings = {"add_generation_prompt": True, **template, "tokenize": False}
        text: str = tokenizer.apply_chat_template(turns, **settings)
    except Exception as error:  # a template may refuse in its own words
        reason = one_line(error)[:200]
        if type(error).__name__ == "TemplateSyntaxError":  # of jinja2, which is transformers' dependency, not ours
            raise UsageError(
                f"the model's chat template is damaged (line {getattr(error, 'lineno', 1)}: {reason}); mend "
                "chat_template.jinja or copy it again, or give plain text"
            ) from error
        raise UsageError(f"the messages do not fit the model's chat template: {reason}") from error
    return valid(text)


def _turn(turn: Any) -> dict[str, Any]:
    """One turn, its parts of text joined: templates of models that read text alone know no parts."""
    whole = isinstance(turn, Mapping) and ("content" in turn or "tool_calls" in turn)
    if not whole or not isinstance(turn.get("role"), str):
        raise UsageError(f"a turn of the prompt is {shown(turn)}; give a mapping with a role and content")
    content: Any = turn.get("content")
    if _is_list(content):
        content = "".join(map(_part, content))
    if not isinstance(content, str) and not (content is None and "tool_calls" in turn):
        raise UsageError(f"the content of a turn of the prompt is {shown(content)}; give a text")
    return {**turn, "content": content}


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(text := part.get("text"), str):
        return text
    unread = kind if isinstance(kind, str) and kind != "text" else shown(part)
    raise UsageError(f"the content of a turn has a part of the type {unread}; only text is read")


def valid(text: str) -> str:
    """The text, as Unicode.

    Raises:
        UsageError: it holds bytes of another encoding, or half a character.
    """
    try:
        # Bytes of a command line that the locale did not know arrive as lone surrogates; of UTF-8 they are its text.
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        half = next(letter for letter in text if "\ud800" <= letter <= "\udfff")
        raise UsageError(
            f"the prompt holds half a character, {half!r}, which is no text; give valid Unicode; bytes of another "
            "encoding become so with: iconv -f latin1 -t utf-8"
        ) from None


def as_chat(tokenizer: Any, chat: bool | None) -> bool:
    """Whether prompts go through the chat template: as it was said, and where nothing was, if there is one.

    Raises:
        UsageError: it was said, and there is none.
    """
    there = getattr(tokenizer, "chat_template", None) is not None
    if chat and not there:
        raise UsageError("chat is True and this model has no chat template; leave it out")
    return there if chat is None else chat


def asked(tokenizer: Any, prompt: str | Chat, chat: bool | None = None) -> str | Chat:
    """A prompt as the model is asked: a text is a user's turn where prompts go through the chat template."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) and as_chat(tokenizer, chat) else prompt


class TextStream:
    """Turns a growing list of tokens into pieces of text, never splitting a character.

    Args:
        tokenizer: decodes.
        hold: characters to hold back at the end until ``finish``, for a stop string that may be completing.
        skip_special: whether special tokens are left out.
    """

    def __init__(self, tokenizer: Any, hold: int = 0, *, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
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
        whole = len(window) > len(known) and not window.endswith("\N{REPLACEMENT CHARACTER}")
        if whole and not self._in_bytes():
            self.text += window[len(known) :]
            self._start, self._done = self._done, len(self._tokens)
        return self._send(len(self.text) - self._hold)

    def _in_bytes(self) -> bool:
        """Whether more bytes may follow: one too many spoils all of a run. Tokens that are not shown do not end it."""
        for token in reversed(self._tokens[self._done :]):
            if (byte := _is_byte(self._tokenizer, token)) or self._decode([token]):
                return byte
        return False

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
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=self._skip)
        return text


def final_text(
    tokenizer: Any,
    tokens: Sequence[int],
    stop_strings: Sequence[str],
    *,
    skip_special: bool = True,
    include_stop: bool = False,
) -> str:
    """The text of the tokens before the first stop string, or to its end; special tokens are left out or not."""
    plain, marked = _sorted_stops(tokenizer, stop_strings, skip_special)
    whole = tokenizer.decode(tokens, skip_special_tokens=False) if marked else ""
    rest = ""
    if (found := _first(whole, marked)) is not None:
        kept = len(tokens)
        while len(before := tokenizer.decode(tokens[:kept], skip_special_tokens=False)) > found[0]:
            kept -= 1
        tokens, rest = tokens[:kept], whole[len(before) : found[include_stop]]
    text: str = tokenizer.decode(tokens, skip_special_tokens=skip_special) + rest
    return text if (found := _first(text, plain)) is None else text[: found[include_stop]]


def _first(text: str, strings: Sequence[str]) -> tuple[int, int] | None:
    """Where the first of these strings begins and ends."""
    return min(((at, at + len(string)) for string in strings if (at := text.find(string)) >= 0), default=None)


def _sorted_stops(tokenizer: Any, stop_strings: Sequence[str], skip_special: bool) -> tuple[list[str], list[str]]:
    """Those that are looked for in the text without special tokens, and those that are in the text with them."""
    if not skip_special:
        return [], list(stop_strings)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special} if stop_strings else set()
    marked = [stop for stop in stop_strings if any(content in stop for content in special)]
    return [stop for stop in stop_strings if stop not in marked], marked


def _is_byte(tokenizer: Any, token: int) -> bool:
    """Whether the token spells a byte of a character that the vocabulary lacks: ``<0xF0>``."""
    name_of = getattr(tokenizer, "convert_ids_to_tokens", None)  # a tokenizer of one's own may only decode
    return name_of is not None and BYTE.fullmatch(str(name_of(token))) is not None


def stop_check(tokenizer: Any, stop_strings: Sequence[str], *, skip_special: bool = True) -> StopCheck | None:
    """Finds the token that completes a stop string, None if there is nothing to look for."""
    if not stop_strings:
        return None
    longest = max(map(len, stop_strings))
    plain, marked = _sorted_stops(tokenizer, stop_strings, skip_special)

    def found(tokens: Sequence[int], stops: Sequence[str], skip: bool) -> bool:
        return bool(stops) and _first(tokenizer.decode(tokens, skip_special_tokens=skip), stops) is not None

    def check(emitted: Sequence[int], new: int) -> int | None:
        for kept in range(len(emitted) - new + 1, len(emitted) + 1):
            # Every token but special ones gives at least one byte, and a character takes at most four.
            start = max(0, kept - 4 * longest - _WINDOW)
            while start and _is_byte(tokenizer, emitted[start]):  # a run of bytes is read as a whole
                start -= 1
            if found(emitted[start:kept], plain, True) or found(emitted[start:kept], marked, False):
                return kept
        return None

    return check
