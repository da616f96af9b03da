"""Examples from files, and their order: a function of the seed and the position, so that a run can go on anywhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specstream.engine.text import as_chat, encode, token_ids
from specstream.environment import require
from specstream.errors import UsageError, must_be, shown
from specstream.evaluation.tasks.task import Task, read_examples, read_task, training_records
from specstream.files.atomic import is_meant_as_path, why_unread
from specstream.files.prompts import FIELDS, answer_of, prompt_of, read_records, unanswered
from specstream.models.hub.data_sets import load_dataset
from specstream.training.config import DataSection
from specstream.training.decontamination import Decontamination

WINDOW = 64
"""Batches among which examples are sorted by length, so that the examples of one batch need little padding."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Tokens of one sequence.

    Attributes:
        tokens: ids.
        start: the first position whose token is to be predicted; before it stands a prompt.
    """

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one pass learns from.

    Attributes:
        tokens: ``[rows, width]`` int64, padded on the right.
        mask: ``[rows, width]`` bool, true where the token is to be predicted: not in prompts, not in padding. Padding
            is on the right, where under causal attention no real token sees it.
        size: tokens, padding not counted.
    """

    tokens: Tensor
    mask: Tensor
    size: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row without its padding: an example ends with what is to be predicted."""
        places = torch.arange(1, self.tokens.shape[1] + 1, device=self.mask.device)
        lengths: list[int] = (self.mask * places).amax(1).tolist()
        return lengths

    @property
    def prompts(self) -> list[list[int]]:
        """What stands before the tokens to be predicted, where anything does."""
        starts = self.mask.int().argmax(1).tolist()
        return [self.tokens[row, :start].tolist() for row, start in enumerate(starts) if start]

    def to(self, device: torch.device) -> Batch:
        return replace(self, tokens=self.tokens.to(device), mask=self.mask.to(device))


class Examples:
    """A list of examples and the batches made of them.

    Args:
        examples: at least one.
        pad_token_id: fills the rows.
    """

    def __init__(self, examples: Sequence[Example], pad_token_id: int = 0) -> None:
        self._examples = list(examples)
        self._pad = pad_token_id

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)

    def first(self, count: int) -> Examples:
        """The first so many of them."""
        return Examples(self._examples[:count], self._pad)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.tokens) for example in self._examples]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the examples: a run goes on only with the data it began with."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(repr((example.start, example.tokens)).encode())
        return digest.hexdigest()

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples with these numbers, padded to the longest of them."""
        chosen = [self._examples[index] for index in indices]
        width = max(len(example.tokens) for example in chosen)
        tokens = torch.full((len(chosen), width), self._pad)
        mask = torch.zeros((len(chosen), width), dtype=torch.bool)
        for row, example in enumerate(chosen):
            tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
            mask[row, example.start : len(example.tokens)] = True
        size = sum(len(example.tokens) for example in chosen)
        return Batch(tokens=tokens, mask=mask, size=size)

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them once, longest first."""
        order = sorted(range(len(self)), key=lambda index: -len(self._examples[index].tokens))
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def split(self, held_out: int, seed: int) -> tuple[Examples, Examples]:
        """The examples without some drawn by the seed, and those."""
        drawn = set(random.Random(seed).sample(range(len(self)), held_out))
        parts = [[], []]  # type: list[list[Example]]
        for index, example in enumerate(self._examples):
            parts[index in drawn].append(example)
        return Examples(parts[0], self._pad), Examples(parts[1], self._pad)


class Order:
    """Which examples the batch at a position has. Every epoch has an order of its own.

    Args:
        lengths: of the examples, in tokens.
        batch_size: examples of a batch.
        seed: of the orders.
        every: whether an epoch has every example, and a smaller batch where they do not divide; else it has full
            batches only.

    Raises:
        UsageError: fewer examples than one full batch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, every: bool = False) -> None:
        if len(lengths) < batch_size and not every:
            raise UsageError(
                f"training.per_device_batch_size is {batch_size} and there are {len(lengths)} examples; "
                "give a smaller batch or more data"
            )
        self._lengths, self._size, self._seed = lengths, batch_size, seed
        self.per_epoch = (len(lengths) + (batch_size - 1 if every else 0)) // batch_size
        self._epoch, self._batches = -1, list[list[int]]()

    def indices(self, position: int) -> list[int]:
        """Numbers of the examples of the batch at ``position``, counted from the start of the run."""
        epoch, place = divmod(position, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self._seed}/{epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        order = order[: self.per_epoch * self._size]
        window = WINDOW * self._size
        for start in range(0, len(order), window):
            order[start : start + window] = sorted(order[start : start + window], key=self._lengths.__getitem__)
        batches = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        chance.shuffle(batches)
        return batches


def load_examples(config: DataSection, tokenizer: Any, seed: int) -> tuple[Examples, Examples]:
    """The examples to train on and those held out, which the seed chooses where no files of them are given.

    Raises:
        UsageError: no data, a file that cannot be read, a record without anything to learn.
    """
    task = None if config.task is None else read_task(config.task)
    records: Iterable[_Record] = _of_files(config.files, task)
    if config.dataset_name is not None:
        streaming = config.limit is not None  # a large one is not fetched whole for its first records
        records = chain(records, _of_dataset(config.dataset_name, config.dataset_split, streaming))
    if config.exclude:
        held_out = _held_out(config.exclude, task)
        records = (each for each in records if not any(text in held_out for text in _asked(each[0])))
    if task is not None and config.chat is None:
        config = config.model_copy(update={"chat": task.chat})
    examples = examples_of(list(islice(records, config.limit)), config, tokenizer)
    if not examples:
        if config.files:
            raise UsageError(f"there is no example in {' and '.join(map(repr, config.files))}; give another file")
        raise UsageError("data has no example; give data.files or data.dataset_name")
    if config.eval_files:
        others = examples_of(_of_files(config.eval_files, task), config, tokenizer)
        return examples, others.first(config.eval_examples)
    if config.eval_examples >= len(examples):
        raise UsageError(
            f"data.eval_examples is {config.eval_examples} of {len(examples)} examples, which leaves none to train on; "
            "give a smaller number, or data.eval_files"
        )
    return examples.split(config.eval_examples, seed)


def examples_of(records: Sequence[_Record], config: DataSection, tokenizer: Any) -> Examples:
    """Records as examples; plain texts are put behind one another in blocks of the full length.

    Raises:
        UsageError: a record without anything to learn.
    """
    return _Reader(config, tokenizer).examples(records)


_Record = tuple[dict[str, Any], str]
"""A record and where it stands, for errors."""


def _asked(record: Mapping[str, Any]) -> list[str]:
    """What is asked in a record: its prompt, or all that is said in its chat but for the last answer."""
    turns = _turns(record)
    if turns:
        return [turn["content"] for turn in turns[:-1]]
    return [prompt_of(record, "")] if any(record.get(field) for field in FIELDS) else []


def _held_out(files: Sequence[str], task: Task | None) -> Decontamination:
    if task is None:
        return Decontamination.of_files(files)
    return Decontamination(example.prompt for file in files for example in read_examples(task, file))


def _of_files(files: Sequence[str], task: Task | None) -> list[_Record]:
    if task is None:
        return [each for file in files for each in read_file(file)]
    return [each for file in files for each in training_records(task, file)]


def read_file(path: str) -> list[_Record]:
    """The records of a local file, and where each stands.

    Raises:
        UsageError: a file that is not there, is not finished, or cannot be read.
    """
    file = Path(path)
    if not file.exists() and not file.with_name(file.name + ".partial").exists():
        raise UsageError(f"data {path!r} is no file here; give one, or write answers: specstream distill-data")
    if file.suffix in (".txt", ".md", ".py"):
        try:
            return [({"text": file.read_text(encoding="utf-8")}, path)]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"data {path!r} cannot be read: {why_unread(error)}; give a UTF-8 file") from None
    if not file.exists() and file.with_name(file.name + ".partial").exists():
        raise UsageError(f"data {path!r} is not finished; run its specstream distill-data again, which goes on with it")
    return [(record, f"{path}:{number}") for number, record in enumerate(read_records(file), 1)]


