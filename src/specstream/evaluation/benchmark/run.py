"""The measuring itself: groups of arms on the same prompts in turn, one generation at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from specstream.config import EngineConfig
from specstream.engine.build import SharedDrafts, build_parts
from specstream.engine.contestants import in_turn
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Parts
from specstream.engine.inventory import (
    announce_left_out,
    announce_short_context,
    draft_bytes,
    extra_parameters,
    memory_overhead,
    prepare,
    with_fixed_tree,
)
from specstream.environment import provenance
from specstream.errors import reason_of
from specstream.evaluation.benchmark.config import BenchmarkConfig, Experiment, MeasureSection
from specstream.evaluation.benchmark.experiments import Arm, Group, Plan
from specstream.evaluation.benchmark.folder import SUMMARY, RunFolder, Samples, write_json
from specstream.evaluation.benchmark.metrics import generate, machine
from specstream.evaluation.benchmark.prompts import Item, Prompt, make_items
from specstream.evaluation.benchmark.summary import summarise
from specstream.evaluation.predicted import seconds_of_passes
from specstream.models.hub.load import pick_device

Progress = Callable[[int, int, str], None]
"""Called with the generations that are done, all there are to do in this session, and what comes next."""


def benchmark(
    config: BenchmarkConfig, plan: Plan, prompts: Sequence[Prompt], folder: RunFolder, on_progress: Progress
) -> dict[str, Any]:
    """Measure what is not yet measured, and sum up all of it.

    Args:
        config: what and how.
        plan: its groups.
        prompts: what is generated from.
        folder: where it goes, and what is there already.
        on_progress: told how far it came.

    Returns:
        What ``summary.json`` then holds.

    Raises:
        UsageError: the folder holds a run of other settings or another machine.
        SpecStreamError: the target cannot be loaded.
    """
    settings = config.model_dump(mode="json", exclude={"measure": {"output_dir", "predicted"}})
    measured_on = machine(provenance(str(pick_device(config.target.device)), config.target.dtype))
    facts = {
        "prompts": [asdict(prompt) for prompt in prompts],
        "left_out": {**folder.run.get("left_out", {}), **plan.left_out},
    }
    session = folder.begin(settings, measured_on, facts)
    _Bench(config, prompts, folder, session, on_progress).run(plan)
    summary = summarise(folder)
    write_json(folder.root / SUMMARY, summary)
    return summary


def measure(
    engine: Any,
    group: Group,
    prompts: Sequence[Prompt],
    on_progress: Progress,
    *,
    predicted: bool = False,
    errors: Literal["raise", "keep"] = "raise",
) -> Samples:
    """Measure one group once, in memory.

    Args:
        engine: of its target, which is loaded.
        group: what is compared.
        prompts: what is generated from.
        on_progress: told how far it came.
        predicted: whether passes are timed alone after each prompt.
        errors: whether a generation that fails ends all, or is noted.

    Raises:
        SpecStreamError: an arm that cannot be built.
    """
    section = MeasureSection(repeats=1, predicted=predicted)
    config = BenchmarkConfig(measure=section, experiments={group.experiment: Experiment()})
    samples = Samples()
    fatal = {"build", "generate"} if errors == "raise" else {"build"}
    _Bench(config, prompts, samples, 0, on_progress, fatal, engine).run(Plan(groups=(group,)))
    return samples


def build_arm(engine: Any, arm: Arm, drafts: SharedDrafts | None = None, like: Parts | None = None) -> Parts:
    """What an arm generates with.

    Args:
        engine: of the target.
        arm: which.
        drafts: draft models that are loaded for several arms; None for this one alone.
        like: another arm's of the same settings, whose heads a fixed tree takes.

    Raises:
        SpecStreamError: a draft or heads that do not go with the target.
    """
    if like is not None and arm.fixed_tree is not None:
        return with_fixed_tree(like, arm.fixed_tree)
    drafts = drafts or SharedDrafts(engine.target, engine.tokenizer)
    own = arm.config.model_copy(update={"dtype": engine.config.dtype, "runtime": engine.config.runtime})
    at_hand = engine.model if arm.draft == engine.model_name else None
    draft = None if arm.draft is None else drafts.get(arm.draft, own, at_hand)
    parts = build_parts(engine.target, engine.tokenizer, draft, own)
    return parts if arm.fixed_tree is None else with_fixed_tree(parts, arm.fixed_tree)


_ABOUT = {*machine({}), "python", "model", "runtime", "exact"}
"""What of an engine's provenance is true of all arms."""


