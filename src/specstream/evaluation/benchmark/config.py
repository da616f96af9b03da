"""The configuration of a benchmark, read from YAML. Whatever can be wrong with it is found before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from specstream.config import EngineConfig, GenerationConfig
from specstream.errors import SpecStreamError, UsageError
from specstream.files.yaml_file import NAME, Document, Section, read_document, validated

WORKLOAD = {"batch", "context", *GenerationConfig.model_fields} - {"logits_processor"}
"""Keys that change the work, so that plain decoding is measured anew for every value of them."""

TARGET = {"dtype", "runtime", "exact", "quantization"}
"""Keys that change the loaded target, likewise."""

ARM = {"draft_model", *EngineConfig.model_fields} - {"generation", "device", *TARGET}
"""Keys of an arm."""

FIXED_TREE = "fixed_tree"
"""A key of an arm beside those: heads draft a tree of so many nodes in every round, whether it pays or not."""

ARMS = f"experiments.{NAME}.arms.{NAME}"
"""The path of an arm in the file."""

NAMED = ("draft_model", "heads", "router")
"""Keys of an arm whose value may be a name of the section ``models``."""


class TargetSection(Section):
    """The model whose output it is; see ``EngineConfig``.

    Attributes:
        model: a catalog name, a folder or a hub id.
        dtype: of its weights.
        device: where it runs.
        runtime: how passes run.
        exact: ``bits`` or ``rounding``.
        quantization: of its linear layers' weights.
    """

    model: str = "smollm2-135m"
    dtype: str = "auto"
    device: str = "auto"
    runtime: Literal["auto", "eager", "native", "packed", "graphs", "static"] = "auto"
    exact: Literal["bits", "rounding"] = "bits"
    quantization: Literal["none", "int8", "int4"] = "none"


class PromptFile(Section):
    """A file of prompts.

    Attributes:
        path: ``.jsonl``, ``.json`` or ``.csv``.
        category: of its prompts; None takes each record's ``category``, and the file's name without one.
        task: a task's name or YAML file, which then says how the file is read.
        field: the prompt's key in a record; empty takes what is usual.
    """

    path: str
    category: str | None = None
    task: str | None = None
    field: str = ""


class PromptsSection(Section):
    """What is generated from.

    Attributes:
        files: none for the prompts that come with the package.
        categories: only these; none for all.
        per_category: the first so many of each; None for all.
        chat: put prompts through the chat template; None does where there is one, and for a task as that says.
    """

    files: list[PromptFile] = Field(default_factory=list)
    categories: list[str] = Field(default_factory=list)
    per_category: int | None = Field(default=None, ge=1)
    chat: bool | None = None


class MeasureSection(Section):
    """How it is measured.

    Attributes:
        repeats: of every prompt by every arm.
        warmup: generations of every arm that are not counted, before its first that is.
        predicted: whether passes are timed alone after each prompt, for ``measured_over_predicted``.
        output_dir: the folder of the run.
    """

    repeats: int = Field(default=3, ge=1)
    warmup: int = Field(default=1, ge=0)
    predicted: bool = False
    output_dir: str = "runs/benchmark"


class Experiment(Section):
    """Arms that are measured in turn on the same prompts, and plain decoding with them.

    Attributes:
        about: the question that it answers.
        arms: by name, what differs from the defaults of ``EngineConfig``; a draft model is ``draft_model``, and
            ``fixed_tree`` is the drafted nodes of one tree that heads draft in every round.
        vary: a key that takes each of ``values`` in turn: one of an arm, or of the work itself, such as
            ``temperature``, ``batch`` (prompts at once) or ``context`` (tokens of every prompt).
        values: of that.
    """

    about: str = ""
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    vary: str | None = None
    values: list[Any] = Field(default_factory=list)


class BenchmarkConfig(Section):
    """One benchmark.

    Attributes:
        target: the model.
        models: drafts, heads and routers by names that arms call them; an arm whose one is null is left out.
        prompts: what is generated from.
        generation: how much and by which rule; see ``GenerationConfig``.
        measure: how it is measured.
        experiments: by name.
    """

    target: TargetSection = TargetSection()
    models: dict[str, str | None] = Field(default_factory=dict)
    prompts: PromptsSection = PromptsSection()
    generation: GenerationConfig = GenerationConfig(max_new_tokens=64)
    measure: MeasureSection = MeasureSection()
    experiments: dict[str, Experiment] = Field(min_length=1)


def check_target(target: Any, document: Document) -> None:
    """Refuse before anything is written or loaded what no model can be loaded with.

    Args:
        target: a section with ``model``, ``dtype`` and ``device``.
        document: its file.

    Raises:
        SpecStreamError: so it is, with the line.
    """
    from specstream.models.hub.catalog import on_disk
    from specstream.models.hub.load import pick_device, pick_dtype

    checks: dict[str, Callable[[str], object]] = {"model": on_disk, "dtype": pick_dtype, "device": pick_device}
    for key, check in checks.items():
        try:
            check(getattr(target, key))
        except SpecStreamError as error:
            section = "target." if str(error).startswith(f"{key} is ") else ""
            raise type(error)(f"{document.where(('target', key))}{section}{error}") from None


def read_config(
    path: str | Path, overrides: Sequence[str] = (), experiments: Sequence[str] = ()
) -> tuple[BenchmarkConfig, Document]:
    """A configuration from a YAML file, and the file for the lines of errors.

    Args:
        path: the file.
        overrides: ``section.key=value``, the value in YAML; they replace what the file says.
        experiments: keep only these; none for all.

    Raises:
        UsageError: a file that cannot be read, an unknown key or experiment, a value outside its range.
    """
    document = read_document(path, overrides, "measure.repeats=1")
    values = {name: value for name, value in document.values.items() if value is not None}
    config = validated(BenchmarkConfig, values, document=document, free={ARMS: {FIXED_TREE, *ARM}})
    if config.generation.logits_processor:
        raise UsageError(f"{document.where(('generation', 'logits_processor'))}a file cannot hold one; leave it out")
    if unknown := [name for name in experiments if name not in config.experiments]:
        raise UsageError(
            f"there is no experiment {unknown[0]!r} in {path}; give one of: {', '.join(config.experiments)}"
        )
    chosen = {name: each for name, each in config.experiments.items() if not experiments or name in experiments}
    return config.model_copy(update={"experiments": chosen}), document
