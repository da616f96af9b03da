from __future__ import annotations

import itertools
from typing import Any

import pytest

from specstream.demo.race import Race, Side
from tests.unit.demo.racing import engine, finished, race


@pytest.fixture(scope="module")
def greedy() -> Race:
    return finished()


def test_both_come_to_the_engines_own_output(greedy: Race) -> None:
    expected = engine().generate("the cat sat on the mat and the dog", max_new_tokens=40, ignore_eos=True)
    for side in (greedy.plain, greedy.speculative):
        assert side.row.emitted == expected.token_ids
        assert "".join(piece.text for piece in side.pieces) == expected.text
    assert greedy.equal
    assert greedy.agreed == greedy.compared == 40
    assert greedy.speedup == pytest.approx(greedy.speculative.speed / greedy.plain.speed)


def test_every_token_is_known_by_who_proposed_it(greedy: Race) -> None:
    stats, side = greedy.speculative.row.stats, greedy.speculative
    assert sum(piece.drafter is not None for piece in side.pieces) == stats.accepted > 0
    assert {piece.drafter for piece in side.pieces} == {None, *stats.drafts}
    assert len(side.rounds) == stats.target_passes < 40
    assert [piece.drafter for piece in greedy.plain.pieces] == [None] * 40
    for shown in side.rounds:
        own = [piece.drafter for piece in side.pieces if piece.round == shown.number]
        assert own == [shown.drafter] * len(shown.accepted) + [None] * (shown.own is not None)
        assert [shown.parents[node] for node in shown.accepted] == [0, *shown.accepted][: len(shown.accepted)]


def test_the_labels_of_a_path_are_the_tokens_that_were_emitted(greedy: Race) -> None:
    side, tokenizer = greedy.speculative, engine().tokenizer
    emitted = iter(side.row.emitted)
    last: str | None = None
    for shown in side.rounds:
        assert last is None or shown.labels[0] == last
        said = [shown.labels[node] for node in shown.accepted] + ([shown.own] if shown.own else [])
        for label, token in zip(said, itertools.islice(emitted, len(said)), strict=True):
            alone = tokenizer.decode([token])  # part of a character is said by its bytes
            assert label.startswith("\\x") if "\N{REPLACEMENT CHARACTER}" in alone else label == alone
        last = said[-1]
    assert next(emitted, None) is None


def test_an_end_among_the_drafts_leaves_the_model_no_token_of_its_own(greedy: Race) -> None:
    side = greedy.speculative
    shown = next(each for each in side.rounds if len(each.accepted) > 1)
    drafted = [at for at, piece in enumerate(side.pieces) if piece.round == shown.number]
    end = side.row.emitted[drafted[0]]
    short = finished(ends=frozenset([end]))
    assert short.equal
    assert short.speculative.row.emitted == side.row.emitted[: side.row.emitted.index(end) + 1]
    cut = short.speculative.rounds[-1]
    assert (cut.own is None) == (short.speculative.pieces[-1].drafter is not None)
    assert cut.own is None or not cut.accepted


@pytest.mark.parametrize("price", [1, 3])
def test_whose_clock_is_behind_has_the_turn(price: int, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = race()

    def seconds(side: Side) -> float:
        return len(side.rounds) * (price if side is starting.speculative else 1)

    monkeypatch.setattr(Side, "seconds", property(seconds))
    for now in starting.run(0.0):
        if not now.speculative.finished and not now.plain.finished:
            assert abs(seconds(now.plain) - seconds(now.speculative)) <= price
    assert starting.finished


def test_it_is_shown_as_often_as_asked_for_and_at_the_end() -> None:
    assert len(list(race().run(1e6))) == 1
    assert len(list(race().run(0.0))) > 40


def test_what_is_shown_on_the_way_is_the_beginning_of_the_end(greedy: Race) -> None:
    for now in race().run(0.0):
        assert now.plain.row.emitted == greedy.plain.row.emitted[: len(now.plain.row.emitted)]
        assert now.agreed == now.compared


def test_samples_repeat_with_their_seed_and_need_not_agree() -> None:
    def sample(seed: int) -> tuple[Any, Any]:
        sampled = finished(temperature=1.5, seed=seed)
        assert not sampled.greedy
        return sampled.plain.row.emitted, sampled.speculative.row.emitted

    assert sample(3) == sample(3) != sample(4)