@dataclass
class _Bench:
    """A session at work; ``engine`` is that of ``target``, which is loaded now. What fails and is ``fatal`` ends it."""

    config: BenchmarkConfig
    prompts: Sequence[Prompt]
    folder: Samples
    session: int
    on_progress: Progress
    fatal: Collection[str] = ()
    engine: SpeculativeEngine | None = None
    target: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0
    total: int = 0

    def run(self, plan: Plan) -> None:
        """Everything that is left."""
        # Groups of one target stand together, so that it is loaded once.
        kinds = list(dict.fromkeys(tuple(group.target.items()) for group in plan.groups))
        left = []
        for group in sorted(plan.groups, key=lambda group: kinds.index(tuple(group.target.items()))):
            items = math.ceil(len(self.prompts) / group.batch)
            if turns := self.folder.turns(group, items, self.config.measure.repeats):
                left.append((group, turns))
        warm_up = self.config.measure.warmup
        self.total = sum(len(group.arms) * (len(turns) + warm_up) for group, turns in left)
        for group, turns in left:
            self._measure(group, turns)
            self._say("")

    def _measure(self, group: Group, turns: Sequence[tuple[int, int]]) -> None:
        self._say(f"loading for {_title(group)}")
        engine = self._load(group)
        items = make_items(engine.tokenizer, self.prompts, batch=group.batch, context=group.context)
        longest = max(len(row) for item in items for row in item.rows) + group.generation.max_new_tokens
        parts, failed = self._build(group, engine, group.batch * longest)
        for each in parts.values():
            prepare(each, group.batch)
        arms = {_name(arm): arm for arm in group.arms}
        ways = {
            name: partial(self._generate, group, arm, parts.get(name), failed.get(name)) for name, arm in arms.items()
        }
        made: dict[str, dict[str, Any]] = {}
        for entry in in_turn(ways, items, todo=turns, warm_up=self.config.measure.warmup):
            item, made[entry.contestant] = items[entry.prompt], entry.value
            self._add(group, arms[entry.contestant], item, entry.round, entry.value)
            if entry.last and self.config.measure.predicted and not any(each["error"] for each in made.values()):
                for name, seconds in seconds_of_passes(engine.target, item.rows, made).items():
                    self._add(group, arms[name], item, entry.round, {**made[name], "predicted": seconds})

    def _load(self, group: Group) -> SpeculativeEngine:
        if self.engine is None or self.target != group.target:
            self.engine = None  # before the next is there: both may not fit
            section = self.config.target
            self.engine = SpeculativeEngine(section.model, drafter="none", device=section.device, **group.target)
            announce_short_context(self.engine.target, group.generation.max_new_tokens)
            self.target = group.target
        return self.engine

    def _build(self, group: Group, engine: SpeculativeEngine, cached: int) -> tuple[dict[str, Parts], dict[str, str]]:
        """What the arms generate with, and why some cannot. The KV caches hold so many tokens."""
        built: dict[str, Parts] = {}
        failed: dict[str, str] = {}
        drafts = SharedDrafts(engine.target, engine.tokenizer)
        for arm in group.arms:
            alike = (built.get(_name(each)) for each in group.arms if _settings(each) == _settings(arm))
            try:
                parts = build_arm(engine, arm, drafts, next(filter(None, alike), None))
                announce_left_out(parts, _name(arm))
            except Exception as error:  # one arm is not worth the others
                if "build" in self.fatal:
                    raise
                failed[_name(arm)] = f"it cannot be built: {reason_of(error)[:500]}"
                continue
            built[_name(arm)] = parts
            self.folder.append(
                {
                    "kind": "arm",
                    **_place(group, arm),
                    "settings": arm.config.model_dump(mode="json", exclude={"generation"}, exclude_defaults=True),
                    "draft_model": arm.draft,
                    "fixed_tree": arm.fixed_tree,
                    "drafter": parts.drafter.name,
                    "weights_bytes": engine.target.runtime.nbytes,
                    "draft_bytes": draft_bytes(parts.drafter, engine.target),
                    "memory_overhead": memory_overhead(parts.drafter, engine.target, cached),
                    "draft_parameters": extra_parameters(parts.drafter, engine.target),
                    "batch": group.batch,
                    "context": group.context,
                    "generation": group.generation.model_dump(mode="json", exclude={"logits_processor"}),
                    "heads": parts.heads,
                    "left_out": parts.left_out,
                    "provenance": {key: value for key, value in engine.provenance().items() if key in _ABOUT},
                }
            )
        return built, failed

    def _generate(self, group: Group, arm: Arm, parts: Parts | None, failed: str | None, item: Item) -> dict[str, Any]:
        """One generation, or why there is none."""
        assert self.engine is not None
        self._say(f"{_title(group)}, {arm.name}")
        self.done += 1
        if parts is None:
            return {"error": failed}
        try:
            reading = generate(parts, item.rows, group.generation, self.engine.model.device)
        except Exception as error:  # one prompt is not worth the others
            if "generate" in self.fatal:
                raise
            return {"error": reason_of(error)[:500]}
        return {**reading, "error": None}

    def _add(self, group: Group, arm: Arm, item: Item, repeat: int, sample: Mapping[str, Any]) -> None:
        place = {"kind": "sample", **_place(group, arm), "item": item.index, "repeat": repeat}
        about = {"name": item.name, "category": item.category, "session": self.session}
        self.folder.append({**place, **about, **sample})

    def _say(self, note: str) -> None:
        self.on_progress(self.done, self.total, note)


def _place(group: Group, arm: Arm) -> dict[str, Any]:
    return {"experiment": group.experiment, "value": group.value, "arm": arm.name, "arm_value": arm.value}


def _settings(arm: Arm) -> tuple[str | None, EngineConfig]:
    return arm.draft, arm.config


def _name(arm: Arm) -> str:
    return arm.name if arm.value is None else f"{arm.name} {arm.value}"


def _title(group: Group) -> str:
    return group.experiment if group.value is None else f"{group.experiment} {group.value}"
