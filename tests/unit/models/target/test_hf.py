from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig

from specstream.core.tree import TokenTree
from specstream.models.cache import STEP
from specstream.models.invariance.costs import measure_passes
from specstream.models.invariance.widths import Exactness
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target import session as module
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import VOCAB, build, prompt

pytestmark = pytest.mark.usefixtures("one_thread")


def target(family: str = "llama") -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family), exact=False)


def next_logits(family: str, tokens: list[int]) -> Tensor:
    """The model's own, after the last of these tokens."""
    with torch.inference_mode():
        logits: Tensor = build(family)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return logits


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "bloom", "opt"])
def test_rows_of_different_lengths_are_scored_as_the_model_scores_them_alone(family: str) -> None:
    prompts = [prompt(19), [], prompt(7, seed=1)]
    trees = [TokenTree.merge(3, [[4, 5], [6]]), TokenTree.chain([7]), TokenTree.chain([8, 9])]
    logits = target(family).begin(prompts).score(trees)
    for row, (tokens, tree) in enumerate(zip(prompts, trees, strict=True)):
        for node in range(len(tree)):
            path = [tree.tokens[index] for index in tree.path(node)]
            torch.testing.assert_close(logits[row, node], next_logits(family, [*tokens, *path]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "bloom", "gpt2"])
