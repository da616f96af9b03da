"""The self-test against kernels whose classes are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from specstream.core.tree import TokenTree
from specstream.models.cache import STEP, capacity_for
from specstream.models.invariance.widths import CERTIFY_SECONDS, WIDTHS, Exactness

VOCAB = 50
LARGE = 20_000  # activations of a model large enough that few rows are evidence enough

Kernel = Callable[[int, int, int, int], int]
"""(rows, width, blocks, tokens before) -> which kernel runs: passes of one kernel have one rounding."""


class FakeSession:
    """Logits that depend on the token, its position and, in the last bits, on the kernel."""

    exact = "rounding"

    def __init__(self, model: FakeModel, lengths: list[int], capacity: int) -> None:
        self.model, self.lengths, self.capacity = model, lengths, capacity

    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        rows, width = len(trees), max(map(len, trees))
        self.capacity = max(self.capacity, capacity_for(max(self.lengths) + width))
        kernel = self.model.kernel(rows, width, self.capacity // STEP, max(self.lengths))
        self.model.passes.append((rows, width))
        tokens = torch.tensor([[*tree.tokens, *[0] * (width - len(tree))] for tree in trees])
        depths = torch.tensor([[*tree.depths, *range(len(tree), width)] for tree in trees])
        positions = torch.tensor(self.lengths)[:, None] + depths
        places = 0 if self.model.in_path_order else torch.arange(width) - depths
        rounding = (kernel + places * torch.ones(rows, width)) * 2.0**-10
        return torch.sin(tokens * 37.0 + positions)[..., None] * torch.arange(VOCAB) + rounding[..., None]

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        self.lengths = [length + len(path) for length, path in zip(self.lengths, paths, strict=True)]

    def rollback(self, lengths: Sequence[int]) -> None:
        raise AssertionError("not needed")

    def keep(self, rows: Sequence[int]) -> None:
        raise AssertionError("not needed")

    def fork(self, rows: int, length: int, capacity: int) -> FakeSession:
        return FakeSession(self.model, [length] * rows, capacity)


class FakeModel:
    def __init__(self, kernel: Kernel, *, in_path_order: bool = False) -> None:
        self.kernel, self.in_path_order = kernel, in_path_order
        self.passes: list[tuple[int, int]] = []

    def begin(self, prefixes: Sequence[Sequence[int]]) -> FakeSession:
        return FakeSession(self, [len(prefix) for prefix in prefixes], STEP)


def calibrated(
    kernel: Kernel, *, dtype: torch.dtype = torch.bfloat16, activations: int = LARGE, context: int | None = None
) -> Exactness:
    exactness = Exactness(FakeModel(kernel).begin, VOCAB, context, dtype=dtype, activations=activations)
    exactness.calibrate()
    return exactness


def widest(*starts: int) -> Kernel:
    """A kernel for the widths from each of these starts on."""
    return lambda rows, width, blocks, before: max(start for start in starts if width >= start)


@pytest.mark.parametrize(
    ("starts", "base"),
    [((1,), 1), ((1, 2), 2), ((1, 4), 4), ((1, 2, 3, 5), 6), ((1, 6, 7), 8), ((1, 5, 9), 6), ((1, 7, 9), None)],
)
def test_it_finds_the_narrowest_class_that_reaches_far_enough(starts: tuple[int, ...], base: int | None) -> None:
    assert calibrated(widest(*starts)).base == base


def test_narrower_passes_are_padded_and_the_width_is_certified() -> None:
    exactness = calibrated(widest(1, 4))
    assert [exactness.width(1, nodes, 30, STEP) for nodes in (1, 3, 4, 5, 7, 9)] == [
        (4, True), (4, True), (4, True), (6, True), (8, True), (12, True),
    ]  # fmt: skip


def test_a_width_that_differs_is_skipped_for_the_next_that_does_not() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: 0 if width in (4, 8, 12) else width)
    assert exactness.base == 4
    assert exactness.width(1, 5, 30, STEP) == (8, True)


def test_without_a_class_it_pads_nothing_and_says_so() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: width)
    assert exactness.base is None
    assert exactness.width(1, 3, 30, STEP) == (3, False)


def one_width(kernel: Kernel, nodes: int = 0) -> Exactness:
    model = FakeModel(kernel)
    exactness = Exactness(model.begin, VOCAB, None, dtype=torch.bfloat16, activations=LARGE, one_width=True)
    exactness.calibrate(nodes)
    return exactness


@pytest.mark.parametrize(("nodes", "width"), [(0, 8), (6, 8), (9, 12), (13, 16), (64, 64)])
def test_without_a_class_one_width_may_serve_all(nodes: int, width: int) -> None:
    exactness = one_width(lambda rows, width, blocks, before: width, nodes)
    assert exactness.base == width
    for count in (1, 5, nodes or 1):
        assert exactness.width(1, count, 30, STEP) == (width, True)
        assert exactness.width(1, count, 600, 2 * STEP) == (width, True)
    assert exactness.width(1, width + 1, 30, STEP) == (width + 1, False)


def test_one_width_has_to_agree_with_itself() -> None:
    """Kernels that depend on where a token stands, or on the rows, are found out."""
    assert one_width(lambda rows, width, blocks, before: 100 * width + before).base is None
    exactness = one_width(lambda rows, width, blocks, before: 100 * width + rows)
    assert exactness.width(1, 3, 30, STEP) == (8, True)
    assert exactness.width(2, 3, 30, STEP) == (8, False)


@pytest.mark.parametrize("from_token", [73, 97, 130])
def test_on_a_gpu_a_difference_that_shows_only_in_short_contexts_is_found(from_token: int) -> None:
    """As seen on an H200; ``before`` is of the pass, so a wide one shows it when it begins there."""
    exactness = one_width(lambda rows, width, blocks, before: int(width == 16 and from_token - 16 < before < 200))
    assert exactness.width(1, 12, 30, STEP) == (12, True)
    assert exactness.width(1, 16, 30, STEP) == (24, True)


def test_a_class_is_preferred_to_one_width() -> None:
    assert one_width(widest(1, 4), 16).base == 4
    assert one_width(lambda rows, width, blocks, before: width, 65).base is None, "none is as wide"


def test_a_tree_wider_than_any_certified_pass_is_scored_and_not_certified() -> None:
    exactness = calibrated(widest(1, 4, 24))
    assert exactness.width(1, 16, 30, STEP) == (16, True)
    assert exactness.width(1, 20, 30, STEP) == (20, False)
    assert exactness.width(1, WIDTHS[-1] + 1, 30, STEP) == (WIDTHS[-1] + 1, False)


def test_padding_does_not_go_far_beyond_the_tree() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: int(rows > 1 and width < 48))
    assert exactness.width(3, 2, 30, STEP) == (2, False)


def test_every_batch_size_is_certified_on_its_own() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: int(rows == 3))
    assert exactness.width(1, 1, 30, STEP) == (1, True)
    assert exactness.width(2, 1, 30, STEP) == (1, True)
    assert exactness.width(3, 1, 30, STEP) == (1, False)


def test_every_capacity_is_certified_on_its_own() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: int(blocks == 3))
    assert exactness.width(1, 4, 100, STEP) == (4, True)
    assert exactness.width(1, 4, 600, 2 * STEP) == (4, True)
    assert exactness.width(1, 4, 100, 3 * STEP) == (4, False)
    assert exactness.width(1, 4, 2 * STEP - 1, 2 * STEP) == (4, False), "this very pass grows the cache"


@pytest.mark.parametrize(
    ("shortest", "longest", "blocks"),
    [(0, STEP, 1), (STEP, 2 * STEP, 2), (STEP, 2 * STEP, 3), (0, STEP, 4), (3 * STEP, 4 * STEP, 4)],
)
def test_a_pass_is_tried_wherever_its_rows_may_end(shortest: int, longest: int, blocks: int) -> None:
    """In the last block, in the one before, and in the first beside a longer row."""
    exactness = calibrated(
        lambda rows, width, capacity, before: int(width > 8 and capacity == blocks and shortest <= before < longest)
    )
    assert exactness.width(1, 8, 100, blocks * STEP) == (8, True)
    assert exactness.width(1, 12, 100, blocks * STEP) == (12, False)


def test_the_padding_counts_when_a_pass_grows_the_cache() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: 10 * blocks + int(width >= 4))
    assert exactness.width(1, 1, STEP - 4, STEP) == (4, True)
    assert exactness.width(1, 1, STEP - 3, STEP) == (4, False)


def test_a_difference_that_shows_only_in_long_contexts_is_found() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: int(width > 4 and before > 300))
    assert exactness.base == 6


def rare(every: int) -> Kernel:
    """Passes narrower than 4 differ, but only at every so many tokens."""
    return lambda rows, width, blocks, before: int(width < 4 and before % every < width)


def test_a_rare_difference_is_found_before_a_narrow_width_is_believed_in() -> None:
    assert calibrated(rare(13)).base == 4


def test_a_narrow_width_is_certified_by_as_many_tokens_as_the_base() -> None:
    exactness = calibrated(lambda rows, width, blocks, before: int(width == 2 and before % 12 < 2))
    assert exactness.base == 1
    assert exactness.width(1, 2, 30, STEP) == (4, True)


def test_a_model_too_small_for_evidence_is_padded_all_the_same() -> None:
    assert calibrated(widest(1), activations=64).base == 4
    assert calibrated(widest(1), activations=64, dtype=torch.float32).base == 1


@pytest.mark.parametrize("in_path_order", [True, False])
def test_branches_are_certified_on_their_own(in_path_order: bool) -> None:
    model = FakeModel(lambda rows, width, blocks, before: int(rows == 3), in_path_order=in_path_order)
    exactness = Exactness(model.begin, VOCAB, None, dtype=torch.bfloat16, activations=LARGE)
    exactness.calibrate()
    assert [exactness.branches(1, width, 2 * STEP) for width in (3, 4, 8, 64)] == [in_path_order] * 4
    assert not exactness.branches(3, 8, STEP)


def test_everything_is_tried_once() -> None:
    model = FakeModel(widest(1, 4))
    exactness = Exactness(model.begin, VOCAB, None, dtype=torch.bfloat16, activations=LARGE)
    for _ in range(2):
        exactness.calibrate()
        exactness.certify(2, 9)
        exactness.width(1, 5, 700, 2 * STEP)
        exactness.branches(2, 8, STEP)
        model.passes, known = [], len(model.passes)
    assert known == 0, "the second time nothing was left to try"


@pytest.mark.parametrize("seconds", [0.3, 1.0, 50.0])
def test_a_slow_machine_tries_fewer_widths_ahead_and_uses_none_that_was_not_tried(seconds: float) -> None:
    model = FakeModel(lambda rows, width, blocks, before: int(width == 6))
    exactness = Exactness(model.begin, VOCAB, None, dtype=torch.bfloat16, activations=LARGE, simple=lambda *_: True)
    exactness.calibrate()
    known = len(model.passes)

    def ahead() -> float:
        return seconds * (len(model.passes) - known)

    exactness.certify(1, 24, branched=True, now=ahead)
    assert 0 < ahead() < CERTIFY_SECONDS + 20 * seconds
    assert {width for _, width in model.passes[known:]} < set(WIDTHS), "some are left out"
    tried = len(model.passes)
    exactness.certify(1, 24, branched=True, now=ahead)
    assert len(model.passes) == tried, "what was left out waits until it occurs"
    assert exactness.width(1, 24, 30, STEP) == (24, True)
    assert exactness.width(1, 5, 30, STEP) == (8, True), "no width is believed in untried"
    assert len(model.passes) > tried


def test_plain_passes_are_not_compared_with_themselves() -> None:
    model = FakeModel(widest(1))
    exactness = Exactness(model.begin, VOCAB, None, dtype=torch.bfloat16, activations=LARGE, simple=lambda *_: True)
    exactness.calibrate()
    known = len(model.passes)
    assert exactness.width(1, 1, 30, STEP) == (1, True)
    assert len(model.passes) == known
    assert exactness.width(2, 1, 30, STEP) == (1, True) and len(model.passes) > known


@pytest.mark.parametrize("context", [1, 4, 16, 40, 100, 700])
def test_a_short_context_is_no_error(context: int) -> None:
    exactness = calibrated(widest(1, 4), context=context)
    width, certified = exactness.width(1, 3, context - 1, STEP)
    assert width >= 3
    assert certified == (context >= 40)


def test_where_attention_sums_each_row_by_itself_one_row_stands_for_all_shapes_of_so_many_nodes() -> None:
    def kernel(rows: int, width: int, blocks: int, before: int) -> int:
        return rows * width > 16

    model = FakeModel(kernel, in_path_order=True)
    simple = {"simple": lambda rows, width: rows * width <= 24}
    exactness = Exactness(model.begin, VOCAB, None, dtype=torch.bfloat16, activations=LARGE, **simple)
    exactness.calibrate()
    shapes = [(1, 2, 30, STEP), (1, 2, 5000, 20 * STEP), (4, 2, 900, 4 * STEP), (2, 8, 30, STEP)]
    assert [exactness.width(*shape)[1] for shape in shapes] == [True] * 4
    assert {rows for rows, _ in model.passes} == {1}
    known = len(model.passes)
    exactness.width(2, 2, 7000, 30 * STEP)
    exactness.width(1, 8, 7000, 30 * STEP)
    assert exactness.branches(4, 2, 30 * STEP)
    assert not exactness.branches(3, 8, STEP)
    assert len(model.passes) - known < 20
    assert {rows for rows, _ in model.passes} == {1}
    assert not exactness.width(8, 4, 30, STEP)[1], "beyond 24 nodes every shape is tried by itself"
    assert max(rows for rows, _ in model.passes) == 8


@pytest.mark.parametrize(("dtype", "exact"), [(torch.bfloat16, False), (torch.float32, True)])
def test_where_other_kernels_run_the_probe_is_believed_in_float32_only(dtype, exact):
    """Two kernels may agree on all tokens of a probe and part on one in thousands."""
    exactness = Exactness(
        FakeModel(lambda *_: 0, in_path_order=True).begin,
        VOCAB,
        None,
        dtype=dtype,
        activations=LARGE,
        alike=lambda rows, width: rows * width <= 64,
    )
    exactness.calibrate()
    assert exactness.width(3, 16, 10, STEP)[1]
    assert exactness.width(3, 32, 10, STEP)[1] is exact
    assert exactness.branches(3, 32, STEP) is exact
