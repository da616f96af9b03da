"""TokenTree: shapes that are refused, and the relations between parents, paths, depths and the mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specstream.core.tree import TokenTree

#     0:7
#    /   \
#   1:5   2:9
#   |    /   \
#  3:9  4:5   6:1
#       |
#      5:7
TREE = TokenTree((7, 5, 9, 9, 5, 7, 1), (-1, 0, 0, 1, 2, 4, 2))


@st.composite
def trees(draw):
    """Any shape; the tokens are node numbers, so siblings differ."""
    count = draw(st.integers(1, 12))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, count))]
    return TokenTree(tuple(range(count)), tuple(parents))


paths = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6)


@pytest.mark.parametrize(
    ("tokens", "parents", "words"),
    [
        ((), (), "needs a root"),
        ((1, 2), (-1,), "one parent per token"),
        ((1,), (0,), "needs a root"),
        ((1, 2, 3), (-1, 2, 0), "before its child"),
        ((1, 2), (-1, 1), "before its child"),
        ((1, 2), (-1, -1), "before its child"),
        ((1, 2, 2), (-1, 0, 0), "siblings must differ"),
    ],
)
def test_malformed_trees_are_refused(tokens, parents, words):
    with pytest.raises(ValueError, match=words):
        TokenTree(tokens, parents)


def test_survival_says_something_of_every_node_or_of_none():
    assert TokenTree((1, 2), (-1, 0)).survival == ()
    assert TokenTree((1, 2), (-1, 0), survival=(1.0, 0.5)).survival == (1.0, 0.5)
    with pytest.raises(ValueError, match=r"one value per token or none, got \(1.0,\)"):
        TokenTree((1, 2), (-1, 0), survival=(1.0,))


def test_cousins_may_share_a_token():
    assert TREE.children == ((1, 2), (3,), (4, 6), (), (5,), (), ())


def test_relations_of_one_tree():
    assert len(TREE) == 7
    assert TREE.drafted == 6
    assert TREE.depths == (0, 1, 1, 2, 2, 3, 2)
    assert TREE.path(5) == (0, 2, 4, 5)
    assert TREE.path(0) == (0,)
    assert not TREE.is_chain


def test_a_root_alone_is_a_chain():
    tree = TokenTree.chain([3])
    assert (tree.drafted, tree.is_chain, tree.depths, tree.children) == (0, True, (0,), ((),))


def test_a_chain_keeps_what_its_tokens_were_drawn_from():
    first, second = torch.rand(4), torch.rand(4)
    tree = TokenTree.chain([3, 1, 2], [first, second])
    assert tree.is_chain
    assert tree.parents == (-1, 0, 1)
    assert tree.proposals[0] is first
    assert tree.proposals[1] is second
    assert 2 not in tree.proposals


@settings(deadline=None, derandomize=True)
@given(trees())
def test_relations_agree_in_every_tree(tree):
    for node, parent in enumerate(tree.parents):
        path = tree.path(node)
        assert path[0] == 0
        assert path[-1] == node
        assert list(path) == sorted(path)
        assert tree.depths[node] == len(path) - 1
        assert parent == -1 or node in tree.children[parent]
    assert sorted(node for children in tree.children for node in children) == list(range(1, len(tree)))
    assert all(list(children) == sorted(children) for children in tree.children)
    assert tree.is_chain == all(len(children) <= 1 for children in tree.children)


@settings(deadline=None, derandomize=True)
@given(paths)
def test_merged_paths_are_all_there_and_nothing_else(drafts):
    tree = TokenTree.merge(9, drafts)
    spelled = [tuple(tree.tokens[node] for node in tree.path(node)[1:]) for node in range(len(tree))]
    assert len(set(spelled)) == len(spelled), "a shared prefix is one path"
    assert set(spelled) == {()} | {tuple(path[:end]) for path in drafts for end in range(1, len(path) + 1)}
    assert tree.tokens[0] == 9


def test_the_first_merged_path_comes_first():
    tree = TokenTree.merge(0, [[1, 2, 3], [1, 4], [5]])
    assert tree.tokens == (0, 1, 2, 3, 4, 5)
    assert tree.parents == (-1, 0, 1, 2, 1, 0)


@given(trees())
def test_the_first_path_goes_through_first_children_to_a_leaf(tree):
    path = tree.first_path
    assert path.is_chain
    at, node = [0], 0
    while tree.children[node]:
        node = tree.children[node][0]
        at.append(node)
    assert path.tokens == tuple(tree.tokens[each] for each in at)


def test_the_first_path_keeps_what_its_tokens_were_drawn_from():
    drawn = {0: torch.ones(3), 2: torch.zeros(3)}
    path = TokenTree(TREE.tokens, TREE.parents, drawn).first_path
    assert (path.tokens, path.parents, list(path.proposals)) == ((7, 5, 9), (-1, 0, 1), [0])


def test_pruning_keeps_whole_levels_and_what_they_were_drawn_from():
    drawn = {node: torch.full((3,), float(node)) for node in (0, 1, 3)}
    tree = TokenTree((9, 1, 2, 3, 4), (-1, 0, 1, 0, 3), drawn)
    assert tree.pruned(2) is tree
    pruned = tree.pruned(1)
    assert (pruned.tokens, pruned.parents) == ((9, 1, 3), (-1, 0, 0))
    assert pruned.proposals.keys() == {0}
    assert tree.pruned(0).tokens == (9,)


def test_nodes_that_stay_keep_their_survival():
    tree = TokenTree((9, 1, 2, 3, 4), (-1, 0, 1, 0, 3), survival=(1.0, 0.6, 0.5, 0.3, 0.1))
    assert tree.pruned(1).survival == (1.0, 0.6, 0.3)
    assert tree.kept([2, 3, 4]).survival == (1.0, 0.3, 0.1), "node 2 has lost its parent"
    assert TokenTree((9, 1, 2), (-1, 0, 1)).pruned(1).survival == ()


@pytest.mark.parametrize(
    ("tokens", "expected"), [((1, 2, 5), 2), ((3, 4), 2), ((3, 2), 1), ((5,), 0), ((), 0), ((1, 2, 2, 2), 2)]
)
def test_what_was_emitted_is_followed_down_one_path(tokens, expected):
    assert TokenTree((9, 1, 2, 3, 4), (-1, 0, 1, 0, 3)).matched(tokens) == expected
