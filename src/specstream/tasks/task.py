"""A task: where its prompts and references stand in a file, and how an answer is judged.

A task is a YAML file, in this folder or anywhere. Data is read from a path that the caller gives.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from specstream.errors import UsageError
from specstream.prompts import read_records

Metric = Literal["exact_match", "rouge1", "rouge2", "rougeL", "bleu"]

FOLDER = Path(__file__).parent
"""Where the named tasks are."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parse(_Part):
    """Fields that stand inside a field.

    Attributes:
        field: of the record.
        pattern: a regular expression that matches the whole of it; its named groups are fields of their own.
    """

    field: str
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"a regular expression: {error}") from None
        if not groups:
            raise ValueError("a regular expression with named groups, (?P<name>...)")
        return pattern


class Task(_Part):
    """What a task's file says.

    Attributes:
        description: for people.
        format: of its files, which is also how their names end.
        parse: fields inside a field, for files that have prompt and answer in one text.
        prompt: the prompt, with ``{field}`` where a field goes.
        references: fields with right answers; those that a record has count, and one of them must be there. Records
            with one prompt are one example, with the references of all of them.
        metrics: how an answer is judged; the first is the one that is compared.
        max_new_tokens: of an answer.
        stop: texts that end it.
        chat: put the prompt through the model's chat template.
    """

    description: str = ""
    format: Literal["csv", "json", "jsonl"]
    parse: Parse | None = None
    prompt: str = Field(min_length=1)
    references: list[str] = Field(min_length=1)
    metrics: list[Metric] = Field(min_length=1)
    max_new_tokens: int = Field(default=128, ge=1)
    stop: list[str] = Field(default_factory=list)
    chat: bool = False

    @field_validator("prompt")
    @classmethod
    def _names_fields(cls, prompt: str) -> str:
        try:
            names = _fields(prompt)
        except ValueError as error:
            raise ValueError(f"a text with {{field}} in it: {error}") from None
        if not names or not all(name.isidentifier() for name in names):
            raise ValueError("a text with {field} in it, where field is a name")
        return prompt


@dataclass(frozen=True, kw_only=True)
class TaskExample:
    """One example of a task.

    Attributes:
        prompt: what the model is given.
        references: right answers.
        where: file and number of its first record.
    """

    prompt: str
    references: tuple[str, ...]
    where: str


def task_names() -> list[str]:
    """Of the tasks that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_task(name: str) -> Task:
    """A task by its name or by the path of its YAML file.

    Raises:
        UsageError: no such task, an unknown key, a value that does not fit: with the file and the key.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"task {name!r} cannot be read: {error}; give {', '.join(task_names())}, or a YAML file"
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"task {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"task {str(path)!r} holds no keys; give {', '.join(sorted(Task.model_fields))}")
    try:
        return Task(**values)
    except ValidationError as error:
        raise UsageError(f"task {str(path)!r}: {_wrong(error)}") from None


def read_examples(task: Task, path: str | Path) -> list[TaskExample]:
    """The examples of a file, in its order.

    Args:
        task: how to read it.
        path: the file.

    Raises:
        UsageError: a file of another format or that cannot be read; a record without what the task needs, by number.
    """
    file = Path(path)
    if file.suffix != f".{task.format}":
        raise UsageError(f"data {str(path)!r} does not end in .{task.format}, which this task reads; give such a file")
    found: dict[str, tuple[list[str], str]] = {}
    for number, record in enumerate(read_records(file), 1):
        where = f"{path}:{number}"
        prompt, references = _example(task, record, where)
        found.setdefault(prompt, ([], where))[0].extend(references)
    if not found:
        raise UsageError(f"data {str(path)!r} holds no record; give another file")
    return [
        TaskExample(prompt=prompt, references=tuple(references), where=where)
        for prompt, (references, where) in found.items()
    ]


def training_records(task: Task, path: str | Path) -> list[tuple[dict[str, Any], str]]:
    """``prompt`` and ``answer`` of every reference of a file, and where its example stands.

    Raises:
        UsageError: as ``read_examples``.
    """
    return [
        ({"prompt": example.prompt, "answer": reference}, example.where)
        for example in read_examples(task, path)
        for reference in example.references
    ]


def _example(task: Task, record: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    fields = {**record, **_parsed(task.parse, record, where)}
    missing = [name for name in _fields(task.prompt) if not isinstance(fields.get(name), (str, int, float))]
    references = [str(fields[name]).strip() for name in task.references if fields.get(name)]
    if not references:
        missing.append(" or ".join(task.references))
    if missing:
        raise UsageError(f"{where} has no {missing[0]!r}: its fields are {', '.join(map(str, fields))}")
    return task.prompt.format_map(fields), references


def _parsed(parse: Parse | None, record: Mapping[str, Any], where: str) -> dict[str, str]:
    if parse is None:
        return {}
    match = re.fullmatch(parse.pattern, str(record.get(parse.field)))
    if match is None:
        raise UsageError(f"{where}: {parse.field!r} is {record.get(parse.field)!r}, which is not {parse.pattern!r}")
    return {name: value for name, value in match.groupdict().items() if value is not None}


def _fields(prompt: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]


def _wrong(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = Parse if len(first["loc"]) > 1 else Task
        return f"unknown key {key!r}; known are {', '.join(sorted(known.model_fields))}"
    if first["type"] == "missing":
        return f"{key} is missing; give it"
    remedy = first["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("should be ")
    return f"{key} is {first['input']!r}; give {remedy}"
