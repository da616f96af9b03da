"""From experiments as data to groups of arms: what is loaded, what is generated, what is compared with what.

Everything in a group is measured in turn, on the same prompts, by one target, and against plain decoding of that group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from specstream.config import EngineConfig, GenerationConfig, engine_config, generation_config
from specstream.engine.choices import SELF, check_choice
from specstream.engine.contestants import PLAIN
from specstream.errors import SpecStreamError, UsageError, listed
from specstream.evaluation.benchmark.config import ARM, FIXED_TREE, NAMED, TARGET, WORKLOAD, BenchmarkConfig, Experiment
from specstream.files.yaml_file import Document, misplaced, sections_of
from specstream.models.hub.vocabulary import check_tokenizers


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to decode.

    Attributes:
        name: in its experiment.
        value: that the varied key has in it, None where that is no key of an arm.
        draft: the draft model, if there is one.
        config: the rest.
        fixed_tree: nodes that heads draft in every round; None for as many as pay.
    """

    name: str
    config: EngineConfig
    value: Any = None
    draft: str | None = None
    fixed_tree: int | None = None


PLAIN_ARM = Arm(name=PLAIN, config=EngineConfig(drafter="none"))
"""The first of every group."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Arms that are measured in turn.

    Attributes:
        experiment: whose.
        value: that the varied key has in all of it, None where that is a key of arms.
        target: ``dtype``, ``runtime``, ``exact`` and ``quantization``, by which targets are told apart.
        generation: how much is generated and by which rule.
        batch: prompts at once.
        context: tokens of every prompt; None for as many as it has.
        arms: plain decoding first.
    """

    experiment: str
    generation: GenerationConfig
    arms: tuple[Arm, ...]
    value: Any = None
    target: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    context: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a configuration comes to.

    Attributes:
        groups: in the order of the experiments.
        left_out: arms that are not measured, and why.
    """

    groups: tuple[Group, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def make_plan(config: BenchmarkConfig, document: Document) -> Plan:
    """The groups of a configuration. Nothing is loaded for it but the tokenizers of drafts.

    Raises:
        UsageError: an arm that cannot be, with the line where it stands.
        VocabularyMismatchError: a draft of another vocabulary than the target's.
    """
    left_out: dict[str, str] = {}
    groups: list[Group] = []
    for name, experiment in config.experiments.items():
        _check_vary(name, experiment, document)
        arms = _present(name, experiment, config, document, left_out)
        if arms or not experiment.arms:
            groups.extend(_groups(name, experiment, arms, config, document))
    _check_drafts(config, groups, document)
    return Plan(groups=tuple(groups), left_out=left_out)


def _check_vary(name: str, experiment: Experiment, document: Document) -> None:
    key, values = experiment.vary, experiment.values
    if (key is None) != (not values):
        where = document.where(("experiments", name, "vary" if key else "values"))
        raise UsageError(f"{where}vary is {key!r} with the values {values}; give both or neither")
    known = {FIXED_TREE, *WORKLOAD, *TARGET, *ARM}
    if key is not None and key not in known:
        where = document.where(("experiments", name, "vary"))
        raise UsageError(f"{where}unknown setting {key!r}; known are {listed(key, known)}")


def _present(
    name: str, experiment: Experiment, config: BenchmarkConfig, document: Document, left_out: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The arms of an experiment, their models by what they are; without those whose model is null."""
    arms = {}
    for arm, given in experiment.arms.items():
        if arm == PLAIN:
            where = document.where(("experiments", name, "arms", arm))
            raise UsageError(f"{where}every experiment has an arm {PLAIN!r}; call this one otherwise")
        names = {key: given[key] for key in NAMED if given.get(key) in config.models}
        missing = [each for each in names.values() if config.models[each] is None]
        if missing:
            left_out[f"{name}, {arm}"] = f"models.{missing[0]} is null; give it to have this arm"
        else:
            arms[arm] = {**given, **{key: config.models[each] for key, each in names.items()}}
    return arms


