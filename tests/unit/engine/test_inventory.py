"""Who is told what passes and drafts cost, when, and that nobody measures it again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specstream import SpeculativeEngine, speculative_decode
from specstream.core.policy.controller import Controller
from specstream.core.policy.cost_model import LATELY
from specstream.core.policy.prices import PriceList
from specstream.engine.inventory import prepare, prepare_up_to
from specstream.models.invariance import costs, selftest_cache
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [5, 9, 5, 9, 5]


def engine(**settings: Any) -> SpeculativeEngine:
    return SpeculativeEngine(tiny_model(), tiny_tokenizer(), **{"max_new_tokens": 4, **settings})


def told(engine: SpeculativeEngine) -> PriceList:
    controller = engine.parts.speculation.controller
    assert controller is not None
    return controller.costs.prices


def rows_of(prices: PriceList) -> set[int]:
    return {rows for rows, _, _ in prices.passes}


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is: what other work disturbs is not used."""
    monkeypatch.setattr(costs, "UNEVEN", 1e9)


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse() -> None:
        for name in ("measure_passes", "measure_drafting"):
            monkeypatch.setattr(costs, name, lambda *of, **how: pytest.fail("measured"))

    return refuse


def test_the_policy_knows_the_costs_before_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine(draft_model=tiny_model(noise=0.1))
    order: list[str] = []
    know, begin = Controller.know, own.parts.drafter.begin
    monkeypatch.setattr(Controller, "know", lambda *of: (order.append("told"), know(*of)))
    own.generate(PROMPT)
    first = told(own)
    assert rows_of(first) == {1}
    assert first.drafts.keys() == {"draft_model"}
    assert first.drafts["draft_model"].keys() == {(1, 1), (1, 2), (1, 4)}
    assert min(*first.passes.values(), *first.drafts["draft_model"].values()) > 0

    monkeypatch.setattr(own.parts.drafter, "begin", lambda *of: (order.append("begun"), begin(*of))[1])
    order.clear()
    own.generate([PROMPT] * 3)
    assert rows_of(told(own)) == {1, 4}
    assert told(own).drafts["draft_model"].keys() == {(rows, depth) for rows in (1, 4) for depth in (1, 2, 4)}
    assert order == ["begun", "told", "begun"], "one batch is measured, then the policy is told, then one is decoded"


def test_a_list_from_a_busier_machine_is_measured_again() -> None:
    own = engine()
    prepare(own.parts, 1)
    slow = {shape: 1000 * seconds for shape, seconds in told(own).passes.items()}
    own.target.measured.keep_seconds("seconds of passes", slow)
    own.parts.speculation.controller.know(PriceList(slow))
    own.generate(PROMPT, max_new_tokens=2 * LATELY, ignore_eos=True)
    assert own.parts.speculation.controller.costs.outdated
    prepare(own.parts, 1)
    assert max(told(own).passes.values()) < min(slow.values()) and not own.parts.speculation.controller.costs.outdated
    assert own.target.measured.seconds("seconds of passes") == told(own).passes


def test_what_was_measured_is_not_measured_again(nothing_is_measured: Any) -> None:
    own = engine()
    prepare(own.parts, 2)
    found = told(own)
    nothing_is_measured()
    own.generate([PROMPT] * 2)
    own.generate(PROMPT)
    assert told(own) == found


@pytest.mark.parametrize("settings", [{"drafter": "none"}, {"adaptive": False}, {"use_cache": False}])
def test_where_costs_decide_nothing_they_are_not_measured(settings: Any, nothing_is_measured: Any) -> None:
    nothing_is_measured()
    engine(**settings).generate(PROMPT)


def test_a_server_measures_before_it_serves(nothing_is_measured: Any) -> None:
    own = engine()
    prepare_up_to(own.parts, 5)
    assert rows_of(told(own)) == {1, 2, 4, 8}
    nothing_is_measured()
    for rows in (1, 3, 8):
        prepare(own.parts, rows)


def test_a_warm_start_measures_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, nothing_is_measured: Any
) -> None:
    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "UNEVEN", 1e9)  # however busy this machine is
    first = engine(draft_model=tiny_model(noise=0.1))
    first.generate(PROMPT)
    nothing_is_measured()
    again = engine(draft_model=tiny_model(noise=0.1))
    again.generate(PROMPT)
    assert told(again) == told(first)


def test_another_model_is_measured_anew() -> None:
    own = engine()
    own.generate(PROMPT)
    before = own.target.measured
    own.model.to(torch.float64)
    own.generate(PROMPT)
    assert own.target.measured is not before
    assert rows_of(told(own)) == {1}


def test_the_functions_measure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PriceList] = []
    monkeypatch.setattr(Controller, "know", lambda controller, prices: seen.append(prices))
    model = tiny_model()
    speculative_decode(model, None, torch.tensor([PROMPT, PROMPT]), max_new_tokens=4)
    assert [rows_of(prices) for prices in seen] == [{1, 2}]
