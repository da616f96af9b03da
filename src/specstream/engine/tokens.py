"""What a token stands for in a text: bytes, which need not be whole characters."""

from __future__ import annotations

from typing import Any

from specstream.engine.text import BYTE, encode

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(_OTHERS)}
"""The characters that byte-level vocabularies write bytes with, as GPT-2's does."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """Says what tokens are, one by one, as they stand in a text.

    Decoded alone a token may be something else: part of a character is a replacement character then, and some
    tokenizers strip the space that a text begins with.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before = encode(tokenizer, "a")[-1:]
        self._known: dict[tuple[int, bool], bytes] = {}

    def bytes_of(self, token: int, *, first: bool = False) -> bytes:
        """The bytes of a token within a text, or of its first."""
        key = token, first
        if key not in self._known:
            text = self._decode(token) if first else self._within(token)
            self._known[key] = text.encode() if _UNKNOWN not in text else self._raw(token, text)
        return self._known[key]

    def say(self, token: int, *, first: bool = False, mark: str = "") -> str:
        r"""The same as text; bytes that are no whole characters as ``\xf0\x9f``, behind ``mark``."""
        raw = self.bytes_of(token, first=first)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return mark + "".join(f"\\x{byte:02x}" for byte in raw)

    def _within(self, token: int) -> str:
        """Behind another token."""
        before, both = self._decode(*self._before), self._decode(*self._before, token)
        return both[len(before) :] if both.startswith(before) else self._decode(token)

    def _raw(self, token: int, text: str) -> bytes:
        """By its name in the vocabulary."""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if (byte := BYTE.fullmatch(name)) is not None:
            return bytes([int(byte[1], 16)])
        return bytes(_BYTES[each] for each in name) if set(name) <= set(_BYTES) else text.encode()

    def _decode(self, *tokens: int) -> str:
        return str(self._tokenizer.decode(tokens))
