"""Drafters of one target beside each other, on the same prompts: trained heads, lookup, a draft model, and plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from specstream.config import engine_config
from specstream.errors import UsageError, shown
from specstream.evaluation.benchmark.experiments import PLAIN_ARM, Arm, Group
from specstream.evaluation.benchmark.prompts import Prompt
from specstream.evaluation.benchmark.run import Progress, measure
from specstream.evaluation.benchmark.summary import arms_of, side_of, told
from specstream.files.prompts import read_records
from specstream.heads.folder import KINDS

NEEDING = {**{kind: kind for kind in KINDS}, "draft_model": "draft", "mixed": "draft"}
"""Drafters and the option that says what each of them drafts with; streams that are shipped need none."""

QUESTIONS = "Spec-Bench's question.jsonl, or SPEED-Bench's records as JSON lines"
"""What ``read_questions`` reads."""

FIXED = " (fixed tree)"
"""Behind the name of one whose tree is of one size, whether it pays or not: what heads are worth by themselves."""


def read_questions(path: str | Path, per_category: int, turn: int = 1) -> list[Prompt]:
    """A turn of each record of a file like Spec-Bench's or SPEED-Bench's: JSON with ``category`` and ``turns``.

    Args:
        path: the file.
        per_category: the first so many of each.
        turn: which, from 1; records with fewer are left out. Of a later one the prompt is the user's side of the
            conversation up to it: ``with_answers`` adds the model's.

    Raises:
        UsageError: a file that cannot be read, a record without those two, by number, or none with so many turns.
    """
    questions, read = dict[str, list[Prompt]](), 0
    for read, record in enumerate(read_records(path), 1):
        category, turns = _turns(record, f"record {read} of {str(path)!r}")
        own = questions.setdefault(category, [])
        if len(turns) >= turn and len(own) < per_category:
            said = [{"role": "user", "content": each} for each in turns[:turn]]
            own.append(Prompt(category=category, text=said if turn > 1 else turns[0], chat=None))
    found = [question for own in questions.values() for question in own]
    if not read:
        raise UsageError(f"prompts {str(path)!r} holds no prompt; give {QUESTIONS}")
    if not found:
        raise UsageError(f"turn is {turn} and no record of {str(path)!r} has so many; give a smaller one")
    return found


def _turns(record: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    missing = [name for name in ("category", "turns") if name not in record]
    if missing:
        raise UsageError(f"{where} has no {' and '.join(map(repr, missing))}; give {QUESTIONS}")
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise UsageError(f'{where} has turns {shown(turns)}; give a list of texts, such as ["The sea is"]')
    return str(record["category"]), list(map(str, turns))


def with_answers(engine: Any, questions: Sequence[Prompt], told: Callable[[int, int], object]) -> list[Prompt]:
    """Conversations whole: behind each turn but the last the model's own answer, by plain decoding.

    Args:
        engine: that answers; it does not draft.
        questions: as ``read_questions`` has them; what is no conversation stays as it is.
        told: how many were answered, of how many.

    Raises:
        UsageError: a model without a chat template.
    """
    found = list[Prompt]()
    for done, question in enumerate(questions):
        told(done, len(questions))
        said = list[Mapping[str, str]]()
        for message in () if isinstance(question.text, str) else question.text:
            if said:
                said.append({"role": "assistant", "content": engine.generate(said)["text"]})
            said.append(message)
        found.append(replace(question, text=said or question.text))
    return found


def drafters_beside(
    names: Sequence[str],
    given: Mapping[str, str | None],
    settings: Mapping[str, Any],
    *,
    fixed: int | None,
    pruning: Sequence[float],
) -> list[Arm]:
    """Plain decoding and drafters.

    Args:
        names: of the drafters.
        given: what they draft with, by the options of ``NEEDING``.
        settings: of ``EngineConfig``, for all of them.
        fixed: heads once more, with a tree of so many nodes in every round; None for not.
        pruning: streams once more at each of these thresholds.
    """
    found = [PLAIN_ARM]
    wanted = [(name, each) for name in names for each in (None, *(pruning if name == "streams" else ()))]
    for name, least in wanted:
        heads = given[name] if name in KINDS else None
        draft = given["draft"] if NEEDING.get(name) == "draft" else None
        config = engine_config({**settings, "drafter": name, "heads": heads, "pruning": least})  # type: ignore[typeddict-item]
        arm = Arm(name=name if least is None else f"{name} (pruned {least:g})", config=config, draft=draft)
        found.append(arm)
        if fixed is not None and name in KINDS:
            found.append(replace(arm, name=f"{arm.name}{FIXED}", fixed_tree=fixed))
    return found


def measure_drafters(
    engine: Any, arms: Sequence[Arm], questions: Sequence[Prompt], size: int, on_progress: Progress
) -> dict[str, Any]:
    """Every arm on every group of questions, in turn; the last questions, too few for a group, are left out.

    Args:
        engine: whose target and settings all of them share.
        arms: one of them is plain decoding.
        questions: what is asked, ``size`` at once, in their order.
        size: of a group.
        on_progress: told how far it came, in answers.

    Returns:
        Plain values that JSON can hold.
    """
    left_out = len(questions) % size
    asked = questions[: len(questions) - left_out]
    group = Group(experiment="heads", generation=engine.config.generation, arms=tuple(arms), batch=size)
    samples = measure(engine, group, asked, on_progress, predicted=True)
    found = arms_of(samples)
    parameters = {each["arm"]: each["facts"]["draft_parameters"] for each in found}
    ratio = "measured_over_predicted"
    kinds = dict.fromkeys(each.category for each in asked) if size == 1 else ()  # else groups may mix them
    return {
        "batch_size": size,
        "left_out": left_out,
        "parameter_ratio": parameters["medusa"] / parameters["streams"]
        if {"medusa", "streams"} <= set(parameters)
        else None,
        "all": [{**side_of(each), ratio: each["all"][ratio]} for each in found],
        "categories": {kind: [side_of(each, kind) for each in found] for kind in kinds},
        "samples": [
            {
                "question": (first := each["item"] * size),
                "category": ", ".join(dict.fromkeys(one.category for one in asked[first : first + size])),
                **told(each, samples),
            }
            for each in samples.samples
        ],
    }
