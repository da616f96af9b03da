"""The exact model itself: its arithmetic, and that it catches every misuse of its cache."""

import pytest
import torch

from specstream.core.tree import TokenTree
from tests.lossless.table_model import TableModel

MODEL = TableModel.random(0, vocab=3, memory=3)


def test_nodes_see_their_own_path_only():
    tree = TokenTree((1, 2, 0, 2, 1), (-1, 0, 0, 1, 2))
    prefix = [0, 2]
    logits = MODEL.begin([prefix]).score([tree])[0]
    for node in range(len(tree)):
        context = prefix + [tree.tokens[at] for at in tree.path(node)]
        assert torch.equal(logits[node], MODEL.logits(context))


def test_the_last_tokens_decide_and_the_start_differs_from_every_token():
    assert torch.equal(MODEL.logits([0, 1, 2, 0]), MODEL.logits([2, 1, 2, 0]))
    assert len({MODEL.index(context) for context in ([], [0], [0, 0], [0, 0, 0], [1], [0, 1], [1, 0])}) == 7


def test_padding_is_not_a_number():
    logits = MODEL.begin([[], []]).score([TokenTree.chain([0, 1]), TokenTree.chain([2])])
    assert logits[1, 1].isnan().all()
    assert not logits[0].isnan().any()


def test_commit_rollback_and_keep_hold_exactly_those_tokens():
    session = MODEL.begin([[0], [1, 1]])
    session.score([TokenTree((1, 2, 0), (-1, 0, 0)), TokenTree.chain([2, 0])])
    session.commit([(0, 2), (0, 1)])
    assert session.committed == [[0, 1, 0], [1, 1, 2, 0]]
    session.rollback([3, 2])
    assert session.committed == [[0, 1, 0], [1, 1]]
    session.keep([1])
    assert session.committed == [[1, 1]]


def scored(*trees):
    session = MODEL.limited(4).begin([[0]] * len(trees))
    session.score(trees)
    return session


@pytest.mark.parametrize(
    "misuse",
    [
        pytest.param(lambda: scored(TokenTree.chain([1])).score([TokenTree.chain([1])]), id="score twice"),
        pytest.param(lambda: scored(TokenTree.chain([1, 2, 0, 1])), id="beyond the context"),
        pytest.param(lambda: MODEL.begin([[0]]).score([TokenTree.chain([1])] * 2), id="trees for other rows"),
        pytest.param(lambda: MODEL.begin([[0]]).score([TokenTree.chain([3])]), id="unknown token"),
        pytest.param(lambda: MODEL.begin([[0]]).commit([(0,)]), id="commit without a pass"),
        pytest.param(lambda: scored(TokenTree.chain([1, 2])).commit([(1,)]), id="path without the root"),
        pytest.param(lambda: scored(TokenTree.chain([1, 2, 0])).commit([(0, 2)]), id="path with a gap"),
        pytest.param(lambda: scored(TokenTree.chain([1])).commit([(0,), (0,)]), id="paths for other rows"),
        pytest.param(lambda: scored(TokenTree.chain([1])).rollback([0]), id="rollback before the commit"),
        pytest.param(lambda: scored(TokenTree.chain([1])).keep([0]), id="keep before the commit"),
        pytest.param(lambda: MODEL.begin([[0]]).rollback([2]), id="rollback forwards"),
        pytest.param(lambda: MODEL.begin([[0]]).rollback([0, 0]), id="rollback of other rows"),
        pytest.param(lambda: MODEL.begin([[0]]).keep([1]), id="keep a row that is not there"),
        pytest.param(lambda: MODEL.begin([[0], [1]]).keep([1, 1]), id="keep a row twice"),
        pytest.param(lambda: MODEL.begin([[0]]).keep([]), id="keep nothing"),
    ],
)
def test_misuse_is_an_assertion_error(misuse):
    with pytest.raises(AssertionError):
        misuse()
