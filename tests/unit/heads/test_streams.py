"""Streams: what a decoding round computes is what multi-stream attention over the whole sequence computes."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor

from specstream.core.tree import TokenTree
from specstream.errors import HeadMismatchError, ModelNotFoundError, NumericalError, UsageError
from specstream.heads.multistream import run_streams
from specstream.heads.stream_loss import stream_loss
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.architecture.partial_forward import FinalNorm, merged, upper_linears
from specstream.models.runtime import native, quantized
from specstream.models.runtime.fused import FusedTop
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from tests.dequantized import restored, rounded_input
from tests.lossless.families import FAMILIES, VOCAB, build, prompt

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = prompt(30)
FOLLOWING = 77


def shaken(family: str, dtype: torch.dtype = torch.float32, **settings) -> Streams:
    """Streams whose every parameter matters."""
    config = StreamsConfig(**{"gamma": 3, "layers": 1, "rank": 4, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        streams = Streams(build(family, dtype), config)
        for parameter in streams.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return streams


def whole(streams: Streams, tokens: list[int]) -> Tensor:
    """Final states ``[gamma, hidden]`` of the streams of the last position, by attention over the whole sequence."""
    with torch.no_grad():
        main = streams.read(torch.tensor([tokens]))
        return streams.final_states(main, torch.tensor([[len(tokens) - 1]]), torch.tensor([[FOLLOWING]]))[0, 0]


def of_a_round(streams: Streams, session, node: int) -> Tensor:
    with torch.inference_mode():
        hidden = streams.start_of(session.states(streams.first)[0, node][None], torch.tensor([FOLLOWING]))
        return session.branch(hidden, streams.first, streams._freeze().adapter)[0]


@pytest.mark.parametrize("runtime", ["eager", "auto", "static"])
@pytest.mark.parametrize(("family", "start"), [*((family, "identity") for family in FAMILIES), ("llama", "linear")])
def test_a_round_computes_the_streams_of_the_accepted_node(family, start, runtime):
    """Of a node on a branch that is not the tree's first, and of what is scored after it."""
    streams = shaken(family, start=start)
    session = HuggingFaceTarget(streams.model, runtime=runtime).begin([TOKENS[:20]])
    session.tap([streams.first])
    tree = TokenTree.merge(TOKENS[20], [TOKENS[10:13], TOKENS[21:24]])
    for scored, path in ((tree, [0, 4, 5]), (TokenTree.chain([TOKENS[23]]), [0])):
        session.score([scored])
        session.commit([path])
        committed = session.cache.lengths[0]
        fused = runtime == "auto" and native.available() and family in ("llama", "mistral", "qwen2", "qwen3")
        expected, got = whole(streams, TOKENS[:committed]), of_a_round(streams, session, path[-1])
        # Fused layers read their weights from bytes: to round a draft costs acceptance, never the output.
        assert (got - expected).norm() <= (0.08 if fused else 1e-3) * expected.norm()


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_a_mask_says_what_our_attention_says(family, monkeypatch):
    """Of many positions of two rows, in passes of three of them; bloom has the mask alone, so one by one."""
    streams, tokens = shaken(family, layers=2), torch.tensor([TOKENS[:20], TOKENS[5:25]])
    positions, following = torch.tensor([[0, 4, 5, 11, 19], [2, 3, 9, 10, 18]]), torch.full((2, 5), FOLLOWING)
    with torch.no_grad():
        main = streams.read(tokens)
        if family == "bloom":
            each = [streams.final_states(main, positions[:, at, None], following[:, :1]) for at in range(5)]
            expected = torch.cat(each, 1)
        else:
            expected = streams.final_states(main, positions, following)
        monkeypatch.setattr("specstream.heads.multistream._exchangeable", lambda model: False)
        monkeypatch.setattr("specstream.heads.multistream.MASKED_AT_ONCE", 3)
        got = streams.final_states(main, positions, following)
    assert got.shape == (2, 5, 3, 64)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


OTHERS = {
    "gptj": lambda: hf.GPTJConfig(
        vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, bos_token_id=None, eos_token_id=None
    ),
    "falcon": lambda: hf.FalconConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, bos_token_id=1, eos_token_id=1
    ),
    "bloom": lambda: hf.BloomConfig(
        vocab_size=VOCAB, hidden_size=64, n_layer=6, n_head=4
    ),  # enough to take a row of a row
    "bloom of one layer": lambda: hf.BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=1, n_head=4),
    "sinks": lambda: hf.GptOssConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        attn_implementation="eager",
    ),
}
"""Models whose attention cannot be exchanged, and whose layers return tensors, or tuples."""


