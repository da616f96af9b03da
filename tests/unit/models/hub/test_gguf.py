"""Models of GGUF files as they are: every weight is transformers' own reading, and mistakes are refused at once."""

from __future__ import annotations

import math
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from specstream.errors import ModelNotFoundError, UnsupportedModelError, UsageError
from specstream.models.architecture.blocks import BlockTensor, kinds_of
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.hub import gguf as loader
from specstream.models.hub import load
from specstream.models.hub.catalog import on_disk, resolve
from specstream.models.hub.gguf import load_gguf, read_config
from specstream.models.hub.gguf_header import KINDS
from specstream.models.hub.load import config_in, load_model
from tests.gguf_files import ARCHITECTURES, CONTEXT, TOKENS, random_blocks, write_gguf

# The head of transformers' own Qwen3 configuration, which does not read the file's.
QWEN3_HEAD = 128


def mixed(name: str) -> str:
    """Plain numbers among blocks, as files have them."""
    return {"attn_output": "F16", "attn_k": "BF16", "ffn_down": "F32"}.get(name.split(".")[-2], "Q4_1")


def of_transformers(file: Path, dtype: torch.dtype):
    settings = {"quantization_config": GgufConfig(dequantize=True), "dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **settings)


@pytest.mark.parametrize("kind", ["Q4_0", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_and_the_logits_are_those_of_transformers(tmp_path, architecture, kind) -> None:
    head = QWEN3_HEAD if architecture == "qwen3" else 16
    file = write_gguf(tmp_path / "a.gguf", architecture, kind=mixed if kind == "mixed" else kind, head=head)
    model, _ = load_gguf(file, torch.bfloat16)
    reference = of_transformers(file, torch.bfloat16)
    own, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    assert own.keys() == theirs.keys() and type(model) is type(reference)
    assert [name for name in theirs if not torch.equal(own[name] + 0, theirs[name])] == []
    assert own["model.norm.weight"].dtype == torch.bfloat16
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], each) for name, each in reference.named_buffers())
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    matrices = {name for name, weight in own.items() if weight.ndim == 2}
    assert set(kinds_of(model)) == matrices or kind == "mixed"
    assert fingerprint(model) == fingerprint(reference)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_every_kind_are_read(tmp_path, kind) -> None:
    file = write_gguf(tmp_path / "a.gguf", kind=kind, hidden=256, inner=256, head=64)
    model, _ = load_gguf(file, torch.float32)
    theirs = dict(of_transformers(file, torch.float32).named_parameters())
    assert all(torch.equal(weight + 0, theirs[name]) for name, weight in model.named_parameters())
    assert set(kinds_of(model).values()) == {kind}


def test_the_blocks_lie_in_the_mapped_file_and_one_matrix_is_one(tmp_path) -> None:
    model, _ = load_gguf(write_gguf(tmp_path / "a.gguf"), torch.bfloat16)
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    assert isinstance(embedding, BlockTensor)
    up = model.model.layers[0].mlp.up_proj.weight.blocks
    whole = up.untyped_storage().nbytes()
    assert whole == (tmp_path / "a.gguf").stat().st_size
    assert embedding.blocks.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()


def test_a_head_of_its_own_is_kept_and_one_matrix_stored_twice_is_tied(tmp_path) -> None:
    own, _ = load_gguf(write_gguf(tmp_path / "own.gguf", output=True), torch.float32)
    assert own.get_output_embeddings().weight is not own.get_input_embeddings().weight
    assert not own.config.tie_word_embeddings
    chance = np.random.default_rng(0)
    matrix = chance.normal(size=(len(TOKENS), 64)).astype(np.float32)
    other = [gguf.quants.quantize(matrix, gguf.GGMLQuantizationType[kind]) for kind in ("Q4_0", "Q8_0")]
    file = tmp_path / "twice.gguf"
    write_gguf(
        file, output=True, kind=lambda name: "Q8_0" if name == "output.weight" else "Q4_0"
    )  # their places are filled with one matrix
    reader = gguf.GGUFReader(file, "r+")
    for tensor in reader.tensors:
        if tensor.name in ("token_embd.weight", "output.weight"):
            tensor.data[:] = other[tensor.name == "output.weight"]
    reader.data.flush()
    tied, _ = load_gguf(file, torch.float32)
    weight = tied.get_input_embeddings().weight
    assert tied.get_output_embeddings().weight is weight and weight.kind == "Q8_0"


