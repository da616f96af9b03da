"""Prompt lookup: the longest match, the most recent first, and what it copies."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specstream.core.ports import DraftRequest, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.drafters.lookup import LookupDrafter
from specstream.errors import UsageError


def request(tokens, depth):
    return DraftRequest(tokens=tokens, depth=depth, generator=torch.Generator())


def propose(tokens, depth=4, **options):
    (tree,) = LookupDrafter(**options).begin([tokens], [Sampling()]).propose([request(tokens, depth)])
    return tree


def drafts(tokens, depth=4, **options):
    tree = propose(tokens, depth, **options)
    assert tree.is_chain
    assert tree.tokens[0] == tokens[-1]
    assert not tree.proposals
    return list(tree.tokens[1:])


def leaves(tree):
    """The drafted paths, first drafted first."""
    ends = [node for node in range(len(tree)) if not tree.children[node]]
    return [[tree.tokens[node] for node in tree.path(end)[1:]] for end in ends]


def test_what_followed_before_is_copied():
    assert drafts([1, 2, 3, 4, 5, 6, 7, 1, 2]) == [3, 4, 5, 6]


def test_nothing_is_drafted_without_a_match():
    assert drafts([1, 2, 3, 4, 5]) == []
    assert drafts([7]) == []


def test_a_match_shorter_than_min_ngram_is_none():
    assert drafts([1, 2, 3, 9, 2]) == []
    assert drafts([1, 2, 3, 9, 2], min_ngram=1) == [3, 9, 2, 3]


def test_the_longest_match_wins_over_a_more_recent_one():
    tokens = [1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3]
    assert drafts(tokens, 1) == [4]
    assert drafts(tokens, 1, max_ngram=2) == [5]


def test_of_equally_long_matches_the_most_recent_wins():
    assert drafts([1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 5, 9, 1, 2], 1) == [5]


def test_the_depth_is_the_requests():
    tokens = [1, 2, 3, 4, 5, 6, 1, 2]
    assert drafts(tokens, 1) == [3]
    assert drafts(tokens, 0) == []
    assert drafts(tokens, 6) == [3, 4, 5, 6, 1, 2]


def test_a_repetition_goes_on_beyond_its_own_end():
    """The match overlaps what it is copied behind, so its continuation is the repetition."""
    assert drafts([5, 1, 2, 1, 2], 7, min_ngram=1) == [1, 2, 1, 2, 1, 2, 1]
    assert drafts([4, 4, 4], 5, min_ngram=1) == [4, 4, 4, 4, 4]
    assert drafts([1, 2, 3, 1, 2, 3, 1], 7, min_ngram=1) == [2, 3, 1, 2, 3, 1, 2]


def test_the_output_is_searched_as_it_grows():
    prompt = [1, 2]
    session = LookupDrafter().begin([prompt], [Sampling()])
    tokens = list(prompt)
    found = []
    for token in (3, 4, 9, 3, 4, 9):
        (tree,) = session.propose([request(tokens, 2)])
        found.append(list(tree.tokens[1:]))
        session.observe([Verdict(path=(0,), tokens=(token,))])
        tokens.append(token)
    assert found == [[], [], [], [], [], [9, 3]]


def test_tokens_that_come_several_at_a_time_are_all_found():
    session = LookupDrafter().begin([[1, 2]], [Sampling()])
    session.propose([request([1, 2], 2)])
    (tree,) = session.propose([request([1, 2, 7, 8, 6, 5, 7, 8], 2)])
    assert tree.tokens == (8, 6, 5)


def test_branches_are_other_continuations_in_order_of_trust():
    tokens = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 5, 9, 1, 2]
    assert leaves(propose(tokens, 2, branches=2)) == [[5, 9], [4, 9]]
    assert leaves(propose(tokens, 2, branches=5)) == [[5, 9], [4, 9], [3, 9]]


def test_branches_share_what_they_share():
    tokens = [1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2]
    tree = propose(tokens, 2, branches=2)
    assert tree.tokens == (2, 3, 5, 4)
    assert tree.parents == (-1, 0, 1, 1)


def test_equal_continuations_are_one_branch():
    tokens = [1, 2, 3, 4, 9, 1, 2, 3, 4, 9, 0, 2, 6, 6, 1, 2]
    assert leaves(propose(tokens, 2, branches=2, min_ngram=1)) == [[3, 4], [6, 6]]


def test_the_first_path_takes_the_first_nodes():
    tree = propose([1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 5, 9, 1, 2], 3, branches=3)
    assert tree.parents[:4] == (-1, 0, 1, 2)
    assert tree.tokens[1:4] == (5, 9, 1)


def test_rows_are_searched_each_in_itself_and_leave():
    rows = [[1, 2, 3, 1, 2], [1, 2, 4, 1, 2], [1, 2]]
    session = LookupDrafter().begin(rows, [Sampling()] * len(rows))
    trees = session.propose([request(row, 1) for row in rows])
    assert [tree.tokens for tree in trees] == [(2, 3), (2, 4), (2,)]
    session.keep([1, 2])
    trees = session.propose([request([*rows[1], 4, 5, 1, 2, 4], 1), request([*rows[2], 4, 1, 2], 1)])
    assert [tree.tokens for tree in trees] == [(4, 5), (2, 4)]


def test_an_offer_is_the_tree_and_how_long_its_match_was():
    session = LookupDrafter(max_ngram=4).begin([[1]], [Sampling()])
    for tokens, source in (([1, 2, 3, 1, 2], 2), ([1, 2, 3, 1, 2, 3], 3), ([1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 4, 5, 6], 4)):
        session = LookupDrafter(max_ngram=4).begin([tokens], [Sampling()])
        ((offer,),) = session.offers([request(tokens, 3)])
        assert offer.source == f"lookup/{source}"
        (whole,) = session.propose([request(tokens, 3)])
        assert offer.tree.tokens == whole.tokens
        taken = DraftRequest(tokens=tokens, depth=1, generator=torch.Generator(), offer=offer)
        assert session.propose([taken])[0].tokens == whole.tokens[:2]


@pytest.mark.parametrize(("tokens", "depth"), [([1, 2, 3], 3), ([1, 2, 1, 2], 0)])
def test_where_nothing_can_be_copied_nothing_is_offered(tokens, depth):
    assert LookupDrafter().begin([tokens], [Sampling()]).offers([request(tokens, depth)]) == [[]]


@pytest.mark.parametrize("options", [{"min_ngram": 0}, {"min_ngram": 3, "max_ngram": 2}, {"branches": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="give 1"):
        LookupDrafter(**options)


def brute_force(tokens, depth, min_ngram, max_ngram, branches):
    """Try every suffix length and every position; write the sequence on to copy beyond its end."""
    found, paths = [], []
    for size in range(max_ngram, min_ngram - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :] and end not in found:
                found.append(end)
    for end in found:
        text = list(tokens)
        for _ in range(depth):
            text.append(text[end + len(text) - len(tokens)])
        path = text[len(tokens) :]
        if path not in paths:
            paths.append(path)
    return TokenTree.merge(tokens[-1], paths[:branches] if depth else [])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=25),
    cuts=st.lists(st.integers(1, 25), max_size=4),
    depth=st.integers(0, 6),
    ngrams=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    branches=st.integers(1, 4),
)
@example(tokens=[0, 0, 0, 0], cuts=[1, 2, 3], depth=5, ngrams=(1, 3), branches=4)
def test_every_proposal_is_the_brute_force_ones(tokens, cuts, depth, ngrams, branches):
    """However many tokens arrive between two proposals."""
    smallest, more = ngrams
    options = {"min_ngram": smallest, "max_ngram": smallest + more, "branches": branches}
    session = LookupDrafter(**options).begin([tokens[:1]], [Sampling()])
    for end in sorted({min(cut, len(tokens)) for cut in [*cuts, len(tokens)]}):
        (tree,) = session.propose([request(tokens[:end], depth)])
        expected = brute_force(tokens[:end], depth, **options)
        assert (tree.tokens, tree.parents) == (expected.tokens, expected.parents)
        assert not tree.proposals
