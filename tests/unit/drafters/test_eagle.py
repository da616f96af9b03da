"""What an EAGLE-3 head is shown of a text: each committed position once, after prompts, drafts, pauses and joins."""

from __future__ import annotations

import torch

from specstream.core.ports import DraftRequest, Verdict
from specstream.core.sampling import Sampling
from specstream.drafters.eagle import EagleDrafter


class Head:
    """It says of a node ten times its token, and on; it notes what it is shown: state, token and position."""

    gamma, nbytes = 3, 0
    taps = (2, 5)
    vocabulary = torch.arange(1000)
    details = {}  # noqa: RUF012

    def __init__(self):
        self.shown = []

    def combined(self, states):
        return states[:, 0] + states[:, 1] / 1000

    def fed_back(self, output):
        return -output

    def step(self, hidden, tokens, positions, memories):
        states = hidden[:, 0].round(decimals=3).tolist()
        self.shown.append([*zip(states, tokens.tolist(), positions.tolist(), strict=True)])
        for memory, count in memories:
            memory.length += count
        return (tokens % 99 + 1)[:, None].float()

    def logits(self, output):
        said = torch.zeros(len(output), 1000)
        said[torch.arange(len(output)), output[:, 0].long()] = 9.0
        said[:, 7] = 5.0
        return said


class Session:
    """A target's: node n of row r has the state 100 r + n, and at tap 5 a thousand times that."""

    @property
    def hidden_states(self):
        return self

    def tap(self, layers):
        assert tuple(layers) == (2, 5)

    def prompt_states(self, row, layers):
        assert tuple(layers) == (2, 5)
        own = torch.arange(3.0)[: 2 + row] + 50 * (row + 1)
        return torch.stack([own, 1000 * own], 1)[..., None]

    def states(self, layer):
        own = 100.0 * torch.arange(3)[:, None] + torch.arange(8)
        return (own if layer == 2 else 1000 * own)[..., None]


def request(length, depth=3):
    return DraftRequest(tokens=list(range(length)), depth=depth, generator=torch.Generator())


def step(session, requests, *verdicts):
    trees = session.propose(requests)
    session.observe([Verdict(path=path, tokens=tokens) for path, tokens in verdicts])
    return trees


def doubled(*nodes):
    """A state is that at one tap and a thousandth of a thousand times it."""
    return [(2.0 * state, token, position) for state, token, position in nodes]


def test_prompts_drafts_and_pauses():
    head = Head()
    drafter = EagleDrafter(head, ranks=2)
    assert tuple(drafter.reads) == (2, 5)
    session = drafter.begin([[10, 11, 12]], [Sampling()], Session())
    assert session.read(1) and not session.read(512)
    assert head.shown == [doubled((50, 11, 0)), doubled((51, 12, 1))]
    (tree,) = step(session, [request(3)], ((0,), (20,)))
    assert len(tree) == 1, "before the first pass"
    head.shown.clear()
    (tree,) = step(session, [request(4)], ((0, 1, 3), (21, 22, 5)))
    assert head.shown == [doubled((0, 20, 2)), [(-21.0, 21, 3)], [(-22.0, 22, 4)]]
    assert tree.tokens[1:4] == (21, 22, 23), "the likeliest, each behind the one before"
    assert {tree.parents[node] for node in range(4, len(tree))} <= {0, 1, 2}, "others are leaves beside them"
    # A round passes of which nobody tells; the text has three tokens more, and one of the pause.
    head.shown.clear()
    session.propose([request(8)])
    assert head.shown[0] == doubled((0, 21, 3), (1, 22, 4), (3, 5, 5)), "accepted nodes are read with true states"
    assert [nodes[0][2] for nodes in head.shown[1:]] == [6, 7]


def test_rows_that_leave_and_join():
    head = Head()
    drafter = EagleDrafter(head, ranks=2)
    session = drafter.begin([[1, 2, 3], [1, 2, 3, 4]], [Sampling()] * 2, Session())
    while session.read(512):
        pass
    step(session, [request(3), request(4)], ((0,), (30,)), ((0,), (40,)))
    other = drafter.begin([[5, 6, 7]], [Sampling()], Session())
    while other.read(512):
        pass
    session.join(other)
    session.keep([1, 2])
    head.shown.clear()
    trees = session.propose([request(5), request(3)])
    assert [len(tree) > 1 for tree in trees] == [True, False], "the newcomer was in no pass"
    assert head.shown == [doubled((100, 40, 3)), [(-41.0, 41, 4)], [(-42.0, 42, 5)]]
