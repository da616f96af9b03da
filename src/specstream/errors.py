"""What the package raises on purpose: every message is one line that names the value and the remedy."""


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
