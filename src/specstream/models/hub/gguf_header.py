"""What a GGUF file holds, read in a tenth of a second: its fields, and where each tensor lies.

The reader of the gguf package makes several arrays for each string, which takes seconds for a vocabulary, and says of a
damaged file what numpy says. Here every length is compared with the file's own.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from specstream.errors import ModelNotFoundError
from specstream.files.atomic import why_unread

MAGIC, ENDING = b"GGUF", ".gguf"
KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
"""The types of blocks that are read, by ggml's names."""

PLAIN_KINDS = ("F32", "F16", "BF16")
"""Types of tensors that are numbers already."""

_DAMAGED = "copy or download it again"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9  # the other types of fields
_LONGEST = 8  # dimensions; ggml has four


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of the file.

    Attributes:
        name: in the file.
        kind: ggml's name of its type.
        shape: as torch has it, the row's length last.
        start: its first byte in the file.
        nbytes: how many it takes.
        part: which of ``Header.paths`` it is in.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class Header:
    """All of a file but its tensors.

    Attributes:
        path: of the file, the first part of one that is split.
        paths: of all its parts.
        fields: by their keys: numbers, texts, and lists of them.
        types: of the same, by their numbers in the file.
        tensors: by their names.
    """

    path: Path
    paths: tuple[Path, ...]
    fields: Mapping[str, Any]
    types: Mapping[str, int]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """Such as ``llama``."""
        return str(self.fields.get("general.architecture"))

    def own(self, key: str) -> Any:
        """A field of the architecture, None where it has none."""
        return self.fields.get(f"{self.architecture}.{key}")