def _groups(
    name: str,
    experiment: Experiment,
    arms: Mapping[str, Mapping[str, Any]],
    config: BenchmarkConfig,
    document: Document,
) -> Iterator[Group]:
    key, base = experiment.vary, config.target.model_dump(include=TARGET)
    for number, value in enumerate(experiment.values if key in WORKLOAD | TARGET else [None]):
        own = {} if value is None or key is None else {key: value}
        where = document.where(("experiments", name, "values", number))
        yield Group(
            experiment=name,
            value=value,
            target={**base, **{each: own[each] for each in TARGET & set(own)}},
            generation=_generation(config, own, where),
            batch=_count(own, "batch", 1, where) or 1,
            context=_count(own, "context", None, where),
            arms=(PLAIN_ARM, *_arms(name, experiment, arms, document)),
        )


def _arms(
    name: str, experiment: Experiment, arms: Mapping[str, Mapping[str, Any]], document: Document
) -> Iterator[Arm]:
    key, known = experiment.vary, {FIXED_TREE, *ARM}
    for arm, given in arms.items():
        for number, value in enumerate(experiment.values if key in known else [None]):
            settings = {**given, key: value} if key is not None and value is not None else dict(given)
            place = ("experiments", name, "arms", arm)
            draft = settings.pop("draft_model", None)
            fixed = _count(settings, FIXED_TREE, None, document.where((*place, FIXED_TREE)))
            settings.pop(FIXED_TREE, None)
            if wrong := sorted(set(settings) - ARM):
                complaint = misplaced((*place, wrong[0]), sections_of(BenchmarkConfig)) or (
                    f"unknown setting {wrong[0]!r}; known are {listed(wrong[0], known)}"
                )
                raise UsageError(
                    f"{document.where((*place, wrong[0]))}{complaint}; what changes the work goes into generation, "
                    "target or vary"
                )
            try:
                config = engine_config(settings)  # type: ignore[arg-type]
                check_choice(config, draft)
            except SpecStreamError as error:
                wrong_key = culprit(settings)
                where = ("experiments", name, "values", str(number)) if wrong_key == key else (*place, wrong_key)
                raise type(error)(f"{document.where_in(where)}{error}") from None
            yield Arm(name=arm, value=value, draft=draft, config=config, fixed_tree=fixed)


def culprit(settings: Mapping[str, Any]) -> str:
    """The first setting that is wrong by itself; none if it takes several."""
    for key, value in settings.items():
        try:
            engine_config({key: value})  # type: ignore[misc]
        except UsageError:
            return key
    return ""


def _generation(config: BenchmarkConfig, own: Mapping[str, Any], where: str) -> GenerationConfig:
    changed = {key: value for key, value in own.items() if key in GenerationConfig.model_fields}
    try:
        return generation_config(config.generation, changed)  # type: ignore[arg-type]
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None


def _count(own: Mapping[str, Any], key: str, otherwise: int | None, where: str) -> int | None:
    count: int | None = own.get(key, otherwise)
    if key in own and (not isinstance(count, int) or count < 1):
        raise UsageError(f"{where}{key} is {count!r}; give 1 or more")
    return count


def _check_drafts(config: BenchmarkConfig, groups: list[Group], document: Document) -> None:
    """That every draft has the target's vocabulary, by the tokenizers."""
    target, checked = config.target.model, set[str]()
    for group in groups:
        for arm in group.arms:
            if arm.draft is None or arm.draft in checked or arm.draft == target or arm.draft.startswith(SELF):
                continue
            checked.add(arm.draft)
            try:
                check_tokenizers(target, arm.draft)
            except SpecStreamError as error:
                where = document.where(_place(config, group.experiment, arm))
                raise type(error)(f"{where}{error}") from None


def _place(config: BenchmarkConfig, experiment: str, arm: Arm) -> tuple[str, ...]:
    given = config.experiments[experiment].arms[arm.name].get("draft_model")
    return ("models", given) if given in config.models else ("experiments", experiment, "arms", arm.name, "draft_model")
