"""A fine-tuned model and a shared-mode one on a task: quality beside each other, and what streams save of the passes.

Quality is compared between the two models on the same examples, in pairs. Passes and speed are compared inside one
model: plain decoding and its streams generate each example in turn, in one process, through one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from specstream.config import GenerationConfig, engine_config
from specstream.engine.build import build_parts
from specstream.engine.generation import Generation
from specstream.engine.inventory import extra_parameters, prepare, with_fixed_tree
from specstream.engine.text import asked, encode
from specstream.errors import reason_of
from specstream.evaluation.heads import PLAIN, Side, speed
from specstream.evaluation.quality import Estimate, counted, difference, estimate
from specstream.evaluation.tasks.task import Task, TaskExample

CONTROLLED = "streams, controller"
"""The side on which the controller decides how far to draft."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One generation.

    Attributes:
        side: whose.
        example: index.
        text: what was written.
        tokens: how many.
        passes: of the target.
        seconds: of decoding, the prompt not counted.
        exact: ``bits`` or ``rounding``.
        equal: whether the tokens are those of the plain side.
    """

    side: str
    example: int
    text: str
    tokens: int
    passes: int
    seconds: float
    exact: str
    equal: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An example that could not be answered.

    Attributes:
        example: index.
        where: its place in the data.
        error: why, in a line.
    """

    example: int
    where: str
    error: str


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """What the answers of one side say together.

    Attributes:
        side: whose.
        parameters: that it needs beyond the model's.
        quality: every metric of the task, from 0 to 100.
        call_reduction: tokens for each pass of the model; 1 for plain decoding.
        tokens_per_second: of decoding.
        speedup: over plain decoding, all examples together.
        middle_speedup: the median of the examples' own.
        equal: answers whose tokens are plain decoding's.
        answers: how many there are.
    """

    side: str
    parameters: int
    quality: dict[str, Estimate]
    call_reduction: float
    tokens_per_second: float
    speedup: float
    middle_speedup: float
    equal: int
    answers: int


@dataclass(kw_only=True)
class ModelRun:
    """One model on a task.

    Attributes:
        name: of the model.
        sides: it was measured on; the first is plain decoding.
        answers: of all sides to all examples that every side answered.
        failures: the other examples.
        provenance: what it was measured on.
    """

    name: str
    sides: Sequence[Side]
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, side: str) -> dict[int, Answer]:
        """The answers of a side by example."""
        return {answer.example: answer for answer in self.answers if answer.side == side}

    def figures(self, task: Task, examples: Sequence[TaskExample]) -> list[SideFigures]:
        """Of every side; none if nothing was answered."""
        plain = self.of(PLAIN)
        return [_figures(side, self.of(side.name), plain, task, examples) for side in self.sides if plain]

    def to_dict(self, task: Task, examples: Sequence[TaskExample]) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "model": self.name,
            "figures": [asdict(each) for each in self.figures(task, examples)],
            "answers": [asdict(each) for each in self.answers],
            "failures": [asdict(each) for each in self.failures],
            "provenance": dict(self.provenance),
        }


def sides_of(engine: Any, heads: str | None, nodes: Sequence[int]) -> list[Side]:
    """Plain decoding; with streams, trees of fixed sizes, and the controller's choice.

    Args:
        engine: with the drafter ``none``.
        heads: a folder of streams of its model.
        nodes: drafted nodes of the fixed trees.

    Raises:
        HeadMismatchError: they belong to another model.
    """
    sides = [Side(name=PLAIN, parts=engine.parts, parameters=0)]
    if heads is None:
        return sides
    for size in (*nodes, None):
        config = engine_config({"drafter": "streams", "heads": heads, "adaptive": size is None})
        parts = build_parts(engine.target, engine.tokenizer, None, config)
        parameters = extra_parameters(parts.drafter, engine.target)
        if size is not None:
            parts = with_fixed_tree(parts, size)
        name = CONTROLLED if size is None else f"streams, {size} nodes"
        sides.append(Side(name=name, parts=parts, parameters=parameters))
    return sides


