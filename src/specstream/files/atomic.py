"""Files that are whole or not there, runs that begin anew, why a file cannot be read, and where a user's cache is."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from specstream.errors import UsageError, must_be, one_line, shown


def user_cache() -> Path:
    """`$XDG_CACHE_HOME` if it is absolute, as its specification has it, else `~/.cache`."""
    given = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
    return given if given.is_absolute() else Path("~/.cache").expanduser()


_ENDINGS = (".jsonl", ".json", ".csv", ".txt", ".md", ".py", ".yaml", ".yml", ".gguf", ".bin", ".safetensors")


_FORMATS = {*_ENDINGS, ".tsv", ".html", ".pdf", ".xlsx", ".parquet", ".png", ".svg", ".zip", ".pt", ".log"}
"""Endings that say what a file holds."""


def check_ending(path: str, setting: str, ending: str, what: str) -> None:
    """Refuse to write one format under the name of another, as which it would be read.

    Args:
        path: to write.
        setting: how the path is given, for the error.
        ending: of what is written, such as ``.json``; empty for a folder.
        what: is written.

    Raises:
        UsageError: so it is.
    """
    refuse_address(path, setting)
    own = Path(path).suffix.lower()
    if own in _FORMATS - {ending}:
        wanted = f"that ends in {ending}" if ending else f"without {own}"
        raise UsageError(f"{setting} is {path!r} and {what} is written; give a name {wanted}")


def is_meant_as_path(name: str) -> bool:
    """Whether a name that could be a hub id is more likely a path, though nothing is there.

    It is one if it ends as a file does, begins with a folder that is here, or with one that commands write into.
    """
    first, slash, _ = name.partition("/")
    return name.endswith(_ENDINGS) or (bool(slash) and (first in ("runs", "data") or Path(first).is_dir()))


def why_unread(error: Exception) -> str:
    """Why a text file could not be read, in one line, with the remedy where its encoding is the reason."""
    if isinstance(error, UnicodeDecodeError):
        if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "it is UTF-16, and becomes UTF-8 with: iconv -f utf-16 -t utf-8 FILE"
        if b"\0" in error.object:
            return "it is no text"
        return "it is not UTF-8, and becomes so with: iconv -f latin1 -t utf-8 FILE"
    return one_line(getattr(error, "strerror", None) or error)


def refuse_folder_name(path: str | Path, setting: str) -> None:
    """Refuse for a file a name that ends with a slash, which a ``Path`` leaves out.

    Args:
        path: as it was given.
        setting: how it is given, for the error.

    Raises:
        UsageError: it ends with one.
    """
    if str(path).endswith(("/", os.sep)):
        raise UsageError(f"{setting} is {str(path)!r}, which is the name of a folder; give that of a file")


def check_new(path: Path, setting: str, is_own: Callable[[Path], bool]) -> None:
    """Refuse to replace a file that the same command did not write: an input, or what else would be lost.

    Args:
        path: to write.
        setting: how the path is given, for the error.
        is_own: whether the file that is there is an earlier one of the command's; asked where it holds something.

    Raises:
        UsageError: it is not, or there is a folder, a device or a pipe.
    """
    _refuse_special(path, f"{setting} is {str(path)!r}, which")
    if path.is_dir():
        raise UsageError(f"{setting} is {str(path)!r}, which is a folder; give the name of a file")
    if path.is_file() and path.stat().st_size and not is_own(path):
        raise UsageError(f"{setting} is {str(path)!r}, which is another file's name already; give a new one")


def refuse_address(path: str | Path, setting: str) -> None:
    """Refuse to write to an address, such as ``s3://bucket/x``, which would become folders here.

    Args:
        path: to write.
        setting: how it is given, for the error.

    Raises:
        UsageError: it is one.
    """
    _refuse_address(path, f"{setting} is {str(path)!r}, which")


def _refuse_address(path: str | Path, what: str) -> None:
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise UsageError(f"{what} is an address; give a place on this machine")


def _refuse_special(path: Path, what: str) -> None:
    """To rename a file to the name of a device or a pipe would be its end."""
    _refuse_address(path, what)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{what} is a device or a pipe; give the name of a file")


def path_of(name: str, value: Any, wanted: str) -> Path:
    """A path that was given.

    Args:
        name: of the argument.
        value: a text or a path.
        wanted: what to give, for the error.

    Raises:
        UsageError: it is neither, or an empty text.
    """
    must_be(isinstance(value, str | os.PathLike) and str(value).strip() != "", name, value, wanted)
    return Path(value)


def folder_of(name: str, value: Any) -> Path:
    """A folder to write into, made if it is not there.

    Raises:
        UsageError: it is no path, or there can be no folder.
    """
    path = path_of(name, value, "a folder")
    refuse_address(value, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "which is a file" if path.exists() else f"which cannot be made: {why_unread(error)}"
        raise UsageError(f"{name} is {str(value)!r}, {reason}; give a folder") from None
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Inside, a temporary name beside a file to write it under; it takes the file's place if nothing fails."""
    _refuse_special(path, repr(str(path)))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial):  # a name that nobody gave
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Under a temporary name first."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def set_aside(path: Path) -> None:
    """Rename a file or a folder to a name that is free, so that another can begin there and nothing is lost."""
    ending = path.suffix if path.is_file() else ""
    names = (path.with_name(f"{path.name.removesuffix(ending)}.{number}{ending}") for number in count(1))
    os.rename(path, next(each for each in names if not each.exists()))


def write_json(path: Path, value: Any) -> None:
    """As JSON, under a temporary name first."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines but for one that a killed process left unfinished; none without a file."""
    raw = path.read_bytes() if path.exists() else b""
    end = raw.rfind(b"\n") + 1
    text = raw[:end].decode("utf-8") + raw[end:].decode("utf-8", "ignore")  # it may end within a character
    found = []
    for line in text.split("\n"):  # texts hold U+2028
        with suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def difference(before: Any, now: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that two runs differ in: its name with those of its sections, and both values."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return None if before == now else (place, before, now)
    keys = {key: f"{place}.{key}" if place else str(key) for key in {**before, **now}}
    found = (difference(before.get(key), now.get(key), inner) for key, inner in keys.items())
    return next((each for each in found if each is not None), None)


def changed(name: str, before: Any, now: Any) -> str:
    """What ``difference`` found, in words: of a file's SHA-256 which file it is, of other settings both values."""
    digests = [each for each in (before, now) if isinstance(each, str) and re.fullmatch("[0-9a-f]{64}", each)]
    if not digests:
        return f"{name} {shown(before)} and now it is {shown(now)}"
    if len(digests) == 2:
        return f"another content of {name.removesuffix('.sha256')}"
    return f"{name}, which is not given now" if now is None else f"no {name}, which is given now"
