"""Drafters of one target beside each other, on the same prompts: streams, Medusa, lookup, a draft model, and plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.config import engine_config
from specstream.engine.build import build_parts
from specstream.engine.contestants import PLAIN
from specstream.engine.inventory import extra_parameters, with_fixed_tree
from specstream.errors import UsageError, shown
from specstream.evaluation.benchmark.summary import plain_estimate
from specstream.evaluation.compare import Comparison, Contestant, Figures, Sample
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


def record(comparison: Comparison, questions: Sequence[Question]) -> dict[str, Any]:
    """Plain values that JSON can hold."""
    categories = by_category(questions)
    return {
        "parameter_ratio": parameter_ratio(comparison.contestants),
        "all": [_plain_figures(each) for each in comparison.figures()],
        "categories": {
            name: [_plain_figures(each) for each in comparison.figures(own)] for name, own in categories.items()
        },
        "samples": [_plain_sample(each, questions[each.prompt]) for each in comparison.samples],
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
        "outputs": figures.samples,
    }


def _plain_sample(sample: Sample, question: Question) -> dict[str, Any]:
    run = sample.run
    return {
        "side": sample.contestant,
        "question": sample.prompt,
        "category": question.category,
        "emitted": run.passes,
        "drafted": run.drafted,
        "accepted": run.accepted,
        "seconds": run.decode,
        "total": run.total,
        "exact": run.exact,
        "equal": sample.equal,
    }