def answer_all(
    engine: Any,
    sides: Sequence[Side],
    task: Task,
    examples: Sequence[TaskExample],
    on_example: Callable[[int], None] | None = None,
) -> ModelRun:
    """Every side answers every example, greedily, in turn; the first example warms up and is answered again.

    Args:
        engine: of the model.
        sides: from ``sides_of``.
        task: how prompts are put and where answers end.
        examples: what is asked.
        on_example: called with the number of examples done.
    """
    config = GenerationConfig(max_new_tokens=task.max_new_tokens, stop=list(task.stop))
    for side in sides:
        prepare(side.parts, 1)
    run = ModelRun(name=engine.model_name, sides=sides, provenance=engine.provenance())
    _attempt(sides, task, (0, examples[0]), config)
    for index, example in enumerate(examples):
        outcome = _attempt(sides, task, (index, example), config)
        if isinstance(outcome, Failure):
            run.failures.append(outcome)
        else:
            run.answers.extend(outcome)
        if on_example is not None:
            on_example(index + 1)
    return run


def compared(task: Task, examples: Sequence[TaskExample], run: ModelRun, other: ModelRun) -> dict[str, Estimate]:
    """How much better ``run`` answers than ``other`` by every metric, over the examples that both answered."""
    ours, theirs = run.of(PLAIN), other.of(PLAIN)
    both = [index for index in range(len(examples)) if index in ours and index in theirs]
    references = [examples[index].references for index in both]
    found: dict[str, Estimate] = {}
    for metric in task.metrics if both else ():
        own, others = (counted(metric, [side[at].text for at in both], references) for side in (ours, theirs))
        found[metric] = difference(metric, own, others)
    return found


def _attempt(
    sides: Sequence[Side], task: Task, numbered: tuple[int, TaskExample], config: GenerationConfig
) -> list[Answer] | Failure:
    """The answers of all sides to one example, in an order that turns from example to example."""
    index, example = numbered
    first = index % len(sides)
    try:
        runs = {side.name: _generate(side, task, example, config) for side in (*sides[first:], *sides[:first])}
    except Exception as error:  # one example is not worth the others
        return Failure(example=index, where=example.where, error=reason_of(error))
    plain = runs[PLAIN].rows[0].emitted
    return [_answer(side.name, index, runs[side.name], plain) for side in sides]


def _generate(side: Side, task: Task, example: TaskExample, config: GenerationConfig) -> Generation:
    tokenizer = side.parts.tokenizer
    return Generation(side.parts, [encode(tokenizer, asked(tokenizer, example.prompt, task.chat))], config).run()


def _answer(side: str, index: int, run: Generation, plain: Sequence[int]) -> Answer:
    (row,) = run.rows
    return Answer(
        side=side,
        example=index,
        text=run.text(row).strip(),
        tokens=sum(row.stats.emitted),
        passes=len(row.stats.emitted),
        seconds=run.timings.decode,
        exact=row.exact,
        equal=list(row.emitted) == list(plain),
    )


def _figures(
    side: Side, answers: Mapping[int, Answer], plain: Mapping[int, Answer], task: Task, examples: Sequence[TaskExample]
) -> SideFigures:
    listed = list(answers.values())
    texts, references = [each.text for each in listed], [examples[each.example].references for each in listed]
    own, base = speed(listed), speed(plain.values())
    return SideFigures(
        side=side.name,
        parameters=side.parameters,
        quality={metric: estimate(metric, counted(metric, texts, references)) for metric in task.metrics},
        call_reduction=sum(each.tokens for each in listed) / sum(each.passes for each in listed),
        tokens_per_second=own,
        speedup=own / base,
        middle_speedup=median(speed([each]) / speed([plain[each.example]]) for each in listed),
        equal=sum(each.equal for each in listed),
        answers=len(listed),
    )
