"""The index of n-grams: what it finds, in a ring and without one, against looking everywhere."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specstream.core.suffix_index import SEPARATOR, WALK, SuffixIndex


def index_of(tokens, shortest=2, longest=8, **options):
    index = SuffixIndex(shortest, longest, **options)
    index.extend(tokens)
    return index


def test_the_longest_match_comes_first_then_the_most_recent():
    index = index_of([1, 2, 3, 7, 2, 3, 8, 2, 3, 9])
    assert list(index.matches([1, 2, 3])) == [(3, 3), (2, 9), (2, 6)]


def test_the_last_token_is_not_in_it_yet():
    index = index_of([1, 2])
    assert list(index.matches([1, 2])) == []
    index.extend([5])
    assert list(index.matches([1, 2])) == [(2, 2)]


def test_nothing_is_matched_or_copied_across_a_separator():
    index = index_of([1, 2, SEPARATOR, 3, 4, 5, 6, SEPARATOR])
    assert list(index.matches([2, 3])) == []
    assert index.after(5, 9) == [5, 6]
    assert index.after(2, 3) == []


def test_a_ring_forgets_the_oldest():
    index = index_of([1, 2, 3, 4, 5, 6], capacity=4)
    assert index.tokens().tolist() == [3, 4, 5, 6]
    assert list(index.matches([1, 2])) == []
    assert list(index.matches([2, 3])) == [], "half of it is gone"
    assert list(index.matches([3, 4])) == [(2, 4)]
    assert index.after(4, 9) == [5, 6]


def test_an_often_repeated_end_costs_no_more_than_so_many_steps():
    index = index_of([1, 2] * 1000, shortest=2, longest=2)
    assert len(list(index.matches([1, 2]))) == WALK


def everywhere(tokens, tail, shortest, longest):
    """Every position of a match but the end, by its length and place."""
    found = []
    for end in range(1, len(tokens)):
        length = 0
        while length < min(longest, len(tail), end) and tokens[end - 1 - length] == tail[-1 - length]:
            length += 1
        if length >= shortest:
            found.append((length, end))
    return sorted(found, reverse=True)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 2), max_size=WALK),
    tail=st.lists(st.integers(0, 2), max_size=10),
    cut=st.integers(0, WALK),
    sizes=st.tuples(st.integers(1, 4), st.integers(0, 6)),
    capacity=st.sampled_from([None, 5, 12]),
    slots=st.sampled_from([0, 2, 12]),
)
@example(tokens=[0] * WALK, tail=[0] * 4, cut=3, sizes=(1, 6), capacity=5, slots=0)
def test_it_finds_what_a_search_everywhere_finds(tokens, tail, cut, sizes, capacity, slots):
    """However the hash collides, where the ring is cut, and in whatever pieces the text comes."""
    shortest, longest = sizes[0], sum(sizes)
    index = SuffixIndex(shortest, longest, capacity=capacity, slots=slots)
    index.extend(tokens[:cut])
    index.extend(tokens[cut:])
    kept = tokens[-capacity:] if capacity else tokens
    gone = len(tokens) - len(kept)
    expected = [(length, end + gone) for length, end in everywhere(kept, tail, shortest, longest)]
    assert list(index.matches(tail)) == expected
    assert index.tokens().tolist() == kept
    for _, end in expected:
        assert index.after(end, 4) == tokens[end : end + 4]


@pytest.mark.parametrize("capacity", [None, 7])
def test_it_costs_memory_for_what_it_keeps(capacity):
    index = index_of(range(1000), capacity=capacity)
    assert len(index.tokens()) == (capacity or 1000)
    assert len(index) == 1000
