"""Drafters of one target beside each other, on the same prompts: streams, Medusa, lookup, a draft model, and plain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.config import engine_config
from specstream.engine.build import build_parts
from specstream.engine.contestants import PLAIN, Run
from specstream.engine.generation import Parts
from specstream.engine.inventory import extra_parameters, prepare, with_fixed_tree
from specstream.engine.text import asked, encode
from specstream.errors import UsageError, shown
from specstream.evaluation.benchmark.summary import plain_estimate
from specstream.evaluation.compare import Comparison, Contestant, Figures, Sample, answer_texts, compare
from specstream.evaluation.predicted import Predictions
from specstream.files.prompts import read_records
from specstream.heads.folder import KINDS

NEEDING = {"streams": "streams", "medusa": "medusa", "draft_model": "draft", "mixed": "draft"}
"""Drafters and the option that says what each of them drafts with; streams that are shipped need none."""

FIXED = " (fixed tree)"
"""Behind the name of one whose tree is of one size, whether it pays or not: what heads are worth by themselves."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the kind of task it is."""

    category: str
    text: str


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


def _question(record: Mapping[str, Any], where: str) -> Question:
    missing = [name for name in ("category", "turns") if name not in record]
    if missing:
        raise UsageError(f"{where} has no {' and '.join(map(repr, missing))}; give Spec-Bench's question.jsonl")
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise UsageError(f'{where} has turns {shown(turns)}; give a list of texts, such as ["The sea is"]')
    return Question(category=str(record["category"]), text=str(turns[0]))


def drafters_beside(
    engine: Any,
    names: Sequence[str],
    given: Mapping[str, str | None],
    settings: Mapping[str, Any],
    *,
    fixed: int | None,
    pruning: Sequence[float],
) -> list[Contestant]:
    """Plain decoding and drafters.

    Args:
        engine: with the drafter ``none``.
        names: of the drafters.
        given: what they draft with, by the options of ``NEEDING``.
        settings: of ``EngineConfig``, for all of them.
        fixed: heads once more, with a tree of so many nodes in every round; None for not.
        pruning: streams once more at each of these thresholds.
    """
    found = [Contestant(name=PLAIN, parts=engine.parts)]
    wanted = [(name, each) for name in names for each in (None, *(pruning if name == "streams" else ()))]
    for name, least in wanted:
        heads = given[name] if name in KINDS else None
        draft = given["draft"] if NEEDING.get(name) == "draft" else None
        config = engine_config({**settings, "drafter": name, "heads": heads, "pruning": least})  # type: ignore[typeddict-item]
        parts = build_parts(engine.target, engine.tokenizer, draft, config)
        parameters = extra_parameters(parts.drafter, engine.target)
        label = name if least is None else f"{name} (pruned {least:g})"
        found.append(Contestant(name=label, parts=parts, parameters=parameters))
        if fixed is not None and name in KINDS:
            fixed_parts = with_fixed_tree(parts, fixed)
            found.append(Contestant(name=f"{label}{FIXED}", parts=fixed_parts, parameters=parameters))
    return found


def parameter_ratio(contestants: Sequence[Contestant]) -> float | None:
    """Parameters of the Medusa heads over those of the streams, None unless both are there."""
    own = {each.name: each.parameters for each in contestants}
    return own["medusa"] / own["streams"] if {"medusa", "streams"} <= set(own) else None


def by_category(questions: Sequence[Question]) -> dict[str, list[int]]:
    """The indices of each kind, in the order of the prompts."""
    found: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        found.setdefault(question.category, []).append(index)
    return found


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Questions that are decoded together, so many at once.

    Attributes:
        size: questions of each group.
        questions: of every group, in the order in which they were read: category by category.
        left_out: the last questions, too few for a group.
    """

    size: int
    questions: list[list[Question]]
    left_out: int

    @classmethod
    def of(cls, questions: Sequence[Question], size: int) -> Groups:
        """Deal questions into groups.

        Raises:
            UsageError: fewer questions than one group.
        """
        count = len(questions) // size
        if not count:
            raise UsageError(
                f"batch-size is {size} and there are {len(questions)} prompts; give more, or a smaller one"
            )
        groups = [list(questions[at * size : (at + 1) * size]) for at in range(count)]
        return cls(size=size, questions=groups, left_out=len(questions) - count * size)

    @property
    def categories(self) -> dict[str, list[int]]:
        """Groups of each category; none where groups may mix them."""
        return by_category([each for (each,) in self.questions]) if self.size == 1 else {}


def measure(
    engine: Any, contestants: Sequence[Contestant], groups: Groups, tell: Callable[[], None]
) -> tuple[Comparison, dict[str, float]]:
    """Every contestant on every group, in turn.

    Args:
        engine: whose target and settings all of them share.
        contestants: one of them is plain decoding.
        groups: what is asked.
        tell: called after every answer.

    Returns:
        All samples, and the measured over the predicted speed of each contestant.
    """
    config, predictions = engine.config.generation, Predictions(engine.target)

    def answer(parts: Parts, group: Sequence[Question]) -> Run:
        run = answer_texts(parts, [each.text for each in group], config)
        tell()
        return run

    def price(index: int, runs: Mapping[str, Run]) -> None:
        texts = [each.text for each in groups.questions[index]]
        predictions.add([encode(engine.tokenizer, asked(engine.tokenizer, text)) for text in texts], runs)

    for each in contestants:
        prepare(each.parts, groups.size)
    comparison = compare(contestants, groups.questions, answer, machine=engine.provenance(), on_turn=price)
    return comparison, {each.name: predictions.ratio(each.name) for each in contestants}


def record(comparison: Comparison, groups: Groups, predicted: Mapping[str, float]) -> dict[str, Any]:
    """Plain values that JSON can hold.

    Args:
        comparison: all samples.
        groups: what was asked.
        predicted: the measured over the predicted speed of each contestant.
    """

    def figures(own: Collection[int] | None = None) -> list[dict[str, Any]]:
        return [_plain_figures(each) for each in comparison.figures(own)]

    whole = [{**each, "measured_over_predicted": predicted[each["side"]]} for each in figures()]
    return {
        "batch_size": groups.size,
        "left_out": groups.left_out,
        "parameter_ratio": parameter_ratio(comparison.contestants),
        "all": whole,
        "categories": {name: figures(own) for name, own in groups.categories.items()},
        "samples": [_plain_sample(each, groups) for each in comparison.samples],
    }


def _plain_figures(figures: Figures) -> dict[str, Any]:
    return {
        "side": figures.contestant,
        "parameters": figures.parameters,
        "mean_accepted_length": figures.mean_accepted_length,
        "nodes": figures.nodes,
        "acceptance": figures.acceptance,
        "tokens_per_second": figures.tokens_per_second,
        "ratio": figures.speedup.value,
        "ratio_interval": plain_estimate(figures.speedup),
        "middle_ratio": figures.median_speedup,
        "equal": figures.equal,
        "outputs": figures.outputs,
    }


def _plain_sample(sample: Sample, groups: Groups) -> dict[str, Any]:
    run, first = sample.run, sample.prompt * groups.size
    return {
        "side": sample.contestant,
        "question": first,
        "category": ", ".join(dict.fromkeys(each.category for each in groups.questions[sample.prompt])),
        "emitted": run.passes,
        "drafted": run.drafted,
        "accepted": run.accepted,
        "seconds": run.decode,
        "total": run.total,
        "exact": run.exact,
        "equal": sample.equal == len(run.tokens),
    }
