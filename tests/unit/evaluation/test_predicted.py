"""What passes cost alone, and measured speed over what they and drafting should give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from specstream import SpeculativeEngine
from specstream.engine.contestants import PLAIN
from specstream.evaluation import predicted
from specstream.evaluation.predicted import PassCosts, seconds_of_passes
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


def test_passes_are_timed_at_the_context_in_the_middle_of_the_output(
    engine: SpeculativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Any, Any]] = []
    monkeypatch.setattr(PassCosts, "of", lambda self, sizes: float(sum(sizes)))
    monkeypatch.setattr(PassCosts, "measure", lambda self, contexts, widths, _: measured.append((contexts, widths)))
    samples = {
        PLAIN: {"tokens": [[1, 2, 3, 4], [9]], "sizes": [[1, 1], [1]]},
        "own": {"tokens": [[1, 2, 3, 4], [9]], "sizes": [[3, 2], [1, 1], [4]]},
    }
    found = seconds_of_passes(engine.target, [[5, 6], [7]], samples)
    assert found == {PLAIN: 3.0, "own": 11.0}
    assert measured == [([[5, 6, 1, 2], [7]], {2: [1, 2, 3], 1: [1, 2, 3, 4]})]


def test_widths_go_as_far_as_the_widest_pass_of_as_many_rows() -> None:
    assert predicted._widths([[1, 5], [1], [10, 2]]) == {1: [1], 2: [1, 2, 3, 4, 6, 8, 10]}
    assert predicted._widths([[200]])[1][-2:] == [128, 200]
