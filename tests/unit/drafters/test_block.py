"""A block head's windows: which positions they hold after drafts, pauses, rows that leave and rows that join."""

from __future__ import annotations

import torch

from specstream.core.ports import DraftRequest, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree_shapes import Candidates
from specstream.drafters.block import BlockDrafter
from specstream.heads.block import BlockConfig


class Head:
    """It reads states as they are and notes what it is asked."""

    gamma, nbytes, taps = 3, 0, (2, 5)

    def __init__(self, window=4):
        self.config = BlockConfig(taps=(2, 5), window=window)
        self.read, self.asked = [], []

    def memory(self, states, positions):
        self.read.append(positions.tolist())
        return positions[:, None], positions[:, None]

    def candidates(self, last, positions, following, memory, count, depth):
        places, others = ([own.flatten().tolist() for own in each] for each in memory)
        assert places == others, "keys and values"
        self.asked.append((last[:, 0].tolist(), positions.tolist(), following.tolist(), places, depth))
        return [Candidates([[7, 8]] * depth, [[0.6, 0.3]] * depth) for _ in places]


class Session:
    """A target's: node n of row r has the state 100 r + n, ten thousand more at tap 5; so has place n of its prompt."""

    tapped = ()
    prompt = 0  # positions of each that were read

    @property
    def hidden_states(self):
        return self

    def tap(self, layers):
        self.tapped = layers

    def prompt_states(self, row, layers):
        own = 100 * row + torch.arange(self.prompt)
        return torch.stack([own + 1e4 * (layer == 5) for layer in layers], 1)[..., None].float()

    def states(self, layer):
        return (100 * torch.arange(3)[:, None] + torch.arange(8) + 1e4 * (layer == 5))[..., None].float()


def begun(rows=1, window=4, prompt=0):
    head, target = Head(window), Session()
    target.prompt = prompt
    return head, target, BlockDrafter(head).begin([list(range(prompt + 1))] * rows, [Sampling()] * rows, target)


def request(length, depth=3):
    return DraftRequest(tokens=list(range(length)), depth=depth, generator=torch.Generator())


def step(session, requests, *paths):
    trees = session.propose(requests)
    session.observe([Verdict(path=path, tokens=(0,) * len(path)) for path in paths])
    return trees


def test_each_committed_position_is_read_once_and_the_latest_are_kept():
    head, target, session = begun()
    assert target.tapped == (2, 5)
    assert [len(tree) for tree in step(session, [request(4)], (0,))] == [1], "nothing is known before the first pass"
    step(session, [request(5)], (0, 2, 3))
    step(session, [request(8)], (0,))
    session.propose([request(9)])
    assert head.read == [[3], [4, 5, 6], [7]]
    assert head.asked == [
        ([1e4], [3], [4], [[3]], 3),
        ([1e4 + 3], [6], [7], [[3, 4, 5, 6]], 3),
        ([1e4], [7], [8], [[4, 5, 6, 7]], 3),
    ]


def test_what_was_committed_in_a_pause_is_missing():
    head, _, session = begun()
    step(session, [request(4)], (0,))
    step(session, [request(9, depth=0)], (0,))  # the first round after a pause, whose four passes nobody saw
    session.propose([request(10)])
    assert head.asked == [([1e4], [8], [9], [[3, 8]], 3)]


def test_states_that_nobody_asks_for_are_not_piled_up():
    head, _, session = begun(window=3)
    for length in range(4, 30):
        step(session, [request(length, depth=0)], (0,))
    session.propose([request(30)])
    assert head.read == [[26, 27, 28]]


def test_rows_keep_their_windows_when_others_leave_or_join():
    head, target, session = begun(3)
    step(session, [request(4), request(6), request(8)], (0,), (0, 1), (0,))
    session.keep([2, 1])
    session.join(BlockDrafter(head).begin([[1, 2]], [Sampling()], target))
    trees = session.propose([request(9), request(8, depth=2), request(20)])
    assert [len(tree) > 1 for tree in trees] == [True, True, False]
    assert head.asked == [([1e4 + 200, 1e4 + 101], [7, 6], [8, 7], [[7], [5, 6]], 3)]


def test_the_latest_positions_of_a_prompt_are_read_too():
    head, _, session = begun(prompt=7)
    assert [session.read(2), session.read(10), session.read(10)] == [True, False, False]
    step(session, [request(8)], (0,))
    session.propose([request(9)])
    assert head.read == [[3, 4], [5, 6], [7]]
    assert head.asked == [([1e4], [7], [8], [[4, 5, 6, 7]], 3)]
