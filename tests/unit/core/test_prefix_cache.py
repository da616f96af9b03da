"""The radix tree of keys and values: what it finds, what it holds, what it lets go of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specstream.core.prefix_cache import PrefixCache

TOKEN = 4 * 2 * 3  # bytes: float32, two heads of three numbers


def keys(tokens: Sequence[int]) -> dict[Any, Tensor]:
    """Such as a model would have: every token's say what the text was up to it."""
    sums = [float(sum((at + 1) * token for at, token in enumerate(tokens[: end + 1]))) for end in range(len(tokens))]
    return {"keys": torch.tensor(sums).view(1, -1, 1).expand(2, -1, 3)}


def keep(cache: PrefixCache, tokens: Sequence[int], owner: str = "model", state: int = 0) -> None:
    made = keys(tokens)
    cache.keep(owner, state, tokens, lambda start, end: {key: part[:, start:end] for key, part in made.items()})


def found(cache: PrefixCache, tokens: Sequence[int], owner: str = "model", state: int = 0) -> int:
    """How many tokens are known, whose keys are right."""
    pieces: list[Mapping[Any, Tensor]] = cache.find(owner, state, tokens)
    if not pieces:
        return 0
    joined = torch.cat([piece["keys"] for piece in pieces], 1)
    count = joined.shape[1]
    assert torch.equal(joined, keys(tokens[:count])["keys"])
    return count


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


@settings(deadline=None, derandomize=True)
@given(texts, st.lists(st.integers(0, 2), max_size=9))
def test_the_longest_common_prefix_is_found_and_held_once(kept: list[list[int]], asked: list[int]) -> None:
    cache = PrefixCache(1 << 20)
    for text in kept:
        keep(cache, text)
    prefixes = {tuple(text[:end]) for text in kept for end in range(1, len(text) + 1)}
    longest = max((end for end in range(len(asked) + 1) if tuple(asked[:end]) in prefixes), default=0)
    assert found(cache, asked) == longest
    assert cache.nbytes == len(prefixes) * TOKEN


@settings(deadline=None, derandomize=True)
@given(texts, st.integers(0, 12))
def test_no_more_is_held_than_allowed_and_the_newest_text_is(kept: list[list[int]], room: int) -> None:
    cache = PrefixCache(room * TOKEN)
    for text in kept:
        keep(cache, text)
        assert cache.nbytes <= room * TOKEN
        assert found(cache, text) == min(len(text), room)


class Size(int):
    """A state of so many bytes."""

    @property
    def nbytes(self) -> int:
        return int(self)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(texts.map(max), st.sets(st.integers(1, 9), max_size=3)), max_size=12), texts.map(max))
def test_the_last_state_of_what_texts_have_in_common_is_found(
    kept: list[tuple[list[int], set[int]]], asked: list[int]
) -> None:
    cache, there = PrefixCache(1 << 20), dict[tuple[int, ...], Size]()
    for text, places in kept:
        states = {place: Size(1000 + place) for place in places if place <= len(text)}
        made = keys(text)
        cache.keep("model", 0, text, lambda start, end, made=made: {"keys": made["keys"][:, start:end]}, states)
        there.update({tuple(text[:place]): state for place, state in states.items()})
    prefixes = {tuple(text[:end]) for text, _ in kept for end in range(1, len(text) + 1)}
    assert cache.nbytes == len(prefixes) * TOKEN + sum(there.values())
    last = max((place for place in range(1, len(asked) + 1) if tuple(asked[:place]) in there), default=0)
    pieces, length, state, known = cache.find_state("model", 0, asked)
    assert (length, state) == (last, there[tuple(asked[:last])] if last else None)
    assert known == max((end for end in range(1, len(asked) + 1) if tuple(asked[:end]) in prefixes), default=0)
    if last:
        assert torch.equal(torch.cat([piece["keys"] for piece in pieces], 1), keys(asked[:last])["keys"])
    cache.forget("model")
    assert cache.nbytes == 0


def test_states_are_let_go_of_with_their_tokens() -> None:
    cache = PrefixCache(3 * 1000)
    for first in (1, 2, 3):
        cache.keep("model", 0, [first, 5], lambda start, end: {}, {2: Size(1000)})
    cache.find_state("model", 0, [1, 5])
    cache.keep("model", 0, [4, 5], lambda start, end: {}, {2: Size(1000)})
    assert [cache.find_state("model", 0, [first, 5])[1] for first in (1, 2, 3, 4)] == [2, 0, 2, 2]
    assert cache.nbytes == 3000
    cache.keep("model", 0, [6, 5], lambda start, end: {}, {2: Size(5000)})
    assert cache.nbytes == 0


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(9 * TOKEN)
    for first in (1, 2, 3):
        keep(cache, [first, 5, 5])
    found(cache, [1, 5, 5])
    keep(cache, [4, 5, 5])
    assert [found(cache, [first, 5, 5]) for first in (1, 2, 3, 4)] == [3, 0, 3, 3]


def test_models_and_states_of_one_share_nothing() -> None:
    cache = PrefixCache(1 << 20)
    keep(cache, [1, 2])
    keep(cache, [1, 2], owner="draft")
    assert found(cache, [1, 2], owner="draft") == 2
    assert found(cache, [1, 2], state=1) == 0
    assert found(cache, [1, 2]) == 0, "nobody goes back to a state"
    assert cache.nbytes == 2 * TOKEN
    cache.forget("draft")
    assert cache.nbytes == 0


def test_what_is_held_is_a_copy() -> None:
    cache, made = PrefixCache(1 << 20), torch.ones(2, 2, 3)
    cache.keep("model", 0, [1, 2], lambda start, end: {"keys": made[:, start:end]})
    made.zero_()
    (piece,) = cache.find("model", 0, [1, 2])
    assert bool(piece["keys"].all())
