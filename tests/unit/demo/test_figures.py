from __future__ import annotations

import itertools

import pytest

from specstream.demo.figures import as_html, plain_figures, speculative_figures, verdict, verdict_html
from specstream.demo.race import Race
from tests.unit.demo.racing import finished, race


@pytest.fixture
def greedy() -> Race:
    return finished(max_new_tokens=20)


def test_figures_are_those_of_the_run(greedy: Race) -> None:
    stats = greedy.speculative.row.stats
    speed, tokens, faster, length, rate = (value for value, *_ in speculative_figures(greedy))
    assert speed == f"{greedy.speculative.speed:.1f}"
    assert tokens == "20"
    assert faster == f"{greedy.speculative.speed / greedy.plain.speed:.2f}x"
    assert length == f"{20 / stats.target_passes:.2f}"
    assert rate == f"{stats.accepted / stats.drafted:.0%}"
    assert [name for _, name, _ in plain_figures(greedy)] == ["tokens/s", "tokens"]


def test_before_the_first_pass_there_are_none() -> None:
    waiting = race()
    assert [value for value, *_ in speculative_figures(waiting)] == ["-", "0", "-", "-", "-"]
    assert [value for value, *_ in plain_figures(waiting)] == ["-", "0"]


def test_equal_outputs_are_said_to_be(greedy: Race) -> None:
    assert verdict(greedy) == "Equal: both outputs are the same 20 tokens, token for token."
    assert 'class="verdict good"' in verdict_html(greedy)


@pytest.mark.parametrize(("exact", "words"), [("bits", "must not be"), ("rounding", "round differently")])
def test_outputs_that_part_are_said_to(greedy: Race, exact: str, words: str) -> None:
    greedy.plain.row.exact = exact
    greedy.plain.row.tokens[-5] += 1
    assert verdict(greedy).startswith("Not equal: they part at token 16. ")
    assert words in verdict(greedy)
    assert 'class="verdict bad"' in verdict_html(greedy)


def test_one_that_ends_early_is_not_equal(greedy: Race) -> None:
    del greedy.plain.row.tokens[-1]
    assert verdict(greedy).startswith("Not equal: they part at token 20. ")
    assert 'class="verdict bad"' in verdict_html(greedy)


def test_on_the_way_it_says_how_far_they_agree() -> None:
    *_, now = itertools.islice(race().run(0.0), 20)
    assert verdict(now) == f"Running: both outputs are the same so far ({now.compared} tokens compared)."
    assert 'class="verdict running"' in verdict_html(now)
    now.plain.row.tokens[-1] = now.speculative.row.tokens[-1] = -1
    now.plain.row.tokens[now.plain.row.prompt_length] = -2
    assert verdict(now) == "Running: they part at token 1."


def test_of_samples_nothing_is_claimed_but_their_distribution() -> None:
    sampled = finished(temperature=0.7, seed=1, max_new_tokens=8)
    assert verdict(sampled).startswith("Sampled at temperature 0.7: two draws from the same distribution")
    assert 'class="verdict good"' in verdict_html(sampled)


def test_figures_are_escaped() -> None:
    assert as_html([("<1", "a&b", '"')]) == (
        '<div class="figures"><div class="figure" title="&quot;"><b>&lt;1</b><span>a&amp;b</span></div></div>'
    )
