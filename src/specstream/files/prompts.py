"""Prompts, and answers where they are given, from files of several formats. The one reader of all commands."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specstream.errors import UsageError
from specstream.files.atomic import why_unread

if TYPE_CHECKING:
    from typing_extensions import TypeIs

FIELDS = (
    "prompt",
    "turns",
    "instruction",
    "conversations",
    "messages",
    "question",
    "dialogue",
    "text",
    "content",
    "mr",
    "MR",
)
"""Where a record's prompt may stand; the first that is there is taken."""

ANSWERS = ("completion", "response", "output", "answer", "summary", "summary1", "ref", "query")
"""Where its answer may stand."""

_PLACEHOLDER = (
    "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"  # in SPEED-Bench, where a prompt may not be copied
)


def read_records(path: str | Path, wanted: str = ".txt, .jsonl, .json or .csv") -> list[dict[str, Any]]:
    """The records of a ``.jsonl``, ``.json`` (a list), ``.csv`` or ``.txt`` file; a text is ``{"prompt": text}``.

    A text file holds a prompt a line. What has no ending, and ``-``, the standard input, is JSON lines if it begins
    with a brace, else text.

    Args:
        path: the file.
        wanted: what to give in place of one that cannot be read.

    Raises:
        UsageError: a file that cannot be read, or of another format; a line that is none, or one of SPEED-Bench whose
            prompt was not fetched, by number.
    """
    file = Path(path)
    try:
        text = text_of(path)
        ending = file.suffix or (".jsonl" if text.lstrip().startswith("{") else ".txt")
        records: Any
        if ending == ".jsonl":
            records = _json_lines(text, file)
        elif ending == ".txt":
            records = [line.strip() for line in text.splitlines() if line.strip()]
        elif ending == ".json":
            records = json.loads(text)
        elif ending == ".csv":
            records = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            raise ValueError(f"the ending is {file.suffix!r}")
    except UsageError:
        raise
    except json.JSONDecodeError as error:
        lines = "; a file with a record a line is called .jsonl" if error.msg == "Extra data" else "; mend it"
        raise UsageError(f"file {str(file)!r} is not JSON: line {error.lineno}, {error.msg}{lines}") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"file {str(file)!r} cannot be read: {why_unread(error)}; give {wanted}") from None
    if not isinstance(records, list):
        raise UsageError(f"file {str(file)!r} holds one {type(records).__name__}; give a list of records")
    return [_record(value, f"{file}:{number}") for number, value in enumerate(records, 1)]


def text_of(path: str | Path) -> str:
    """What a file holds, or the standard input where the path is ``-``.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def load_prompts(path: str | Path, field: str = "", where: Mapping[str, str] | None = None) -> list[str]:
    """The prompts of a file, one text each.

    Args:
        path: the file; see ``read_records``.
        field: the prompt's key in a record; empty takes the first of ``FIELDS`` that is there.
        where: keep only records with these values, such as ``{"category": "coding"}``.

    Raises:
        UsageError: no such file, another format, or a record without a prompt.
    """
    records = [each for each in read_records(path) if all(str(each.get(k)) == v for k, v in (where or {}).items())]
    if not records:
        raise UsageError(f"file {str(path)!r} has no record{f' with {dict(where)}' if where else ''}; give another")
    return [prompt_of(record, str(path), field) for record in records]


def read_prompts(path: str) -> list[Any]:
    """Texts and chats as they stand: a record's ``prompt`` or whole ``messages``.

    Raises:
        UsageError: a file that cannot be read or holds no prompt.
    """
    prompts = [
        record["messages"] if is_chat(record.get("messages")) else prompt_of(record, f"{path}:{number}")
        for number, record in enumerate(read_records(path), 1)
    ]
    if not prompts:
        raise UsageError(f"file {path!r} is empty; give one prompt a line")
    return prompts


def prompt_of(record: Mapping[str, Any], where: str, field: str = "") -> str:
    """The prompt of one record, with the input or the context that belongs to it.

    Args:
        record: of a file.
        where: the file, for the error.
        field: the key; empty takes the first of ``FIELDS`` that is there.

    Raises:
        UsageError: a record without a prompt.
    """
    key = field or next((name for name in FIELDS if record.get(name)), "")
    if not record.get(key):
        fields = ", ".join(map(str, record))
        cut = " (is it cut by commas?)" if ";" in fields or "\t" in fields else ""
        wanted = key or "prompt"
        raise UsageError(f"a record of {where!r} has no {wanted}: its fields are {fields}{cut}; call one {wanted!r}")
    text = _first(record[key])
    extra = "context" if key == "question" else "input"
    more = record.get(extra) or (_instance(record).get("input") if key == "instruction" else "")
    return f"{text}\n\n{more}" if more and key in ("instruction", "question") else text


def answer_of(record: Mapping[str, Any]) -> str | None:
    """The answer that a record gives, None if it gives none."""
    for name in ANSWERS:
        if isinstance(record.get(name), str) and record[name]:
            return str(record[name])
    answer = _instance(record).get("output")
    return str(answer) if answer else None


def unanswered(record: Mapping[str, Any]) -> bool:
    """Whether there is a place for the answer, and it is empty."""
    return answer_of(record) is None and any(record.get(name) == "" for name in ANSWERS)


def turns_of(record: Mapping[str, Any], where: str) -> list[str]:
    """Everything that is asked in a record: its prompt, and the later turns of a conversation."""
    said, chat = record.get("turns"), record.get("messages")
    if not said and is_chat(chat):
        said = [turn["content"] for turn in chat if turn["role"] == "user"]
    more = [str(turn) for turn in said[1:]] if isinstance(said, list) else []
    return [prompt_of(record, where), *more]


def is_chat(value: Any) -> TypeIs[list[dict[str, Any]]]:
    """Whether it is a list of turns, each with a role and content."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)
    )


def _json_lines(text: str, file: Path) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: texts hold U+2028
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError:
                example = '{"prompt": "The sea is"}'
                raise UsageError(f"{file}:{number} is not JSON; give a line such as {example}") from None
    return records


def _record(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str) and value:
        return {"prompt": value}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} holds no prompt; give a text, or an object with a 'prompt' or with 'messages'")
    said = value.get("turns") or value.get("messages")
    if said and _first(said).startswith(_PLACEHOLDER):
        raise UsageError(
            f"{where} has a placeholder of SPEED-Bench for a prompt; fetch it with the dataset's prepare.py"
        )
    return dict(value)


def _first(value: Any) -> str:
    """A text, the first turn of a conversation, or what its user first says."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return str(value)
    spoken = [turn for turn in value if isinstance(turn, Mapping) and turn.get("role", turn.get("from")) != "system"]
    first = spoken[0] if spoken else value[0]
    return str(first.get("value", first.get("content", ""))) if isinstance(first, Mapping) else str(first)


def _instance(record: Mapping[str, Any]) -> Mapping[str, Any]:
    instances = record.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    return first if isinstance(first, Mapping) else {}
