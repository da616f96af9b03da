"""What the package raises on purpose: every message is one line that names the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SpecStreamError(Exception):
    """A failure whose message is meant for the user; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(SpecStreamError, ValueError):
    """A value given by the caller cannot be used."""

    exit_code = 2


class ModelNotFoundError(UsageError):
    """No model answers to this name, folder or hub id."""


class UnsupportedModelError(UsageError):
    """The model exists but cannot be decoded speculatively."""


class VocabularyMismatchError(UsageError):
    """A draft and its target do not share one vocabulary."""


class HeadMismatchError(UsageError):
    """Heads that were trained for another base than the model they were given."""


class NumericalError(SpecStreamError):
    """The model produced numbers that no token can be chosen from."""


class DeviceMemoryError(SpecStreamError):
    """The device has no room for what it was asked to compute."""


class DownloadError(SpecStreamError):
    """A model could not be fetched or written to disk."""


class MissingPackageError(SpecStreamError, ImportError):
    """An optional package is needed and not installed."""


class TrainingError(SpecStreamError):
    """A training run cannot go on."""


def shown(value: object) -> str:
    """A value in a message: one line, and not all of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def reason_of(error: Exception) -> str:
    """What went wrong, in one line: for records of what failed and was not fatal."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a misspelt one, if one is."""
    return next(iter(get_close_matches(name.lower(), list(known), n=1, cutoff=0.7)), None)


def listed(name: str, known: Iterable[str]) -> str:
    """The known names for the error about another one, with the one that may be meant."""
    names = sorted(known)
    meant = closest(name, names)
    return ", ".join(names) + ("" if meant is None else f"; did you mean {meant!r}?")
