"""Every drafter on every prompt, in turn, in one process: what a router is fitted to.

All drafters share one target and one controller, as they do where a router chooses among them. A prompt that fails is
recorded with the reason; an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from specstream.config import GenerationConfig
from specstream.engine.build import build_drafters
from specstream.engine.choices import SELF
from specstream.engine.contestants import Turn, by_turn, in_turn
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import announce_short_context, prepare
from specstream.environment import provenance
from specstream.errors import TrainingError, UsageError, reason_of
from specstream.files.atomic import read_lines
from specstream.files.prompts import load_prompts
from specstream.heads.folder import describe_base
from specstream.models.hub.vocabulary import check_tokenizers
from specstream.routing.config import NONE
from specstream.routing.records import Collected, Run
from specstream.training.answers import (
    AnswerFile,
    Question,
    Tell,
    check_lengths,
    check_place,
    check_same,
    drawn,
    encoded,
    file_sha256,
    short_name,
)
from specstream.training.decontamination import Decontamination, same
from specstream.training.router_config import CollectConfig, CollectionSection, PromptsSection


def read_questions(config: CollectConfig) -> list[Question]:
    """The prompts of all files, each once, in an order drawn by the seed.

    Raises:
        UsageError: a file that cannot be read, or nothing left.
    """
    excluded = Decontamination.of_files(tuple(config.collection.exclude))
    questions: dict[tuple[str, ...], Question] = {}
    for section in config.prompts:
        for question in _of_section(section):
            if question.prompt not in excluded:
                questions.setdefault(same(question.prompt), question)
    if not questions:
        raise UsageError("no prompt is left; give prompts that collection.exclude does not hold")
    return sorted(questions.values(), key=lambda each: drawn(config.collection.seed, each.prompt))


def _of_section(section: PromptsSection) -> list[Question]:
    texts = load_prompts(section.file, section.field, section.where)
    if section.skip >= len(texts):
        raise UsageError(f"skip is {section.skip} and {section.file!r} has {len(texts)} prompts; give less")
    end = None if section.limit is None else section.skip + section.limit
    name = short_name(section.file)
    return [
        Question(prompt=section.template.replace("{prompt}", text), domain=section.domain, source=f"{name}:{number}")
        for number, text in list(enumerate(texts, 1))[section.skip : end]
    ]


def collect(
    config: CollectConfig, limit: int | None = None, tell: Tell = lambda done, total, note: None
) -> dict[str, Any]:
    """Measure the prompts into ``collection.output``; what is there already of the same collection is kept.

    Args:
        config: what to measure.
        limit: prompts to measure at most, and no fewer than are there. A later run with a larger one goes on.
        tell: is told after each prompt; the note counts those that failed.

    Returns:
        The record that ``.meta.json`` holds.

    Raises:
        UsageError: files that cannot be read, or an output of another collection.
        TrainingError: every prompt failed.
    """
    section = config.collection
    check_place(section.output, "collection.output")
    questions = read_questions(config)
    place, known = Path(section.output), {"what": "prompts", "setting": "collection.output"}
    check_same(place, _identity(config, {}), **known, later=("name", "fingerprint"))
    target = config.target
    for spec in config.drafters.values():
        if spec.draft is not None and not spec.draft.startswith(SELF):
            check_tokenizers(target.model, spec.draft)
    engine = SpeculativeEngine(
        target.model, drafter="none", dtype=target.dtype, device=target.device, runtime=target.runtime
    )
    usable = encoded(engine.tokenizer, questions, section.chat, section.max_prompt_tokens)
    check_lengths(len(usable), len(questions), section.max_prompt_tokens, "collection.max_prompt_tokens")
    file = AnswerFile(place, _identity(config, describe_base(engine.model)), **known)
    left_out, usable = len(questions) - len(usable), usable[: file.at_least(limit)]
    record: dict[str, Any] = {
        "prompts": len(usable),
        "too_long": left_out,
        "base": describe_base(engine.model),
        "drafters": {name: spec.model_dump(exclude_defaults=True) for name, spec in config.drafters.items()},
        "provenance": engine.provenance(),
    }
    announce_short_context(engine.target, section.max_new_tokens)
    done = file.begin(record, 1, len(usable))
    failed = 0
    tell(done, len(usable), "")
    if done < len(usable):
        sides = _sides(engine, config)
        ways = {name: partial(_generate, parts, section) for name, parts in sides.items()}
        left = [(run, index) for index in range(done, len(usable)) for run in range(section.runs)]
        turns = by_turn(in_turn(ways, [ids for _, ids in usable], todo=left, errors="keep"))
        for index in range(done, len(usable)):
            question, ids = usable[index]
            line = collected(question, ids, list(sides), islice(turns, section.runs))
            failed += bool(line.error)
            file.append([asdict(line)])
            tell(index + 1, len(usable), f"{failed} failed" if failed else "")
    record["failed"] = sum(bool(line["error"]) for line in read_lines(file.partial)[: len(usable)])  # earlier runs' too
    if record["failed"] == len(usable):
        raise TrainingError(f"all {len(usable)} prompts failed, as {file.partial} says; mend that, and remove it")
    file.finish(record, len(usable))
    return record


def collected(question: Question, ids: list[int], names: list[str], turns: Iterable[Turn[Generation]]) -> Collected:
    """What every drafter did on one prompt, by a turn for each run; whatever went wrong is in the line."""
    error = ""
    try:
        made = [turn.values() for turn in list(turns)]  # all of them, whichever fails: the next prompt's come after
        runs = {name: [_run(each[name], each[NONE].rows[0].emitted) for each in made] for name in names}
    except Exception as problem:  # one prompt must not end hours of measuring
        runs, error = {}, reason_of(problem)
    return Collected(
        prompt=question.prompt,
        token_ids=ids,
        domain=question.domain,
        source=question.source,
        runs=runs,
        error=error,
    )


def _generate(parts: Parts, section: CollectionSection, ids: list[int]) -> Generation:
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
    sides = {name: replace(engine.parts, drafter=drafter) for name, drafter in drafters.items()}
    for side in sides.values():
        prepare(side, 1)
    return sides


def _identity(config: CollectConfig, base: Mapping[str, str]) -> dict[str, Any]:
    versions = provenance()
    section = config.collection.model_dump(exclude={"output", "exclude"})
    files = [*(each.file for each in config.prompts), *config.collection.exclude]
    return {
        **section,
        "target": {**config.target.model_dump(), **base},
        "drafters": {name: spec.model_dump() for name, spec in config.drafters.items()},
        "prompt_sections": [{**each.model_dump(), "file": short_name(each.file)} for each in config.prompts],
        "files": {short_name(file): file_sha256(Path(file)) for file in files},
        **{name: versions[name] for name in ("specstream", "torch", "transformers", "cpu", "threads")},
    }