def test_what_transformers_does_not_read_of_the_fields_is_put_back(tmp_path) -> None:
    fields = {"tokenizer.ggml.eot_token_id": 2}
    model, tokenizer = load_gguf(write_gguf(tmp_path / "a.gguf", fields=fields), torch.float32)
    assert model.generation_config.eos_token_id == [0, 2]
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<end>", CONTEXT)
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode(" two  spaces")) == " two  spaces"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<start>hi<end>"
    named, _ = load_gguf(tmp_path / "a.gguf", torch.float32, stop_tokens=("<stop>",))
    assert named.generation_config.eos_token_id == 2
    other, words = load_gguf(write_gguf(tmp_path / "b.gguf", fields={"tokenizer.ggml.pre": "gpt-2"}), torch.float32)
    assert words.tokenize("a12") == ["a", "1", "2"] and "Digits" not in str(words.backend_tokenizer.pre_tokenizer)
    assert other.generation_config.eos_token_id == 0


def test_the_size_of_a_head_is_the_files(tmp_path) -> None:
    assert read_config(write_gguf(tmp_path / "a.gguf", "qwen3", head=32)).head_dim == 32
    file = write_gguf(tmp_path / "b.gguf", "qwen3", head=16, fields={})
    assert config_in(str(file), "b").head_dim == 16
    assert load_gguf(file, torch.float32)[0](torch.tensor([[3, 4]])).logits.shape == (1, 2, len(TOKENS))


def test_rotations_of_llama_3_are_divided_as_the_file_says(tmp_path) -> None:
    plain, _ = load_gguf(write_gguf(tmp_path / "a.gguf"), torch.float32)
    file = write_gguf(tmp_path / "b.gguf", change=lambda shapes: {**shapes, "rope_freqs.weight": (8,)})
    model, _ = load_gguf(file, torch.float32)
    factors = next(tensor.data for tensor in gguf.GGUFReader(file).tensors if tensor.name == "rope_freqs.weight")
    expected = plain.model.rotary_emb.inv_freq / torch.from_numpy(np.array(factors))
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)


