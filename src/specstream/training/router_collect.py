"""Every drafter on every prompt, in turn, in one process: what a router is fitted to.

All drafters share one target and one controller, as they do where a router chooses among them. For each prompt they
generate in turn, the order turning from prompt to prompt, so that a machine that slows down slows all of them. A prompt
that fails is recorded with the reason; an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specstream.config import GenerationConfig
from specstream.engine import SpeculativeEngine
from specstream.errors import TrainingError, UsageError, reason_of
from specstream.generation import Generation, Parts
from specstream.heads.folder import describe_base
from specstream.inventory import prepare
from specstream.parts import build_drafters
from specstream.prompts import load_prompts
from specstream.provenance import provenance
from specstream.routing.config import NONE
from specstream.routing.records import Collected, Run
from specstream.text import asked, encode
from specstream.training.answers import AnswerFile, check_place, file_sha256
from specstream.training.held_out import HeldOut, same
from specstream.training.router_config import CollectConfig, CollectionSection, PromptsSection, TargetSection


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, its kind, and the file and place it stands in."""

    text: str
    domain: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a collection is."""

    done: int
    total: int
    failed: int


def read_questions(config: CollectConfig) -> list[Question]:
    """The prompts of all files, each once, in an order drawn by the seed.

    Raises:
        UsageError: a file that cannot be read, or nothing left.
    """
    excluded = HeldOut.of_files(tuple(config.collection.exclude))
    questions: dict[tuple[str, ...], Question] = {}
    for section in config.prompts:
        for question in _of_section(section):
            if question.text not in excluded:
                questions.setdefault(same(question.text), question)
    if not questions:
        raise UsageError("no prompt is left; give prompts that collection.exclude does not hold")
    seed = config.collection.seed
    return sorted(questions.values(), key=lambda each: hashlib.sha256(f"{seed}/{each.text}".encode()).digest())


def _of_section(section: PromptsSection) -> list[Question]:
    texts = load_prompts(section.file, section.field, section.where)
    end = None if section.limit is None else section.skip + section.limit
    name = _last(section.file)
    return [
        Question(text=section.template.replace("{prompt}", text), domain=section.domain, source=f"{name}:{number}")
        for number, text in list(enumerate(texts, 1))[section.skip : end]
    ]


def load_target(section: TargetSection) -> SpeculativeEngine:
    """The target with plain decoding."""
    return SpeculativeEngine(
        section.model, drafter="none", dtype=section.dtype, device=section.device, runtime=section.runtime
    )


def collect(
    config: CollectConfig, limit: int | None = None, on_prompt: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Measure the prompts into ``collection.output``; what is there already of the same collection is kept.

    Args:
        config: what to measure.
        limit: prompts to measure at most. A later run with a larger one goes on.
        on_prompt: told how far it is.

    Returns:
        The record that ``.meta.json`` holds.

    Raises:
        UsageError: files that cannot be read, or an output of another collection.
        TrainingError: every prompt failed.
    """
    section = config.collection
    check_place(Path(section.output), "collection.output")
    questions = read_questions(config)
    engine = load_target(config.target)
    usable = [
        (each, ids) for each in questions if len(ids := _encoded(engine, each, section)) <= section.max_prompt_tokens
    ]
    left_out, usable = len(questions) - len(usable), usable[:limit]
    record: dict[str, Any] = {
        "prompts": len(usable),
        "too_long": left_out,
        "base": describe_base(engine.model),
        "drafters": {name: spec.model_dump(exclude_defaults=True) for name, spec in config.drafters.items()},
        "provenance": engine.provenance(),
    }
    file = AnswerFile(Path(section.output), _identity(config, engine), what="prompts", setting="collection.output")
    done = file.begin(record, 1, len(usable))
    failed = 0
    if done < len(usable):
        sides = _sides(engine, config)
        _warm_up(sides, usable[0][1], section)
        for index in range(done, len(usable)):
            on_prompt(Progress(done=index, total=len(usable), failed=failed))
            line = measure(sides, *usable[index], section, index)
            failed += bool(line.error)
            file.append([line.to_line()])
    on_prompt(Progress(done=len(usable), total=len(usable), failed=failed))
    record["failed"] = _failed(file.partial, len(usable))
    if record["failed"] == len(usable):
        raise TrainingError(f"all {len(usable)} prompts failed, as {file.partial} says; mend that, and remove it")
    file.finish(record, len(usable))
    return record