@pytest.mark.parametrize("name", OTHERS)
def test_models_whose_attention_cannot_be_exchanged_carry_streams(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = hf.AutoModelForCausalLM.from_config(OTHERS[name]()).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        streams = Streams(model, StreamsConfig(gamma=3, layers=1, rank=4, pruning_rank=2))
        for parameter in streams.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    session = HuggingFaceTarget(model, runtime="eager").begin([TOKENS[:20]])
    session.tap([streams.first])
    tree = TokenTree.merge(TOKENS[20], [TOKENS[10:13], TOKENS[21:24]])
    logits = session.score([tree])[:, : len(tree)]  # what is behind is padding
    if streams.first:
        session.descend([tree], streams.first)
        torch.testing.assert_close(session.score([tree])[:, : len(tree)], logits)
    session.commit([[0, 4, 5]])
    expected, got = whole(streams, TOKENS[: session.cache.lengths[0]]), of_a_round(streams, session, 5)
    assert (got - expected).norm() <= 1e-3 * expected.norm()
    last: list[Tensor] = []
    streams._layers[-1].register_forward_hook(lambda *given: last.append(states_in(given[2])))
    with torch.no_grad():
        final = model.base_model(torch.tensor([TOKENS]), use_cache=False).last_hidden_state
        assert torch.equal(FinalNorm(model)(last[0]), final)


def states_in(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("runtime", ["eager", "auto", "static"])
@pytest.mark.parametrize("rows", [[1], [0, 2]], ids=str)
def test_some_rows_of_a_batch_have_the_streams_they_have_with_the_others(rows, runtime):
    streams = shaken("llama")
    session = HuggingFaceTarget(streams.model, runtime=runtime).begin([TOKENS[:20], TOKENS[3:9], TOKENS[5:18]])
    session.tap([streams.first])
    session.score([TokenTree.chain(TOKENS[20:23]), TokenTree.chain(TOKENS[9:11]), TokenTree.chain(TOKENS[18:19])])
    session.commit([[0, 1], [0, 1], [0]])
    asked = [(0, 1), (1, 1), (2, 0)], [FOLLOWING, FOLLOWING + 1, FOLLOWING + 2]
    every = streams.candidates(session, *asked, 4)
    some = streams.candidates(session, *([given[row] for row in rows] for given in asked), 4, rows)
    exact = runtime == "auto" and native.available()
    for row, own in zip(rows, some, strict=True):
        assert own.tokens == every[row].tokens
        assert not exact or own.chances == every[row].chances
    assert streams.candidates(session, *asked, 4)[1].tokens == every[1].tokens, "and what was there is there"


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
def test_rows_that_do_not_ask_have_no_nodes_in_our_kernels_pass(monkeypatch):
    streams, widths = shaken("llama"), []
    session = HuggingFaceTarget(streams.model).begin([TOKENS[:20], TOKENS[3:9], TOKENS[5:18]])
    session.tap([streams.first])
    session.score([TokenTree.chain([5])] * 3)
    session.commit([[0]] * 3)
    run = FusedTop.__call__

    def counting(top, hidden, *rest):
        widths.append(hidden.shape[:2])
        return run(top, hidden, *rest)

    monkeypatch.setattr(FusedTop, "__call__", counting)
    for rows in ([0, 2], [1], [0, 1, 2]):
        streams.candidates(session, [(row, 0) for row in rows], [FOLLOWING] * len(rows), 4, rows)
    assert widths == [(1, 6), (1, 3), (3, 3)]


@pytest.mark.parametrize("runtime", ["eager", "auto", "static"])
@pytest.mark.parametrize("settings", [{}, {"start": "linear", "chain_rank": 4}], ids=["plain", "chained"])
def test_the_first_streams_draft_the_same_without_the_later_ones(settings, runtime):
    streams, branched = shaken("llama", **settings), []
    session = HuggingFaceTarget(streams.model, runtime=runtime).begin([TOKENS[:20], TOKENS[3:9]])
    branch = session.branch
    session.branch = lambda hidden, *rest: branched.append(hidden.shape[1]) or branch(hidden, *rest)
    session.tap([streams.first])
    session.score([TokenTree.chain(TOKENS[20:23]), TokenTree.chain(TOKENS[9:11])])
    session.commit([[0, 1], [0, 1]])
    asked = [(0, 1), (1, 1)], [FOLLOWING, FOLLOWING + 1], 4
    every = streams.candidates(session, *asked)
    exact = runtime == "auto" and native.available()
    for depth in (1, 2, 3, 9):
        for all_streams, own in zip(every, streams.candidates(session, *asked, depth=depth), strict=True):
            ours, theirs = own.tree(FOLLOWING, 15, 9), all_streams.tree(FOLLOWING, 15, min(depth, 3))
            assert (len(own.tokens), ours.tokens) == (min(depth, 3), theirs.tokens)
            assert ours.survival == (theirs.survival if exact else pytest.approx(theirs.survival, rel=1e-2))
    assert branched == [3, 1, 2, 3, 3], "later streams are not run"


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_our_kernels_compute_the_streams_of_the_rounded_weights(family):
    streams = shaken(family)
    session = HuggingFaceTarget(streams.model).begin([TOKENS[:20]])
    session.tap([streams.first])
    session.score([TokenTree.chain(TOKENS[20:23])])
    session.commit([range(3)])
    got = of_a_round(streams, session, 2)
    weights = merged(upper_linears(streams.model, streams.first), streams.adapter())
    swaps = [(linear, rounded(linear, weight)) for linear, weight in weights.items()]
    with torch.no_grad():
        main = streams.read(torch.tensor([TOKENS[:23]]))
        hidden = main.states[:, -1:, None] + streams.embeddings
        at = torch.tensor([[22]])
        expected = run_streams(streams.model, streams._family, streams._layers, main, hidden, at, swaps)[0, 0]
    assert (got - expected).norm() <= 1e-3 * expected.norm()


def rounded(linear, weight):
    rounded = restored(quantized.quantize(weight))
    return lambda x: torch.nn.functional.linear(rounded_input(x) if native.available() else x, rounded, linear.bias)


@pytest.mark.parametrize("runtime", ["eager", "auto", "static"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom"])
def test_a_branch_leaves_nothing_behind(family, runtime):
    """The cache is what it was, and what is scored next has the bits that it has without streams."""
    streams = shaken(family)
    prefixes, trees = [TOKENS[:20], TOKENS[:9]], [TokenTree.merge(TOKENS[20], [TOKENS[21:23], TOKENS[11:13]])] * 2
    target, logits, caches = HuggingFaceTarget(streams.model, runtime=runtime), [], []
    for streaming in (True, False):
        session = target.begin(prefixes)
        if streaming:
            session.tap([streams.first])
        scored = [session.score(trees)]
        session.commit([[0, 3, 4], [0, 1]])
        if streaming:
            streams.candidates(session, [(0, 4), (1, 1)], [5, 5], 3)
            streams.candidates(session, [(1, 1)], [5], 3, [1])
        scored.append(session.score([TokenTree.chain([5])] * 2))
        session.commit([[0]] * 2)
        caches.append([layer[:, :, :24].clone() for layer in session.cache._buffers.values()])
        logits.append(scored)
    for ours, theirs in zip(*logits, strict=True):
        assert torch.equal(ours, theirs)
    lengths = session.cache.lengths
    for ours, theirs in zip(*caches, strict=True):
        for row, length in enumerate(lengths):
            assert torch.equal(ours[row, :, :length], theirs[row, :, :length])


def drafts(*arguments):
    """Tokens for every row, depth and rank; what is said of them has to be how likely they are."""
    streams, *asked = arguments
    drafted = streams.candidates(*asked)
    chances = torch.tensor([each.chances for each in drafted])
    assert (chances.diff(dim=-1) <= 0).all() and (chances > 0).all() and (chances.sum(-1) <= 1.001).all()
    return [each.tokens for each in drafted]


def test_rows_of_a_batch_draft_as_they_do_alone():
    streams = shaken("llama")
    target = HuggingFaceTarget(streams.model, runtime="eager")
    prefixes, nodes = [TOKENS[:20], TOKENS[3:12], TOKENS[:1]], [2, 0, 1]
    together = target.begin(prefixes)
    together.tap([streams.first])
    together.score([TokenTree.chain([5, 6, 7])] * 3)
    together.commit([range(node + 1) for node in nodes])
    drafted = drafts(streams, together, list(enumerate(nodes)), [FOLLOWING] * 3, 4)
    assert [[len(set(best)) for best in row] for row in drafted] == [[4] * 3] * 3
    together.keep([2, 0])
    assert drafts(streams, together, [(2, 1), (0, 2)], [FOLLOWING] * 2, 4) == [drafted[2], drafted[0]]
    for row, prefix in enumerate(prefixes):
        alone = target.begin([prefix])
        alone.tap([streams.first])
        alone.score([TokenTree.chain([5, 6, 7])])
        alone.commit([range(nodes[row] + 1)])
        assert drafts(streams, alone, [(0, nodes[row])], [FOLLOWING], 4) == [drafted[row]]


@pytest.mark.parametrize("gated", [False, True], ids=["map", "gated map"])
def test_what_a_stream_says_depends_on_the_token_before_as_in_training(gated, monkeypatch):
    """All of the vocabulary is weighed again, so the chances are those of the changed states."""
    monkeypatch.setattr(Streams, "_in_bytes", lambda streams: False)
    streams, kept = shaken("llama", chain_rank=4, chain_gate=gated), list(range(3, 43))
    streams.vocabulary = torch.tensor(kept)
    session = HuggingFaceTarget(streams.model, runtime="eager").begin([TOKENS[:20]])
    session.tap([streams.first])
    session.score([TokenTree.chain(TOKENS[20:23])])
    session.commit([[0, 1, 2]])
    (drafted,) = streams.candidates(session, [(0, 2)], [FOLLOWING], 10)
    final, weight = whole(streams, TOKENS[:23]), streams.head()[0]
    for at in range(3):
        for rank in (0, 5) if at else (0,):
            before = torch.full((1, 1, 2), drafted.tokens[at - 1][rank] if at else 0)
            with torch.no_grad():
                chances = (streams.chained(final[None, None], before)[0, 0, at] @ weight.T).softmax(0)
            chance, best = chances.topk(10)
            found = drafted.behind(at, rank)
            assert [drafted.tokens[at][each] for _, each in found] == [kept[each] for each in best]
            assert [each for each, _ in found] == pytest.approx(chance.tolist(), rel=1e-3)


@pytest.mark.parametrize("gated", [False, True], ids=["map", "gated map"])
def test_a_chain_begins_as_none_and_comes_back_from_a_folder(gated, tmp_path):
    streams = shaken("llama", chain_gate=gated)
    final, before = torch.randn(1, 2, 3, 64), torch.tensor([[[5, 6], [7, 8]]])
    streams.add_chain(4)
    assert torch.equal(streams.chained(final, before), final)
    with torch.no_grad():
        for parameter in streams.chain.parameters():
            parameter.normal_()
    streams.save(tmp_path, dtype=torch.float32)
    again = Streams.from_pretrained(tmp_path, streams.model)
    assert again.config.chain_rank == 4
    changed = again.chained(final, before)
    assert torch.equal(changed, streams.chained(final, before))
    assert torch.equal(changed[:, :, 0], final[:, :, 0]) and not torch.equal(changed[:, :, 1:], final[:, :, 1:])


@pytest.mark.parametrize("start", ["linear", "identity"])
def test_more_streams_leave_those_there_are_as_they_are_and_begin_as_the_last(start):
    streams = shaken("llama", start=start)
    before, was = whole(streams, TOKENS), streams.extra_parameters
    streams.add_streams(5)
    assert streams.gamma == streams.config.gamma == 5 and streams.extra_parameters > was
    after = whole(streams, TOKENS)
    torch.testing.assert_close(after[:3], before)
    assert not torch.equal(after[3], after[2])  # its place is another
    assert all(torch.equal(each, streams.embeddings[2]) for each in streams.embeddings[3:])
    with pytest.raises(UsageError, match="gamma is 4 and these streams are 5"):
        streams.add_streams(4)


def test_a_linear_start_knows_the_token_behind_and_the_identity_does_not():
    for start, differs in (("linear", True), ("identity", False)):
        streams = shaken("llama", start=start)
        session = HuggingFaceTarget(streams.model, runtime="eager").begin([TOKENS[:20]] * 2)
        session.tap([streams.first])
        session.score([TokenTree.chain(TOKENS[20:23])] * 2)
        session.commit([[0, 1]] * 2)
        drafted = drafts(streams, session, [(0, 1), (1, 1)], [FOLLOWING, 5], 5)
        assert (drafted[0] != drafted[1]) is differs


def test_without_a_cache_streams_are_the_same():
    streams = shaken("llama")
    target, drafted = HuggingFaceTarget(streams.model, runtime="eager"), []
    for each in (target, UncachedTarget(target)):
        session = each.begin([TOKENS[:20]])
        session.tap([streams.first])
        session.score([TokenTree.chain(TOKENS[20:23])])
        session.commit([[0, 1]])
        drafted.append(drafts(streams, session, [(0, 1)], [FOLLOWING], 5))
    assert drafted[0] == drafted[1]


def test_untrained_streams_are_the_models_own_layers():
    """A stream whose embedding is zero starts as the main stream, at other positions."""
    streams = Streams(build("gpt2"), StreamsConfig(gamma=2, layers=1, rank=4))
    streams.embeddings.data.zero_()
    with torch.no_grad():
        main = streams.read(torch.tensor([TOKENS]))
        final = streams.final_states(main, torch.tensor([[28]]), torch.tensor([[FOLLOWING]]))[0, 0]
        plain = Streams(build("gpt2"), StreamsConfig(gamma=2, layers=1, rank=0))
        plain.embeddings.data.zero_()
        assert torch.equal(final, plain.final_states(main, torch.tensor([[28]]), torch.tensor([[FOLLOWING]]))[0, 0])


def test_the_base_is_no_part_of_the_streams():
    model = build("llama")
    streams = Streams(model, StreamsConfig(gamma=3, layers=1, rank=4))
    own = {id(parameter) for parameter in model.parameters()}
    assert not own & {id(parameter) for parameter in streams.parameters()}
    hidden, inner, kv = 64, 96, 32
    changed = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner)
    assert streams.extra_parameters == 3 * hidden + 4 * changed
    before = [parameter.clone() for parameter in model.parameters()]
    total, _ = stream_loss(streams, torch.tensor([TOKENS]), torch.ones(1, 30, dtype=torch.bool))
    total.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is not None for parameter in streams.parameters())


def test_smollm2_would_get_less_than_one_percent():
    hidden, inner, kv, vocabulary, layers = 576, 1536, 192, 49152, 30
    base = vocabulary * hidden + layers * (2 * hidden * (hidden + kv) + 3 * hidden * inner + 2 * hidden) + hidden
    changed = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner)
    assert 0.0072 < (4 * hidden + 6 * 16 * changed) / base < 0.0074


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ()])
def test_only_the_chosen_linear_layers_are_changed(targets):
    streams = Streams(build("llama"), StreamsConfig(gamma=2, layers=1, rank=2, targets=targets))
    names = {name.rpartition(".")[2] for name in streams.adapter().changes}
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names == (set(targets) or everything)
    assert all(name.startswith("1.") for name in streams.adapter().changes)


