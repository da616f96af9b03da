from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specstream.models.cache import KEYS, STEP, VALUES, TreeCache, capacity_for

HEADS, DIM, LAYERS = 2, 4, 2
CPU = torch.device("cpu")


def states(rows: int, tokens: list[list[float]]) -> Tensor:
    """``[rows, heads, width, dim]`` whose every entry is the token's number."""
    return torch.tensor(tokens, dtype=torch.float32).view(rows, 1, -1, 1).expand(rows, HEADS, -1, DIM).clone()


def write(cache: TreeCache, *tokens: list[float], row: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """One pass of all layers; values are the negative of keys."""
    cache.plan(len(tokens[0]), CPU, row)
    new = states(len(tokens), list(tokens))
    return [cache.update(new + 100 * layer, -new - 100 * layer, layer) for layer in range(LAYERS)]


def content(cache: TreeCache, row: int) -> list[float]:
    """The committed tokens of a row, after checking that all layers, heads, keys and values tell the same."""
    held = None
    for layer in range(LAYERS):
        keys = cache._buffers[layer, KEYS][row, :, : cache.lengths[row]]
        assert torch.equal(cache._buffers[layer, VALUES][row, :, : cache.lengths[row]], -keys)
        assert bool((keys == keys[:1, :, :1]).all())
        tokens = (keys[0, :, 0] - 100 * layer).tolist()
        assert held in (None, tokens)
        held = tokens
    assert held is not None
    return held


def filled(*rows: list[float]) -> TreeCache:
    cache = TreeCache(len(rows))
    for row, tokens in enumerate(rows):
        write(cache, tokens, row=row)
        cache.lengths[row] += len(tokens)
    return cache


def test_rows_of_different_lengths_each_grow_behind_their_own_end() -> None:
    cache = filled([1, 2, 3], [11])
    write(cache, [4, 5], [12, 13])
    cache.commit([(0, 1), (0,)])
    assert cache.lengths == [5, 2]
    write(cache, [6, 7], [14, 15])
    cache.commit([(0,), (0, 1)])
    assert [content(cache, row) for row in (0, 1)] == [[1, 2, 3, 4, 5, 6], [11, 12, 14, 15]]


def test_rows_of_one_length_take_the_same_way() -> None:
    cache = filled([1, 2], [11, 12])
    write(cache, [3], [13])
    cache.commit([(0,), (0,)])
    assert [content(cache, row) for row in (0, 1)] == [[1, 2, 3], [11, 12, 13]]


def test_a_commit_gathers_the_path_and_leaves_the_other_rows_alone() -> None:
    cache = filled([1], [11, 12])
    write(cache, [2, 3, 4, 5, 6], [13, 14, 15, 16, 17])
    cache.commit([(0, 2, 3, 4), (0, 1, 4)])
    assert [content(cache, row) for row in (0, 1)] == [[1, 2, 4, 5, 6], [11, 12, 13, 14, 17]]


def test_what_is_not_committed_is_overwritten() -> None:
    cache = filled([1])
    write(cache, [2, 3, 4])
    cache.commit([(0,)])
    write(cache, [5])
    cache.commit([(0,)])
    assert content(cache, 0) == [1, 2, 5]


def test_rollback_forgets_the_end_of_each_row() -> None:
    cache = filled([1, 2, 3], [11, 12])
    cache.rollback([1, 2])
    write(cache, [9], [13])
    cache.commit([(0,), (0,)])
    assert [content(cache, row) for row in (0, 1)] == [[1, 9], [11, 12, 13]]


@pytest.mark.parametrize("lengths", [[4, 2], [-1, 2]])
def test_rollback_cannot_invent_tokens(lengths: list[int]) -> None:
    cache = filled([1, 2, 3], [11, 12])
    with pytest.raises(ValueError, match="cannot roll row 0 back"):
        cache.rollback(lengths)
    assert cache.lengths == [3, 2]


def test_keep_renumbers_the_rows() -> None:
    cache = filled([1, 2], [11], [21, 22, 23])
    cache.keep([2, 0])
    assert [content(cache, row) for row in (0, 1)] == [[21, 22, 23], [1, 2]]
    write(cache, [24], [3])
    cache.commit([(0,), (0,)])
    assert [content(cache, row) for row in (0, 1)] == [[21, 22, 23, 24], [1, 2, 3]]


@pytest.mark.parametrize("kept", [(0,), (3,), (0, 1), (1, 3), (2, 0), (0, 1, 2), (0, 2, 3), (1, 2, 3), (3, 1, 2)])
def test_rows_that_are_kept_go_on_as_if_they_had_been_alone(kept: tuple[int, ...]) -> None:
    tokens = [[1.0, 2.0], [11.0], [21.0, 22.0, 23.0], [31.0] * 5]
    cache = filled(*tokens)
    cache.keep(kept)
    write(cache, *([90.0 + row] for row in kept))
    cache.commit([(0,)] * len(kept))
    cache.join(filled([41.0]))
    cache.reserve(4 * STEP)
    assert [content(cache, at) for at in range(len(kept) + 1)] == [*([*tokens[row], 90 + row] for row in kept), [41]]


def test_room_of_rows_that_are_gone_is_given_back_when_it_is_the_larger_part() -> None:
    cache = filled(*([float(row)] for row in range(9)))
    for rows in (8, 5, 4, 3, 1):
        cache.keep([*range(1, rows), len(cache.lengths) - 1])
        held = sum(buffer.untyped_storage().nbytes() for buffer in cache._buffers.values())
        assert held <= 2 * cache.nbytes
    assert content(cache, 0) == [8]


def test_growth_keeps_the_content_and_steps_evenly() -> None:
    cache = filled([1.0] * (STEP - 1), [7.0])
    assert cache.capacity == STEP
    write(cache, [2, 3], [8, 9])
    assert cache.capacity == 2 * STEP
    cache.commit([(0, 1), (0, 1)])
    assert content(cache, 0) == [1.0] * (STEP - 1) + [2, 3]
    assert content(cache, 1) == [7, 8, 9]


@pytest.mark.parametrize(("needed", "capacity"), [(0, STEP), (1, STEP), (STEP, STEP), (STEP + 1, 2 * STEP)])
def test_capacity_comes_in_steps(needed: int, capacity: int) -> None:
    assert capacity_for(needed) == capacity


def test_a_pass_over_one_row_does_not_see_how_long_its_neighbours_are() -> None:
    cache = TreeCache(2)
    write(cache, [1.0] * (STEP + 1), row=0)
    cache.lengths[0] = STEP + 1
    ((keys, values), _) = write(cache, [5, 6], row=1)
    assert keys.shape == values.shape == (1, HEADS, STEP, DIM)
    assert cache.get_mask_sizes(2, 0) == (STEP, 0)
    cache.lengths[1] = 2
    ((keys, _), _) = write(cache, [2], [7])
    assert keys.shape[2] == cache.get_mask_sizes(1, 0)[0] == 2 * STEP


def test_fork_repeats_the_first_row_and_shares_nothing() -> None:
    cache = filled([1, 2, 3], [11])
    copy = cache.fork(2, 7, 2 * STEP)
    assert (copy.lengths, copy.capacity) == ([7, 7], 2 * STEP)
    assert [content(copy, row) for row in (0, 1)] == [[1, 2, 3, 1, 2, 3, 1]] * 2
    write(copy, [9], [9])
    copy.commit([(0,), (0,)])
    assert content(cache, 0) == [1, 2, 3]


def test_a_copy_holds_what_every_row_has_committed_and_shares_nothing() -> None:
    cache = filled([1, 2, 3], [11])
    copy = cache.copy()
    assert (copy.lengths, copy.capacity) == (cache.lengths, cache.capacity)
    assert [content(copy, row) for row in (0, 1)] == [[1, 2, 3], [11]]
    write(copy, [9], [9])
    copy.commit([(0,), (0,)])
    assert [content(cache, row) for row in (0, 1)] == [[1, 2, 3], [11]]
    assert [content(copy, row) for row in (0, 1)] == [[1, 2, 3, 9], [11, 9]]


def test_slots_that_were_never_written_hold_zeros() -> None:
    cache = filled([1, 2])
    assert bool((cache._buffers[0, KEYS][0, :, 2:] == 0).all())


def test_the_bytes_of_every_layer_are_counted() -> None:
    assert filled([1]).nbytes == LAYERS * 2 * HEADS * STEP * DIM * 4


def test_addresses_are_kept_while_the_tensors_are_the_same_and_forgotten_with_them() -> None:
    cache = filled([1, 2], [11], [21])
    write(cache, [3], [12], [22])
    changes = {
        "commit": lambda: cache.commit([(0,)] * 3),
        "pass": lambda: write(cache, [4], [13], [23]),
        "rollback": lambda: cache.rollback([2, 1, 1]),
        "one row": lambda: cache.plan(1, CPU, 1),
        "another row": lambda: cache.plan(1, CPU, 2),
        "all rows": lambda: cache.plan(1, CPU),
        "keep": lambda: cache.keep([2, 0]),
        "growth": lambda: cache.plan(STEP, CPU),
        "one layer more": lambda: cache.layer(LAYERS, *[states(1, [[0.0]])] * 2),
    }
    forgotten = set()
    for name, change in changes.items():
        cache.addresses["kernel"] = name
        change()
        if not cache.addresses:
            forgotten.add(name)
    assert forgotten == {"one row", "another row", "all rows", "keep", "growth", "one layer more"}
