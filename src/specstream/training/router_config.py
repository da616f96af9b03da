"""Configurations of ``specstream router``: what is measured of which prompts, and how a router is fitted to that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from specstream.config import engine_config
from specstream.engine.build import config_of
from specstream.engine.choices import check_choice
from specstream.errors import UsageError
from specstream.evaluation.benchmark.config import check_target
from specstream.files.yaml_file import Document, Section, read_document, validated
from specstream.routing.config import NONE, DrafterSpec, check_drafters
from specstream.routing.learn import FitSection


class TargetSection(Section):
    """The model whose output it is; the fields are those of ``SpeculativeEngine``."""

    model: str = "smollm2-135m"
    dtype: str = "auto"
    device: str = "auto"
    runtime: Literal["auto", "eager", "native", "packed", "graphs", "static"] = "auto"


class PromptsSection(Section):
    """Prompts of one kind.

    Attributes:
        file: of prompts, in any format that other commands read.
        domain: what kind they are: code, chat, summary, translation, maths, ...
        field: the prompt's key in a record; empty takes the first that is known.
        where: only records with these values, such as ``category: translation``.
        skip: so many first ones are left out.
        limit: so many behind those are taken; None for all.
        template: what is asked about each, with ``{prompt}`` in it.
    """

    file: str
    domain: str
    field: str = ""
    where: dict[str, str] = Field(default_factory=dict)
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    template: str = "{prompt}"


class CollectionSection(Section):
    """How prompts are measured.

    Attributes:
        output: the file of lines; ``.meta.json`` beside it says where they come from.
        max_new_tokens: of an answer.
        max_prompt_tokens: longer prompts are left out.
        runs: of each drafter on each prompt. With two or more the oracle is judged on other runs than it was chosen by.
        chat: put prompts through the chat template; None does where there is one.
        exclude: files whose prompts must not be among them.
        seed: of the order, in which all kinds are mixed.
    """

    output: str
    max_new_tokens: int = Field(default=128, ge=1)
    max_prompt_tokens: int = Field(default=1024, ge=1)
    runs: int = Field(default=1, ge=1)
    chat: bool | None = None
    exclude: list[str] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0, lt=2**63)


class CollectConfig(Section):
    """One collection: every drafter on every prompt."""

    target: TargetSection = TargetSection()
    drafters: dict[str, DrafterSpec]
    prompts: list[PromptsSection] = Field(min_length=1)
    collection: CollectionSection


class DataSection(Section):
    """What a router is fitted to, and judged by.

    Attributes:
        files: collections.
        held_out: the share of each kind of prompt that is not fitted to.
        held_out_files: collections to judge by instead; prompts that are in ``files`` too are not fitted to.
        drafters: those of the measured ones that there are to choose from, ``none`` among them; None for all.
        seed: of the split.
    """

    files: list[str] = Field(min_length=1)
    held_out: float = Field(default=0.25, gt=0, lt=1)
    held_out_files: list[str] = Field(default_factory=list)
    drafters: list[str] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)


class EmbeddingSection(Section):
    """What a prompt is about, as a vector; docs/router.md says what each costs.

    Attributes:
        name: ``target`` is the mean of the target's own input embeddings, ``mpnet`` all-mpnet-base-v2, or ``none``.
        model: where mpnet is: a folder or a hub id.
    """

    name: Literal["target", "mpnet", "none"] = "target"
    model: str | None = None


class RouterTrainConfig(Section):
    """One training of a router, into ``output_dir``."""

    target: TargetSection = TargetSection()
    data: DataSection
    embedding: EmbeddingSection = EmbeddingSection()
    fit: FitSection = FitSection()
    output_dir: str


def _draft_models(document: Document) -> dict[str, str] | None:
    """The draft models of a section ``router``, by name, taken out of the document; None without the section.

    Raises:
        UsageError: another key in the section, or draft models that are not names.
    """
    if "router" not in document.values:
        return None
    section, where = document.values.pop("router"), document.where(("router",))
    drafts = section.get("draft_models") if isinstance(section, dict) and set(section) == {"draft_models"} else None
    named = {Path(name).name: name for name in drafts} if isinstance(drafts, list) else drafts
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise UsageError(
            f"{where}router is {section!r}; give router.draft_models, a list of models or a mapping from names to "
            "them, or drafters"
        )
    return named


def read_collect_config(path: str | Path, overrides: Sequence[str] = ()) -> CollectConfig:
    """From a YAML file; see ``read_document``.

    Raises:
        UsageError: an unknown key, a value outside its range, fewer than two drafters, or one that cannot be.
    """
    document = read_document(path, overrides, "collection.runs=2")
    if (drafts := _draft_models(document)) is not None:
        own = {name: {"drafter": "draft_model", "draft": model} for name, model in drafts.items()}
        document.values.setdefault("drafters", {NONE: {"drafter": NONE}, **own})
    config = validated(CollectConfig, document.values, document=document)
    check_target(config.target, document)
    check_drafters(config.drafters)
    if (plain := config.drafters.get(NONE)) is not None and plain != DrafterSpec(drafter=NONE):
        where = document.where(("drafters", NONE))
        raise UsageError(f"{where}drafters.{NONE} is the measure of all; give drafter: {NONE} in it, and nothing else")
    if plain is None:
        raise UsageError(
            f"drafters are {', '.join(config.drafters)}; add '{NONE}: {{drafter: {NONE}}}', the measure of all"
        )
    common = engine_config({})
    for name, spec in config.drafters.items():
        try:
            check_choice(config_of(spec, common), spec.draft)
        except UsageError as error:
            culprit = str(error).partition(" ")[0]
            raise UsageError(f"{document.where_in(('drafters', name, culprit))}{error}") from None
    for each in config.prompts:
        if "{prompt}" not in each.template:
            raise UsageError(f"template is {each.template!r}; give a text with {{prompt}} in it")
    return config


def read_router_config(path: str | Path, overrides: Sequence[str] = ()) -> RouterTrainConfig:
    """From a YAML file; see ``read_document``.

    Raises:
        UsageError: an unknown key, or a value outside its range.
    """
    document = read_document(path, overrides, "fit.epochs=100")
    data = document.values.get("data")
    if (drafts := _draft_models(document)) is not None and isinstance(data, dict):
        data.setdefault("drafters", [NONE, *drafts])
    config = validated(RouterTrainConfig, document.values, document=document)
    check_target(config.target, document)
    return config
