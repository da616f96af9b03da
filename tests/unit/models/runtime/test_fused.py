"""Whole layers in one kernel call: the model's own logits, and only where the layer is what its class made it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specstream.core.tree import TokenTree
from specstream.drafters.none import NoDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.invariance.tolerance import tolerance
from specstream.models.runtime import native
from specstream.models.runtime.fused import Rotations
from specstream.models.runtime.runtime import Runtime
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.decoding import run
from tests.lossless.families import VOCAB, build

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

FUSED = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = torch.randint(2, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def fused_layers(model) -> int:
    runtime = Runtime(model, "native")
    return sum(type(module).__name__.endswith("DecoderLayer") for module, _ in runtime._planned_swaps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUSED)
def test_a_tree_is_scored_as_the_model_scores_its_paths(family, dtype):
    model = build(family, dtype)
    assert fused_layers(model) == model.config.num_hidden_layers
    tree = TokenTree.merge(TOKENS[20], [TOKENS[21:25], TOKENS[30:33]])
    scored = HuggingFaceTarget(model, runtime="native").begin_unpadded([TOKENS[:20]]).score([tree])[0].float()
    for node in range(len(tree)):
        path = [*TOKENS[:20], *(tree.tokens[at] for at in tree.path(node))]
        with torch.inference_mode():
            own = model(torch.tensor([path])).logits[0, -1].float()
        assert (scored[node] - own).norm() <= tolerance(dtype) * own.norm()


@pytest.mark.parametrize("family", FUSED)
def test_rows_of_a_batch_write_their_own_cache(family):
    target = HuggingFaceTarget(build(family), runtime="native")
    prefixes = [TOKENS[:9], TOKENS[5:30], TOKENS[2:4]]
    trees = [TokenTree.chain(TOKENS[at : at + 3]) for at in (9, 30, 4)]
    batch = target.begin_unpadded(prefixes)
    together = batch.score(trees)
    batch.commit([range(3)] * 3)
    after = batch.score([TokenTree.chain([7])] * 3)
    for row, (prefix, tree) in enumerate(zip(prefixes, trees, strict=True)):
        alone = target.begin_unpadded([prefix])
        assert torch.equal(alone.score([tree])[0], together[row])
        alone.commit([range(3)])
        assert torch.equal(alone.score([TokenTree.chain([7])])[0, 0], after[row, 0])


@pytest.mark.parametrize("family", ["gemma2", "phi", "gpt2"])
def test_layers_of_another_kind_are_left_alone(family):
    assert fused_layers(build(family)) == 0


def test_a_layer_with_something_inside_is_left_alone():
    model = build.__wrapped__("llama")
    with_hook, with_adapter = model.model.layers
    with_hook.mlp.register_forward_hook(lambda module, arguments, output: output * 2)

    class Adapter(nn.Linear):
        pass

    with_adapter.self_attn.q_proj = Adapter(64, 64, bias=False)
    assert fused_layers(model) == 0


def test_a_model_that_was_once_asked_for_hidden_states_keeps_our_kernel():
    """transformers leaves hooks of its own behind, in the layers and in their attention."""
    model = build.__wrapped__("llama")
    with torch.inference_mode():
        model(torch.tensor([TOKENS[:8]]), output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())
    assert fused_layers(model) == len(model.model.layers)
    target = HuggingFaceTarget(model, runtime="native")
    assert target.runtime.ragged


@pytest.mark.parametrize("hooked", ["mlp", "self_attn"])
def test_a_hook_that_comes_between_costs_speed_and_no_tokens(hooked):
    """Streams' passes begin at an upper layer: their kernel is chosen at the first one, long after the runtime."""
    model, seen = build.__wrapped__("llama"), []
    expected = run(HuggingFaceTarget(model, runtime="native"), NoDrafter(), [TOKENS[:12]], 8)[0].emitted
    target = HuggingFaceTarget(model, runtime="native")
    getattr(model.model.layers[-1], hooked).register_forward_hook(lambda *given: seen.append(1))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        streams = Streams(model, StreamsConfig(gamma=2, layers=1, rank=4))
    (row,) = run(target, StreamsDrafter(streams, nodes=4, most=4, ranks=2), [TOKENS[:12]], 8)
    assert row.emitted == expected
    assert seen


