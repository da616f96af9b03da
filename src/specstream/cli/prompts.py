"""Prompts from a file: one a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specstream.errors import UsageError


def read_prompts(path: str) -> list[Any]:
    """The prompts of a text file, one a line, or of a JSON-lines file; empty lines are skipped.

    A line of JSON is a text, or an object with a text as ``prompt`` or a chat as ``messages``.

    Raises:
        UsageError: a file that cannot be read or holds no prompt, or a line that is none, by number.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"prompts {path!r} cannot be read: {reason}; give a text or JSON-lines file") from None
    as_json = file.suffix in (".jsonl", ".json")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"prompts {path!r} is empty; give one prompt a line")
    return [_from_json(f"{path}:{number}", line) if as_json else line for number, line in numbered]


def _from_json(where: str, line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError:
        raise UsageError(f'{where} is not JSON; give a line such as {{"prompt": "The sea is"}}') from None
    prompt = value.get("prompt", value.get("messages")) if isinstance(value, Mapping) else value
    if not prompt or not (isinstance(prompt, str) or _is_chat(prompt)):
        raise UsageError(f"{where} holds no prompt; give a text, or an object with a 'prompt' or with 'messages'")
    return prompt


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value
    )
