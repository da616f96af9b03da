"""Plain decoding proposes nothing."""

import torch

from specstream.core.ports import DraftRequest
from specstream.core.sampling import Sampling
from specstream.drafters.none import NoDrafter


def test_the_root_alone_whatever_is_asked():
    session = NoDrafter().begin([[1, 2], [3]], [Sampling(temperature=1.0)] * 2)
    requests = [DraftRequest(tokens=tokens, depth=5, generator=torch.Generator()) for tokens in ([1, 2], [3])]
    assert [(tree.tokens, tree.drafted) for tree in session.propose(requests)] == [((2,), 0), ((3,), 0)]
    session.observe([])
    session.keep([1])
    assert [tree.tokens for tree in session.propose(requests[1:])] == [(3,)]