def _of_dataset(name: str, split: str, streaming: bool) -> Iterator[_Record]:
    if Path(name).exists():
        yield from read_file(name)
        return
    if is_meant_as_path(name):
        raise UsageError(f"data.dataset_name {name!r} is no file here, and not taken for a hub id; give a file")
    datasets = require("datasets", "train", f"data.dataset_name {name!r}, which is no local file,")
    try:
        rows = load_dataset(datasets, name, split=split, streaming=streaming)
        yield from ((dict(record), f"{name}:{number}") for number, record in enumerate(rows))
    except Exception as error:  # whatever the hub, the network or a loading script raise
        raise UsageError(f"data.dataset_name {name!r} cannot be loaded: {error}; give a local file") from error


class _Reader:
    """Records to examples."""

    def __init__(self, config: DataSection, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._chat = as_chat(tokenizer, config.chat)
        end = tokenizer.eos_token_id
        self._end = [] if end is None else [int(end)]
        self._last = max(tokenizer.get_vocab().values())
        self._pad = next((int(each) for each in (tokenizer.pad_token_id, end) if each is not None), 0)

    def examples(self, records: Sequence[_Record]) -> Examples:
        examples: list[Example] = []
        stream: list[int] = []
        for record, where in records:
            text = self._plain(record)
            if text is not None:
                stream += [*self._ids(text), *self._end]
            elif (example := self._example(record, where)) is not None:
                examples.append(example)
        # Plain texts stand behind one another in blocks of the full length; the rest is a shorter one.
        size = self._config.max_length
        blocks = (stream[start : start + size] for start in range(0, len(stream), size))
        examples += [Example(tokens=tuple(block), start=1) for block in blocks if len(block) > 1]
        return Examples(examples, self._pad)

    def _plain(self, record: Mapping[str, Any]) -> str | None:
        text = record.get("text", record.get("content"))
        return text if isinstance(text, str) and answer_of(record) is None else None

    def _example(self, record: Mapping[str, Any], where: str) -> Example | None:
        """None where there is nothing of an answer: left empty, as a few are in most data sets, or too far behind."""
        if unanswered(record):
            return None
        prompt, answer = self._parts(record, where)
        tokens = (*prompt, *answer)[: self._config.max_length]
        strange = next((token for token in tokens if not 0 <= token <= self._last), None)
        if strange is not None:
            raise UsageError(f"{where} has token {strange}, which this tokenizer has not; distil with this model")
        start = 1 if self._config.prompt_loss else max(1, len(prompt))
        return Example(tokens=tokens, start=start) if start < len(tokens) else None

    def _parts(self, record: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
        if "answer_token_ids" in record:
            return list(record["prompt_token_ids"]), list(record["answer_token_ids"])
        turns = _turns(record)
        if not turns:
            answer = answer_of(record)
            if answer is None:
                said = record.get("messages") or record.get("conversations")
                must_be(said is None or isinstance(said, list), f"{where} has messages, which", said, "a list of turns")
                other = f"it has {shown(list(record))}; give prompt and completion, messages, or text"
                unfinished = "run specstream distill-data on it first"
                raise UsageError(
                    f"{where} has no answer and no text; {unfinished if set(FIELDS) & set(record) else other}"
                )
            contents = {"user": prompt_of(record, where), "assistant": answer}
            turns = [{"role": role, "content": content} for role, content in contents.items()]
        *asked, last = turns
        prompt = encode(self._tokenizer, asked if self._chat else "\n".join(turn["content"] for turn in asked))
        return prompt, [*self._ids(last["content"]), *self._end]

    def _ids(self, text: str) -> list[int]:
        return list(token_ids(self._tokenizer, text, add_special_tokens=False))


_ROLES = {"human": "user", "gpt": "assistant"}


def _turns(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A chat up to its last answer, as role and content; empty if the record is none."""
    raw = record.get("messages") or record.get("conversations")
    if not isinstance(raw, list) or not all(isinstance(turn, Mapping) for turn in raw):
        return []
    turns = [
        {
            "role": _ROLES.get(str(turn.get("role", turn.get("from"))), str(turn.get("role", turn.get("from")))),
            "content": str(turn.get("content", turn.get("value", ""))),
        }
        for turn in raw
    ]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return turns if len(turns) > 1 else []
