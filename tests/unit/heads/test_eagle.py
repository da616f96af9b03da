"""EAGLE-3 heads in both layouts: what a step says is what transformers' own layer says, and mistakes are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, OPTConfig, OPTForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from specstream.errors import HeadMismatchError, ModelNotFoundError, NumericalError, UnsupportedModelError
from specstream.heads import published
from specstream.heads.eagle import EagleHead
from specstream.heads.folder import kind_of, read_settings
from specstream.heads.published import Memory, read_weights
from specstream.models.hub import snapshots
from tests.lossless.families import build
from tests.published_heads import write_eagle

PART = list(range(0, 160, 3))


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture(autouse=True)
def _as_written(monkeypatch) -> None:
    monkeypatch.setattr(published, "in_bytes", lambda model: False)


def by_transformers(head: EagleHead, folder: Path, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Outputs at all positions, by a decoder layer of transformers with wider projections."""
    settings = read_settings(folder)
    inner = dict(settings.get("transformer_layer_config", settings))
    kind = inner.pop("model_type")
    inner.pop("architectures", None)
    config = AutoConfig.for_model(kind, **inner)
    config._attn_implementation = "eager"
    layer = {"llama": LlamaDecoderLayer, "qwen3": Qwen3DecoderLayer}[kind](config, 0)
    own = {name.replace("midlayer.", "layers.0."): each for name, each in read_weights(folder).items()}
    for name in "qkv":
        weight = own[f"layers.0.self_attn.{name}_proj.weight"]
        setattr(layer.self_attn, f"{name}_proj", torch.nn.Linear(*weight.shape[::-1], bias=False))
    layer.load_state_dict(
        {name.removeprefix("layers.0."): each for name, each in own.items() if name.startswith("layers.0.")},
        strict=False,
    )
    table = own.get("embed_tokens.weight", head.model.get_input_embeddings().weight)
    normed = torch.nn.functional.rms_norm(states, states.shape[-1:], own["layers.0.hidden_norm.weight"], 1e-5)
    length = len(tokens)
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    turn = LlamaRotaryEmbedding(config)(states[None], torch.arange(length)[None])
    x = torch.cat([layer.input_layernorm(table[tokens]), normed], -1)[None]
    seen = layer.self_attn(hidden_states=x, position_embeddings=turn, attention_mask=mask)[0][0]
    hidden = seen + (normed if settings.get("norm_before_residual") else states)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


