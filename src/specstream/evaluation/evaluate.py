"""Plain and speculative decoding on a task: are the answers as good, the same, and how much sooner are they there?

Both sides answer each example in turn, greedily (``contestants.py``). Answers are judged once all are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from specstream.config import GenerationConfig
from specstream.drafters.none import NoDrafter
from specstream.engine.contestants import Run, Turn, by_turn, in_turn
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.engine.text import asked, encode
from specstream.errors import reason_of
from specstream.evaluation.answers import Answers
from specstream.evaluation.evaluate_config import Loaded
from specstream.evaluation.execution import Limits, Outcome, run_program
from specstream.evaluation.quality import Values, counted, difference, estimate
from specstream.evaluation.statistics import plain_estimate, speed_ratio
from specstream.evaluation.tasks.task import Metric, TaskExample, program_of

SIDES = ("plain", "speculative")

PASS = "pass@1"
"""The metric that runs programs."""

Progress = Callable[[int], None]
"""Called with the number of examples done."""


def run_of(loaded: Loaded, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes answers belong together: the examples, how they are put, and what answers them."""
    prompts = "\0".join("\0".join((each.prompt, *each.later)) for each in loaded.examples)
    task = loaded.task
    return {
        "data": {"examples": len(loaded.examples), "sha256": hashlib.sha256(prompts.encode()).hexdigest()},
        "answers": {"max_new_tokens": task.max_new_tokens, "stop": task.stop, "chat": task.chat},
        "settings": dict(settings),
    }


def answer_all(engine: Any, loaded: Loaded, answers: Answers, *, warmup: int, on_example: Progress) -> None:
    """Both sides answer every example that has no answer yet.

    An example that fails is recorded and tried again by the next run.

    Args:
        engine: of the model, with the drafter that is to be judged.
        loaded: what is asked.
        answers: where answers go.
        warmup: generations of each side that are not counted.
        on_example: is told of progress.
    """
    task = loaded.task
    config = GenerationConfig(max_new_tokens=task.max_new_tokens, stop=list(task.stop))
    todo = [index for index in range(len(loaded.examples)) if "error" in answers.records.get(index, {"error": ""})]
    if todo:
        prepare(engine.parts, 1)
    done = len(loaded.examples) - len(todo)
    sides = {
        name: lambda example, parts=parts: answer_text(parts, example.prompt, config, task.chat, example.later)
        for name, parts in zip(SIDES, (engine.parts.with_drafter(NoDrafter()), engine.parts), strict=True)
    }
    left = [(0, index) for index in todo]
    for turn in by_turn(in_turn(sides, loaded.examples, todo=left, warm_up=warmup, errors="keep")):
        answers.add(_record(loaded.examples[turn.prompt], turn))
        done += 1
        on_example(done)


def answer_text(
    parts: Parts, text: str, config: GenerationConfig, chat: bool | None = None, later: Sequence[str] = ()
) -> Run:
    """Generate from a text, and from what is asked after the answer.

    Args:
        parts: with which.
        text: what is asked.
        config: how much and by which rule.
        chat: through the chat template; None if there is one.
        later: further turns, which need a chat template and are left out without one.
    """
    prompt = asked(parts.tokenizer, text, chat)
    made = [Generation(parts, [encode(parts.tokenizer, prompt)], config).run()]
    if not isinstance(prompt, str):
        turns = list(prompt)
        for turn in later:
            (row,) = made[-1].rows
            turns += [{"role": "assistant", "content": made[-1].text(row)}, {"role": "user", "content": turn}]
            made.append(Generation(parts, [encode(parts.tokenizer, turns)], config).run())
    return Run.of(*made)


def judge(loaded: Loaded, answers: Answers, *, execute: bool, on_example: Progress) -> dict[tuple[str, int], Outcome]:
    """Run the programs that answers are part of: by side and example.

    Args:
        loaded: what was asked.
        answers: to it.
        execute: whether code may be run; False judges nothing.
        on_example: is told of progress.
    """
    outcomes: dict[tuple[str, int], Outcome] = {}
    if not execute or loaded.task.program is None:
        return outcomes
    known: dict[str, Outcome] = {}  # the two sides write the same program, as a rule
    for done, (index, record) in enumerate(_answered(answers).items(), 1):
        for side in SIDES:
            program = program_of(loaded.task, loaded.examples[index], code_of(record[side]["texts"][0]))
            if program not in known:
                known[program] = run_program(program, Limits())
            outcomes[side, index] = known[program]
        on_example(done)
    return outcomes


