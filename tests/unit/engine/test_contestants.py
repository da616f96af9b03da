"""The loop of every measurement: who runs when, what is counted, and what becomes of a contestant that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from specstream.config import GenerationConfig, engine_config
from specstream.engine.build import build_parts
from specstream.engine.contestants import Run, by_turn, in_turn, interleaved
from specstream.engine.generation import Generation
from specstream.models.target.hf import HuggingFaceTarget
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["x", "y", "z"]


class Field:
    """Three contestants that note when they run; some of them break on some prompts."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.log: list[str] = []
        self.broken = broken
        self.contestants: dict[str, Callable[[str], str]] = {name: self._one(name) for name in "abc"}

    def _one(self, name: str) -> Callable[[str], str]:
        def run(prompt: str) -> str:
            self.log.append(name + prompt)
            if name + prompt in self.broken:
                raise RuntimeError(f"{name} broke on {prompt}")
            return name + prompt

        return run


def test_who_begins_changes_from_prompt_to_prompt_and_from_round_to_round() -> None:
    field = Field()
    entries = list(in_turn(field.contestants, PROMPTS, rounds=2, warm_up=0))
    first, second = ["ax", "bx", "cx", "by", "cy", "ay", "cz", "az", "bz"], ["bx", "cx", "ax", "cy", "ay", "by"]
    assert field.log == [*first, *second, "az", "bz", "cz"]
    assert [each.value for each in entries] == field.log
    assert [(each.round, each.prompt) for each in entries[::3]] == [
        (round_, at) for round_ in (0, 1) for at in range(3)
    ]


def test_what_warms_up_is_run_and_not_counted() -> None:
    field, told = Field(), list[str]()
    entries = list(in_turn(field.contestants, PROMPTS[:2], warm_up=3, on_run=told.append))
    assert field.log[:9] == ["ax", "bx", "cx", "by", "cy", "ay", "ax", "bx", "cx"]
    assert len(entries) == len(field.log) - 9 == 6
    assert told == [each.contestant for each in entries]


def test_what_is_left_keeps_its_place_in_the_order() -> None:
    whole, rest = Field(), Field()
    list(in_turn(whole.contestants, PROMPTS, rounds=2, warm_up=0))
    list(in_turn(rest.contestants, PROMPTS, todo=[(0, 2), (1, 0), (1, 1), (1, 2)], warm_up=0))
    assert rest.log == whole.log[6:]
    nothing = Field()
    assert list(in_turn(nothing.contestants, PROMPTS, todo=[], warm_up=1)) == nothing.log == []


def test_a_turn_is_there_before_the_next_begins() -> None:
    field = Field()
    turns = by_turn(in_turn(field.contestants, PROMPTS, warm_up=0))
    for count, turn in enumerate(turns, 1):
        assert len(field.log) == 3 * count
        assert set(turn.values().values()) == set(field.log[-3:])


def test_a_failure_ends_all() -> None:
    field = Field(("by",))
    with pytest.raises(RuntimeError, match="b broke on y"):
        list(in_turn(field.contestants, PROMPTS, warm_up=0))
    assert field.log == ["ax", "bx", "cx", "by"]


def test_a_failure_is_kept_and_the_contestant_goes_on() -> None:
    turns = list(by_turn(in_turn(Field(("by", "bz")).contestants, PROMPTS, errors="keep", warm_up=0)))
    assert [(turn.round, turn.prompt, len(turn.entries)) for turn in turns] == [(0, 0, 3), (0, 1, 3), (0, 2, 3)]
    assert turns[0].values() == {"a": "ax", "b": "bx", "c": "cx"}
    with pytest.raises(RuntimeError, match="b broke on y"):
        turns[1].values()


@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_contestant_that_failed_may_leave(warm_up: int) -> None:
    field = Field(("bx",))
    entries = list(in_turn(field.contestants, PROMPTS, errors="leave", warm_up=warm_up))
    assert [each for each in field.log if each.startswith("b")] == ["bx"]
    assert sum(each.error is not None for each in entries) == 1 - warm_up


def test_who_is_behind_makes_the_next_pass() -> None:
    seconds = {"fast": 0.0, "slow": 0.0}

    def passes(name: str, count: int, cost: float) -> Iterator[None]:
        for _ in range(count):
            seconds[name] += cost
            yield

    moved = list(interleaved({"fast": passes("fast", 5, 1), "slow": passes("slow", 2, 3)}, seconds.__getitem__))
    assert moved == ["fast", "slow", "fast", "fast", "fast", "slow", "fast"]
    assert seconds == {"fast": 5, "slow": 6}


def test_a_record_says_what_its_generations_did() -> None:
    target = HuggingFaceTarget(tiny_model(), runtime="eager")
    config = GenerationConfig(max_new_tokens=9, ignore_eos=True)
    settings: Any = {"drafter": "draft_model", "adaptive": False, "max_speculation_depth": 3}
    plain, own = (
        build_parts(target, tiny_tokenizer(), *rest)
        for rest in ((None, engine_config({"drafter": "none"})), (tiny_model(noise=0.02), engine_config(settings)))
    )
    prompts = [[5, 6, 7, 5, 6, 7], [9, 8, 7]]
    batch, alone = Generation(own, prompts, config).run(), [Generation(plain, [each], config).run() for each in prompts]
    run, both = Run.of(batch), Run.of(*alone)
    assert run.tokens == both.tokens == [row.emitted for row in batch.rows]
    assert run.texts == both.texts == [batch.text(row) for row in batch.rows]
    assert run.new_tokens == both.new_tokens == 18
    assert both.passes == [1] * 18 and len(run.passes) < 18 and sum(run.passes) == 18
    assert run.drafted >= run.accepted > 0 and both.drafted == both.accepted == both.rejected == 0
    assert run.total == batch.timings.total and both.decode == sum(each.timings.decode for each in alone)
