from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.prompts import Item
from benchmarks.rounds import Plan, check, groups, measure
from benchmarks.systems import System, parse_system
from benchmarks.workers import Models, NotInstalledError, Reply, WorkerError
from specstream.errors import UsageError

MODELS = Models(target="T", draft=None, dtype="float32", eos=(2,), pad=0, context=99)
NAMES = ("transformers:generate", "specstream:none", "vllm:none", "economize:none")


def plan(*names: str, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "systems": [parse_system(name) for name in names or NAMES],
        "reference": NAMES[0],
        "models": MODELS,
        "items": [Item(name="a", prompts=[[1]]), Item(name="b", prompts=[[2]])],
        "rounds": 2,
        "limit": 4,
        "settle": 0.0,
    }
    return Plan(**{**values, **changes})


class Worker:
    """Stands for a process; ``log`` is shared by all of a test."""

    def __init__(self, log: list[str], broken: dict[str, WorkerError], system: System, models: Models) -> None:
        if system.name in broken:
            raise broken[system.name]
        self.system, self.log, self.loaded = system, log, {"ok": True}
        log.append(f"start {system.name}")

    def generate(self, item: Item, limit: int, ignore_eos: bool) -> Reply:
        self.log.append(f"{self.system.name} {item.name}")
        return Reply(tokens=[[1, 2]], seconds=1.0, counts={}, peak_mib=1.0)

    def close(self) -> None:
        self.log.append(f"close {self.system.name}")


def run(what: Plan, broken: dict[str, WorkerError] | None = None) -> tuple[Any, list[str]]:
    log: list[str] = []

    def start(system: System, models: Models) -> Any:
        return Worker(log, broken or {}, system, models)

    return measure(what, lambda text: None, start), log


def test_every_system_generates_for_every_item_in_every_round() -> None:
    measured, log = run(plan())
    seen = {(each.round, each.item, each.system) for each in measured.samples}
    assert seen == {(round_, item, name) for round_ in (0, 1) for item in "ab" for name in NAMES}
    assert len(measured.samples) == len(seen)  # what warms up is not counted
    assert {line for line in log if line.startswith("close")} == {f"close {name}" for name in NAMES}


def test_the_order_turns() -> None:
    _, log = run(plan(*NAMES[:3]))
    counted = [line.partition(" ")[0] for line in log if line.endswith((" a", " b"))][3:]  # the first ones warm up
    first, second, third = NAMES[:3]
    assert counted == [first, second, third, second, third, first, second, third, first, third, first, second]


def test_the_reference_stays_alive_while_the_others_take_turns() -> None:
    what = plan(alive=2)
    assert [[system.name for system in group] for group in groups(what)] == [[NAMES[0], name] for name in NAMES[1:]]
    measured, log = run(what)
    assert log.count(f"start {NAMES[0]}") == 1 and log[-1] == f"close {NAMES[0]}"
    assert log.index(f"close {NAMES[1]}") < log.index(f"start {NAMES[2]}")
    assert {each.group for each in measured.samples if each.system == NAMES[0]} == {0, 1, 2}


def test_one_system_alone_is_its_own_reference() -> None:
    measured, _ = run(plan(NAMES[0]))
    assert len(measured.samples) == 4


def test_a_system_that_is_not_there_is_left_out_and_one_that_fails_is_named() -> None:
    broken = {NAMES[2]: NotInstalledError("not installed"), NAMES[3]: WorkerError("broken")}
    measured, _ = run(plan(), broken)
    assert list(measured.loaded) == [NAMES[0], NAMES[1]]
    assert measured.skipped == {NAMES[2]: "not installed"}
    assert measured.failed == {NAMES[3]: "broken"}


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_what_is_required_and_what_all_are_compared_with_must_be_there(name: str) -> None:
    with pytest.raises(NotInstalledError):
        run(plan(required=frozenset([NAMES[2]])), {name: NotInstalledError("not installed")})


def test_workers_are_closed_when_one_fails() -> None:
    log: list[str] = []

    class Failing(Worker):
        def generate(self, item: Item, limit: int, ignore_eos: bool) -> Reply:
            if limit == 4:
                raise WorkerError("broken")
            return super().generate(item, limit, ignore_eos)

    with pytest.raises(WorkerError, match="broken"):
        measure(plan(), lambda text: None, lambda system, models: Failing(log, {}, system, models))  # type: ignore[arg-type, return-value]
    assert sum(line.startswith("close") for line in log) == len(NAMES)


@pytest.mark.parametrize(
    ("what", "part"),
    [
        (plan(reference="vllm:ngram"), "none of"),
        (plan(NAMES[0], NAMES[0]), "each once"),
        (plan(NAMES[0], "vllm:draft_model"), "--draft"),
        (plan(NAMES[0], "llama.cpp:none"), "--gguf"),
        (plan(rounds=0), "rounds is 0"),
        (plan(limit=0), "max-new-tokens is 0"),
        (plan(alive=1), "alive is 1"),
        (plan(items=[]), "no prompts"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(what: Plan, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        check(what)
    check(replace(plan()))
