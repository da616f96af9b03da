"""Rounds: every system generates for every prompt, in turn (``specstream.engine.engine.contestants``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.prompts import Item
from benchmarks.systems import System
from benchmarks.workers import Models, NotInstalledError, Reply, WorkerError, WorkerProcess
from specstream.engine.contestants import in_turn
from specstream.errors import UsageError

WARM_UP_TOKENS = 16

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Sample(Reply):
    """A reply of one system for one item in one round; ``group`` numbers sets of workers alive together."""

    group: int
    round: int
    item: str
    system: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        systems: in the order of the report.
        reference: the name of the one that ratios are against.
        required: names that must be there; another that is not installed is skipped.
        models: what they load.
        items: what they generate for.
        rounds: counted rounds.
        limit: most new tokens of a prompt.
        ignore_eos: go on to the limit.
        pythons: interpreters of engines that are not in this environment.
        alive: most workers in memory at once, the reference one of them.
        settle: seconds of rest before each generation, in which idle threads of the others stop spinning.
    """

    systems: Sequence[System]
    reference: str
    models: Models
    items: Sequence[Item]
    rounds: int
    limit: int
    ignore_eos: bool = False
    required: frozenset[str] = frozenset()
    pythons: Mapping[str, str] = field(default_factory=dict)
    alive: int = 99
    settle: float = 0.3


@dataclass(kw_only=True)
class Measured:
    """Everything that was measured.

    Attributes:
        samples: all of them, in the order they were taken.
        loaded: for each system, versions, threads and memory after loading.
        skipped: for each system that is not installed, what is missing.
        failed: for each system that could not be loaded or warmed up, why.
    """

    samples: list[Sample] = field(default_factory=list)
    loaded: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        rest = {"loaded": self.loaded, "skipped": self.skipped, "failed": self.failed}
        return {**rest, "samples": [asdict(each) for each in self.samples]}


def check(plan: Plan) -> None:
    """Refuse a plan that cannot be carried out.

    Raises:
        UsageError: no or twice the same system, a reference that is none of them, a missing draft, numbers below 1.
    """
    names = [system.name for system in plan.systems]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"the systems are {', '.join(names) or 'none'}; give each once")
    if plan.reference not in names:
        raise UsageError(f"the reference {plan.reference!r} is none of {', '.join(names)}; give one of them")
    drafting = [system.name for system in plan.systems if system.needs_draft]
    if drafting and plan.models.draft is None:
        raise UsageError(f"{drafting[0]} needs a draft model; give --draft")
    if any(system.engine == "llama.cpp" for system in plan.systems) and not plan.models.gguf:
        raise UsageError("llama.cpp reads GGUF files; give --gguf PATH")
    for name, value, least in (("rounds", plan.rounds, 1), ("max-new-tokens", plan.limit, 1), ("alive", plan.alive, 2)):
        if value < least:
            raise UsageError(f"{name} is {value}; give {least} or more")
    if not plan.items:
        raise UsageError("there are no prompts; give at least one")


def groups(plan: Plan) -> list[list[System]]:
    """Systems that are alive together: the reference is in every group."""
    reference = next(system for system in plan.systems if system.name == plan.reference)
    others = [system for system in plan.systems if system is not reference]
    size = plan.alive - 1
    return [[reference, *others[start : start + size]] for start in range(0, max(len(others), 1), size)]


def measure(plan: Plan, say: Say, start: Callable[..., WorkerProcess] = WorkerProcess) -> Measured:
    """Carry out a plan.

    Raises:
        UsageError: see ``check``.
        WorkerError: a worker failed, or a required system or the reference is not installed.
    """
    check(plan)
    measured = Measured()
    with ExitStack() as whole:
        kept: WorkerProcess | None = None
        for number, (reference, *others) in enumerate(groups(plan)):
            kept = kept or _start(reference, plan, measured, whole, say, start)
            assert kept is not None  # else that has raised
            with ExitStack() as group:
                found = [_start(each, plan, measured, group, say, start) for each in others]
                workers = [kept, *(worker for worker in found if worker is not None)]
                if len(workers) > 1 or len(plan.systems) == 1:
                    _rounds(number, workers, plan, measured, say)
    return measured


def _start(
    system: System,
    plan: Plan,
    measured: Measured,
    until: ExitStack,
    say: Say,
    start: Callable[..., WorkerProcess],
) -> WorkerProcess | None:
    """Load and warm up one system; None for one that cannot be, unless nothing can be said without it."""
    python = plan.pythons.get(system.engine)
    say(f"loading {system.name}")
    worker = None
    try:
        worker = start(system, plan.models, **({"python": python} if python else {}))
        worker.generate(plan.items[0], WARM_UP_TOKENS, plan.ignore_eos)
    except WorkerError as error:
        if worker is not None:
            worker.close()
        if system.name in plan.required or system.name == plan.reference:
            raise
        missing = isinstance(error, NotInstalledError)
        (measured.skipped if missing else measured.failed)[system.name] = str(error)
        say(str(error))
        return None
    until.callback(worker.close)
    measured.loaded[system.name] = worker.loaded
    return worker


def _rounds(number: int, workers: list[WorkerProcess], plan: Plan, measured: Measured, say: Say) -> None:
    def rested(worker: WorkerProcess, item: Item) -> Reply:
        time.sleep(plan.settle)
        return worker.generate(item, plan.limit, plan.ignore_eos)

    ways = {worker.system.name: partial(rested, worker) for worker in workers}
    for entry in in_turn(ways, plan.items, rounds=plan.rounds, warm_up=0):
        place: dict[str, Any] = {"group": number, "round": entry.round, "item": plan.items[entry.prompt].name}
        measured.samples.append(Sample(**place, system=entry.contestant, **vars(entry.value)))
        if entry.last and entry.prompt == len(plan.items) - 1:
            say(f"round {entry.round + 1} of {plan.rounds} done: {', '.join(ways)}")
