"""A task: where its prompts and references stand in a file, and how an answer is judged.

A task is a YAML file, in this folder or anywhere. Data is read from a path that the caller gives, or from the data set
of the hub that the task names.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from specstream.environment import require
from specstream.errors import UsageError, listed, one_line, remedy, shown
from specstream.files.atomic import why_unread
from specstream.files.prompts import read_records
from specstream.files.yaml_file import Section, malformed, misplaced, owner_of, sections_of
from specstream.models.hub.data_sets import load_dataset

Metric = Literal["exact_match", "exact_answer", "rouge1", "rouge2", "rougeL", "bleu", "pass@1"]

ANSWER = "answer_of_the_model"
"""What a task's program calls the model's answer."""

FOLDER = Path(__file__).parent
"""Where the named tasks are."""


class Parse(Section):
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


class HubDataset(Section):
    """Where the data of a task is on the hub.

    Attributes:
        name: of the data set.
        config: of its parts, if it has some.
        split: of it.
        revision: a branch or commit of it.
    """

    name: str = Field(min_length=1)
    config: str | None = None
    split: str = "test"
    revision: str | None = None


class Task(Section):
    """What a task's file says.

    Attributes:
        description: for people.
        format: of its files, which is also how their names end.
        dataset: of the hub, for who has no file.
        aliases: other names that a field goes by, in other editions of the data.
        parse: fields inside a field, for files that have prompt and answer in one text, or one part or several.
        prompt: the prompt, with ``{field}`` where a field goes. A field that is a list holds the turns of a
            conversation: the prompt takes the first.
        references: fields with right answers; those that a record has count, and one of them must be there if there
            are metrics that look at them. Records with one prompt are one example, with the references of all of them.
        category: the field that says what kind of example it is.
        categories: the only ones to take; none for all. Records that do not say theirs are taken.
        metrics: how an answer is judged; the first is the one that is compared.
        category_metrics: of single categories, besides ``metrics``, where a record has references.
        program: what ``pass@1`` runs, with ``{field}`` and ``{answer_of_the_model}``.
        max_new_tokens: of an answer.
        stop: texts that end it.
        chat: put the prompt through the model's chat template; None does where there is one.
    """

    description: str = ""
    format: Literal["csv", "json", "jsonl"]
    dataset: HubDataset | None = None
    aliases: dict[str, list[str]] = Field(default_factory=dict)
    parse: list[Parse] = Field(default_factory=list)
    prompt: str = Field(min_length=1)
    references: list[str] = Field(default_factory=list)
    category: str | None = None
    categories: list[str] = Field(default_factory=list)
    metrics: list[Metric] = Field(default_factory=list)
    category_metrics: dict[str, list[Metric]] = Field(default_factory=dict)
    program: str | None = None
    max_new_tokens: int = Field(default=128, ge=1)
    stop: list[str] = Field(default_factory=list)
    chat: bool | None = False

    @field_validator("parse", mode="before")
    @classmethod
    def _one_or_several(cls, parse: Any) -> Any:
        return parse if isinstance(parse, list) else [parse]

    @model_validator(mode="after")
    def _can_be_judged(self) -> Task:
        judged = {*self.metrics, *(metric for own in self.category_metrics.values() for metric in own)}
        if judged - {"pass@1"} and not self.references:
            raise ValueError(f"references, which {sorted(judged - {'pass@1'})[0]} compares with")
        if "pass@1" in judged and (self.program is None or ANSWER not in _fields(self.program)):
            raise ValueError(f"a program with {{{ANSWER}}} in it, which pass@1 runs")
        if (self.categories or self.category_metrics) and self.category is None:
            raise ValueError("category, the field that says which one a record is of")
        return self

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
        later: further turns of the conversation, each to be said after the answer to the one before.
        category: which kind it is; empty where there are none.
        fields: of its first record, for a program.
    """

    prompt: str
    references: tuple[str, ...]
    where: str
    later: tuple[str, ...] = ()
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


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
    if path.parent == FOLDER and not path.is_file():
        what = "a file, not a task" if Path(name).is_file() else "no task"
        raise UsageError(f"task {name!r} is {what}; give a YAML file, or one of {listed(name, task_names())}")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"task {name!r} cannot be read: {why_unread(error)}; give {', '.join(task_names())}, or a YAML file"
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"task {str(path)!r} is not YAML: {malformed(error, text)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"task {str(path)!r} holds no keys; give {', '.join(sorted(Task.model_fields))}")
    try:
        return Task(**values)
    except ValidationError as error:
        raise UsageError(f"task {str(path)!r}: {_wrong(error, owner_of(values, Task.model_fields))}") from None


def read_examples(task: Task, path: str | Path) -> list[TaskExample]:
    """The examples of a file, in its order.

    Args:
        task: how to read it.
        path: the file.

    Raises:
        UsageError: a file of another format or that cannot be read; a record without what the task needs, by number.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"data {str(path)!r} is no file; give one that ends in .{task.format}")
    if file.suffix != f".{task.format}":
        raise UsageError(f"data {str(path)!r} does not end in .{task.format}, which this task reads; give such a file")
    numbered = ((record, f"{path}:{number}") for number, record in enumerate(read_records(file), 1))
    return examples_of(task, numbered, str(path))


def examples_of(task: Task, records: Iterable[tuple[Mapping[str, Any], str]], source: str) -> list[TaskExample]:
    """The examples of some records.

    Args:
        task: how to read them.
        records: each with the place it stands at.
        source: all of them, for the error.

    Raises:
        UsageError: no record, or one without what the task needs, by its place.
    """
    found: dict[str, TaskExample] = {}
    for record, where in records:
        example = _example(task, record, where)
        if example is not None and (known := found.setdefault(example.prompt, example)) is not example:
            found[known.prompt] = replace(known, references=known.references + example.references)
    if not found:
        raise UsageError(f"data {source!r} holds no record{_of(task.categories)}; give another file")
    return list(found.values())


def load_examples(name: str, task: Task, path: str | None = None) -> list[TaskExample]:
    """All examples of a task.

    Args:
        name: of the task, for errors.
        task: how to read them.
        path: the file; None takes the data set of the hub.

    Raises:
        UsageError: a file or a data set that is not there, or that does not fit.
        MissingPackageError: the data set is on the hub and ``datasets`` is not installed.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UsageError(f"data {path!r} of the task {name!r} is no file; give one, with --data or path:")
        return read_examples(task, path)
    if task.dataset is None:
        raise UsageError(f"task {name!r} names no data set of the hub; give a .{task.format} file, --data FILE")
    return _from_hub(name, task, task.dataset)


