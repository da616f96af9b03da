"""What is generated from: prompts by category, and the batches and contexts that are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.engine.text import Chat, asked, encode
from specstream.errors import UsageError
from specstream.evaluation.benchmark.config import PromptFile, PromptsSection
from specstream.evaluation.tasks.task import read_examples, read_task
from specstream.files.prompts import prompt_of, read_records
from specstream.files.yaml_file import Document
from specstream.reporting import announce

BUILT_IN = Path(__file__).with_name("prompts.jsonl")
"""Three prompts of each category, for a benchmark without data."""

MIXED = "mixed"
"""The category of a batch of several."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
        category: the kind of task it is.
        text: what is asked, a conversation, or token ids.
        chat: whether a text goes through the chat template; None if there is one.
        turn: which of its conversation it is, from 1.
    """

    category: str
    text: str | Chat | Sequence[int]
    chat: bool | None
    turn: int = 1


@dataclass(frozen=True, kw_only=True)
class Item:
    """What one generation starts from.

    Attributes:
        index: its number.
        category: of its prompts.
        name: a hash of its prompts, by which two runs know that they had the same.
        rows: token ids of each.
    """

    index: int
    category: str
    name: str
    rows: tuple[tuple[int, ...], ...]


def read_prompts(section: PromptsSection, document: Document) -> list[Prompt]:
    """The prompts that a configuration asks for, by category in the order of the files.

    Raises:
        UsageError: a file or a task that cannot be read, a category that no prompt has.
    """
    found: dict[str, list[Prompt]] = {}
    for number, file in enumerate(section.files or [PromptFile(path=str(BUILT_IN))]):
        try:
            prompts = _read(file, section.chat)
        except UsageError as error:
            raise UsageError(f"{document.where(('prompts', 'files', number))}{error}") from None
        if not prompts:
            where = document.where(("prompts", "files", number))
            raise UsageError(f"{where}prompts {file.path!r} holds no prompt; give another file")
        for prompt in prompts:
            found.setdefault(prompt.category, []).append(prompt)
    for number, name in enumerate(section.categories):
        if name not in found:
            where = document.where(("prompts", "categories", number))
            raise UsageError(f"{where}no prompt is of the category {name!r}; give some of {', '.join(found)}")
    chosen = [name for name in found if not section.categories or name in section.categories]
    taken = [prompt for name in chosen for prompt in found[name][: section.per_category]]
    if "--set" not in document.where(("prompts", "per_category")):  # whoever typed it knows
        say_left_out(
            f"prompts.per_category is {section.per_category}", len(taken), sum(len(found[each]) for each in chosen)
        )
    return taken


def say_left_out(limit: str, taken: int, there: int) -> None:
    """Say that a limit leaves prompts out, where the files have more than is measured."""
    if taken < there:
        announce(f"{limit}: {taken} of {there} prompts are asked")


def make_items(tokenizer: Any, prompts: Sequence[Prompt], *, batch: int = 1, context: int | None = None) -> list[Item]:
    """Prompts as what generations start from.

    Args:
        tokenizer: encodes.
        prompts: all of them.
        batch: prompts of an item; the last item is filled up with the first prompts.
        context: tokens of every prompt: a shorter one has others before it, as if that had been said, a longer one
            loses its beginning. None leaves them as they are.

    Raises:
        UsageError: an empty prompt, or a chat without a template.
    """
    texts = [asked(tokenizer, each.text, each.chat) if isinstance(each.text, str) else each.text for each in prompts]
    encoded = [encode(tokenizer, text) for text in texts]
    if context is not None:
        encoded = [_lengthened(encoded, index, context) for index in range(len(encoded))]
    items: list[Item] = []
    for first in range(0, len(prompts), batch):
        places = [place % len(prompts) for place in range(first, first + batch)]
        kinds = {prompts[place].category for place in places}
        rows = tuple(tuple(encoded[place]) for place in places)
        name = hashlib.sha256(repr([prompts[place].text for place in places]).encode()).hexdigest()[:12]
        category = kinds.pop() if len(kinds) == 1 else MIXED
        items.append(Item(index=len(items), category=category, name=name, rows=rows))
    return items


def _lengthened(encoded: Sequence[list[int]], index: int, context: int) -> list[int]:
    tokens, other = list(encoded[index]), index
    while len(tokens) < context:
        other += 1
        tokens = [*encoded[other % len(encoded)], *tokens]
    return tokens[-context:]


def _read(file: PromptFile, chat: bool | None) -> list[Prompt]:
    if file.task is not None:
        task = read_task(file.task)
        category = file.category or Path(file.task).stem
        through = task.chat if chat is None else chat
        texts = [example.prompt for example in read_examples(task, file.path)]
        return [Prompt(category=category, text=text, chat=through) for text in texts]
    return [
        Prompt(category=_category(file, record), text=prompt_of(record, f"{file.path}:{number}", file.field), chat=chat)
        for number, record in enumerate(read_records(file.path), 1)
    ]


def _category(file: PromptFile, record: Mapping[str, Any]) -> str:
    return file.category or str(record.get("category") or Path(file.path).stem)
