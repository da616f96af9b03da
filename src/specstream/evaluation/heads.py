"""Drafters of one target beside each other, on the same prompts: streams, Medusa, lookup, a draft model, and plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specstream.config import engine_config
from specstream.engine.build import build_parts
from specstream.engine.contestants import PLAIN, Run
from specstream.engine.generation import Parts
from specstream.engine.inventory import extra_parameters, prepare, with_fixed_tree
from specstream.engine.text import asked, encode
from specstream.errors import UsageError, shown
from specstream.evaluation.benchmark.prompts import Prompt
from specstream.evaluation.compare import Comparison, Contestant, answer_texts, compare
from specstream.evaluation.predicted import Predictions
from specstream.files.prompts import read_records
from specstream.heads.folder import KINDS

NEEDING = {"streams": "streams", "medusa": "medusa", "draft_model": "draft", "mixed": "draft"}
"""Drafters and the option that says what each of them drafts with; streams that are shipped need none."""

FIXED = " (fixed tree)"
"""Behind the name of one whose tree is of one size, whether it pays or not: what heads are worth by themselves."""


def read_questions(path: str | Path, per_category: int) -> list[Prompt]:
    """The first turns of a file like Spec-Bench's: lines of JSON with ``category`` and ``turns``.

    Args:
        path: the file.
        per_category: the first so many of each.

    Raises:
        UsageError: a file that cannot be read, or a record without those two, by number.
    """
    questions: dict[str, list[Prompt]] = {}
    for number, record in enumerate(read_records(path), 1):
        question = _question(record, f"record {number} of {str(path)!r}")
        own = questions.setdefault(question.category, [])
        if len(own) < per_category:
            own.append(question)
    if not questions:
        raise UsageError(f"prompts {str(path)!r} holds no prompt; give Spec-Bench's question.jsonl")
    return [question for own in questions.values() for question in own]


def _question(record: Mapping[str, Any], where: str) -> Prompt:
    missing = [name for name in ("category", "turns") if name not in record]
    if missing:
        raise UsageError(f"{where} has no {' and '.join(map(repr, missing))}; give Spec-Bench's question.jsonl")
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise UsageError(f'{where} has turns {shown(turns)}; give a list of texts, such as ["The sea is"]')
    return Prompt(category=str(record["category"]), text=str(turns[0]), chat=None)


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


def in_groups(questions: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Questions that are decoded together, ``size`` at once, in their order; the last, too few for one, are left out.

    Raises:
        UsageError: fewer questions than one group.
    """
    if len(questions) < size:
        raise UsageError(f"batch_size is {size} and there are {len(questions)} prompts; give more, or a smaller one")
    return [list(questions[at : at + size]) for at in range(0, len(questions) - size + 1, size)]


def measure(
    engine: Any, contestants: Sequence[Contestant], groups: Sequence[Sequence[Prompt]], tell: Callable[[], None]
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

    def answer(parts: Parts, group: Sequence[Prompt]) -> Run:
        run = answer_texts(parts, [each.text for each in group], config)
        tell()
        return run

    def price(index: int, runs: Mapping[str, Run]) -> None:
        texts = [each.text for each in groups[index]]
        predictions.add([encode(engine.tokenizer, asked(engine.tokenizer, text)) for text in texts], runs)

    for each in contestants:
        prepare(each.parts, len(groups[0]))
    comparison = compare(contestants, groups, answer, on_turn=price)
    return comparison, {each.name: predictions.ratio(each.name) for each in contestants}


def record(
    comparison: Comparison,
    questions: Sequence[Prompt],
    groups: Sequence[Sequence[Prompt]],
    predicted: Mapping[str, float],
) -> dict[str, Any]:
    """Plain values that JSON can hold.

    Args:
        comparison: all samples.
        questions: that were read.
        groups: of them, as they were asked.
        predicted: the measured over the predicted speed of each contestant.
    """
    size = len(groups[0])
    categories: dict[str, list[int]] = {}
    for index, (first, *_) in enumerate(groups if size == 1 else ()):  # else groups may mix them
        categories.setdefault(first.category, []).append(index)
    parameters = {each.name: each.parameters for each in comparison.contestants}
    return {
        "batch_size": size,
        "left_out": len(questions) % size,
        "parameter_ratio": parameters["medusa"] / parameters["streams"]
        if {"medusa", "streams"} <= set(parameters)
        else None,
        "all": [{**each, "measured_over_predicted": predicted[each["side"]]} for each in comparison.figures()],
        "categories": {name: comparison.figures(own) for name, own in categories.items()},
        "samples": [
            {
                "side": each.contestant,
                "question": each.prompt * size,
                "category": ", ".join(dict.fromkeys(one.category for one in groups[each.prompt])),
                "emitted": each.run.passes,
                "drafted": each.run.drafted,
                "accepted": each.run.accepted,
                "seconds": each.run.decode,
                "total": each.run.total,
                "exact": each.run.exact,
                "equal": each.equal == len(each.run.tokens),
            }
            for each in comparison.samples
        ],
    }
