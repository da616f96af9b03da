"""Passes of fixed shape, uncaptured and replayed from a tape, beside the passes of every day."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from specstream.core.device import deferred
from specstream.core.device.deferred import DeferredChain, Drafted
from specstream.core.tree import TokenTree
from specstream.errors import DeviceMemoryError, UsageError
from specstream.models.cache import STEP
from specstream.models.target.graphs import SPARE_ARENAS, Arenas, StaticCache, rounded_width
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import FAMILIES, build, prompt
from tests.tape import TapeCapture

pytestmark = pytest.mark.usefixtures("one_thread")

BRANCHY = TokenTree((3, 4, 5, 6, 7, 8), (-1, 0, 1, 0, 3, 3))
"""Six nodes, a width that is not rounded: 3-4-5 and 3-6-{7, 8}."""


def eager(family: str = "llama", **options: Any) -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family, **options), runtime="eager", exact=False)


def static(family: str = "llama", capture: TapeCapture | None = None, **options: Any) -> HuggingFaceTarget:
    target = HuggingFaceTarget(build(family, **options), runtime="static", exact=False)
    assert target.passes is not None
    target.passes.capture = capture
    return target


def rounds(target: HuggingFaceTarget, rows: int, seed: int = 0) -> list[Tensor]:
    """Logits of a tree, of what follows its second branch, and of what follows that, after a rollback."""
    session = target.begin([prompt(19, seed), [], prompt(7, seed + 1)][:rows])
    logits = [session.score([BRANCHY, TokenTree.chain([9, 10, 11, 12, 13, 14]), BRANCHY][:rows])]
    session.commit([(0, 3, 5), (0, 1, 2), (0, 1)][:rows])
    logits.append(session.score([TokenTree.chain([15, 16])] * rows))
    session.commit([(0, 1), (0,), (0, 1)][:rows])
    session.rollback([length - 1 for length in session.cache.lengths])
    if rows == 3:
        session.keep([2, 0])
    logits.append(session.score([TokenTree.chain([17])] * len(session.cache.lengths)))
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capture", [None, TapeCapture], ids=["uncaptured", "replayed"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_usual_passes_to_the_bit(
    family: str, rows: int, capture: Callable[[], TapeCapture] | None, dtype: torch.dtype
) -> None:
    tape = capture and capture()
    expected = rounds(eager(family, dtype=dtype), rows)
    got = rounds(static(family, tape, dtype=dtype), rows)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))
    # The tree of the self-test, and the three passes; the check of the first graph replays it once more.
    assert tape is None or (tape.count, tape.replays) == (4, 5)


@pytest.mark.parametrize("capture", [None, TapeCapture], ids=["uncaptured", "replayed"])
def test_a_cache_that_is_outgrown_moves_to_a_larger_arena(capture: Callable[[], TapeCapture] | None) -> None:
    tape = capture and capture()
    outputs = []
    for target in (eager(), static(capture=tape)):
        session = target.begin([prompt(STEP - 9), prompt(40, seed=1)])
        logits = []
        for step in range(8):
            logits.append(session.score([TokenTree.chain([step, step + 1])] * 2))
            session.commit([(0, 1), (0,)])
        outputs.append(torch.stack(logits))
        assert session.cache.capacity == 2 * STEP
    assert torch.equal(*outputs)
    assert tape is None or tape.count == 3, "the self-test's tree, and one width over two arenas"


def test_a_batch_that_follows_replays_the_graphs_of_the_one_before() -> None:
    tape = TapeCapture()
    target = static(capture=tape)
    rounds(target, 3)
    captured, expected = tape.count, rounds(eager(), 3, seed=5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rounds(target, 3, seed=5), expected, strict=True))
    assert tape.count == captured


def shrinking(target: HuggingFaceTarget) -> list[Tensor]:
    """Logits and tapped states of a batch of seven whose rows end one by one, the first and the last in turn.

    Others join when three are left, one of which needs a larger arena.
    """
    session = target.begin([prompt(STEP - 20 + row, seed=row) for row in range(7)])
    session.tap([1])
    found, joined = [], False
    while (rows := len(session.cache.lengths)) > 0:
        width = 4 if rows < 4 else 2
        found += [session.score([TokenTree.chain(prompt(width, seed=row)) for row in range(rows)]), session.states(1)]
        session.commit([range(width)] * rows)
        if rows == 3 and not joined:
            session.join(target.begin([prompt(STEP, seed=8), prompt(5, seed=9)]))
            rows, joined = 5, True
        session.keep(range(rows)[1:] if rows % 2 else range(rows)[:-1])
    return found


@pytest.mark.parametrize("capture", [None, TapeCapture], ids=["uncaptured", "replayed"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_a_batch_whose_rows_end_keeps_its_shape_until_half_are_left(
    family: str, capture: Callable[[], TapeCapture] | None
) -> None:
    tape = capture and capture()
    expected, got = shrinking(eager(family)), shrinking(static(family, tape))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))
    # The self-test's tree; 2 nodes in 7 rows and in 4, 4 in 4; over the larger arena, 2 in 4 rows and 4 in 4, 2 and 1.
    assert tape is None or tape.count == 8


def test_numbers_that_are_none_do_not_outlive_their_batch() -> None:
    target, tree = static(), [TokenTree.chain([5])]
    expected = target.begin([prompt(9)]).score(tree)
    session = target.begin([prompt(9)])
    arena = session.cache.arena
    with torch.inference_mode():
        for buffer in arena.buffers.values():
            buffer.fill_(float("nan"))
    del session
    session = target.begin([prompt(9)])
    assert session.cache.arena is arena
    assert torch.equal(session.score(tree), expected)


def test_logits_are_not_overwritten_by_later_passes() -> None:
    session = static(capture=TapeCapture()).begin([prompt(9)])
    first = session.score([TokenTree.chain([5])])
    held = first.clone()
    session.score([TokenTree.chain([6])])
    assert torch.equal(first, held)


def test_sessions_at_work_at_the_same_time_do_not_share_an_arena() -> None:
    target = static(capture=TapeCapture())
    one, other = target.begin([prompt(9)]), target.begin([prompt(7, seed=1)])
    alone = eager().begin([prompt(9)])
    other.score([TokenTree.chain([5])])
    assert torch.equal(one.score([TokenTree.chain([6])]), alone.score([TokenTree.chain([6])]))


def test_spare_arenas_are_few_and_the_longest_unused_go_first() -> None:
    arenas = Arenas()
    caches = [StaticCache(arenas, 1, blocks * STEP) for blocks in range(1, 5)]
    while caches:
        del caches[0]
    gc.collect()
    assert [arena.capacity for arena in arenas.spare] == [3 * STEP, 4 * STEP]
    assert len(arenas.spare) == SPARE_ARENAS
    assert arenas.take(2, 3 * STEP) is not arenas.spare[0], "too few rows"


@pytest.mark.parametrize(("nodes", "width"), [(1, 1), (3, 4), (5, 6), (13, 16), (64, 64), (65, 128), (200, 256)])
def test_widths_are_rounded_so_that_few_are_captured(nodes: int, width: int) -> None:
    assert rounded_width(nodes) == width


def test_a_tree_of_more_nodes_than_a_word_has_bits() -> None:
    paths = [[node, node + 1, node + 2] for node in range(3, 140, 4)]
    tree = [TokenTree.merge(2, paths)]
    assert len(tree[0]) > 64
    expected = eager().begin([prompt(20)]).score(tree)
    got = static().begin([prompt(20)]).score(tree)[:, : len(tree[0])]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("capture", [None, TapeCapture], ids=["uncaptured", "replayed"])
def test_tokens_that_stay_on_the_device_are_scored_like_others(capture: Callable[[], TapeCapture] | None) -> None:
    tokens = torch.tensor([[4, 5, 6], [7, 8, 9], [1, 1, 1]])
    drafts = Drafted(tokens=tokens)
    trees = [DeferredChain(drafts, 0, 3, 2), DeferredChain(drafts, 1, 2, 3), TokenTree.chain([4])]
    known = [TokenTree.chain([2, 4, 5, 6]), TokenTree.chain([3, 7, 8]), TokenTree.chain([4])]
    prompts = [prompt(19), [], prompt(7, seed=1)]
    target = static(capture=capture and capture())
    expected, got = (target.begin(prompts).score(each) for each in (known, trees))
    for row, tree in enumerate(known):
        assert torch.equal(got[row, : len(tree)], expected[row, : len(tree)])
    assert "tokens" not in trees[0].__dict__, "nobody asked for them"
    steps = [DeferredChain(drafts, row, 1, None) for row in range(3)]
    firsts = [TokenTree.chain([token]) for token in (4, 7, 1)]
    assert torch.equal(*(target.begin(prompts).score(each) for each in (steps, firsts)))
    assert torch.equal(target.begin(prompts[:2]).score(trees[:2])[0], expected[0]), "in part of the batch too"


def failing(error: Exception) -> Any:
    def capture(run: Callable[[], Tensor]) -> Any:
        raise error

    return capture


def test_a_model_that_cannot_be_captured_runs_eagerly_and_says_so_once() -> None:
    target = static(capture=failing(RuntimeError("operation not permitted when stream is capturing\nmore of it")))
    with pytest.warns(UserWarning, match=r"cannot be captured \(operation not permitted.*capturing\)") as warned:
        got = rounds(target, 3)
    assert len(warned) == 1
    assert target.runtime.name == "eager"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, rounds(eager(), 3), strict=True))


def test_a_host_that_looks_at_the_device_cannot_be_captured() -> None:
    hook = build("llama").lm_head.register_forward_hook(lambda module, given, made: made * int(made.isfinite().all()))
    target = static(capture=TapeCapture())
    try:
        with pytest.warns(UserWarning, match="cannot be captured"):
            target.begin([prompt(9)])
    finally:
        hook.remove()


def test_a_graph_that_does_not_follow_the_length_is_not_believed() -> None:
    target = static(capture=lambda run: (run(), lambda: None))
    with pytest.warns(UserWarning, match="does not follow the length"):
        got = rounds(target, 1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, rounds(eager(), 1), strict=True))


def test_running_out_of_memory_is_said_in_one_sentence_and_the_next_run_works() -> None:
    capture, expected = TapeCapture(), rounds(eager(), 2)
    target = static(capture=failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")))
    assert target.passes is not None
    with pytest.raises(DeviceMemoryError) as caught:
        rounds(target, 2)
    assert str(caught.value) == (
        "cpu has no room to capture a pass of 1 x 16 tokens over 512 slots; give fewer prompts at once, fewer "
        "max_new_tokens or runtime='eager'"
    )
    assert caught.value.__context__ is None, "nobody holds on to what the pass had got"
    assert target.runtime.name == "static", "no reason to give up graphs"
    target.passes.capture = capture
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rounds(target, 2), expected, strict=True))
    assert capture.count > 0


def test_a_single_width_serves_where_no_class_is_found() -> None:
    """See test_exactness.py; here, that the static runtimes ask for it."""
    target = HuggingFaceTarget(build("llama"), runtime="static")
    assert target.exactness is not None
    assert target.exactness._one_width
    assert not HuggingFaceTarget(build("llama"), runtime="eager").exactness._one_width


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_graphs_want_a_gpu() -> None:
    with pytest.raises(UsageError, match="runtime is 'graphs': it runs on CUDA"):
        HuggingFaceTarget(build("llama"), runtime="graphs")


def test_the_predicate_is_about_cuda() -> None:
    assert deferred.asynchronous(torch.device("cuda", 0))
    assert not deferred.asynchronous(torch.device("cpu"))
