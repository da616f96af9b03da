from __future__ import annotations

from typing import Any

import pytest

from benchmarks.inprocess import Amount, adversarial, alternate, in_step, predict, recorded, unlearned
from benchmarks.prompts import Item
from specstream import SpeculativeEngine
from specstream.evaluation.predicted import PassCosts
from tests.tiny import tiny_model, tiny_tokenizer

ITEMS = [Item(name="a", prompts=[[5, 6, 7, 5, 6, 7, 5, 6]]), Item(name="b", prompts=[[9, 10, 11, 12]])]


@pytest.fixture(scope="module")
def engine() -> SpeculativeEngine:
    draft = tiny_model(noise=0.02)
    return SpeculativeEngine(tiny_model(), tiny_tokenizer(), draft, adaptive=False, gamma=3, max_speculation_depth=3)


@pytest.mark.parametrize("measure", [alternate, in_step])
def test_pairs_are_of_one_prompt_and_give_the_same_tokens(engine: SpeculativeEngine, measure: Any) -> None:
    pairs = measure(engine.parts, ITEMS, Amount(rounds=2, limit=12, ignore_eos=True))
    assert [(pair.item, pair.round) for pair in pairs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    for pair in pairs:
        assert pair.own.tokens == pair.plain.tokens and pair.own.new_tokens == 12
        assert pair.plain.passes == [1] * 12 and pair.plain.drafted == 0
        assert pair.own.drafted > 0
        assert pair.own.total > pair.own.decode > 0
    assert any(pair.matching_passes > 0 for pair in pairs)


def test_an_adversarial_drafter_drafts_and_has_nothing_accepted(engine: SpeculativeEngine) -> None:
    for pair in alternate(adversarial(engine), ITEMS, Amount(rounds=1, limit=12, ignore_eos=True)):
        assert pair.own.drafted > 0 and pair.own.accepted == 0
        assert pair.own.tokens == pair.plain.tokens


def test_every_side_learns_by_itself() -> None:
    parts = SpeculativeEngine(tiny_model(), tiny_tokenizer()).parts
    assert parts.speculation.controller is not None
    assert unlearned(parts).speculation.controller is not parts.speculation.controller


def test_several_prompts_are_decoded_at_once(engine: SpeculativeEngine) -> None:
    both = [Item(name="both", prompts=[prompt for item in ITEMS for prompt in item.prompts])]
    for measure in (alternate, in_step):
        (pair,) = measure(engine.parts, both, Amount(rounds=1, limit=12, ignore_eos=True))
        assert [len(row) for row in pair.plain.tokens] == [12, 12]
        assert pair.own.tokens == pair.plain.tokens and pair.own.drafted > 0


def test_the_widths_of_passes_are_noted(engine: SpeculativeEngine) -> None:
    widths: list[int] = []
    target = recorded(engine.target, widths)
    assert target.context_length == engine.target.context_length
    PassCosts(target).measure([[5, 6, 7]], {1: [1, 4]}, repeats=1)
    assert widths == [1, 4, 1, 4]


def test_a_prediction_prices_the_passes_that_a_run_made(engine: SpeculativeEngine) -> None:
    result = predict(engine, ITEMS[0], Amount(rounds=2, limit=12, ignore_eos=True), repeats=1)
    assert len(result.ratios) == 2 and all(ratio > 0 for ratio in result.ratios)
    for side in ("target", "draft"):
        assert set(result.passes[side]) <= set(result.costs[side])
    assert max(map(int, result.passes["target"])) == 4
    assert sum(result.passes["draft"].values()) >= sum(result.passes["target"].values())
