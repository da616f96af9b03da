"""Plain and speculative decoding on a task: are the answers as good, the same, and how much sooner are they there?

One process, one target, one loop, greedy. Both sides answer each example in turn, the first of them changing from
example to example, so that a machine that slows down slows both. Answers are judged once all are there.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from specstream.config import GenerationConfig
from specstream.drafters.none import NoDrafter
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.engine.text import asked, encode
from specstream.errors import reason_of
from specstream.evaluation.answers import Answers
from specstream.evaluation.evaluate_config import Loaded
from specstream.evaluation.execution import Limits, Outcome, run_program
from specstream.evaluation.quality import Values, counted, difference, estimate
from specstream.evaluation.statistics import speed_ratio
from specstream.evaluation.tasks.task import Metric, Task, TaskExample, program_of

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
        "data": {"sha256": hashlib.sha256(prompts.encode()).hexdigest(), "examples": len(loaded.examples)},
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
    sides = {"plain": engine.parts.with_drafter(NoDrafter()), "speculative": engine.parts}
    config = GenerationConfig(max_new_tokens=loaded.task.max_new_tokens, stop=list(loaded.task.stop))
    todo = [index for index in range(len(loaded.examples)) if "error" in answers.records.get(index, {"error": ""})]
    if todo:
        prepare(engine.parts, 1)
    for _ in range(warmup if todo else 0):
        _record(sides, loaded, todo[0], config)
    done = len(loaded.examples) - len(todo)
    for index in todo:
        answers.add(_record(sides, loaded, index, config))
        done += 1
        on_example(done)


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


def _record(sides: Mapping[str, Parts], loaded: Loaded, index: int, config: GenerationConfig) -> dict[str, Any]:
    example = loaded.examples[index]
    about = {"example": index, "where": example.where, "category": example.category}
    order = SIDES if index % 2 == 0 else SIDES[::-1]
    try:
        runs = {side: _converse(sides[side], loaded.task, example, config) for side in order}
    except Exception as error:  # one example is not worth the others
        return {**about, "error": reason_of(error)[:500]}
    tokens = {side: [run.rows[0].emitted for run in runs[side]] for side in SIDES}
    return {**about, "equal": tokens["plain"] == tokens["speculative"]} | {side: _said(runs[side]) for side in SIDES}


def _converse(parts: Parts, task: Task, example: TaskExample, config: GenerationConfig) -> list[Generation]:
    """The answers of one side to the turns of an example; later turns need a chat template."""
    prompt = asked(parts.tokenizer, example.prompt, task.chat)
    runs = [Generation(parts, [encode(parts.tokenizer, prompt)], config).run()]
    if isinstance(prompt, str):
        return runs
    chat = list(prompt)
    for turn in example.later:
        chat += [{"role": "assistant", "content": runs[-1].text(runs[-1].rows[0])}, {"role": "user", "content": turn}]
        runs.append(Generation(parts, [encode(parts.tokenizer, chat)], config).run())
    return runs


def _said(runs: Sequence[Generation]) -> dict[str, Any]:
    rows = [run.rows[0] for run in runs]
    return {
        "texts": [run.text(row) for run, row in zip(runs, rows, strict=True)],
        "tokens": sum(row.stats.new_tokens for row in rows),
        "passes": sum(row.stats.target_passes for row in rows),
        "drafted": sum(row.stats.drafted for row in rows),
        "accepted": sum(row.stats.accepted for row in rows),
        "seconds": sum(run.timings.decode for run in runs),
        "total_seconds": sum(run.timings.total for run in runs),
        "exact": "bits" if all(row.exact == "bits" for row in rows) else "rounding",
    }


def _figures(
    loaded: Loaded, answers: Answers, outcomes: Mapping[tuple[str, int], Outcome], indices: Sequence[int]
) -> dict[str, Any]:
    records = [answers.records[index] for index in indices]
    quality = {}
    for metric in _metrics(loaded, indices):
        judged = [index for index in indices if _judged(metric, loaded, index, outcomes)]
        if judged:
            quality[metric] = _quality(metric, loaded, answers, outcomes, judged)
    speculative = [record["speculative"] for record in records]
    drafted = sum(each["drafted"] for each in speculative)
    return {
        "answers": len(records),
        "equal": sum(record["equal"] for record in records),
        "exact": "bits" if all(record[side]["exact"] == "bits" for record in records for side in SIDES) else "rounding",
        "quality": quality,
        "speedup": _speedup(records, "seconds"),
        "speedup_with_prompt": _speedup(records, "total_seconds"),
        "tokens_per_second": {side: _rate([record[side] for record in records]) for side in SIDES},
        "mean_accepted_length": sum(each["tokens"] for each in speculative)
        / sum(each["passes"] for each in speculative),
        "acceptance_rate": sum(each["accepted"] for each in speculative) / drafted if drafted else 0.0,
    }


def _metrics(loaded: Loaded, indices: Sequence[int]) -> list[Metric]:
    """Of some examples, in the order of the task."""
    task = loaded.task
    categories = dict.fromkeys(loaded.examples[index].category for index in indices)
    own = [metric for name in categories for metric in task.category_metrics.get(name, [])]
    return list(dict.fromkeys([*task.metrics, *own]))


def _judged(metric: Metric, loaded: Loaded, index: int, outcomes: Mapping[tuple[str, int], Outcome]) -> bool:
    """Whether an example counts for a metric."""
    task, example = loaded.task, loaded.examples[index]
    if metric == PASS:
        return ("plain", index) in outcomes
    return bool(example.references) and metric in (*task.metrics, *task.category_metrics.get(example.category, []))


def _quality(
    metric: Metric,
    loaded: Loaded,
    answers: Answers,
    outcomes: Mapping[tuple[str, int], Outcome],
    indices: Sequence[int],
) -> dict[str, Any]:
    numbers: dict[str, Values] = {}
    for side in SIDES:
        if metric == PASS:
            numbers[side] = np.array([[float(outcomes[side, index].passed)] for index in indices])
        else:
            texts = [answers.records[index][side]["texts"][0].strip() for index in indices]
            numbers[side] = counted(metric, texts, [loaded.examples[index].references for index in indices])
    return {
        **{side: asdict(estimate(metric, numbers[side])) for side in SIDES},
        "difference": asdict(difference(metric, numbers["speculative"], numbers["plain"])),
        "examples": len(indices),
    }


def _speedup(records: Sequence[Mapping[str, Any]], seconds: str) -> dict[str, float | None]:
    """With its interval; of a single example that is not known, and None."""
    own, base = (
        np.array([[record[side]["tokens"], record[side][seconds]] for record in records], np.float64)
        for side in ("speculative", "plain")
    )
    found = speed_ratio(own, base)
    assert found is not None
    known = math.isfinite(found.high)
    return {"value": found.value, "low": found.low if known else None, "high": found.high if known else None}


def _rate(said: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(each["tokens"] for each in said) / sum(each["seconds"] for each in said))
