"""A target in fewer bits is another model, whose own output no draft changes; the first one's memory is given back."""

from __future__ import annotations

import copy

import pytest
import torch

from specstream import DeploymentConfig, LoRAAdapter, SpeculativeEngine, speculative_decode
from specstream.core.tree import TokenTree
from specstream.errors import UsageError
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams, StreamsConfig
from specstream.models.runtime import native
from specstream.models.runtime.blocks import Layout
from specstream.models.target.hf import HuggingFaceTarget
from specstream.serving.memory import needs
from tests.dequantized import restored, rounded_input
from tests.tiny import tiny_model

needs_kernels = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
BITS = ["int8", pytest.param("int4", marks=needs_kernels)]
PROMPTS = ["one two three four", "the quick brown fox"]


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def tokens_of(engine, count=24):
    return [result.token_ids for result in engine.generate(PROMPTS, max_new_tokens=count, ignore_eos=True)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("drafter", ["lookup", "streams", "self"])
def test_drafts_change_nothing_of_what_it_says(model, tokenizer, tmp_path, bits, drafter):
    settings = {"quantization": bits, "adaptive": False}
    if drafter == "streams":
        Streams(tiny_model(), StreamsConfig(gamma=2, layers=1)).save(tmp_path / "streams")
        settings["heads"] = str(tmp_path / "streams")
    draft = "self:int8" if drafter == "self" else None
    plain = SpeculativeEngine(model, tokenizer, drafter="none", quantization=bits)
    engine = SpeculativeEngine(model, tokenizer, draft, **settings)
    assert tokens_of(engine) == tokens_of(plain)
    assert engine.get_metrics()["mean_accepted_length"] > 1 or drafter != "self"


@pytest.mark.parametrize("bits", BITS)
def test_the_weights_that_were_copied_are_given_back_and_nothing_else_changes(folder, bits):
    engine = SpeculativeEngine(folder, quantization=bits, adaptive=False)
    before, said, size = engine.target.nbytes, tokens_of(engine), engine.target.num_parameters
    engine.release()
    assert tokens_of(engine) == said
    assert engine.target.nbytes < 0.8 * before
    assert engine.target.num_parameters == size
    assert engine.provenance()["quantization"] == bits
    assert engine.generate(PROMPTS[0], max_new_tokens=2).runtime.endswith(bits)


def test_streams_draft_after_the_weights_they_were_made_of_were_given_back(folder, tmp_path):
    Streams(tiny_model(), StreamsConfig(gamma=2, layers=1)).save(tmp_path / "streams")
    plain = SpeculativeEngine(folder, drafter="none", quantization="int8")
    engine = SpeculativeEngine(folder, heads=str(tmp_path / "streams"), quantization="int8", adaptive=False)
    engine.release()
    assert tokens_of(engine) == tokens_of(plain)
    assert engine.get_metrics()["target_passes"] > 0


@pytest.mark.parametrize(
    ("draft", "settings", "why"),
    [
        (None, {}, "quantization is 'none'"),
        ("self:int8", {"quantization": "int8"}, "draft_model is 'self:int8', which is made of the same weights"),
    ],
)
def test_what_is_still_read_is_not_given_back(folder, draft, settings, why):
    engine = SpeculativeEngine(folder, draft_model=draft, adaptive=False, **settings)
    with pytest.raises(UsageError, match=why):
        engine.release()
    assert all(weight.numel() for weight in engine.model.parameters())


def test_nor_is_what_others_may_read(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, quantization="int8")
    with pytest.raises(UsageError, match="given as an object"):
        engine.release()
    assert all(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    "use",
    [
        lambda model, tokenizer, folder: model(torch.tensor([[1, 2]])),
        lambda model, tokenizer, folder: model.generate(torch.tensor([[1, 2]]), max_new_tokens=2),
        lambda model, tokenizer, folder: model.save_pretrained(folder),
        lambda model, tokenizer, folder: torch.save(model.state_dict(), f"{folder}/weights.pt"),
        lambda model, tokenizer, folder: SpeculativeEngine(model, tokenizer),
        lambda model, tokenizer, folder: SpeculativeEngine(tiny_model(), tokenizer, model),
        lambda model, tokenizer, folder: SpeculativeEngine(copy.deepcopy(model), tokenizer),
        lambda model, tokenizer, folder: speculative_decode(model, None, [[1, 2]], max_new_tokens=2),
        lambda model, tokenizer, folder: Streams(model),
        lambda model, tokenizer, folder: MedusaHeads(model),
        lambda model, tokenizer, folder: LoRAAdapter(model, tokenizer),
    ],
)
def test_whoever_asks_for_weights_that_were_given_back_is_told_so(tokenizer, folder, tmp_path, use):
    engine = SpeculativeEngine(folder, quantization="int8")
    engine.release()
    with pytest.raises(UsageError, match=r"given back by release\(\); load it again"):
        use(engine.model, tokenizer, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert tokens_of(engine, 4)


def test_a_model_that_was_changed_is_copied_anew(tokenizer):
    changing = tiny_model()
    engine = SpeculativeEngine(changing, tokenizer, quantization="int8", adaptive=False)
    before = tokens_of(engine)
    with torch.no_grad():
        for name, weight in changing.named_parameters():
            if "mlp" in name:
                weight.neg_()
    fresh = SpeculativeEngine(changing, tokenizer, drafter="none", quantization="int8")
    assert tokens_of(engine) == tokens_of(fresh) != before


@needs_kernels
def test_the_head_of_four_bits_has_eight(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, quantization="int4")
    head = model.get_output_embeddings()
    bits = {module is head: weight.layout for module, weight in engine.target.runtime._weights.items()}
    assert bits == {True: Layout.BYTES32, False: Layout.NIBBLES32} or not engine.target.runtime._weights.get(head)


@pytest.mark.parametrize("bits", BITS)
def test_it_is_the_model_of_the_rounded_weights(bits):
    """By transformers itself, with what the copies stand for in the place of the weights."""
    own, rounded = tiny_model(), tiny_model()
    target = HuggingFaceTarget(own, quantization=bits, head="int8")
    copies = {
        name: target.runtime._weights[module] for name, module in target.view.named_modules() if _copied(target, module)
    }
    with torch.no_grad():
        for name, module in rounded.named_modules():
            if name in copies:
                module.weight = torch.nn.Parameter(restored(copies[name]).to(module.weight.dtype))
                if native.available():
                    module.register_forward_pre_hook(
                        lambda module, inputs: (rounded_input(inputs[0]).to(inputs[0].dtype),)
                    )
        tokens = list(range(3, 40))
        truth = rounded(torch.tensor([tokens])).logits[0, -1]
        full = own(torch.tensor([tokens])).logits[0, -1]
    scored = target.begin([tokens[:-1]]).score([TokenTree.chain(tokens[-1:])])[0, 0]
    assert len(copies) > 7
    assert (scored - truth).norm() < 0.002 * truth.norm() < (full - truth).norm()


def _copied(target, module):
    return module in target.runtime._weights


def test_functions_take_it_too(model, tokenizer):
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    given, _ = speculative_decode(model, None, [prompt], max_new_tokens=12, quantization="int8", drafter="lookup")
    (plain,) = (
        SpeculativeEngine(model, tokenizer, drafter="none", quantization="int8").generate([prompt], max_new_tokens=12),
    )
    assert given[0, len(prompt) :].tolist() == plain[0].token_ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "int3"}, "quantization is 'int3'; give"),
        ({"load_in_8bit": True}, "unknown setting 'load_in_8bit'.*quantization"),
        ({"quantization": "int8", "dtype": torch.float64}, "dtype is"),
    ],
)
def test_what_it_cannot_be_is_refused(model, tokenizer, settings, message):
    with pytest.raises(UsageError, match=message):
        SpeculativeEngine(model, tokenizer, **settings)


def test_a_deployment_counts_the_copy(folder):
    sizes = {bits: needs(DeploymentConfig(model_name=folder, quantization=bits)).weights for bits in ("none", "int8")}
    assert 1 < sizes["int8"] / sizes["none"] < 1.6
