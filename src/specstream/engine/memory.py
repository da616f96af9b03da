"""Answers that later drafts are copied from: of this process and, where a file is named, of those before it."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from specstream.core.rows import Row
from specstream.core.suffix_index import SEPARATOR, SuffixIndex
from specstream.errors import UsageError, one_line
from specstream.files.atomic import check_new
from specstream.files.tensors_file import keep_tensors

_log = logging.getLogger("specstream.memory")

CAPACITY = 1 << 18
"""Tokens that are remembered, the newest: 1 MB on disk, 8 MB in memory."""

SHORTEST, LONGEST = 4, 24
"""Tokens of a match. Of 2 and 3 tokens that other answers had too, one in eight was followed by the same
(docs/experiments/0075)."""

CONTEXT = 32
"""Tokens of its prompt that an answer is remembered with: enough to tell the same question at its first token."""

_SLOTS = 17
_FORMAT = "specstream memory 1"


class Memory:
    """What the answers so far said, as tokens.

    Args:
        file: that keeps them, written after every answer; None keeps them in this process. Where several processes
            write one file, it holds the answers of the one that wrote last.
        tokenizer: whose tokens they are; None where there is none, and the vocabulary's size has to do.
        vocab_size: of the model; no token is larger.

    Attributes:
        index: of the answers.

    Raises:
        UsageError: the file holds something else, is damaged, belongs to another tokenizer, or cannot be made.
    """

    def __init__(self, file: str | None, tokenizer: Any, vocab_size: int) -> None:
        self.index = SuffixIndex(SHORTEST, LONGEST, capacity=CAPACITY, slots=_SLOTS)
        self._file, self._lock = file, Lock()
        if file is None:
            return
        self._metadata = {"format": _FORMAT, "tokenizer": _fingerprint(tokenizer, vocab_size)}
        if Path(file).exists():
            self.index.extend(self._read(Path(file), vocab_size))
        else:
            self.save(file)  # a place that cannot be written to is known before the first answer

    def learn(self, rows: Iterable[Row]) -> None:
        """Remember answers that have ended, the newest in place of the oldest."""
        with self._lock:
            for row in rows:
                if row.error is None:
                    self.index.extend([*row.tokens[max(0, row.prompt_length - CONTEXT) :], SEPARATOR])
            if self._file is not None:
                try:
                    self.save(self._file)
                except UsageError as error:  # a disk that is full costs nobody an answer; it is kept in this process
                    _log.warning("%s", error)

    def save(self, file: str) -> None:
        """Write them into a file, which is whole or as it was.

        Raises:
            UsageError: the file cannot be written, or holds something else than such answers.
        """
        tokens = torch.frombuffer(self.index.tokens() or array("i", [SEPARATOR]), dtype=torch.int32)
        keep_tensors(file, "memory", {"tokens": tokens}, self._metadata)

    def _read(self, path: Path, vocab_size: int) -> list[int]:
        check_new(path, "memory", lambda _: True)
        with _opened(path) as (file, metadata):
            if metadata != self._metadata:
                raise ValueError("it was written with another tokenizer")
            tokens = file.get_tensor("tokens")
            if tokens.dtype != torch.int32 or tokens.ndim != 1 or not len(tokens):
                raise ValueError("its tokens are no list of int32")
            if int(tokens.min()) < SEPARATOR or int(tokens.max()) >= vocab_size:
                raise ValueError(f"it has tokens beyond the vocabulary of {vocab_size}")
        found: list[int] = tokens[-CAPACITY:].tolist()
        return found


def check_memory_file(path: Path) -> None:
    """Refuse a file that is there and holds no answers, while no model has been loaded.

    Raises:
        UsageError: it is damaged, holds something else, or is no file.
    """
    check_new(path, "memory", lambda _: True)
    if path.exists():
        with _opened(path):
            pass


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file of answers and its metadata; what is wrong with it, found here or by the caller, in one sentence."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError("it holds something else")
            yield file, metadata
    except (OSError, SafetensorError, ValueError) as error:
        why = "it is damaged, or no memory" if isinstance(error, SafetensorError) else one_line(error)
        raise UsageError(
            f"memory is {str(path)!r}, which cannot be used: {why}; give a new name, to begin anew"
        ) from error


def _fingerprint(tokenizer: Any, vocab_size: int) -> str:
    """What tells a tokenizer from others."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return f"{vocab_size} tokens"
    vocabulary = "\n".join(f"{token}\t{text}" for text, token in sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode(errors="surrogatepass")).hexdigest()[:16]
