"""What is wrong with the files of a model's folder, before transformers reads them.

Of a file that it cannot read transformers does not say the name, and some it ignores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specstream.errors import one_line

DAMAGED = "the file is damaged or cut short: copy or download it again"

_POINTER = b"version https://git-lfs"
"""How a file begins that git left in the place of a large one."""

_POINTER_BYTES = 1024
"""More than any pointer has."""

_SMALL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_INDEX = "model.safetensors.index.json"


def damage(folder: Path) -> str | None:
    """What has to be mended, with the remedy; None if nothing is seen. The files of weights are not read."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors") and path.is_file())
    if pointers := [path.name for path in files if _is_pointer(path)]:
        return f"{pointers[0]} is a pointer of git-lfs, without content: run git lfs pull in that folder"
    for path in files:
        if path.name in (*_SMALL, _INDEX):
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                return f"{path.name} is no JSON ({one_line(error)[:80]}): {DAMAGED}"
            if not isinstance(settings, dict):
                return f"{path.name} holds no keys: {DAMAGED}"
            if path.name == _INDEX and (told := _missing(folder, settings)):
                return told
    return None


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _missing(folder: Path, index: dict[str, Any]) -> str | None:
    """Of weights in several files those that are not there; with the whole in one file nobody reads the others."""
    named = index.get("weight_map")
    parts = sorted({part for part in named.values() if isinstance(part, str)}) if isinstance(named, dict) else []
    lacking = [part for part in parts if not (folder / part).is_file()]
    if not lacking or (folder / "model.safetensors").is_file():
        return None
    first = f"{lacking[0]} is missing" if len(lacking) == 1 else f"{len(lacking)} are missing, {lacking[0]} the first"
    return f"of its {len(parts)} files of weights {first}: copy or download what is missing"
