"""What passes cost alone, and measured speed over what they and drafting should give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from specstream import SpeculativeEngine
from specstream.config import GenerationConfig
from specstream.engine.contestants import PLAIN, Run, Scored
from specstream.engine.generation import Generation
from specstream.evaluation import predicted
from specstream.evaluation.predicted import PassCosts, Predictions
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def engine() -> SpeculativeEngine:
    draft = tiny_model(noise=0.02)
    return SpeculativeEngine(tiny_model(), tiny_tokenizer(), draft, adaptive=False, gamma=3, max_speculation_depth=3)


def clock(*seconds: float) -> Iterator[float]:
    """Times before and after passes of so many seconds."""
    now = 0.0
    for each in seconds:
        yield now
        now += each
        yield now


def test_the_cost_of_a_pass_is_a_median_lies_on_a_line_and_adds_up(engine: SpeculativeEngine) -> None:
    ticks = clock(9, 9, 1, 2, 3, 4, 2, 9)  # widths 1 and 4 in turn; the first two warm up
    costs = PassCosts(engine.target, lambda: next(ticks))
    costs.measure([[5, 6, 7]], {1: [1, 4]}, repeats=3)
    assert costs.as_json() == {"1": 2.0, "4": 4.0}
    assert costs.of([2]) == pytest.approx(2 + 2 / 3)
    assert costs.total([[4], [4], [1]]) == 10.0


def test_passes_of_fewer_rows_have_costs_of_their_own(
    engine: SpeculativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[int]] = []
    begin = engine.target.begin

    def watched(prefixes: Any) -> Any:
        session = begin(prefixes)
        score = session.score
        monkeypatch.setattr(session, "score", lambda trees: scored.append(list(map(len, trees))) or score(trees))
        return session

    monkeypatch.setattr(engine.target, "begin", watched)
    ticks = clock(9, 9, 6, 8, 9, 1)  # two rows of widths 1 and 3, then one row
    costs = PassCosts(engine.target, lambda: next(ticks))
    costs.measure([[5, 6, 7], [8, 9]], {1: [1], 2: [1, 3]}, repeats=1)
    assert scored == [[1, 1], [3, 3], [1, 1], [3, 3], [1], [1]]
    assert (costs.of([1]), costs.of([1, 1]), costs.of([3, 3])) == (1, 6, 8)
    assert costs.of([1, 3]) == (7 if engine.target.begin([[1]]).ragged else 8), "by all nodes, or by the largest tree"


def test_the_passes_of_a_run_are_noted(engine: SpeculativeEngine) -> None:
    config = GenerationConfig(max_new_tokens=12, ignore_eos=True)
    generation = Generation(engine.parts, [[5, 6, 7, 5, 6], [9, 10, 11]], config)
    run = Run.watched(generation)
    assert run.tokens == Run.of(Generation(engine.parts, generation.prompts, config).run()).tokens
    assert len(run.scored) == max(map(len, run.emitted)) and len(run.scored[0].sizes) == 2
    assert sum(size - 1 for each in run.scored for size in each.sizes) == run.drafted > 0
    assert {each.depth for each in run.scored[:2]} == {3}
    assert sum(each.proposing for each in run.scored) == pytest.approx(generation.timings.propose)


def test_a_ratio_is_what_passes_and_drafting_should_take_over_what_they_took(
    engine: SpeculativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassCosts, "of", lambda self, sizes: float(sum(sizes)))

    def run(decode: float, *passes: tuple[int, float]) -> Run:
        scored = [Scored(sizes=(size,), depth=size - 1, proposing=seconds) for size, seconds in passes]
        counts = {"drafted": 0, "accepted": 0, "rejected": 0}
        return Run(
            tokens=[[1, 2]],
            texts=[""],
            emitted=[[2]],
            prefill=1.0,
            decode=decode,
            exact="bits",
            scored=scored,
            **counts,
        )

    found = Predictions(engine.target)
    own = run(10.0, (3, 1.0), (3, 2.0), (3, 9.0), (1, 0.5))
    found.add([[5, 6]], {PLAIN: run(4.0, (1, 0.0), (1, 0.0)), "own": own})
    assert found.ratio(PLAIN) == 2 / 4
    assert found.ratio("own") == (10 + 3 * 2.0 + 0.5) / 10, "a slow draft counts as the median one"


def test_widths_go_as_far_as_the_widest_pass_of_as_many_rows() -> None:
    assert predicted._widths([[1, 5], [1], [10, 2]]) == {1: [1], 2: [1, 2, 3, 4, 6, 8, 10]}
    assert predicted._widths([[200]])[1][-2:] == [128, 200]