def test_a_look_alike_is_left_alone():
    """Granite's layers have the same parts and multiply their residuals."""
    import transformers

    config = transformers.GraniteConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    assert fused_layers(transformers.GraniteForCausalLM(config).eval()) == 0


def test_layers_run_together_unless_somebody_watches_one():
    model, seen = build.__wrapped__("llama"), []
    tree = TokenTree.chain(TOKENS[20:23])
    target = HuggingFaceTarget(model, runtime="native")
    together = target.begin_unpadded([TOKENS[:20]]).score([tree])
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, arguments, output: seen.append(output.clone()))
    target.refresh()
    session = target.begin_unpadded([TOKENS[:20]])
    seen.clear()
    alone = session.score([tree])
    assert torch.equal(together, alone)
    assert len(seen) == 2
    assert not torch.equal(*seen)
    with torch.inference_mode():
        own = model(torch.tensor([TOKENS[:23]]), output_hidden_states=True).hidden_states[1][:, 20:]
    assert torch.allclose(seen[0], own, atol=1e-4)


def passes_of(target, states=None):
    session = target.begin_unpadded([TOKENS[:20]])
    if states:
        session.tap(states)
    logits = session.score([TokenTree.merge(TOKENS[20], [TOKENS[21:25], TOKENS[30:33]])])
    return logits, [session.states(layer) for layer in states or ()]


@pytest.mark.parametrize("family", FUSED)
def test_from_tokens_to_logits_has_the_bits_of_the_models_own_forward(family):
    """Such passes and others (prompts) belong to one text."""
    target = HuggingFaceTarget(build(family, torch.bfloat16), runtime="native")
    layers = range(target.model.config.num_hidden_layers + 1)
    assert target.runtime.whole is not None
    logits, states = passes_of(target, layers)
    target.runtime.whole = None
    own, kept = passes_of(target, layers)
    assert torch.equal(logits, own)
    assert all(map(torch.equal, states, kept))


@pytest.mark.parametrize("part", ["self", "model", "layer", "lm_head", "norm"])
def test_a_hook_is_called_wherever_it_hangs(part):
    model = build.__wrapped__("llama")
    target, seen = HuggingFaceTarget(model, runtime="native"), []
    parts = {"self": model, "layer": model.model.layers[1], "norm": model.model.norm}
    module = parts.get(part) or getattr(model, part)
    module.register_forward_hook(lambda *_: seen.append(part))
    target.refresh()
    session = target.begin_unpadded([TOKENS[:20]])
    before = len(seen)
    session.score([TokenTree.chain([1])])
    assert len(seen) > before


def test_a_model_with_more_around_its_layers_runs_its_own_forward():
    class Scaled(type(build("llama"))):
        pass

    model = build.__wrapped__("llama")
    model.__class__ = Scaled
    assert Runtime(model, "native").whole is None


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn", "dynamic"])
def test_rotations_are_the_models_own(kind):
    settings = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "llama3":
        settings |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind != "default":
        settings |= {"original_max_position_embeddings": 64}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=64, rope_parameters=settings)
    rotary, again = LlamaRotaryEmbedding(config), LlamaRotaryEmbedding(config)
    rotations = Rotations(again)
    for last in (5, 30, 63, 700, 5000, 40):  # the table grows, and what grew stays right
        positions = torch.tensor([[0, last // 2, last], [3, last, 1]])
        for dtype in (torch.bfloat16, torch.float32):
            expected = rotary(torch.zeros(2, 3, 1, dtype=dtype), position_ids=positions)
            found = rotations(torch.zeros(2, 3, 1, dtype=dtype), positions)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