def _from_hub(name: str, task: Task, dataset: HubDataset) -> list[TaskExample]:
    datasets = require("datasets", "eval", f"the data of the task {name!r}")
    try:
        rows = load_dataset(datasets, dataset.name, dataset.config, split=dataset.split, revision=dataset.revision)
    except Exception as error:  # of the network, the hub and the data set, each library with its own
        reason = one_line(error)[:200]
        raise UsageError(
            f"data set {dataset.name!r} of the task {name!r} cannot be loaded: {reason}; give a file, --data FILE"
        ) from None
    return examples_of(task, ((dict(row), f"{dataset.name}:{at}") for at, row in enumerate(rows, 1)), dataset.name)


def spread(examples: Sequence[TaskExample], limit: int | None) -> list[TaskExample]:
    """So many of them at most, evenly from first to last."""
    count = min(limit or len(examples), len(examples))
    return [examples[at * len(examples) // count] for at in range(count)]


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


def _of(categories: Sequence[str]) -> str:
    return f" of the category {' or '.join(categories)}" if categories else ""


def _example(task: Task, record: Mapping[str, Any], where: str) -> TaskExample | None:
    """The example that a record is; None for one of a category that the task leaves out."""
    category = str(record.get(task.category or "", ""))
    if category and task.categories and category not in task.categories:
        return None
    fields = _all_fields(task, record, where)
    names = _fields(task.prompt)
    turns = {name: list(map(str, value)) for name in names if isinstance(value := fields.get(name), list) and value}
    missing = [name for name in names if name not in turns and not isinstance(fields.get(name), (str, int, float))]
    references = [each for name in task.references for each in _references(fields.get(name), bool(turns))]
    if not references and set(task.metrics) - {"pass@1"}:
        missing.append(" or ".join(task.references))
    if task.program is not None:
        missing.extend(name for name in _fields(task.program) if fields.get(name) is None and name != ANSWER)
    if missing:
        raise UsageError(
            f"{where} has no {missing[0]!r}: its fields are {', '.join(map(str, fields))}; give records with "
            f"{' and '.join(dict.fromkeys([*names, *missing]))}, or the task that this file is of"
        )
    return TaskExample(
        prompt=task.prompt.format_map({**fields, **{name: said[0] for name, said in turns.items()}}),
        references=tuple(references),
        where=where,
        later=tuple(next((said[1:] for said in turns.values()), [])),
        category=category,
        fields=fields,
    )


def _all_fields(task: Task, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A record's own fields, those inside its mappings (``outer_inner``), aliases and what is parsed out of them."""
    fields = dict(record)
    for outer, inner in record.items():
        if isinstance(inner, Mapping):
            fields.update({f"{outer}_{name}": value for name, value in inner.items()})
    for name, others in task.aliases.items():
        known = next((other for other in (name, *others) if fields.get(other) is not None), None)
        if known is not None:
            fields[name] = fields[known]
    for parse in task.parse:
        fields.update(_parsed(parse, fields, where))
    return fields


def _references(value: Any, turns: bool) -> list[str]:
    """Right answers in a field: one, a list of some or, in a conversation, a list with those to each turn."""
    if isinstance(value, list) and turns:
        value = value[0] if value else None
    values = value if isinstance(value, list) else [value]
    return [text for each in values if each is not None and (text := str(each).strip())]


def _parsed(parse: Parse, fields: Mapping[str, Any], where: str) -> dict[str, str]:
    value = fields.get(parse.field)
    if isinstance(value, list) and value:
        value = value[0]
    if value is None:  # what is missing is missed where it is needed
        return {}
    match = re.fullmatch(parse.pattern, str(value))
    if match is None:
        raise UsageError(f"{where}: {parse.field!r} is {str(value)[:100]!r}, which is not {parse.pattern!r}")
    return {name: found for name, found in match.groupdict().items() if found is not None}


def program_of(task: Task, example: TaskExample, answer: str) -> str:
    """The program that an answer is judged by."""
    assert task.program is not None
    return task.program.format_map({**example.fields, ANSWER: answer})


def _fields(prompt: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]


def _wrong(error: ValidationError, owner: str) -> str:
    """The complaint; ``owner`` ends it where the file is another command's."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        if not owner and (complaint := misplaced(key.split("."), sections_of(Task))):
            return complaint
        parts: dict[str, type[Section]] = {"parse": Parse, "dataset": HubDataset}
        known = parts.get(key.rpartition(".")[0], Task)
        return f"unknown key {key!r}; known are {listed(key.rpartition('.')[2], known.model_fields)}{owner}"
    own = first["type"] == "value_error"  # in words of ours
    wanted = first["msg"].removeprefix("Value error, ") if own else remedy(first["msg"], first["input"])
    if not key:
        return f"something is missing; give {wanted}"
    if first["type"] == "missing":
        return f"{key} is missing; give it"
    return f"{key} is {shown(first['input'])}; give {wanted}"