def _failed(path: Path, count: int) -> int:
    """Prompts that failed, those of an earlier run of this collection included."""
    lines = path.read_text(encoding="utf-8").split("\n")[:count]
    return sum(bool(json.loads(line)["error"]) for line in lines)


def measure(
    sides: Mapping[str, Parts], question: Question, ids: list[int], section: CollectionSection, first: int
) -> Collected:
    """Every drafter on one prompt; whatever goes wrong is in the line.

    Args:
        sides: the drafters.
        question: the prompt.
        ids: its tokens.
        section: how.
        first: which drafter begins.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    error = ""
    try:
        for number in range(section.runs):
            for name, generation in _in_turn(sides, ids, section, first + number).items():
                runs[name].append(generation)
    except Exception as problem:  # one prompt must not end hours of measuring
        runs, error = {}, reason_of(problem)
    return Collected(
        prompt=question.text,
        token_ids=ids,
        domain=question.domain,
        source=question.source,
        runs=runs,
        error=error,
    )


def _in_turn(sides: Mapping[str, Parts], ids: list[int], section: CollectionSection, first: int) -> dict[str, Run]:
    names = list(sides)
    first %= len(names)
    generations = {name: _generate(sides[name], ids, section) for name in [*names[first:], *names[:first]]}
    plain = generations[NONE].rows[0].emitted
    return {name: _run(generations[name], plain) for name in names}


def _generate(parts: Parts, ids: list[int], section: CollectionSection) -> Generation:
    return Generation(parts, [ids], GenerationConfig(max_new_tokens=section.max_new_tokens)).run()


def _run(generation: Generation, plain: list[int]) -> Run:
    (row,) = generation.rows
    return Run(
        tokens=row.stats.new_tokens,
        passes=row.stats.target_passes,
        drafted=row.stats.drafted,
        accepted=row.stats.accepted,
        seconds=generation.timings.decode,
        total=generation.timings.total,
        equal=row.emitted == plain,
    )


def _sides(engine: SpeculativeEngine, config: CollectConfig) -> dict[str, Parts]:
    drafters = build_drafters(engine.target, engine.tokenizer, config.drafters, engine.config)
    sides = {name: engine.parts.sharing(drafter) for name, drafter in drafters.items()}
    for side in sides.values():
        prepare(side, 1)
    return sides


def _warm_up(sides: Mapping[str, Parts], ids: list[int], section: CollectionSection) -> None:
    """The first generation of each measures the prices of its passes; it is not counted, and may fail."""
    measure(sides, Question(text="", domain="", source=""), ids, section, 0)


def _encoded(engine: SpeculativeEngine, question: Question, section: CollectionSection) -> list[int]:
    return encode(engine.tokenizer, asked(engine.tokenizer, question.text, section.chat))


def _identity(config: CollectConfig, engine: SpeculativeEngine) -> dict[str, Any]:
    versions = provenance()
    section = config.collection.model_dump(exclude={"output", "exclude"})
    files = [*(each.file for each in config.prompts), *config.collection.exclude]
    return {
        **section,
        "target": {**config.target.model_dump(), **describe_base(engine.model)},
        "drafters": {name: spec.model_dump() for name, spec in config.drafters.items()},
        "prompt_sections": [{**each.model_dump(), "file": _last(each.file)} for each in config.prompts],
        "files": {_last(file): file_sha256(Path(file)) for file in files},
        **{name: versions[name] for name in ("specstream", "torch", "transformers", "cpu", "threads")},
    }


def _last(path: str) -> str:
    """A file by its name and its folder's: the rest says nothing elsewhere."""
    return f"{Path(path).parent.name}/{Path(path).name}"
