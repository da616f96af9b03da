"""Quantised checkpoints on our kernels: every weight is the formula's, and mistakes are refused at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from specstream.errors import ModelNotFoundError, UnsupportedModelError
from specstream.models.architecture.blocks import BlockTensor, source_of
from specstream.models.hub.load import load_model
from specstream.models.hub.packed import Grouped, blocks_of
from specstream.models.hub.schemes import Scheme, read_scheme, stored_as
from specstream.models.runtime import native
from specstream.models.runtime.quantized import linear, of_blocks
from specstream.models.target.hf import HuggingFaceTarget
from tests.quantized_files import WAYS, Way, settings_of, write_quantized

LAYER = "model.layers.1.mlp.down_proj"
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def plain() -> LlamaForCausalLM:
    return llama()


def llama(**more: Any) -> LlamaForCausalLM:
    own = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": False, **more}
    config = LlamaConfig(
        vocab_size=300,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        **own,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", WAYS)
def test_every_weight_is_the_formulas(name: str, plain: Any, tmp_path: Path) -> None:
    way = WAYS[name]
    expected = write_quantized(tmp_path / "a", plain, way)
    model, _ = load_model(str(tmp_path / "a"), dtype="float32")
    for layer, wanted in expected.items():
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, BlockTensor)
        assert (weight.kind, weight.source) == ("Q4_1" if way.bits == 4 else "Q8_0", way.method)
        assert torch.all((weight.dequantized() - wanted).abs() <= allowed(wanted, way))
    others = {name: each for name, each in model.named_parameters() if not isinstance(each, BlockTensor)}
    assert len(others) == len(dict(plain.named_parameters())) - len(expected)
    for other, numbers in others.items():
        assert torch.equal(numbers, plain.get_parameter(other).to(way.dtype).float())
    assert source_of(model) == stored_as(tmp_path / "a") == way.method
    assert not hasattr(model.config, "quantization_config")


def allowed(weights: Tensor, way: Way) -> Tensor:
    """By how much a weight may differ: not at all, but for the rounding of what is added to a group of four bits."""
    if way.bits == 8 or way.symmetric:
        return torch.zeros(())
    most = weights.abs().view(len(weights), -1, way.group or weights.shape[1]).amax(-1)
    return (most / 128).repeat_interleave(weights.shape[1] // most.shape[1], 1)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", ["awq-32", "gptq-8", "ct-32", "ct-bytes"])
def test_kernels_and_numbers_say_the_same(name: str, plain: Any, tmp_path: Path) -> None:
    expected = write_quantized(tmp_path / "a", plain, WAYS[name])
    model, _ = load_model(str(tmp_path / "a"), dtype="float32")
    target = HuggingFaceTarget(model)
    assert target.runtime.name == f"native-{WAYS[name].method}"
    reference = llama()
    reference.load_state_dict(
        plain.state_dict() | {n: e.half().float() for n, e in plain.state_dict().items()}
        | {f"{layer}.weight": weight for layer, weight in expected.items()}
    )  # fmt: skip
    with torch.no_grad():
        wanted = reference(IDS).logits
        eager = model(IDS).logits
        with target.runtime.kernels():
            ours = target.view(IDS).logits
    assert (eager - wanted).norm() < 0.01 * wanted.norm()
    assert (ours - eager).norm() < 0.05 * wanted.norm()  # inputs have 8 bits in the kernels


def test_a_tied_head_and_generation_settings_are_kept(tmp_path: Path) -> None:
    own = llama(tie_word_embeddings=True)
    own.generation_config.eos_token_id = [0, 7]
    write_quantized(tmp_path / "a", own, WAYS["awq-32"])
    model, _ = load_model(str(tmp_path / "a"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == [0, 7]


def test_weights_in_several_files_are_read(plain: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_quantized(folder, plain, WAYS["gptq-v1"])
    tensors = load_file(folder / "model.safetensors")
    parts = [{n: e for n, e in tensors.items() if ("layers.1" in n) == second} for second in (False, True)]
    for at, part in enumerate(parts):
        save_file(part, folder / f"part-{at}.safetensors", {"format": "pt"})
    index = {"weight_map": {name: f"part-{at}.safetensors" for at, part in enumerate(parts) for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert source_of(load_model(str(folder))[0]) == "gptq"
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"files of weights part-1\.safetensors is missing: copy"):
        load_model(str(folder))


AWQ, GPTQ, CT = (settings_of(WAYS[name]) for name in ("awq-32", "gptq-v1", "ct-32"))


def ct(**weights: Any) -> dict[str, Any]:
    """Settings of compressed-tensors whose weights have others."""
    (group,) = CT["config_groups"].values()
    return {**CT, "config_groups": {"group_0": {**group, "weights": {**group["weights"], **weights}}}}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**AWQ, "version": "gemv"}, "its AWQ version is 'gemv', and our kernels read gemm"),
        ({**AWQ, "bits": 3}, "its AWQ weights have 3 bits, and our kernels read 4"),
        ({**AWQ, "group_size": 16}, "its groups are of 16 weights, and our kernels read multiples of 32"),
        ({**GPTQ, "desc_act": True}, r"its GPTQ groups are in the order of activations \(desc_act\)"),
        ({**GPTQ, "bits": 3}, "its GPTQ weights have 3 bits, and our kernels read 4 and 8"),
        ({**GPTQ, "bits": 8}, "its 8-bit weights have zero points, and our kernels read symmetric ones"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "its GPTQ checkpoint_format is 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "its GPTQ checkpoint_format is 'marlin'"),
        ({**GPTQ, "dynamic": {"-:lm": {}}}, r"its GPTQ settings differ by layer \(dynamic\)"),
        (ct(type="float", num_bits=8), "its weights are float8, and our kernels read int4 and int8"),
        (ct(num_bits=3), "its weights are int3"),
        (ct(actorder="group"), r"its groups are in the order of activations \(actorder\)"),
        (ct(strategy="tensor"), "its scales are by tensor, and our kernels read those by group and by channel"),
        ({**CT, "format": "marlin-24"}, "its format is 'marlin-24'"),
        ({**CT, "kv_cache_scheme": {"num_bits": 8}}, "it has a kv_cache_scheme"),
        ({**CT, "config_groups": {"a": {**ct()["config_groups"]["group_0"], "input_activations": {}}}}, None),
        ({**CT, "config_groups": {"a": {**ct()["config_groups"]["group_0"], "input_activations": {"x": 8}}}}, "activ"),
        ({**CT, "config_groups": None}, "its quantization_config is not understood"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "no kernels of ours read bitsandbytes"),
        ({"load_in_8bit": True}, "no kernels of ours read bitsandbytes"),
    ],
)
def test_what_our_kernels_do_not_read_is_left_to_transformers(settings: dict[str, Any], reason: str | None) -> None:
    found = read_scheme(settings, "x")
    if reason is None:
        assert isinstance(found, Scheme)
    else:
        assert isinstance(found, str)
        assert re.search(reason, found)


def test_an_unknown_method_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"has quant_method 'gtpq' in its config\.json, .*did you mean 'gptq'"
    ):
        read_scheme({"quant_method": "gtpq"}, "x")
    with pytest.raises(UnsupportedModelError, match=r"'x' has no quant_method in the quantization_config of"):
        read_scheme({"bits": 4}, "x")


def without(*parts: str) -> Any:
    return lambda tensors: [tensors.pop(f"{LAYER}.{part}") for part in parts]


def with_(part: str, value: Tensor) -> Any:
    return lambda tensors: tensors.update({f"{LAYER}.{part}": value})


@pytest.mark.parametrize(
    ("way", "change", "settings", "words"),
    [
        ("awq-32", without("scales"), {}, rf"lacks {LAYER}\.scales; copy or download it again"),
        ("gptq-v1", without("qweight"), {}, rf"lacks {LAYER}\.qweight; copy"),
        ("ct-32", without("weight_scale"), {}, rf"lacks {LAYER}\.weight_scale; copy"),
        (
            "ct-bytes",
            without("weight_scale"),
            {},
            rf"has {LAYER}\.weight of shape \[128, 256\] in I8, where .* in F16 or",
        ),
        (
            "awq-32",
            lambda tensors: tensors.pop("model.norm.weight"),
            {},
            r"lacks model\.norm\.weight and 0 more tensors",
        ),
        (
            *("gptq-v1", lambda tensors: None, {"group_size": 64}),
            r"has model\.\S+\.scales of shape \[4, 128\] in F16, where \[2, 128\] in F16 or BF16 or F32 is needed; "
            "mend quantization_config, or copy",
        ),
        ("gptq-v1", with_("g_idx", torch.arange(255, -1, -1, dtype=torch.int32) // 32), {}, "g_idx is not in order"),
        ("awq-32", with_("scales", torch.full((8, 128), 60000.0).half()), {}, "a scale is beyond float16's 65,504"),
        ("gptq-8", with_("qzeros", torch.zeros(8, 32, dtype=torch.int32)), {}, "zero points of 8 bits differ from 128"),
        ("awq-32", with_("qweight", torch.zeros(256, 16)), {}, r"qweight of shape \[256, 16\] in F32, where .* in I32"),
    ],
)
def test_what_does_not_fit_is_refused(
    way: str, change: Any, settings: Any, words: str, plain: Any, tmp_path: Path
) -> None:
    write_quantized(tmp_path / "a", plain, WAYS[way], change=change, settings=settings)
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        load_model(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "said", "words"),
    [
        (("gptq-v1", lambda tensors: None, {"desc_act": True}), r"\(desc_act\)", r"pip install optimum"),
        (("awq-32", lambda tensors: None, {"version": "gemv"}), "'gemv'", r"pip install gptqmodel"),
        (("ct-32", with_("k_scale", torch.ones(1)), {}), rf"it has {LAYER}\.k_scale, for", "pip install compressed"),
        (("gptq-v1", with_("bias", torch.ones(128)), {}), rf"it has {LAYER}\.bias, for which", r"pip install optimum"),
    ],
)
def test_what_our_kernels_cannot_run_needs_the_library(
    case: tuple[str, Any, Any], said: str, words: str, plain: Any, tmp_path: Path, capsys: Any
) -> None:
    way, change, settings = case
    write_quantized(tmp_path / "a", plain, WAYS[way], change=change, settings=settings)
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        load_model(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)
    err = capsys.readouterr().err
    assert "is left to transformers: " in err
    assert re.search(said, err)


def test_inputs_that_are_no_multiple_of_32_are_left_to_transformers(tmp_path: Path, capsys: Any) -> None:
    write_quantized(tmp_path / "a", llama(intermediate_size=80), WAYS["gptq-sym-channel"])
    with pytest.raises(ModelNotFoundError, match="pip install optimum"):
        load_model(str(tmp_path / "a"))
    assert "down_proj has 80 inputs, no multiple of 32" in capsys.readouterr().err


def test_scales_of_bfloat16_are_rounded_to_float16() -> None:
    scales = torch.tensor([[0.0123], [2.1e-6]]).bfloat16()
    numbers, zeros = torch.full((2, 32), 9, dtype=torch.uint8), torch.full((2, 1), 8, dtype=torch.uint8)
    kind, blocks = blocks_of(Grouped(numbers, scales, zeros), 4)
    found = BlockTensor(blocks, kind, torch.float32).dequantized()[:, 0]
    assert found[0] == scales[0].float()
    assert 0 < abs(found[1] - scales[1].float()) <= 3e-8


def test_a_layer_that_is_not_quantised_stays_numbers(plain: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for part in ("qweight", "qzeros", "scales"):
            tensors.pop(f"{LAYER}.{part}")
        tensors[f"{LAYER}.weight"] = plain.get_submodule(LAYER).weight.detach()

    write_quantized(tmp_path / "a", plain, WAYS["awq-32"], change=change)
    layer = load_model(str(tmp_path / "a"), dtype="float32")[0].get_submodule(LAYER)
    assert isinstance(layer, nn.Linear) and not isinstance(layer.weight, BlockTensor)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("numbers", [0, 255], ids=["least", "most"])
def test_kernels_have_room_for_the_ends_of_eight_bits(numbers: int) -> None:
    """Other formats leave -128 out: all sums are of the largest products here."""
    scales, zeros = torch.full((8, 8), 0.01).half(), torch.full((8, 8), 128, dtype=torch.uint8)
    found = Grouped(torch.full((8, 256), numbers, dtype=torch.uint8), scales, zeros)
    kind, blocks = blocks_of(found, 8)
    expected = 256 * 3.0 * (numbers - 128) * float(scales[0, 0])
    for rows in (1, 8):
        ours = linear(of_blocks(kind, blocks, 256), None)(torch.full((rows, 256), 3.0))
        assert torch.allclose(ours, torch.full((rows, 8), expected), rtol=1e-4)