@pytest.mark.parametrize("vocabulary", [None, range(5, 60)])
def test_what_it_writes_it_reads(tmp_path, vocabulary):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        streams = Streams(build("llama"), StreamsConfig(gamma=3, layers=2, rank=4, pruning_rank=2), vocabulary)
        for parameter in streams.parameters():
            parameter.data.add_(torch.randn_like(parameter))
    streams.save(tmp_path / "heads", dtype=torch.float32, data={"examples": 7}, figures={"accepted": 2.5})
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "heads").iterdir()}
    assert modes["heads.safetensors"] == modes["config.json"]
    assert len(modes) == 2
    again = Streams.from_pretrained(tmp_path / "heads", build("llama"))
    assert again.config == streams.config
    assert again.details == {"data": {"examples": 7}, "figures": {"accepted": 2.5}}
    assert again.state_dict().keys() == streams.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in streams.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_fingerprint_is_of_the_weights_and_not_of_their_dtype():
    bf16 = build("llama", torch.bfloat16)
    wide = build.__wrapped__("llama", torch.bfloat16).float()
    assert fingerprint(bf16) == fingerprint(wide)
    assert fingerprint(bf16) != fingerprint(build("qwen2", torch.bfloat16))
    tuned = build.__wrapped__("llama", torch.bfloat16)
    tuned.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)
    assert fingerprint(bf16) != fingerprint(tuned)


def test_heads_of_another_base_are_refused_by_name(tmp_path):
    Streams(build("llama"), StreamsConfig(layers=1)).save(tmp_path)
    with pytest.raises(
        HeadMismatchError, match=r"belong to llama \(\w{16}\) and the model is mistral \(\w{16}\); give"
    ):
        Streams.from_pretrained(tmp_path, build("mistral"))
    with pytest.raises(ModelNotFoundError, match="no heads in"):
        Streams.from_pretrained(tmp_path / "nothing", build("llama"))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    streams = Streams(build("llama"), StreamsConfig(layers=1))
    streams.embeddings.data[0, 0] = torch.nan
    streams.save(tmp_path)
    with pytest.raises(NumericalError, match="NaN or infinity"):
        Streams.from_pretrained(tmp_path, build("llama"))


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="layers is 3 and the model has 2"):
        Streams(build("llama"), StreamsConfig(layers=3))
    with pytest.raises(UsageError, match="gamma is 0; give a whole number from 1 on"):
        StreamsConfig(gamma=0)
    with pytest.raises(UsageError, match="targets has 'c_attn'"):
        Streams(build("llama"), StreamsConfig(layers=1, targets=("q_proj", "c_attn")))