SHAPES: dict[str, dict[str, Any]] = {
    "speculators": {},
    "of authors": {"layout": "authors", "drafted": PART},
    "qwen3": {"kind": "qwen3", "embeddings": True},
    "residual as it is, normed output": {"change": {"norm_before_residual": False, "norm_output": True}},
    "normed taps": {"change": {"norm_before_fc": True}, "taps": (1, 0)},
}


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_steps_are_those_of_a_layer_of_transformers_however_they_are_cut(model, tmp_path, shape) -> None:
    folder = write_eagle(tmp_path / "head", model, **SHAPES[shape])
    assert kind_of(folder) == "eagle3"
    head = EagleHead.from_pretrained(folder, model)
    random = torch.Generator().manual_seed(1)
    states = torch.randn(9, len(head.taps), model.config.hidden_size, generator=random)
    tokens = torch.randint(0, 160, (12,), generator=random)
    combined = head.combined(states)
    expected = by_transformers(head, folder, combined, tokens[:9])
    memory, other, found = Memory(), Memory(), list[torch.Tensor]()
    for start, end in ((0, 4), (4, 5), (5, 9)):  # another row's nodes stand behind in the same product
        nodes = torch.cat([combined[start:end], combined[:2]])
        known = torch.cat([tokens[start:end], tokens[:2]])
        positions = torch.cat([torch.arange(start, end), torch.arange(2)])
        other.length = 0
        outputs = head.step(nodes, known, positions, [(memory, end - start), (other, 2)])
        found.append(outputs[:-2])
        assert torch.allclose(outputs[-2:], expected[:2], atol=1e-5)
    assert torch.allclose(torch.cat(found), expected, atol=1e-5)
    fed, outputs = combined, expected
    for at in range(9, 12):  # drafted: what it says takes the place of the target's states
        fed = torch.cat([fed, head.fed_back(outputs[-1:])])
        outputs = by_transformers(head, folder, fed, tokens[: at + 1])
        step = head.step(fed[-1:], tokens[at : at + 1], torch.tensor([at]), [(memory, 1)])
        assert torch.allclose(step, outputs[-1:], atol=1e-5)
    ids = PART if shape == "of authors" else list(range(160))
    assert head.vocabulary.tolist() == ids and head.logits(outputs).shape == (12, len(ids))


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "layers": (
        {"change": {"transformer_layer_config": {"num_hidden_layers": 2}}},
        UnsupportedModelError,
        "has 2 layers",
    ),
    "window": (
        {"change": {"transformer_layer_config": {"layer_types": ["sliding_attention"]}}},
        UnsupportedModelError,
        "has 'sliding_attention', which is not read; give another head",
    ),
    "fc_norm": ({"change": {"fc_norm": True}}, UnsupportedModelError, "has 'fc_norm', which is not read; give another"),
    "taps": ({"taps": (0, 7)}, HeadMismatchError, r"of the layers \[0, 7\] and the model has 2 layers of 64; give the"),
    "vocabulary": (
        {"drafted": [*range(8), 400]},
        HeadMismatchError,
        "drafts the token 400 and the model has 160; give",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_does_not_fit_is_refused(model, tmp_path, case) -> None:
    given, error, message = MISTAKES[case]
    folder = write_eagle(tmp_path / "head", model, **given)
    with pytest.raises(error, match=message):
        EagleHead.from_pretrained(folder, model)


@pytest.mark.parametrize("part", [None, torch.tensor(PART)])
def test_a_fresh_head_is_read_as_it_was_saved(model, tmp_path, part) -> None:
    """In bfloat16, and by the names and offsets of speculators; for another base it is refused."""
    head = EagleHead.fresh(model, (0, 1), 3, part)
    head.details["rates"] = [[0.5]]
    head.save(tmp_path / "head")
    tensors = read_weights(tmp_path / "head")
    of_others = read_weights(
        write_eagle(tmp_path / "theirs", model, drafted=None if part is None else PART, embeddings=True)
    )
    assert {name: each.shape[0] for name, each in tensors.items() if "proj" not in name} == {
        name: each.shape[0] for name, each in of_others.items() if "proj" not in name
    }
    if part is not None:
        assert torch.equal(tensors["t2d"], of_others["t2d"])
    written = json.loads((tmp_path / "head" / "config.json").read_text())["transformer_layer_config"]
    assert written["hidden_act"] == "silu", "vLLM has no default of it"
    again = EagleHead.from_pretrained(tmp_path / "head", model)
    assert again.embeddings is None, "they are the model's"
    assert torch.equal(tensors["embed_tokens.weight"], model.get_input_embeddings().weight.bfloat16())
    assert (again.taps, again.gamma, again.details) == (head.taps, 3, {"rates": [[0.5]]})
    assert again.vocabulary.tolist() == (list(range(160)) if part is None else PART)
    own = dict(again.named_parameters())
    assert own.keys() == dict(head.named_parameters()).keys()
    for name, tensor in head.named_parameters():
        assert torch.equal(own[name].bfloat16(), tensor.bfloat16()), name
    with pytest.raises(HeadMismatchError, match=r"EAGLE-3 head .* belong to llama \(\w+\) and the model is llama"):
        EagleHead.from_pretrained(tmp_path / "head", build("llama", noise=0.1))


def test_a_base_whose_embeddings_are_narrower_has_no_head() -> None:
    config = OPTConfig(
        vocab_size=50, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    )
    with pytest.raises(UnsupportedModelError, match="opt has embeddings of 32 and states of 64, which an EAGLE-3 head"):
        EagleHead.fresh(OPTForCausalLM(config), (), 3, None)


def test_heads_of_the_hub_are_fetched(model, tmp_path, monkeypatch) -> None:
    folder, asked = write_eagle(tmp_path / "head", model), list[str]()

    def fetch(name: str, *, progress: bool) -> Path:
        asked.append(name)
        return folder

    monkeypatch.setattr(snapshots, "cached_snapshot", lambda name: folder if asked else None)
    monkeypatch.setattr(snapshots, "fetch_snapshot", fetch)
    assert kind_of("org/head") == "eagle3"
    assert EagleHead.from_pretrained("org/head", model).gamma == 4
    assert asked == ["org/head"], "once"
    for path in ("runs/head", "./org/head", f"{tmp_path}/nothing", "head"):
        with pytest.raises(ModelNotFoundError, match="no heads in"):
            kind_of(path)
    assert asked == ["org/head"]


def test_damaged_folders_are_refused(model, tmp_path) -> None:
    folder = write_eagle(tmp_path / "head", model)
    tensors = read_weights(folder)
    for name, change, error, message in (
        ("norm.weight", None, ModelNotFoundError, "has no 'norm.weight'; copy its folder again"),
        ("fc.weight", float("nan"), NumericalError, "hold NaN or infinity; copy them again"),
        ("layers.1.mlp.up_proj.weight", 1.0, UnsupportedModelError, r"has 'layers\.1\.mlp\.up_proj\.weight', which is"),
    ):
        own = {each: tensor for each, tensor in tensors.items() if each != name}
        if change is not None:
            own[name] = torch.full((64, 128), change)
        (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save(own, folder / "pytorch_model.bin")
        with pytest.raises(error, match=message):
            EagleHead.from_pretrained(folder, model)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"cannot be read: .*; copy them again"):
        EagleHead.from_pretrained(folder, model)