def is_gguf(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a model argument is meant as a GGUF file that is there: by its ending, or by its first bytes."""
    text = os.fspath(name_or_path)
    if not text or not os.path.exists(Path(text).expanduser()):
        return False
    path = Path(text).expanduser()
    if text.lower().endswith(ENDING):
        return not (path.is_dir() and (path / "config.json").is_file())  # a saved model in a folder of that name
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # a folder among others
        return False


def read_header(path: Path) -> Header:
    """The header of a file, each tensor of a type that is read, within the file.

    A file that is split is given by its first part, and the others stand beside it.

    Raises:
        ModelNotFoundError: it is a folder, a later part, empty, cut short, no GGUF file, or holds other types; a part
            is missing.
    """
    try:
        headers = [_read(each, (found := each.stat()).st_size, found.st_mtime_ns) for each in _parts(path)]
    except OSError as error:
        raise ModelNotFoundError(f"{str(path)!r} cannot be read: {why_unread(error)}; give a file that can") from error
    if len(headers) == 1:
        return headers[0]
    tensors = {
        name: replace(tensor, part=part) for part, own in enumerate(headers) for name, tensor in own.tensors.items()
    }
    return replace(headers[0], paths=tuple(each.path for each in headers), tensors=tensors)


def _parts(path: Path) -> list[Path]:
    """All of a file that may be split, the first given."""
    if (part := _SPLIT.search(path.name)) is None:
        return [path]
    names = [f"{path.name[: part.start()]}-{at:05}-of-{part[2]}.gguf" for at in range(1, int(part[2]) + 1)]
    if path.name != names[0]:
        raise ModelNotFoundError(
            f"{str(path)!r} is part {int(part[1])} of {len(names)}; give the first, {names[0]!r}, with the others "
            "beside it"
        )
    for name in names:
        if not path.with_name(name).is_file():
            raise ModelNotFoundError(
                f"{str(path)!r} is part 1 of {len(names)} and there is no {name!r} beside it; download that too"
            )
    return [path.with_name(name) for name in names]


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int) -> Header:
    """That of a file as it is now: it is asked for several times while a model is loaded."""
    if path.is_dir():
        raise ModelNotFoundError(f"{str(path)!r} is a folder named as a GGUF file; give the file in it, or rename it")
    if not size:
        raise ModelNotFoundError(f"{str(path)!r} is empty; {_DAMAGED}")
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return _Parser(path, data).header()
    except OSError as error:
        raise ModelNotFoundError(f"{str(path)!r} cannot be read: {why_unread(error)}; give a file that can") from error


class _Parser:
    """Reads a mapped file from its beginning."""

    def __init__(self, path: Path, data: mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def header(self) -> Header:
        if self._data[:4] != MAGIC:
            raise ModelNotFoundError(
                f"{str(self._path)!r} begins with {self._data[:4]!r} and is no GGUF file; give one, or the folder of a "
                "saved model"
            )
        self._at = 4
        (version,) = self._take("I")
        if version not in (2, 3):
            raise ModelNotFoundError(f"{str(self._path)!r} is of GGUF version {version}; give one of version 2 or 3")
        tensors, fields = self._take("QQ")
        values, types = dict[str, Any](), dict[str, int]()
        for _ in range(fields):
            key = self._text()
            kind = self._value_type()
            values[key], types[key] = self._value(kind), kind
        infos = [self._info() for _ in range(tensors)]
        alignment = int(values.get("general.alignment") or 32)
        start = -(-self._at // alignment) * alignment
        stored = {name: self._stored(name, shape, kind, start + offset) for name, shape, kind, offset in infos}
        return Header(path=self._path, paths=(self._path,), fields=values, types=types, tensors=stored)

    def _cut(self) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"{str(self._path)!r} is damaged or cut short: it ends at byte {len(self._data):,}; {_DAMAGED}"
        )

    def _take(self, format: str) -> tuple[Any, ...]:
        try:
            found = struct.unpack_from(f"<{format}", self._data, self._at)
        except struct.error:
            raise self._cut() from None
        self._at += struct.calcsize(f"<{format}")
        return found

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self._cut()
        self._at += count
        return self._data[self._at - count : self._at]

    def _text(self) -> str:
        return self._bytes(self._take("Q")[0]).decode("utf-8", "replace")

    def _value_type(self) -> int:
        (number,) = self._take("I")
        if number not in (*_NUMBERS, _TEXT, _LIST):
            raise self._cut()
        return int(number)

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._take(_NUMBERS[kind])[0]
        inner, (count,) = self._value_type(), self._take("Q")
        if count > len(self._data) - self._at or inner == _LIST:  # no file has lists of lists
            raise self._cut()
        if inner in _NUMBERS:
            return list(self._take(f"{count}{_NUMBERS[inner]}"))
        return [self._value(inner) for _ in range(count)]

    def _info(self) -> tuple[str, tuple[int, ...], str, int]:
        from gguf import GGMLQuantizationType  # with numpy, a quarter of a second for commands that read no file

        name, (dimensions,) = self._text(), self._take("I")
        if dimensions > _LONGEST:
            raise self._cut()
        shape = tuple(reversed(self._take(f"{dimensions}Q")))
        number, offset = self._take("IQ")
        known = {int(each): each.name for each in GGMLQuantizationType}
        if (kind := known.get(number, f"number {number}")) not in (*KINDS, *PLAIN_KINDS):
            raise ModelNotFoundError(
                f"{str(self._path)!r} has {name} in the type {kind}, which is not read; give a file of "
                f"{', '.join((*KINDS, *PLAIN_KINDS))}"
            )
        return name, shape, kind, offset

    def _stored(self, name: str, shape: tuple[int, ...], kind: str, start: int) -> StoredTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        count = 1
        for each in shape:
            count *= each
        if shape and shape[-1] % values:
            raise ModelNotFoundError(
                f"{str(self._path)!r} has {name} of rows of {shape[-1]} values in {kind} blocks of {values}; {_DAMAGED}"
            )
        nbytes = count // values * size
        if start + nbytes > len(self._data):
            raise ModelNotFoundError(
                f"{str(self._path)!r} is cut short: {name} ends at byte {start + nbytes:,} of {len(self._data):,}; "
                f"{_DAMAGED}"
            )
        return StoredTensor(name=name, kind=kind, shape=shape, start=start, nbytes=nbytes)