def test_a_branch_that_was_committed_is_as_good_as_a_chain(family: str) -> None:
    tokens = prompt(15)
    session = target(family).begin([tokens])
    session.score([TokenTree.merge(3, [[4, 5], [6, 7], [6, 8]])])
    session.commit([(0, 3, 5)])
    logits = session.score([TokenTree.merge(9, [[10], [11]])])
    torch.testing.assert_close(logits[0, 2], next_logits(family, [*tokens, 3, 6, 8, 9, 11]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("runtime", ["packed", "native"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "bloom", "opt"])
def test_a_prompt_that_is_watched_is_read_as_another_is(family: str, runtime: RuntimeName) -> None:
    subject, tokens, shown = HuggingFaceTarget(build(family), runtime=runtime), prompt(40), list[Tensor]()
    session = subject.begin_reading([prompt(9, seed=1), tokens])

    def watch(logits: Tensor, start: int) -> None:
        assert start == sum(map(len, shown))
        shown.append(logits)

    session.watch(1, watch)
    while session.read(16):
        pass
    with torch.inference_mode():
        expected = build(family)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    assert len(shown) == 3
    torch.testing.assert_close(torch.cat(shown), expected, rtol=1e-3, atol=1e-4)
    other = subject.begin_reading([prompt(9, seed=1), tokens])
    while other.read(16):
        pass
    known, found = session.cache.parts(1, 0, 40), other.cache.parts(1, 0, 40)
    assert all(torch.equal(part, found[key]) for key, part in known.items())


def test_a_long_prompt_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(40)
    expected = next_logits("mistral", [*tokens, 5])
    monkeypatch.setattr(module.HuggingFaceSession, "_chunk", 16)
    logits = target("mistral").begin([tokens]).score([TokenTree.chain([5])])
    torch.testing.assert_close(logits[0, 0], expected, rtol=1e-3, atol=1e-4)


def test_the_prompt_has_the_same_keys_whatever_stands_beside_it() -> None:
    long, short = prompt(STEP + 20), prompt(30, seed=1)
    alone, beside = target().begin([short]), target().begin([long, short])
    for key, buffer in beside.cache._buffers.items():
        assert torch.equal(buffer[1, :, :30], alone.cache._buffers[key][0, :, :30])


def test_rows_can_be_dropped_and_rolled_back() -> None:
    prompts = [prompt(9), prompt(5, seed=1), prompt(7, seed=2)]
    session = target().begin(prompts)
    session.keep([2, 0])
    session.rollback([6, 9])
    logits = session.score([TokenTree.chain([3]), TokenTree.chain([4])])
    for row, tokens in enumerate([[*prompts[2][:6], 3], [*prompts[0], 4]]):
        torch.testing.assert_close(logits[row, 0], next_logits("llama", tokens), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "opt", "phi"])
def test_padding_may_stand_beyond_the_last_position(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exactness, "width", lambda self, rows, nodes, length, capacity: (nodes + 5, False))
    subject = HuggingFaceTarget(build(family))
    assert subject.context_length is not None
    tokens = (prompt(300) * 8)[: subject.context_length - 1]
    session = subject.begin([tokens])
    logits = session.score([TokenTree.chain([5])])
    torch.testing.assert_close(logits[0, 0], next_logits(family, [*tokens, 5]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("certified", [True, False])
def test_one_pass_that_is_not_certified_ends_the_claim(certified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    session = HuggingFaceTarget(build("llama")).begin([prompt(9)])
    for answer in (True, certified, True):
        monkeypatch.setattr(Exactness, "width", lambda self, rows, nodes, *rest, answer=answer: (nodes, answer))
        session.score([TokenTree.chain([5])])
        session.commit([(0,)])
    assert session.exact == ("bits" if certified else "rounding")


@pytest.mark.parametrize(
    ("runtime", "rows", "exact"),
    [("eager", 1, "rounding"), ("native", 1, "bits"), ("native", native.MOST_ROWS // 3 + 1, "rounding")],
)
def test_a_second_branch_can_only_be_exact_through_attention_in_path_order(
    runtime: RuntimeName, rows: int, exact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which passes of many tokens do not have."""
    if runtime == "native" and not native.available():
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(Exactness, "width", lambda self, rows, nodes, *rest: (nodes, True))
    monkeypatch.setattr(Exactness, "branches", lambda self, rows, width, capacity: True)
    session = HuggingFaceTarget(build("llama"), runtime=runtime).begin([prompt(9)] * rows)
    session.score([TokenTree.merge(5, [[6], [7]])] * rows)
    session.commit([(0, 1)] * rows)
    assert session.exact == "bits"
    session.score([TokenTree.merge(5, [[6], [7]])] * rows)
    session.commit([(0, 2)] * rows)
    assert session.exact == exact


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom", "opt", "phi3-64"])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 600), (3, 64)])
def test_an_idle_session_stands_behind_tokens_that_nobody_read(family: str, rows: int, length: int) -> None:
    own = target(family)
    own.prepare()
    read: list[int] = []
    count = own.view.register_forward_pre_hook(
        lambda module, given, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    session = own.begin_idle(rows, length)
    count.remove()
    assert sum(read) <= 1
    trees = [TokenTree.merge(3, [[4, 5], [6]])] * rows
    for _ in range(2):
        before = list(session.cache.lengths)
        logits = session.score(trees)
        assert logits.shape[0] == rows and logits.shape[1] >= 4 and bool(torch.isfinite(logits[:, :4]).all())
        session.commit([[0]] * rows)
        assert session.cache.lengths == [length + 1 for length in before]
    assert before == [length + 1] * rows
    session.rollback([length] * rows)
    torch.testing.assert_close(session.score(trees)[:, :4], own.begin_idle(rows, length).score(trees)[:, :4])


@pytest.mark.parametrize("runtime", ["eager", "static", "packed"])
def test_every_runtime_passes_in_an_idle_session(runtime: RuntimeName) -> None:
    own = HuggingFaceTarget(build("llama"), runtime=runtime, exact=False)
    found = measure_passes(own, 2, nodes=4)
    assert {(rows, nodes) for rows, nodes, _ in found} == {(2, 2), (2, 4), (2, 8)}
    assert {context for *_, context in found} == {64, 1024}


def test_an_idle_session_ends_where_the_context_does() -> None:
    own = target("llama")
    assert own.begin_idle(2, 0).cache.lengths == [0, 0]
    assert own.begin_idle(1, 2048).cache.lengths == [2048]
    with pytest.raises(ValueError, match="length is 2049 and the model's context holds 2048"):
        own.begin_idle(1, 2049)


def test_a_mixture_of_experts_claims_no_bits() -> None:
    configuration = MixtralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    session = HuggingFaceTarget(AutoModelForCausalLM.from_config(configuration).eval()).begin([prompt(9)])
    session.score([TokenTree.chain([5])])
    session.commit([(0,)])
    assert session.exact == "rounding"


def test_a_session_that_pads_nothing_claims_nothing() -> None:
    session = target().begin([prompt(5)])
    assert session.score([TokenTree.chain([1])]).shape[1] == 1
    assert session.exact == "rounding"


def test_a_pass_that_fails_leaves_the_session_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(12)
    subject = HuggingFaceTarget(build("llama"), runtime="eager", exact=False)
    session = subject.begin([tokens])
    expected = session.score([TokenTree.chain([5, 6])])
    with monkeypatch.context() as patch:
        patch.setattr(subject.view.lm_head, "forward", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.score([TokenTree.chain([7, 8, 9])])
    assert torch.equal(session.score([TokenTree.chain([5, 6])]), expected)


def _interrupt(states: Tensor) -> Tensor:
    raise KeyboardInterrupt


def test_shapes_can_be_certified_ahead_of_the_first_generation() -> None:
    subject = HuggingFaceTarget(build("llama"))
    subject.prepare(rows=2, nodes=5)
    passes: list[object] = []
    forward = subject.forward
    subject.forward = lambda *given, **named: passes.append(given) or forward(*given, **named)  # type: ignore[method-assign,func-returns-value]
    session = subject.begin([prompt(4), prompt(9)])
    session.score([TokenTree.chain([1, 2, 3, 4, 5]), TokenTree.chain([1])])
    assert len(passes) == 3, "two prompts and one pass"