def yarn_of_llama_cpp(dim: int, base: float, factor: float, before: int, fast: float = 32, slow: float = 1):
    """Frequencies as ggml's rope_yarn makes them."""
    own = base ** -(np.arange(0, dim, 2) / dim)
    low, high = (dim * math.log(before / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast, slow))
    low, high = max(0, math.floor(low)), min(dim - 1, math.ceil(high))
    mixed = 1 - np.clip((np.arange(dim // 2) - low) / max(0.001, high - low), 0, 1)
    return own / factor * (1 - mixed) + own * mixed


def scaled_file(path: Path, architecture: str, scaling: str, more: dict[str, float | int], **others) -> Path:
    fields = {"type": scaling, **more}
    return write_gguf(
        path,
        architecture,
        fields={f"{architecture}.rope.scaling.{name}": each for name, each in fields.items()},
        **others,
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_rotations_are_scaled_linearly_and_by_yarn(tmp_path, architecture) -> None:
    file = scaled_file(tmp_path / "a.gguf", architecture, "linear", {"factor": 4.0})
    own = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    frequencies = load_gguf(file, torch.float32)[0].model.rotary_emb.inv_freq
    assert np.allclose(frequencies, own / 4)
    more = {"factor": 8.0, "original_context_length": 64}
    rotary = load_gguf(scaled_file(tmp_path / "b.gguf", architecture, "yarn", more), torch.float32)[0].model.rotary_emb
    expected = yarn_of_llama_cpp(16, 10000.0, 8.0, 64)
    assert np.allclose(rotary.inv_freq, expected) and not np.allclose(expected, own / 8)
    assert rotary.attention_scaling == pytest.approx(1 + 0.1 * math.log(8))
    more |= {"attn_factor": 0.5, "yarn_beta_fast": 4.0, "yarn_beta_slow": 0.5}
    rotary = load_gguf(scaled_file(tmp_path / "c.gguf", architecture, "yarn", more), torch.float32)[0].model.rotary_emb
    assert np.allclose(rotary.inv_freq, yarn_of_llama_cpp(16, 10000.0, 8.0, 64, 4, 0.5))
    assert rotary.attention_scaling == pytest.approx(0.5 + 0.05 * math.log(8))


def test_gemma_3_scales_the_rotations_of_layers_that_see_everything(tmp_path) -> None:
    file = scaled_file(tmp_path / "a.gguf", "gemma3", "linear", {"factor": 8.0})
    config = read_config(file)
    config.layer_types = ["sliding_attention", "full_attention"]
    rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    own = torch.arange(0, 16, 2) / 16
    assert torch.allclose(rotary.sliding_attention_inv_freq, 10000.0**-own)
    assert torch.allclose(rotary.full_attention_inv_freq, 10000.0**-own / 8)


@pytest.mark.parametrize("turned", [16, 12])
def test_phi_3_has_factors_for_short_and_long_texts_and_may_turn_a_part(tmp_path, turned) -> None:
    names = ("rope_factors_short.weight", "rope_factors_long.weight")
    file = write_gguf(
        tmp_path / "a.gguf",
        "phi3",
        fields={
            "phi3.rope.dimension_count": turned,
            "phi3.rope.scaling.original_context_length": 128,
            "phi3.rope.scaling.attn_factor": 1.25,
        },
        change=lambda shapes: {**shapes, **dict.fromkeys(names, (turned // 2,))},
    )
    factors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors if tensor.name in names}
    model, _ = load_gguf(file, torch.float32)
    own = 10000.0 ** -(np.arange(0, turned, 2) / turned)
    rotary = model.model.rotary_emb
    assert np.allclose(rotary.inv_freq, own / factors[names[0]]) and rotary.attention_scaling == 1.25
    rotary(torch.zeros(1), torch.arange(200)[None])  # longer than what it was trained on
    assert np.allclose(rotary.inv_freq, own / factors[names[1]])
    assert model(torch.tensor([[3, 4]])).logits.isfinite().all()


def without(name: str):
    return lambda shapes: {each: shape for each, shape in shapes.items() if each != name}


REFUSED = {
    "architecture": (
        lambda file: write_gguf(file, "llama", fields={"general.architecture": "mamba"}),
        UnsupportedModelError,
        r"is of the architecture 'mamba', which is not read from GGUF files; give one of llama, qwen2, .*folder",
    ),
    "scaling": (
        lambda file: write_gguf(file, fields={"llama.rope.scaling.type": "yarn"}),
        UnsupportedModelError,
        r"scales its rotations \('yarn'\) in a way that is not read from GGUF files; give the model's folder",
    ),
    "scaled otherwise": (
        lambda file: write_gguf(file, fields={"llama.rope.scaling.type": "ntk", "llama.rope.scaling.factor": 2.0}),
        UnsupportedModelError,
        r"scales its rotations \('ntk'\) in a way that is not read from GGUF files; give the model's folder",
    ),
    "turned in part": (
        lambda file: write_gguf(file, fields={"llama.rope.dimension_count": 8}),
        UnsupportedModelError,
        r"rotates 8 of 16 dimensions, which is not read from GGUF files of the architecture 'llama'; give",
    ),
    "missing": (
        lambda file: write_gguf(file, change=without("blk.1.ffn_up.weight")),
        ModelNotFoundError,
        r"lacks blk\.1\.ffn_up\.weight, model\.layers\.1\.mlp\.up_proj\.weight of the model; give a whole file",
    ),
    "shape": (
        lambda file: write_gguf(file, change=lambda shapes: {**shapes, "blk.1.attn_v.weight": (64, 64)}),
        ModelNotFoundError,
        r"has blk\.1\.attn_v\.weight of shape \[64, 64\] where .*v_proj\.weight is \[32, 64\]; copy or download",
    ),
    "more": (
        lambda file: write_gguf(file, change=lambda shapes: {**shapes, "blk.0.attn_q.bias": (64,)}),
        UnsupportedModelError,
        r"has blk\.0\.attn_q\.bias, for which LlamaForCausalLM has no place; give the model's folder",
    ),
    "type": (
        lambda file: retyped(file, "IQ1_S"),
        ModelNotFoundError,
        r"in the type IQ1_S, which is not read; give a file of Q8_0, .*IQ4_NL, F32, F16, BF16",
    ),
    "number": (lambda file: retyped(file, 199), ModelNotFoundError, r"in the type number 199, which is not read"),
    "cut": (lambda file: shortened(file, 0.9), ModelNotFoundError, r"is cut short: .* ends at byte .*; copy or downl"),
    "header": (lambda file: shortened(file, 0.001), ModelNotFoundError, r"is damaged or cut short: it ends at byte"),
    "magic": (
        lambda file: file.write_bytes(b"PK\3\4 zip"),
        ModelNotFoundError,
        r"begins with b'PK.*no GGUF file; give one",
    ),
    "experts": (
        lambda file: write_gguf(file, fields={"llama.expert_count": 8}),
        UnsupportedModelError,
        r"is a mixture of 8 experts, which is not read from GGUF files; give the model's folder",
    ),
    "tokenizer": (
        lambda file: file.write_bytes(write_gguf(file).read_bytes().replace(b"ggml.tokens", b"ggml.others")),
        ModelNotFoundError,
        r"has no tokenizer; give a whole file, such as llama\.cpp makes",
    ),
    "version": (
        lambda file: file.write_bytes(b"GGUF\1\0\0\0" + bytes(40)),
        ModelNotFoundError,
        r"is of GGUF version 1; give one of version 2 or 3",
    ),
    "empty": (lambda file: file.touch(), ModelNotFoundError, r"is empty; copy or download it again"),
    "folder": (lambda file: file.mkdir(), ModelNotFoundError, r"is a folder named as a GGUF file; give the file in it"),
}


def retyped(file: Path, kind: str | int) -> None:
    """One tensor's type is another number."""
    write_gguf(file)
    data, name = bytearray(file.read_bytes()), b"blk.0.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 16
    number = int(gguf.GGMLQuantizationType[kind]) if isinstance(kind, str) else kind
    data[at : at + 4] = number.to_bytes(4, "little")
    file.write_bytes(data)


def shortened(file: Path, part: float) -> None:
    write_gguf(file)
    os.truncate(file, int(file.stat().st_size * part))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence_before_a_tokenizer_is_made(tmp_path, monkeypatch, case) -> None:
    write, error, words = REFUSED[case]
    write(tmp_path / "x.gguf")
    if case not in ("missing", "shape", "more"):
        monkeypatch.setattr(loader, "PreTrainedTokenizerFast", None)
    with pytest.raises(error, match=words) as caught:
        load_model(str(tmp_path / "x.gguf"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_split_is_the_same_model(tmp_path) -> None:
    whole, _ = load_gguf(write_gguf(tmp_path / "a.gguf"), torch.float32)
    first = write_gguf(tmp_path / "b.gguf", split=8)
    assert len(list(tmp_path.glob("b-*-of-00003.gguf"))) == 3
    model, tokenizer = load_gguf(first, torch.float32)
    theirs = dict(whole.named_parameters())
    assert all(torch.equal(weight + 0, theirs[name] + 0) for name, weight in model.named_parameters())
    assert tokenizer.decode(tokenizer.encode(" two  spaces")) == " two  spaces"
    second = tmp_path / "b-00002-of-00003.gguf"
    with pytest.raises(ModelNotFoundError, match=r"is part 2 of 3; give the first, 'b-00001-of-00003\.gguf', with the"):
        on_disk(str(second))
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ModelNotFoundError, match=r"is part 1 of 3 and there is no 'b-00002-of-00003\.gguf' beside it"):
        on_disk(str(first))


def test_a_file_that_memory_does_not_hold_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loader, "free_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"takes 0\.0 GB and 0\.0 GB are free; give a smaller file"):
        load_gguf(write_gguf(tmp_path / "a.gguf"), torch.float32)


def test_on_another_device_it_is_numbers(tmp_path, monkeypatch, capsys) -> None:
    file = str(write_gguf(tmp_path / "a.gguf"))
    in_blocks, _ = load_gguf(Path(file), torch.float32)
    in_numbers, _ = load_gguf(Path(file), torch.float32, in_blocks=False)
    theirs = dict(in_blocks.named_parameters())
    assert any(isinstance(weight, BlockTensor) for weight in theirs.values())
    for name, weight in in_numbers.named_parameters():
        assert type(weight) is torch.nn.Parameter, name
        assert torch.equal(weight, theirs[name] + 0), name
    monkeypatch.setattr(load, "pick_device", lambda device: torch.device("meta"))
    model, _ = load_model(file, dtype="bfloat16")
    assert {(each.device.type, each.dtype) for each in model.parameters()} == {("meta", torch.bfloat16)}
    assert "whose blocks run on the CPU only: on meta its weights are bfloat16" in capsys.readouterr().err


def test_a_file_is_known_by_its_ending_or_its_first_bytes(tmp_path) -> None:
    file = write_gguf(tmp_path / "a.GGUF")
    assert resolve(file) == str(file)
    blob = file.rename(tmp_path / "sha256-0123")
    assert resolve(blob) == str(blob)
    assert load_model(str(blob), dtype="float32")[0].dtype == torch.float32
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ModelNotFoundError, match="is a file: give the folder of a saved model"):
        on_disk(str(tmp_path / "text"))
    saved = tmp_path / "saved.gguf"
    saved.mkdir()
    (saved / "config.json").write_text("{}")
    assert on_disk(str(saved)) == saved


def test_a_changed_file_is_read_anew(tmp_path) -> None:
    file = write_gguf(tmp_path / "a.gguf")
    assert on_disk(str(file)) == file
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="damaged or cut short"):
        on_disk(str(file))


def test_random_blocks_are_finite() -> None:
    """Else the tests of those kinds compare NaN."""
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        found = random_blocks(kind, 4, 256, np.random.default_rng(0))
        values = gguf.quants.dequantize(found, gguf.GGMLQuantizationType[kind])
        assert np.isfinite(values).all() and values.std() > 0.001


@pytest.mark.model
def test_the_default_models_file_is_the_default_model(default_model_path) -> None:
    assert resolve("smollm2-135m.gguf", progress=False).endswith("smollm2-135m.gguf")
    model, tokenizer = load_model("smollm2-135m.gguf", dtype="bfloat16")
    folder = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.bfloat16)
    words = AutoTokenizer.from_pretrained(default_model_path)
    assert fingerprint(model) == fingerprint(folder)
    assert tokenizer.get_vocab() == words.get_vocab()
    assert model.generation_config.eos_token_id == folder.generation_config.eos_token_id
    for text in ("The capital of France is", "def add(a, b):\n    return", "  12 plus 2024 is"):
        ids = words(text, return_tensors="pt").input_ids
        assert torch.equal(tokenizer(text, return_tensors="pt").input_ids, ids)
        with torch.no_grad():
            assert torch.equal(model(ids).logits.argmax(-1), folder(ids).logits.argmax(-1))
