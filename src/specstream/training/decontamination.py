"""Keeping prompts that something will be measured on out of what it is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from specstream.files.prompts import read_records, turns_of

GRAM = 13
"""Words in a row that two prompts may not share, as in the usual checks for contamination."""


class Decontamination:
    """Prompts that must not be trained on.

    Args:
        texts: those prompts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[tuple[str, ...]] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in texts:
            words = same(text)
            self._whole.add(words)
            self._grams.update(_grams(words))

    @classmethod
    def of_files(cls, files: Iterable[str]) -> Decontamination:
        """Everything that is asked in the records of some files.

        Raises:
            UsageError: a file that cannot be read.
        """
        return cls(text for file in files for record in read_records(file) for text in turns_of(record, file))

    def __contains__(self, text: str) -> bool:
        """Whether a prompt is one of them but for case and punctuation, or shares ``GRAM`` words in a row with one."""
        words = same(text)
        return words in self._whole or any(gram in self._grams for gram in _grams(words))


def same(text: str) -> tuple[str, ...]:
    """A prompt's words: equal for those that differ in case, spaces and punctuation only."""
    return tuple(re.findall(r"\w+", text.lower())) or (text,)


def _grams(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (words[start : start + GRAM] for start in range(len(words) - GRAM + 1))
