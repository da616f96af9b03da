"""Drafters of one target beside each other, on the same prompts: streams, Medusa, lookup, a draft model, and plain.

One process, one target, one loop; greedy, so every side writes the same text, and which tokens it does not is counted.
For each prompt all sides generate in turn, the order turning from prompt to prompt, so that a machine that slows down
slows all of them. Speeds are of decoding: the prompt is read alike by all, and counted on no side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from specstream.config import GenerationConfig
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.engine.text import asked, encode
from specstream.errors import UsageError
from specstream.files.prompts import read_records

FIXED = " (fixed tree)"
"""Behind the name of a side whose tree is of one size, whether it pays or not: what heads are worth by themselves."""

PLAIN = "plain"
"""The side that the others are measured against."""

POSITIONS = 4
"""Drafted tokens of a pass whose acceptance is told one by one."""


class Timed(Protocol):
    """Some generation."""

    @property
    def tokens(self) -> int:
        """How many it emitted."""

    @property
    def seconds(self) -> float:
        """Of decoding, the prompt not counted."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the kind of task it is."""

    category: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is measured.

    Attributes:
        name: of the drafter.
        parts: with which it generates; all sides share one target.
        parameters: that it needs beyond the target's own.
    """

    name: str
    parts: Parts
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generation.

    Attributes:
        side: whose.
        question: index of the prompt.
        category: of the prompt.
        emitted: tokens of each pass of the target.
        drafted: tokens that were scored.
        accepted: of those.
        seconds: of decoding, the prompt not counted.
        total: seconds of the whole call.
        exact: ``bits`` or ``rounding``.
        equal: whether the tokens are those of the plain side.
    """

    side: str
    question: int
    category: str
    emitted: list[int]
    drafted: int
    accepted: int
    seconds: float
    total: float
    exact: str
    equal: bool

    @property
    def tokens(self) -> int:
        return sum(self.emitted)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What some samples of one side say together.

    Attributes:
        side: whose.
        parameters: that it needs beyond the target's.
        mean_accepted_length: tokens per pass of the target, its own included; 1 for plain decoding.
        nodes: drafted tokens that a pass scored, after any pruning.
        acceptance: the share of passes in which the first, second, ... drafted token was accepted. A pass that drafted
            nothing accepted nothing.
        tokens_per_second: of decoding.
        ratio: of that to plain decoding's, all prompts together.
        middle_ratio: the median of the prompts' own ratios.
        equal: outputs whose tokens are plain decoding's.
        outputs: how many there are.
    """

    side: str
    parameters: int
    mean_accepted_length: float
    nodes: float
    acceptance: tuple[float, ...]
    tokens_per_second: float
    ratio: float
    middle_ratio: float
    equal: int
    outputs: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The samples of all sides on all prompts."""

    sides: Sequence[Side]
    samples: list[Sample] = field(default_factory=list)

    @property
    def categories(self) -> list[str]:
        """In the order of the prompts."""
        return list(dict.fromkeys(sample.category for sample in self.samples))

    def figures(self, category: str | None = None) -> list[Figures]:
        """Of every side, on one kind of task or on all of them."""
        chosen = [each for each in self.samples if category in (None, each.category)]
        plain = {each.question: each for each in chosen if each.side == PLAIN}
        return [
            _figures(side, [each for each in chosen if each.side == side.name], plain)
            for side in self.sides
            if any(each.side == side.name for each in chosen)
        ]

    @property
    def parameter_ratio(self) -> float | None:
        """Parameters of the Medusa heads over those of the streams, None unless both are there."""
        own = {side.name: side.parameters for side in self.sides}
        return own["medusa"] / own["streams"] if {"medusa", "streams"} <= set(own) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "parameter_ratio": self.parameter_ratio,
            "all": [asdict(each) for each in self.figures()],
            "categories": {name: [asdict(each) for each in self.figures(name)] for name in self.categories},
            "samples": [asdict(each) for each in self.samples],
        }


def read_questions(path: str | Path, per_category: int) -> list[Question]:
    """The first turns of a file like Spec-Bench's: lines of JSON with ``category`` and ``turns``.

    Args:
        path: the file.
        per_category: the first so many of each.

    Raises:
        UsageError: a file that cannot be read, or a record without those two, by number.
    """
    questions: dict[str, list[Question]] = {}
    for number, record in enumerate(read_records(path), 1):
        question = _question(record, f"record {number} of {str(path)!r}")
        own = questions.setdefault(question.category, [])
        if len(own) < per_category:
            own.append(question)
    if not questions:
        raise UsageError(f"prompts {str(path)!r} holds no prompt; give Spec-Bench's question.jsonl")
    return [question for own in questions.values() for question in own]


def compare(
    sides: Sequence[Side],
    questions: Sequence[Question],
    config: GenerationConfig,
    *,
    on_question: Callable[[int], None] | None = None,
) -> Comparison:
    """Every side on every prompt; the first prompt warms up and is counted when it comes again.

    Args:
        sides: one of them is ``PLAIN``.
        questions: the prompts; through the chat template if the tokenizer has one.
        config: how much to generate; greedy.
        on_question: called with the number of prompts done.
    """
    comparison = Comparison(sides=sides)
    for side in sides:
        prepare(side.parts, 1)
        _generate(side, questions[0], config)
    for index, question in enumerate(questions):
        first = index % len(sides)
        turn = [*sides[first:], *sides[:first]]
        runs = {side.name: _generate(side, question, config) for side in turn}
        plain = runs[PLAIN].rows[0].emitted
        comparison.samples.extend(_sample(side.name, index, question, runs[side.name], plain) for side in sides)
        if on_question is not None:
            on_question(index + 1)
    return comparison


def _generate(side: Side, question: Question, config: GenerationConfig) -> Generation:
    tokenizer = side.parts.tokenizer
    prompt = encode(tokenizer, asked(tokenizer, question.text))
    return Generation(side.parts, [prompt], config).run()


def _sample(side: str, index: int, question: Question, run: Generation, plain: Sequence[int]) -> Sample:
    (row,) = run.rows
    return Sample(
        side=side,
        question=index,
        category=question.category,
        emitted=list(row.stats.emitted),
        drafted=row.stats.drafted,
        accepted=row.stats.accepted,
        seconds=run.timings.decode,
        total=run.timings.total,
        exact=row.exact,
        equal=row.emitted == list(plain),
    )


def _figures(side: Side, samples: Sequence[Sample], plain: dict[int, Sample]) -> Figures:
    passes = [count for each in samples for count in each.emitted]
    own, base = speed(samples), speed(plain.values())
    return Figures(
        side=side.name,
        parameters=side.parameters,
        mean_accepted_length=sum(passes) / len(passes),
        nodes=sum(each.drafted for each in samples) / len(passes),
        acceptance=tuple(sum(count > at for count in passes) / len(passes) for at in range(1, POSITIONS + 1)),
        tokens_per_second=own,
        ratio=own / base,
        middle_ratio=median(speed([each]) / speed([plain[each.question]]) for each in samples),
        equal=sum(each.equal for each in samples),
        outputs=len(samples),
    )


def speed(runs: Iterable[Timed]) -> float:
    """Tokens per second of all of them together."""
    listed = list(runs)
    return sum(each.tokens for each in listed) / sum(each.seconds for each in listed)


def _question(record: Mapping[str, Any], where: str) -> Question:
    turns = record.get("turns")
    if "category" not in record or not isinstance(turns, list) or not turns:
        raise UsageError(f"{where} has no 'category' and 'turns'; give Spec-Bench's question.jsonl")
    return Question(category=str(record["category"]), text=str(turns[0]))
