"""The measuring itself: groups of arms on the same prompts in turn, one generation at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

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
)
from specstream.environment import provenance
from specstream.errors import reason_of
from specstream.evaluation.benchmark.config import BenchmarkConfig
from specstream.evaluation.benchmark.experiments import Arm, Group, Plan
from specstream.evaluation.benchmark.folder import SUMMARY, RunFolder, write_json
from specstream.evaluation.benchmark.metrics import generate, machine
from specstream.evaluation.benchmark.prompts import Item, Prompt, make_items
from specstream.evaluation.benchmark.summary import summarise
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
    settings = config.model_dump(mode="json", exclude={"measure": {"output_dir"}})
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


_ABOUT = {*machine({}), "python", "model", "runtime", "exact"}
"""What of an engine's provenance is true of all arms."""


@dataclass
class _Bench:
    """A session at work; ``engine`` is that of ``target``, which is loaded now."""

    config: BenchmarkConfig
    prompts: Sequence[Prompt]
    folder: RunFolder
    session: int
    on_progress: Progress
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
        self.total = sum(len(group.arms) * len(turns) for group, turns in left)
        for group, turns in left:
            self._measure(group, turns)

    def _measure(self, group: Group, turns: Sequence[tuple[int, int]]) -> None:
        self._say(f"loading for {_title(group)}")
        engine = self._load(group)
        items = make_items(engine.tokenizer, self.prompts, batch=group.batch, context=group.context)
        longest = max(len(row) for item in items for row in item.rows) + group.generation.max_new_tokens
        parts, failed = self._build(group, engine, group.batch * longest)
        for each in parts.values():
            prepare(each, group.batch)
        arms = {_name(arm): arm for arm in group.arms}
        ways = {name: partial(self._generate, group, parts.get(name), failed.get(name)) for name in arms}
        warm_up, title = self.config.measure.warmup, _title(group)
        entries = in_turn(
            ways, items, todo=turns, warm_up=warm_up, on_run=lambda name: self._say(f"{title}, {arms[name].name}")
        )
        for entry in entries:
            self._add(group, arms[entry.contestant], items[entry.prompt], entry.round, entry.value)

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
            own = arm.config.model_copy(update={"dtype": engine.config.dtype, "runtime": engine.config.runtime})
            try:
                at_hand = engine.model if arm.draft == engine.model_name else None
                draft = None if arm.draft is None else drafts.get(arm.draft, own, at_hand)
                parts = build_parts(engine.target, engine.tokenizer, draft, own)
                announce_left_out(parts, _name(arm))
            except Exception as error:  # one arm is not worth the others
                failed[_name(arm)] = f"it cannot be built: {reason_of(error)[:500]}"
                continue
            built[_name(arm)] = parts
            self.folder.append(
                {
                    "kind": "arm",
                    **_place(group, arm),
                    "settings": arm.config.model_dump(mode="json", exclude={"generation"}, exclude_defaults=True),
                    "draft_model": arm.draft,
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

    def _generate(self, group: Group, parts: Parts | None, failed: str | None, item: Item) -> dict[str, Any]:
        """One generation, or why there is none."""
        assert self.engine is not None
        if parts is None:
            return {"error": failed}
        try:
            reading = generate(parts, item.rows, group.generation, self.engine.model.device)
        except Exception as error:  # one prompt is not worth the others
            return {"error": reason_of(error)[:500]}
        return {**reading, "error": None}

    def _add(self, group: Group, arm: Arm, item: Item, repeat: int, sample: Mapping[str, Any]) -> None:
        place = {"kind": "sample", **_place(group, arm), "item": item.index, "repeat": repeat}
        about = {"name": item.name, "category": item.category, "session": self.session}
        self.folder.append({**place, **about, **sample})
        self.done += 1

    def _say(self, note: str) -> None:
        self.on_progress(self.done, self.total, note)


def _place(group: Group, arm: Arm) -> dict[str, Any]:
    return {"experiment": group.experiment, "value": group.value, "arm": arm.name, "arm_value": arm.value}


def _name(arm: Arm) -> str:
    return arm.name if arm.value is None else f"{arm.name} {arm.value}"


def _title(group: Group) -> str:
    return group.experiment if group.value is None else f"{group.experiment} {group.value}"
