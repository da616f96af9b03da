"""The configuration of an evaluation, read from YAML. What can be wrong with it is found before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from specstream.config import engine_config
from specstream.engine.choices import check_choice
from specstream.errors import SpecStreamError, UsageError, listed
from specstream.evaluation.benchmark.config import ARM, BenchmarkConfig, Experiment, TargetSection
from specstream.evaluation.benchmark.experiments import culprit, make_plan
from specstream.evaluation.tasks.task import Task, TaskExample, load_examples, read_task, spread, task_names
from specstream.files.yaml_file import Document, Section, misplaced, read_document, sections_of, validated


class DatasetSection(Section):
    """One data set.

    Attributes:
        task: a task's name or YAML file; None takes the name of the data set.
        path: its file; None takes it from the hub.
        limit: so many examples, spread over the file; None takes all.
        max_new_tokens: of an answer; None takes the task's.
    """

    task: str | None = None
    path: str | None = None
    limit: int | None = Field(default=None, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)


class MeasureSection(Section):
    """How it is measured.

    Attributes:
        warmup: generations of each side that are not counted.
        output_dir: where answers and figures go, in a folder for each data set.
    """

    warmup: int = Field(default=1, ge=0)
    output_dir: str = "runs/evaluate"


class EvaluationConfig(Section):
    """One evaluation.

    Attributes:
        target: the model.
        speculative: how it speculates: ``draft_model`` and keys of ``EngineConfig``.
        measure: how it is measured.
        datasets: by name; a name alone is a task's.
    """

    target: TargetSection = TargetSection()
    speculative: dict[str, Any] = Field(default_factory=dict)
    measure: MeasureSection = MeasureSection()
    datasets: dict[str, DatasetSection | None] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A data set that was read.

    Attributes:
        name: its own.
        task: how its answers are judged.
        examples: what is asked.
        source: where they come from.
    """

    name: str
    task: Task
    examples: Sequence[TaskExample]
    source: str


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[EvaluationConfig, Document]:
    """A configuration from a YAML file, and the file for the lines of errors.

    Args:
        path: the file.
        overrides: ``section.key=value``, the value in YAML; they replace what the file says.

    Raises:
        UsageError: a file that cannot be read, an unknown key, a value outside its range.
    """
    document = read_document(path, overrides, "measure.output_dir=runs/mine")
    values = {name: value for name, value in document.values.items() if value is not None}
    config = validated(EvaluationConfig, values, document=document, free={"speculative": ARM})
    for key in config.speculative:
        if key not in ARM:
            where = document.where(("speculative", key))
            if complaint := misplaced(("speculative", str(key)), sections_of(EvaluationConfig)):
                raise UsageError(where + complaint)
            raise UsageError(f"{where}unknown setting 'speculative.{key}'; known are {listed(str(key), ARM)}")
    try:
        check_speculation(config)
    except UsageError as error:
        raise UsageError(f"{document.where(('speculative', culprit(config.speculative)))}{error}") from None
    for name in config.datasets:
        _check_name(name, config.datasets, document)
    return config, document


def engine_settings(config: EvaluationConfig) -> tuple[str | None, dict[str, Any]]:
    """The draft model, and what else an engine is made with."""
    settings = {**config.speculative, **config.target.model_dump(exclude={"model"})}
    draft = settings.pop("draft_model", None)
    return draft, settings


def check_speculation(config: EvaluationConfig) -> None:
    """Refuse before a model is loaded what the engine would refuse after it.

    Raises:
        UsageError: so it is.
    """
    draft, settings = engine_settings(config)
    check_choice(engine_config(settings), draft)  # type: ignore[arg-type]


def check_draft(config: EvaluationConfig, document: Document) -> None:
    """Refuse a draft of another vocabulary, by the tokenizers.

    Raises:
        UsageError: a tokenizer that cannot be read.
        VocabularyMismatchError: a draft that does not fit.
    """
    arms = {"speculative": Experiment(arms={"speculative": config.speculative})}
    try:
        make_plan(BenchmarkConfig(target=config.target, experiments=arms), Document(source="", values={}))
    except SpecStreamError as error:
        raise type(error)(f"{document.where(('speculative', 'draft_model'))}{error}") from None


def load_all(
    config: EvaluationConfig,
    document: Document,
    names: Sequence[str] = (),
    data: str | None = None,
    limit: int | None = None,
) -> list[Loaded]:
    """The data sets that are asked for.

    Args:
        config: says which there are.
        document: its file, for the lines of errors.
        names: of data sets or tasks; none for all of the configuration's.
        data: a file in place of the configuration's, for one data set.
        limit: examples of each, in place of the configuration's.

    Raises:
        UsageError: an unknown data set or task, a file that is not there or does not fit.
    """
    chosen = list(names) or list(config.datasets)
    if not chosen:
        raise UsageError(f"{document.source} names no datasets; give --dataset, one of {', '.join(task_names())}")
    if data is not None and len(chosen) != 1:
        raise UsageError(f"data is {data!r} and there are {len(chosen)} data sets; give --dataset, one of them")
    update = {name: value for name, value in (("path", data), ("limit", limit)) if value is not None}
    return [_load(name, config.datasets, document, update) for name in chosen]


def _check_name(name: str, sections: Mapping[str, DatasetSection | None], document: Document) -> None:
    """Refuse a data set that says no task and is none."""
    section = sections.get(name)
    if (section is None or section.task is None) and name not in task_names() and not name.endswith((".yaml", ".yml")):
        known = listed(name, {*task_names(), *sections} - {name})
        where = document.where(("datasets", name)) if name in sections else ""
        raise UsageError(f"{where}there is no data set {name!r}; give a task's YAML file, or one of {known}")


def _load(
    name: str, sections: Mapping[str, DatasetSection | None], document: Document, update: Mapping[str, Any]
) -> Loaded:
    section = (sections.get(name) or DatasetSection()).model_copy(update=dict(update))
    if name not in sections:
        _check_name(name, sections, document)
    own = ("path",) if section.path is not None else ()
    try:
        task = read_task(section.task or name)
        examples = spread(load_examples(name, task, section.path), section.limit)
    except UsageError as error:
        where = document.where(("datasets", name, *own)) if name in sections and not update.get("path") else ""
        raise UsageError(f"{where}{error}") from None
    if section.max_new_tokens is not None:
        task = task.model_copy(update={"max_new_tokens": section.max_new_tokens})
    hub = task.dataset.name if task.dataset is not None else ""
    return Loaded(name=Path(name).stem, task=task, examples=examples, source=section.path or hub)