def results(loaded: Loaded, answers: Answers, outcomes: Mapping[tuple[str, int], Outcome]) -> dict[str, Any]:
    """The figures of a data set, as plain values that JSON can hold.

    Returns:
        ``all`` and ``categories`` with figures, ``failures``, ``different`` (examples whose tokens are not plain
        decoding's) and what became of programs.
    """
    good = _answered(answers)
    groups: dict[str, list[int]] = {}
    for index in good:
        groups.setdefault(loaded.examples[index].category, []).append(index)
    return {
        "dataset": loaded.name,
        "source": loaded.source,
        "task": loaded.task.model_dump(),
        "examples": len(loaded.examples),
        "all": _figures(loaded, answers, outcomes, list(good)) if good else None,
        "categories": {
            name: _figures(loaded, answers, outcomes, own) for name, own in groups.items() if name and len(groups) > 1
        },
        "different": [record["where"] for record in good.values() if not record["equal"]],
        "failures": [record for record in answers.records.values() if "error" in record],
        "programs": [
            {"side": side, "where": loaded.examples[index].where, **asdict(outcome)}
            for (side, index), outcome in outcomes.items()
        ],
    }


def code_of(answer: str) -> str:
    """The code in an answer: its first fenced block, or all of it."""
    block = re.search(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return f"\n{block.group(1)}" if block else answer


def _answered(answers: Answers) -> dict[int, dict[str, Any]]:
    return {index: answers.records[index] for index in sorted(answers.records) if "error" not in answers.records[index]}


def _record(example: TaskExample, turn: Turn[Run]) -> dict[str, Any]:
    about = {"example": turn.prompt, "where": example.where, "category": example.category}
    try:
        runs = turn.values()
    except Exception as error:  # one example is not worth the others
        return {**about, "error": reason_of(error)[:500]}
    equal = runs["plain"].tokens == runs["speculative"].tokens
    return {**about, "equal": equal} | {side: _said(runs[side]) for side in SIDES}


def _said(run: Run) -> dict[str, Any]:
    return {
        "texts": run.texts,
        "tokens": run.new_tokens,
        "passes": len(run.passes),
        "drafted": run.drafted,
        "accepted": run.accepted,
        "seconds": run.decode,
        "total_seconds": run.total,
        "exact": run.exact,
    }


def _figures(
    loaded: Loaded, answers: Answers, outcomes: Mapping[tuple[str, int], Outcome], indices: Sequence[int]
) -> dict[str, Any]:
    records = [answers.records[index] for index in indices]
    speculative = [record["speculative"] for record in records]
    drafted = sum(each["drafted"] for each in speculative)
    return {
        "answers": len(records),
        "equal": sum(record["equal"] for record in records),
        "exact": "bits" if all(record[side]["exact"] == "bits" for record in records for side in SIDES) else "rounding",
        "quality": _quality(loaded, answers, outcomes, indices),
        "speedup": _speedup(records, "seconds"),
        "speedup_with_prompt": _speedup(records, "total_seconds"),
        "tokens_per_second": {side: _rate([record[side] for record in records]) for side in SIDES},
        "mean_accepted_length": sum(each["tokens"] for each in speculative)
        / sum(each["passes"] for each in speculative),
        "acceptance_rate": sum(each["accepted"] for each in speculative) / drafted if drafted else 0.0,
    }


def _judged(metric: Metric, loaded: Loaded, index: int, outcomes: Mapping[tuple[str, int], Outcome]) -> bool:
    """Whether an example counts for a metric."""
    task, example = loaded.task, loaded.examples[index]
    if metric == PASS:
        return ("plain", index) in outcomes
    return bool(example.references) and metric in (*task.metrics, *task.category_metrics.get(example.category, []))


def _quality(
    loaded: Loaded, answers: Answers, outcomes: Mapping[tuple[str, int], Outcome], indices: Sequence[int]
) -> dict[str, Any]:
    """By metric, in the order of the task; only those that an example counts for."""
    examples, task, found = loaded.examples, loaded.task, dict[str, Any]()
    own = [metric for index in indices for metric in task.category_metrics.get(examples[index].category, [])]
    for metric in dict.fromkeys([*task.metrics, *own]):
        judged = [index for index in indices if _judged(metric, loaded, index, outcomes)]
        if not judged:
            continue
        numbers: dict[str, Values] = {}
        for side in SIDES:
            if metric == PASS:
                numbers[side] = np.array([[float(outcomes[side, index].passed)] for index in judged])
            else:
                texts = [answers.records[index][side]["texts"][0].strip() for index in judged]
                numbers[side] = counted(metric, texts, [examples[index].references for index in judged])
        found[metric] = {
            **{side: asdict(estimate(metric, numbers[side])) for side in SIDES},
            "difference": asdict(difference(metric, numbers["speculative"], numbers["plain"])),
            "examples": len(judged),
        }
    return found


def _speedup(records: Sequence[Mapping[str, Any]], seconds: str) -> dict[str, Any] | None:
    """With its interval; of a single example that is not known, and None."""
    own, base = (
        np.array([[record[side]["tokens"], record[side][seconds]] for record in records], np.float64)
        for side in ("speculative", "plain")
    )
    return plain_estimate(speed_ratio(own, base))


def _rate(said: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(each["tokens"] for each in said) / sum(each["seconds"] for each in said))
