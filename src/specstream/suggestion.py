"""What somebody may have meant by a name that there is none of."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a misspelt one, if one is."""
    return next(iter(get_close_matches(name.lower(), list(known), n=1, cutoff=0.7)), None)


def listed(name: str, known: Iterable[str]) -> str:
    """The known names for the error about another one, with the one that may be meant."""
    names = sorted(known)
    meant = closest(name, names)
    return ", ".join(names) + ("" if meant is None else f"; did you mean {meant!r}?")
