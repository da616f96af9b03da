"""What a frozen base computes is computed once, and does not depend on when or beside what."""

from __future__ import annotations

import torch

from specstream.core.tree_shapes import rank_rates
from specstream.training.data import Batch
from specstream.training.hidden_state_cache import HiddenStateCache
from specstream.training.live_evaluation import frequent_tokens

ROWS = [[4, 9, 9, 3, 7], [8, 2, 5]]
BATCH = Batch(
    tokens=torch.tensor([ROWS[0], [*ROWS[1], 0, 0]]),
    mask=torch.tensor([[False, False, True, True, True], [False, True, True, False, False]]),
    size=8,
)


class Read:
    """Keys of two heads and a state for each token, and how often they were asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, tokens):
        self.asked.append(tokens[0].tolist())
        states = torch.stack([tokens.float() + 0.001, -tokens.float()], -1)
        return {"states": states, "keys": torch.stack([states, 2 * states], 1)}


def test_a_batch_is_its_rows_and_each_is_read_once(tmp_path):
    read = Read()
    first = HiddenStateCache(tmp_path, "base").batch(BATCH, read)
    again = HiddenStateCache(tmp_path, "base").batch(BATCH, read)
    assert read.asked == ROWS
    assert first["states"].shape == (2, 5, 2)
    assert first["keys"].shape == (2, 2, 5, 2)
    assert first["states"][1, :, 1].tolist() == [-8, -2, -5, 0, 0]
    assert first["keys"][0, 1, :, 1].tolist() == [-8, -18, -18, -6, -14]
    for name, tensor in first.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, again[name])


def test_another_base_keeps_apart_and_what_a_crash_cut_short_is_read_again(tmp_path):
    read = Read()
    row = torch.tensor(ROWS[0])
    HiddenStateCache(tmp_path, "base").row(row, read)
    HiddenStateCache(tmp_path, "another").row(row, read)
    assert len(read.asked) == len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert HiddenStateCache(tmp_path, "base").row(row, read)["states"][0, 1, 1] == -9
    assert len(read.asked) == 3


def test_what_does_not_fit_is_computed_each_time_to_the_same_bits(tmp_path):
    whole, read = HiddenStateCache(tmp_path / "whole", "base").batch(BATCH, Read()), Read()
    for _ in range(2):
        found = HiddenStateCache(tmp_path / "some", "base", 2.5e-6).batch(BATCH, read)
        assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())
    assert read.asked == [*ROWS, ROWS[1]], "there is room for one row, which is read once"
    assert sum(each.stat().st_size for each in (tmp_path / "some").iterdir()) <= 2500


def test_parts_of_an_example_are_kept_apart(tmp_path):
    read, row = Read(), torch.tensor(ROWS[0])
    cache = HiddenStateCache(tmp_path, "base")
    for part in ("one", "other", "one"):
        cache.row(row, read, part)
    assert len(read.asked) == 2


def test_what_a_batch_says_of_its_rows():
    assert BATCH.lengths == [5, 3]
    assert BATCH.prompts == [[4, 9], [8]]


def test_the_most_frequent_tokens_are_in_order_and_ties_go_to_lower_ids():
    assert frequent_tokens(torch.tensor([0, 5, 0, 7, 1, 0]), 4).tolist() == [0, 1, 3, 4]


def test_rates_are_shares_of_each_rank():
    assert rank_rates(torch.tensor([[0, 1], [0, 9], [1, 1], [0, 0]]), 2) == [[0.75, 0.25], [0.25, 0.5]]


def test_rates_of_a_depth_are_of_the_positions_that_a_tree_reaches():
    assert rank_rates(torch.tensor([[0, 1], [9, 0], [1, 1], [3, 0]]), 2) == [[0.25, 0.25], [1 / 3, 2 / 3]]
    assert rank_rates(torch.tensor([[9, 1], [9, 0]]), 2) == [[0.0, 0.0], [0.5, 0.5]], "where none is, of all"
